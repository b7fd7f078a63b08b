# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes this node's own files; one that cannot be written is told once, and holds nothing up."""

from __future__ import annotations

from agent.core.journal import Level, MessageId, Record
from agent.daemon import outputs
from agent.daemon.outside import words_of
from agent.ports import JournalSink, LocalFiles, OutsideError

OwnFile = outputs.WriteStatus | outputs.KeepDecision | outputs.KeepLoads

# What cannot be done and what that means; what is said when it is over, with {lost} for how many were lost meanwhile.
_SAID: dict[type[OwnFile], tuple[str, str]] = {
    outputs.WriteStatus: ("status.json cannot be written, so proxlb-agent status does not tell how it is", "status.json is written again"),
    outputs.KeepDecision: (
        "the decision journal cannot be written, so its decisions stand in this journal alone",
        "the decision journal is written again; decisions that are missing in it: {lost}",
    ),
    outputs.KeepLoads: ("learned loads cannot be kept, and would be lost with the process", "learned loads are kept again"),
}


class OwnFiles:
    """What is written below /run and /var/lib: nothing of it decides where a guest is, so the agent works without it, too."""

    def __init__(self, local: LocalFiles, journal: JournalSink) -> None:
        self._local = local
        self._journal = journal
        self._lost: dict[type[OwnFile], int] = {}  # what cannot be written now, and how often that was tried

    def write(self, asked: OwnFile) -> None:
        """Write it; says in the journal when that fails for the first time, and when it works again."""
        try:
            match asked:
                case outputs.WriteStatus():
                    self._local.write_status(asked.text)
                case outputs.KeepDecision():
                    self._local.append_decision(asked.line)
                case outputs.KeepLoads():
                    self._local.write_loads(asked.text)
        except OutsideError as error:
            self._failed(type(asked), words_of(error))
            return
        if (lost := self._lost.pop(type(asked), None)) is not None:
            self._say(Level.NOTICE, _SAID[type(asked)][1].format(lost=lost))

    def _failed(self, kind: type[OwnFile], why: str) -> None:
        self._lost[kind] = self._lost.get(kind, 0) + 1
        if self._lost[kind] == 1:
            self._say(Level.WARNING, f"{_SAID[kind][0]}; the agent goes on: {why}")

    def _say(self, level: Level, text: str) -> None:
        self._journal.say(Record(level, MessageId.OUTSIDE, text))

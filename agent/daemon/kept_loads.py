# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests were seen to take, kept on this node's disk from lead to lead."""

from __future__ import annotations

from agent.core.documents import DocumentError, LoadsFile, parse, render
from agent.core.journal import Level, MessageId, Record
from agent.core.learned import Learned, as_file, bounded
from agent.daemon.inputs import LoadsSeen, Now
from agent.daemon.outputs import KeepLoads, Output, ReadLoads, Say

KEEP_LOADS_S = 300.0  # between two writes of loads.json: what a guest took is lost with the process for as long at the most


class KeptLoads:
    """What was learned, in all leads of this process, and what of it is on the disk."""

    def __init__(self, now: Now) -> None:
        self.learned: Learned = {}
        self._kept: Learned = self.learned
        self._kept_s = now.boot_s
        self._has_asked = False

    def asked_once(self) -> list[Output]:
        """The question for what an earlier process kept, once in a process."""
        if self._has_asked:
            return []
        self._has_asked = True
        return [ReadLoads()]

    def on_seen(self, seen: LoadsSeen, now: Now) -> list[Output]:
        """Take what this node learned when it led before; what was learned since counts more."""
        if seen.error:
            return [_trouble(f"learned loads cannot be read and begin anew: {seen.error}")]
        if seen.text is None:
            return []
        try:
            kept = parse(LoadsFile, seen.text)
        except DocumentError as error:
            return [_trouble(f"loads.json cannot be used, learned loads begin anew: {error}")]
        since = self.learned
        self.learned = {**bounded(kept.loads, now.wall_s), **since}
        if not since:
            self._kept = self.learned
        return []

    def due(self, now: Now) -> list[Output]:
        """As `keep`, where that was long enough ago."""
        return self.keep(now) if now.boot_s - self._kept_s >= KEEP_LOADS_S else []

    def keep(self, now: Now) -> list[Output]:
        """Write down what was learned since it was last written."""
        if self.learned is self._kept:
            return []
        self._kept, self._kept_s = self.learned, now.boot_s
        return [KeepLoads(render(as_file(self.learned)))]


def _trouble(text: str) -> Say:
    return Say(Record(Level.WARNING, MessageId.OUTSIDE, text))

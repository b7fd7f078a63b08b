# SPDX-License-Identifier: GPL-3.0-or-later
"""history.json as the leader keeps it: what stands there, and what is still to be written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.core import history as memory
from agent.core.documents import Answer, HistoryFile, LeaderFile, render
from agent.core.migrations import Migration
from agent.daemon.agenda import RETRY_S
from agent.daemon.inputs import Now, WriteAnswer, Written
from agent.daemon.outputs import WriteShared
from agent.daemon.outside import HISTORY_PATH


class Chronicle:
    """What must outlive this lead. One write at a time is on its way."""

    def __init__(self, history: HistoryFile, leader: LeaderFile) -> None:
        self._history = history
        self.leader = leader
        self._serial = 0
        self._writing: int | None = None
        self._is_dirty = True
        self._write_again_s = -1e9

    @property
    def history(self) -> HistoryFile:
        """What stands there, or will with the next write."""
        return self._history

    @history.setter
    def history(self, history: HistoryFile) -> None:
        if history != self._history:
            self._history, self._is_dirty = history, True

    def touch(self) -> None:
        """Write it anew though nothing has changed: a request goes out only after a write that succeeded."""
        self._is_dirty = True

    def record(self, records: Iterable[Migration]) -> None:
        """Keep what became of these attempts."""
        if changed := list(records):
            self.history = memory.with_migrations(self._history, changed)

    def record_with_next(self, record: Migration) -> None:
        """Keep it, too, but that alone is no reason to write: a reader takes the attempt for asked from its intent on."""
        self._history = memory.with_migrations(self._history, [record])

    def forget(self, records: Iterable[Migration]) -> None:
        """Nothing was asked of PVE for these, and nobody has to know of them."""
        intents = {record.intent for record in records}
        self.history = replace(
            self._history, migrations=tuple(record for record in self._history.migrations if record.intent not in intents)
        )

    def answer(self, answer: Answer) -> None:
        """Keep what a command is told."""
        self.history = memory.with_answer(self._history, answer)

    def is_due(self, now: Now) -> bool:
        """True when something is to be written, and no write is on its way."""
        return self._is_dirty and self._writing is None and now.boot_s >= self._write_again_s

    def write(self, now: Now) -> WriteShared:
        """The write of what stands there now."""
        self._history = memory.bounded(self._history, now.wall_s)
        self._serial += 1
        self._writing, self._is_dirty = self._serial, False
        return WriteShared(Written.HISTORY, HISTORY_PATH, render(self._history), self._serial, self.leader)

    def on_written(self, answer: WriteAnswer, now: Now) -> bool:
        """Take what became of a write; False when it is not the one that is waited for."""
        if answer.serial != self._writing:
            return False
        self._writing = None
        if answer.error:
            self._is_dirty = True
            self._write_again_s = now.boot_s + RETRY_S
        return True

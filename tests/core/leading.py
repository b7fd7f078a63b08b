# SPDX-License-Identifier: GPL-3.0-or-later
"""A leader in miniature: it plans, writes down, migrates in no time, and forgets all but the history's file between two looks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from agent.core import aside, homes, planner
from agent.core import history as memory
from agent.core.cluster import Snapshot
from agent.core.documents import HistoryFile, parse, render
from agent.core.guest_load import Ledger
from agent.core.migrations import MigrationState, advanced, in_flight, intended
from agent.core.plan_types import Gate, Move
from agent.core.question import Question
from agent.core.reasons import LOAD_REASONS, MoveReason
from agent.core.settings import Settings
from agent.core.slots import startable
from tests.core.clusters import NOW, after_moves


def remembered_by(history: HistoryFile, snapshot: Snapshot, how: Settings, now: float, opened_by: Gate | None = None) -> Question:
    """All that a leader's question takes from the history, as it stands in the file."""
    under_way = [record for record in history.migrations if record.is_open]
    return Question(
        opened_by=opened_by,
        ledger=Ledger(
            memory.learned(history, now), in_flight(under_way), memory.landed(history, now), memory.unsampled(history, snapshot, now)
        ),
        cooling=memory.cooling(history, snapshot, now, how.balance.guest_cooldown_s),
        set_aside=aside.set_aside(history, now),
        avoided=aside.avoided(history, now),
        homes=homes.homes_of(history),
        moves_per_pass=max(0, how.balance.max_moves_per_pass - sum(r.reason is not MoveReason.MAINTENANCE for r in under_way)),
        moves_left=memory.moves_left(history, now, how.balance.max_moves_per_hour),
    )


def handed_over(history: HistoryFile, now: float) -> HistoryFile:
    """The history as the next leader reads it."""
    return parse(HistoryFile, render(memory.bounded(history, now)))


@dataclass
class Leading:
    """The looks of leaders that follow each other, `every_s` apart, until there is nothing to do for a whole look."""

    snapshot: Snapshot
    how: Settings
    every_s: float = 120.0
    most_looks: int = 200
    new_leader_each_look: bool = True
    now: float = NOW
    history: HistoryFile = field(default_factory=lambda: memory.empty(NOW - 86400))
    made: list[tuple[float, Move]] = field(default_factory=list)
    opened_by: Gate | None = None
    looks: int = 0

    def look(self) -> list[Move]:
        """Plan, and carry out what may start; the moves that were made."""
        plan = planner.plan(self.snapshot, self.how, remembered_by(self.history, self.snapshot, self.how, self.now, self.opened_by))
        moves = startable(plan.moves, memory.open_migrations(self.history), self.how)
        if moves and self.opened_by is None and any(move.reason in LOAD_REASONS for move in moves):
            self.opened_by = plan.gate
        if not moves:
            self.opened_by = None
        intents = [intended(move, f"{self.looks}-{number}", self.looks, self.now) for number, move in enumerate(moves)]
        for state in (MigrationState.ASKED, MigrationState.RUNNING, MigrationState.DONE):
            intents = [advanced(record, state, self.now) for record in intents]
        self.history = memory.with_migrations(self.history, intents)
        for record in intents:
            self.history = homes.with_success(self.history, record)
        self.snapshot = after_moves(self.snapshot, moves)
        self.made += [(self.now, move) for move in moves]
        self.now += self.every_s
        self.looks += 1
        self.snapshot = replace(self.snapshot, taken_at=self.now)
        if self.new_leader_each_look:
            self.history, self.opened_by = handed_over(self.history, self.now), None
        return moves

    def until_quiet(self) -> bool:
        """Look until nothing has moved for longer than any brake or cooldown lasts; False when that takes too many looks."""
        quiet = 0
        while self.looks < self.most_looks:
            quiet = 0 if self.look() else quiet + 1
            if quiet == 1:
                self.now += 3601.0  # nothing can start now: whatever waits for the hourly brake or a cooldown can start after it
            if quiet > 1:
                return True
        return False

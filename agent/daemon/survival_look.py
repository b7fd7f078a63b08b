# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether any one node could be lost, as the leader last saw it."""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.cluster import Snapshot
from agent.core.documents import HistoryFile
from agent.core.known_loads import ledger_of
from agent.core.migrations import Migration
from agent.core.placement import Placement
from agent.core.question import Question
from agent.core.settings import Settings
from agent.core.survival import Survival, survival

SURVIVAL_S = 60.0  # N+1 is looked at no more often: of a large cluster it takes as long as a plan


class SurvivalLook:
    """What was `found`, and `at` which Unix second; None before the first look."""

    def __init__(self) -> None:
        self.found: Survival | None = None
        self.at = -1e9

    def on_look(self, snapshot: Snapshot, history: HistoryFile, records: Iterable[Migration], settings: Settings) -> None:
        """Take the look when nothing is about to start, so that nothing waits for it. `records` are the migrations under way."""
        if abs(snapshot.taken_at - self.at) < SURVIVAL_S:
            return
        question = Question(ledger=ledger_of(snapshot, history, records, snapshot.taken_at))
        self.found = survival(Placement(snapshot, settings, question))
        self.at = snapshot.taken_at

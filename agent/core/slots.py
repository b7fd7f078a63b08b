# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of a plan's moves may start now: the first batch, as far as there are free slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agent.core.migrations import Migration
from agent.core.others import Foreign
from agent.core.plan_types import Move
from agent.core.reasons import MoveReason
from agent.core.settings import DrainSettings, MigrationSettings, Settings

_DRAIN = frozenset({MoveReason.MAINTENANCE, MoveReason.RETURN_HOME})


def slots_of(reason: MoveReason, settings: Settings) -> MigrationSettings | DrainSettings:
    """The slots that a move of that reason takes: drains and the way home have their own."""
    return settings.drain if reason in _DRAIN else settings.migration


def startable(moves: Sequence[Move], open_records: Sequence[Migration], settings: Settings, foreign: Sequence[Foreign] = ()) -> list[Move]:
    """The moves of the first batch that the slots and the brakes let start beside what is under way, `foreign` what others started.

    Slots are counted a node (as source and as target) and in all, drains and the way home by their own, larger numbers.
    Guests that must stay together start in the same look or, where the slots are too few for all, one after the other.
    """
    per_node: Counter[str] = Counter()
    for record in open_records:
        per_node.update((record.source, record.target))
    for other in foreign:
        per_node.update(name for name in (other.source, other.target) if name is not None)
    total = len(open_records) + len(foreign)
    busy = {record.vmid for record in open_records}
    chosen: list[Move] = []
    for move in moves:
        if move.batch != 1 or not move.first_pass or move.vmid in busy:
            continue
        slots = slots_of(move.reason, settings)
        if total >= slots.parallel_total or max(per_node[move.source], per_node[move.target]) >= slots.parallel_per_node:
            continue
        per_node.update((move.source, move.target))
        total += 1
        chosen.append(move)
    return chosen

# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests whom something keeps on a node that is to be empty, or away from home, whose end nobody tells: when to look again for them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from agent.core.cluster import Snapshot
from agent.core.events import EventKind
from agent.core.history import SAMPLED_S
from agent.core.plan_types import Plan
from agent.core.reasons import RefusalReason
from agent.core.triggers import Trigger
from agent.daemon.inputs import Now

HELD_S = 30.0  # between looks, at the least, while a lock keeps a guest on a node that is to be empty
STARTING_S = 30.0  # between looks while guests wait for a node that has just booted

_HELD = frozenset({RefusalReason.LOCKED, RefusalReason.BUSY})
_HELD_AWAY = _HELD | {RefusalReason.NODE_STALE, RefusalReason.NODE_SILENT}  # a node that has just booted tells of itself before long


@dataclass(frozen=True, slots=True)
class Again:
    """When to look again, in CLOCK_BOOTTIME seconds; `drained` are the nodes that are to be emptied by it."""

    at_s: float
    drained: frozenset[str]


class Held:
    """Looks for one hindrance after the other: soon at first, the longer it lasts the less often."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def again(self, plan: Plan, snapshot: Snapshot, homes: Collection[int], trigger: Trigger, now: Now) -> Again | None:
        """When the plan that moves nobody is to be made anew, None where an event will tell.

        Shape:   `homes` are the guests that are to come home, `trigger` is what the plan answers.
        """
        places = {guest.vmid: guest.node for guest in snapshot.guests}
        drained = {maintenance.node for maintenance in snapshot.maintenance}
        leaving = [refusal for refusal in plan.refused if places.get(refusal.vmid) in drained]
        coming = [refusal for refusal in plan.refused if refusal.vmid in homes and places.get(refusal.vmid) not in drained]
        waits = []
        if any(refusal.reason is RefusalReason.NODE_STARTING for refusal in plan.refused):
            waits.append(STARTING_S)
        if any(one.reason in _HELD for one in leaving) or any(one.reason in _HELD_AWAY for one in coming):
            self._since_s = now.boot_s if self._since_s is None else self._since_s
            waits.append(max(HELD_S, (now.boot_s - self._since_s) / 4))
        else:
            self._since_s = None
        if (leaving or coming) and any(event.kind is EventKind.GUEST_STOPPED for event in trigger.events):
            waits.append(SAMPLED_S + 1.0)  # the room that it made may not be in the numbers yet
        return Again(now.boot_s + min(waits), frozenset(places[refusal.vmid] for refusal in leaving)) if waits else None

# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a guest that does not exist yet would best be made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.core.cluster import GIB, Guest, GuestType, Snapshot
from agent.core.conditions import Purpose
from agent.core.explain import TargetView, best_of, weighed
from agent.core.goal_table import GoalRow
from agent.core.guest_load import GuestLoad
from agent.core.placement import Placement
from agent.core.plan_types import Conflict
from agent.core.question import Question
from agent.core.settings import Settings

NOBODY = 0  # the VMID it goes by: PVE's begin with 100


@dataclass(frozen=True, slots=True)
class Placing:
    """Every node for the new guest.

    Shape:   `load` is what it is expected to take; targets by node name; `goal` is as it is now, and with the guest on the best
             node where there is one; `conflicts` are those that its own rules bring.
    """

    guest: Guest
    load: GuestLoad
    targets: tuple[TargetView, ...]
    goal: tuple[GoalRow, ...]
    conflicts: tuple[Conflict, ...]

    @property
    def best(self) -> TargetView | None:
        """The node on which it raises the goal least, None when no node can take it."""
        return best_of(self.targets)


def newcomer(memory_gib: float, cores: float, kind: GuestType, tags: tuple[str, ...], pool: str | None) -> Guest:
    """The guest as it would be right after its start, on no node yet."""
    return Guest(NOBODY, kind, "", "", "running", cores, int(memory_gib * GIB), uptime_s=0.0, tags=tags, pool=pool)


def place(snapshot: Snapshot, settings: Settings, question: Question, guest: Guest) -> Placing:
    """Return every node as a place for the guest: what it does to the goal there, or why it cannot be there.

    Limits and rules hold as for a guest that leaves a node in maintenance: a threshold refuses nobody, but what stands above it
    counts in the goal.
    """
    sketch = Placement(replace(snapshot, guests=(guest, *snapshot.guests)), settings, question)
    unit = (guest.vmid,)
    load = sketch.load_of_unit(unit)
    conflicts = tuple(conflict for conflict in sketch.rules.conflicts if guest.vmid in conflict.vmids)
    targets, goal = weighed(sketch, unit, Purpose.DRAIN, is_new=True)
    return Placing(guest, load, targets, goal, conflicts)

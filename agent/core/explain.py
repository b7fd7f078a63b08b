# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a guest is where it is: what keeps it there, and every node as a target with what the move would gain or why it is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from agent.core.cluster import Guest, GuestType, Snapshot
from agent.core.conditions import Purpose
from agent.core.goal import Goal
from agent.core.goal_table import OVERLOAD, GoalRow, goal_table
from agent.core.guest_load import GuestLoad
from agent.core.placement import Placement
from agent.core.plan_types import Refusal
from agent.core.question import Question
from agent.core.reasons import RefusalReason
from agent.core.settings import Settings


@dataclass(frozen=True, slots=True)
class TargetView:
    """A node as a target.

    Units:   `terms` are what the move takes off each statistic of the goal, times its weight, by the statistic's name; `gain` is what
             it takes off the imbalance, `cost` what it must bring at the least, `net` the sum of all terms less the cost: only
             above zero is it made for load. Where the node is refused there are no terms, and the others are None.
    Shape:   `moving` is how many guests would move, fewer than the unit where a part of it is there already.
    """

    node: str
    moving: int
    terms: tuple[tuple[str, float], ...]
    gain: float | None
    cost: float | None
    net: float | None
    refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What there is to say about a guest.

    Shape:   `unit` are the guests that would move with it, itself included; `load` is theirs together. `drains` when its
             node is to be emptied, `broken` are its rules that are not kept as it stands, in words: then any allowed target is
             good enough. `stays` is what keeps the unit whatever the target. `rules` are what its rules are called, `pins` and
             `apart` are sorted. `goal` is as it is now, and after the move to the best target where there is one.
    """

    guest: Guest
    unit: tuple[int, ...]
    load: GuestLoad
    drains: bool
    broken: tuple[str, ...]
    stays: Refusal | None
    rules: tuple[str, ...]
    pins: tuple[str, ...]
    together: tuple[int, ...]
    apart: tuple[int, ...]
    contradicted: bool
    targets: tuple[TargetView, ...]
    goal: tuple[GoalRow, ...]

    @property
    def best(self) -> TargetView | None:
        """The target that a plan for this guest alone would take, None when all are refused."""
        return best_of(self.targets)


def best_of(targets: Iterable[TargetView]) -> TargetView | None:
    """The target with the fewest moves, of these the highest net gain, None when all are refused; ties go to the node's name."""
    allowed = [target for target in targets if target.net is not None]
    return min(allowed, key=lambda target: (target.moving, -(target.net or 0.0), target.node), default=None)


def explain(snapshot: Snapshot, settings: Settings, question: Question, vmid: int) -> Explanation | None:
    """Return what keeps the guest or would move it now, None when there is no such guest.

    Looks at the guest alone (with those it must stay together with), as if no other guest moved: a plan that moves others
    first may come to another end.

    Shape:   targets by node name, its own node and nodes that are offline included.
    """
    sketch = Placement(snapshot, settings, question)
    guest = sketch.guest_of.get(vmid)
    if guest is None:
        return None
    broken = _broken_rules(sketch, vmid)
    purpose = Purpose.DRAIN if guest.node in sketch.draining else Purpose.RULE if broken else Purpose.LOAD
    together = sketch.rules.unit(vmid)
    unit = sketch.unit_here(vmid) if purpose is not Purpose.RULE else together
    load = sketch.load_of_unit(unit)
    stays = sketch.why_unit_stays(unit if unit == sketch.unit_here(vmid) else (vmid,), purpose)
    targets, goal = weighed(sketch, unit, purpose)
    return Explanation(
        guest=guest,
        unit=unit,
        load=load,
        drains=purpose is Purpose.DRAIN,
        broken=broken,
        stays=stays,
        rules=sketch.rules.named.get(vmid, ()),
        pins=tuple(sorted(sketch.rules.pins.get(vmid, ()))),
        together=tuple(other for other in together if other != vmid),
        apart=tuple(sorted(sketch.rules.apart.get(vmid, ()))),
        contradicted=vmid in sketch.rules.contradicted,
        targets=targets,
        goal=goal,
    )


def weighed(
    sketch: Placement, unit: tuple[int, ...], purpose: Purpose, *, is_new: bool = False
) -> tuple[tuple[TargetView, ...], tuple[GoalRow, ...]]:
    """Every node as a target, each as if the guests came together there and nobody else moved, and the goal now and with the best one.

    Shape:   the sketch is used up; a new guest costs nothing to move.
    """
    names = sorted(sketch.node_of)
    weigh = Goal(sketch)
    movers_to = {name: tuple(vmid for vmid in unit if sketch.at[vmid] != name) for name in names}
    refusals = {name: _why_not(sketch, unit, movers_to[name], name, purpose) for name in names}
    before = sketch.loads()
    goal = goal_table(before, before, sketch.usable, sketch.weights)
    found: list[TargetView] = []
    rows_of: dict[str, tuple[GoalRow, ...]] = {}
    for name in names:
        if (refusal := refusals[name]) is not None:
            found.append(TargetView(name, len(movers_to[name]), (), None, None, None, refusal))
            continue
        sketch.move(unit, name)  # from the node before: only where they are counts, not how they came there
        rows = rows_of[name] = goal_table(before, sketch.loads(), sketch.usable, sketch.weights)
        terms = tuple((row.name, row.weight * (row.before - row.after)) for row in rows)
        gain = math.fsum(value for what, value in terms if what != OVERLOAD)
        containers = sum(sketch.guest_of[vmid].type is GuestType.LXC for vmid in movers_to[name])
        cost = 0.0 if is_new else weigh.cost(sketch.copied_bytes(movers_to[name]), containers)
        found.append(TargetView(name, len(movers_to[name]), terms, gain, cost, math.fsum(value for _, value in terms) - cost, None))
    best = best_of(found)
    return tuple(found), goal if best is None else rows_of[best.node]


def _why_not(sketch: Placement, unit: tuple[int, ...], movers: tuple[int, ...], name: str, purpose: Purpose) -> Refusal | None:
    """Why the guests cannot come together on the node; of a group that is split, those move who are not there."""
    if not movers or len({sketch.at[vmid] for vmid in unit}) == 1:
        return sketch.why_not_target(unit, name, purpose)
    pinned = next((vmid for vmid in unit if name not in sketch.rules.pins.get(vmid, (name,))), None)
    if pinned is not None:
        return Refusal(pinned, RefusalReason.PINNED, f"guest {pinned}")
    for vmid in movers:
        if (stays := sketch.why_unit_stays((vmid,), purpose)) is not None:
            return Refusal(vmid, stays.reason, f"guest {vmid} stays where it is{f', {stays.detail}' if stays.detail else ''}")
    return sketch.why_not_target(movers, name, purpose)


def _broken_rules(sketch: Placement, vmid: int) -> tuple[str, ...]:
    """The rules of the guest that are not kept as it stands, in words."""
    if not sketch.guest_of[vmid].is_running:
        return ()
    rules, here = sketch.rules, sketch.at[vmid]
    found = []
    if vmid in rules.pins and here not in rules.pins[vmid]:
        found.append(f"it is pinned to {', '.join(sorted(rules.pins[vmid]))}")
    elsewhere = sorted(other for other in rules.unit(vmid) if sketch.at.get(other) != here)
    found += [f"guest {other}, with which it must be, is on {sketch.at[other]}" for other in elsewhere[:1]]
    near = sorted(other for other in rules.apart.get(vmid, ()) if sketch.at.get(other) == here)
    found += [f"guest {other}, from which it must be apart, is on its node" for other in near[:1]]
    return tuple(found)


def why_no_target(snapshot: Snapshot, settings: Settings) -> dict[str, Refusal | None]:
    """For each node, by name, why it takes no guest at all now; None for a node that may."""
    blank = replace(snapshot, guests=(), tasks=())
    probe = Guest(0, GuestType.QEMU, "", "", "running", 0.0, 0, 0.0, 0)
    sketch = Placement(replace(blank, guests=(probe,)), settings, Question())
    found: dict[str, Refusal | None] = {}
    for name in sorted(sketch.node_of):
        refusal = sketch.why_not_target((probe.vmid,), name, Purpose.DRAIN)
        found[name] = refusal if name not in sketch.usable else None
    return found

# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a guest is where it is: what keeps it there, and every node as a target with what the move would gain or why it is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.core.cluster import Guest, GuestType, Snapshot
from agent.core.conditions import Purpose
from agent.core.goal import Goal, move_cost
from agent.core.load import GuestLoad
from agent.core.placement import Placement
from agent.core.plan_types import Refusal
from agent.core.question import Question
from agent.core.settings import Settings


@dataclass(frozen=True, slots=True)
class TargetView:
    """A node as a target.

    Units:   `gain` is what the move takes off the imbalance, `net` what it takes off the goal, overload included, less
             its cost: only above zero is it made for load. Both are None where the node is refused.
    """

    node: str
    gain: float | None
    net: float | None
    refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What there is to say about a guest.

    Shape:   `unit` are the guests that would move with it, itself included; `load` is theirs together. `drains` when its
             node is to be emptied: then any allowed target is good enough. `stays` is what keeps the unit whatever the target,
             `cannot_be_source` why its node is no source of load balancing. `rules` are what its
             rules are called, `pins` and `apart` are sorted.
    """

    guest: Guest
    unit: tuple[int, ...]
    load: GuestLoad
    drains: bool
    stays: Refusal | None
    rules: tuple[str, ...]
    pins: tuple[str, ...]
    together: tuple[int, ...]
    apart: tuple[int, ...]
    contradicted: bool
    targets: tuple[TargetView, ...]

    @property
    def best(self) -> TargetView | None:
        """The target with the highest net gain, None when all are refused; ties go to the node's name."""
        allowed = [target for target in self.targets if target.net is not None]
        return min(allowed, key=lambda target: (-(target.net or 0.0), target.node), default=None)


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
    purpose = Purpose.DRAIN if guest.node in sketch.draining else Purpose.LOAD
    unit = sketch.unit_here(vmid)
    return Explanation(
        guest=guest,
        unit=unit,
        load=sketch.load_of_unit(unit),
        drains=purpose is Purpose.DRAIN,
        stays=sketch.why_unit_stays(unit, purpose),
        rules=sketch.rules.named.get(vmid, ()),
        pins=tuple(sorted(sketch.rules.pins.get(vmid, ()))),
        together=tuple(other for other in sketch.rules.unit(vmid) if other != vmid),
        apart=tuple(sorted(sketch.rules.apart.get(vmid, ()))),
        contradicted=vmid in sketch.rules.contradicted,
        targets=_targets(sketch, unit, purpose),
    )


def _targets(sketch: Placement, unit: tuple[int, ...], purpose: Purpose) -> tuple[TargetView, ...]:
    """Every node as a target, each as if the guests went there in the sketch and nobody else moved."""
    source = sketch.at[unit[0]]
    before = Goal(sketch)
    containers = sum(sketch.guest_of[member].type is GuestType.LXC for member in unit)
    cost = move_cost(sketch.load_of_unit(unit).memory_bytes, containers, before.total_memory)
    found = []
    for name in sorted(sketch.node_of):
        refusal = sketch.why_not_target(unit, name, purpose)
        if refusal is not None:
            found.append(TargetView(name, None, None, refusal))
            continue
        sketch.move(unit, name)
        after = Goal(sketch)
        found.append(TargetView(name, before.imbalance - after.imbalance, before.value - after.value - cost, None))
        if source in sketch.states:
            sketch.move(unit, source)
        else:
            sketch = sketch.restarted()
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

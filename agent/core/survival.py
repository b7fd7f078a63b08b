# SPDX-License-Identifier: GPL-3.0-or-later
"""N+1: for each node, whether the others have a place for all its running guests if it were lost this moment.

The guests would be started again elsewhere, by the HA manager or by a person, so what only keeps a running guest from
migrating (a lock, a cooldown, a policy for containers, `plb_ignore`) does not count. What counts: room in memory with the
reserve and in cores, with the loads of now; pins; who must be together or apart; nodes that may take nobody. Migrations
under way count as over. Storages, networks and devices are not looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from agent.core.cluster import GIB
from agent.core.json_types import Json, JsonObject
from agent.core.node_load import NodeLoad
from agent.core.placement import Placement
from agent.core.plan_types import Refusal
from agent.core.reasons import RefusalReason

MOST_NAMED = 10  # guests without a place, of one node, in a document


@dataclass(frozen=True, slots=True)
class Loss:
    """What the loss of one node would mean.

    Shape:   `guests` is how many run there; `without_place` names those of them for which no place was found, by VMID.
    """

    node: str
    guests: int
    without_place: tuple[Refusal, ...]

    @property
    def survives(self) -> bool:
        """True when every guest of the node has a place elsewhere."""
        return not self.without_place


@dataclass(frozen=True, slots=True)
class Survival:
    """Every online node that runs guests, by name, as if it alone were lost."""

    losses: tuple[Loss, ...]
    evaluations: int = 0

    @property
    def survives(self) -> bool:
        """True when any one of the nodes can be lost."""
        return all(loss.survives for loss in self.losses)


def survival(sketch: Placement) -> Survival:
    """Return what the loss of each node would mean, for the sketch as it stands. Changes nothing in it.

    Places the biggest first, each where the least room is: by the larger of its two shares, by memory, by cores, and once more
    with those first that may go to few nodes, until one of these leaves nobody over. That every guest has a place is certain;
    that none was found is no proof that there is none: all ways to pack are too many to try.

    Raises:  nothing; a node whose guests all have nowhere to go has them all without a place.
    """
    here: dict[str, list[int]] = defaultdict(list)
    for vmid, name in sorted(sketch.at.items()):
        guest = sketch.guest_of[vmid]
        if guest.is_running and not guest.template and name in sketch.node_of and sketch.node_of[name].online:
            here[name].append(vmid)
    loads = sketch.loads()
    losses, evaluations = [], 0
    for name, vmids in sorted(here.items()):
        search = _Search(sketch, loads, name, vmids)
        losses.append(Loss(name, len(vmids), search.without_place()))
        evaluations += search.evaluations
    return Survival(tuple(losses), evaluations)


def survival_document(found: Survival) -> JsonObject:
    """The answer as JSON: of each node's guests without a place all are counted and the first are named."""
    nodes: JsonObject = {}
    for loss in found.losses:
        named: list[Json] = [
            {"vmid": refusal.vmid, "reason": refusal.reason.value, "detail": refusal.detail} for refusal in loss.without_place[:MOST_NAMED]
        ]
        nodes[loss.node] = {
            "survives": loss.survives,
            "guests": loss.guests,
            "without_place_count": len(loss.without_place),
            "without_place": named,
        }
    return {"survives": found.survives, "nodes": nodes}


@dataclass(frozen=True, slots=True)
class _Item:
    """Guests that must go to one node together, and the nodes that no rule closes to them; `why` when there is none."""

    vmids: tuple[int, ...]
    cpu_cores: float
    memory_bytes: float
    targets: tuple[str, ...]
    enemies: frozenset[int]
    why: Refusal | None = None


class _Search:
    """The search for places for the guests of one lost node. The sketch is read; what has been placed stands beside it."""

    def __init__(self, sketch: Placement, loads: Mapping[str, NodeLoad], lost: str, vmids: Iterable[int]) -> None:
        self.evaluations = 0
        self._sketch = sketch
        self._loads = {name: loads[name] for name in sketch.usable if name != lost}
        self._items = [self._item(unit) for unit in dict.fromkeys(sketch.unit_here(vmid) for vmid in vmids)]
        self._cores = max((load.cpu_cores for load in self._loads.values()), default=1.0)
        self._memory = max((load.memory_bytes for load in self._loads.values()), default=1.0)

    def _item(self, unit: tuple[int, ...]) -> _Item:
        sketch, rules = self._sketch, self._sketch.rules
        unit = tuple(vmid for vmid in unit if sketch.guest_of[vmid].is_running)
        load = sketch.load_of_unit(unit)
        enemies = frozenset[int]().union(*(rules.apart.get(vmid, ()) for vmid in unit))
        names = tuple(self._loads)
        item = _Item(unit, load.cpu_cores, load.memory_bytes, names, enemies)
        if not names:
            return replace(item, why=Refusal(unit[0], RefusalReason.NO_TARGET, "no other node may take guests"))
        if not enemies.isdisjoint(unit):
            return replace(item, targets=(), why=Refusal(unit[0], RefusalReason.CONFLICT, "together and apart at once"))
        pins = [rules.pins[vmid] for vmid in unit if vmid in rules.pins]
        partners = {sketch.at[vmid]: vmid for vmid in rules.unit(unit[0]) if vmid not in unit}
        there = {sketch.at[vmid]: vmid for vmid in sorted(enemies, reverse=True) if vmid in sketch.at}
        if not pins and not partners and not there:
            return item
        refusals: list[Refusal] = []
        allowed = []
        for name in names:
            if any(name not in nodes for nodes in pins):
                continue
            if name in there:
                refusals.append(Refusal(unit[0], RefusalReason.ANTI_AFFINITY, f"guest {there[name]} is on {name}"))
            elif partners and name not in partners:  # of a group that is split already, to any part of it
                where, vmid = min(partners.items())
                refusals.append(Refusal(unit[0], RefusalReason.AFFINITY, f"guest {vmid} is on {where}"))
            else:
                allowed.append(name)
        pinned = Refusal(unit[0], RefusalReason.PINNED, "to " + ", ".join(sorted(frozenset[str]().union(*pins))))
        return replace(item, targets=tuple(allowed), why=None if allowed else (refusals or [pinned])[0])

    def without_place(self) -> tuple[Refusal, ...]:
        """The guests over which the best attempt leaves, by VMID."""
        stuck = [refusal for item in self._items if item.why is not None for refusal in _each(item, item.why)]
        free = [item for item in self._items if item.why is None]
        best: list[Refusal] | None = None
        for size, choosy_first in ((self._share, False), (_memory, False), (_cores, False), (self._share, True)):
            left = self._attempt(sorted(free, key=self._order(size, choosy_first)), size)
            if best is None or len(left) < len(best):
                best = left
            if not best:
                break
        return tuple(sorted([*stuck, *(best or ())], key=lambda refusal: refusal.vmid))

    def _share(self, thing: _Item | _Room) -> float:
        """The larger of the two shares of the largest node."""
        return max(thing.memory_bytes / self._memory, thing.cpu_cores / self._cores)

    def _order(self, size: _Size, choosy_first: bool) -> Callable[[_Item], tuple[int, bool, float, tuple[int, ...]]]:
        """The biggest first; of the choosy ones, where that is asked for, those with the fewest targets before."""

        def order(item: _Item) -> tuple[int, bool, float, tuple[int, ...]]:
            return (len(item.targets) if choosy_first else 0, choosy_first and not item.enemies, -size(item), item.vmids)

        return order

    def _attempt(self, items: Iterable[_Item], size: _Size) -> list[Refusal]:
        """Place the items in this order, each where the least is left; returns who was left over."""
        rooms = {
            name: _Room(load.cpu_cores - load.cpu_used_cores, load.memory_limit_bytes - load.memory_used_bytes)
            for name, load in self._loads.items()
        }
        left: list[Refusal] = []
        for item in items:
            found: tuple[float, str] | None = None
            for name in item.targets:
                self.evaluations += 1
                room = rooms[name]
                if room.memory_bytes < item.memory_bytes or room.cpu_cores < item.cpu_cores:
                    continue
                if item.enemies and not item.enemies.isdisjoint(room.arrived):
                    continue
                rank = (size(room), name)
                if found is None or rank < found:
                    found = rank
            if found is None:
                left += _each(item, self._why_nowhere(item, rooms))
                continue
            room = rooms[found[1]]
            room.cpu_cores -= item.cpu_cores
            room.memory_bytes -= item.memory_bytes
            room.arrived.update(item.vmids)
        return left

    def _why_nowhere(self, item: _Item, rooms: Mapping[str, _Room]) -> Refusal:
        """The reason that a person would have to do something about first: memory, then cores, then who is there."""
        vmid = item.vmids[0]
        memory = max(rooms[name].memory_bytes for name in item.targets)
        if memory < item.memory_bytes:
            return Refusal(vmid, RefusalReason.NO_MEMORY, f"{item.memory_bytes / GIB:.1f} GiB, at most {max(0.0, memory) / GIB:.1f} left")
        if all(rooms[name].cpu_cores < item.cpu_cores for name in item.targets if rooms[name].memory_bytes >= item.memory_bytes):
            return Refusal(vmid, RefusalReason.NO_CPU, f"{item.cpu_cores:.1f} cores")
        return Refusal(vmid, RefusalReason.ANTI_AFFINITY, "the guests it must be kept apart from take the places")


class _Room:
    """What is left on a node, and who has been placed there. Mutable: it lives as long as one attempt."""

    __slots__ = ("arrived", "cpu_cores", "memory_bytes")

    def __init__(self, cpu_cores: float, memory_bytes: float) -> None:
        self.cpu_cores = cpu_cores
        self.memory_bytes = memory_bytes
        self.arrived: set[int] = set()


_Size = Callable[[_Item | _Room], float]  # how big something is: what must be placed, or the room that is left


def _memory(thing: _Item | _Room) -> float:
    return thing.memory_bytes


def _cores(thing: _Item | _Room) -> float:
    return thing.cpu_cores


def _each(item: _Item, why: Refusal) -> list[Refusal]:
    return [replace(why, vmid=vmid) for vmid in item.vmids]

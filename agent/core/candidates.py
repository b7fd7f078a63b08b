# SPDX-License-Identifier: GPL-3.0-or-later
"""The units that may move for load, node by node: what each takes along and costs, where it may go, and the most any could gain."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from agent.core.conditions import Purpose
from agent.core.draft import Draft
from agent.core.placement import Burden
from agent.core.reasons import LOAD_REASONS, MoveReason
from agent.core.steps import Step

MOVING_ON = 0.25  # of the least gain: what a guest that moves anyway must bring by going to yet another node; it copies no more for it

NOTHING_GAINED = 1e-9
TRIED_FIRST = 8  # the hottest and the coolest nodes hold a good step nearly always


class Row(NamedTuple):
    """A unit where it is in the sketch. `cost` of moving it from there; `refund` when it goes back to `origin` instead."""

    counted_cpu: float
    counted_memory: float
    pressure: float
    cost: float
    vmid: int
    unit: tuple[int, ...]
    burden: Burden
    origin: int | None
    refund: float

    def cost_to(self, node: int) -> float:
        """What going there costs."""
        return -self.refund if node == self.origin else self.cost


class _Seen(NamedTuple):
    """No step, or exchange, between two nodes took more than `most` off the goal when they were at these versions and this uneven."""

    most: float
    source_version: int
    target_version: int
    when: int


class Candidates:
    """Mutable as the draft is: every step goes through `take`, and `forget` follows what was done to the draft otherwise.

    Shape:   nodes are known by their place in the goal's `names`. `may_move_on`: whoever has moved in this plan may move again. `as_new`:
             at the price of any other, as if the plan had been carried out. No step costs less than `cheapest`.
    """

    def __init__(self, draft: Draft, sources: Sequence[str], reason: MoveReason, *, may_move_on: bool, as_new: bool = False) -> None:
        self._draft, self._sketch, self._goal = draft, draft.sketch, draft.goal
        self._as_new = as_new
        self._reason, self._may_move_on = reason, may_move_on
        self._source_names = frozenset(sources)
        self.sources = sorted(self._goal.index[name] for name in sources)
        self._is_source = [name in self._source_names for name in self._goal.names]
        self._rows: dict[int, dict[int, Row]] = {}
        self._lines: dict[int, list[tuple[float, float, float, float, Row]]] = {}
        self._edges: dict[int, tuple[list[tuple[float, float]], float, float, float]] = {}
        self._rooms: dict[int, Burden] = {}
        self._may: dict[tuple[tuple[int, ...], int], bool] = {}
        self._free: dict[tuple[int, ...], bool] = {}
        self._seen: dict[bool, list[list[_Seen | None]]] = {}  # of single steps and of exchanges, by source and target
        self._deviations: list[tuple[float, ...]] = []  # how uneven the cluster was, by `when`
        self._version = [0] * len(self._goal.names)
        self._forget_pairs()
        self.cheapest = MOVING_ON * self._goal.cost(0.0, 0)

    # units

    def rows_at(self, node: int) -> dict[int, Row]:
        """The units that may leave the node for load, by their first VMID; none where load may not be taken from."""
        rows = self._rows.get(node)
        if rows is None:
            rows = self._rows[node] = {}
            name, sketch = self._goal.names[node], self._sketch
            if self._is_source[node]:
                for vmid in sorted(sketch.states[name].present):
                    if sketch.at[vmid] == name and (unit := sketch.unit_here(vmid))[0] == vmid and self._is_free(unit):
                        rows[vmid] = self._row(unit)
        return rows

    def line(self, node: int) -> list[tuple[float, float, float, float, Row]]:
        """The same, each with its first four fields in front, for loops that look at all of them."""
        line = self._lines.get(node)
        if line is None:
            line = self._lines[node] = [(row[0], row[1], row[2], row[3], row) for row in self.rows_at(node).values()]
        return line

    def line_to(self, node: int, target: int) -> list[tuple[float, float, float, float, Row]]:
        """The same, with the cost of going to that target, which is a refund for those who came from there."""
        return [entry if entry[4][7] != target else (*entry[:3], entry[4].cost_to(target), entry[4]) for entry in self.line(node)]

    def row_of(self, vmid: int) -> Row | None:
        """The unit of which this is the first guest, None when it may not leave its node."""
        node = self._goal.index.get(self._sketch.at[vmid])
        return None if node is None else self.rows_at(node).get(vmid)

    def _is_free(self, unit: tuple[int, ...]) -> bool:
        if self._is_settled(unit):
            return False
        free = self._free.get(unit)
        if free is None:
            free = self._free[unit] = self._sketch.why_unit_stays(unit, Purpose.LOAD) is None
        return free

    def _is_settled(self, unit: tuple[int, ...]) -> bool:
        """Whether the steps that brought the unit where it is stand, whatever the load."""
        for vmid in unit:
            step = self._draft.step_of(vmid)
            if step is None:
                continue
            if step.reason is MoveReason.RETURN_HOME or not self._may_move_on:
                return True
            # moved on, all would move as one, for load: then all must be free to. Else a later plan may find them a better node
            # together, when the cooldown of those who have moved now is over; the repair itself waits for no other move
            if set(step.vmids) != set(unit):
                homes = (self._sketch.guest_of[other].node for other in unit)
                return step.reason is MoveReason.MAINTENANCE or any(home not in self._source_names for home in homes)
        return False

    def _row(self, unit: tuple[int, ...]) -> Row:
        burden, cost = self._sketch.burden_of_unit(unit), self._draft.cost_of(unit)
        step = None if self._as_new else self._draft.step_of(unit[0])
        origin, refund = None, 0.0
        if step is not None:
            origin = self.origin(step, unit)
            cost, refund = self.cheapest, cost
        return Row(burden[2], burden[3], burden[4], cost, unit[0], unit, burden, origin, refund)

    def origin(self, step: Step, unit: tuple[int, ...]) -> int | None:
        """The node to which a unit that moved for load can be taken back, None when it cannot."""
        homes = {self._sketch.guest_of[vmid].node for vmid in unit}
        if step.reason not in LOAD_REASONS or len(homes) != 1:
            return None
        return self._goal.index.get(homes.pop())

    # nodes

    def room(self, node: int) -> Burden:
        """What the node may still take for load."""
        room = self._rooms.get(node)
        if room is None:
            room = self._rooms[node] = self._sketch.room(self._goal.names[node], Purpose.LOAD)
        return room

    def room_now(self, node: int) -> Burden:
        """The same, for a sketch that is being tried: nothing is remembered of it."""
        return self._sketch.room(self._goal.names[node], Purpose.LOAD)

    def is_allowed(self, unit: tuple[int, ...], node: int) -> bool:
        """Whether all but room and gain let the unit go there."""
        name, sketch = self._goal.names[node], self._sketch
        key = (unit, node)
        may = self._may.get(key)
        if may is None:
            never = (sketch.conditions.why_never(sketch.guest_of[vmid], name, Purpose.LOAD) for vmid in unit)
            may = self._may[key] = all(why is None for why in never)
        return may and sketch.why_rules_forbid(unit, name) is None

    def forbid(self, unit: tuple[int, ...], name: str) -> None:
        """Whatever else lets the unit go to the node: it does not."""
        self._may[unit, self._goal.index[name]] = False

    # what any unit could gain

    def pairs(self, sources: Collection[int], targets: Collection[int], *, exchanged: bool = False) -> list[tuple[float, int, int]]:
        """Pairs of nodes between which a unit, or an exchange, may gain, with more than it can, negated: the best hope first."""
        goal, prices, version = self._goal, self._goal.prices, self._version
        least, is_wide = self.cheapest, exchanged or len(targets) > TRIED_FIRST
        lowest_cpu, lowest_memory, lowest_pressure = (min((prices[node][i] for node in targets), default=0.0) for i in range(3))
        found = []
        now, grown = self._now(), dict[int, float]()
        for source in sources:
            cpu, memory, pressure = prices[source]
            edge, most_cpu, most_memory, most_pressure = self._edge(source, is_wide)
            if not edge and not exchanged:
                continue
            hope = most_cpu * (cpu - lowest_cpu) + most_memory * (memory - lowest_memory) + most_pressure * (pressure - lowest_pressure)
            if not exchanged and hope <= least:
                continue
            self._draft.evaluations += len(targets)
            known, of = self._seen[exchanged][source], version[source]
            for target in targets:
                if source == target:
                    continue
                seen = known[target]
                if seen is not None and seen[1] == of and seen[2] == version[target]:
                    growth = grown.get(seen[3]) or grown.setdefault(seen[3], self._growth(seen[3]))
                    if growth < math.inf:
                        if seen[0] * growth > least:
                            found.append((-seen[0] * growth, source, target))
                        continue
                cpu_there, memory_there, pressure_there = prices[target]
                by_cpu, by_memory, by_pressure = cpu - cpu_there, memory - memory_there, pressure - pressure_there
                most = most_pressure * by_pressure if by_pressure > 0 else 0.0
                if by_cpu > 0 or by_memory > 0:
                    loose = (most_cpu * by_cpu if by_cpu > 0 else 0.0) + (most_memory * by_memory if by_memory > 0 else 0.0)
                    if exchanged or loose + most > least:
                        most += max([x * by_cpu + y * by_memory for x, y in edge], default=0.0)
                if exchanged:
                    back, _, _, back_pressure = self._edge(target, is_wide)
                    most += max([-x * by_cpu - y * by_memory for x, y in back], default=0.0)
                    most += back_pressure * -by_pressure if by_pressure < 0 else 0.0
                if most > least and (most := min(most, goal.ideal(source, target))) > least:
                    found.append((-most, source, target))
                known[target] = _Seen(most, of, version[target], now)
        return sorted(found)

    def note(self, source: int, target: int, most: float, *, exchanged: bool = False) -> None:
        """Remember that nothing between these nodes gains more now, its cost taken off."""
        version, gross = self._version, most + self.cheapest if most > NOTHING_GAINED else 0.0
        self._seen[exchanged][source][target] = _Seen(gross, version[source], version[target], self._now())

    def is_stale(self) -> bool:
        """Whether anything was noted when the cluster was less even; it is forgotten, so that `pairs` shows what it may have left out."""
        now, is_stale = self._now(), False
        for table in self._seen.values():
            for known in table:
                for target, seen in enumerate(known):
                    if seen is not None and seen.when != now:
                        known[target], is_stale = None, True
        return is_stale

    def _now(self) -> int:
        deviations = tuple([measure.deviation for measure in self._goal.measures])
        if not self._deviations or self._deviations[-1] != deviations:
            self._deviations.append(deviations)
        return len(self._deviations) - 1

    def _growth(self, when: int) -> float:
        """How much more than then a load may gain by leaving: the more even the cluster is, the more."""
        grown = 1.0
        for before, after in zip(self._deviations[when], self._deviations[-1], strict=True):
            if before > grown * after:
                grown = before / after if after > 0 else math.inf
        return grown

    def _forget_pairs(self) -> None:
        count = len(self._goal.names)
        self._seen = {exchanged: [[None] * count for _ in range(count)] for exchanged in (False, True)}
        self._deviations.clear()

    def _edge(self, node: int, is_wide: bool) -> tuple[list[tuple[float, float]], float, float, float]:
        """Of the node's units: the hull of their cpu and memory, a corner of which is worth most at any prices; the largest of each.

        Where the hull would be used for few targets alone, all of them instead: it takes as long as ten targets do without.
        """
        found = self._edges.get(node)
        if found is None:
            line = self.line(node)
            edge = _hull({entry[:2] for entry in line}) if is_wide else [entry[:2] for entry in line]
            found = (
                edge,
                max([cpu for cpu, _ in edge], default=0.0),
                max([memory for _, memory in edge], default=0.0),
                max([entry[2] for entry in line], default=0.0),
            )
            if is_wide:
                self._edges[node] = found
        return found

    # changing

    def take(self, unit: tuple[int, ...], target: int, until: tuple[int, ...] = ()) -> None:
        """Make the step."""
        source = self._goal.index[self._sketch.at[unit[0]]]
        rows = self._rows.get(source)
        if rows is not None:
            rows.pop(unit[0], None)
        self._draft.take(unit, self._goal.names[target], self._reason, until)
        if target in self._rows and self._is_source[target] and self._may_move_on:
            self._rows[target][unit[0]] = self._row(unit)
        for node in (source, target):
            self._version[node] += 1
            self._lines.pop(node, None)
            self._edges.pop(node, None)
            self._rooms.pop(node, None)

    def forget(self) -> None:
        """Look at the draft anew."""
        self._forget_pairs()
        self._rows.clear()
        self._lines.clear()
        self._edges.clear()
        self._rooms.clear()


def _hull(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the convex hull, by Andrew's monotone chain."""
    found: list[tuple[float, float]] = []
    ordered = sorted(points)
    if len(ordered) < 3:
        return ordered
    for way in (ordered, ordered[::-1]):
        chain: list[tuple[float, float]] = []
        for x, y in way:
            while len(chain) > 1:
                (x1, y1), (x2, y2) = chain[-2:]
                if (x2 - x1) * (y - y1) > (y2 - y1) * (x - x1):
                    break
                chain.pop()
            chain.append((x, y))
        found += chain[:-1]
    return found

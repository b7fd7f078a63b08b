# SPDX-License-Identifier: GPL-3.0-or-later
"""The units that may move for load, node by node: what each takes along and costs, where it may go, and the most any could gain."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Collection, Sequence

from agent.core.conditions import Purpose
from agent.core.draft import Draft
from agent.core.lines import Line, Row, by_memory
from agent.core.placement import Burden
from agent.core.reasons import LOAD_REASONS, MoveReason
from agent.core.steps import Step

MOVING_ON = 0.25  # of the least gain: what a guest that moves anyway must bring by going to yet another node; it copies no more for it

NOTHING_GAINED = 1e-9
TRIED_FIRST = 8  # the hottest and the coolest nodes hold a good step nearly always


# No step, or exchange, between two nodes took more than the first off the goal when source and target were at these versions and the
# cluster as uneven as at the moment that comes last. A plain tuple: each search makes hundreds of them.
_Seen = tuple[float, int, int, int]


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
        self._ordered: dict[int, list[Row]] = {}  # the same, as lines have them
        self._lines: dict[int, Line] = {}
        self._rooms: dict[int, Burden] = {}
        self._may: dict[tuple[tuple[int, ...], int], bool] = {}
        self._seen: dict[bool, list[list[_Seen | None]]] = {}  # of single steps and of exchanges, by source and target
        self._deviations: list[tuple[float, ...]] = []  # how uneven the cluster was, moment by moment
        self._moment = 0  # when pairs were last looked at
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
                    if sketch.at[vmid] == name and (unit := sketch.unit_here(vmid))[0] == vmid and (row := self._row(unit)) is not None:
                        rows[vmid] = row
        return rows

    def line(self, node: int) -> Line:
        """The same as a line."""
        line = self._lines.get(node)
        if line is None:
            ordered = self._ordered.get(node)
            if ordered is None:
                ordered = self._ordered[node] = sorted(self.rows_at(node).values(), key=by_memory)
            line = self._lines[node] = Line(ordered)
        return line

    def rows_to(self, node: int, target: int) -> Sequence[Row]:
        """The same in the line's order, with the cost of going to that target, which is a refund for those who came from there."""
        line = self.line(node)
        if target not in line.origins:
            return line.rows
        return [row if row[4][3] != target else row._replace(cost=row.cost_to(target)) for row in line.rows]

    def cheapest_to(self, node: int, target: int) -> float:
        """The least that going to that target costs any of them."""
        line = self.line(node)
        return line.cheapest if target not in line.origins else min([row[3] for row in self.rows_to(node, target)])

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

    def _row(self, unit: tuple[int, ...]) -> Row | None:
        row = None if self._is_settled(unit) else self._draft.row_of(unit)
        step = None if self._as_new else self._draft.step_of(unit[0])
        if step is None or row is None:
            return row
        return row._replace(cost=self.cheapest, who=row.who._replace(origin=self.origin(step, unit), refund=row.cost))

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
        goal, prices, version, least = self._goal, self._goal.prices, self._version, self.cheapest
        lowest_cpu, lowest_memory, lowest_pressure = (min((prices[node][i] for node in targets), default=0.0) for i in range(3))
        found = []
        now = self._moment = self._now()
        grown = dict[int, float]()
        lines = {target: self.line(target) for target in targets} if exchanged else {}
        for source in sources:
            cpu, memory, pressure = prices[source]
            line = self.line(source)
            most_cpu, most_memory, most_pressure = line.most_cpu, line.most_memory, line.most_pressure
            if not exchanged:
                hope = most_cpu * (cpu - lowest_cpu) + most_memory * (memory - lowest_memory) + most_pressure * (pressure - lowest_pressure)
                if hope <= least:
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
                        most += line.worth(by_cpu, by_memory)
                if exchanged:
                    back = lines[target]
                    most += back.worth(-by_cpu, -by_memory)
                    most += back.most_pressure * -by_pressure if by_pressure < 0 else 0.0
                if most > least and (most := min(most, goal.ideal(source, target))) > least:
                    found.append((-most, source, target))
                known[target] = most, of, version[target], now
        return sorted(found)

    def note(self, source: int, target: int, most: float, *, exchanged: bool = False) -> None:
        """Remember that nothing between these nodes, of those that `pairs` gave last, gains more now, its cost taken off."""
        version, gross = self._version, most + self.cheapest if most > NOTHING_GAINED else 0.0
        self._seen[exchanged][source][target] = gross, version[source], version[target], self._moment

    def is_stale(self) -> bool:
        """Whether anything was noted when the cluster was less even; it is forgotten, so that `pairs` shows what it may have left out."""
        now, is_stale = self._now(), False
        for table in self._seen.values():
            for known in table:
                for target, seen in enumerate(known):
                    if seen is not None and seen[3] != now:
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

    # changing

    def take(self, unit: tuple[int, ...], target: int, until: tuple[int, ...] = ()) -> None:
        """Make the step."""
        source = self._goal.index[self._sketch.at[unit[0]]]
        left = self._rows[source].pop(unit[0], None) if source in self._rows else None
        if left is not None and source in self._ordered:
            self._ordered[source].remove(left)
        self._draft.take(unit, self._goal.names[target], self._reason, until)
        if target in self._rows and self._is_source[target] and self._may_move_on:
            come = self._row(unit)
            if come is not None:
                self._rows[target][unit[0]] = come
                if target in self._ordered:
                    insort(self._ordered[target], come, key=by_memory)
        for node in (source, target):
            self._version[node] += 1
            self._lines.pop(node, None)
            self._rooms.pop(node, None)

    def forget(self) -> None:
        """Look at the draft anew."""
        self._forget_pairs()
        self._rows.clear()
        self._ordered.clear()
        self._lines.clear()
        self._rooms.clear()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Evening out load: down the goal, the best step first, until no step and no pair of steps brings more than it costs.

What is lowered is the goal plus the cost of all that moves, so a step that a later one made superfluous is taken back.
A step is one unit (a guest, or guests that must stay together) to one node. Where no step gains any more:
  exchange   two units change places, as where two big guests sit wrong and no gap is wide enough for a move;
  make room  a unit leaves a node that is too full for the one that should go there;
  fewer      one step takes the place of two.
Steps are looked for between the hottest and the coolest nodes first, and among all when those have none; bounds on what
a pair of nodes, and a unit between them, can gain leave few to be weighed (`agent.core.goal`). Ties go to the smallest
VMID, then to the node's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from agent.core.conditions import Purpose
from agent.core.draft import Draft
from agent.core.goal import Transfer
from agent.core.placement import Burden
from agent.core.reasons import LOAD_REASONS, MoveReason
from agent.core.steps import Step

TRIED_FIRST = 6  # the hottest and the coolest nodes hold a good step nearly always
PAIRS_EXCHANGED = 32  # pairs of nodes looked at for an exchange, the most promising first
TRIALS = 200  # exchanges of one search that are tried for whether they can be carried out
ROOMS_TRIED = 12  # units that would go to a full node, and for each the units that could make room
MOST_SWEPT = 20_000  # pairs of steps times guests times nodes, for which one step is looked for in the place of two
MOST_LOOKAHEAD = 60_000  # evaluations that a plan may spend on pairs of steps
NOTHING_GAINED = 1e-9


class _Row(NamedTuple):
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


class Found(NamedTuple):
    """Steps that gain together, in an order in which they can be carried out."""

    gain: float
    steps: tuple[tuple[tuple[int, ...], int], ...]


class Descent:
    """One run of evening out, from the sources, for one reason."""

    def __init__(self, draft: Draft, sources: Sequence[str], reason: MoveReason, *, may_move_on: bool) -> None:
        self._draft, self._sketch, self._goal = draft, draft.sketch, draft.goal
        self._reason, self._may_move_on = reason, may_move_on
        self._source_names = frozenset(sources)
        self._sources = sorted(self._goal.index[name] for name in sources)
        self._rows: dict[int, dict[int, _Row]] = {}
        self._largest: dict[int, tuple[float, float, float]] = {}
        self._may: dict[tuple[int, int], bool] = {}
        self._spent = 0

    def run(self) -> None:
        """Take all the steps that gain."""
        while self.step():
            pass

    def step(self) -> bool:
        """Take the best step, or pair of steps; False when none gains."""
        found = self._single() or self._taken_back() or self._exchange() or self._room_made()
        if found is None:
            return self._fewer()
        for unit, target in found.steps:
            self._take(unit, target)
        return True

    # units

    def _rows_at(self, node: int) -> dict[int, _Row]:
        """The units that may leave the node for load, by their first VMID; none where load may not be taken from."""
        rows = self._rows.get(node)
        if rows is None:
            rows = self._rows[node] = {}
            name, sketch = self._goal.names[node], self._sketch
            if node in self._sources:
                for vmid in sorted(sketch.states[name].present):
                    if sketch.at[vmid] == name and (unit := sketch.unit_here(vmid))[0] == vmid and self._is_free(unit):
                        rows[vmid] = self._row(unit)
        return rows

    def _is_free(self, unit: tuple[int, ...]) -> bool:
        return not self._is_settled(unit) and self._sketch.why_unit_stays(unit, Purpose.LOAD) is None

    def _is_settled(self, unit: tuple[int, ...]) -> bool:
        """Whether the steps that brought the unit where it is stand, whatever the load."""
        for vmid in unit:
            step = self._draft.step_of(vmid)
            if step is None:
                continue
            if step.reason is MoveReason.RETURN_HOME or not self._may_move_on:
                return True
            if set(step.vmids) != set(unit):  # moved on, all would move as one, for load: then all must be free to
                homes = (self._sketch.guest_of[other].node for other in unit)
                return step.reason is MoveReason.MAINTENANCE or any(home not in self._source_names for home in homes)
        return False

    def _row(self, unit: tuple[int, ...]) -> _Row:
        burden, cost, again = self._sketch.burden_of_unit(unit), self._draft.cost_of(unit), self._goal.cost(0.0, 0)
        step = self._draft.step_of(unit[0])
        origin, refund = None, 0.0
        if step is not None:
            origin = self._origin(step, unit)
            cost, refund = again, cost
        return _Row(burden[2], burden[3], burden[4], cost, unit[0], unit, burden, origin, refund)

    def _origin(self, step: Step, unit: tuple[int, ...]) -> int | None:
        """The node to which a unit that moved for load can be taken back, None when it cannot."""
        homes = {self._sketch.guest_of[vmid].node for vmid in unit}
        if step.reason not in LOAD_REASONS or len(homes) != 1:
            return None
        return self._goal.index.get(homes.pop())

    def _take(self, unit: tuple[int, ...], target: int) -> None:
        source = self._goal.index[self._sketch.at[unit[0]]]
        self._rows_at(source).pop(unit[0], None)
        self._largest.pop(source, None)
        self._draft.take(unit, self._goal.names[target], self._reason)
        if target in self._rows and target in self._sources and self._may_move_on:
            self._rows[target][unit[0]] = self._row(unit)
            self._largest.pop(target, None)

    def _is_allowed(self, unit: tuple[int, ...], target: int) -> bool:
        """Whether all but room and gain let the unit go there."""
        name, sketch = self._goal.names[target], self._sketch
        key = (unit[0], target)
        may = self._may.get(key)
        if may is None:
            never = (sketch.conditions.why_never(sketch.guest_of[vmid], name, Purpose.LOAD) for vmid in unit)
            may = self._may[key] = all(why is None for why in never)
        return may and sketch.why_rules_forbid(unit, name) is None

    # one step

    def _single(self) -> Found | None:
        rising = sorted(range(len(self._goal.names)), key=lambda i: (self._goal.heat[i], i))
        allowed = set(self._sources)
        hottest = [node for node in rising[-TRIED_FIRST:] if node in allowed]
        found = self._best_step(hottest, rising[:TRIED_FIRST])
        if found is None and (len(rising) > TRIED_FIRST or len(hottest) < len(allowed)):
            found = self._best_step(self._sources, rising)
        return found

    def _pairs(self, sources: Sequence[int], targets: Sequence[int], *, exchanged: bool = False) -> list[tuple[float, int, int]]:
        """Pairs of nodes between which a unit, or an exchange, may gain, with more than it can, negated: the best hope first."""
        goal, least = self._goal, self._goal.cost(0.0, 0)
        pairs = []
        for source in sources:
            for target in targets:
                if source == target:
                    continue
                most = self._promise(source, target) + (self._promise(target, source) if exchanged else 0.0)
                if most > least and (most := min(most, goal.ideal(source, target))) > least:
                    pairs.append((-most, source, target))
        return sorted(pairs)

    def _promise(self, source: int, target: int) -> float:
        """More than any unit can gain between the nodes: the largest of each measure, at the gradient's price."""
        (cpu, memory, pressure), (cpu_there, memory_there, pressure_there) = self._goal.prices[source], self._goal.prices[target]
        most_cpu, most_memory, most_pressure = self._largest_at(source)
        most = most_cpu * (cpu - cpu_there) if cpu > cpu_there else 0.0
        if memory > memory_there:
            most += most_memory * (memory - memory_there)
        if pressure > pressure_there:
            most += most_pressure * (pressure - pressure_there)
        return most

    def _largest_at(self, node: int) -> tuple[float, float, float]:
        """The largest of each measure among the node's units."""
        found = self._largest.get(node)
        if found is None:
            rows = self._rows_at(node).values()
            found = self._largest[node] = (
                max((row.counted_cpu for row in rows), default=0.0),
                max((row.counted_memory for row in rows), default=0.0),
                max((row.pressure for row in rows), default=0.0),
            )
        return found

    def _best_step(self, sources: Sequence[int], targets: Sequence[int]) -> Found | None:
        goal = self._goal
        best, best_key = NOTHING_GAINED, (0, 0)
        least = goal.cost(0.0, 0)
        evaluations = 0
        for ideal, source, target in self._pairs(sources, targets):
            if -ideal - least < best:
                break
            room, transfer = self._room(target), Transfer(goal, source, target)
            (a1, b1, g1, e1), (a2, b2, g2, e2), (_, _, g3, e3) = transfer.bounds
            for row in self._rows_at(source).values():
                cpu, memory, pressure, cost = row[:4]
                by_cpu, by_memory = cpu * (a1 + b1 * cpu), memory * (a2 + b2 * memory)
                most = (by_cpu if by_cpu > 0 else cpu * g1) + (by_memory if by_memory > 0 else memory * g2)
                if most + cpu * e1 + memory * e2 + pressure * (g3 + e3) - cost < best or not row[6].fits_into(room):
                    continue
                evaluations += 1
                gain = transfer.gain(cpu, memory, pressure) - cost
                if (gain > best or (gain == best and (row[4], target) < best_key)) and self._is_allowed(row[5], target):
                    best, best_key = gain, (row[4], target)
        self._draft.evaluations += evaluations
        if best_key == (0, 0):
            return None
        vmid, target = best_key
        return Found(best, ((self._unit_of(vmid), target),))

    def _unit_of(self, vmid: int) -> tuple[int, ...]:
        return self._sketch.unit_here(vmid)

    def _taken_back(self) -> Found | None:
        """A unit that better stays where it came from, now that others have moved."""
        for node in sorted(self._rows):
            for row in self._rows[node].values():
                if row.origin is None or row.origin == node or not row.burden.fits_into(self._room(row.origin)):
                    continue
                self._draft.evaluations += 1
                gain = self._goal.gain(row.burden, node, row.origin) + row.refund
                if gain > NOTHING_GAINED and self._is_allowed(row.unit, row.origin):
                    return Found(gain, ((row.unit, row.origin),))
        return None

    def _room(self, node: int) -> Burden:
        return self._sketch.room(self._goal.names[node], Purpose.LOAD)

    def _fewer(self) -> bool:
        """Put one step in the place of two, where that is no worse; on small clusters alone, where one step less is a large share."""
        draft = self._draft
        for_load = [step.vmids for step in draft.steps if step.reason in LOAD_REASONS]
        moved = [unit for unit in for_load if set(unit) == set(self._unit_of(unit[0]))]
        if not self._may_move_on or len(moved) ** 2 * len(self._sketch.at) * len(self._goal.names) > MOST_SWEPT:
            return False
        for one, other in combinations(sorted(moved), 2):
            before, value = draft.mark(), self._potential()
            if self._take_home(one) and self._take_home(other) and (found := self._single()) is not None:
                for unit, target in found.steps:
                    self._take(unit, target)
                if self._potential() < value - NOTHING_GAINED:
                    return True
            draft.back_to(before)
            self._rows.clear()
            self._largest.clear()
        return False

    def _take_home(self, unit: tuple[int, ...]) -> bool:
        step = self._draft.step_of(unit[0])
        origin = None if step is None else self._origin(step, unit)
        if origin is None:
            return False
        self._take(unit, origin)
        return True

    def _potential(self) -> float:
        """The goal, and what all load moves cost."""
        return self._goal.value + sum(self._draft.cost_of(step.vmids) for step in self._draft.steps if step.reason in LOAD_REASONS)

    # two steps

    def _exchange(self) -> Found | None:
        """The best two units that change places, among the most promising pairs of nodes."""
        goal = self._goal
        everywhere = range(len(goal.names))
        best: Found | None = None
        trials, spent_before = 0, self._spent
        for most, source, target in self._pairs(self._sources, everywhere, exchanged=True)[:PAIRS_EXCHANGED]:
            floor = NOTHING_GAINED if best is None else best.gain
            if -most <= floor or self._spent > MOST_LOOKAHEAD:
                break
            here, there = goal.prices[source], goal.prices[target]
            cpu, memory, pressure = here[0] - there[0], here[1] - there[1], here[2] - there[2]
            # what the gradient promises is a sum over the two units, so both lists can be cut where it falls short
            leaving = sorted(
                ((row[0] * cpu + row[1] * memory + row[2] * pressure - row[3], row) for row in self._rows_at(source).values()),
                key=lambda pair: (-pair[0], pair[1].vmid),
            )
            coming = sorted(
                ((row[0] * cpu + row[1] * memory + row[2] * pressure + row[3], row) for row in self._rows_at(target).values()),
                key=lambda pair: (pair[0], pair[1].vmid),
            )
            transfer = Transfer(goal, source, target)
            for promise, one in leaving:
                if not coming or promise - coming[0][0] <= floor:
                    break
                for price, other in coming:
                    if promise - price <= floor:
                        break
                    self._spent += 1
                    gain = transfer.gain(one[0] - other[0], one[1] - other[1], one[2] - other[2]) - one.cost - other.cost
                    if gain > floor and trials < TRIALS:
                        trials += 1
                        steps = self._carried_out(one, source, other, target)
                        if steps is not None:
                            best, floor = Found(gain, steps), gain
        self._draft.evaluations += self._spent - spent_before
        return best

    def _carried_out(self, one: _Row, source: int, other: _Row, target: int) -> tuple[tuple[tuple[int, ...], int], ...] | None:
        """The exchange as two steps, one after the other, None when neither can be the first."""
        for first, to_first, second, to_second in ((other, source, one, target), (one, target, other, source)):
            if not self._is_allowed(first.unit, to_first) or not first.burden.fits_into(self._room(to_first)):
                continue
            mark = self._sketch.mark()
            self._sketch.move(first.unit, self._goal.names[to_first])
            can = self._is_allowed(second.unit, to_second) and second.burden.fits_into(self._room(to_second))
            self._sketch.rollback(mark)
            if can:
                return (first.unit, to_first), (second.unit, to_second)
        return None

    def _room_made(self) -> Found | None:
        """A unit to a node that is too full for it, after another has left that node for a third one."""
        goal, sketch = self._goal, self._sketch
        wanted: list[tuple[float, int, int, _Row]] = []
        for most, source, target in self._pairs(self._sources, range(len(goal.names)))[:PAIRS_EXCHANGED]:
            room, transfer = self._room(target), Transfer(goal, source, target)
            for row in self._rows_at(source).values():
                if self._spent > MOST_LOOKAHEAD:
                    break
                if not row.burden.fits_into(room) and -most > row.cost:
                    self._spent += 1
                    gain = transfer.gain(row[0], row[1], row[2]) - row.cost
                    if gain > NOTHING_GAINED and self._is_allowed(row.unit, target):
                        wanted.append((-gain, row.vmid, target, row))
        best: Found | None = None
        for _, _, target, row in sorted(wanted)[:ROOMS_TRIED]:
            source = goal.index[sketch.at[row.vmid]]
            leaving = sorted(self._rows_at(target).values(), key=lambda other: (other.burden.memory_bytes, other.vmid))
            for other in [other for other in leaving if row.burden.fits_into(self._room(target).plus(other.burden))][:ROOMS_TRIED]:
                found = self._after_leaving(other, row, source, target)
                if found is not None and (best is None or found.gain > best.gain):
                    best = found
        return best

    def _after_leaving(self, other: _Row, row: _Row, source: int, target: int) -> Found | None:
        """What both steps gain, `other` going from `target` to the best third node, None when there is none."""
        goal, sketch = self._goal, self._sketch
        before = goal.value
        thirds = [
            (-goal.gain(other.burden, target, third), third)
            for third in range(len(goal.names))
            if third not in (source, target) and other.burden.fits_into(self._room(third)) and self._is_allowed(other.unit, third)
        ]
        self._spent += len(thirds)
        self._draft.evaluations += len(thirds)
        if not thirds:
            return None
        third = min(thirds)[1]
        mark = sketch.mark()
        sketch.move(other.unit, goal.names[third])
        fits = row.burden.fits_into(self._room(target)) and self._is_allowed(row.unit, target)
        if fits:
            sketch.move(row.unit, goal.names[target])
            goal.changed()
        gain = before - goal.value - row.cost - other.cost if fits else 0.0
        sketch.rollback(mark)
        goal.changed()
        return Found(gain, ((other.unit, third), (row.unit, target))) if gain > NOTHING_GAINED else None

# SPDX-License-Identifier: GPL-3.0-or-later
"""Two steps that gain only together: two units that change places, and a unit that leaves a full node so that another can go there."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from agent.core.candidates import Candidates, Row
from agent.core.conditions import Purpose
from agent.core.draft import Draft
from agent.core.goal import Transfer
from agent.core.placement import Burden

EXCHANGED = 64  # pairs of nodes looked at for an exchange, the most promising first
ROOMS_MADE = 32  # the same, for room that is made
MOST_WEIGHED = 20_000  # pairs of units that one search weighs
NEARLY_AS_GOOD = 0.5  # of the best exchange: what is taken with it, between other nodes
WORTH_TWO = 0.1  # of the least gain, that two steps must bring beyond what they cost
TRIALS = 200  # exchanges of one search that are tried for whether they can be carried out
ROOMS_TRIED = 12  # units that would go to a full node, and for each the units that could make room


class Taken(NamedTuple):
    """A unit that goes to a node; `until`: who leaves that node right afterwards, where it stands over a threshold till then."""

    unit: tuple[int, ...]
    target: int
    until: tuple[int, ...] = ()


class Found(NamedTuple):
    """Steps that gain together, in an order in which they can be carried out."""

    gain: float
    steps: tuple[Taken, ...]


class TwoSteps:
    """The search for two steps, anew at each call: it keeps nothing of what it saw before."""

    def __init__(self, draft: Draft, candidates: Candidates) -> None:
        self._draft, self._sketch, self._goal = draft, draft.sketch, draft.goal
        self._candidates = candidates
        self._left = self._trials = 0
        self._least = WORTH_TWO * self._goal.cost(0.0, 0)

    # two units change places

    def exchange(self, focus: AbstractSet[int] | None = None) -> list[Found]:
        """The best two units that change places, among the most promising pairs of nodes, and others nearly as good between other nodes.

        With a `focus` one of the two nodes is one of these.

        Each node ends under its thresholds, or no higher above one than it stands now. In between, the node that the first step
        goes to may stand above a threshold, though within its reserve and its cores, if the second step then is one that fits as
        any other does: so whoever looks in between finds it.
        """
        candidates = self._candidates
        self._left, self._trials = MOST_WEIGHED, TRIALS
        found: list[tuple[float, int, int, Found]] = []
        best = floor = self._least
        pairs = candidates.pairs(candidates.sources, range(len(self._goal.names)), exchanged=True)
        for most, source, target in [pair for pair in pairs if focus is None or not focus.isdisjoint(pair[1:])][:EXCHANGED]:
            if -most <= best or self._left <= 0:
                break
            pair = self._exchanged(source, target, floor)
            if pair is not None:
                found.append((-pair.gain, source, target, pair))
                best = max(best, pair.gain)
                floor = max(floor, NEARLY_AS_GOOD * best)
            if self._left > 0 and self._trials > 0:
                known = pair.gain if pair is not None else floor if floor > self._least else 0.0
                candidates.note(source, target, known, exchanged=True)
        self._draft.evaluations += MOST_WEIGHED - self._left
        chosen: list[Found] = []
        touched: set[int] = set()
        for _, source, target, pair in sorted(found):
            if pair.gain > floor and touched.isdisjoint((source, target)):
                chosen.append(pair)
                touched |= {source, target}
        return chosen

    def _exchanged(self, source: int, target: int, floor: float) -> Found | None:
        """The best two units of these nodes that change places, None when none gains more than `floor`.

        Only those are weighed whose difference in memory, and in cpu, may gain enough even if all else were ideal.
        """
        candidates, transfer = self._candidates, Transfer(self._goal, source, target)
        here, there = self._goal.prices[source], self._goal.prices[target]
        by_cpu, by_memory, by_pressure = here[0] - there[0], here[1] - there[1], here[2] - there[2]
        # the gradient promises a sum over the two units, and no exchange gains more: what falls short of it is not weighed
        coming = [
            (y, row[4], x, cost, x * by_cpu + y * by_memory + z * by_pressure + cost, row)
            for x, y, z, cost, row in candidates.line_to(target, source)
        ]
        if not coming:
            return None
        cheapest = min([entry[4] for entry in coming])
        least = floor + cheapest
        leaving = [
            (promise, row[4], x, y, cost, row)
            for x, y, z, cost, row in candidates.line_to(source, target)
            if (promise := x * by_cpu + y * by_memory + z * by_pressure - cost) > least
        ]
        if not leaving:
            return None
        leaving.sort(reverse=True)
        enough = leaving[0][0] - floor
        coming = [entry for entry in coming if entry[4] < enough]
        coming.sort()
        amounts = [entry[0] for entry in coming]
        needed = floor + min([entry[4] for entry in leaving]) + min([entry[3] for entry in coming])
        best_cpu, best_memory, best_pressure = transfer.ideal()
        room, room_there = candidates.room(source), candidates.room(target)
        least_memory, most_memory = transfer.window(1, needed - best_cpu - best_pressure)
        least_cpu, most_cpu = transfer.window(0, needed - best_memory - best_pressure)
        # a node ends under its threshold, or no higher above it than now
        least_memory = max(least_memory, -max(0.0, room.counted_memory_bytes))
        most_memory = min(most_memory, max(0.0, room_there.counted_memory_bytes))
        least_cpu = max(least_cpu, -max(0.0, room.counted_cpu_cores))
        most_cpu = min(most_cpu, max(0.0, room_there.counted_cpu_cores))
        best: Found | None = None
        self._draft.evaluations += len(leaving)
        for promise, _, cpu, memory, cost, one in leaving:
            if promise - cheapest <= floor or self._left <= 0:
                break
            begin, end = bisect_left(amounts, memory - most_memory), bisect_right(amounts, memory - least_memory)
            enough, low, high = promise - floor, cpu - most_cpu, cpu - least_cpu
            fit = [entry for entry in coming[begin:end] if entry[4] < enough and low <= entry[2] <= high]
            self._left -= len(fit) + max(0, end - begin) // 4
            self._draft.evaluations += max(0, end - begin)
            for memory_back, _, cpu_back, cost_back, _, other in fit:
                gain = transfer.gain(cpu - cpu_back, memory - memory_back, one[2] - other[2]) - cost - cost_back
                if gain > floor and self._trials > 0:
                    self._trials -= 1
                    steps = self._carried_out(one, source, other, target)
                    if steps is not None:
                        best, floor = Found(gain, steps), gain
        return best

    def _carried_out(self, one: Row, source: int, other: Row, target: int) -> tuple[Taken, ...] | None:
        """The exchange as two steps, one after the other, None when neither can be the first."""
        orders = ((other, source, one, target), (one, target, other, source))
        for purpose in (Purpose.LOAD, Purpose.RULE):  # under the thresholds all the way, else over one in between
            for first, to_first, second, to_second in orders:
                if self._can_follow(first, to_first, second, to_second, purpose):
                    until = () if purpose is Purpose.LOAD else second.unit
                    return Taken(first.unit, to_first, until), Taken(second.unit, to_second)
        return None

    def _can_follow(self, first: Row, to_first: int, second: Row, to_second: int, purpose: Purpose) -> bool:
        """Whether the first unit has room for that purpose, and after it the second has room for load."""
        candidates, names = self._candidates, self._goal.names
        room = candidates.room(to_first) if purpose is Purpose.LOAD else self._sketch.room(names[to_first], purpose)
        if not first.burden.fits_into(room) or not candidates.is_allowed(first.unit, to_first):
            return False
        mark = self._sketch.mark()
        self._sketch.move(first.unit, names[to_first])
        can = candidates.is_allowed(second.unit, to_second) and second.burden.fits_into(self._sketch.room(names[to_second], Purpose.LOAD))
        self._sketch.rollback(mark)
        return can

    # room is made

    def room_made(self) -> Found | None:
        """A unit to a node that is too full for it, after another has left that node for a third one."""
        candidates, goal, sketch = self._candidates, self._goal, self._sketch
        self._left = MOST_WEIGHED
        wanted: list[tuple[float, int, int, Row]] = []
        for most, source, target in candidates.pairs(candidates.sources, range(len(goal.names)))[:ROOMS_MADE]:
            room, transfer = candidates.room(target), Transfer(goal, source, target)
            for row in candidates.rows_at(source).values():
                if self._left <= 0:
                    break
                if not row.burden.fits_into(room) and -most > row.cost:
                    self._left -= 1
                    gain = transfer.gain(row[0], row[1], row[2]) - row.cost
                    if gain > self._least and candidates.is_allowed(row.unit, target):
                        wanted.append((-gain, row.vmid, target, row))
        best: Found | None = None
        for _, _, target, row in sorted(wanted)[:ROOMS_TRIED]:
            source = goal.index[sketch.at[row.vmid]]
            leaving = sorted(candidates.rows_at(target).values(), key=lambda other: (other.burden.memory_bytes, other.vmid))
            room = candidates.room(target)
            for other in [other for other in leaving if row.burden.fits_into(room.plus(other.burden))][:ROOMS_TRIED]:
                found = self._after_leaving(other, row, source, target)
                if found is not None and (best is None or found.gain > best.gain):
                    best = found
        self._draft.evaluations += MOST_WEIGHED - self._left
        return best

    def _after_leaving(self, other: Row, row: Row, source: int, target: int) -> Found | None:
        """What both steps gain, `other` going from `target` to the best third node, None when there is none."""
        goal, sketch, candidates = self._goal, self._sketch, self._candidates
        before = goal.value
        thirds = [
            (other.cost_to(third) - goal.gain(other.burden, target, third), third)
            for third in range(len(goal.names))
            if third not in (source, target) and other.burden.fits_into(candidates.room(third)) and candidates.is_allowed(other.unit, third)
        ]
        self._left -= len(thirds)
        if not thirds:
            return None
        third = min(thirds)[1]
        mark = sketch.mark()
        sketch.move(other.unit, goal.names[third])
        fits = row.burden.fits_into(self._full_room(target)) and candidates.is_allowed(row.unit, target)
        if fits:
            sketch.move(row.unit, goal.names[target])
            goal.changed()
        gain = before - goal.value - row.cost_to(target) - other.cost_to(third) if fits else 0.0
        sketch.rollback(mark)
        goal.changed()
        return Found(gain, (Taken(other.unit, third), Taken(row.unit, target))) if gain > self._least else None

    def _full_room(self, node: int) -> Burden:
        return self._sketch.room(self._goal.names[node], Purpose.LOAD)

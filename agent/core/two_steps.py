# SPDX-License-Identifier: GPL-3.0-or-later
"""Two steps that gain only together: two units that change places, and a unit that leaves a full node so that another can go there."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from agent.core.candidates import Candidates
from agent.core.conditions import Purpose
from agent.core.draft import Draft
from agent.core.goal import Transfer
from agent.core.lines import Row
from agent.core.placement import Burden

EXCHANGED = 64  # pairs of nodes looked at for an exchange, the most promising first
ROOMS_MADE = 32  # the same, for room that is made
MOST_WEIGHED = 20_000  # pairs of units that one search weighs, and a quarter of those that may change places as far as memory goes
NEARLY_AS_GOOD = 0.5  # of the best exchange: what is taken with it, between other nodes
WORTH_TWO = 0.1  # of the least gain, that two steps must bring beyond what they cost
ROUNDING = 1e-12  # of a gain: far above what sums lose, far below what one must be
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
        best_cpu, best_memory, best_pressure = transfer.ideal()
        cost_back = candidates.cheapest_to(target, source)
        if best_cpu + best_memory + best_pressure <= floor + candidates.cheapest_to(source, target) + cost_back:
            return None
        here, there = self._goal.prices[source], self._goal.prices[target]
        by_cpu, by_memory, by_pressure = here[0] - there[0], here[1] - there[1], here[2] - there[2]
        # the gradient promises a sum over the two units, and no exchange gains more: what falls short of it is not weighed
        back, line = candidates.rows_to(target, source), candidates.line(target)
        losses = [x * by_cpu + y * by_memory + z * by_pressure + cost for x, y, z, cost, _ in back]
        if not losses:
            return None
        cheapest = min(losses)
        least = floor + cheapest
        leaving = [
            (promise, row[4][0], row)
            for row in candidates.rows_to(source, target)
            if (promise := row[0] * by_cpu + row[1] * by_memory + row[2] * by_pressure - row[3]) > least
        ]
        if not leaving:
            return None
        leaving.sort(reverse=True)
        enough = leaving[0][0] - floor
        amounts: Sequence[float] = line.memory
        if max(losses) >= enough:
            coming = [(row[1], row[3]) for loss, row in zip(losses, back, strict=True) if loss < enough]
            amounts, cost_back = [memory for memory, _ in coming], min([cost for _, cost in coming])
        needed = floor + min([row[3] for _, _, row in leaving]) + cost_back
        room, room_there = candidates.room(source), candidates.room(target)
        least_memory, most_memory = transfer.window(1, needed - best_cpu - best_pressure)
        least_cpu, most_cpu = transfer.window(0, needed - best_memory - best_pressure)
        # a node ends under its threshold, or no higher above it than now
        least_memory = max(least_memory, -max(0.0, room.counted_memory_bytes))
        most_memory = min(most_memory, max(0.0, room_there.counted_memory_bytes))
        least_cpu = max(least_cpu, -max(0.0, room.counted_cpu_cores))
        most_cpu = min(most_cpu, max(0.0, room_there.counted_cpu_cores))
        if least_memory > most_memory:
            return None
        # who comes back must fit by memory, by cpu, and by what is lost by it: looked at are those who do by cpu, or by loss if fewer do
        cores, rising, cpu_of, memory_of = line.cores, line.rising, line.cpu, line.memory
        rising_loss = sorted(range(len(losses)), key=losses.__getitem__)
        lost = [losses[i] for i in rising_loss]
        (a_cpu, b_cpu, c_cpu), (a_memory, b_memory, c_memory) = transfer.chord(0), transfer.chord(1)
        spare = best_pressure + c_cpu + c_memory + ROUNDING
        best: Found | None = None
        left, looked_at = self._left, len(leaving)
        for promise, _, one in leaving:
            if promise - cheapest <= floor or left <= 0:
                break
            cpu, memory, pressure, cost, _ = one
            low_memory, high_memory = memory - most_memory, memory - least_memory
            count = bisect_right(amounts, high_memory) - bisect_left(amounts, low_memory)
            if count <= 0:
                continue
            enough, low, high = promise - floor, cpu - most_cpu, cpu - least_cpu
            first, last, cheap = bisect_left(cores, low), bisect_right(cores, high), bisect_left(lost, enough)
            near = rising[first:last] if last - first < cheap else rising_loss[:cheap]
            fit = [i for i in near if losses[i] < enough and low <= cpu_of[i] <= high and low_memory <= memory_of[i] <= high_memory]
            left -= len(fit) + count // 4  # who fits by memory counts, too, so that the search ends where next to nobody fits otherwise
            looked_at += len(near)
            for i in sorted(fit):
                other = back[i]
                x, y = cpu - cpu_of[i], memory - memory_of[i]
                saved_cpu, saved_memory = x * (a_cpu + x * b_cpu), y * (a_memory + y * b_memory)
                most = (saved_cpu if saved_cpu > 0 else 0.0) + (saved_memory if saved_memory > 0 else 0.0) + spare
                if most <= floor + cost + other[3]:
                    continue  # a bound that is sooner computed than the gain, and nearly as low
                gain = transfer.gain(cpu - other[0], memory - other[1], pressure - other[2]) - cost - other[3]
                if gain > floor and self._trials > 0:
                    self._trials -= 1
                    steps = self._carried_out(one, source, other, target)
                    if steps is not None:
                        best, floor = Found(gain, steps), gain
        self._left = left
        self._draft.evaluations += looked_at
        return best

    def _carried_out(self, one: Row, source: int, other: Row, target: int) -> tuple[Taken, ...] | None:
        """The exchange as two steps, one after the other, None when neither can be the first."""
        orders = ((other, source, one, target), (one, target, other, source))
        for purpose in (Purpose.LOAD, Purpose.RULE):  # under the thresholds all the way, else over one in between
            for first, to_first, second, to_second in orders:
                if self._can_follow(first, to_first, second, to_second, purpose):
                    until = () if purpose is Purpose.LOAD else second.who.unit
                    return Taken(first.who.unit, to_first, until), Taken(second.who.unit, to_second)
        return None

    def _can_follow(self, first: Row, to_first: int, second: Row, to_second: int, purpose: Purpose) -> bool:
        """Whether the first unit has room for that purpose, and after it the second has room for load."""
        candidates, names = self._candidates, self._goal.names
        room = candidates.room(to_first) if purpose is Purpose.LOAD else self._sketch.room(names[to_first], purpose)
        if not first.who.burden.fits_into(room) or not candidates.is_allowed(first.who.unit, to_first):
            return False
        mark = self._sketch.mark()
        self._sketch.move(first.who.unit, names[to_first])
        after = self._sketch.room(names[to_second], Purpose.LOAD)
        can = candidates.is_allowed(second.who.unit, to_second) and second.who.burden.fits_into(after)
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
                if not row.who.burden.fits_into(room) and -most > row.cost:
                    self._left -= 1
                    gain = transfer.gain(row[0], row[1], row[2]) - row.cost
                    if gain > self._least and candidates.is_allowed(row.who.unit, target):
                        wanted.append((-gain, row.who.vmid, target, row))
        best: Found | None = None
        for _, _, target, row in sorted(wanted)[:ROOMS_TRIED]:
            source = goal.index[sketch.at[row.who.vmid]]
            leaving = sorted(candidates.rows_at(target).values(), key=lambda other: (other.who.burden.memory_bytes, other.who.vmid))
            room = candidates.room(target)
            for other in [other for other in leaving if row.who.burden.fits_into(room.plus(other.who.burden))][:ROOMS_TRIED]:
                found = self._after_leaving(other, row, source, target)
                if found is not None and (best is None or found.gain > best.gain):
                    best = found
        self._draft.evaluations += MOST_WEIGHED - self._left
        return best

    def _after_leaving(self, other: Row, row: Row, source: int, target: int) -> Found | None:
        """What both steps gain, `other` going from `target` to the best third node, None when there is none."""
        goal, sketch, candidates = self._goal, self._sketch, self._candidates
        before, unit, burden = goal.value, other.who.unit, other.who.burden
        thirds = [
            (other.cost_to(third) - goal.gain(burden, target, third), third)
            for third in range(len(goal.names))
            if third not in (source, target) and burden.fits_into(candidates.room(third)) and candidates.is_allowed(unit, third)
        ]
        self._left -= len(thirds)
        if not thirds:
            return None
        third = min(thirds)[1]
        mark = sketch.mark()
        sketch.move(unit, goal.names[third])
        fits = row.who.burden.fits_into(self._full_room(target)) and candidates.is_allowed(row.who.unit, target)
        if fits:
            sketch.move(row.who.unit, goal.names[target])
            goal.changed()
        gain = before - goal.value - row.cost_to(target) - other.cost_to(third) if fits else 0.0
        sketch.rollback(mark)
        goal.changed()
        return Found(gain, (Taken(unit, third), Taken(row.who.unit, target))) if gain > self._least else None

    def _full_room(self, node: int) -> Burden:
        return self._sketch.room(self._goal.names[node], Purpose.LOAD)

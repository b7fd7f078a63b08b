# SPDX-License-Identifier: GPL-3.0-or-later
"""Evening out load: down the goal, the best step first, until no step and no pair of steps brings more than it costs.

What is lowered is the goal plus the cost of all that moves, so a step that a later one made superfluous is taken back.
A step is one unit (a guest, or guests that must stay together) to one node. Where no step gains any more:
  exchange   two units change places, as where two big guests sit wrong and no gap is wide enough for a move;
  make room  a unit leaves a node that is too full for the one that should go there;
  fewer      one step takes the place of two.
Steps are looked for between the hottest and the coolest nodes first, and among all when those have none; bounds on what
a pair of nodes, and a unit between them, can gain leave few to be weighed (`agent.core.goal`, `agent.core.candidates`). With the
best step others are taken that are about as good and are between other nodes, but where every step counts: on small clusters.
Ties go to the smallest VMID, then to the node's name.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import combinations

from agent.core.candidates import NOTHING_GAINED, TRIED_FIRST, Candidates
from agent.core.draft import Draft, Mark
from agent.core.goal import Transfer
from agent.core.lines import Row
from agent.core.reasons import LOAD_REASONS, MoveReason
from agent.core.sequences import SHORTEST, best_sequence, is_small
from agent.core.two_steps import Found, Taken, TwoSteps

WORTH_KNOWING = 0.75  # of the best step so far: what is less between two nodes is not looked for; what is not is taken with the best
ROUNDING = 1e-12  # of a goal of at most a few units: far above what sums lose, far below what a step must gain
_CPU, _MEMORY, _PRESSURE = range(3)  # as Transfer numbers what counts
MOST_SWEPT = 20_000  # pairs of steps times guests times nodes, for which one step is looked for in the place of two


class Descent:
    """One run of evening out, from the sources, for one reason; `one_by_one` steps are not taken with others about as good."""

    def __init__(
        self, draft: Draft, sources: Sequence[str], reason: MoveReason, *, may_move_on: bool, as_new: bool = False, one_by_one: bool = False
    ) -> None:
        self._draft, self._sketch, self._goal = draft, draft.sketch, draft.goal
        self._one_by_one = one_by_one
        self._may_move_on = may_move_on
        self._candidates = Candidates(draft, sources, reason, may_move_on=may_move_on, as_new=as_new)
        self._two = TwoSteps(draft, self._candidates)
        self._last_best: dict[int, Row] = {}  # by the node that it would leave

    def run(self) -> None:
        """Take all the steps that gain; where the cluster is small, those of a better way if there is one."""
        draft, candidates = self._draft, self._candidates
        before, steps = draft.mark(), _for_load(draft)
        self._run()
        length, potential = _for_load(draft) - steps, draft.potential()
        if length < SHORTEST or not self._may_move_on or not is_small(self._sketch):
            return
        self._back_to(before)
        for taken in best_sequence(draft, candidates, length, potential):
            candidates.take(taken.unit, taken.target)
        self._run()
        if draft.potential() >= potential:  # it was not better after all
            self._back_to(before)
            self._run()

    def begin_with(self, unit: tuple[int, ...], target: int) -> None:
        """Let the unit go to that node, whatever it gains, and not come back."""
        self._candidates.forbid(unit, self._sketch.at[unit[0]])
        self._candidates.take(unit, target)

    def undo(self, mark: Mark) -> None:
        """Undo the steps since the mark, and make none of them again."""
        changed = set(self._draft.steps).symmetric_difference(mark.steps)  # a guest that was taken home has no step any more
        for vmid in sorted(step.vmids[0] for step in changed):
            self._candidates.forbid(self._sketch.unit_here(vmid), self._sketch.at[vmid])
        self._back_to(mark)

    def _back_to(self, mark: Mark) -> None:
        self._draft.back_to(mark)
        self._candidates.forget()

    def _run(self) -> None:
        while self.step() or self._fewer():
            pass

    def step(self) -> bool:
        """Take the best step, or pair of steps, or some that are about as good; False when none gains, looked at anew."""
        return self._step() or (self._candidates.is_stale() and self._step())

    def _step(self) -> bool:
        if found := self._single():
            self._take_all(found[:1] if self._one_by_one or is_small(self._sketch) else found)
            return True
        if (back := self._taken_back()) is not None:
            self._take(back)
            return True
        if exchanges := self._two.exchange():
            self._take_all(exchanges[:1] if self._one_by_one else exchanges)
            return True
        if (made := self._two.room_made()) is not None:
            self._take(made)
            return True
        return False

    def step_at(self, nodes: AbstractSet[int]) -> bool:
        """Take the best step, or exchanges, that one of these nodes has part in; False when none gains."""
        everywhere, sources = range(len(self._goal.names)), self._candidates.sources
        here = [node for node in sources if node in nodes]
        found = self._best_steps(here, everywhere)[:1] + self._best_steps(sources, sorted(nodes))[:1]
        best = max(found, key=lambda one: one.gain, default=None)
        if best is not None:
            self._take(best)
            return True
        exchanges = self._two.exchange(nodes)
        self._take_all(exchanges[:1] if self._one_by_one else exchanges)
        return bool(exchanges)

    def _take(self, found: Found) -> None:
        for unit, target, until in found.steps:
            self._candidates.take(unit, target, until)

    def _take_all(self, exchanges: Sequence[Found]) -> None:
        """Steps or exchanges, each between other nodes than those before: all when they gain together, else the first."""
        draft = self._draft
        mark, before = draft.mark(), draft.potential()
        for found in exchanges:
            self._take(found)
        if len(exchanges) > 1 and draft.potential() > before - exchanges[0].gain:
            self._back_to(mark)
            self._take(exchanges[0])

    # one step

    def _single(self) -> list[Found]:
        """The best step, and others that are about as good, each between other nodes; none when no step gains."""
        sources = self._candidates.sources
        rising = sorted(range(len(self._goal.names)), key=lambda i: (self._goal.heat[i], i))
        allowed = set(sources)
        hottest = [node for node in rising[-TRIED_FIRST:] if node in allowed]
        found = self._best_steps(hottest, rising[:TRIED_FIRST])
        if not found and (len(rising) > TRIED_FIRST or len(hottest) < len(allowed)):
            found = self._best_steps(sources, rising)
        return found

    def _best_steps(self, sources: Sequence[int], targets: Sequence[int]) -> list[Found]:
        candidates = self._candidates
        best, least = NOTHING_GAINED, candidates.cheapest
        found: list[tuple[float, int, int, int, Row]] = []
        for ideal, source, target in candidates.pairs(sources, targets):
            if -ideal - least < best:
                break
            near = max(NOTHING_GAINED, WORTH_KNOWING * best)
            gain, row = self._best_between(source, target, near)
            candidates.note(source, target, gain)
            if row is not None:
                found.append((-gain, row.who.vmid, target, source, row))
                best = max(best, gain)
        chosen: list[Found] = []
        touched: set[int] = set()
        for lost, _, target, source, row in sorted(found):
            if -lost >= WORTH_KNOWING * best and touched.isdisjoint((source, target)):
                chosen.append(Found(-lost, (Taken(row.who.unit, target),)))
                touched |= {source, target}
        return chosen

    def _best_between(self, source: int, target: int, least: float) -> tuple[float, Row | None]:
        """The unit that gains most by going from the one node to the other, and what it gains; `least` and None when none gains as much."""
        candidates, line, room = self._candidates, self._candidates.line(source), self._candidates.room(target)
        self._draft.evaluations += 1
        if room[2] < line.least_cpu or room[3] < line.least_memory:
            return least, None
        transfer = Transfer(self._goal, source, target)
        # nobody gains more than what, of all, somebody may gain by cpu alone, somebody by memory alone, and somebody by pressure alone
        most_cpu = transfer.most(_CPU, line.least_cpu, line.most_cpu)
        most_memory = transfer.most(_MEMORY, line.least_memory, line.most_memory)
        most_pressure = transfer.most(_PRESSURE, 0.0, line.most_pressure)
        if most_cpu + most_memory + most_pressure - line.cheapest < least - ROUNDING:
            return least, None
        enough = max(least, self._gain_of_last(source, transfer, target)) - ROUNDING
        # so whoever gains enough gains so much at the least by cpu, and by memory
        needed = enough + line.cheapest - most_pressure
        low, high = transfer.window(_CPU, needed - most_memory)
        low_memory, high_memory = transfer.window(_MEMORY, needed - most_cpu)
        begin, end = bisect_left(line.memory, low_memory), bisect_right(line.memory, min(high_memory, room[3]))
        self._draft.evaluations += max(0, end - begin)
        here, there = self._goal.prices[source], self._goal.prices[target]
        by_cpu, by_memory, by_pressure = here[0] - there[0], here[1] - there[1], here[2] - there[2]
        high = min(high, room[2])
        # the gradient promises no less than the gain, and is sooner computed
        near = [
            row
            for row in line.rows[begin:end]
            if low <= row[0] <= high and row[0] * by_cpu + row[1] * by_memory + row[2] * by_pressure - row[3] >= enough
        ]
        if not near:
            return least, None
        promises = zip(transfer.promises(near), near, strict=True)
        best, best_row = least, None
        for most, _, row in sorted([(-promise, row.who.vmid, row) for promise, row in promises if promise >= enough]):
            if -most < best - ROUNDING:
                break
            who = row.who
            if who.burden.fits_into(room):
                self._draft.evaluations += 1
                gain = transfer.gain(row[0], row[1], row[2]) - row[3]
                if (gain > best or (best_row is None and gain == best)) and candidates.is_allowed(who.unit, target):
                    best, best_row = gain, row
        if best_row is not None:
            self._last_best[source] = best_row
        return best, best_row

    def _gain_of_last(self, source: int, transfer: Transfer, target: int) -> float:
        """What the unit gains that was best to leave the source for another node: likely much here, too, so that few can gain more."""
        candidates, row = self._candidates, self._last_best.get(source)
        if row is None or candidates.rows_at(source).get(row.who.vmid) is not row or not row.who.burden.fits_into(candidates.room(target)):
            return NOTHING_GAINED
        gain = transfer.gain(row[0], row[1], row[2]) - row[3]
        return gain if gain > NOTHING_GAINED and candidates.is_allowed(row.who.unit, target) else NOTHING_GAINED

    def _taken_back(self) -> Found | None:
        """A unit that better stays where it came from, now that others have moved."""
        candidates, index, prices = self._candidates, self._goal.index, self._goal.prices
        for step in self._draft.steps:
            here = index[step.target]
            row = candidates.rows_at(here).get(step.sources[0][0])
            if row is None or row.who.origin is None:
                continue
            who, home = row.who, row.who.origin
            (cpu, memory, pressure), (cpu_home, memory_home, pressure_home) = prices[here], prices[home]
            promise = row[0] * (cpu - cpu_home) + row[1] * (memory - memory_home) + row[2] * (pressure - pressure_home)
            if promise + who.refund <= NOTHING_GAINED or not who.burden.fits_into(candidates.room(home)):
                continue  # the gradient promises no less than the gain
            self._draft.evaluations += 1
            gain = self._goal.gain(who.burden, here, home) + who.refund
            if gain > NOTHING_GAINED and candidates.is_allowed(who.unit, home):
                return Found(gain, (Taken(who.unit, home),))
        return None

    def _fewer(self) -> bool:
        """Put one step in the place of two, where that is no worse; on small clusters alone, where one step less is a large share."""
        draft = self._draft
        for_load = [step.vmids for step in draft.steps if step.reason in LOAD_REASONS]
        moved = [unit for unit in for_load if set(unit) == set(self._sketch.unit_here(unit[0]))]
        if not self._may_move_on or len(moved) ** 2 * len(self._sketch.at) * len(self._goal.names) > MOST_SWEPT:
            return False
        for one, other in combinations(sorted(moved), 2):
            before, value = draft.mark(), draft.potential()
            if self._take_home(one) and self._take_home(other) and (found := self._single()):
                self._take(found[0])
                if draft.potential() < value - NOTHING_GAINED:
                    return True
            self._back_to(before)
        return False

    def _take_home(self, unit: tuple[int, ...]) -> bool:
        step = self._draft.step_of(unit[0])
        origin = None if step is None else self._candidates.origin(step, unit)
        if origin is None:
            return False
        self._candidates.take(unit, origin)
        return True


def _for_load(draft: Draft) -> int:
    return sum(step.reason in LOAD_REASONS for step in draft.steps)

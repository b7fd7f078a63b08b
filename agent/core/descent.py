# SPDX-License-Identifier: GPL-3.0-or-later
"""Evening out load: down the goal, the best step first, until no step and no pair of steps brings more than it costs.

What is lowered is the goal plus the cost of all that moves, so a step that a later one made superfluous is taken back.
A step is one unit (a guest, or guests that must stay together) to one node. Where no step gains any more:
  exchange   two units change places, as where two big guests sit wrong and no gap is wide enough for a move;
  make room  a unit leaves a node that is too full for the one that should go there;
  fewer      one step takes the place of two.
Steps are looked for between the hottest and the coolest nodes first, and among all when those have none; bounds on what
a pair of nodes, and a unit between them, can gain leave few to be weighed (`agent.core.goal`, `agent.core.candidates`). Ties
go to the smallest VMID, then to the node's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from agent.core.candidates import NOTHING_GAINED, Candidates
from agent.core.draft import Draft, Mark
from agent.core.goal import Transfer
from agent.core.reasons import LOAD_REASONS, MoveReason
from agent.core.sequences import SHORTEST, best_sequence, is_small
from agent.core.two_steps import Found, Taken, TwoSteps

WORTH_KNOWING = 0.9  # of the best step so far: what is less between two nodes is not looked for, nor looked at again
TRIED_FIRST = 6  # the hottest and the coolest nodes hold a good step nearly always
MOST_SWEPT = 20_000  # pairs of steps times guests times nodes, for which one step is looked for in the place of two


class Descent:
    """One run of evening out, from the sources, for one reason."""

    def __init__(self, draft: Draft, sources: Sequence[str], reason: MoveReason, *, may_move_on: bool) -> None:
        self._draft, self._sketch, self._goal = draft, draft.sketch, draft.goal
        self._may_move_on = may_move_on
        self._candidates = Candidates(draft, sources, reason, may_move_on=may_move_on)
        self._two = TwoSteps(draft, self._candidates)

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

    def _back_to(self, mark: Mark) -> None:
        self._draft.back_to(mark)
        self._candidates.forget()

    def _run(self) -> None:
        while self.step() or (self._candidates.is_stale() and self.step()):
            pass

    def step(self) -> bool:
        """Take the best step, or pair of steps, or some pairs that are about as good; False when none gains."""
        found = self._single() or self._taken_back()
        if found is not None:
            self._take(found)
            return True
        if exchanges := self._two.exchange():
            self._take_all(exchanges)
            return True
        if (made := self._two.room_made()) is not None:
            self._take(made)
            return True
        return self._fewer()

    def _take(self, found: Found) -> None:
        for unit, target, until in found.steps:
            self._candidates.take(unit, target, until)

    def _take_all(self, exchanges: Sequence[Found]) -> None:
        """The exchanges, each between other nodes than those before, as long as each still gains."""
        draft = self._draft
        for number, found in enumerate(exchanges):
            mark, before = draft.mark(), draft.potential()
            self._take(found)
            if number and draft.potential() > before - NOTHING_GAINED:
                self._back_to(mark)
                return

    # one step

    def _single(self) -> Found | None:
        sources = self._candidates.sources
        rising = sorted(range(len(self._goal.names)), key=lambda i: (self._goal.heat[i], i))
        allowed = set(sources)
        hottest = [node for node in rising[-TRIED_FIRST:] if node in allowed]
        found = self._best_step(hottest, rising[:TRIED_FIRST])
        if found is None and (len(rising) > TRIED_FIRST or len(hottest) < len(allowed)):
            found = self._best_step(sources, rising)
        return found

    def _best_step(self, sources: Sequence[int], targets: Sequence[int]) -> Found | None:
        goal, candidates, prices = self._goal, self._candidates, self._goal.prices
        best, best_key = NOTHING_GAINED, (0, 0)
        best_unit: tuple[int, ...] = ()
        least = candidates.cheapest
        for ideal, source, target in candidates.pairs(sources, targets):
            if -ideal - least < best:
                break
            room, transfer = candidates.room(target), Transfer(goal, source, target)
            (a1, b1, g1, e1), (a2, b2, g2, e2), (_, _, g3, e3) = transfer.bounds
            here, there = prices[source], prices[target]
            by_cpu, by_memory, by_pressure = here[0] - there[0], here[1] - there[1], here[2] - there[2]
            line = candidates.line(source)
            near = WORTH_KNOWING * best
            hopes = []
            for cpu, memory, pressure, cost, row in [
                entry for entry in line if entry[0] * by_cpu + entry[1] * by_memory + entry[2] * by_pressure - entry[3] >= near
            ]:
                at_most_cpu, at_most_memory = cpu * (a1 + b1 * cpu), memory * (a2 + b2 * memory)
                most = (at_most_cpu if at_most_cpu > 0 else cpu * g1) + (at_most_memory if at_most_memory > 0 else memory * g2)
                most += cpu * e1 + memory * e2 + pressure * (g3 + e3) - cost
                if most >= near and row[6].fits_into(room):
                    hopes.append((-most, row[4], row))
            hopes.sort()
            self._draft.evaluations += len(line) + len(hopes)
            found = near
            for most, vmid, row in hopes:
                if -most < found:
                    break
                gain = transfer.gain(row[0], row[1], row[2]) - row[3]
                if gain < found or not candidates.is_allowed(row[5], target):
                    continue
                found = gain
                if gain > best or (gain == best and (vmid, target) < best_key):
                    best, best_key, best_unit = gain, (vmid, target), row[5]
            candidates.note(source, target, found)
        return Found(best, (Taken(best_unit, best_key[1]),)) if best_unit else None

    def _taken_back(self) -> Found | None:
        """A unit that better stays where it came from, now that others have moved."""
        candidates = self._candidates
        for step in self._draft.steps:
            row = candidates.row_of(step.vmids[0]) if step.reason in LOAD_REASONS else None
            if row is None or row.origin is None or not row.burden.fits_into(candidates.room(row.origin)):
                continue
            self._draft.evaluations += 1
            gain = self._goal.gain(row.burden, self._goal.index[step.target], row.origin) + row.refund
            if gain > NOTHING_GAINED and candidates.is_allowed(row.unit, row.origin):
                return Found(gain, (Taken(row.unit, row.origin),))
        return None

    def _fewer(self) -> bool:
        """Put one step in the place of two, where that is no worse; on small clusters alone, where one step less is a large share."""
        draft, candidates = self._draft, self._candidates
        for_load = [step.vmids for step in draft.steps if step.reason in LOAD_REASONS]
        moved = [unit for unit in for_load if set(unit) == set(self._sketch.unit_here(unit[0]))]
        if not self._may_move_on or len(moved) ** 2 * len(self._sketch.at) * len(self._goal.names) > MOST_SWEPT:
            return False
        for one, other in combinations(sorted(moved), 2):
            before, value = draft.mark(), draft.potential()
            if self._take_home(one) and self._take_home(other) and (found := self._single()) is not None:
                for unit, target, _ in found.steps:
                    candidates.take(unit, target)
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

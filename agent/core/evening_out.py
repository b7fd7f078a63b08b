# SPDX-License-Identifier: GPL-3.0-or-later
"""Evening out as a whole: down the goal, and, where that ends inside the gates, the last points of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from agent.core.descent import Descent
from agent.core.detours import take_detour
from agent.core.draft import Draft
from agent.core.evenness import even_out_the_rest
from agent.core.imbalance import over_threshold, spread
from agent.core.reasons import MoveReason
from agent.core.sequences import is_small

MOST_DETOURS = 3  # of one plan: each brings a node that stands apart nearer to the others
MOST_UNDONE = 20  # steps of one descent that are undone for want of an order, each after a trial


class EveningOut:
    """From these sources, for one reason, as often as asked.

    Shape:   `can_be_ordered` tells whether the draft's steps have an order.
    """

    def __init__(self, draft: Draft, sources: Sequence[str], reason: MoveReason, can_be_ordered: Callable[[], bool]) -> None:
        self._draft, self._sources, self._reason = draft, sources, reason
        self._can_be_ordered = can_be_ordered
        self._highest = draft.goal.value

    def run(self, *, may_move_on: bool) -> None:
        """Take all steps that are worth it."""
        draft = self._draft
        Descent(draft, self._sources, self._reason, may_move_on=may_move_on).run()
        self._even_out_the_rest(may_move_on=may_move_on)
        for _ in range(MOST_DETOURS if may_move_on and draft.question.scope.nodes is None and not is_small(draft.sketch) else 0):
            before = draft.mark()
            if not take_detour(draft, self._sources, self._reason, self._highest):
                break
            Descent(draft, self._sources, self._reason, may_move_on=True).run()
            self._even_out_the_rest(may_move_on=True)
            if not self._can_be_ordered():
                draft.back_to(before)
                break

    def _even_out_the_rest(self, *, may_move_on: bool) -> None:
        draft = self._draft
        if draft.question.scope.nodes is not None or not self._is_calm():
            return
        before = draft.mark()
        even_out_the_rest(draft, lambda: Descent(draft, self._sources, self._reason, may_move_on=may_move_on, as_new=True))
        if draft.steps != before.steps and not self._can_be_ordered():
            draft.back_to(before)
            if self._can_be_ordered():
                even_out_the_rest(draft, self._new_in_order)

    def run_in_order(self) -> None:
        """Take those steps that are left, who has moved moving on as well, with which all steps still have an order."""
        draft = self._draft
        left = _InOrder(draft, Descent(draft, self._sources, self._reason, may_move_on=True, one_by_one=True), self._can_be_ordered)
        while left.step():
            pass
        if draft.question.scope.nodes is None and self._is_calm():
            even_out_the_rest(draft, self._new_in_order)

    def _new_in_order(self) -> _InOrder:
        descent = Descent(self._draft, self._sources, self._reason, may_move_on=True, as_new=True, one_by_one=True)
        return _InOrder(self._draft, descent, self._can_be_ordered)

    def _is_calm(self) -> bool:
        """Whether no gate is open any more: then the next plan begins nothing that this one could not order."""
        draft, sketch = self._draft, self._draft.sketch
        loads = [load for name, load in sketch.loads().items() if name in sketch.usable]
        limit = draft.settings.balance.spread_percent
        if any(over_threshold(load, sketch.weights) for load in loads):
            return False
        return limit <= 0 or spread(loads, sketch.weights)[0] <= limit / 100


class _InOrder:
    """A descent whose steps are taken only where all that the draft holds then has an order."""

    def __init__(self, draft: Draft, descent: Descent, can_be_ordered: Callable[[], bool]) -> None:
        self._draft, self._descent, self._can_be_ordered = draft, descent, can_be_ordered
        self._left = MOST_UNDONE

    def step(self) -> bool:
        return self._first_that_can_be(self._descent.step)

    def step_at(self, nodes: AbstractSet[int]) -> bool:
        return self._first_that_can_be(lambda: self._descent.step_at(nodes))

    def _first_that_can_be(self, take: Callable[[], bool]) -> bool:
        while self._left > 0:
            before = self._draft.mark()
            if not take():
                return False
            if self._can_be_ordered():
                return True
            self._descent.undo(before)
            self._left -= 1
        return False

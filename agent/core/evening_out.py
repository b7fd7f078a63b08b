# SPDX-License-Identifier: GPL-3.0-or-later
"""Evening out as a whole: down the goal, and, where that ends inside the gates, the last points of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.core.descent import Descent
from agent.core.draft import Draft
from agent.core.evenness import even_out_the_rest
from agent.core.imbalance import over_threshold, spread
from agent.core.reasons import MoveReason


class EveningOut:
    """From these sources, for one reason, as often as asked.

    Shape:   `can_be_ordered` tells whether the draft's steps have an order.
    """

    def __init__(self, draft: Draft, sources: Sequence[str], reason: MoveReason, can_be_ordered: Callable[[], bool]) -> None:
        self._draft, self._sources, self._reason = draft, sources, reason
        self._can_be_ordered = can_be_ordered

    def run(self, *, may_move_on: bool) -> None:
        """Take all steps that are worth it."""
        draft = self._draft
        Descent(draft, self._sources, self._reason, may_move_on=may_move_on).run()
        if draft.question.scope.nodes is None and self._is_calm():
            before = draft.mark()
            even_out_the_rest(draft, self._sources, self._reason, may_move_on=may_move_on)
            if draft.steps != before.steps and not self._can_be_ordered():
                draft.back_to(before)

    def _is_calm(self) -> bool:
        """Whether no gate is open any more: then the next plan begins nothing that this one could not order."""
        draft, sketch = self._draft, self._draft.sketch
        loads = [load for name, load in sketch.loads().items() if name in sketch.usable]
        limit = draft.settings.balance.spread_percent
        if any(over_threshold(load, sketch.weights) for load in loads):
            return False
        return limit <= 0 or spread(loads, sketch.weights)[0] <= limit / 100

# SPDX-License-Identifier: GPL-3.0-or-later
"""In what order steps run: batches that keep every limit and rule whatever finishes first.

Invariant, for every batch: at its start all earlier batches are done; while it runs, each of its guests counts on the
node it leaves and on the node it goes to; so every subset of its moves, in any order, stays within the limits and
keeps apart who must be apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from agent.core.conditions import Purpose
from agent.core.placement import NOTHING, Burden, Placement
from agent.core.steps import Step


def into_batches(sketch: Placement, steps: Sequence[Step]) -> tuple[list[list[Step]], list[Step]]:
    """Return the steps as batches, and those for which no safe moment exists.

    Steps that fit early run early, those of a higher rank first. Where running late steps early would block an earlier
    one for good, all run strictly in the given order instead, which the planner has shown to fit one at a time.

    Shape:   the sketch is rolled back to before any move, now and in the end.
    Raises:  nothing.
    """
    batches, stuck = _greedy(sketch, sorted(steps, key=lambda step: step.purpose is Purpose.LOAD), may_overtake=True)
    if stuck:
        ordered, still_stuck = _greedy(sketch, steps, may_overtake=False)
        if len(still_stuck) < len(stuck):
            batches, stuck = ordered, still_stuck
    sketch.rollback()
    return batches, stuck


def _greedy(sketch: Placement, steps: Sequence[Step], *, may_overtake: bool) -> tuple[list[list[Step]], list[Step]]:
    sketch.rollback()
    batches: list[list[Step]] = []
    waiting = list(steps)
    while waiting:
        batch: list[Step] = []
        later: list[Step] = []
        arriving = _Arrivals(sketch)
        for step in waiting:
            if (may_overtake or not later) and arriving.has_room_for(step):
                arriving.add(step)
                batch.append(step)
            else:
                later.append(step)
        if not batch:
            return batches, later
        for step in batch:
            sketch.move(step.vmids, step.target)
        batches.append(batch)
        waiting = later
    return batches, []


class _Arrivals:
    """What a batch brings to each node while nothing of it has left anywhere yet."""

    def __init__(self, sketch: Placement) -> None:
        self._sketch = sketch
        self._burden: dict[str, Burden] = defaultdict(lambda: NOTHING)
        self._guests: dict[str, set[int]] = defaultdict(set)
        self._thresholds: set[str] = set()  # nodes to which a move for load is under way: while it is, nothing lifts them over a threshold

    def has_room_for(self, step: Step) -> bool:
        sketch, target = self._sketch, step.target
        if sketch.why_rules_forbid(step.vmids, target) is not None:
            return False
        for vmid in step.vmids:
            if not self._guests[target].isdisjoint(sketch.rules.apart.get(vmid, ())):
                return False
        purpose = Purpose.LOAD if target in self._thresholds else step.purpose
        return sketch.why_no_room(self._with(step), step.vmids[0], target, purpose) is None

    def add(self, step: Step) -> None:
        self._burden[step.target] = self._with(step)
        self._guests[step.target].update(step.vmids)
        if step.purpose is Purpose.LOAD:
            self._thresholds.add(step.target)

    def _with(self, step: Step) -> Burden:
        return self._burden[step.target].plus(self._sketch.burden_of_unit(step.vmids))

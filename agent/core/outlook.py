# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan is worth: the goal as a table before and after it, what no plan can do better, which nodes may be lost then, and how long
it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.core.bound import Bound, bound
from agent.core.cluster import Snapshot
from agent.core.documents import Timing
from agent.core.durations import Foretold, foretold
from agent.core.goal_table import GoalRow, goal_table
from agent.core.placement import Placement
from agent.core.plan_types import Plan
from agent.core.question import Question
from agent.core.settings import Settings
from agent.core.survival import Survival, survival


@dataclass(frozen=True, slots=True)
class Outlook:
    """A plan seen from outside: `before` and `after` it, with all its moves made."""

    goal: tuple[GoalRow, ...]
    bound: Bound
    survival_before: Survival
    survival_after: Survival
    foretold: Foretold


def outlook(snapshot: Snapshot, settings: Settings, question: Question, plan: Plan, timings: Sequence[Timing] = ()) -> Outlook:
    """Return what the plan is worth; the snapshot and the question are those it was made from, `timings` of past migrations."""
    sketch = Placement(snapshot, settings, question)
    least, before, loads = bound(sketch), survival(sketch), sketch.loads()
    for move in plan.moves:
        sketch.move((move.vmid,), move.target)
    table = goal_table(loads, sketch.loads(), sketch.usable, sketch.weights)
    after = survival(sketch) if plan.moves else before
    return Outlook(table, least, before, after, foretold(plan.moves, timings, settings))

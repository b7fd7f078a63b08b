# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan is worth: the goal as a table before and after it, what no plan can do better, and which nodes may be lost then."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.bound import Bound, bound
from agent.core.cluster import Snapshot
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


def outlook(snapshot: Snapshot, settings: Settings, question: Question, plan: Plan) -> Outlook:
    """Return what the plan is worth; the snapshot and the question are those it was made from."""
    sketch = Placement(snapshot, settings, question)
    least, before, loads = bound(sketch), survival(sketch), sketch.loads()
    for move in plan.moves:
        sketch.move((move.vmid,), move.target)
    table = goal_table(loads, sketch.loads(), sketch.usable, sketch.weights)
    return Outlook(table, least, before, survival(sketch) if plan.moves else before)

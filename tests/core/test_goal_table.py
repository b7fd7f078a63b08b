# SPDX-License-Identifier: GPL-3.0-or-later
"""The goal's table says what the goal function computes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import settings as profile

from agent.core.goal import Goal
from agent.core.goal_table import OVERLOAD, goal_table
from agent.core.outlook import outlook
from agent.core.placement import Placement
from agent.core.planner import plan
from agent.core.question import Question
from tests.core.clusters import Draw, cluster, node, random_cluster, settings, vm
from tests.core.test_planner_properties import HOW, draws


@profile(max_examples=40)
@given(draws(60))
@pytest.mark.parametrize("how", HOW)
def test_weight_times_value_summed_is_the_goal(how: object, draw: Draw) -> None:
    snapshot = random_cluster(draw)
    sketch = Placement(snapshot, how, Question())  # type: ignore[arg-type]
    loads = sketch.loads()
    rows = goal_table(loads, loads, sketch.usable, sketch.weights)
    goal = Goal(sketch)
    assert math.fsum(row.weight * row.before for row in rows) == pytest.approx(goal.value, abs=1e-12)
    assert math.fsum(row.weight * row.before for row in rows if row.name != OVERLOAD) == pytest.approx(goal.imbalance, abs=1e-12)
    assert [row.before for row in rows] == [row.after for row in rows]


def test_the_columns_are_the_plans_before_and_after() -> None:
    snapshot = random_cluster(Draw(3, 6, 60, 1.0, 0.6, 0.0, 0.0))
    made = plan(snapshot, settings(), Question())
    assert made.moves
    rows = outlook(snapshot, settings(), Question(), made).goal
    before, after = (math.fsum(r.weight * (r.before, r.after)[i] for r in rows if r.name != OVERLOAD) for i in (0, 1))
    assert (before, after) == (pytest.approx(made.before.imbalance), pytest.approx(made.after.imbalance))


def test_the_rows_of_a_small_cluster_by_hand() -> None:
    full = node("pve1", 100, 10, cpu_used_cores=9.0, memory_used_bytes=95 * 2**30)
    empty = node("pve2", 100, 10, cpu_used_cores=1.0, memory_used_bytes=15 * 2**30)
    snapshot = cluster(full, empty, vm(101, "pve1"))
    sketch = Placement(snapshot, settings({"balance": {"cpu": {"weight": 3}}}), Question())
    loads = sketch.loads()
    rows = goal_table(loads, loads, sketch.usable, sketch.weights)
    assert [(row.name, row.weight) for row in rows] == [("cpu", 0.75), ("memory", 0.25), ("overload", 1.0)]
    # fractions 0.9 and 0.1, 0.95 and 0.15: both deviate by 0.4; pve1 is 0.1 over both thresholds, the mean over two nodes half of it
    assert [row.before for row in rows] == [pytest.approx(0.4), pytest.approx(0.4), pytest.approx(0.05)]


def test_without_nodes_all_is_zero() -> None:
    sketch = Placement(cluster(node("pve1", online=False)), settings(), Question())
    assert [row.before for row in goal_table({}, {}, sketch.usable, sketch.weights)] == [0.0, 0.0, 0.0]

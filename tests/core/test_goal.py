# SPDX-License-Identifier: GPL-3.0-or-later
"""The bounds on what a transfer gains: no transfer gains more than they say, and where no threshold is near they say it exactly."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from agent.core.goal import Goal, Transfer
from agent.core.placement import Placement
from agent.core.question import Question
from tests.core.clusters import Draw, cluster, node, random_cluster, settings
from tests.core.random_clusters import draws

HOW = [
    settings(),
    settings({"balance": {"cpu": {"threshold_percent": 40}, "memory": {"threshold_percent": 40}}}),
    settings({"balance": {"cpu": {"weight": 0}}}),
    settings({"balance": {"pressure": {"weight": 1.0, "threshold_percent": 30}}}),
]


@given(draws(60), st.integers(0, 2**32))
def test_no_load_gains_more_than_its_bounds_say(draw: Draw, seed: int) -> None:
    dice = random.Random(seed)
    goal = Goal(Placement(random_cluster(draw), dice.choice(HOW), Question()))
    if goal.n < 2:
        return
    source, target = dice.sample(range(goal.n), 2)
    transfer = Transfer(goal, source, target)
    line = [(dice.uniform(0, 4), dice.uniform(0, 64 * 2**30), dice.uniform(0, 0.1), dice.choice((0.0, 0.001)), None) for _ in range(20)]
    here, there = goal.prices[source], goal.prices[target]
    is_under = all(measure.fraction[i] <= measure.top for measure in goal.measures for i in (source, target))
    for (cpu, memory, pressure, cost, _), promise in zip(line, transfer.promises(line), strict=True):
        gain = transfer.gain(cpu, memory, pressure) - cost
        gradient = sum(amount * (a - b) for amount, a, b in zip((cpu, memory, pressure), here, there, strict=True)) - cost
        assert gain <= min(promise, gradient) + 1e-12
        assert gain + cost <= sum(transfer.ideal()) + 1e-12
        amounts = (cpu, memory, pressure)
        reach = dice.uniform(0, 2)  # of each amount: from there, or up to there
        assert gain + cost <= sum(transfer.most(i, *sorted((x, reach * x))) for i, x in enumerate(amounts)) + 1e-12
        for way in (1.0, -1.0):
            chords = [(way * x, transfer.chord(i)) for i, x in enumerate(amounts)]
            assert transfer.gain(*(x for x, _ in chords)) <= sum(max(0.0, x * (a + x * b)) + c for x, (a, b, c) in chords) + 1e-12
        if is_under and all(m.fraction[target] + amounts[m.field - 2] / m.capacity[target] <= m.top for m in goal.measures):
            assert math.isclose(gain, promise, abs_tol=1e-12)


def test_the_goal_is_read_again_after_a_change() -> None:
    sketch = Placement(cluster(node("a"), node("b")), settings(), Question())
    goal = Goal(sketch)
    assert goal.value == 0.0
    sketch.states["a"].sums = sketch.states["a"].sums._replace(counted_cpu_cores=16.0)
    goal.changed()
    assert goal.value == goal.imbalance > 0.1
    assert goal.prices[0][0] > 0 > goal.prices[1][0]

# SPDX-License-Identifier: GPL-3.0-or-later
"""In what order the moves of a batch begin: what helps most first, as a pass takes only the head of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.core.cluster import Snapshot
from agent.core.plan_types import Plan
from agent.core.planner import plan
from agent.core.question import Question
from agent.core.reasons import RULE_REASONS
from agent.sim.generator import Shape, generate
from tests.core.checker import Facts, State
from tests.core.clusters import settings

MEMORY = settings({"guests": {"containers": "always"}, "balance": {"cpu": {"weight": 0}, "memory": {"threshold_percent": 95}}})
NEARLY = 0.05  # gains of moves between other nodes are not worked out anew each time
FACTS = Facts(containers="always", cpu_weight=0, is_forced=True)


def gain(state: State, vmid: int, target: str) -> float:
    """By how much more even the nodes would be once that guest has moved."""
    source, before = state.at[vmid], state.imbalance(state.fractions(), FACTS)
    state.move(vmid, target)
    after = state.imbalance(state.fractions(), FACTS)
    state.move(vmid, source)
    return before - after


def better_ones(snapshot: Snapshot, result: Plan) -> Iterator[str]:
    """Moves of the first batch for load that would have brought more than one that comes before them."""
    state = State(snapshot, FACTS)
    waiting = [move for move in result.moves if move.batch == 1]
    while waiting:
        move = waiting.pop(0)
        if move.reason not in RULE_REASONS:
            least = (1 + NEARLY) * gain(state, move.vmid, move.target) + 1e-9
            for other in waiting:
                if gain(state, other.vmid, other.target) > least:
                    yield f"{other.vmid} to {other.target} before {move.vmid} to {move.target}"
        state.move(move.vmid, move.target)


@pytest.mark.parametrize("shape", [Shape.HOT, Shape.UNIFORM, Shape.MIXED])
def test_each_time_the_move_that_evens_out_most(shape: Shape) -> None:
    snapshot = generate(2, 16, 200, shape)
    result = plan(snapshot, MEMORY, Question(force=True))
    assert len([move for move in result.moves if move.batch == 1]) > 10
    assert list(better_ones(snapshot, result)) == []


def test_repairs_come_before_load_whatever_they_gain() -> None:
    result = plan(generate(1, 16, 200, Shape.RULES), MEMORY, Question(force=True))
    is_repair = [move.reason in RULE_REASONS for move in result.moves if move.batch == 1]
    assert True in is_repair
    assert False in is_repair
    assert is_repair == sorted(is_repair, reverse=True)

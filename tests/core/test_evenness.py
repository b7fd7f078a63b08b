# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a few nodes stand apart from all others: smaller steps around them, if they end it, and none if they do not."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from agent.core import evening_out
from agent.core.cluster import GIB, Snapshot
from agent.core.evenness import EVEN_FRACTION, apart
from agent.core.goal import Goal
from agent.core.placement import Placement
from agent.core.plan_types import Plan
from agent.core.planner import plan
from agent.core.question import Question, Scope
from agent.sim.generator import Shape, generate
from tests.core.clusters import after_moves, cluster, node, settings, vm

HOW = settings({"guests": {"containers": "always"}})
FORCE = Question(force=True)
BROUGHT, IN_VAIN = 5, 3  # seeds: of the first the giants leave room enough beside them, of the second they do not


@functools.cache
def zipf(seed: int) -> Snapshot:
    return generate(seed, 16, 500, Shape.ZIPF)


def without(snapshot: Snapshot, question: Question, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The plan that ends where no step is worth its full price."""
    with monkeypatch.context() as patch:
        patch.setattr(evening_out, "even_out_the_rest", lambda *_, **__: None)
        return plan(snapshot, HOW, question)


def memory_spread(result: Plan) -> float:
    shares = [node.memory_fraction for _, node in result.after.nodes]
    return max(shares) - min(shares)


def test_small_steps_bring_to_the_others_who_stand_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    less, result = without(zipf(BROUGHT), FORCE, monkeypatch), plan(zipf(BROUGHT), HOW, FORCE)
    assert memory_spread(result) < EVEN_FRACTION < memory_spread(less)
    assert len(less.moves) < len(result.moves) < 1.25 * len(less.moves)
    assert plan(after_moves(zipf(BROUGHT), result.moves), HOW, FORCE).moves == ()


def test_steps_that_do_not_end_it_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    less, result = without(zipf(IN_VAIN), FORCE, monkeypatch), plan(zipf(IN_VAIN), HOW, FORCE)
    assert memory_spread(less) > EVEN_FRACTION
    assert result.moves == less.moves
    assert result.evaluations > less.evaluations


def test_a_start_is_no_reason_for_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in zipf(BROUGHT).nodes:
        question = replace(FORCE, scope=Scope(frozenset({one.name})))
        assert plan(zipf(BROUGHT), HOW, question) == without(zipf(BROUGHT), question, monkeypatch)


def test_who_stands_apart_is_outside_of_where_most_are() -> None:
    used = (30, 32, 33, 60, 10)
    nodes = [node(f"pve{i}", 100, memory_used_bytes=gib * GIB, cpu_used_cores=1.0) for i, gib in enumerate(used)]
    goal = Goal(Placement(cluster(*nodes, vm(100, "pve0")), settings(), Question()))
    assert apart(goal, 0) == frozenset()
    assert apart(goal, 1) == {3, 4}

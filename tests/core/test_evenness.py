# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a few nodes stand apart from all others: smaller steps around them, if they end it, and none if they do not; and detours."""

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
from tests.core.clusters import after_moves, cluster, node, settings, vm, wrong_in

PLAIN = settings()
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
    monkeypatch.setattr(evening_out, "MOST_DETOURS", 0)
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


def crowd(load_cores: float) -> Snapshot:
    """One node holds many small guests, and a small one a guest that takes half of its cores, for which two others are large enough."""
    nodes = [node(name, 128, 32) for name in ("pve1", "pve4", "pve5")] + [node(name, 256, 64) for name in ("pve2", "pve3")]
    return cluster(*nodes, vm(100, "pve1", 16, 16), *(vm(101 + i, "pve2", 2, load_cores) for i in range(80)))


def test_a_large_guest_leaves_a_small_node_where_small_ones_can_take_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = crowd(0.9)
    with monkeypatch.context() as patch:
        patch.setattr(evening_out, "MOST_DETOURS", 0)
        without_one = plan(snapshot, PLAIN, FORCE)
    result = plan(snapshot, PLAIN, FORCE)
    assert wrong_in(snapshot, result, PLAIN, FORCE) == []
    assert 100 not in {move.vmid for move in without_one.moves}
    (large,) = [move for move in result.moves if move.vmid == 100]
    assert large.target in ("pve2", "pve3")
    assert result.after.imbalance < without_one.after.imbalance / 2
    assert len(result.moves) <= len(without_one.moves) + 2
    assert plan(after_moves(snapshot, result.moves), PLAIN, FORCE).moves == ()


def test_on_the_way_the_cluster_is_never_less_even_than_it_was() -> None:
    """So what is nearly even is left alone, though the same guest sits on the same node."""
    snapshot = crowd(0.9)
    result = plan(snapshot, PLAIN, FORCE)
    at = result.before.imbalance
    for move in result.moves:
        at -= move.gain
        assert at <= result.before.imbalance
    others = [replace(guest, node=f"pve{2 + i % 4}") if guest.vmid != 100 else guest for i, guest in enumerate(snapshot.guests)]
    nearly_even = cluster(*(replace(one, cpu_used_cores=None, memory_used_bytes=None) for one in snapshot.nodes), *others)
    assert all(move.gain > 0 for move in plan(nearly_even, PLAIN, FORCE).moves)

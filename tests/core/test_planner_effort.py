# SPDX-License-Identifier: GPL-3.0-or-later
"""What planning takes, counted in units looked at, pairs of nodes bounded and transfers weighed: the same on every machine, unlike seconds.

Seconds are measured by tests/bench/planner.py.
"""

from __future__ import annotations

import functools

import pytest

from agent.core.cluster import Snapshot
from agent.core.planner import plan
from agent.core.question import Question, Scope
from agent.core.settings import Settings
from agent.sim.generator import Shape, generate

SEEDS = (1, 2)
MOST_OF_A_GUEST = {3: 400, 16: 280}  # evaluations, by nodes; measured are up to 294 where many sequences of steps are tried, else 8 to 206
MOST_OF_A_START = 16_000  # measured are 58 to 11 428, the most with 60 guests on a node


@functools.cache
def cluster(seed: int, nodes: int, guests: int, shape: Shape) -> Snapshot:
    return generate(seed, nodes, guests, shape)


@functools.cache
def whole(nodes: int, guests: int, shape: Shape) -> int:
    """The evaluations of whole plans past the gates, all seeds together."""
    return sum(plan(cluster(seed, nodes, guests, shape), Settings(), Question(force=True)).evaluations for seed in SEEDS)


@functools.cache
def of_one_start(nodes: int, guests: int, shape: Shape) -> int:
    """Those of what the start of a guest on the fullest node makes the leader look at, the most of all seeds."""
    most = 0
    for seed in SEEDS:
        snapshot = cluster(seed, nodes, guests, shape)
        node = max(snapshot.nodes, key=lambda node: ((node.memory_used_bytes or 0) / node.memory_bytes, node.name)).name
        vmid = next(guest.vmid for guest in snapshot.guests if guest.node == node and guest.is_running)
        question = Question(force=True, scope=Scope(frozenset({node}), frozenset({vmid})))
        most = max(most, plan(snapshot, Settings(), question).evaluations)
    return most


@pytest.mark.parametrize("shape", Shape)
@pytest.mark.parametrize(("nodes", "guests"), [(3, 12), (16, 125), (16, 250), (16, 500)])
def test_a_whole_plan_takes_a_bounded_number_of_evaluations_for_each_guest(nodes: int, guests: int, shape: Shape) -> None:
    assert 0 < whole(nodes, guests, shape) <= MOST_OF_A_GUEST[nodes] * guests * len(SEEDS)


@pytest.mark.parametrize(("small", "large"), [((16, 125), (16, 250)), ((16, 250), (16, 500))])
def test_twice_the_guests_take_less_than_twice_the_evaluations_and_of_no_shape_more_than_two_and_a_half_times(
    small: tuple[int, int], large: tuple[int, int]
) -> None:
    few, many = ([whole(*size, shape) for shape in Shape] for size in (small, large))
    assert sum(many) < 2.0 * sum(few)
    assert all(after < 2.5 * before for before, after in zip(few, many, strict=True))


@pytest.mark.parametrize("shape", Shape)
@pytest.mark.parametrize(("nodes", "guests"), [(4, 60), (16, 240), (64, 960), (16, 960)])
def test_what_a_start_takes_does_not_grow_with_the_rest_of_the_cluster(nodes: int, guests: int, shape: Shape) -> None:
    assert of_one_start(nodes, guests, shape) <= MOST_OF_A_START

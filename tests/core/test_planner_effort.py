# SPDX-License-Identifier: GPL-3.0-or-later
"""What planning takes, counted in evaluated placements: the same on every machine, unlike seconds.

Seconds are measured by tests/bench/planner.py.
"""

from __future__ import annotations

import functools

import pytest

from agent.core.cluster import Snapshot
from agent.core.plan_types import Plan
from agent.core.planner import plan
from agent.core.question import Question, Scope
from agent.core.settings import Settings
from agent.sim.generator import Shape, generate

SEED = 1


@functools.cache
def cluster(nodes: int, guests: int, shape: Shape) -> Snapshot:
    return generate(SEED, nodes, guests, shape)


@functools.cache
def whole(nodes: int, guests: int, shape: Shape) -> Plan:
    """Everything, past the gates."""
    return plan(cluster(nodes, guests, shape), Settings(), Question(force=True))


def of_one_start(nodes: int, guests: int, shape: Shape) -> Plan:
    """What the start of a guest on the fullest node makes the leader look at."""
    snapshot = cluster(nodes, guests, shape)
    node = max(snapshot.nodes, key=lambda node: ((node.memory_used_bytes or 0) / node.memory_bytes, node.name)).name
    vmid = next(guest.vmid for guest in snapshot.guests if guest.node == node and guest.is_running)
    return plan(snapshot, Settings(), Question(force=True, scope=Scope(frozenset({node}), frozenset({vmid}))))


@pytest.mark.parametrize("shape", Shape)
def test_planning_takes_a_bounded_number_of_evaluations(shape: Shape) -> None:
    for (nodes, guests), most in MOST.items():
        made = whole(nodes, guests, shape)
        assert 0 < made.evaluations <= most, f"{nodes}/{guests}: {made.evaluations} evaluations"


@pytest.mark.parametrize("shape", Shape)
def test_twice_the_guests_take_less_than_two_and_a_half_times_the_evaluations(shape: Shape) -> None:
    small, large = (sum(whole(*size, shape).evaluations for size in sizes) for sizes in (BASE, DOUBLED))
    assert large < 2.5 * small, f"{small} and {large} evaluations"


@pytest.mark.parametrize("shape", Shape)
def test_a_start_on_one_node_takes_no_more_when_the_other_nodes_hold_more_guests(shape: Shape) -> None:
    """A cluster four times as large in both has as many guests a node: only the number of targets may count."""
    small, large = of_one_start(4, 60, shape).evaluations, of_one_start(16, 240, shape).evaluations
    assert large <= MOST_OF_ONE_START * 16 / 4, f"{small} and {large} evaluations"


MOST = {(3, 12): 2_000, (16, 250): 100_000}
BASE, DOUBLED = ((16, 125),), ((16, 250),)
MOST_OF_ONE_START = 5_000

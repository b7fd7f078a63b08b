# SPDX-License-Identifier: GPL-3.0-or-later
"""When to look again for guests whom something keeps on a node that is to be empty, or away from home, and whose end nobody tells."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.cluster import Maintenance
from agent.core.events import EventKind
from agent.core.plan_types import Balance, Gate, Plan, Refusal
from agent.core.reasons import RefusalReason
from agent.core.triggers import Trigger, joined
from agent.daemon.held import HELD_S, STARTING_S, Again, Held
from agent.daemon.inputs import Now
from tests.core.clusters import NOW, cluster, node, vm
from tests.core.records import event

R = RefusalReason
THERE = replace(cluster(node("pve1"), node("pve2"), vm(101, "pve1"), vm(102, "pve2")), maintenance=(Maintenance("pve1", "flag"),))
TIMER = joined(None, event(EventKind.TIMER, vmid=None, node=None))
STOPPED = joined(None, event(EventKind.GUEST_STOPPED, vmid=103, node="pve2"))


def again(*refused: Refusal, held: Held | None = None, trigger: Trigger = TIMER, at_s: float = 0.0) -> Again | None:
    """After a look in which 101 should leave pve1 and 102 should come home."""
    even = Balance(0.0, ())
    plan = Plan(NOW, "timer", Gate.CLOSED, (), refused, (), even, even)
    return (held or Held()).again(plan, THERE, {102}, trigger, Now(at_s, NOW + at_s))


@pytest.mark.parametrize("reason", [R.LOCKED, R.BUSY])
def test_a_lock_on_a_node_that_is_to_be_empty_is_looked_at_again_as_a_drain(reason: RefusalReason) -> None:
    assert again(Refusal(101, reason)) == Again(HELD_S, frozenset({"pve1"}))


@pytest.mark.parametrize("reason", [R.LOCKED, R.BUSY, R.NODE_STALE, R.NODE_SILENT])
def test_what_keeps_a_guest_from_coming_home_for_a_moment_is_looked_at_again(reason: RefusalReason) -> None:
    assert again(Refusal(102, reason)) == Again(HELD_S, frozenset())


@pytest.mark.parametrize("refusal", [Refusal(101, R.LOCAL_DISK), Refusal(101, R.NO_TARGET), Refusal(102, R.PINNED), Refusal(103, R.LOCKED)])
def test_what_does_not_pass_or_concerns_neither_is_left_to_the_regular_look(refusal: Refusal) -> None:
    assert again(refusal) is None


def test_a_node_that_has_just_booted_is_looked_at_again() -> None:
    assert again(Refusal(102, R.NODE_STARTING)) == Again(STARTING_S, frozenset())
    assert again(Refusal(101, R.NODE_STARTING)) == Again(STARTING_S, frozenset({"pve1"}))


def test_the_longer_it_lasts_the_less_often() -> None:
    held, locked = Held(), Refusal(101, R.LOCKED)
    waits = []
    for at_s in (0.0, 100.0, 400.0, 4000.0):
        found = again(locked, held=held, at_s=at_s)
        assert found is not None
        waits.append(found.at_s - at_s)
    assert waits == [30.0, 30.0, 100.0, 1000.0]
    assert again(held=held, at_s=5000.0) is None
    found = again(locked, held=held, at_s=6000.0)
    assert found is not None
    assert found.at_s == 6000.0 + HELD_S


def test_the_room_that_a_stopped_guest_leaves_shows_in_the_next_numbers() -> None:
    found = again(Refusal(101, R.NO_TARGET), trigger=STOPPED)
    assert found is not None
    assert 10 < found.at_s <= 20
    assert again(Refusal(104, R.NO_TARGET), trigger=STOPPED) is None
    assert again(trigger=STOPPED) is None

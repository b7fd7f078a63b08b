# SPDX-License-Identifier: GPL-3.0-or-later
"""How a request for the HA manager's maintenance ends, and what is said of it: only what happened."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.cluster import ASKED_OF_HA, HaResource, HighAvailability, Maintenance, Snapshot
from agent.core.documents import HaAsk, HaAskState
from agent.core.ha_maintenance import asked_anew, bound_for, judged, ours
from agent.core.settings import Settings
from tests.core.clusters import cluster, node, vm

NODES = (node("pve1"), node("pve2"))
ASKED = frozenset({"pve1"})
NONE: frozenset[str] = frozenset()


def seen(*, closed: bool = False) -> Snapshot:
    snapshot = cluster(*NODES)
    return replace(snapshot, no_target=("pve1",), maintenance=(Maintenance("pve1", ASKED_OF_HA),)) if closed else snapshot


@pytest.mark.parametrize("state", [HaAskState.ASKED, HaAskState.GIVEN_UP])
def test_what_it_never_took_up_is_not_said_to_bring_anybody_home(state: HaAskState) -> None:
    outcome = judged(HaAsk("pve1", 0.0, state), seen(), NONE, False, 200.0)
    assert outcome.ask is not None
    assert (outcome.ask.state, outcome.hand_over) == (HaAskState.RECALLED, False)
    assert "not seen to begin" in outcome.text
    assert "home" not in outcome.text
    assert ours([outcome.ask]) == {"pve1"}, "should it still take it up, that is no admin's request"


@pytest.mark.parametrize("state", [HaAskState.TAKEN, HaAskState.ASKED])
def test_what_it_took_up_is_said_to_bring_its_guests_home(state: HaAskState) -> None:
    outcome = judged(HaAsk("pve1", 0.0, state), seen(closed=True), ASKED, False, 200.0)
    assert outcome.ask is not None
    assert (outcome.ask.state, outcome.hand_over) == (HaAskState.RETURNING, False)
    assert "brings its guests home" in outcome.text


def test_what_it_takes_up_after_all_is_waited_for() -> None:
    outcome = judged(HaAsk("pve1", 0.0, HaAskState.RECALLED), seen(closed=True), ASKED, False, 5.0)
    assert outcome.ask == HaAsk("pve1", 0.0, HaAskState.RETURNING)


def test_both_are_handed_over_until_they_have_been_and_are_over_then() -> None:
    for state in (HaAskState.RETURNING, HaAskState.RECALLED):
        ask = HaAsk("pve1", 0.0, state)
        assert judged(ask, seen(), NONE, False, None).hand_over is False
        assert judged(ask, seen(), NONE, False, 5.0).ask is None


def test_it_is_asked_for_guests_that_it_has_on_the_node_and_for_those_that_it_would_bring_back_there() -> None:
    here = HaResource(101, state="started", node="pve1")
    away = HaResource(102, state="started", node="pve2", maintenance_node="pve1")
    home = HaResource(103, state="started", node="pve2", maintenance_node="pve2")
    snapshot = cluster(*NODES, vm(101, "pve1"), vm(102, "pve2"), vm(103, "pve2"))

    def said(*resources: HaResource) -> str | None:
        outcome = asked_anew(replace(snapshot, ha=HighAvailability(resources)), "pve1", Settings(), 0.0)
        return None if outcome is None else outcome.text.partition(": it ")[2]

    assert said(here, away, home) == "has 1 guest there and brings 1 guest back there"
    assert said(away) == "brings 1 guest back there"
    assert said(replace(away, maintenance_node=None)) is None
    assert said(home) is None


def test_who_is_bound_for_a_node_is_elsewhere() -> None:
    moving = HaResource(101, state="relocate", node="pve2", target="pve1")
    snapshot = replace(cluster(*NODES, vm(101, "pve2")), ha=HighAvailability((moving,)))
    assert bound_for(snapshot, "pve1") == (101,)
    assert bound_for(snapshot, "pve2") == ()
    assert bound_for(replace(cluster(*NODES, vm(101, "pve1")), ha=snapshot.ha), "pve1") == ()
    assert bound_for(replace(cluster(*NODES), ha=snapshot.ha), "pve1") == (), "the guest is gone"

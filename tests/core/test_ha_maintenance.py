# SPDX-License-Identifier: GPL-3.0-or-later
"""How a request for the HA manager's maintenance ends, and what is said of it: only what happened."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.cluster import ASKED_OF_HA, Maintenance, Snapshot
from agent.core.documents import HaAsk, HaAskState
from agent.core.ha_maintenance import judged, ours
from tests.core.clusters import cluster, node

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

# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever stays on a node that is to be empty is told what can be done about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from agent.core.cluster import Maintenance, Snapshot
from agent.core.conditions import leaves_stopped
from agent.core.plan_types import Refusal
from agent.core.planner import plan
from agent.core.question import Question
from agent.core.reasons import RefusalReason
from agent.core.remedies import REMEDY, remedy_of
from agent.core.settings import Settings
from tests.core.clusters import Draw, changed, cluster, ct, node, random_cluster, settings, vm
from tests.core.random_clusters import HOW, PLAIN, draws, remembered
from tests.core.test_planner_cases import BY_ITSELF, SCENES

ONE = cluster(node("pve1"), node("pve2"), vm(101, "pve1"))
MORE = (
    (changed(ONE, "pve1", uptime_s=30.0), PLAIN),
    (changed(ONE, "pve1", online=False), PLAIN),
    (cluster(node("pve1"), node("pve2"), vm(101, "pve1", status="guest-panicked")), PLAIN),
    (cluster(node("pve1"), node("pve2"), ct(101, "pve1")), settings({"guests": {"containers": "never"}})),
)


def met(snapshot: Snapshot, how: Settings, question: Question, name: str) -> set[RefusalReason]:
    """Why those of the node that should leave it stay there, were it to be emptied."""
    drained = replace(snapshot, maintenance=(*snapshot.maintenance, Maintenance(name, "flag")))
    leaving = {
        guest.vmid
        for guest in snapshot.guests
        if guest.node == name and not guest.template and (guest.status != "stopped" or leaves_stopped(guest, how))
    }
    return {refusal.reason for refusal in plan(drained, how, question).refused if refusal.vmid in leaving}


def test_there_is_a_remedy_for_each_reason_that_a_drain_meets_and_for_no_other() -> None:
    found: set[RefusalReason] = set()
    for scene in SCENES.values():
        snapshot, how, question, vmid = scene()
        guest = snapshot.guest(vmid)
        assert guest is not None
        found |= met(snapshot, how, question, guest.node)
    for snapshot, how in MORE:
        found |= met(snapshot, how, Question(), "pve1")
    assert found | BY_ITSELF == set(REMEDY), "which moves that wait for each other may meet in any plan"


@profile(max_examples=60)
@given(draws(60), st.sampled_from(HOW), st.integers(0, 1000))
def test_whatever_the_cluster_no_drain_meets_another(draw: Draw, how: Settings, seed: int) -> None:
    snapshot = random_cluster(draw)
    for one in snapshot.nodes[:3]:
        assert met(snapshot, how, remembered(snapshot, seed), one.name) <= set(REMEDY)


@pytest.mark.parametrize("reason", REMEDY)
def test_it_speaks_of_the_guest_and_leaves_nothing_to_fill_in(reason: RefusalReason) -> None:
    for guest in (vm(101, "pve1"), ct(201, "pve1")):
        text = remedy_of(Refusal(guest.vmid, reason), guest)
        assert "{" not in text
        assert not text.endswith(".")
        if " unlock " in text:
            assert text.endswith("qm unlock 101" if guest.vmid == 101 else "pct unlock 201")
        if "ha-manager set" in text:
            assert guest.label in text

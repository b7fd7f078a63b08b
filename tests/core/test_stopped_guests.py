# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that do not run: they leave in a drain when that is asked for, weigh nothing, and are spread all the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.cluster import GIB, Snapshot
from agent.core.plan_types import Plan
from agent.core.planner import plan
from agent.core.question import Question
from agent.core.reasons import MoveReason, RefusalReason
from agent.core.sentences import stuck_words
from agent.core.settings import Settings
from tests.core.clusters import cluster, ct, node, settings, stopped, vm, wrong_in

THREE = (node("pve1"), node("pve2"), node("pve3"))
ASKED = settings({"drain": {"stopped": True}})


def planned(snapshot: Snapshot, how: Settings = ASKED, question: Question | None = None) -> Plan:
    made = plan(snapshot, how, question)
    assert wrong_in(snapshot, made, how, question) == []
    return made


def moved(made: Plan) -> dict[int, str]:
    return {move.vmid: move.target for move in made.moves}


def test_they_stay_unless_asked() -> None:
    made = planned(cluster(*THREE, stopped(vm(101, "pve1")), drain=["pve1"]), settings())
    assert (made.moves, [refusal.reason for refusal in made.refused]) == ((), [RefusalReason.NOT_RUNNING])


def test_they_leave_with_the_others_and_are_marked_as_not_running() -> None:
    snapshot = cluster(*THREE, stopped(vm(101, "pve1")), vm(102, "pve1"), drain=["pve1"])
    made = planned(snapshot)
    assert {move.vmid: (move.is_running, move.reason) for move in made.moves} == {
        101: (False, MoveReason.MAINTENANCE),
        102: (True, MoveReason.MAINTENANCE),
    }
    assert stuck_words(made, snapshot, ASKED) is None


def test_a_stopped_container_is_not_restarted_and_may_leave_whatever_containers_says() -> None:
    how = settings({"drain": {"stopped": True}, "guests": {"containers": "never"}})
    made = planned(cluster(*THREE, stopped(ct(101, "pve1")), ct(102, "pve1"), drain=["pve1"]), how)
    assert list(moved(made)) == [101]


def test_they_are_spread_by_what_they_would_take() -> None:
    guests = [stopped(replace(vm(101 + i, "pve1"), memory_bytes=gib * GIB)) for i, gib in enumerate((16, 8, 8, 16, 8, 8))]
    there = moved(planned(cluster(*THREE, *guests, drain=["pve1"])))
    gib = {name: sum(guest.memory_bytes for guest in guests if there[guest.vmid] == name) / GIB for name in ("pve2", "pve3")}
    assert max(gib.values()) - min(gib.values()) <= 8
    assert sorted(there) == [101, 102, 103, 104, 105, 106]


@pytest.mark.parametrize("status", ["paused", "unknown", "prelaunch"])
def test_what_neither_runs_nor_is_stopped_stays(status: str) -> None:
    made = planned(cluster(*THREE, vm(101, "pve1", status=status), drain=["pve1"]))
    assert [refusal.reason for refusal in made.refused] == [RefusalReason.STATE]


def test_templates_stay_and_keep_no_node_from_being_empty() -> None:
    snapshot = cluster(*THREE, stopped(vm(101, "pve1", template=True)), drain=["pve1"])
    made = planned(snapshot)
    assert made.moves == ()
    assert stuck_words(made, snapshot, ASKED) is None


def test_who_cannot_leave_is_named_as_keeping_the_node() -> None:
    snapshot = cluster(*THREE, stopped(vm(101, "pve1", lock="suspended")), drain=["pve1"])
    assert "pve1 cannot be emptied: guest 101 (locked) stays" in (stuck_words(planned(snapshot), snapshot, ASKED) or "")
    assert stuck_words(planned(snapshot, settings()), snapshot, settings()) is None  # nobody asked for it to leave


def test_they_move_for_nothing_else() -> None:
    pinned = stopped(vm(101, "pve1", 4, 0.5, "plb_pin_pve2"))
    assert planned(cluster(*THREE, pinned)).moves == ()
    crowd = [vm(200 + i, "pve1", 8, 2) for i in range(12)]
    made = planned(cluster(*THREE, stopped(vm(101, "pve1", 60)), *crowd), ASKED, Question(force=True))
    assert made.moves
    assert 101 not in moved(made)


def test_they_weigh_nothing_also_where_configured_memory_counts() -> None:
    how = settings({"drain": {"stopped": True}, "balance": {"memory": {"measure": "assigned"}, "assigned_memory_cap_percent": 100}})
    made = plan(cluster(*THREE, stopped(vm(101, "pve1", 200)), vm(201, "pve2"), drain=["pve1"]), how)
    assert list(moved(made)) == [101]
    assert made.after.imbalance == made.before.imbalance


def test_they_come_home() -> None:
    made = planned(cluster(*THREE, stopped(vm(101, "pve2"))), ASKED, Question(homes={101: "pve1"}))
    assert {move.vmid: (move.target, move.reason) for move in made.moves} == {101: ("pve1", MoveReason.RETURN_HOME)}


def test_several_nodes_that_are_stuck_say_what_helps_once() -> None:
    locked = [stopped(vm(101 + i, name, lock="suspended")) for i, name in enumerate(("pve1", "pve2"))]
    snapshot = cluster(*THREE, *locked, drain=["pve1", "pve2"])
    assert stuck_words(planned(snapshot), snapshot, ASKED) == (
        "pve1 cannot be emptied: guest 101 (locked) stays; pve2 cannot be emptied: guest 102 (locked) stays; "
        "what keeps each: proxlb-agent explain VMID"
    )

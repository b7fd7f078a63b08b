# SPDX-License-Identifier: GPL-3.0-or-later
"""Explanations: each node with its gain or its refusal, in agreement with the planner."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.cluster import GIB, Guest, GuestType, Maintenance, Node, Snapshot
from agent.core.explain import explain, why_no_target
from agent.core.goal import Goal
from agent.core.placement import Placement
from agent.core.planner import plan
from agent.core.question import Question
from agent.core.reasons import RefusalReason
from agent.core.settings import ContainerPolicy, GuestSettings, NodeSettings, Settings

DAY_S = 86400.0


def node(name: str, used_gib: float = 10.0, **more: object) -> Node:
    made = Node(name, True, 16.0, 64 * GIB, 2.0, int(used_gib * GIB), DAY_S)
    return replace(made, **more)  # type: ignore[arg-type]


def guest(vmid: int, on: str, gib: float = 4.0, **more: object) -> Guest:
    made = Guest(vmid, GuestType.QEMU, f"vm{vmid}", on, "running", 4.0, int(8 * GIB), 1.0, int(gib * GIB), None, DAY_S)
    return replace(made, **more)  # type: ignore[arg-type]


def cluster(*guests: Guest, full: float = 56.0) -> Snapshot:
    return Snapshot(1.0, (node("pve1", full), node("pve2"), node("pve3", 20.0)), guests)


def test_every_node_is_there_once_by_name() -> None:
    found = explain(cluster(guest(101, "pve1")), Settings(), Question(), 101)
    assert found is not None
    assert [target.node for target in found.targets] == ["pve1", "pve2", "pve3"]
    assert [target.refusal.reason if target.refusal else None for target in found.targets] == [RefusalReason.SAME_NODE, None, None]


def test_no_such_guest_has_no_explanation() -> None:
    assert explain(cluster(), Settings(), Question(), 101) is None


def test_the_best_target_and_its_gain_are_the_planners() -> None:
    snapshot = cluster(guest(101, "pve1", 12.0), full=60.0)
    found = explain(snapshot, Settings(), Question(), 101)
    (move,) = plan(snapshot, Settings()).moves
    assert found is not None
    assert found.best is not None
    assert (found.best.node, found.best.gain) == (move.target, pytest.approx(move.gain))
    assert (found.best.net or 0.0) > 0


def test_a_move_that_does_not_pay_has_no_net_gain() -> None:
    found = explain(cluster(guest(101, "pve1"), full=10.0), Settings(), Question(), 101)
    assert found is not None
    assert found.best is not None
    assert found.best.net is not None
    assert found.best.net < 0


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"tags": ("plb_ignore",)}, RefusalReason.IGNORED),
        ({"status": "paused"}, RefusalReason.STATE),
        ({"status": "stopped"}, RefusalReason.NOT_RUNNING),
        ({"lock": "backup"}, RefusalReason.LOCKED),
        ({"type": GuestType.LXC}, RefusalReason.CONTAINER),
        ({"template": True, "status": "stopped"}, RefusalReason.TEMPLATE),
        ({"ha": "started"}, RefusalReason.HA_BUSY),
    ],
)
def test_what_keeps_the_guest_is_named_and_the_nodes_still_shown(more: dict[str, object], reason: RefusalReason) -> None:
    found = explain(cluster(guest(101, "pve1", **more)), Settings(), Question(), 101)
    assert found is not None
    assert found.stays is not None
    assert found.stays.reason is reason
    assert len(found.targets) == 3


def test_cooldown_and_being_set_aside_keep_it() -> None:
    snapshot = cluster(guest(101, "pve1"))
    for question, reason in (
        (Question(cooling={101: "moved 5 minutes ago"}), RefusalReason.COOLDOWN),
        (Question(set_aside={101: "it failed"}), RefusalReason.SET_ASIDE),
    ):
        found = explain(snapshot, Settings(), question, 101)
        assert found is not None
        assert found.stays is not None
        assert found.stays.reason is reason


def test_rules_are_told_and_refuse_nodes() -> None:
    pinned = guest(101, "pve1", tags=("plb_pin_pve1", "plb_pin_pve3", "plb_anti_affinity_db"))
    found = explain(cluster(pinned, guest(102, "pve3", tags=("plb_anti_affinity_db",))), Settings(), Question(), 101)
    assert found is not None
    assert (found.pins, found.apart, found.together) == (("pve1", "pve3"), (102,), ())
    reasons = {target.node: target.refusal.reason for target in found.targets if target.refusal is not None}
    assert reasons == {"pve1": RefusalReason.SAME_NODE, "pve2": RefusalReason.PINNED, "pve3": RefusalReason.ANTI_AFFINITY}
    assert found.best is None


def test_a_group_moves_as_one() -> None:
    tags = ("plb_affinity_app",)
    found = explain(cluster(guest(101, "pve1", tags=tags), guest(102, "pve1", 6.0, tags=tags)), Settings(), Question(), 102)
    assert found is not None
    assert (found.unit, found.together, found.load.memory_bytes) == ((101, 102), (101,), 10 * GIB)


def test_a_node_that_is_to_be_emptied_lets_containers_go() -> None:
    snapshot = replace(cluster(guest(101, "pve1", type=GuestType.LXC)), maintenance=(Maintenance("pve1", "flag"),))
    found = explain(snapshot, Settings(), Question(), 101)
    assert found is not None
    assert found.drains
    assert found.stays is None
    never = Settings(guests=GuestSettings(containers=ContainerPolicy.NEVER))
    found = explain(snapshot, never, Question(), 101)
    assert found is not None
    assert found.stays is not None


def test_terms_gain_cost_and_net_belong_together() -> None:
    snapshot = cluster(guest(101, "pve1", 12.0), full=60.0)
    cost = Goal(Placement(snapshot, Settings(), Question())).cost(12 * GIB, 0)
    found = explain(snapshot, Settings(), Question(), 101)
    assert found is not None
    own, *others = found.targets
    assert (own.terms, own.gain, own.cost, own.net) == ((), None, None, None)
    for target in others:
        terms = dict(target.terms)
        assert list(terms) == ["cpu", "memory", "overload"]
        assert target.gain == pytest.approx(terms["cpu"] + terms["memory"])
        assert target.cost == pytest.approx(cost)
        assert target.net == pytest.approx(sum(terms.values()) - (target.cost or 0.0))
        assert terms["overload"] > 0


def test_the_goal_is_shown_as_it_is_and_with_the_best_target() -> None:
    found = explain(cluster(guest(101, "pve1", 12.0), full=60.0), Settings(), Question(), 101)
    assert found is not None
    assert found.best is not None
    taken_off = sum(row.weight * (row.before - row.after) for row in found.goal)
    assert taken_off - (found.best.cost or 0.0) == pytest.approx(found.best.net)
    stuck = explain(cluster(guest(101, "pve1", 4.0, tags=("plb_pin_pve1",))), Settings(), Question(), 101)
    assert stuck is not None
    assert [row.after for row in stuck.goal] == [row.before for row in stuck.goal]


def test_a_broken_pin_is_named_and_a_threshold_is_no_reason_against_putting_it_right() -> None:
    pinned = guest(101, "pve1", 4.0, tags=("plb_pin_pve3",))
    snapshot = replace(cluster(pinned), nodes=(node("pve1"), node("pve2"), node("pve3", 53.0)))
    found = explain(snapshot, Settings(), Question(cooling={101: "moved"}), 101)
    assert found is not None
    assert found.broken == ("it is pinned to pve3",)
    assert found.stays is None
    assert found.best is not None
    assert [found.best.node] == [move.target for move in plan(snapshot, Settings()).moves] == ["pve3"]


def test_who_must_be_apart_and_is_not_is_told() -> None:
    tags = ("plb_anti_affinity_db",)
    found = explain(cluster(guest(101, "pve1", tags=tags), guest(102, "pve1", tags=tags)), Settings(), Question(), 102)
    assert found is not None
    assert found.broken == ("guest 101, from which it must be apart, is on its node",)


def test_a_group_that_is_split_is_gathered_with_the_fewest_moves() -> None:
    tags = ("plb_affinity_app",)
    guests = guest(101, "pve1", tags=tags), guest(102, "pve2", tags=tags), guest(103, "pve2", tags=tags)
    snapshot = replace(cluster(*guests), nodes=(node("pve1"), node("pve2"), node("pve3")))
    found = explain(snapshot, Settings(), Question(), 103)
    assert found is not None
    assert (found.unit, found.broken) == ((101, 102, 103), ("guest 101, with which it must be, is on pve1",))
    assert {target.node: target.moving for target in found.targets} == {"pve1": 2, "pve2": 1, "pve3": 3}
    assert found.best is not None
    assert [(move.target, move.vmid) for move in plan(snapshot, Settings()).moves] == [("pve2", 101)]
    assert found.best.node == "pve2"


def test_of_a_split_group_who_stays_keeps_the_others_from_going_elsewhere() -> None:
    tags = ("plb_affinity_app",)
    guests = guest(101, "pve1", tags=tags, lock="backup"), guest(102, "pve2", tags=tags)
    snapshot = replace(cluster(*guests), nodes=(node("pve1"), node("pve2"), node("pve3")))
    found = explain(snapshot, Settings(), Question(), 102)
    assert found is not None
    assert {target.node: target.refusal and target.refusal.reason for target in found.targets} == {
        "pve1": None,
        "pve2": RefusalReason.LOCKED,
        "pve3": RefusalReason.LOCKED,
    }


def test_nothing_is_changed_by_asking() -> None:
    snapshot = cluster(guest(101, "pve1"), guest(102, "pve2"))
    assert explain(snapshot, Settings(), Question(), 101) == explain(snapshot, Settings(), Question(), 101)


def test_why_nodes_take_nobody() -> None:
    nodes = (
        node("pve1", online=False, cpu_used_cores=None, memory_used_bytes=None),
        node("pve2", uptime_s=30.0),
        node("pve3", reports=False),
        node("pve4", sample_age_s=100.0),
        node("pve5"),
        node("pve6"),
        node("pve7", 63.9),
    )
    snapshot = replace(Snapshot(1.0, nodes, ()), maintenance=(Maintenance("pve5", "flag"),))
    found = why_no_target(snapshot, Settings(nodes=NodeSettings(ignore=("PVE6",))))
    assert {name: refusal.reason if refusal else None for name, refusal in found.items()} == {
        "pve1": RefusalReason.NODE_OFFLINE,
        "pve2": RefusalReason.NODE_STARTING,
        "pve3": RefusalReason.NODE_SILENT,
        "pve4": RefusalReason.NODE_STALE,
        "pve5": RefusalReason.NODE_MAINTENANCE,
        "pve6": RefusalReason.NODE_IGNORED,
        "pve7": None,  # full, but that depends on the guest
    }

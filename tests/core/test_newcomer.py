# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a guest that does not exist yet would best be: limits and rules as for any other guest, and the least harm to the balance."""

from __future__ import annotations

import pytest

from agent.core.cluster import GIB, GuestType, Snapshot
from agent.core.newcomer import Placing, newcomer, place
from agent.core.planner import plan
from agent.core.question import Question
from agent.core.reasons import RefusalReason
from tests.core.clusters import Draw, after_moves, cluster, node, random_cluster, settings, vm

PLAIN = settings()
NODES = node("pve1"), node("pve2"), node("pve3")


def placed(snapshot: Snapshot, *tags: str, gib: float = 8.0, cores: float = 4.0, kind: GuestType = GuestType.QEMU) -> Placing:
    return place(snapshot, PLAIN, Question(), newcomer(gib, cores, kind, tags, None))


def best(found: Placing) -> str | None:
    return None if found.best is None else found.best.node


def refusals(found: Placing) -> dict[str, RefusalReason]:
    return {target.node: target.refusal.reason for target in found.targets if target.refusal is not None}


def test_it_counts_as_the_ledger_expects_a_guest_never_measured() -> None:
    found = placed(cluster(*NODES))
    assert (found.load.cpu_cores, found.load.memory_bytes) == (1.0, pytest.approx(0.7 * 8 * GIB))


def test_the_emptiest_node_is_best() -> None:
    found = placed(cluster(*NODES, vm(101, "pve1", 40, 4), vm(102, "pve3", 30, 3)))
    assert best(found) == "pve2"
    assert [target.node for target in found.targets] == ["pve1", "pve2", "pve3"]
    assert all(target.cost == 0.0 for target in found.targets)


def test_the_goal_with_it_is_that_of_the_cluster_that_has_it() -> None:
    snapshot = cluster(*NODES, vm(101, "pve1", 40, 4), vm(102, "pve3", 30, 3))
    found = placed(snapshot)
    with_it = cluster(*NODES, *snapshot.guests, vm(500, "pve2", 0.7 * 8, 1.0))
    imbalance = plan(with_it, PLAIN).before.imbalance
    assert sum(row.weight * row.after for row in found.goal if row.name != "overload") == pytest.approx(imbalance, abs=1e-6)


def test_a_node_without_room_is_refused() -> None:
    full = [vm(100 + i, "pve2", 23, 1) for i in range(5)]
    found = placed(cluster(*NODES, *full, vm(120, "pve1", 60, 1), vm(130, "pve3", 60, 1)), gib=100.0)
    assert refusals(found) == {"pve1": RefusalReason.NO_MEMORY, "pve2": RefusalReason.NO_MEMORY, "pve3": RefusalReason.NO_MEMORY}
    assert best(found) is None
    assert [row.after for row in found.goal] == [row.before for row in found.goal]


def test_nodes_that_take_nobody_are_refused() -> None:
    found = placed(cluster(*NODES, drain=["pve1"], no_target=("pve2",)))
    assert best(found) == "pve3"
    assert refusals(found) == {"pve1": RefusalReason.NODE_MAINTENANCE, "pve2": RefusalReason.NODE_MAINTENANCE}


class TestRules:
    def test_away_from_those_it_must_be_apart_from(self) -> None:
        guests = vm(101, "pve1", 2, 0.1, "plb_anti_affinity_db"), vm(102, "pve2", 2, 0.1, "plb_anti_affinity_db"), vm(103, "pve3", 50, 5)
        found = placed(cluster(*NODES, *guests), "plb_anti_affinity_db")
        assert best(found) == "pve3"
        assert refusals(found) == {"pve1": RefusalReason.ANTI_AFFINITY, "pve2": RefusalReason.ANTI_AFFINITY}

    def test_to_where_its_group_is(self) -> None:
        guests = vm(101, "pve1", 50, 5, "plb_affinity_app"), vm(102, "pve1", 2, 0.1, "plb_affinity_app")
        found = placed(cluster(*NODES, *guests), "plb_affinity_app")
        assert best(found) == "pve1"
        assert refusals(found) == {"pve2": RefusalReason.AFFINITY, "pve3": RefusalReason.AFFINITY}

    def test_to_where_it_is_pinned(self) -> None:
        found = placed(cluster(*NODES, vm(101, "pve2", 50, 5)), "plb_pin_pve2", "plb_pin_PVE9")
        assert best(found) == "pve2"
        assert [conflict.rule for conflict in found.conflicts] == ["plb_pin_PVE9"]

    def test_nowhere_when_its_rules_contradict_each_other(self) -> None:
        guests = vm(101, "pve1", 2, 0.1, "plb_affinity_app", "plb_anti_affinity_app"), vm(102, "pve2", 2, 0.1, "plb_affinity_app")
        found = placed(cluster(*NODES, *guests), "plb_affinity_app", "plb_anti_affinity_app")
        assert best(found) is None
        assert found.conflicts

    def test_conflicts_of_others_are_not_its_own(self) -> None:
        assert placed(cluster(*NODES, vm(101, "pve1", 2, 0.1, "plb_pin_nowhere"))).conflicts == ()

    def test_a_container_may_be_made_anywhere(self) -> None:
        assert refusals(placed(cluster(*NODES), kind=GuestType.LXC)) == {}


def test_a_node_that_would_stand_over_its_threshold_is_a_last_resort() -> None:
    guests = vm(101, "pve1", 100, 1), vm(102, "pve2", 100, 1), vm(103, "pve3", 95, 20)
    found = placed(cluster(*NODES, *guests), gib=16.0)  # 11.2 GiB: 113 of 108.8 on the first two, 108.2 on the third
    assert best(found) == "pve3"
    assert refusals(found) == {}
    assert dict(found.targets[0].terms)["overload"] < 0


def test_on_random_clusters_the_best_node_has_room_and_nobody_is_better() -> None:
    found_one = 0
    for seed in range(25):
        snapshot = random_cluster(Draw(seed, 6, 80, 1.0, 0.75, 0.3, 0.2))
        found = placed(snapshot, gib=24.0)
        if found.best is None:
            continue
        found_one += 1
        allowed = [target for target in found.targets if target.refusal is None]
        assert max(allowed, key=lambda target: target.net or 0.0).net == found.best.net
        load = {one.name: one for one in after_moves(snapshot, ()).nodes}[found.best.node]
        assert (load.memory_used_bytes or 0) + 0.7 * 24 * GIB <= 0.95 * load.memory_bytes
    assert found_one > 10

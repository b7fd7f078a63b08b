# SPDX-License-Identifier: GPL-3.0-or-later
"""What the planner does in cases that have gone wrong elsewhere, with each reason it can give, and with numbers that are none."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from agent.core import planner
from agent.core.cluster import (
    GIB,
    Guest,
    HaNodeAffinity,
    HaResource,
    HaResourceAffinity,
    HighAvailability,
    Maintenance,
    NodeFacts,
    Snapshot,
)
from agent.core.codec import to_json
from agent.core.guest_load import GuestLoad, InFlight, Ledger
from agent.core.imbalance import Weights, over_threshold
from agent.core.node_load import node_loads
from agent.core.order import into_batches
from agent.core.placement import Placement
from agent.core.plan_types import Gate, Plan, Refusal, Verdict
from agent.core.planner import conflicts_of, plan
from agent.core.question import Question, Scope
from agent.core.reasons import MoveReason, RefusalReason
from agent.core.settings import Settings
from agent.core.steps import Step
from tests.core.clusters import (
    NOW,
    Draw,
    after_moves,
    changed,
    cluster,
    ct,
    node,
    random_cluster,
    settings,
    started,
    stopped,
    task,
    vm,
    wrong_in,
)
from tests.core.needs import FACTS, equipped, needing, volume

PLAIN = settings()
FORCE = Question(force=True)
THREE = (node("pve1"), node("pve2"), node("pve3"))
TWO_NODES = THREE[:2]


def planned(snapshot: Snapshot, how: Settings = PLAIN, question: Question | None = None) -> Plan:
    """The plan, once the checker has found nothing wrong in it."""
    result = plan(snapshot, how, question)
    assert wrong_in(snapshot, result, how, question) == []
    return result


def moves_of(result: Plan) -> list[tuple[int, str, str]]:
    return [(move.vmid, move.target, move.reason.value) for move in result.moves]


def reason_of(result: Plan, vmid: int) -> str | None:
    return next((refusal.reason.value for refusal in result.refused if refusal.vmid == vmid), None)


def steady(question: Question | None = None, how: Settings = PLAIN, rounds: int = 5) -> Callable[[Snapshot], list[int]]:
    """Plan and migrate again and again: the number of moves each time."""

    def counts(snapshot: Snapshot) -> list[int]:
        found = []
        for _ in range(rounds):
            result = planned(snapshot, how, question)
            found.append(len(result.moves))
            snapshot = after_moves(snapshot, result.moves)
        return found

    return counts


def crowd(name: str, count: int = 20, first: int = 500, gib: float = 5.0) -> list[Guest]:
    """Guests that make a node busy and stay there."""
    return [vm(first + i, name, gib, 0.2, "plb_ignore") for i in range(count)]


# --- Cases where others go wrong ---------------------------------------------------------------------------------------------------


def test_a_split_affinity_group_off_the_hottest_node_is_joined_with_one_move() -> None:
    snapshot = cluster(*THREE, *crowd("pve1", 12), vm(101, "pve2", 8, 1, "plb_affinity_db"), vm(102, "pve3", 2, 1, "plb_affinity_db"))
    assert moves_of(planned(snapshot)) == [(102, "pve2", "affinity")]


def test_a_pinned_guest_off_the_hottest_node_goes_where_it_belongs_and_nobody_else_moves() -> None:
    snapshot = cluster(*THREE, *[vm(200 + i, "pve1", 5) for i in range(4)], vm(101, "pve2", 4, 0.5, "plb_pin_PVE3"))
    assert moves_of(planned(snapshot)) == [(101, "pve3", "pin")]


def test_anti_affine_guests_off_the_hottest_node_part_and_nobody_else_moves() -> None:
    pair = [vm(101, "pve2", 8, 1, "plb_anti_affinity_db"), vm(102, "pve2", 2, 1, "plb_anti_affinity_db")]
    assert moves_of(planned(cluster(*THREE, *[vm(200 + i, "pve1", 5) for i in range(4)], *pair))) == [(102, "pve3", "anti-affinity")]


def test_below_the_threshold_nobody_moves_when_the_spread_does_not_count() -> None:
    snapshot = cluster(*THREE, *[vm(101 + i, "pve1", 6.2, 1) for i in range(10)])
    result = planned(snapshot, settings({"balance": {"spread_percent": 0, "memory": {"threshold_percent": 75}}}))
    assert (result.gate, result.moves, result.refused) == (Gate.CLOSED, (), ())
    assert planned(snapshot).gate is Gate.SPREAD


def test_a_single_big_guest_is_left_alone() -> None:
    """Nodes at 62 % and 50 %, one guest is 40 points of it: moved, they would be at 22 % and 90 %."""
    two = (node("pve1", 100), node("pve2", 100))
    snapshot = cluster(*two, vm(101, "pve1", 40, 1), *crowd("pve1", 4), *[vm(600 + i, "pve2", 6, 0.2, "plb_ignore") for i in range(8)])
    assert planned(snapshot, PLAIN, FORCE).moves == ()


def test_an_empty_node_in_maintenance_is_no_target_and_no_part_of_the_spread() -> None:
    snapshot = cluster(*THREE, *[vm(101 + i, f"pve{1 + i % 2}", 8, 1) for i in range(12)], drain=["pve3"])
    result = planned(snapshot)
    assert (result.gate, result.moves) == (Gate.CLOSED, ())
    assert planned(snapshot, PLAIN, FORCE).moves == ()
    assert result.before.imbalance < 0.01


def test_of_a_drained_node_what_fits_leaves_and_the_rest_is_named() -> None:
    guests = [vm(101 + i, "pve1", 20, 1) for i in range(5)]
    full = [vm(200 + 10 * n + i, f"pve{n}", 19, 1) for n in (2, 3) for i in range(5)]
    result = planned(
        cluster(*THREE, *guests, *full, drain=["pve1"]), settings({"balance": {"spread_percent": 0, "memory": {"threshold_percent": 0}}})
    )
    assert {move.vmid for move in result.moves} | {refusal.vmid for refusal in result.refused} == {101, 102, 103, 104, 105}
    assert [move.reason for move in result.moves] == [MoveReason.MAINTENANCE] * len(result.moves)
    assert len(result.moves) == 2
    refusal = result.refused[0]
    assert (refusal.reason, "no-memory on pve2, pve3 (" in refusal.detail) == (RefusalReason.NO_TARGET, True)


def test_a_drained_node_keeps_the_rules_and_names_who_cannot_leave() -> None:
    guests = [
        vm(101, "pve1", 4, 0.5, "plb_pin_pve1"),
        vm(102, "pve1", 4, 0.5, "plb_anti_affinity_a"),
        vm(103, "pve2", 4, 0.5, "plb_anti_affinity_a"),
        vm(104, "pve3", 4, 0.5, "plb_anti_affinity_a"),
        vm(105, "pve1", 4, 0.5, "plb_affinity_b"),
        vm(106, "pve1", 4, 0.5, "plb_affinity_b"),
        vm(107, "pve1", 4, 0.5, "plb_pin_pve3"),
    ]
    result = planned(cluster(*THREE, *guests, drain=["pve1"]))
    assert {move.vmid: move.target for move in result.moves}[107] == "pve3"
    assert len({move.target for move in result.moves if move.vmid in (105, 106)}) == 1
    assert [(refusal.vmid, refusal.reason.value) for refusal in result.refused] == [(101, "no-target"), (102, "no-target")]
    assert result.refused[0].detail == "pinned on pve2, pve3 (plb_pin_pve1)"
    assert "anti-affinity on pve2 (guest 103 is there; plb_anti_affinity_a)" in result.refused[1].detail


@pytest.mark.parametrize(
    "guests",
    [
        [vm(101, "pve1", 40, 4), vm(102, "pve1", 40, 4)],
        [vm(101 + i, f"pve{1 + i // 2}", 20, 2, "plb_anti_affinity_a") for i in range(3)],
        [vm(101 + i, "pve1", 9, 0.1 * i) for i in range(7)],
    ],
    ids=["two free guests", "three anti-affine guests on two nodes", "seven guests"],
)
def test_static_load_moves_at_most_what_helps_once(guests: list[Guest]) -> None:
    for question in (Question(), FORCE):
        counts = steady(question)(cluster(node("pve1"), node("pve2"), *guests))
        assert counts[1:] == [0, 0, 0, 0]
        assert counts[0] <= len(guests) // 2


def test_when_the_best_guest_is_ignored_another_one_goes() -> None:
    snapshot = cluster(
        *THREE,
        vm(101, "pve1", 30, 2, "plb_ignore_backup"),
        vm(102, "pve1", 30, 2),
        vm(103, "pve1", 30, 2),
        *[vm(110 + i, "pve1", 6) for i in range(3)],
    )
    result = planned(snapshot)
    assert result.moves
    assert 101 not in {move.vmid for move in result.moves}
    assert {move.vmid for move in result.moves} >= {102, 103}


def test_guests_of_one_name_are_told_apart() -> None:
    snapshot = cluster(
        *THREE, vm(101, "pve2", 4, 0.5, "plb_pin_pve1", name="web"), vm(102, "pve2", 4, name="web"), vm(103, "pve1", 4, name="web")
    )
    assert moves_of(planned(snapshot)) == [(101, "pve1", "pin")]


def test_cpu_is_counted_in_cores() -> None:
    """Six guests that use all of their one core are a small part of a node of 32."""
    nodes = (node("pve1", cores=32), node("pve2", cores=32))
    quiet = cluster(*nodes, *[vm(101 + i, "pve1", 1, 1.0, cpu_cores=1.0) for i in range(6)])
    assert planned(quiet).moves == ()
    busy = cluster(*nodes, *[vm(101 + i, "pve1", 1, 2.2, cpu_cores=16.0) for i in range(12)])
    result = planned(busy)
    assert result.gate is Gate.OVERLOAD
    assert len(result.moves) == 6


# --- Gates -------------------------------------------------------------------------------------------------------------------------

UNEVEN = cluster(*THREE, *[vm(101 + i, "pve1", 6, 1) for i in range(10)])  # 49 % of pve1's memory, nothing elsewhere
HOT = cluster(*THREE, *[vm(101 + i, "pve1", 9, 1) for i in range(12)], *[vm(201 + i, f"pve{2 + i % 2}", 9, 1) for i in range(16)])
ONLY_THRESHOLD = settings({"balance": {"spread_percent": 0}})
NEITHER = settings({"balance": {"spread_percent": 0, "cpu": {"threshold_percent": 0}, "memory": {"threshold_percent": 0}}})


@pytest.mark.parametrize(
    ("snapshot", "how", "question", "gate"),
    [
        (UNEVEN, PLAIN, Question(), Gate.SPREAD),
        (UNEVEN, ONLY_THRESHOLD, Question(), Gate.CLOSED),
        (UNEVEN, ONLY_THRESHOLD, FORCE, Gate.FORCED),
        (UNEVEN, ONLY_THRESHOLD, Question(opened_by=Gate.SPREAD), Gate.SPREAD),
        (UNEVEN, settings({"balance": {"spread_percent": 60}}), Question(), Gate.CLOSED),
        (HOT, PLAIN, Question(), Gate.OVERLOAD),
        (HOT, ONLY_THRESHOLD, Question(), Gate.OVERLOAD),
        (HOT, ONLY_THRESHOLD, Question(held=frozenset()), Gate.CLOSED),
        (HOT, ONLY_THRESHOLD, Question(held=frozenset({"pve1"})), Gate.OVERLOAD),
        (HOT, NEITHER, Question(), Gate.CLOSED),
        (HOT, PLAIN, Question(scope=Scope(frozenset({"pve1"}))), Gate.OVERLOAD),
        (HOT, PLAIN, Question(scope=Scope(frozenset({"pve2"}))), Gate.CLOSED),
        (UNEVEN, PLAIN, Question(scope=Scope(frozenset({"pve1"}))), Gate.SPREAD),
        (UNEVEN, PLAIN, Question(scope=Scope(frozenset({"pve3"}))), Gate.CLOSED),
        (HOT, PLAIN, Question(balance_load=False), Gate.CLOSED),
    ],
)
def test_load_balancing_begins_at_a_gate(snapshot: Snapshot, how: Settings, question: Question, gate: Gate) -> None:
    result = planned(snapshot, how, question)
    assert result.gate is gate
    assert bool(result.moves) == (gate is not Gate.CLOSED)
    words = {Gate.OVERLOAD: "overload", Gate.SPREAD: "spread", Gate.FORCED: "manual"}
    assert {move.reason.value for move in result.moves} <= {words.get(gate)}


def test_a_scope_takes_load_only_from_its_nodes() -> None:
    result = planned(HOT, PLAIN, Question(scope=Scope(frozenset({"pve1"}))))
    assert {move.source for move in result.moves} == {"pve1"}


def test_a_scope_repairs_only_its_guests_rules() -> None:
    snapshot = cluster(*THREE, vm(101, "pve2", 4, 0.5, "plb_pin_pve1"), vm(102, "pve2", 4, 0.5, "plb_pin_pve1"))
    assert moves_of(planned(snapshot, PLAIN, Question(scope=Scope(frozenset(), frozenset({102}))))) == [(102, "pve1", "pin")]


def test_rules_are_left_alone_when_they_are_switched_off() -> None:
    snapshot = cluster(*THREE, vm(101, "pve2", 4, 0.5, "plb_pin_pve1"))
    assert planned(snapshot, PLAIN, Question(repair_rules=False)).moves == ()
    assert planned(snapshot, settings({"rules": {"tags": "off"}})).moves == ()


def test_a_plan_that_gains_next_to_nothing_is_not_made() -> None:
    gain = planned(UNEVEN).before.imbalance - planned(UNEVEN).after.imbalance
    more = settings({"balance": {"min_gain_percent": math.ceil(100 * gain)}})
    result = planned(UNEVEN, more)
    assert (result.gate, result.moves) == (Gate.SPREAD, ())
    assert {refusal.reason for refusal in result.refused} == {RefusalReason.NO_GAIN}
    assert planned(UNEVEN, more, FORCE).moves, "who asks for it gets it"
    less = settings({"balance": {"min_gain_percent": math.floor(100 * gain) - 1}})
    assert planned(UNEVEN, less).moves == planned(UNEVEN).moves


def test_a_repair_stands_when_the_load_balancing_after_it_gains_too_little() -> None:
    snapshot = cluster(*THREE, *[vm(101 + i, "pve1", 6, 1) for i in range(10)], vm(120, "pve2", 4, 0.5, "plb_pin_pve3"))
    assert moves_of(planned(snapshot, settings({"balance": {"min_gain_percent": 90}}))) == [(120, "pve3", "pin")]


# --- The ledger --------------------------------------------------------------------------------------------------------------------


def test_a_fresh_guest_counts_with_70_percent_of_its_memory_and_a_quarter_of_its_cores() -> None:
    fresh = started(vm(101, "pve1", 40, 8))  # 50 GiB, 16 cores
    load = node_loads(cluster(*THREE, fresh), Ledger(), PLAIN)["pve1"]
    assert load.memory_used_bytes / GIB == pytest.approx(2 + 0.7 * 50)
    assert load.cpu_used_cores == pytest.approx(0.5 + 0.25 * 16)


def test_a_fresh_guest_counts_with_what_is_known_of_it() -> None:
    load = node_loads(cluster(*THREE, started(vm(101, "pve1", 40, 8))), Ledger({101: GuestLoad(1.0, 10 * GIB)}), PLAIN)["pve1"]
    assert (load.cpu_used_cores, load.memory_used_bytes / GIB) == (pytest.approx(1.5), pytest.approx(12))


def test_a_fresh_guest_that_already_takes_more_counts_with_that() -> None:
    fresh = replace(vm(101, "pve1", 40, 8), uptime_s=10.0)
    load = node_loads(cluster(*THREE, fresh), Ledger({101: GuestLoad(1.0, 10 * GIB)}), PLAIN)["pve1"]
    assert load.memory_used_bytes / GIB == pytest.approx(42)


def test_after_two_samples_the_measured_load_counts() -> None:
    load = node_loads(cluster(*THREE, replace(vm(101, "pve1", 4, 1), uptime_s=25.0)), Ledger({101: GuestLoad(9.0, 90 * GIB)}), PLAIN)[
        "pve1"
    ]
    assert load.memory_used_bytes / GIB == pytest.approx(6)


def test_a_start_that_will_overload_its_node_is_answered_before_the_load_is_there() -> None:
    old = [vm(101 + i, "pve1", 10, 1) for i in range(9)]
    snapshot = cluster(*THREE, *old, started(vm(120, "pve1", 32, 2)))
    result = planned(snapshot, ONLY_THRESHOLD)
    assert result.gate is Gate.OVERLOAD
    assert over_threshold(node_loads(after_moves(snapshot, result.moves), Ledger(), PLAIN)["pve1"], Weights.of(PLAIN)) is None


FLYING = InFlight(101, "pve1", "pve2", GuestLoad(2.0, 60 * GIB))


def test_a_guest_in_flight_counts_on_both_of_its_nodes_for_who_must_fit() -> None:
    flying = vm(101, "pve1", 60, 2)
    for pinned_to in ("pve1", "pve2"):
        snapshot = cluster(*THREE, flying, vm(102, "pve3", 70, 2, f"plb_pin_{pinned_to}"))
        question = Question(ledger=Ledger(in_flight=(FLYING,)), balance_load=False)
        result = planned(snapshot, PLAIN, question)
        assert (result.moves, reason_of(result, 102)) == ((), "no-target")
        assert moves_of(planned(cluster(*THREE, vm(102, "pve3", 70, 2, f"plb_pin_{pinned_to}")))) == [(102, pinned_to, "pin")]


def test_a_guest_in_flight_counts_for_balance_where_it_goes() -> None:
    load = node_loads(cluster(*THREE, vm(101, "pve1", 60, 2)), Ledger(in_flight=(FLYING,)), PLAIN)
    assert (load["pve1"].memory_used_bytes / GIB, load["pve1"].leaving_memory_bytes / GIB) == (pytest.approx(2), pytest.approx(60))
    assert load["pve2"].memory_used_bytes / GIB == pytest.approx(62)


@pytest.mark.parametrize("place", ["pve1", "pve2"])
def test_a_container_that_is_down_while_it_migrates_counts_where_it_will_start(place: str) -> None:
    snapshot = cluster(*THREE, stopped(ct(101, place, 60, 2)))
    load = node_loads(snapshot, Ledger(in_flight=(FLYING,)), PLAIN)
    assert load["pve2"].memory_used_bytes / GIB == pytest.approx(62)
    assert load["pve1"].leaving_memory_bytes / GIB == pytest.approx(60 if place == "pve1" else 0)


def test_a_guest_that_has_arrived_counts_once() -> None:
    load = node_loads(cluster(*THREE, vm(101, "pve2", 60, 2)), Ledger(in_flight=(FLYING,)), PLAIN)
    assert [load[name].memory_used_bytes / GIB for name in ("pve1", "pve2")] == [pytest.approx(2), pytest.approx(62)]


def test_a_guest_in_flight_is_neither_moved_nor_named() -> None:
    snapshot = cluster(*THREE, *[vm(101 + i, "pve1", 12, 1) for i in range(9)], drain=["pve1"])
    result = planned(snapshot, PLAIN, Question(ledger=Ledger(in_flight=(FLYING,))))
    assert 101 not in {move.vmid for move in result.moves} | {refusal.vmid for refusal in result.refused}


def test_what_a_migration_under_way_repairs_is_not_repaired_again() -> None:
    pair = [vm(101, "pve1", 4, 0.5, "plb_anti_affinity_a"), vm(102, "pve1", 4, 0.5, "plb_anti_affinity_a")]
    assert len(planned(cluster(*THREE, *pair)).moves) == 1
    flying = InFlight(101, "pve1", "pve2", GuestLoad(0.5, 4 * GIB))
    assert planned(cluster(*THREE, *pair), PLAIN, Question(ledger=Ledger(in_flight=(flying,)))).moves == ()


def test_a_group_on_its_way_is_not_called_back() -> None:
    """101 has arrived, 102 is under way: moving 101 back would join them, too."""
    pair = [vm(101, "pve2", 4, 0.5, "plb_affinity_a"), vm(102, "pve1", 8, 0.5, "plb_affinity_a")]
    flying = InFlight(102, "pve1", "pve2", GuestLoad(0.5, 8 * GIB))
    assert planned(cluster(*THREE, *pair), PLAIN, Question(ledger=Ledger(in_flight=(flying,)))).moves == ()


def test_a_pair_of_which_one_has_moved_is_joined_where_it_went() -> None:
    pair = [vm(101, "pve2", 4, 0.5, "plb_affinity_a"), vm(102, "pve1", 8, 0.5, "plb_affinity_a")]
    assert moves_of(planned(cluster(*THREE, *pair))) == [(101, "pve1", "affinity")]
    assert moves_of(planned(cluster(*THREE, *pair), PLAIN, Question(cooling={101: "a minute ago"}))) == [(102, "pve2", "affinity")]


def test_what_the_node_spends_for_a_guest_counts_when_it_is_more_than_the_guest_sees() -> None:
    guest = vm(101, "pve1", 8, 1, memory_host_bytes=11 * GIB)
    result = planned(cluster(*THREE, replace(guest, tags=("plb_pin_pve2",))))
    assert result.moves[0].memory_bytes == 11 * GIB
    small = (node("pve1"), node("pve2", 16))
    assert reason_of(planned(cluster(*small, replace(guest, tags=("plb_pin_pve2",)))), 101) == "no-target"
    assert planned(cluster(*small, vm(101, "pve1", 8, 1, "plb_pin_pve2"))).moves


@pytest.mark.parametrize(("percent", "gib"), [(5, 32), (25, 4)])
def test_of_the_two_reserves_the_larger_one_stays_free(percent: float, gib: float) -> None:
    how = settings({"balance": {"node_reserve": {"memory_percent": percent, "memory_gib": gib}}})
    fits, does_not = (cluster(*THREE, vm(101, "pve1", size, 1, "plb_pin_pve2")) for size in (93, 95))
    assert planned(fits, how).moves
    assert planned(does_not, how).moves == ()


# --- Maintenance and home ----------------------------------------------------------------------------------------------------------


def test_a_drain_places_the_biggest_first_and_spreads_over_the_nodes() -> None:
    nodes = [node(f"pve{i}") for i in range(1, 6)]
    result = planned(cluster(*nodes, *[vm(101 + i, "pve1", 2.0 + i, 0.5) for i in range(12)], drain=["pve1"]))
    assert len(result.moves) == 12
    assert {target: sum(move.target == target for move in result.moves) for target in ("pve2", "pve3", "pve4", "pve5")} == dict.fromkeys(
        ("pve2", "pve3", "pve4", "pve5"), 3
    )
    used = [load.memory_fraction for name, load in result.after.nodes if name != "pve1"]
    assert max(used) - min(used) < 0.03


def test_the_biggest_guest_finds_room_that_many_small_ones_would_have_taken() -> None:
    two = (node("pve1"), node("pve2", 64))
    result = planned(cluster(*two, vm(101, "pve1", 50, 1), *[vm(102 + i, "pve1", 6, 0.5) for i in range(6)], drain=["pve1"]))
    assert 101 in {move.vmid for move in result.moves}


def test_a_node_is_drained_whatever_the_gates_cooldowns_and_brakes() -> None:
    snapshot = cluster(*THREE, vm(101, "pve1"), ct(102, "pve1"), drain=["pve1"])
    result = planned(snapshot, NEITHER, Question(cooling={101: "now", 102: "now"}, moves_left=0, moves_per_pass=0, balance_load=False))
    assert [(move.vmid, move.reason.value, move.first_pass) for move in result.moves] == [
        (101, "maintenance", True),
        (102, "maintenance", True),
    ]


def test_a_node_named_in_the_settings_is_drained_in_any_case_of_its_name() -> None:
    result = planned(cluster(*THREE, vm(101, "pve1")), settings({"nodes": {"maintenance": ["PVE1"]}}))
    assert [(move.vmid, move.reason.value) for move in result.moves] == [(101, "maintenance")]


def test_a_group_that_two_drained_nodes_share_leaves_together() -> None:
    nodes = [node(f"pve{i}") for i in range(1, 5)]
    pair = [vm(101, "pve1", 4, 0.5, "plb_affinity_a"), vm(102, "pve2", 4, 0.5, "plb_affinity_a")]
    result = planned(cluster(*nodes, *pair, drain=["pve1", "pve2"]), PLAIN)
    assert len({move.target for move in result.moves}) == 1
    assert len(result.moves) == 2


def test_guests_come_home() -> None:
    guests = [vm(101, "pve2"), ct(102, "pve3"), vm(103, "pve2")]
    result = planned(cluster(*THREE, *guests), PLAIN, Question(homes={101: "pve1", 102: "pve1", 999: "pve1", 103: "pve2"}))
    assert moves_of(result) == [(101, "pve1", "return-home"), (102, "pve1", "return-home")]


def test_nobody_comes_home_while_another_node_is_in_maintenance() -> None:
    snapshot = cluster(*THREE, vm(101, "pve2"), drain=["pve3"])
    assert planned(snapshot, PLAIN, Question(homes={101: "pve1"})).moves == ()


def test_who_came_home_is_not_moved_on_for_load_in_the_same_plan() -> None:
    guests = [vm(101 + i, "pve2", 10, 1) for i in range(9)]
    result = planned(cluster(*THREE, *guests), PLAIN, Question(force=True, homes={guest.vmid: "pve1" for guest in guests[:8]}))
    assert {move.reason.value for move in result.moves if move.vmid <= 108} <= {"return-home"}


def test_a_group_comes_home_only_when_it_is_the_home_of_all() -> None:
    pair = [vm(101, "pve2", 4, 0.5, "plb_affinity_a"), vm(102, "pve2", 4, 0.5, "plb_affinity_a")]
    alone = planned(cluster(*THREE, *pair), PLAIN, Question(homes={101: "pve1"}))
    assert alone.moves == ()
    assert [(one.vmid, one.reason.value, one.detail) for one in alone.refused] == [
        (101, "affinity", "guest 102, with which it stays, does not come to pve1")
    ]
    result = planned(cluster(*THREE, *pair), PLAIN, Question(homes={101: "pve1", 102: "pve1"}))
    assert {(move.target, move.batch) for move in result.moves} == {("pve1", 1)}


# --- Rules -------------------------------------------------------------------------------------------------------------------------


def test_a_group_moves_in_one_batch_or_not_at_all() -> None:
    groups = [vm(101 + i, "pve1", 4, 1, f"plb_affinity_g{i // 3}") for i in range(18)]
    result = planned(cluster(*THREE, *groups), PLAIN, FORCE)
    assert result.moves
    for first in range(101, 119, 3):
        ends = {(move.target, move.batch) for move in result.moves if first <= move.vmid < first + 3}
        assert len(ends) <= 1
        assert sum(first <= move.vmid < first + 3 for move in result.moves) in (0, 3)


def test_one_member_that_stays_keeps_its_group() -> None:
    groups = [vm(101, "pve1", 30, 1, "plb_affinity_a"), vm(102, "pve1", 30, 1, "plb_affinity_a", lock="backup")]
    assert planned(cluster(*THREE, *groups), PLAIN, FORCE).moves == ()


def test_groups_that_overlap_are_one() -> None:
    guests = [
        vm(101, "pve1", 2, 0.5, "plb_affinity_a"),
        vm(102, "pve2", 4, 0.5, "plb_affinity_a;plb_affinity_b"),
        vm(103, "pve2", 4, 0.5, "plb_affinity_b"),
    ]
    assert moves_of(planned(cluster(*THREE, *guests))) == [(101, "pve2", "affinity")]


def test_a_split_group_gathers_where_its_pins_allow() -> None:
    guests = [
        vm(101, "pve1", 2, 0.5, "plb_affinity_a"),
        vm(102, "pve2", 4, 0.5, "plb_affinity_a", "plb_pin_pve3"),
        vm(103, "pve2", 4, 0.5, "plb_affinity_a"),
    ]
    result = planned(cluster(*THREE, *guests))
    assert {(move.vmid, move.target) for move in result.moves} == {(101, "pve3"), (102, "pve3"), (103, "pve3")}


def test_a_stopped_member_holds_nobody() -> None:
    guests = [vm(101, "pve1", 4, 0.5, "plb_affinity_a"), stopped(vm(102, "pve2", 4, 0.5, "plb_affinity_a"))]
    assert planned(cluster(*THREE, *guests)).moves == ()


def test_what_cannot_be_kept_is_reported_and_left_alone() -> None:
    both = "plb_affinity_a;plb_anti_affinity_b"
    guests = [vm(101, "pve1", 4, 0.5, both), vm(102, "pve1", 4, 0.5, both), vm(103, "pve2", 4, 0.5, "plb_pin_pve3")]
    result = planned(cluster(*THREE, *guests))
    assert moves_of(result) == [(103, "pve3", "pin")]
    assert [(conflict.rule, conflict.vmids) for conflict in result.conflicts] == [("plb_affinity_a, plb_anti_affinity_b", (101, 102))]


def test_more_anti_affine_guests_than_nodes_are_a_conflict() -> None:
    snapshot = cluster(*THREE, *[vm(101 + i, "pve1", 4, 0.5, "plb_anti_affinity_a") for i in range(4)])
    assert [(conflict.rule, conflict.detail) for conflict in planned(snapshot).conflicts] == [("plb_anti_affinity_a", "4 guests, 3 nodes")]
    assert conflicts_of(snapshot, PLAIN) == planned(snapshot).conflicts


def test_a_pin_to_a_node_that_does_not_exist_is_reported_and_leaves_the_guest_free() -> None:
    snapshot = cluster(*THREE, *[vm(101 + i, "pve1", 12, 1, "plb_pin_gone") for i in range(6)])
    result = planned(snapshot)
    assert len(result.conflicts) == 6
    assert result.moves


@pytest.mark.parametrize(
    ("tags", "target"),
    [
        (("plb_pin_pve2",), "pve2"),
        (("PLB_PIN_PVE2",), "pve2"),
        (("web;plb_pin_pve2;prod",), "pve2"),
        (("web,plb_pin_pve2",), "pve2"),
        (("web plb_pin_pve2",), "pve2"),
        (("web", "plb_pin_pve2", "plb_pin_gone"), "pve2"),
        (("plb_pin_",), None),
        (("plb_pin",), None),
        (("xplb_pin_pve2",), None),
        (("plb_pin_pve22",), None),
        (("plb_pin_pve1", "plb_pin_pve2"), None),
        (("plb_ignore", "plb_pin_pve2"), None),
        (("plb_ignored", "plb_pin_pve2"), "pve2"),
        (("plb_affinity_", "plb_pin_pve2"), "pve2"),
        (("ärger;標籤;тег;🐘",), None),
    ],
)
def test_tags_are_read_as_people_write_them(tags: tuple[str, ...], target: str | None) -> None:
    result = planned(cluster(*THREE, vm(101, "pve1", 4, 0.5, *tags)))
    assert [move.target for move in result.moves] == ([] if target is None else [target])


@pytest.mark.parametrize("word", ["数据库", "قاعدة", "Größe", "база", "🐘", "a" * 200, "x-y.z"])
def test_a_group_may_be_named_in_any_script(word: str) -> None:
    apart = [vm(101 + i, "pve1", 4, 0.5, f"plb_anti_affinity_{word}") for i in range(2)]
    assert [move.reason.value for move in planned(cluster(*THREE, *apart)).moves] == ["anti-affinity"]


def test_the_case_of_a_group_makes_no_difference() -> None:
    apart = [vm(101, "pve1", 4, 0.5, "plb_anti_affinity_DB"), vm(102, "pve1", 8, 0.5, "PLB_ANTI_AFFINITY_db")]
    assert moves_of(planned(cluster(*THREE, *apart))) == [(101, "pve2", "anti-affinity")]


def test_a_guest_that_names_its_group_twice_is_one_member() -> None:
    alone = vm(101, "pve1", 4, 0.5, "plb_anti_affinity_a", "plb_anti_affinity_A", "plb_affinity_b", "plb_affinity_B")
    pair = [vm(102 + i, "pve1", 4, 0.5, "plb_anti_affinity_c", "plb_anti_affinity_C") for i in range(2)]
    result = planned(cluster(node("pve1"), node("pve2"), alone, *pair))
    assert (moves_of(result), result.conflicts) == ([(103, "pve2", "anti-affinity")], ())


# --- Containers --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "drained", "ruled", "balanced"),
    [("never", False, False, False), ("maintenance", True, False, False), ("always", True, True, True)],
)
def test_containers_move_as_far_as_the_setting_allows(policy: str, drained: bool, ruled: bool, balanced: bool) -> None:
    how = settings({"guests": {"containers": policy}})
    assert bool(planned(cluster(*THREE, ct(101, "pve1"), drain=["pve1"]), how).moves) == drained
    assert bool(planned(cluster(*THREE, ct(101, "pve1", 4, 0.5, "plb_pin_pve2")), how).moves) == ruled
    assert bool(planned(cluster(*THREE, *[ct(101 + i, "pve1", 12, 2) for i in range(8)]), how).moves) == balanced


def under_rules(
    *guests: Guest, homes: tuple[HaNodeAffinity, ...] = (), bonds: tuple[HaResourceAffinity, ...] = (), **of_all: object
) -> Snapshot:
    """A cluster of three nodes whose guests are the HA manager's."""
    resources = tuple(replace(HaResource(guest.vmid, state="started", node=guest.node), **of_all) for guest in guests)
    return replace(cluster(*THREE, *(replace(guest, ha="started") for guest in guests)), ha=HighAvailability(resources, homes, bonds))


def pool_of(*guests: Guest, name: str = "p") -> list[Guest]:
    return [replace(guest, pool=name) for guest in guests]


def test_a_pools_rules_are_put_right_with_the_fewest_moves_and_say_so() -> None:
    guests = pool_of(vm(101, "pve1", 8, 1), vm(102, "pve1", 4, 1), vm(103, "pve2", 4, 1))
    apart = settings({"pools": {"p": {"rule": "anti-affinity"}}})
    assert moves_of(planned(cluster(*THREE, *guests), apart)) == [(102, "pve3", "pool-rule")]
    together = settings({"pools": {"p": {"rule": "affinity"}}})
    assert moves_of(planned(cluster(*THREE, *guests), together)) == [(103, "pve1", "pool-rule")]
    pinned = settings({"pools": {"p": {"pin": ["PVE1", "pve3"]}}})
    assert moves_of(planned(cluster(*THREE, *guests), pinned)) == [(103, "pve3", "pool-rule")]


def test_a_repair_says_tag_where_a_tag_asks_for_it_too() -> None:
    how = settings({"pools": {"p": {"pin": ["pve2"]}}})
    guests = pool_of(vm(101, "pve1", 4, 1, "plb_pin_pve2"), vm(102, "pve1", 4, 1, "plb_pin_pve1", "plb_pin_pve2"))
    assert moves_of(planned(cluster(*THREE, *guests), how)) == [(101, "pve2", "pin"), (102, "pve2", "pool-rule")]


def test_a_pool_pin_that_is_not_strict_gives_way_to_a_maintenance_and_brings_back_after_it() -> None:
    how = settings({"pools": {"p": {"pin": ["pve1"], "strict": False}}})
    snapshot = cluster(*THREE, *pool_of(vm(101, "pve1")), drain=["pve1"])
    [move] = planned(snapshot, how).moves
    assert move.reason is MoveReason.MAINTENANCE
    after = replace(after_moves(snapshot, [move]), maintenance=())
    assert moves_of(planned(after, how)) == [(101, "pve1", "pool-rule")]
    strict = settings({"pools": {"p": {"pin": ["pve1"]}}})
    result = planned(snapshot, strict)
    assert result.moves == ()
    assert "pinned on pve2, pve3 (pool p: pve1)" in result.refused[0].detail


def test_a_stopped_guest_of_a_pool_holds_its_place() -> None:
    how = settings({"pools": {"p": {"rule": "anti-affinity"}}})
    guests = pool_of(stopped(vm(101, "pve2", 8, 1)), vm(102, "pve1", 4, 1), vm(103, "pve1", 6, 1))
    assert moves_of(planned(cluster(*THREE, *guests), how)) == [(102, "pve3", "pool-rule")]


def test_what_a_broken_rule_of_the_ha_manager_needs_is_left_to_it() -> None:
    home = HaNodeAffinity("home", (101,), (("pve2", 1),))
    bonds = (HaResourceAffinity("apart", (102, 103), together=False), HaResourceAffinity("pair", (104, 105), together=True))
    guests = [vm(101, "pve1"), vm(102, "pve1"), vm(103, "pve1"), vm(104, "pve1"), vm(105, "pve2")]
    result = planned(under_rules(*guests, homes=(home,), bonds=bonds))
    assert (result.moves, result.conflicts) == ((), ())


@pytest.mark.parametrize("failback", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_nobody_is_moved_off_the_nodes_of_its_node_affinity(strict: bool, failback: bool) -> None:
    home = HaNodeAffinity("home", tuple(range(101, 113)), (("pve1", 2), ("pve2", 1 if failback else 0)), strict)
    snapshot = under_rules(*[vm(101 + i, "pve1", 10, 1) for i in range(12)], homes=(home,), failback=failback)
    result = planned(snapshot, PLAIN, FORCE)
    assert {move.target for move in result.moves} == (set() if failback else {"pve2"}), "with failback it would be brought back"
    if failback:
        assert {refusal.detail for refusal in result.refused} == {"pinned on pve2, pve3 (HA rule home: pve1)"}


def test_guests_that_the_ha_manager_keeps_apart_are_not_brought_together() -> None:
    apart = HaResourceAffinity("apart", (101, 102, 103), together=False)
    guests = [vm(101, "pve1", 30, 2), vm(102, "pve2", 4, 1), vm(103, "pve3", 4, 1), *[vm(111 + i, "pve1", 12, 1) for i in range(6)]]
    result = planned(under_rules(*guests, bonds=(apart,)), PLAIN, FORCE)
    assert result.moves
    assert 101 not in {move.vmid for move in result.moves}


def test_guests_that_the_ha_manager_keeps_together_move_as_one() -> None:
    pairs = tuple(HaResourceAffinity(f"pair{i}", (101 + 2 * i, 102 + 2 * i), together=True) for i in range(4))
    result = planned(under_rules(*[vm(101 + i, "pve1", 12, 1) for i in range(8)], bonds=pairs), PLAIN, FORCE)
    assert result.moves
    for pair in pairs:
        assert len({(move.target, move.batch) for move in result.moves if move.vmid in pair.vmids}) <= 1
        assert sum(move.vmid in pair.vmids for move in result.moves) in (0, 2)


def test_a_flag_drains_guests_of_the_ha_manager_one_by_one_but_not_against_its_rules() -> None:
    home = HaNodeAffinity("home", (101,), (("pve1", 1),))
    snapshot = replace(under_rules(vm(101, "pve1"), vm(102, "pve1"), homes=(home,)), maintenance=(Maintenance("pve1", "flag"),))
    result = planned(snapshot)
    assert [(move.vmid, move.reason.value) for move in result.moves] == [(102, "maintenance")]
    assert "pinned on pve2, pve3 (HA rule home: pve1)" in result.refused[0].detail, (
        "it would be back at once; its own maintenance is the way"
    )


def test_a_shutdown_moves_no_guest_of_the_ha_manager() -> None:
    """It has a rule of its own for that: stop, freeze, or migrate and bring back."""
    snapshot = under_rules(vm(101, "pve1"), vm(102, "pve1"))
    ignored = tuple(replace(resource, requested="ignored") if resource.vmid == 102 else resource for resource in snapshot.ha.resources)
    snapshot = replace(snapshot, ha=replace(snapshot.ha, resources=ignored))
    for shuts_down, movers in ((False, [101, 102]), (True, [102])):
        result = planned(replace(snapshot, maintenance=(Maintenance("pve1", "flag", shuts_down=shuts_down),)))
        assert sorted(move.vmid for move in result.moves) == movers
    assert [(refusal.vmid, refusal.reason.value) for refusal in result.refused] == [(101, "ha-busy")]


def test_nobody_leaves_a_node_that_shuts_down_with_its_guests() -> None:
    """Not for load, not for a rule: a migration would be cut off in the middle."""
    crowded = cluster(*THREE, *[vm(101 + i, "pve1", 12, 1) for i in range(7)], vm(201, "pve1", 1, 0.1, "plb_pin_pve2"))
    assert planned(crowded, PLAIN, FORCE).moves
    assert planned(replace(crowded, going_down=("pve1",), no_target=("pve1",)), PLAIN, FORCE).moves == ()


def test_a_rule_that_is_impossible_keeps_no_other_from_being_put_right() -> None:
    how = settings({"pools": {"p": {"rule": "anti-affinity", "pin": ["pve1", "pve2", "pve9"]}}})
    many = pool_of(*[vm(101 + i, "pve1", 2, 0.5) for i in range(3)])
    other = [vm(111, "pve3", 4, 0.5, "plb_anti_affinity_a"), vm(112, "pve3", 2, 0.5, "plb_anti_affinity_a")]
    result = planned(cluster(*THREE, *many, *other), how)
    assert [(move.vmid, move.reason.value) for move in result.moves] == [(112, "anti-affinity")]
    assert {conflict.detail for conflict in result.conflicts} == {
        "guests 101, 102, 103 may only be on pve1, pve2",
        "there is no node pve9; the pin is to the others",
    }


def test_a_pool_with_a_node_that_does_not_exist_is_still_kept_apart() -> None:
    how = settings({"pools": {"p": {"rule": "anti-affinity", "pin": ["pve1", "pve2", "pve9"]}}})
    result = planned(cluster(*THREE, *pool_of(vm(101, "pve1", 4), vm(102, "pve1", 2))), how)
    assert moves_of(result) == [(102, "pve2", "pool-rule")]
    assert len(result.conflicts) == 1


def test_a_container_moves_for_load_only_for_more_than_its_restart_costs() -> None:
    how = settings({"guests": {"containers": "always"}})
    for make, moves in ((vm, True), (ct, False)):
        guests = [make(101 + i, "pve1", 0.5, 0.1) for i in range(6)]
        assert bool(planned(cluster(*THREE, *guests), how, FORCE).moves) == moves


# --- Every reason ------------------------------------------------------------------------------------------------------------------

Scene = tuple[Snapshot, Settings, Question, int]
HOME = Question(homes={101: "pve2"})


def pinned_away(guest: Guest, question: Question | None = None, how: Settings = PLAIN, **nodes: object) -> Scene:
    """The guest is on pve1 and must be on pve2."""
    return cluster(*THREE, replace(guest, tags=(*guest.tags, "plb_pin_pve2"))), how, question or Question(), guest.vmid


def under_ha(balances: bool = False, disarmed: bool = False, closed_nodes: tuple[str, ...] = (), **of_guest: object) -> Scene:
    """The guest is the HA manager's, and would go to pve2 if it might."""
    snapshot, *rest = pinned_away(vm(101, "pve1", ha="started"))
    resource = replace(HaResource(101, state="started", node="pve1"), **of_guest)
    ha = HighAvailability(resources=(resource,), balances=balances, disarmed=disarmed, closed_nodes=closed_nodes)
    return replace(snapshot, ha=ha), *rest


def homeward(snapshot: Snapshot, how: Settings = PLAIN) -> Scene:
    """Guest 101 wants home, to pve2."""
    return snapshot, how, HOME, 101


def told(reason: RefusalReason) -> Scene:
    """PVE says so when it is asked."""
    return pinned_away(vm(101, "pve1"), Question(verdicts={101: Verdict(101, NOW, Refusal(101, reason, "PVE's words"))}))


def without(pve2: NodeFacts | None = FACTS, **needs: object) -> Scene:
    """Guest 101 wants home, to pve2, and needs what pve2 has not."""
    return equipped(ONE, pve2=pve2), PLAIN, replace(HOME, verdicts=needing(101, **needs)), 101


ONE = cluster(*THREE, vm(101, "pve1"))
# 101 and 103 would change places by way of a third node, which as one move each nobody can
SCENES: dict[RefusalReason, Callable[[], Scene]] = {
    RefusalReason.IGNORED: lambda: pinned_away(vm(101, "pve1", 4, 0.5, "plb_ignore")),
    RefusalReason.HA_BALANCED: lambda: under_ha(balances=True),
    RefusalReason.HA_BUSY: lambda: under_ha(state="error"),
    RefusalReason.HA_EMPTIES: lambda: under_ha(closed_nodes=("pve1",)),
    RefusalReason.TEMPLATE: lambda: homeward(cluster(*THREE, vm(101, "pve1", template=True))),
    RefusalReason.NOT_RUNNING: lambda: homeward(cluster(*THREE, stopped(vm(101, "pve1")))),
    RefusalReason.STATE: lambda: (cluster(*THREE, vm(101, "pve1", status="paused"), drain=["pve1"]), PLAIN, Question(), 101),
    RefusalReason.LOCKED: lambda: pinned_away(vm(101, "pve1", lock="snapshot")),
    RefusalReason.BUSY: lambda: (
        cluster(*THREE, vm(101, "pve1", 4, 0.5, "plb_pin_pve2"), task("qmsnapshot", "pve1", 101)), PLAIN, Question(), 101,
    ),
    RefusalReason.CONTAINER: lambda: pinned_away(ct(101, "pve1")),
    RefusalReason.COOLDOWN: lambda: (
        cluster(*THREE, *[vm(101 + i, "pve1", 60, 1) for i in range(2)]), PLAIN, Question(cooling={101: "now", 102: "now"}), 101,
    ),
    RefusalReason.OTHER_BALANCER: lambda: (
        cluster(*THREE, *[vm(101 + i, "pve1", 60, 1) for i in range(2)]), PLAIN, Question(stepped_back={101: "lb", 102: "lb"}), 101,
    ),
    RefusalReason.SET_ASIDE: lambda: pinned_away(vm(101, "pve1"), Question(set_aside={101: "it failed"})),
    RefusalReason.LOAD_UNKNOWN: lambda: (cluster(*THREE, vm(101, "pve1", cpu_used_cores=None), *crowd("pve1", 22)), PLAIN, Question(), 101),
    RefusalReason.LOCAL_DISK: lambda: told(RefusalReason.LOCAL_DISK),
    RefusalReason.LOCAL_IMAGE: lambda: told(RefusalReason.LOCAL_IMAGE),
    RefusalReason.LOCAL_DEVICE: lambda: told(RefusalReason.LOCAL_DEVICE),
    RefusalReason.ARGS: lambda: without(args="-S"),
    RefusalReason.CPU_AFFINITY: lambda: without(affinity="0-3"),
    RefusalReason.PRECONDITION: lambda: told(RefusalReason.PRECONDITION),
    RefusalReason.UNANSWERED: lambda: told(RefusalReason.UNANSWERED),
    RefusalReason.NODE_SHUTS_DOWN: lambda: homeward(replace(ONE, going_down=("pve1",))),
    RefusalReason.NODE_OFFLINE: lambda: homeward(changed(ONE, "pve2", online=False)),
    RefusalReason.NODE_MAINTENANCE: lambda: homeward(replace(ONE, no_target=("pve2",))),
    RefusalReason.NODE_IGNORED: lambda: homeward(ONE, settings({"nodes": {"ignore": ["PVE2"]}})),
    RefusalReason.NODE_STARTING: lambda: homeward(changed(ONE, "pve2", uptime_s=119.0)),
    RefusalReason.NODE_SILENT: lambda: homeward(changed(ONE, "pve2", reports=False)),
    RefusalReason.NODE_STALE: lambda: homeward(changed(ONE, "pve2", sample_age_s=61.0)),
    RefusalReason.NODE_BACKUP: lambda: homeward(cluster(*THREE, vm(101, "pve1"), task("vzdump", "pve2"))),
    RefusalReason.NODE_REFUSED: lambda: (
        ONE, PLAIN, replace(HOME, verdicts={101: Verdict(101, NOW, None, (("pve2", Refusal(101, RefusalReason.NODE_REFUSED)),))}), 101,
    ),
    RefusalReason.NODE_FAILED: lambda: (ONE, PLAIN, replace(HOME, avoided={101: {"pve2": "it failed"}}), 101),
    RefusalReason.NODE_UNKNOWN: lambda: without(None),
    RefusalReason.NODE_OLDER: lambda: without(replace(FACTS, qemu_version="9.2.0-1")),
    RefusalReason.CPU_UNLIKE: lambda: without(replace(FACTS, cpu_model="EPYC"), cpu_type="host"),
    RefusalReason.STORAGE_MISSING: lambda: without(volumes=(volume("nfs:a"),)),
    RefusalReason.NO_DISK_ROOM: lambda: (
        equipped(ONE), settings({"guests": {"local_disks": True}}),
        replace(HOME, verdicts=needing(101, volumes=(volume("local-lvm:a"),))), 101,
    ),
    RefusalReason.BRIDGE_MISSING: lambda: without(bridges=("vmbr7",)),
    RefusalReason.DEVICE_MISSING: lambda: (
        ONE, PLAIN, replace(HOME, verdicts={101: Verdict(101, NOW, None, (("pve2", Refusal(101, RefusalReason.DEVICE_MISSING)),))}), 101,
    ),
    RefusalReason.HOOKSCRIPT_MISSING: lambda: without(hookscript="local:snippets/mine.pl"),
    RefusalReason.NOT_REPLICATED: lambda: without(replicated_to=("pve3",)),
    RefusalReason.NO_MEMORY: lambda: homeward(cluster(node("pve1"), node("pve2", 16), vm(101, "pve1", 12))),
    RefusalReason.NO_CPU: lambda: homeward(cluster(node("pve1"), node("pve2", 128, 2), vm(101, "pve1", 4, 4))),
    RefusalReason.OVER_THRESHOLD: lambda: homeward(cluster(*THREE, vm(101, "pve1"), *crowd("pve2", 21))),
    RefusalReason.OVER_ASSIGNED: lambda: homeward(
        cluster(*THREE, vm(101, "pve1", memory_bytes=60 * GIB), vm(102, "pve2", memory_bytes=100 * GIB)),
        settings({"balance": {"assigned_memory_cap_percent": 120}}),
    ),
    RefusalReason.PINNED: lambda: homeward(cluster(*THREE, vm(101, "pve1", 4, 0.5, "plb_pin_pve1"))),
    RefusalReason.AFFINITY: lambda: (
        cluster(*THREE, vm(101, "pve1", 4, 1, "plb_affinity_a"), vm(102, "pve1", 4, 1, "plb_affinity_a", lock="disk"), drain=["pve1"]),
        PLAIN, Question(), 101,
    ),
    RefusalReason.ANTI_AFFINITY: lambda: homeward(
        cluster(*THREE, vm(101, "pve1", 4, 0.5, "plb_anti_affinity_a"), vm(102, "pve2", 4, 0.5, "plb_anti_affinity_a"))
    ),
    RefusalReason.NO_GAIN: lambda: (UNEVEN, settings({"balance": {"min_gain_percent": 90}}), Question(), 101),
    RefusalReason.NO_TARGET: lambda: (cluster(*THREE, vm(101, "pve1", 4, 0.5, "plb_pin_pve1"), drain=["pve1"]), PLAIN, Question(), 101),
    RefusalReason.CONFLICT: lambda: (
        cluster(*THREE, *[vm(101 + i, f"pve{1 + i}", 4, 1, "plb_affinity_a;plb_anti_affinity_b") for i in range(2)]),
        PLAIN, Question(), 102,
    ),
}  # fmt: skip
NEVER_OF_A_GUEST = {RefusalReason.SAME_NODE, RefusalReason.BACKUP_DUE}  # its node is no source then; `explain` tells
BY_ITSELF = {RefusalReason.NO_ORDER}  # no cluster is known whose steps have no order: see the test below


def test_steps_for_which_there_is_no_safe_moment_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "into_batches", lambda sketch, steps: (sketch.rollback(), ([], list(steps)))[1])
    result = planned(cluster(*THREE, vm(101, "pve1", 4, 0.5, "plb_pin_pve2"), *[vm(102 + i, "pve3", 20) for i in range(3)]), PLAIN, FORCE)
    assert (result.moves, reason_of(result, 101)) == ((), "no-order")


@pytest.mark.parametrize("reason", SCENES)
def test_who_stays_is_told_why(reason: RefusalReason) -> None:
    snapshot, how, question, vmid = SCENES[reason]()
    result = planned(snapshot, how, question)
    assert vmid not in {move.vmid for move in result.moves}
    assert reason_of(result, vmid) == reason.value


def test_every_reason_of_the_planner_has_its_scene() -> None:
    assert set(SCENES) == set(RefusalReason) - NEVER_OF_A_GUEST - BY_ITSELF


@pytest.mark.parametrize(
    ("scene", "detail"),
    [
        (pinned_away(vm(101, "pve1", ha="started")), "the HA manager has not said how it keeps it"),
        (under_ha(disarmed=True), "the HA manager is disarmed"),
        (under_ha(requested="stopped"), "it is to be stopped"),
        (under_ha(requested="disabled"), "it is to be disabled"),
        (under_ha(state=""), "not taken on yet"),
        *[(under_ha(state=state), state) for state in ("migrate", "relocate", "error", "fence", "recovery", "freeze", "request_stop")],
        (under_ha(target="pve3"), "on its way to pve3"),
        (under_ha(node="pve3"), "the HA manager has it on pve3"),
        (under_ha(maintenance_node="pve3"), "it goes back to pve3 after the maintenance"),
    ],
)
def test_a_guest_that_the_ha_manager_is_at_work_on_stays(scene: Scene, detail: str) -> None:
    snapshot, how, question, _ = scene
    for asked in (snapshot, replace(snapshot, maintenance=(Maintenance("pve1", "flag"),))):
        result = planned(asked, how, question)
        assert result.moves == ()
        assert [(refusal.reason.value, refusal.detail) for refusal in result.refused] == [("ha-busy", detail)]


@pytest.mark.parametrize(
    "scene",
    [
        under_ha(),
        under_ha(balances=True, auto_rebalance=False),
        under_ha(requested="ignored", state="error", target="pve3"),
        under_ha(failback=False),
        under_ha(closed_nodes=("pve3",)),
    ],
    ids=["started", "opted out of balancing", "ignored", "without failback", "another node is in maintenance"],
)
def test_a_guest_of_the_ha_manager_moves_like_others(scene: Scene) -> None:
    snapshot, how, question, _ = scene
    assert moves_of(planned(snapshot, how, question)) == [(101, "pve2", "pin")]
    drained = planned(replace(snapshot, maintenance=(Maintenance("pve1", "flag"),)), how, question)
    assert moves_of(drained) == [(101, "pve2", "maintenance")]


def test_a_bulk_action_of_another_node_makes_no_guest_busy() -> None:
    assert planned(cluster(*THREE, vm(101, "pve1", 4, 0.5, "plb_pin_pve2"), task("stopall", "pve3", 101))).moves


@pytest.mark.parametrize(
    ("kind", "where", "is_drained", "stays"),
    [
        *((kind, "pve1", is_drained, True) for kind in ("stopall", "suspendall", "migrateall") for is_drained in (False, True)),
        *((kind, "pve3", False, True) for kind in ("bulk-shutdown", "bulk-migrate")),
        ("bulk-migrate", "pve3", True, False),
    ],
)
def test_nobody_is_moved_whom_a_bulk_action_may_have_next(kind: str, where: str, is_drained: bool, stays: bool) -> None:
    snapshot = cluster(*THREE, vm(101, "pve1", 4, 0.5, "plb_pin_pve2"), task(kind, where), drain=["pve1"] if is_drained else [])
    result = planned(snapshot)
    assert (reason_of(result, 101), bool(result.moves)) == (("busy", False) if stays else (None, True))


@pytest.mark.parametrize("is_drained", [False, True])
@pytest.mark.parametrize("what", ["startall runs", "just booted"])
def test_nobody_is_sent_off_a_node_that_is_still_starting_its_guests(what: str, is_drained: bool) -> None:
    parts = [*THREE, vm(101, "pve1", 4, 0.5, "plb_pin_pve2")]
    snapshot = cluster(*parts, task("startall", "pve1", 0)) if what == "startall runs" else cluster(*parts)
    if what == "just booted":
        snapshot = replace(snapshot, nodes=tuple(replace(n, uptime_s=60.0) if n.name == "pve1" else n for n in snapshot.nodes))
    if is_drained:
        snapshot = replace(snapshot, maintenance=(Maintenance("pve1", "flag"),))
    result = planned(snapshot)
    assert (result.moves, reason_of(result, 101)) == ((), "node-starting")


def test_a_task_that_has_ended_makes_no_guest_busy() -> None:
    assert planned(cluster(*THREE, vm(101, "pve1", 4, 0.5, "plb_pin_pve2"), task("qmsnapshot", "pve1", 101, ended_s_ago=1))).moves


def test_nobody_moves_while_guests_are_hidden() -> None:
    assert planned(replace(HOT, unseen=(999,)), PLAIN, FORCE).moves == ()


def test_the_first_pass_holds_what_the_brakes_allow() -> None:
    for question in (Question(moves_per_pass=3), Question(moves_left=3)):
        result = planned(HOT, PLAIN, question)
        assert sum(move.first_pass for move in result.moves) == min(3, len(result.moves))
    assert not any(move.first_pass for move in planned(HOT, PLAIN, Question(moves_left=0)).moves)


# --- Room and order ----------------------------------------------------------------------------------------------------------------


def test_who_leaves_a_node_anyway_goes_where_nobody_else_must_go() -> None:
    """Best for the guest of the node in maintenance would be the one node to which another is pinned, and both do not fit there."""
    nodes = [node(f"pve{i}", 64) for i in (1, 2, 3, 4)]
    crowd = [vm(103, "pve3", 12, 1, "plb_ignore"), vm(104, "pve4", 30, 1), vm(105, "pve2", 20, 1)]
    alone = cluster(*nodes, vm(101, "pve1", 20, 1), *crowd, vm(102, "pve2", 30, 1), drain=["pve1"])
    assert moves_of(planned(alone)) == [(101, "pve3", "maintenance")]
    pinned = cluster(*nodes, vm(101, "pve1", 20, 1), *crowd, vm(102, "pve2", 30, 1, "plb_pin_pve3"), drain=["pve1"])
    assert moves_of(planned(pinned)) == [(102, "pve3", "pin"), (101, "pve2", "maintenance")]


@pytest.mark.parametrize("meant", [(), (101,)])
def test_of_two_guests_that_change_places_the_one_goes_first_for_whom_there_is_room(meant: tuple[int, ...]) -> None:
    """Whichever the plan meant to go first: 103 does not fit within the reserve of pve1 before 101 has left it."""
    snapshot = cluster(
        node("pve1", 64),
        node("pve2", 64),
        vm(101, "pve1", 7.4, 1),
        vm(102, "pve1", 44.9, 1),
        vm(103, "pve2", 6.6, 1),
        vm(104, "pve2", 43.3, 1),
    )
    steps = [
        Step(((103, "pve2"),), "pve1", MoveReason.SPREAD, meant),
        Step(((101, "pve1"),), "pve2", MoveReason.SPREAD),
    ]
    batches, stuck = into_batches(Placement(snapshot, PLAIN, Question()), steps)
    assert [[step.vmids for step in batch] for batch in batches] == [[(101,)], [(103,)]]
    assert (batches[0][0].until, stuck) == ((103,), [])


def test_who_must_wait_with_a_partner_is_refused_for_what_the_partner_waits_for() -> None:
    affine = [vm(101, "pve1", 4, 0.5, "plb_affinity_a", "plb_pin_pve2"), vm(102, "pve1", 4, 0.5, "plb_affinity_a", ha="started")]
    ha = HighAvailability((HaResource(102, "started", "started", "pve1"),), closed_nodes=("pve1",))
    result = planned(cluster(*THREE, *affine, ha=ha))
    assert [(refusal.vmid, refusal.reason.value, refusal.detail) for refusal in result.refused] == [(101, "ha-empties", "guest 102")]


# --- The same question, the same answer --------------------------------------------------------------------------------------------


def as_bytes(result: Plan) -> str:
    return json.dumps(to_json(result), sort_keys=True)


def test_the_order_in_which_the_cluster_is_told_does_not_matter() -> None:
    dice = random.Random(1)
    for seed in range(8):
        snapshot = random_cluster(Draw(seed, 7, 80, 1.0, 0.6, 0.3, 0.2))
        question = Question(
            force=True, homes={100: "pve1", 110: "pve2"}, ledger=Ledger(in_flight=(FLYING, InFlight(105, "pve2", "pve3", FLYING.load)))
        )
        expected = as_bytes(plan(snapshot, PLAIN, question))
        parts = [list(part) for part in (snapshot.nodes, snapshot.guests, snapshot.tasks, question.ledger.in_flight)]
        for part in parts:
            dice.shuffle(part)
        nodes, guests, tasks, flights = (tuple(part) for part in parts)
        shuffled = replace(snapshot, nodes=nodes, guests=guests, tasks=tasks)
        backwards = replace(question, homes=dict(reversed(question.homes.items())), ledger=Ledger(in_flight=flights))
        assert as_bytes(plan(shuffled, PLAIN, backwards)) == expected


# --- Numbers and clusters that are none --------------------------------------------------------------------------------------------

NONSENSE: list[float | None] = [None, math.nan, math.inf, -math.inf, -1.0, -1e300, 0.0, 1e300, 1e12]


@pytest.mark.parametrize("value", NONSENSE)
@pytest.mark.parametrize("field", ["cpu_used_cores", "memory_used_bytes", "memory_host_bytes", "uptime_s", "cpu_cores", "memory_bytes"])
def test_a_guest_with_a_number_that_is_none_harms_nobody(field: str, value: float | None) -> None:
    if value is None and field in ("cpu_cores", "memory_bytes"):
        value = 0.0
    strange = [replace(vm(101 + i, "pve1", 12, 1), **{field: value}) for i in range(2)]
    rest = [vm(201 + i, "pve1", 10, 1) for i in range(8)]
    base = cluster(*THREE, *[vm(101 + i, "pve1", 12, 1) for i in range(2)], *rest)
    snapshot = replace(base, guests=tuple(sorted((*strange, *rest), key=lambda guest: guest.vmid)))
    for question in (Question(), FORCE):
        assert {move.vmid for move in planned(snapshot, PLAIN, question).moves} & {guest.vmid for guest in rest}
        planned(replace(snapshot, maintenance=cluster(*THREE, drain=["pve1"]).maintenance), PLAIN, question)


@pytest.mark.parametrize("value", NONSENSE)
@pytest.mark.parametrize("field", ["cpu_cores", "memory_bytes", "cpu_used_cores", "memory_used_bytes", "uptime_s", "sample_age_s"])
def test_a_node_with_a_number_that_is_none_harms_nobody(field: str, value: float | None) -> None:
    value = 0.0 if value is None and field in ("cpu_cores", "memory_bytes") else value
    guests = [vm(101 + i, f"pve{1 + i % 2}", 12, 1) for i in range(14)]
    for name in ("pve1", "pve3"):
        snapshot = changed(cluster(*THREE, *guests), name, **{field: value})
        for question in (Question(), FORCE):
            planned(snapshot, PLAIN, question)
            planned(replace(snapshot, maintenance=cluster(*THREE, drain=["pve2"]).maintenance), PLAIN, question)


def test_a_load_that_is_unknown_is_never_zero() -> None:
    """An idle node would be the best target; a node of which nothing is known is none."""
    snapshot = changed(
        cluster(*THREE, *[vm(101 + i, "pve1", 11, 1) for i in range(11)]), "pve3", cpu_used_cores=None, memory_used_bytes=None
    )
    result = planned(snapshot)
    assert {move.target for move in result.moves} == {"pve2"}


@pytest.mark.parametrize(
    "snapshot",
    [
        cluster(),
        cluster(vm(101, "pve1"), vm(102, "pve2", 4, 0.5, "plb_pin_pve1")),
        cluster(node("pve1"), *[vm(101 + i, "pve1", 15, 1) for i in range(8)]),
        cluster(node("pve1"), *[vm(101 + i, "pve1", 4, 1, "plb_anti_affinity_a") for i in range(3)], drain=["pve1"]),
        cluster(*THREE, drain=["pve1", "pve2", "pve3"]),
        cluster(*THREE, *[vm(101 + i, "pve9", 4, 1, "plb_anti_affinity_a", "plb_pin_pve1") for i in range(3)], vm(110, "", 4)),
        cluster(*[replace(one, online=False) for one in THREE], *[vm(101 + i, "pve1", 15, 1, "plb_anti_affinity_a") for i in range(3)]),
    ],
    ids=["nothing", "no nodes", "one node", "one node, drained", "no guests", "guests on unknown nodes", "all offline"],
)
def test_a_cluster_with_nowhere_to_go_gives_no_moves(snapshot: Snapshot) -> None:
    for question in (Question(), FORCE, Question(homes={101: "pve2", 102: "pve1"})):
        assert planned(snapshot, PLAIN, question).moves == ()


def test_guests_of_a_dead_node_are_not_moved_though_its_last_words_say_they_run() -> None:
    guests = [vm(101 + i, "pve1", 15, 1, "plb_anti_affinity_a", "plb_pin_pve2") for i in range(3)]
    snapshot = changed(cluster(*THREE, *guests, drain=["pve1"]), "pve1", online=False)
    result = planned(snapshot, PLAIN, FORCE)
    assert result.moves == ()
    assert {refusal.reason for refusal in result.refused} == {RefusalReason.NODE_OFFLINE}


def test_nobody_leaves_an_ignored_node_for_a_rule_or_for_load() -> None:
    how = settings({"nodes": {"ignore": ["pve1"]}})
    guests = [vm(101 + i, "pve1", 15, 1, "plb_anti_affinity_a", "plb_pin_pve2") for i in range(2)]
    assert planned(cluster(*THREE, *guests, *crowd("pve1", 10)), how, FORCE).moves == ()
    assert planned(cluster(*THREE, *guests, drain=["pve1"]), how).moves, "who drains it means it"


def test_a_tiny_witness_is_no_target_and_no_part_of_the_spread() -> None:
    witness = node("witness", 2, 2, cpu_used_cores=1.9, memory_used_bytes=int(1.9 * GIB))
    even = [vm(101 + i, f"pve{1 + i % 2}", 10, 1) for i in range(12)]
    result = planned(cluster(node("pve1"), node("pve2"), witness, *even))
    assert (result.gate, result.moves) == (Gate.CLOSED, ())
    assert result.before.imbalance < 0.01
    assert planned(cluster(node("pve1"), witness, *even[::2]), PLAIN, FORCE).moves == ()
    assert (
        reason_of(planned(cluster(node("pve1"), node("pve2"), witness, vm(101, "pve1", 0.25, 0.1, "plb_pin_witness"))), 101) == "no-target"
    )


def test_hundreds_of_rules_are_kept() -> None:
    dice = random.Random(3)
    nodes = [node(f"pve{i}", 512, 128) for i in range(1, 9)]
    guests = []
    for i in range(240):
        tags = [f"plb_anti_affinity_a{dice.randrange(60)}" for _ in range(2)] + [f"plb_pin_pve{dice.randint(1, 8)}" for _ in range(3)]
        guests.append(vm(101 + i, f"pve{dice.randint(1, 8)}", dice.uniform(1, 8), dice.uniform(0.1, 2), *tags))
    result = planned(cluster(*nodes, *guests), PLAIN, FORCE)
    assert len(result.moves) > 30


def test_a_long_chain_of_groups_is_one_group() -> None:
    chain = [vm(101 + i, f"pve{1 + i % 3}", 1, 0.1, f"plb_affinity_g{i}", f"plb_affinity_g{i + 1}") for i in range(60)]
    result = planned(cluster(*THREE, *chain))
    assert len(result.moves) == 40
    assert len({move.target for move in result.moves}) == 1


def test_a_group_larger_than_a_pass_is_a_pass_of_its_own() -> None:
    group = [vm(vmid, "pve1", 6.0, 0.5, "plb_affinity_shop") for vmid in range(101, 106)]
    pinned = [vm(vmid, "pve1", 8.0, 0.5, "plb_pin_pve1") for vmid in range(111, 115)]
    snapshot = cluster(node("pve1"), node("pve2"), *group, *pinned)
    found = plan(snapshot, settings(), Question(force=True, moves_per_pass=4))
    assert [(move.vmid, move.target, move.first_pass) for move in found.moves] == [(vmid, "pve2", True) for vmid in range(101, 106)]
    held = plan(snapshot, settings(), Question(force=True, moves_per_pass=4, moves_left=3))
    assert not any(move.first_pass for move in held.moves), "the hourly brake holds a group, too"


# --- More than one step at a time --------------------------------------------------------------------------------------------------

FULL = (*[vm(201 + i, "pve2", 10, 1) for i in range(10)], *[vm(301 + i, "pve3", 10, 1) for i in range(9)])
BY_NO_GATE = settings({"balance": {"spread_percent": 0, "memory": {"threshold_percent": 0}}})


def test_somebody_makes_room_for_a_guest_that_must_leave_and_fits_nowhere() -> None:
    result = planned(cluster(*THREE, vm(101, "pve1", 30, 1), *FULL, drain=["pve1"]), BY_NO_GATE)
    room, leaves = result.moves
    assert (room.source, room.target, room.reason, leaves.vmid, leaves.target) == ("pve3", "pve2", MoveReason.ROOM, 101, "pve3")
    assert room.batch < leaves.batch, "the room must be there first"


@pytest.mark.parametrize(
    ("what", "must_move", "full"),
    [
        ("it fits as it is", vm(101, "pve1", 12, 1), FULL),
        ("no room is enough", vm(101, "pve1", 60, 1), FULL),
        ("those who could are ignored", vm(101, "pve1", 30, 1), [replace(guest, tags=("plb_ignore",)) for guest in FULL]),
        ("those who could would be restarted", vm(101, "pve1", 30, 1), [replace(guest, type=ct(1, "pve1").type) for guest in FULL]),
    ],
)
def test_nobody_makes_room_where_it_is_not_needed_does_not_help_or_is_not_allowed(what: str, must_move: Guest, full: list[Guest]) -> None:
    result = planned(cluster(*THREE, must_move, *full, drain=["pve1"]), BY_NO_GATE)
    assert {move.vmid for move in result.moves} == ({101} if what == "it fits as it is" else set()), what


def test_two_guests_change_places_where_no_single_move_gains() -> None:
    """Ten GiB are too much on the one node and missing on the other, and nobody has that size: the difference of two has."""
    rest = [vm(102, "pve1", 45, 1, "plb_ignore"), vm(202, "pve2", 35, 1, "plb_ignore")]
    guests = [vm(101, "pve1", 25, 1), vm(201, "pve2", 15, 1), *rest]
    result = planned(cluster(*TWO_NODES, *guests), PLAIN, FORCE)
    assert sorted((move.vmid, move.target) for move in result.moves) == [(101, "pve2"), (201, "pve1")]
    assert result.after.imbalance < 0.001 < result.before.imbalance


def test_guests_of_one_size_do_not_change_places() -> None:
    guests = [vm(100 * n + i, f"pve{n}", 20, 1) for n in (1, 2) for i in range(1, 4)]
    assert planned(cluster(*TWO_NODES, *guests), PLAIN, FORCE).moves == ()


def test_neither_of_two_changes_places_when_no_leg_fits_first() -> None:
    """Both nodes are too full for either to arrive while the other is still there: nobody is put over a limit for a moment."""
    rest = [vm(102, "pve1", 82, 1, "plb_ignore"), vm(202, "pve2", 80, 1, "plb_ignore")]
    guests = [vm(101, "pve1", 25, 1), vm(201, "pve2", 15, 1), *rest]
    assert planned(cluster(*TWO_NODES, *guests), PLAIN, FORCE).moves == ()


# pve1 has no cores left below its threshold, pve2 no memory: nothing may go to either, and each has what the other can take
BOTH_OVER = (
    *(vm(101 + i, "pve1", 4, 4.5) for i in range(6)),
    *(vm(201 + i, "pve2", 18, 1) for i in range(6)),
)


def test_two_change_places_by_way_of_a_threshold_where_both_nodes_are_over_one() -> None:
    snapshot = cluster(*TWO_NODES, *BOTH_OVER)
    result = planned(snapshot, PLAIN, FORCE)
    assert len(result.moves) >= 4
    assert result.after.imbalance < 0.25 * result.before.imbalance
    begun, ended = result.moves[:2]
    assert (begun.source, begun.target, begun.batch) == (ended.target, ended.source, ended.batch - 1)
    without_its_second_half = replace(result, moves=(begun,))
    assert [what for what in wrong_in(snapshot, without_its_second_half, PLAIN, FORCE) if what.startswith("threshold")]


def test_an_exchange_starts_only_when_the_brakes_let_both_its_halves_start() -> None:
    snapshot = cluster(*TWO_NODES, *BOTH_OVER)
    one_a_pass = planned(snapshot, PLAIN, replace(FORCE, moves_per_pass=1))
    assert [move.first_pass for move in one_a_pass.moves[:3]] == [True, True, False]
    one_left = planned(snapshot, PLAIN, replace(FORCE, moves_left=1))
    assert [move.first_pass for move in one_left.moves[:2]] == [False, False]


def test_after_the_first_half_of_an_exchange_the_next_plan_begins_with_the_second() -> None:
    """Nobody remembers an exchange that has begun: whoever plans then must find that the node is to lose somebody at once."""
    snapshot = cluster(*TWO_NODES, *BOTH_OVER)
    result = planned(snapshot, PLAIN, FORCE)
    begun, ended = result.moves[:2]
    half = after_moves(snapshot, [begun])
    again = planned(half, PLAIN, Question(opened_by=Gate.OVERLOAD, cooling={begun.vmid: "it has just moved"}))
    assert (again.moves[0].source, again.moves[0].target, again.moves[0].batch) == (ended.source, ended.target, 1)

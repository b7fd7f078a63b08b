# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads of nodes: what counts and what must fit, the ZFS cache, the cap, and numbers that are none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.cluster import GIB, Guest, GuestType, Node, Snapshot
from agent.core.guest_load import GuestLoad, InFlight, Ledger, expected_load
from agent.core.imbalance import Weights, imbalance, over_threshold, spread
from agent.core.json_types import Json
from agent.core.node_load import Counted, NodeLoad, counted, node_loads, why_over_assigned
from agent.core.planner import plan
from agent.core.pressure import why_pressure_unknown
from agent.core.question import Question
from agent.core.settings import Settings
from tests.core.clusters import Draw, changed, cluster, ct, node, random_cluster, settings, stopped, vm, wrong_in

TWO = (node("pve1"), node("pve2"))
PLAIN = Settings()
ASSIGNED = settings({"balance": {"cpu": {"measure": "assigned", "threshold_percent": 150}, "memory": {"measure": "assigned"}}})
CAPPED = settings({"balance": {"assigned_memory_cap_percent": 100}})
PRESSED = settings({"balance": {"pressure": {"threshold_percent": 20, "weight": 1}}})


def loads_of(snapshot: Snapshot, how: Settings = PLAIN, ledger: Ledger | None = None) -> dict[str, NodeLoad]:
    return node_loads(snapshot, ledger or Ledger(), how)


def gib(amount_bytes: float) -> float:
    return round(amount_bytes / GIB, 6)


# --- What counts: used or assigned -------------------------------------------------------------------------------------------------

SIZED = {"cpu_cores": 16.0, "memory_bytes": 40 * GIB}


def test_what_is_used_counts_by_default() -> None:
    load = loads_of(cluster(*TWO, vm(101, "pve1", 4, 2, **SIZED)))["pve1"]
    assert (load.counted_cpu_cores, load.counted_memory_bytes) == (load.cpu_used_cores, load.memory_used_bytes) == (2.5, 6 * GIB)


def test_what_is_assigned_counts_when_that_is_wanted_and_room_is_still_judged_by_use() -> None:
    snapshot = cluster(*TWO, vm(101, "pve1", 4, 2, **SIZED), ct(102, "pve1", 1, 1, cpu_cores=4.0, memory_bytes=8 * GIB))
    load = loads_of(snapshot, ASSIGNED)["pve1"]
    assert (load.counted_cpu_cores, gib(load.counted_memory_bytes)) == (20.0, 48)
    assert (load.cpu_fraction, load.memory_fraction) == (20 / 32, 48 / 128)
    assert (load.cpu_used_cores, gib(load.memory_used_bytes)) == (3.5, 7)


def test_one_resource_may_be_assigned_and_the_other_used() -> None:
    how = settings({"balance": {"memory": {"measure": "assigned"}}})
    load = loads_of(cluster(*TWO, vm(101, "pve1", 4, 2, **SIZED)), how)["pve1"]
    assert (load.counted_cpu_cores, gib(load.counted_memory_bytes)) == (2.5, 40)


def test_who_does_not_run_has_nothing_assigned_and_who_is_paused_has() -> None:
    guests = (stopped(vm(101, "pve1", **SIZED)), vm(102, "pve1", status="unknown", **SIZED), vm(103, "pve1", status="paused", **SIZED))
    load = loads_of(cluster(*TWO, *guests), ASSIGNED)["pve1"]
    assert (load.counted_cpu_cores, gib(load.counted_memory_bytes)) == (16, 40)


@pytest.mark.parametrize("place", ["pve1", "pve2"])
def test_an_assigned_guest_in_flight_counts_where_it_goes_and_under_the_cap_on_both(place: str) -> None:
    how = settings({"balance": {"memory": {"measure": "assigned"}, "assigned_memory_cap_percent": 50}})
    flight = InFlight(101, "pve1", "pve2", GuestLoad(2.0, 4 * GIB))
    loads = loads_of(cluster(*TWO, vm(101, place, 4, 2, **SIZED)), how, Ledger(in_flight=(flight,)))
    assert [gib(loads[name].counted_memory_bytes) for name in ("pve1", "pve2")] == [0, 40]
    assert [gib(loads[name].assigned_memory_bytes) for name in ("pve1", "pve2")] == [40 if place == "pve1" else 0, 40]
    assert gib(loads["pve2"].assigned_limit_bytes or 0) == 64


@pytest.mark.parametrize(
    ("guest", "held_gib"), [(vm(101, "pve2", 4, 2), 4), (ct(101, "pve2", 4, 2), 0), (stopped(vm(101, "pve2", 4, 2)), 0)]
)
def test_what_has_moved_leaves_its_process_behind_until_its_task_ends(guest: Guest, held_gib: float) -> None:
    """Only a VM's does: a container was stopped there before."""
    flight = InFlight(101, "pve1", "pve2", GuestLoad(2.0, 4 * GIB))
    load = loads_of(cluster(*TWO, guest), PLAIN, Ledger(in_flight=(flight,)))["pve1"]
    assert (gib(load.leaving_memory_bytes), load.leaving_cpu_cores) == (held_gib, held_gib / 2)
    assert gib(load.counted_memory_bytes) == gib(loads_of(cluster(*TWO, guest))["pve1"].counted_memory_bytes), "it is gone for balance"


def test_a_guest_that_came_after_the_last_sample_is_assigned_where_it_is() -> None:
    snapshot = cluster(*TWO, stopped(vm(101, "pve2", **SIZED)))
    load = loads_of(snapshot, ASSIGNED, Ledger(unsampled=frozenset({101}), learned={101: GuestLoad(1.0, GIB)}))["pve2"]
    assert (load.counted_cpu_cores, gib(load.counted_memory_bytes), gib(load.memory_used_bytes)) == (16, 40, 3)


def test_a_guest_takes_along_what_it_counts_for() -> None:
    guest, load = vm(101, "pve1", 4, 2, **SIZED), GuestLoad(2.0, 4 * GIB)
    assert counted(guest, load, None, PLAIN) == Counted(2.0, 4 * GIB)
    assert counted(guest, load, None, ASSIGNED) == Counted(16.0, 40 * GIB)


@pytest.mark.parametrize("how", [PLAIN, ASSIGNED])
def test_the_sum_of_what_guests_count_for_is_what_their_node_counts_for(how: Settings) -> None:
    """So the planner may move them from node to node and be left with nothing."""
    snapshot = cluster(*TWO, *(vm(100 + i, "pve1", 1 + i, 0.5 * i, **SIZED) for i in range(5)), system_gib=0, system_cpu=0)
    load = loads_of(snapshot, how)["pve1"]
    parts = [counted(guest, expected_load(guest, Ledger()), load, how) for guest in snapshot.guests]
    assert math.fsum(part.cpu_cores for part in parts) == pytest.approx(load.counted_cpu_cores)
    assert math.fsum(part.memory_bytes for part in parts) == pytest.approx(load.counted_memory_bytes)


def test_thresholds_and_spread_are_those_of_what_counts() -> None:
    snapshot = cluster(*TWO, *(vm(100 + i, "pve1", 2, 0.5, **SIZED) for i in range(4)))
    loads = loads_of(snapshot, ASSIGNED)
    weights = Weights.of(ASSIGNED, loads.values())
    assert over_threshold(loads["pve1"], weights) == "cpu 200 % over 150 %, memory 125 % over 85 %"
    assert spread(loads.values(), weights) == (2.0, "pve1", "pve2")
    assert over_threshold(loads_of(snapshot)["pve1"], Weights.of(PLAIN)) is None


def test_all_there_is_can_be_a_threshold_only_for_what_is_assigned() -> None:
    full: Json = {"threshold_percent": 100}
    assert Weights.of(settings({"balance": {"cpu": full}})).cpu_threshold is None
    assert Weights.of(settings({"balance": {"cpu": {"measure": "assigned", "threshold_percent": 100}}})).cpu_threshold == 1.0
    assert Weights.of(settings({"balance": {"cpu": {"measure": "assigned", "threshold_percent": 0}}})).cpu_threshold is None


# --- The cap of assigned memory ----------------------------------------------------------------------------------------------------


def test_without_a_cap_there_is_no_limit() -> None:
    assert loads_of(cluster(*TWO, vm(101, "pve1", **SIZED)))["pve1"].assigned_limit_bytes is None
    assert why_over_assigned(1e15, 1e15, None) is None


def test_the_cap_is_reached_and_not_passed() -> None:
    assert why_over_assigned(40 * GIB, 88 * GIB, 128 * GIB) is None
    assert why_over_assigned(41 * GIB, 88 * GIB, 128 * GIB) == "129.0 of 128.0 GiB assigned"
    assert why_over_assigned(0, 200 * GIB, 128 * GIB) is None, "who has nothing assigned may come"


@given(st.integers(0, 10**6), st.floats(0.2, 0.9), st.sampled_from([60, 100, 120]))
def test_no_plan_assigns_more_than_the_cap(seed: int, fill: float, percent: int) -> None:
    how = settings({"balance": {"assigned_memory_cap_percent": percent, "spread_percent": 5}})
    snapshot = random_cluster(Draw(seed, 4, 24, 1.0, fill, 0.2, 0.1))
    assert wrong_in(snapshot, plan(snapshot, how, Question(force=True)), how, Question(force=True)) == []


def test_the_cap_keeps_a_guest_away_that_has_room() -> None:
    snapshot = cluster(*TWO, vm(101, "pve1", 4, 1, memory_bytes=60 * GIB), vm(102, "pve2", 2, 1, memory_bytes=80 * GIB), drain=["pve1"])
    assert [move.vmid for move in plan(snapshot, PLAIN).moves] == [101]
    (refusal,) = plan(snapshot, CAPPED).refused
    assert "over-assigned on pve2 (140.0 of 128.0 GiB assigned)" in refusal.detail


# --- Memory ------------------------------------------------------------------------------------------------------------------------


def test_what_the_zfs_cache_gives_back_is_not_used() -> None:
    snapshot = changed(
        cluster(node("pve1", memory_used_bytes=100 * GIB, cpu_used_cores=1.0), vm(101, "pve1", 20)), "pve1", zfs_cache_bytes=60 * GIB
    )
    assert gib(loads_of(snapshot)["pve1"].memory_used_bytes) == 40


def test_a_cache_that_is_too_large_leaves_what_the_guests_have() -> None:
    one = node("pve1", memory_used_bytes=100 * GIB, cpu_used_cores=1.0, zfs_cache_bytes=90 * GIB)
    assert gib(loads_of(cluster(one, vm(101, "pve1", 20, memory_host_bytes=25 * GIB)))["pve1"].memory_used_bytes) == 25


def test_a_node_whose_guests_share_memory_keeps_the_load_it_reports() -> None:
    one = node("pve1", memory_used_bytes=10 * GIB, cpu_used_cores=1.0, zfs_cache_bytes=GIB)
    assert gib(loads_of(cluster(one, vm(101, "pve1", 20)))["pve1"].memory_used_bytes) == 10


def test_what_comes_is_counted_on_top_of_what_the_cache_leaves() -> None:
    one = node("pve2", memory_used_bytes=100 * GIB, cpu_used_cores=1.0, zfs_cache_bytes=80 * GIB)
    flight = InFlight(101, "pve1", "pve2", GuestLoad(2.0, 30 * GIB))
    loads = loads_of(cluster(TWO[0], one, vm(101, "pve1", 30)), PLAIN, Ledger(in_flight=(flight,)))
    assert gib(loads["pve2"].memory_used_bytes) == 50


@pytest.mark.parametrize("cache", [None, 0, -5, 10**30])
def test_a_cache_of_no_known_size_changes_nothing(cache: int | None) -> None:
    one = node("pve1", memory_used_bytes=100 * GIB, cpu_used_cores=1.0, zfs_cache_bytes=cache)
    assert gib(loads_of(cluster(one))["pve1"].memory_used_bytes) == 100


# --- Numbers that are none ---------------------------------------------------------------------------------------------------------

ODD = st.sampled_from([None, math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-320, 1e-9, 0.5, 4.0, 1e17, 1e19, 1e300, 1.7e308])
SIZE = ODD.filter(lambda value: value is not None)
SOUND = st.floats(0, 1e15)


def odd_nodes() -> st.SearchStrategy[Node]:
    return st.builds(
        Node,
        name=st.sampled_from(["pve1", "pve2", "pve3"]),
        online=st.booleans(),
        cpu_cores=SIZE | st.just(16.0),
        memory_bytes=SIZE | st.just(64 * GIB),
        cpu_used_cores=ODD,
        memory_used_bytes=ODD | st.just(8 * GIB),
        uptime_s=ODD,
        sample_age_s=st.none() | st.floats(0, 100),
        zfs_cache_bytes=ODD,
        pressure_fraction=ODD,
    )


def odd_guests() -> st.SearchStrategy[Guest]:
    return st.builds(
        Guest,
        vmid=st.integers(100, 105),
        type=st.sampled_from(GuestType),
        name=st.just(""),
        node=st.sampled_from(["pve1", "pve2", "pve3", "gone"]),
        status=st.sampled_from(["running", "stopped", "paused", "unknown", "io-error"]),
        cpu_cores=SIZE,
        memory_bytes=SIZE | st.just(4 * GIB),
        cpu_used_cores=ODD,
        memory_used_bytes=ODD,
        memory_host_bytes=ODD,
        uptime_s=ODD,
    )


def odd_ledgers() -> st.SearchStrategy[Ledger]:
    load = st.builds(GuestLoad, SOUND, SOUND)
    vmid, place = st.integers(100, 105), st.sampled_from(["pve1", "pve2", "gone"])
    return st.builds(
        Ledger,
        learned=st.dictionaries(vmid, load),
        in_flight=st.lists(st.builds(InFlight, vmid, place, place, load), max_size=3).map(tuple),
        landed=st.frozensets(vmid, max_size=2),
        unsampled=st.frozensets(vmid, max_size=2),
    )


@given(
    st.lists(odd_nodes(), max_size=3, unique_by=lambda one: one.name),
    st.lists(odd_guests(), max_size=5, unique_by=lambda one: one.vmid),
    odd_ledgers(),
    st.sampled_from([PLAIN, ASSIGNED, CAPPED, PRESSED]),
)
def test_whatever_is_reported_gives_sound_loads_or_none(nodes: list[Node], guests: list[Guest], ledger: Ledger, how: Settings) -> None:
    snapshot = Snapshot(0.0, tuple(nodes), tuple(guests))
    loads = node_loads(snapshot, ledger, how)
    assert loads.keys() <= {one.name for one in nodes}
    for load in loads.values():
        numbers = [
            load.cpu_used_cores, load.memory_used_bytes, load.leaving_cpu_cores, load.leaving_memory_bytes, load.counted_cpu_cores,
            load.counted_memory_bytes, load.pressure_fraction, load.assigned_memory_bytes, load.cpu_fraction, load.memory_fraction,
        ]  # fmt: skip
        assert all(math.isfinite(number) and number >= 0 for number in numbers), load
        assert load.pressure_fraction <= 1
    weights = Weights.of(how, loads.values())
    assert math.isfinite(imbalance(loads.values(), weights))
    assert math.isfinite(spread(loads.values(), weights)[0])
    for guest in guests:
        part = counted(guest, expected_load(guest, ledger), loads.get(guest.node), how)
        assert all(math.isfinite(number) and number >= 0 for number in (part.cpu_cores, part.memory_bytes, part.pressure_fraction))
    for load in loads.values():
        over_threshold(load, weights)
    why_pressure_unknown(snapshot, how)


def test_a_tiny_witness_has_no_size_to_divide_by() -> None:
    assert loads_of(cluster(node("pve1"), node("w", 64, 1e-310, cpu_used_cores=0.0, memory_used_bytes=0))).keys() == {"pve1"}

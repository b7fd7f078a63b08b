# SPDX-License-Identifier: GPL-3.0-or-later
"""Migrations that others started: who is on the way, where to as far as can be told, and what that takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core import history as memory
from agent.core.cluster import GIB, HaResource, HighAvailability, Snapshot, Task
from agent.core.documents import LearnedLoad
from agent.core.guest_load import GuestLoad, InFlight
from agent.core.known_loads import ledger_of
from agent.core.others import Foreign, arriving, foreign_migrations, foreign_words
from tests.core.clusters import NOW, changed, cluster, ct, node, stopped, task, vm
from tests.core.records import record

THREE = (node("pve1"), node("pve2"), node("pve3"))
MOVING = task("qmigrate", "pve1", 101)


def ha(*resources: HaResource, closed: tuple[str, ...] = ()) -> HighAvailability:
    return HighAvailability(resources, closed_nodes=closed)


def flights(snapshot: Snapshot, *ours: int) -> list[tuple[int, str, str]]:
    own = [record(vmid, memory.MigrationState.RUNNING) for vmid in ours]
    found = ledger_of(snapshot, memory.empty(NOW - 86400), own, NOW).in_flight
    return [(flight.vmid, flight.source, flight.target) for flight in found if flight.vmid not in ours]


def test_a_persons_migration_is_known_by_its_task_and_its_target_by_the_process_that_was_started_there() -> None:
    alone = cluster(*THREE, vm(101, "pve1"), MOVING)
    assert foreign_migrations(alone, set()) == (Foreign(101, "pve1", None),)
    assert flights(alone) == []
    begun = cluster(*THREE, vm(101, "pve1", 6, 1), MOVING, task("qmstart", "pve3", 101, ended_s_ago=2.0))
    assert foreign_migrations(begun, set()) == (Foreign(101, "pve1", "pve3"),)
    assert ledger_of(begun, memory.empty(NOW), (), NOW).in_flight[0].load.memory_bytes == 6 * GIB
    assert flights(begun) == [(101, "pve1", "pve3")]


def test_a_start_of_before_the_migration_tells_nothing() -> None:
    start = replace(task("qmstart", "pve3", 101, ended_s_ago=2.0), started_at=MOVING.started_at - 60)
    assert foreign_migrations(cluster(*THREE, vm(101, "pve1"), MOVING, start), set())[0].target is None


def test_a_guest_that_has_changed_its_node_goes_where_it_is() -> None:
    assert foreign_migrations(cluster(*THREE, ct(101, "pve2"), task("vzmigrate", "pve1", 101)), set()) == (Foreign(101, "pve1", "pve2"),)


@pytest.mark.parametrize(
    "other", [task("hamigrate", "pve1", 101), task("qmstart", "pve1", 101), task("qmigrate", "pve1", 101, ended_s_ago=1.0)]
)
def test_what_moves_nobody_now_is_none(other: Task) -> None:
    assert foreign_migrations(cluster(*THREE, vm(101, "pve1"), other), set()) == ()


def test_our_own_are_not_those_of_others() -> None:
    assert foreign_migrations(cluster(*THREE, vm(101, "pve1"), vm(102, "pve1"), MOVING, task("qmigrate", "pve1", 102)), {101}) == (
        Foreign(102, "pve1", None),
    )


@pytest.mark.parametrize("state", ["migrate", "relocate"])
def test_what_the_ha_manager_has_begun_counts_before_its_task_runs(state: str) -> None:
    found = cluster(*THREE, vm(101, "pve1", ha=state), ha=ha(HaResource(101, state=state, node="pve1", target="pve2")))
    assert foreign_migrations(found, set()) == (Foreign(101, "pve1", "pve2"),)
    assert flights(found) == [(101, "pve1", "pve2")]
    assert flights(found, 101) == []


def test_who_was_on_the_way_when_the_source_was_lost_keeps_a_place_at_the_target_but_no_slot() -> None:
    moving = cluster(*THREE, vm(101, "pve1", ha="migrate"), ha=ha(HaResource(101, state="migrate", node="pve1", target="pve2")))
    lost = changed(moving, "pve1", online=False)
    assert (foreign_migrations(lost, set()), flights(lost)) == ((), [(101, "pve1", "pve2")])


def test_a_guest_that_is_about_to_go_home_after_a_maintenance_needs_its_room_there() -> None:
    away = HaResource(101, state="started", node="pve2", maintenance_node="pve1")
    guest = vm(101, "pve2", ha="started")
    assert flights(cluster(*THREE, guest, ha=ha(away))) == [(101, "pve2", "pve1")]
    assert flights(cluster(*THREE, guest, ha=ha(away, closed=("pve1",)))) == []  # its node is still in maintenance
    assert flights(changed(cluster(*THREE, guest, ha=ha(away)), "pve1", online=False)) == []
    assert flights(cluster(*THREE, stopped(guest), ha=ha(away))) == []
    assert foreign_migrations(cluster(*THREE, guest, ha=ha(away)), set()) == ()  # it takes no slot yet


def test_the_ledger_keeps_what_is_known_of_our_own() -> None:
    own = record(101, memory.MigrationState.RUNNING)
    ledger = ledger_of(cluster(*THREE, vm(101, "pve1")), memory.with_migrations(memory.empty(NOW), [own]), [own], NOW)
    assert ledger.in_flight == (InFlight(101, "pve1", "pve2", own.load),)


def test_many_are_named_in_few_words() -> None:
    assert foreign_words((Foreign(101, "pve1", None),)) == "guest 101 off pve1"
    assert foreign_words(tuple(Foreign(101 + i, "pve1", None) for i in range(5))).endswith("guest 103 off pve1 and 2 more")


def test_what_has_arrived_or_was_lost_with_its_node_moves_no_more() -> None:
    moved = HaResource(101, state="migrate", node="pve1", target="pve2")
    assert foreign_migrations(cluster(*THREE, vm(101, "pve2", ha="migrate"), ha=ha(moved)), set()) == ()  # only not reported yet
    lost = changed(cluster(*THREE, vm(101, "pve1", ha="migrate"), ha=ha(moved)), "pve1", online=False)
    assert foreign_migrations(lost, set()) == ()


@pytest.mark.parametrize(
    ("ended_s_ago", "sampled_s_ago", "has_landed", "is_in_no_number"),
    [(3.0, 8.0, True, True), (3.0, 1.0, True, False), (20.0, 8.0, True, False), (30.0, 40.0, False, False)],
)
def test_who_was_just_brought_by_others_is_not_in_its_nodes_load_yet(
    ended_s_ago: float, sampled_s_ago: float, has_landed: bool, is_in_no_number: bool
) -> None:
    there = replace(node("pve2"), sample_age_s=sampled_s_ago)
    seen = cluster(node("pve1"), there, vm(101, "pve2", 6, 1), task("qmigrate", "pve1", 101, ended_s_ago=ended_s_ago))
    ledger = ledger_of(seen, memory.empty(NOW), (), NOW)
    assert ledger.landed == (frozenset({101}) if has_landed else frozenset())
    assert ledger.unsampled == (frozenset({101}) if is_in_no_number else frozenset())


def test_who_was_just_brought_by_others_takes_what_it_took_before() -> None:
    seen = cluster(*THREE, vm(101, "pve2", 0, 0, cpu_cores=4.0, memory_bytes=16 * GIB), task("qmigrate", "pve1", 101, ended_s_ago=3.0))
    known = {101: LearnedLoad(101, 3.0, 9.0 * GIB, NOW - 60)}
    assert ledger_of(seen, memory.empty(NOW), (), NOW, known).learned == {101: GuestLoad(3.0, 9.0 * GIB)}


@pytest.mark.parametrize(
    "other",
    [task("qmigrate", "pve2", 101, ended_s_ago=3.0), task("hamigrate", "pve1", 101, ended_s_ago=3.0), task("qmigrate", "pve1", 101)],
    ids=["stays where it was", "a request alone", "on its way"],
)
def test_who_has_not_arrived_has_not_landed(other: Task) -> None:
    assert ledger_of(cluster(*THREE, vm(101, "pve2"), other), memory.empty(NOW), (), NOW).landed == frozenset()


# --- Who is on the way to a node ---------------------------------------------------------------------------------------------------


def test_our_own_and_others_migrations_are_on_the_way_to_their_targets() -> None:
    own = record(102, memory.MigrationState.RUNNING, target="pve3")
    begun = cluster(*THREE, vm(101, "pve1"), vm(102, "pve1"), MOVING, task("qmstart", "pve3", 101, ended_s_ago=2.0))
    assert arriving(begun, [own]) == {"pve3": (101, 102)}
    assert arriving(cluster(*THREE, vm(101, "pve1"), MOVING), []) == {}, "nobody tells where to"


def test_who_runs_on_the_target_has_arrived_and_who_is_still_started_there_has_not() -> None:
    own = record(102, memory.MigrationState.RUNNING, target="pve3")
    assert arriving(cluster(*THREE, vm(102, "pve3")), [own]) == {}
    assert arriving(cluster(*THREE, stopped(ct(102, "pve3"))), [own]) == {"pve3": (102,)}


def test_whom_the_ha_manager_brings_back_is_on_the_way_as_soon_as_it_may() -> None:
    away = HaResource(101, state="started", node="pve2", maintenance_node="pve1")
    on_its_way = HaResource(102, state="migrate", node="pve2", target="pve1")
    there = cluster(*THREE, vm(101, "pve2"), vm(102, "pve2"))
    assert arriving(replace(there, ha=ha(away, on_its_way)), []) == {"pve1": (101, 102)}
    assert arriving(replace(there, ha=ha(away, closed=("pve1",))), []) == {}

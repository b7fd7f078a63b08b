# SPDX-License-Identifier: GPL-3.0-or-later
"""The net under hooks and cluster log: a snapshot from pmxcfs's files, and what differs between two."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from agent.core.cluster import Guest, GuestType, Snapshot
from agent.core.events import Event, EventKind, EventSource
from agent.core.statistics import GuestSample, Members, NodeSample, Statistics, VmEntry
from agent.core.triggers import joined, with_starts
from agent.core.watch import asked_of_ha, differences, loads_snapshot
from tests.core.clusters import changed, cluster, node, stopped, vm

K = EventKind
TWO = (node("pve1"), node("pve2"))
NODE = NodeSample("pve1", 1000, 86400.0, 16.0, 4.0, 64 << 30, 20 << 30)
GUEST = GuestSample(101, 1000, "web", "running", 4.0, 2.0, 8 << 30, 3 << 30, None, 3600.0)
ENTRY = VmEntry(101, "pve1", GuestType.QEMU, 1)


def found(before: Snapshot, after: Snapshot) -> list[tuple[EventKind, int | None, str | None]]:
    return [(event.kind, event.vmid, event.node) for event in differences(before, after, 5.0)]


def pair(before: Guest, after: Guest) -> list[tuple[EventKind, int | None, str | None]]:
    return found(cluster(*TWO, before), cluster(*TWO, after))


def test_nothing_new_is_no_event() -> None:
    snapshot = cluster(*TWO, vm(101, "pve1"), stopped(vm(102, "pve2")))
    assert found(snapshot, snapshot) == []


def test_loads_that_change_are_no_event() -> None:
    assert pair(vm(101, "pve1", 4, 1), vm(101, "pve1", 9, 3)) == []


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (stopped(vm(101, "pve1")), vm(101, "pve1"), K.GUEST_STARTED),
        (vm(101, "pve1"), stopped(vm(101, "pve1")), K.GUEST_STOPPED),
        (vm(101, "pve1", uptime_s=3600.0), vm(101, "pve1", uptime_s=3.0), K.GUEST_STARTED),
        (vm(101, "pve2"), vm(101, "pve1"), K.GUEST_CHANGED),
        (stopped(vm(101, "pve2")), stopped(vm(101, "pve1")), K.GUEST_CHANGED),
    ],
    ids=["a start", "a stop", "a restart", "a migration", "a migration of a stopped guest"],
)
def test_what_happened_to_a_guest_is_one_event(before: Guest, after: Guest, kind: EventKind) -> None:
    assert pair(before, after) == [(kind, 101, "pve1")]


def test_a_new_guest_that_runs_has_started() -> None:
    assert found(cluster(*TWO), cluster(*TWO, vm(101, "pve1"))) == [(K.GUEST_STARTED, 101, "pve1")]
    assert found(cluster(*TWO), cluster(*TWO, stopped(vm(101, "pve1")))) == []


@pytest.mark.parametrize("status", ["running", "stopped"])
def test_statistics_that_come_late_or_vanish_are_neither_start_nor_stop(status: str) -> None:
    guest = vm(101, "pve1", status=status)
    unknown = replace(guest, status="unknown")
    assert pair(unknown, guest) == pair(guest, unknown) == []


def test_a_shaky_uptime_is_no_restart() -> None:
    assert pair(vm(101, "pve1", uptime_s=3600.0), vm(101, "pve1", uptime_s=3597.0)) == []
    assert pair(vm(101, "pve1", uptime_s=3600.0), vm(101, "pve1", uptime_s=None)) == []


def test_nodes_that_come_and_go_are_events() -> None:
    up = cluster(*TWO)
    down = changed(up, "pve2", online=False)
    assert found(up, down) == [(K.NODE_OFFLINE, None, "pve2")]
    assert found(down, up) == [(K.NODE_ONLINE, None, "pve2")]


def test_the_files_of_pmxcfs_are_a_snapshot() -> None:
    snapshot = loads_snapshot(Statistics((NODE,), (GUEST,)), (ENTRY,), Members("pve1", True, {"pve1": True}), 1007.0)
    assert (snapshot.nodes[0].online, snapshot.nodes[0].sample_age_s, snapshot.nodes[0].cpu_used_cores) == (True, 7.0, 4.0)
    assert (snapshot.guests[0].node, snapshot.guests[0].status, snapshot.guests[0].cpu_used_cores) == ("pve1", "running", 2.0)


def test_a_guest_without_statistics_is_unknown_and_not_stopped() -> None:
    assert loads_snapshot(Statistics((NODE,)), (ENTRY,), None, 1007.0).guests[0].status == "unknown"


def test_a_node_that_was_down_for_so_long_that_its_statistics_are_gone_comes_back_as_an_event() -> None:
    down, up = ({"pve1": True, "pve2": online} for online in (False, True))
    entries = (ENTRY,)
    both = Statistics((NODE, replace(NODE, name="pve2")))
    looks = [(both, up), (both, down), (Statistics((NODE,)), down), (Statistics((NODE,)), up), (both, up)]
    snapshots = [loads_snapshot(statistics, entries, Members("pve1", True, nodes), 1007.0) for statistics, nodes in looks]
    kinds = [[kind for kind, _, _ in found(one, other)] for one, other in itertools.pairwise(snapshots)]
    assert kinds == [[K.NODE_OFFLINE], [], [K.NODE_ONLINE], []]


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ('{"node_request": {"pve2": {"maintenance": 1}, "pve1": {"maintenance": 1}, "pve3": {}}}', ("pve1", "pve2")),
        ('{"node_status": {"pve1": "maintenance"}}', ()),
        ('{"node_request": {"pve2": {"maint', ()),
        ('{"node_request": []}', ()),
        ("[" * 100_000, ()),
        ("[]", ()),
        ("", ()),
        (None, ()),
    ],
)
def test_only_what_an_admin_asked_of_the_ha_manager_is_maintenance(text: str | None, nodes: tuple[str, ...]) -> None:
    assert asked_of_ha(text) == nodes


def test_what_statistics_tell_is_as_old_as_they_are() -> None:
    """A guest was started after its node's numbers were taken: that they show it stopped comes before the start, not after."""
    aged = (replace(TWO[0], sample_age_s=8.0), replace(TWO[1], sample_age_s=4000.0))
    before = cluster(*TWO, vm(101, "pve1"), vm(102, "pve2"))
    events = differences(before, cluster(*aged, stopped(vm(101, "pve1")), stopped(vm(102, "pve2"))), 100.0)
    assert [(event.vmid, event.at_s, event.happened_s) for event in events] == [(101, 100.0, 92.0), (102, 100.0, 75.0)]
    started = Event(K.GUEST_STARTED, EventSource.HOOK, 96.0, node="pve1", vmid=101)
    trigger = joined(joined(None, started), events[0])
    assert with_starts(cluster(*TWO, stopped(vm(101, "pve1"))), trigger, 101.0).guests[0].is_running

# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of PVE for one guest: no more than its node and PVE's version take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.cluster import GuestType, NodeFacts, Storage
from agent.core.migrations import MigrationState
from agent.core.needs import GuestNeeds
from agent.daemon.orders import order_of
from agent.ports import MigrationOrder
from tests.core.clusters import cluster, ct, node, settings, vm
from tests.core.needs import FACTS, equipped, volume
from tests.core.records import record

PLAIN = settings()
TAKES_DISKS = settings({"guests": {"local_disks": True, "storage_map": {"local-lvm": "zfs", "ceph": "zfs"}}})
SEEN = equipped(cluster(node("pve1"), node("pve2"), vm(101, "pve1"), ct(102, "pve1")))
ASKED = record(101, MigrationState.PLANNED)
NEEDS = GuestNeeds((volume("ceph:a"), volume("local-lvm:b", gib=1)))


def test_a_running_vm_goes_live_with_its_connections() -> None:
    expected = MigrationOrder(101, GuestType.QEMU, "pve1", "pve2", online=True, restart=False, conntrack=True)
    assert order_of(ASKED, SEEN, GuestNeeds(), PLAIN) == expected
    limited = settings({"migration": {"bandwidth_limit_kib_s": 5}})
    assert order_of(ASKED, SEEN, GuestNeeds(), limited) == replace(expected, bandwidth_limit_kib_s=5)


@pytest.mark.parametrize("unlike", [replace(FACTS, pve_version="8.4.1"), replace(FACTS, pve_version=""), None])
@pytest.mark.parametrize("name", ["pve1", "pve2"])
def test_its_connections_are_kept_only_where_both_nodes_tell_a_pve_that_can(name: str, unlike: NodeFacts | None) -> None:
    seen = equipped(SEEN, **{name: unlike})
    assert not order_of(ASKED, seen, GuestNeeds(), PLAIN).conntrack
    assert not order_of(replace(ASKED, target="pve9"), SEEN, GuestNeeds(), PLAIN).conntrack


def test_nothing_of_that_is_asked_for_a_guest_that_does_not_run_a_container_or_one_of_the_ha_manager() -> None:
    stopped = order_of(replace(ASKED, online=False), SEEN, NEEDS, TAKES_DISKS)
    assert (stopped.online, stopped.conntrack, stopped.local_disks, stopped.storage_map) == (False, False, False, (("local-lvm", "zfs"),))
    container = order_of(replace(ASKED, vmid=102, type=GuestType.LXC), SEEN, NEEDS, TAKES_DISKS)
    assert container == MigrationOrder(102, GuestType.LXC, "pve1", "pve2", online=False, restart=True)
    managed = order_of(replace(ASKED, through_ha=True), SEEN, NEEDS, TAKES_DISKS)
    assert managed == MigrationOrder(101, GuestType.QEMU, "pve1", "pve2", online=True, restart=False)


def test_of_the_storage_map_only_the_guests_own_local_storages_are_named() -> None:
    order = order_of(ASKED, SEEN, NEEDS, TAKES_DISKS)
    assert (order.local_disks, order.storage_map) == (True, (("local-lvm", "zfs"),))
    assert order_of(ASKED, SEEN, GuestNeeds((volume("ceph:a"),)), TAKES_DISKS).local_disks is False
    assert order_of(ASKED, SEEN, NEEDS, PLAIN).local_disks is False
    assert order_of(ASKED, SEEN, None, TAKES_DISKS).local_disks is False


def test_who_comes_home_is_asked_for_with_the_map_read_backwards_as_far_as_that_helps() -> None:
    home = replace(
        cluster(node("pve1"), node("pve2"), vm(101, "pve1")),
        storages=(Storage("local-lvm", False, ("pve2",)), Storage("zfs", False, ("pve1",))),
    )
    needs = GuestNeeds((volume("zfs:b", gib=1),))
    how = settings({"guests": {"local_disks": True, "storage_map": {"local-lvm": "zfs"}}})
    assert order_of(ASKED, home, needs, how).storage_map == ()
    assert order_of(ASKED, home, needs, how, is_home=True).storage_map == (("zfs", "local-lvm"),)

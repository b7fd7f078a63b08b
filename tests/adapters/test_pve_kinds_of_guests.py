# SPDX-License-Identifier: GPL-3.0-or-later
"""Every kind of guest migrates in each release of PVE with what the agent sends, and is afterwards where and as it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from agent.adapters.pve.api import PveApi
from agent.core.cluster import GIB, GuestType, NodeFacts, Snapshot
from agent.core.failures import FailureClass, understood
from agent.core.suitability import keeps_connections
from agent.ports import MigrationOrder, RefusedError
from tests.adapters.conftest import NODES, Make
from tests.core.clusters import cluster as snapshot_of
from tests.core.clusters import node
from tests.pve_server.client import PveServer, cluster, ct, vm
from tests.pve_server.releases import EARLY_8, LATE_8, NINE, RELEASES

pytestmark = pytest.mark.proxmoxer


def order(type_: GuestType, **values: Any) -> MigrationOrder:
    return MigrationOrder(100, type_, "pve1", "pve2", **({"online": False, "restart": False} | values))


class Kind(NamedTuple):
    """A guest on pve1, how the agent asks for it, and PVE's task for that."""

    guest: dict[str, Any]
    order: MigrationOrder
    task: str


DISK = {"config": {"scsi0": "fast:vm-100-disk-0,size=8G"}}
KINDS = {
    "a VM, live": Kind(vm(100, "pve1"), order(GuestType.QEMU, online=True), "qmigrate"),
    "a VM with disks of its node, live": Kind(
        vm(100, "pve1", **DISK), order(GuestType.QEMU, online=True, local_disks=True, storage_map=(("fast", "fast"),)), "qmigrate"
    ),
    "a VM within a limit": Kind(vm(100, "pve1"), order(GuestType.QEMU, online=True, bandwidth_limit_kib_s=1024), "qmigrate"),
    "a stopped VM": Kind(vm(100, "pve1", status="stopped"), order(GuestType.QEMU), "qmigrate"),
    "a stopped VM with disks of its node": Kind(
        vm(100, "pve1", status="stopped", **DISK), order(GuestType.QEMU, storage_map=(("fast", "fast"),)), "qmigrate"
    ),
    "a container, by a restart": Kind(ct(100, "pve1"), order(GuestType.LXC, restart=True), "vzmigrate"),
    "a stopped container": Kind(ct(100, "pve1", status="stopped"), order(GuestType.LXC), "vzmigrate"),
}
Play = Callable[[dict[str, Any]], PveApi]


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def play(server: PveServer, make: Make, release: str) -> Play:
    """A cluster of that release with one guest, whose storage `fast` is another on each node."""

    def build(guest: dict[str, Any]) -> PveApi:
        storages = {"fast": {"nodes": ["pve1", "pve2"]}}
        server.load(cluster({name: {"version": release} for name in NODES}, [guest], storages=storages))
        return make(f"{server.host}:{server.port}")

    return build


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_it_moves_and_runs_if_it_ran(server: PveServer, play: Play, kind: Kind) -> None:
    api = play(kind.guest)
    upid = api.migrate(kind.order)
    assert upid.split(":")[5] == kind.task
    server.wait_task(upid)
    assert api.task(upid).exit_status == "OK"
    guest = api.look().guest(100)
    assert guest is not None
    assert (guest.node, guest.status, guest.lock) == ("pve2", kind.guest.get("status", "running"), None)
    assert api.find_migration(100, "pve1", 0.0) == upid


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_pves_own_check_says_where_it_may_go_as_far_as_the_release_has_one(play: Play, kind: Kind, release: str) -> None:
    verdict = play(kind.guest).verdict(100, kind.order.type, "pve1", 0.0)
    has_disk = "config" in kind.guest
    assert (verdict.refusal is not None) == has_disk, "a disk of its node is a no until the settings allow to take it along"
    names_nodes = kind.order.type is GuestType.QEMU and (release != EARLY_8 or not kind.order.online)
    assert dict(verdict.refused_nodes).keys() == ({"pve3"} if has_disk and names_nodes else set()), "a list that is missing forbids nothing"


def test_connections_are_kept_on_9_and_8_refuses_the_whole_request(server: PveServer, play: Play, release: str) -> None:
    api = play(vm(100, "pve1"))
    wanted = order(GuestType.QEMU, online=True, conntrack=True)
    if release == NINE:
        server.wait_task(api.migrate(wanted))
        assert server.where(100) == "pve2"
    else:
        with pytest.raises(RefusedError) as caught:
            api.migrate(wanted)
        assert understood(str(caught.value)).failure is FailureClass.VERSION
        assert server.where(100) == "pve1"


@pytest.mark.parametrize(
    ("here", "there", "asks"), [(NINE, NINE, True), (NINE, LATE_8, False), (LATE_8, NINE, False), (LATE_8, LATE_8, False)]
)
def test_so_that_is_asked_for_only_between_nodes_of_9(here: str, there: str, asks: bool) -> None:
    seen: Snapshot = snapshot_of(node("pve1", 64, facts=NodeFacts(pve_version=here)), node("pve2", 64, facts=NodeFacts(pve_version=there)))
    assert keeps_connections(seen, "pve1", "pve2") is asks


def test_sizes_of_disks_are_told_in_each_release(play: Play) -> None:
    verdict = play(vm(100, "pve1", **DISK)).verdict(100, GuestType.QEMU, "pve1", 0.0)
    assert verdict.needs is not None
    assert [(volume.name, volume.size_bytes) for volume in verdict.needs.volumes] == [("fast:vm-100-disk-0", 8 * GIB)]

# SPDX-License-Identifier: GPL-3.0-or-later
"""The API adapter against a played cluster over HTTPS, and against servers that misbehave on the wire."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import json
import logging
import math
import os
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import proxmoxer
import pytest
import requests
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.adapters.pve import hosts, wire
from agent.adapters.pve.api import PveApi
from agent.adapters.pve.trust import split_host
from agent.core.cluster import GIB, GuestType, HaNodeAffinity, HaResource, HaResourceAffinity, Maintenance, Storage
from agent.core.needs import GuestNeeds, Volume
from agent.core.plan_types import Refusal
from agent.core.reasons import RefusalReason
from agent.ports import InDoubtError, MigrationOrder, OutsideError, PermanentError, RefusedError, TemporaryError
from tests.adapters.conftest import NODES, Make
from tests.pve_server.client import MIGRATE_CT, MIGRATE_VM, TOKEN_ID, TOKEN_SECRET, PveServer, cluster, ct, vm

pytestmark = pytest.mark.proxmoxer

RESOURCES = "/cluster/resources"
HA_STATUS = "/cluster/ha/status/manager_status"
UPID = "UPID:pve1:0002B8A4:00C1F3D2:69527E40:qmigrate:100:proxlb@pve!agent:"
LATE_S = 30.0  # when an answer comes that is not waited for
ASKED = "vmid=1&source=all&since=0"
ORDER = MigrationOrder(100, GuestType.QEMU, "pve1", "pve2", online=True, restart=False)


@pytest.fixture
def pve(server: PveServer) -> Iterator[PveServer]:
    """Three nodes with a VM, and whatever the last test did forgotten."""
    server.load(cluster(NODES, [vm(100, "pve1", cpu_cores=1.5, maxcpu=4)]))
    yield server
    for index in range(len(NODES)):
        server.endpoint(index, up=True)


@pytest.fixture
def api(pve: PveServer, make: Make) -> PveApi:
    """The adapter as on a node: localhost alone."""
    return make(own(pve))


def own(pve: PveServer) -> str:
    return f"localhost:{pve.endpoints[0].port}"


def other(pve: PveServer, index: int = 1) -> str:
    return f"127.0.0.1:{pve.endpoints[index].port}" if index == 0 else f"localhost:{pve.endpoints[index].port}"


@pytest.fixture
def refused() -> Iterator[Callable[[], int]]:
    """Make a port that refuses connections: it is taken, so that nobody else gets it, and nobody listens."""
    with contextlib.ExitStack() as stack:

        def make() -> int:
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            return int(taken.getsockname()[1])

        yield make


class TestLook:
    def test_all_is_there(self, pve: PveServer, api: PveApi) -> None:
        guests = [
            vm(200, "pve2", tags="b;a", pool="p", mem_bytes=GIB, memhost_bytes=2 * GIB, maxmem_bytes=4 * GIB, cpu_cores=1, maxcpu=2),
            ct(101, "pve1", status="stopped"),
        ]
        pve.load(cluster({"pve2": {"cores": 8, "memory_bytes": 32 * GIB}, "pve1": {}}, guests))
        pve.task("pve2", "vzdump", "200")
        before_s = time.time()
        snapshot = api.look()
        assert [node.name for node in snapshot.nodes] == ["pve1", "pve2"]
        assert [guest.vmid for guest in snapshot.guests] == [101, 200]
        node, guest = snapshot.node("pve2"), snapshot.guest(200)
        assert node is not None
        assert guest is not None
        assert (node.online, node.cpu_cores, node.memory_bytes) == (True, 8.0, 32 * GIB)
        assert guest.cpu_used_cores == pytest.approx(1.0)
        assert (guest.memory_used_bytes, guest.memory_host_bytes, guest.tags, guest.pool) == (GIB, 2 * GIB, ("b", "a"), "p")
        assert [(task.kind, task.vmid, task.is_running) for task in snapshot.tasks] == [("vzdump", 200, True)]
        assert before_s <= snapshot.taken_at <= time.time()
        assert snapshot.pve_version == "9.0.10"
        assert pve.made_up() == set()

    @pytest.mark.parametrize("release", ["8", "9"])
    def test_without_ha_guests_it_takes_three_requests_and_at_first_what_changes_rarely(
        self, pve: PveServer, api: PveApi, release: str
    ) -> None:
        pve.load(cluster(NODES, [vm(vmid, "pve1") for vmid in range(100, 200)], pve=release))
        assert len(api.look().guests) == 100
        assert (api.requests_made, len(pve.requests())) == (3 + 3, 6)  # version, options, HA resources
        assert api.look().pve_version.startswith(release)
        assert (api.requests_made, len(pve.requests())) == (9, 9)

    def test_numbers_as_strings_are_the_same_numbers(self, pve: PveServer, api: PveApi) -> None:
        plain = api.look()
        pve.settings(numbers_as_strings=True)
        texts = api.look()
        assert [(guest.cpu_cores, guest.memory_bytes) for guest in texts.guests] == [(g.cpu_cores, g.memory_bytes) for g in plain.guests]
        assert [node.cpu_used_cores for node in texts.nodes] == pytest.approx([node.cpu_used_cores for node in plain.nodes])

    def test_a_dead_node_has_unknown_load(self, pve: PveServer, api: PveApi) -> None:
        pve.node_online("pve2", online=False)
        pve.row("node/pve3", {"cpu": None}, drop=["mem"])
        snapshot = api.look()
        assert [(node.online, node.cpu_used_cores is None) for node in snapshot.nodes] == [(True, False), (False, True), (True, True)]

    def test_an_admins_maintenance_is_seen_and_a_state_alone_is_no_target(self, pve: PveServer, api: PveApi) -> None:
        pve.ha_maintenance("pve2", wanted=True)
        pve.ha_node("pve3", "maintenance")
        snapshot = api.look()
        assert snapshot.maintenance == (Maintenance("pve2", "ha-manager"),)
        assert snapshot.no_target == ("pve3",)

    def test_ha_guests_are_known_as_such(self, pve: PveServer, api: PveApi) -> None:
        pve.ha_guest(100, "started")
        guest = api.look().guest(100)
        assert guest is not None
        assert guest.ha == "started"

    @pytest.mark.parametrize("status", [404, 501])
    def test_without_an_ha_manager_it_looks_all_the_same(self, pve: PveServer, api: PveApi, status: int) -> None:
        pve.fail_call("GET", HA_STATUS, status, f"Method 'GET {HA_STATUS}' not implemented")
        assert api.look().maintenance == ()

    @pytest.mark.parametrize("path", [RESOURCES, "/cluster/tasks", HA_STATUS])
    def test_without_the_rest_it_does_not(self, pve: PveServer, api: PveApi, path: str) -> None:
        pve.fail_call("GET", path, 500, "got timeout")
        with pytest.raises(TemporaryError, match="got timeout"):
            api.look()

    @pytest.mark.parametrize("path", [RESOURCES, "/cluster/tasks"])
    def test_absent_resources_are_an_error(self, pve: PveServer, api: PveApi, path: str) -> None:
        pve.fail_call("GET", path, 501, "not implemented")
        with pytest.raises(PermanentError, match="not implemented") as caught:
            api.look()
        assert caught.value.hint


class TestHighAvailability:
    RULES: ClassVar = [
        {"rule": "home", "type": "node-affinity", "resources": "vm:100", "nodes": "pve1:2,pve2", "strict": 1},
        {"rule": "off", "type": "node-affinity", "resources": "ct:101", "nodes": "pve1", "disable": 1},
        {"rule": "bad", "type": "node-affinity", "resources": "ct:101", "nodes": "pve1", "errors": {"resources": ["used twice"]}},
        {"rule": "apart", "type": "resource-affinity", "affinity": "negative", "resources": "ct:101,vm:100"},
        {"rule": "pair", "type": "resource-affinity", "affinity": "positive", "resources": "vm:102,vm:100"},
    ]
    GROUPS: ClassVar = [
        {"group": "home", "nodes": "pve1:2,pve2", "restricted": 1, "nofailback": 1},
        {"group": "empty", "nodes": "pve3"},
    ]
    GUESTS: ClassVar = [vm(100, "pve1", ha="started"), ct(101, "pve2", ha="started"), vm(102, "pve1", ha="started"), vm(103, "pve3")]

    def test_pve_9_tells_rules(self, pve: PveServer, api: PveApi) -> None:
        resources = {"vm:100": {"failback": 0, "auto-rebalance": 0}, "vm:103": {"state": "ignored"}}
        pve.load(cluster(NODES, self.GUESTS, ha={"rules": self.RULES, "resources": resources}))
        api.look()
        before = api.requests_made
        ha = api.look().ha
        assert api.requests_made - before == 5
        assert ha.node_affinity == (HaNodeAffinity("home", (100,), (("pve1", 2), ("pve2", 0)), strict=True),)
        assert ha.resource_affinity == (HaResourceAffinity("apart", (100, 101), False), HaResourceAffinity("pair", (100, 102), True))
        assert ha.resources == (
            HaResource(100, "started", "started", "pve1", failback=False, auto_rebalance=False),
            HaResource(101, "started", "started", "pve2"),
            HaResource(102, "started", "started", "pve1"),
            HaResource(103, "ignored"),
        )
        assert pve.made_up() == set()

    @pytest.mark.parametrize(("release", "requests", "name"), [("8", 5, "home"), ("9", 6, "ha-group-home")])
    def test_groups_read_as_node_affinity(self, pve: PveServer, api: PveApi, release: str, requests: int, name: str) -> None:
        """On PVE 9 while the cluster is half-way from 8, and its groups are no rules yet."""
        resources = {"vm:100": {"group": "home"}, "ct:101": {"group": "gone"}}
        pve.load(cluster(NODES, self.GUESTS, pve=release, ha={"groups": self.GROUPS, "resources": resources}))
        api.look()
        before = api.requests_made
        ha = api.look().ha
        assert api.requests_made - before == requests
        assert ha.node_affinity == (HaNodeAffinity(name, (100,), (("pve1", 2), ("pve2", 0)), strict=True),)
        assert ha.resource_affinity == ()
        assert [(resource.vmid, resource.failback) for resource in ha.resources] == [(100, False), (101, True), (102, True)]

    def test_groups_migrated_between_two_requests_are_none(self, pve: PveServer, api: PveApi) -> None:
        resources = {"vm:100": {"group": "home"}}
        pve.load(cluster(NODES, self.GUESTS, ha={"groups": self.GROUPS, "resources": resources}))
        pve.fail_call("GET", "/cluster/ha/groups", 500, "cannot index groups: ha groups have been migrated to rules")
        assert [rule.name for rule in api.look().ha.node_affinity] == ["ha-group-home"]

    def test_what_the_ha_manager_does_is_told(self, pve: PveServer, api: PveApi) -> None:
        pve.load(cluster(NODES, self.GUESTS))
        assert [resource.state for resource in api.look().ha.resources] == ["started"] * 3  # later it moves some of them
        pve.ha_node("pve3", "maintenance")
        pve.ha_maintenance("pve2", wanted=True)
        assert api.look().ha.closed_nodes == ("pve2", "pve3")

    @pytest.mark.parametrize("release", ["8", "9"])
    def test_the_clusters_options_are_read_once_in_a_while(self, pve: PveServer, api: PveApi, release: str) -> None:
        options = {"crs": {"ha": "static", "ha-auto-rebalance": 1}, "registered-tags": ["plb_pin_pve1", "a"]}
        pve.load(cluster(NODES, self.GUESTS, pve=release, options=options))
        found = api.look()
        assert (found.ha.balances, found.registered_tags) == (True, ("a", "plb_pin_pve1"))
        api.look()
        assert len(pve.requests("/cluster/options")) == 1

    @pytest.mark.parametrize("path", ["/cluster/ha/resources", "/cluster/ha/rules", "/cluster/options"])
    def test_after_an_error_all_is_asked_again(self, pve: PveServer, api: PveApi, path: str) -> None:
        pve.load(cluster(NODES, self.GUESTS))
        pve.fail_call("GET", path, 500, "got timeout")
        with pytest.raises(TemporaryError, match="got timeout"):
            api.look()
        assert len(api.look().ha.resources) == 3
        pve.fail_call("GET", "/cluster/tasks", 500, "got timeout")
        with pytest.raises(TemporaryError, match="got timeout"):
            api.look()
        before = len(pve.requests("/cluster/options"))
        api.look()
        assert len(pve.requests("/cluster/options")) == before + 1

    def test_the_first_guest_under_ha_is_seen_at_once(self, pve: PveServer, api: PveApi) -> None:
        assert api.look().ha.resources == ()
        pve.ha_guest(100, "started")
        assert [resource.vmid for resource in api.look().ha.resources] == [100]


class TestTasks:
    def test_a_migration_is_started_followed_and_found(self, pve: PveServer, api: PveApi) -> None:
        pve.migration(duration_s=None)
        began_s = time.time()
        upid = api.migrate(ORDER)
        assert api.task(upid).exit_status is None
        assert api.find_migration(100, "pve1", began_s) == upid
        assert [task.upid for task in api.look().tasks if task.kind == "qmigrate"] == [upid]
        pve.finish_migration(100)
        assert pve.wait_task(upid) == "OK"
        assert api.task(upid).exit_status == "OK"
        assert pve.where(100) == "pve2"
        assert api.find_migration(100, "pve1", began_s) == upid
        assert api.find_migration(100, "pve1", time.time() + 60) is None
        assert api.find_migration(999, "pve1", began_s) is None
        assert pve.made_up() == set()

    def test_parameters_are_those_that_pve_wants(self, pve: PveServer, api: PveApi) -> None:
        pve.add_guest(ct(101, "pve1"))
        api.migrate(MigrationOrder(100, GuestType.QEMU, "pve1", "pve2", online=True, restart=False, bandwidth_limit_kib_s=2048))
        api.migrate(MigrationOrder(101, GuestType.LXC, "pve1", "pve3", online=False, restart=True))
        values = [request["values"] for request in pve.requests(method="POST")]
        assert values == [{"target": "pve2", "online": "1", "bwlimit": "2048"}, {"target": "pve3", "restart": "1"}]

    @pytest.mark.parametrize("release", ["8", "9"])
    def test_both_releases_take_both_kinds(self, pve: PveServer, api: PveApi, release: str) -> None:
        pve.load(cluster(NODES, [vm(100, "pve1"), ct(101, "pve1")], pve=release))
        for order in (ORDER, MigrationOrder(101, GuestType.LXC, "pve1", "pve3", online=False, restart=True)):
            assert pve.wait_task(api.migrate(order)) == "OK"

    def test_how_a_failed_migration_ended_is_told(self, pve: PveServer, api: PveApi) -> None:
        pve.fail_migration(100, "migration aborted")
        upid = api.migrate(ORDER)
        pve.wait_task(upid)
        assert api.task(upid).exit_status == "migration aborted"

    def test_an_ha_guest_gives_a_request_to_the_ha_manager(self, pve: PveServer, api: PveApi) -> None:
        pve.ha_guest(100, "started")
        assert ":hamigrate:100:" in api.migrate(ORDER)

    def test_a_task_that_nobody_knows_is_refused(self, pve: PveServer, api: PveApi) -> None:
        with pytest.raises(RefusedError, match="does not know"):
            api.task(UPID)
        with pytest.raises(RefusedError, match="not the UPID"):
            api.task("what?")

    def test_a_task_of_a_dead_node_may_be_asked_for_again(self, pve: PveServer, api: PveApi) -> None:
        pve.node_online("pve2", online=False)
        with pytest.raises(TemporaryError, match="is the node up"):
            api.task("UPID:pve2:0002B8A4:00C1F3D2:69527E40:qmigrate:100:root@pam:")


class TestRefusals:
    def test_pve_refuses_in_its_own_words(self, pve: PveServer, api: PveApi) -> None:
        pve.lock(100, "backup")
        with pytest.raises(RefusedError, match=r"^VM is locked \(backup\)$"):
            api.migrate(ORDER)

    def test_parameter_errors_name_the_parameter(self, pve: PveServer, api: PveApi) -> None:
        with pytest.raises(RefusedError, match=r"^Parameter verification failed\. target: "):
            api.migrate(MigrationOrder(100, GuestType.QEMU, "pve1", "not a node", online=True, restart=False))

    def test_a_guest_that_is_elsewhere_is_refused(self, pve: PveServer, api: PveApi) -> None:
        with pytest.raises(RefusedError, match="does not exist"):
            api.migrate(MigrationOrder(100, GuestType.QEMU, "pve2", "pve3", online=True, restart=False))

    def test_no_permission_for_one_guest_is_a_refusal(self, pve: PveServer, api: PveApi) -> None:
        pve.load(cluster(NODES, [vm(100, "pve1")], acl=[{"user": TOKEN_ID, "path": "/", "privs": ["Sys.Audit", "VM.Audit"]}]))
        with pytest.raises(RefusedError, match=r"VM\.Migrate"):
            api.migrate(ORDER)

    @pytest.mark.parametrize("status", [400, 404, 500, 501])
    def test_any_no_to_a_post_is_a_refusal(self, pve: PveServer, api: PveApi, status: int) -> None:
        pve.fail_call("POST", MIGRATE_VM, status, "nö, not today")
        with pytest.raises(RefusedError, match="not today"):
            api.migrate(ORDER)
        assert len(pve.requests(method="POST")) == 1


class TestVerdict:
    def ask(self, api: PveApi, vmid: int, kind: GuestType = GuestType.QEMU, node: str = "pve1") -> Any:
        return api.verdict(vmid, kind, node, 123.0)

    @pytest.mark.parametrize("release", ["8", "9"])
    def test_one_request_for_a_vm_on_a_node(self, pve: PveServer, make: Make, release: str) -> None:
        pve.load(cluster(NODES, [vm(100, "pve1")], pve=release))
        files = {
            "nodes/pve1/qemu-server/100.conf": "scsi0: ceph:vm-100-disk-0,size=8G\ncpu: host\nnet0: virtio=BC:24:11:0:0:1,bridge=vmbr0\n",
            "replication.cfg": "local: 100-0\n\ttarget pve2\n",
        }
        verdict = self.ask(make(own(pve), files=files), 100)
        assert (verdict.asked_at, verdict.refusal, verdict.refused_nodes) == (123.0, None, ())
        disks = (Volume("ceph:vm-100-disk-0", "ceph", size_bytes=8 * GIB),)
        assert verdict.needs == GuestNeeds(disks, ("vmbr0",), "host", replicated_to=("pve2",))
        assert len(pve.requests()) == 1

    @pytest.mark.parametrize(("release", "requests"), [("8", 1), ("9", 2)])  # the version, on 9 PVE's check
    def test_a_container_on_a_node(self, pve: PveServer, make: Make, release: str, requests: int) -> None:
        pve.load(cluster(NODES, [ct(100, "pve1")], pve=release))
        api = make(own(pve), files={"nodes/pve1/lxc/100.conf": "rootfs: ceph:vm-100-disk-0,size=8G\nlock: backup\n[snap]\n"})
        assert self.ask(api, 100, GuestType.LXC).refusal == Refusal(100, RefusalReason.LOCKED, "backup")
        assert len(pve.requests()) == requests
        api = make(own(pve), files={})
        found = self.ask(api, 100, GuestType.LXC)
        assert found.refusal == Refusal(100, RefusalReason.PRECONDITION, "its configuration is not on pve1")

    @pytest.mark.parametrize("release", ["8", "9"])
    def test_off_a_node_the_api_tells_the_same(self, pve: PveServer, api: PveApi, release: str) -> None:
        config = {"scsi0": "ceph:vm-100-disk-0,size=8G", "cpu": "host", "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0"}
        pve.load(cluster(NODES, [vm(100, "pve1", config=config, replication=["pve3"]), vm(101, "pve1")], pve=release))
        verdict = self.ask(api, 100)
        assert (verdict.refusal, verdict.refused_nodes) == (None, ())
        disks = (Volume("ceph:vm-100-disk-0", "ceph", size_bytes=8 * GIB),)
        assert verdict.needs == GuestNeeds(disks, ("vmbr0",), "host", replicated_to=("pve3",))
        assert len(pve.requests()) == 3
        self.ask(api, 101)
        assert len(pve.requests()) == 5

    @pytest.mark.parametrize("release", ["8", "9"])
    def test_disks_devices_and_locks(self, pve: PveServer, api: PveApi, release: str) -> None:
        guests = [
            vm(100, "pve1", config={"scsi0": "local-lvm:vm-100-disk-0,size=8G", "ide2": "local-lvm:vm-100-cloudinit,media=cdrom"}),
            vm(101, "pve1", local_resources=["hostpci0"]),
            vm(102, "pve1", lock="backup"),
        ]
        pve.load(cluster(NODES, guests, pve=release))
        assert self.ask(api, 100).refusal == Refusal(100, RefusalReason.LOCAL_DISK, "local-lvm:vm-100-disk-0")
        assert self.ask(api, 101).refusal == Refusal(101, RefusalReason.LOCAL_DEVICE, "hostpci0")
        assert self.ask(api, 102).refusal == Refusal(102, RefusalReason.LOCKED, "backup")

    def test_nodes_without_its_storage_are_refused(self, pve: PveServer, api: PveApi) -> None:
        storages = {"san": {"type": "rbd", "shared": True, "nodes": ["pve1", "pve2"]}}
        pve.load(cluster(NODES, [vm(100, "pve1", config={"scsi0": "san:vm-100-disk-0,size=8G"})], storages=storages))
        assert self.ask(api, 100).refused_nodes == (("pve3", Refusal(100, RefusalReason.STORAGE_MISSING, "san")),)

    def test_a_guest_that_is_gone_is_refused_in_pves_words(self, pve: PveServer, api: PveApi) -> None:
        refusal = self.ask(api, 100, node="pve2").refusal
        assert refusal.reason is RefusalReason.PRECONDITION
        assert "does not exist" in refusal.detail

    @pytest.mark.parametrize("release", ["8", "9"])
    def test_a_containers_disks_and_devices(self, pve: PveServer, api: PveApi, release: str) -> None:
        guests = [
            ct(100, "pve1", config={"rootfs": "san:vm-100-disk-0,size=8G", "net0": "name=eth0,bridge=vmbr1"}),
            ct(102, "pve1", config={"rootfs": "san:vm-102-disk-0,size=8G", "mp0": "/mnt/x,mp=/x"}),
            ct(103, "pve1", config={"rootfs": "san:vm-103-disk-0,size=8G"}, lock="backup"),
        ]
        pve.load(cluster(NODES, guests, pve=release, storages={"san": {"type": "rbd", "shared": True}}))
        free = self.ask(api, 100, GuestType.LXC)
        assert (free.refusal, free.refused_nodes) == (None, ())
        assert free.needs == GuestNeeds((Volume("san:vm-100-disk-0", "san", size_bytes=8 * GIB),), ("vmbr1",))
        assert self.ask(api, 102, GuestType.LXC).needs.devices == ("mp0 /mnt/x",)
        assert self.ask(api, 103, GuestType.LXC).refusal == Refusal(103, RefusalReason.LOCKED, "backup")

    def test_a_mapped_device_is_not_on_every_node(self, pve: PveServer, api: PveApi) -> None:
        mapped = {"hostpci0": {"name": "gpu", "live": True, "nodes": ["pve1", "pve3"]}}
        pve.load(cluster(NODES, [vm(100, "pve1", local_resources=["hostpci0"], mapped_resources=mapped)]))
        found = self.ask(api, 100)
        assert found.refusal is None
        assert found.refused_nodes == (("pve2", Refusal(100, RefusalReason.DEVICE_MISSING, "hostpci0")),)

    def test_storages_are_part_of_a_look(self, pve: PveServer, api: PveApi) -> None:
        storages = {"san": {"type": "rbd", "shared": True, "nodes": ["pve1", "pve2"]}, "local-lvm": {"type": "lvmthin"}}
        pve.load(cluster(NODES, [], storages=storages))
        assert set(api.look().storages) >= {Storage("local-lvm", False, NODES), Storage("san", True, ("pve1", "pve2"))}

    def test_a_node_of_the_older_release_in_a_newer_cluster(self, pve: PveServer, api: PveApi) -> None:
        nodes = {"pve1": {}, "pve2": {"version": "8.4.1"}}
        pve.load(cluster(nodes, [ct(100, "pve2", config={"rootfs": "ceph:vm-100-disk-0,size=8G"})]))
        assert self.ask(api, 100, GuestType.LXC, "pve2").refusal is None

    def test_pves_answer_to_a_container_is_not_needed_on_8(self, pve: PveServer, api: PveApi) -> None:
        pve.load(cluster(NODES, [ct(100, "pve1", config={"rootfs": "ceph:vm-100-disk-0,size=8G"})], pve="8"))
        assert self.ask(api, 100, GuestType.LXC).refusal is None
        assert not pve.requests(MIGRATE_CT)


class TestToken:
    def test_no_token_yet(self, pve: PveServer, make: Make) -> None:
        with pytest.raises(PermanentError) as caught:
            make(own(pve), token_secret=lambda: None).look()
        assert (str(caught.value), caught.value.hint) == ("there is no API token yet", "run: proxlb-agent setup")

    def test_a_refused_token(self, pve: PveServer, make: Make) -> None:
        with pytest.raises(PermanentError, match="refuses the API token proxlb@pve!agent") as caught:
            make(own(pve), token_secret=lambda: "wrong").look()
        assert caught.value.hint == "run: proxlb-agent setup"
        assert len(pve.requests()) == 1

    def test_a_renewed_token_is_read_again(self, pve: PveServer, make: Make) -> None:
        secrets = iter(["old", TOKEN_SECRET, TOKEN_SECRET])
        assert make(own(pve), token_secret=lambda: next(secrets)).look().guests

    def test_a_renewed_token_is_read_again_before_a_post(self, pve: PveServer, make: Make) -> None:
        secrets = iter(["old", TOKEN_SECRET, TOKEN_SECRET])
        assert make(own(pve), token_secret=lambda: next(secrets)).migrate(ORDER).startswith("UPID:")
        assert len(pve.tasks("qmigrate")) == 1

    @pytest.mark.parametrize("secret", ["two words", "a\r\nX-Evil: 1", "sécret", "x\0"])
    def test_what_is_no_secret_is_never_shown(self, pve: PveServer, make: Make, secret: str) -> None:
        with pytest.raises(PermanentError) as caught:
            make(own(pve), token_secret=lambda: secret).look()
        assert secret not in str(caught.value)

    @pytest.mark.parametrize("token_id", ["", "root@pam", "agent", "proxlb!agent", "proxlb@pve!"])
    def test_what_is_no_token_id(self, pve: PveServer, make: Make, token_id: str) -> None:
        with pytest.raises(PermanentError, match="not the id of an API token"):
            make(own(pve), token_id=token_id).look()

    def test_a_file_that_cannot_be_read_may_be_later(self, pve: PveServer, make: Make) -> None:
        def broken() -> str:
            raise PermissionError(13, "Permission denied")

        with pytest.raises(TemporaryError, match="Permission denied"):
            make(own(pve), token_secret=broken).look()

    def test_a_file_that_is_no_text_holds_no_secret(self, pve: PveServer, make: Make) -> None:
        with pytest.raises(PermanentError, match="is not one"):
            make(own(pve), token_secret=lambda: b"\xff".decode("ascii")).look()

    def test_the_secret_is_in_no_log(self, api: PveApi, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG):
            api.look()
            api.migrate(ORDER)
        assert TOKEN_SECRET not in caplog.text
        assert TOKEN_SECRET not in repr(api._hosts._access)


class TestTrust:
    def test_another_nodes_certificate_is_not_ours(self, pve: PveServer, make: Make) -> None:
        with pytest.raises(PermanentError, match="does not show the certificate") as caught:
            make(other(pve)).look()  # a valid certificate of the cluster for localhost, but that of pve2
        assert "pveproxy" in caught.value.hint
        assert pve.requests() == []

    def test_the_own_nodes_name_is_pinned_as_well(self, pve: PveServer, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        resolve = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more: resolve("127.0.0.1" if host == "pve1" else host, *more))
        assert make(f"pve1:{pve.endpoints[0].port}").look().nodes
        with pytest.raises(PermanentError, match="does not show the certificate"):
            make(f"pve1:{pve.endpoints[1].port}").look()

    def test_off_a_node_the_clusters_authority_counts(self, pve: PveServer, make: Make) -> None:
        assert make(other(pve), own_node=None).look().nodes

    def test_off_a_node_the_name_counts(self, pve: PveServer, make: Make) -> None:
        with wire_server(Path(pve.ca_file).parent, json_answer([]), host="127.0.0.2") as wire:
            with pytest.raises(PermanentError, match=r"127\.0\.0\.2.* is not trusted") as caught:
                make(f"127.0.0.2:{wire.port}", own_node=None).look()
            assert wire.requests == []
        assert "api.ca_file" in caught.value.hint

    def test_an_authority_that_did_not_sign_it(self, pve: PveServer, make: Make, tmp_path: Path) -> None:
        certificate(tmp_path, "other")
        with pytest.raises(PermanentError, match="is not trusted: "):
            make(other(pve), own_node=None, ca_file=str(tmp_path / "other.pem")).look()
        assert pve.requests() == []

    def test_the_systems_authorities_if_no_file_is_given(self, pve: PveServer, make: Make) -> None:
        with pytest.raises(PermanentError, match="is not trusted"):
            make(other(pve), own_node=None, ca_file=None).look()

    def test_a_missing_authority_is_not_trust(self, pve: PveServer, make: Make, tmp_path: Path) -> None:
        with pytest.raises(PermanentError, match="there is no file"):
            make(other(pve), own_node=None, ca_file=str(tmp_path / "none.pem")).look()

    def test_a_broken_authority_is_not_trust(self, pve: PveServer, make: Make, tmp_path: Path) -> None:
        (tmp_path / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        with pytest.raises(OutsideError):
            make(other(pve), own_node=None, ca_file=str(tmp_path / "broken.pem")).look()
        assert pve.requests() == []

    def test_environment_variables_change_nothing(
        self, pve: PveServer, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
        assert make(own(pve)).look().nodes
        assert make(other(pve), own_node=None).look().nodes

    @pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
    def test_checks_are_off_only_when_told(self, pve: PveServer, make: Make) -> None:
        assert make(other(pve), verify_tls=False).look().nodes

    def test_without_a_certificate_on_disk_nothing_is_trusted(self, pve: PveServer, make: Make, tmp_path: Path) -> None:
        with pytest.raises(TemporaryError, match="is pve-cluster running"):
            make(own(pve), pmxcfs=str(tmp_path)).look()
        (tmp_path / "local").mkdir()
        (tmp_path / "local" / "pve-ssl.pem").write_text("nothing")
        with pytest.raises(PermanentError, match="holds no certificate"):
            make(own(pve), pmxcfs=str(tmp_path)).look()
        assert pve.requests() == []

    def test_the_custom_certificate_comes_first_and_needs_no_name_issuer_or_date(self, make: Make, tmp_path: Path) -> None:
        (tmp_path / "local").mkdir()
        certificate(tmp_path / "local", "pve-ssl")
        certificate(tmp_path / "local", "pveproxy-ssl", days=-1)
        # what stands behind the own certificate is its issuers'
        with (tmp_path / "local" / "pveproxy-ssl.pem").open("a") as chain:
            chain.write((tmp_path / "local" / "pve-ssl.pem").read_text())
        for name, is_trusted in (("pveproxy-ssl", True), ("pve-ssl", False)):
            with wire_server(tmp_path, json_answer([]), pem="local", name=name) as wire:
                expected = contextlib.nullcontext() if is_trusted else pytest.raises(PermanentError, match="does not show")
                with expected:
                    assert make(f"localhost:{wire.port}", pmxcfs=str(tmp_path)).find_migration(1, "pve1", 0) is None

    def test_a_renewed_certificate_is_read_again(self, make: Make, tmp_path: Path) -> None:
        (tmp_path / "local").mkdir()
        certificate(tmp_path / "local", "pve-ssl")
        with wire_server(tmp_path, json_answer([]), json_answer(UPID), pem="local") as wire:
            api = make(f"localhost:{wire.port}", pmxcfs=str(tmp_path))
            assert api.find_migration(1, "pve1", 0) is None
            certificate(tmp_path / "local", "pve-ssl")
            wire.renew()
            assert api.migrate(ORDER) == UPID
            assert len(wire.requests) == 2


class TestFailover:
    def test_reads_go_to_the_next_node(self, pve: PveServer, make: Make, refused: Callable[[], int]) -> None:
        hosts = [f"localhost:{refused()}", f"127.0.0.1:{pve.endpoints[1].port}"]
        api = make(*hosts, own_node=None)
        assert api.look().nodes
        assert {request["listener"] for request in pve.requests()} == {pve.requests()[0]["listener"]}

    def test_the_first_host_is_asked_first_again_after_a_rest(self, pve: PveServer, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hosts, "REST_S", 0.3)
        api = make(own(pve), f"127.0.0.1:{pve.endpoints[1].port}", own_node=None)
        pve.endpoint(0, up=False)
        assert api.look().nodes
        pve.endpoint(0, up=True)
        time.sleep(0.35)
        pve.clear()
        assert api.look().nodes
        assert len({str(request["listener"]) for request in pve.requests()}) == 1
        pve.endpoint(1, up=False)
        assert api.look().nodes

    def test_a_post_goes_on_while_nothing_was_sent(self, pve: PveServer, make: Make, refused: Callable[[], int]) -> None:
        api = make(f"localhost:{refused()}", f"127.0.0.1:{pve.endpoints[1].port}", own_node=None)
        assert api.migrate(ORDER).startswith("UPID:")
        assert len(pve.requests(method="POST")) == 1

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_post_that_broke_is_in_doubt_and_sent_once(self, pve: PveServer, make: Make, when: str) -> None:
        pve.drop_call("POST", MIGRATE_VM, when)
        api = make(own(pve), f"127.0.0.1:{pve.endpoints[1].port}", own_node=None)
        with pytest.raises(InDoubtError, match="see the task list"):
            api.migrate(ORDER)
        assert len(pve.requests(method="POST")) == 1
        assert len(pve.tasks("qmigrate")) == (when == "after")

    def test_a_post_that_is_too_late_is_not_sent(self, pve: PveServer, make: Make) -> None:
        api = make(own(pve), f"127.0.0.1:{pve.endpoints[1].port}", own_node=None)
        with pytest.raises(TemporaryError, match="timed out before the request was sent"):
            api.migrate(ORDER, time.clock_gettime(time.CLOCK_BOOTTIME) - 0.001)
        assert pve.requests(method="POST") == []
        assert api.migrate(ORDER, time.clock_gettime(time.CLOCK_BOOTTIME) + 20).startswith("UPID:")

    @pytest.mark.parametrize("until", ["its check is past", "its own time is over"])
    def test_nothing_is_sent_once_its_time_is_over(self, pve: PveServer, make: Make, monkeypatch: pytest.MonkeyPatch, until: str) -> None:
        """A machine that is suspended between its check and the request: only CLOCK_BOOTTIME tells."""
        api, asleep_s = make(own(pve)), 0.0
        assert api.look().nodes
        connect = wire.HTTPSConnection.connect

        def suspended(connection: wire.HTTPSConnection) -> None:
            nonlocal asleep_s
            connect(connection)  # type: ignore[no-untyped-call]
            asleep_s = 40.0

        boottime_s = wire.boottime_s
        monkeypatch.setattr(wire.HTTPSConnection, "connect", suspended)
        monkeypatch.setattr(wire, "boottime_s", lambda: boottime_s() + asleep_s)
        with pytest.raises(TemporaryError, match="in time"):
            api.migrate(ORDER, boottime_s() + 20 if until == "its check is past" else math.inf)
        assert pve.requests(method="POST") == []

    def test_a_post_whose_body_is_too_late_is_in_doubt_and_does_nothing(
        self, pve: PveServer, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        api, sent = make(own(pve)), wire.Exchange.before_bytes
        assert api.look().nodes

        def stopped(exchange: wire.Exchange) -> None:
            exchange.send_until_s = 0.0 if exchange.is_sent else exchange.send_until_s
            sent(exchange)

        monkeypatch.setattr(wire.Exchange, "before_bytes", stopped)
        with pytest.raises(InDoubtError):
            api.migrate(ORDER)
        assert pve.tasks("qmigrate") == []

    def test_a_post_without_an_answer_in_time_is_in_doubt(self, pve: PveServer, make: Make) -> None:
        pve.delay_call("POST", MIGRATE_VM, answer_s=LATE_S)
        api = make(own(pve), f"127.0.0.1:{pve.endpoints[1].port}", own_node=None, timeout_s=1.5)
        began_s = time.monotonic()
        with pytest.raises(InDoubtError, match=r"within 1\.5 s"):
            api.migrate(ORDER)
        assert time.monotonic() - began_s < LATE_S
        assert len(pve.requests(method="POST")) == 1

    @pytest.mark.parametrize("status", [502, 503, 504, 596, 597, 599])
    def test_a_post_that_the_node_passed_on_without_an_answer_is_in_doubt(self, pve: PveServer, make: Make, status: int) -> None:
        pve.fail_call("POST", MIGRATE_VM, status, "Connection timed out")
        api = make(own(pve), f"127.0.0.1:{pve.endpoints[1].port}", own_node=None)
        with pytest.raises(InDoubtError, match="Connection timed out"):
            api.migrate(ORDER)
        assert len(pve.requests(method="POST")) == 1

    def test_a_post_that_could_not_be_passed_on_may_be_tried_later(self, pve: PveServer, make: Make) -> None:
        pve.fail_call("POST", MIGRATE_VM, 595, "No route to host")
        api = make(own(pve), f"127.0.0.1:{pve.endpoints[1].port}", own_node=None)
        with pytest.raises(TemporaryError, match="No route to host"):
            api.migrate(ORDER)
        assert len(pve.requests(method="POST")) == 1

    @pytest.mark.parametrize("status", [502, 595, 596, 599])
    def test_a_read_that_failed_on_the_way_goes_to_the_next_node(self, pve: PveServer, make: Make, status: int) -> None:
        pve.fail_call("GET", RESOURCES, status, "Connection timed out")
        assert make(own(pve), f"127.0.0.1:{pve.endpoints[1].port}", own_node=None).look().nodes
        pve.fail_call("GET", RESOURCES, status, "Connection timed out")
        with pytest.raises(TemporaryError, match=f"{status} Connection timed out"):
            make(own(pve)).look()

    def test_a_host_that_cannot_reach_another_node_is_still_asked_first(self, pve: PveServer, make: Make) -> None:
        api = make(own(pve), f"127.0.0.1:{pve.endpoints[1].port}", own_node=None)
        assert api.look().nodes
        first = pve.requests()[0]["listener"]
        pve.fail_call("GET", RESOURCES, 595, "No route to host")
        assert api.look().nodes
        pve.clear()
        assert api.look().nodes
        assert {str(request["listener"]) for request in pve.requests()} == {str(first)}

    def test_a_web_page_in_the_way_of_a_post_is_in_doubt(self, pve: PveServer, api: PveApi) -> None:
        pve.fail_call("POST", MIGRATE_VM, 500, "Internal Server Error", body="<html>oops</html>")
        with pytest.raises(InDoubtError):
            api.migrate(ORDER)

    def test_all_hosts_are_named_when_none_answers(self, make: Make, refused: Callable[[], int]) -> None:
        first, second = f"localhost:{refused()}", f"127.0.0.1:{refused()}"
        with pytest.raises(TemporaryError) as caught:
            make(first, second).look()
        assert str(caught.value) == "; ".join(f"{host} refuses connections: is pveproxy running there?" for host in (first, second))

    def test_a_name_that_is_not_known(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(*asked: object) -> None:
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(TemporaryError, match=r"cannot find the address of nowhere\.example"):
            make("nowhere.example").look()

    def test_no_hosts(self, make: Make) -> None:
        with pytest.raises(PermanentError) as caught:
            make().look()
        assert "api.hosts" in caught.value.hint

    def test_a_connection_that_is_not_accepted_in_time(self, make: Make) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)  # the kernel accepts, nobody speaks TLS
            began_s = time.monotonic()
            with pytest.raises(TemporaryError, match="accepts no connection in time"):
                make(f"localhost:{listener.getsockname()[1]}", timeout_s=0.5).migrate(ORDER)
            assert time.monotonic() - began_s < LATE_S

    def test_nothing_is_sent_after_the_deadline(self, pve: PveServer, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        resolve = socket.getaddrinfo

        def slow(*asked: Any) -> Any:
            time.sleep(0.6)
            return resolve(*asked)

        monkeypatch.setattr(socket, "getaddrinfo", slow)
        with pytest.raises(TemporaryError):
            make(own(pve), own(pve).replace("localhost", "127.0.0.1"), timeout_s=0.5).migrate(ORDER)
        assert pve.requests() == []


# ---- servers that misbehave on the wire


def certificate(folder: Path, name: str, days: int = 2) -> None:
    """A certificate of nobody for nobody, in NAME.pem and NAME.key; with negative `days` it has expired."""
    key = ec.generate_private_key(ec.SECP256R1())
    nobody = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")])
    ends = dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(days=days)
    builder = x509.CertificateBuilder().subject_name(nobody).issuer_name(nobody).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(ends - dt.timedelta(days=9)).not_valid_after(ends)
    made = builder.sign(key, hashes.SHA256())
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    (folder / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def raw(status: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def json_answer(data: object, status: str = "200 OK") -> bytes:
    return raw(status, json.dumps({"data": data}).encode(), "Content-Type: application/json;charset=UTF-8")


class WireServer:
    """Answers each request with the next of `answers` (the last one for ever): bytes, None to hang up, or RESET."""

    RESET = object()

    def __init__(self, answers: tuple[object, ...], pem: Path, host: str) -> None:
        self.requests: list[str] = []
        self._answers = answers
        self._pem = pem
        self.renew()
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def renew(self) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self._pem, self._pem.with_suffix(".key"))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for connection in self._open:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            plain.settimeout(60)
            try:
                connection = self._context.wrap_socket(plain, server_side=True)
            except OSError:
                plain.close()
                continue
            self._open.append(connection)
            with contextlib.suppress(OSError):
                while self._answer(connection):
                    pass

    def _answer(self, connection: ssl.SSLSocket) -> bool:
        text = b""
        while b"\r\n\r\n" not in text:
            more = connection.recv(65536)
            if not more:
                return False
            text += more
        head, _, body = text.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        while length is not None and len(body) < int(length[1]):  # what is left unread would reset the connection
            body += connection.recv(65536)
        answer = self._answers[min(len(self.requests), len(self._answers) - 1)]
        self.requests.append(text.split(b"\r\n")[0].decode())
        if isinstance(answer, bytes):
            connection.sendall(answer)
        if answer is self.RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        return False


@contextlib.contextmanager
def wire_server(
    root: Path, *answers: object, pem: str = "nodes/pve1", name: str = "pve-ssl", host: str = "127.0.0.1"
) -> Iterator[WireServer]:
    running = WireServer(answers, root / pem / f"{name}.pem", host)
    try:
        yield running
    finally:
        running.close()


class KeepingServer(WireServer):
    """Answers the first request, keeps its connection, and breaks it under a second one."""

    def _answer(self, connection: ssl.SSLSocket) -> bool:
        if self.requests:
            return super()._answer(connection)
        connection.recv(65536)
        self.requests.append("first")
        connection.sendall(json_answer([]))
        if connection.recv(65536):
            self.requests.append("second")
        connection.close()
        return False


@contextlib.contextmanager
def keeping_server(root: Path, *answers: object) -> Iterator[KeepingServer]:
    running = KeepingServer((None, *answers), root / "nodes/pve1/pve-ssl.pem", "127.0.0.1")
    try:
        yield running
    finally:
        running.close()


BROKEN_ANSWERS: dict[str, object] = {
    "hang-up": None,
    "reset": WireServer.RESET,
    "no-http": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "half-a-status-line": b"HTTP/1.1 2",
    "odd-status": b"HTTP/1.1 abc what\r\n\r\n",
    "half-a-body": raw("200 OK", b'{"data": ', "Content-Type: application/json", length=999),
    "broken-chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "not-gzip": raw("200 OK", b"xxxx", "Content-Encoding: gzip", "Content-Type: application/json"),
    "empty": raw("200 OK"),
    "no-content": raw("204 No Content"),
    "html": raw("200 OK", b"<html>welcome</html>", "Content-Type: text/html"),
    "not-json": raw("200 OK", b"{data", "Content-Type: application/json"),
    "not-utf-8": raw("200 OK", b'{"data": "\xff"}', "Content-Type: application/json"),
    "list-at-the-top": raw("200 OK", b"[]", "Content-Type: application/json"),
    "null-at-the-top": raw("200 OK", b"null", "Content-Type: application/json"),
    "text-at-the-top": raw("200 OK", b'"data"', "Content-Type: application/json"),
    "no-data": raw("200 OK", b"{}", "Content-Type: application/json"),
    "deep": raw("200 OK", b"[" * 100_000, "Content-Type: application/json"),
    "data-null": json_answer(None),
    "data-number": json_answer(7),
    "data-text": json_answer("UPID:nonsense"),
    "redirect": raw("302 Found", b"", "Location: https://example.org/"),
    "redirect-nowhere": raw("301 Moved", b"", "Location: :::"),
    "not-modified": raw("304 Not Modified"),
    "401-text": raw("401 No ticket"),
    "401-list": raw("401 authentication failure", b"[]", "Content-Type: application/json"),
    "403-null": raw("403 Permission check failed (/, Sys.Audit)", b"null", "Content-Type: application/json"),
    "400-odd": raw("400 Parameter verification failed.", b'{"data": [1], "errors": [1]}', "Content-Type: application/json"),
    "500-data-list": raw("500 got timeout", b'{"data": [1]}', "Content-Type: application/json"),
    "500-text": raw("500 got timeout", b'"x"', "Content-Type: application/json"),
    "500-no-reason": raw("500 ", b'{"data": null, "message": "it died\\n"}', "Content-Type: application/json"),
    "500-half": raw("500 got timeout", b"x", length=999),
    "503-html": raw("503 Service Unavailable", b"<html>", "Content-Type: text/html", "Retry-After: 3600"),
    "596": raw("596 Connection timed out"),
    "600": raw("600 what"),
}
CALLS: dict[str, Callable[[PveApi], object]] = {
    "look": lambda api: api.look(),
    "verdict-vm": lambda api: api.verdict(100, GuestType.QEMU, "pve1", 0.0),
    "verdict-ct": lambda api: api.verdict(100, GuestType.LXC, "pve1", 0.0),
    "migrate": lambda api: api.migrate(ORDER),
    "task": lambda api: api.task(UPID),
    "find": lambda api: api.find_migration(100, "pve1", 0.0),
}
NOT_STARTED = {"401-text", "401-list", "403-null", "400-odd", "500-data-list", "500-text", "500-no-reason", "500-half", "600"}
NOT_STARTED |= {"redirect", "redirect-nowhere", "not-modified"}
REFUSED_VERDICTS = {name for name in BROKEN_ANSWERS if name.startswith("500-")}


class TestBrokenAnswers:
    @pytest.mark.parametrize("answer", BROKEN_ANSWERS)
    @pytest.mark.parametrize("call", CALLS)
    def test_each_becomes_an_error_of_ours(self, server: PveServer, pmxcfs: Path, make: Make, answer: str, call: str) -> None:
        with wire_server(pmxcfs, BROKEN_ANSWERS[answer]) as wire:
            api = make(f"localhost:{wire.port}")
            if call == "verdict-vm" and answer in REFUSED_VERDICTS:
                assert CALLS[call](api).refusal.reason is RefusalReason.PRECONDITION  # type: ignore[attr-defined]
                return
            with pytest.raises(OutsideError) as caught:
                CALLS[call](api)
            assert api.requests_made == len(wire.requests)
            assert len(wire.requests) <= 1 + 2 * (call == "verdict-ct")  # which asks for the version first, and can do without it
        error = caught.value
        assert str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 500
        assert TOKEN_SECRET not in str(error)
        assert not isinstance(error, PermanentError) or error.hint
        if call == "migrate":
            assert isinstance(error, InDoubtError) == (answer not in NOT_STARTED)
        elif (call, answer) != ("task", "400-odd"):
            assert isinstance(error, TemporaryError | PermanentError)

    def test_a_web_page_is_told_as_such(self, server: PveServer, pmxcfs: Path, make: Make) -> None:
        with wire_server(pmxcfs, BROKEN_ANSWERS["html"]) as wire, pytest.raises(PermanentError, match="with a web page") as caught:
            make(f"localhost:{wire.port}").look()
        assert "api.hosts" in caught.value.hint

    def test_a_null_list_is_told_as_such(self, server: PveServer, pmxcfs: Path, make: Make) -> None:
        with wire_server(pmxcfs, json_answer(None)) as wire, pytest.raises(TemporaryError, match="with nothing, not with a list"):
            make(f"localhost:{wire.port}").look()

    def test_pves_words_are_read_as_utf_8(self, server: PveServer, pmxcfs: Path, make: Make) -> None:
        answer = raw("500 storage 'Müll' fehlt".encode().decode("latin-1"), b'{"data": null}', "Content-Type: application/json")
        with wire_server(pmxcfs, answer) as wire, pytest.raises(RefusedError, match=r"^storage 'Müll' fehlt$"):
            make(f"localhost:{wire.port}").migrate(ORDER)

    def test_a_server_that_echoes_the_token(self, server: PveServer, pmxcfs: Path, make: Make) -> None:
        with (
            wire_server(pmxcfs, raw(f"500 bad header {TOKEN_SECRET}", b"{}")) as wire,
            pytest.raises(RefusedError, match=r"bad header \*\*\*"),
        ):
            make(f"localhost:{wire.port}").migrate(ORDER)

    def test_a_kept_connection_that_broke_under_a_read_is_made_anew(self, server: PveServer, pmxcfs: Path, make: Make) -> None:
        with keeping_server(pmxcfs, json_answer([])) as running:
            api = make(f"localhost:{running.port}")
            assert api.find_migration(1, "pve1", 0) is None
            assert api.find_migration(1, "pve1", 0) is None
            assert running.requests == ["first", "second", f"GET /api2/json/nodes/pve1/tasks?{ASKED} HTTP/1.1"]

    def test_a_post_never_goes_out_on_a_kept_connection(self, server: PveServer, pmxcfs: Path, make: Make) -> None:
        with keeping_server(pmxcfs, json_answer(UPID)) as running:
            api = make(f"localhost:{running.port}")
            assert api.find_migration(1, "pve1", 0) is None
            assert api.migrate(ORDER) == UPID
            assert running.requests == ["first", "POST /api2/json/nodes/pve1/qemu/100/migrate HTTP/1.1"]

    def test_a_server_without_tls(self, server: PveServer, make: Make) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def speak() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

            thread = threading.Thread(target=speak)
            thread.start()
            with pytest.raises(TemporaryError, match="does not speak TLS as PVE does"):
                make(f"localhost:{listener.getsockname()[1]}").migrate(ORDER)
            thread.join(5)


class TestAnythingRaisedBelow:
    POOL: Any = None
    ERRORS = (
        OSError(5, "Input/output error"), ConnectionResetError(104, "Connection reset by peer"), BrokenPipeError(), TimeoutError(),
        ssl.SSLError(1, "odd"), socket.gaierror(-3, "Temporary failure in name resolution"), UnicodeError("label too long"),
        KeyError("data"), AttributeError("x"), ValueError(), RecursionError(), MemoryError(), http.client.BadStatusLine("x"),
        http.client.IncompleteRead(b""), requests.exceptions.InvalidURL("x"), requests.exceptions.RequestException(),
        requests.exceptions.ContentDecodingError(), requests.exceptions.InvalidHeader("x"), urllib3.exceptions.HTTPError("x"),
        urllib3.exceptions.ProtocolError("x"), urllib3.exceptions.ReadTimeoutError(POOL, "u", "m"),
        urllib3.exceptions.LocationParseError("x"), urllib3.exceptions.DecodeError("x"),
        urllib3.exceptions.MaxRetryError(POOL, "u", None), proxmoxer.core.ResourceException(500, "x", "y", {"a": 1}),
        proxmoxer.core.ResourceException(418, None, ""),
    )  # fmt: skip

    @pytest.mark.parametrize("is_sent", [False, True])
    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    def test_it_ends_here(self, server: PveServer, make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception, is_sent: bool) -> None:
        def failing(wire: Any, *arguments: object, **more: object) -> object:
            wire.exchange.is_sent = is_sent
            raise error

        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", failing)
        for name, call in CALLS.items():
            with pytest.raises(OutsideError) as caught:
                call(make(own(server)))
            assert isinstance(caught.value, InDoubtError) == (is_sent and name == "migrate")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", ("localhost", 8006)),
        ("pve1:443", ("pve1", 443)),
        ("192.0.2.1:8007", ("192.0.2.1", 8007)),
        ("::1", ("[::1]", 8006)),
        ("2001:db8::1", ("[2001:db8::1]", 8006)),
        ("[2001:db8::1]", ("[2001:db8::1]", 8006)),
        ("[::1]:443", ("[::1]", 443)),
    ],
)
def test_hosts_are_read_with_and_without_a_port(host: str, expected: tuple[str, int]) -> None:
    assert split_host(host) == expected


def test_ipv6_works_with_every_proxmoxer(server: PveServer, pmxcfs: Path, make: Make) -> None:
    if not os.path.exists("/proc/net/if_inet6"):
        pytest.fail("this machine has no IPv6")
    running = WireServer((json_answer([]),), pmxcfs / "nodes/pve1/pve-ssl.pem", "::1")
    try:
        assert make(f"[::1]:{running.port}").find_migration(1, "pve1", 0) is None
    finally:
        running.close()

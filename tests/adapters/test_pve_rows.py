# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's rows, whole and broken, become nodes, guests, tasks and verdicts."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.pve import configuration, maintenance, migration, resources, tasks, values, verdict
from agent.core.cluster import GIB, GuestType, Maintenance, Node, Storage, StorageUse, Task
from agent.core.needs import GuestNeeds, VolumeKind
from agent.core.plan_types import Refusal, Verdict
from agent.core.reasons import RefusalReason
from agent.ports import MigrationOrder, TaskSight

NOW = 1_767_000_000.0
UPID = "UPID:pve1:0002B8A4:00C1F3D2:69527E40:qmigrate:100:proxlb@pve!agent:"  # started at 0x69527E40 = 1767013952
NODE = {
    "type": "node",
    "id": "node/pve1",
    "node": "pve1",
    "status": "online",
    "cpu": 0.25,
    "maxcpu": 16,
    "mem": 8 * GIB,
    "maxmem": 64 * GIB,
}
VM = {"type": "qemu", "id": "qemu/100", "vmid": 100, "node": "pve1", "status": "running", "name": "web", "maxcpu": 4, "maxmem": 4 * GIB}


def vm_answer(**values: Any) -> dict[str, Any]:
    return {"running": 1, "local_disks": [], "local_resources": [], "mapped-resources": []} | values


def vm_verdict(**values: Any) -> Any:
    return verdict.vm_verdict(100, vm_answer(**values), "path", NOW)


class TestNumbers:
    @pytest.mark.parametrize(("value", "number"), [(0, 0.0), (1.5, 1.5), ("2", 2.0), ("0.25", 0.25), (10**17, 1e17)])
    def test_what_is_a_number(self, value: object, number: float) -> None:
        assert values.number(value) == number

    @pytest.mark.parametrize("value", [None, "", "x", "nan", "inf", math.nan, math.inf, -1, "-0.5", 1e30, 10**400, [], {}, True, b"1"])
    def test_what_is_none(self, value: object) -> None:
        assert values.number(value) is None

    @pytest.mark.parametrize("value", [1, "1", 1.0, True])
    def test_true_in_all_spellings(self, value: object) -> None:
        assert values.flag(value)

    @pytest.mark.parametrize("value", [0, "0", "", None, False, "yes", 2, []])
    def test_everything_else_is_false(self, value: object) -> None:
        assert not values.flag(value)


class TestNodes:
    def test_a_nodes_cpu_becomes_cores(self) -> None:
        (node,) = resources.nodes([NODE | {"uptime": 600}])
        assert node == Node("pve1", True, 16.0, 64 * GIB, cpu_used_cores=4.0, memory_used_bytes=8 * GIB, uptime_s=600.0)

    def test_a_node_without_numbers_has_unknown_load_not_none(self) -> None:
        (node,) = resources.nodes([{"type": "node", "node": "pve3", "status": "offline"}])
        assert node == Node("pve3", False, 0.0, 0)
        assert node.cpu_used_cores is None
        assert node.memory_used_bytes is None

    @pytest.mark.parametrize("broken", [None, "nan", math.nan, -1, "much", [], 1e300])
    def test_a_broken_number_is_unknown(self, broken: object) -> None:
        (node,) = resources.nodes([NODE | {"cpu": broken, "mem": broken, "uptime": broken}])
        assert (node.cpu_used_cores, node.memory_used_bytes, node.uptime_s) == (None, None, None)

    def test_numbers_as_strings_are_numbers(self) -> None:
        assert resources.nodes([{key: str(value) for key, value in NODE.items()}]) == resources.nodes([NODE])

    def test_nodes_come_by_name_and_once(self) -> None:
        found = resources.nodes([NODE | {"node": "pve2"}, NODE, NODE | {"status": "offline"}])
        assert [(node.name, node.online) for node in found] == [("pve1", True), ("pve2", True)]

    def test_a_status_that_is_not_online_is_offline(self) -> None:
        assert not resources.nodes([NODE | {"status": "unknown"}])[0].online

    def test_a_row_without_a_name_is_left_out(self) -> None:
        assert resources.nodes([{"type": "node"}, {"type": "storage", "node": "pve1"}, {}]) == ()


class TestGuests:
    def test_a_guests_cpu_is_a_fraction_of_its_own_cores(self) -> None:
        (guest,) = resources.guests([VM | {"cpu": 0.5, "mem": GIB, "memhost": 2 * GIB, "uptime": 60}])
        assert (guest.cpu_cores, guest.cpu_used_cores) == (4.0, 2.0)
        assert (guest.memory_used_bytes, guest.memory_host_bytes, guest.uptime_s) == (GIB, 2 * GIB, 60.0)

    def test_all_that_is_told_is_kept(self) -> None:
        row = VM | {"tags": "b;a, c;;a plb_pin_pve1", "pool": "p", "lock": "backup", "hastate": "started", "template": 1}
        (guest,) = resources.guests([row])
        assert guest.tags == ("b", "a", "c", "plb_pin_pve1")
        assert (guest.pool, guest.lock, guest.ha, guest.template) == ("p", "backup", "started", True)

    def test_nothing_told_is_nothing_known(self) -> None:
        (guest,) = resources.guests([{"type": "lxc", "vmid": 101, "node": "pve9"}])
        assert (guest.status, guest.name, guest.tags, guest.template) == ("unknown", "CT101", (), False)
        assert {guest.cpu_used_cores, guest.memory_used_bytes, guest.memory_host_bytes, guest.uptime_s} == {None}
        assert {guest.pool, guest.lock, guest.ha} == {None}

    def test_a_guest_on_a_node_without_a_row_is_kept(self) -> None:
        assert resources.guests([VM | {"node": "gone"}])[0].node == "gone"

    def test_a_guest_that_the_ha_manager_ignores_is_not_managed(self) -> None:
        assert resources.guests([VM | {"hastate": "ignored"}])[0].ha is None

    def test_guests_come_by_vmid_and_once(self) -> None:
        found = resources.guests([VM | {"vmid": 1000}, VM | {"vmid": "200"}, VM, VM | {"node": "pve2"}])
        assert [(guest.vmid, guest.node) for guest in found] == [(100, "pve1"), (200, "pve1"), (1000, "pve1")]

    def test_the_id_stands_in_for_the_vmid(self) -> None:
        assert resources.guests([{"type": "lxc", "id": "lxc/104", "node": "pve1"}])[0].vmid == 104

    @pytest.mark.parametrize(
        "broken", [{"vmid": None, "id": "qemu/x"}, {"vmid": -5, "id": None}, {"vmid": 10**12}, {"node": ""}, {"type": "pod"}]
    )
    def test_a_row_that_is_no_guest_is_left_out(self, broken: dict[str, Any]) -> None:
        assert resources.guests([VM | broken]) == ()

    def test_cpu_without_cores_is_unknown(self) -> None:
        assert resources.guests([VM | {"cpu": 0.5, "maxcpu": None}])[0].cpu_used_cores is None


class TestHa:
    NODES = (Node("pve1", True, 1, 1), Node("pve2", True, 1, 1), Node("pve3", False, 1, 1))

    def ask(self, manager: dict[str, Any]) -> Any:
        return maintenance.ha_nodes({"manager_status": manager, "lrm_status": {}}, self.NODES, NOW)

    def test_an_admins_request_is_maintenance_however_old_the_status(self) -> None:
        found = self.ask({"timestamp": NOW - 9999, "node_request": {"pve3": {"maintenance": 1}, "pve1": {"maintenance": 0}}})
        assert found == ((Maintenance("pve3", "ha-manager"),), ())

    def test_a_state_alone_only_makes_the_node_no_target(self) -> None:
        assert self.ask({"timestamp": NOW - 10, "node_status": {"pve1": "maintenance", "pve2": "online"}}) == ((), ("pve1",))

    @pytest.mark.parametrize("state", ["fence", "unknown", "gone"])
    def test_states_of_trouble_make_the_node_no_target(self, state: str) -> None:
        assert self.ask({"timestamp": NOW, "node_status": {"pve2": state}}) == ((), ("pve2",))

    def test_an_old_state_is_not_believed(self) -> None:
        assert self.ask({"timestamp": NOW - 61, "node_status": {"pve1": "maintenance"}}) == ((), ())
        assert self.ask({"node_status": {"pve1": "maintenance"}}) == ((), ())

    def test_a_requested_node_is_named_once_and_unknown_nodes_never(self) -> None:
        manager = {"timestamp": NOW, "node_status": {"pve1": "maintenance", "old": "unknown"}}
        requests = {"pve1": {"maintenance": "1"}, "old": {"maintenance": 1}}
        assert self.ask(manager | {"node_request": requests}) == ((Maintenance("pve1", "ha-manager"),), ())

    @pytest.mark.parametrize("answer", [None, [], {}, {"manager_status": {}}, {"manager_status": []}, "x"])
    def test_no_ha_is_nothing(self, answer: object) -> None:
        assert maintenance.ha_nodes(answer, self.NODES, NOW) == ((), ())

    def test_the_rows_tell_when_the_status_does_not(self) -> None:
        rows = [NODE | {"hastate": "maintenance"}, NODE | {"node": "pve2", "hastate": "unknown"}]
        assert maintenance.ha_nodes_of_resources(rows, self.NODES) == ("pve1",)


class TestTasks:
    def test_running_ended_and_broken_rows(self) -> None:
        later = UPID.replace("69527E40", "69527E50")
        rows = [
            {"upid": later, "starttime": 5, "type": "x"},
            {"upid": UPID, "endtime": 1767013990, "status": "OK"},
            {"upid": "nonsense"},
            {},
        ]
        ended, running = tasks.tasks(rows)
        assert ended == Task(UPID, "pve1", "qmigrate", "100", "proxlb@pve!agent", 1767013952.0, 1767013990.0, "OK")
        assert (running.upid, running.is_running, running.vmid) == (later, True, 100)

    def test_a_task_that_says_it_runs_does(self) -> None:
        (task,) = tasks.tasks([{"upid": UPID, "status": "RUNNING"}])
        assert task.is_running
        assert task.status is None

    def test_a_task_with_a_status_has_ended_even_without_a_time(self) -> None:
        (task,) = tasks.tasks([{"upid": UPID, "status": "unexpected status"}])
        assert not task.is_running

    def test_upids_of_odd_kinds(self) -> None:
        bulk = tasks.upid_task("UPID:pve-2:00000001:100C1F3D2:69527E40:startall::root@pam:")
        assert bulk is not None
        assert (bulk.node, bulk.kind, bulk.target_id, bulk.vmid) == ("pve-2", "startall", "", None)

    @pytest.mark.parametrize(
        "upid", ["", "UPID:", UPID[:-1], UPID + "x", UPID.replace("pve1", "../x"), UPID.replace("69527E40", "zzzzzzzz")]
    )
    def test_what_is_no_upid(self, upid: str) -> None:
        assert tasks.upid_task(upid) is None

    def test_the_newest_migration_since_then(self) -> None:
        later = UPID.replace("69527E40", "69527E50")
        start = UPID.replace("qmigrate", "qmstart").replace("69527E40", "69527E60")
        found = tasks.tasks([{"upid": UPID}, {"upid": later}, {"upid": start}, {"upid": later.replace(":100:", ":200:")}])
        assert tasks.newest_migration(found, 100, "pve1", 1767013952.9) == later
        assert tasks.newest_migration(found, 100, "pve1", 1767013993.0) is None
        assert tasks.newest_migration(found, 100, "pve2", 0.0) is None

    def test_how_a_task_stands(self) -> None:
        assert tasks.task_sight(UPID, {"status": "running"}, "p") == TaskSight(UPID, None)
        assert tasks.task_sight(UPID, {"status": "stopped", "exitstatus": "WARNINGS: 1"}, "p") == TaskSight(UPID, "WARNINGS: 1")
        assert tasks.task_sight(UPID, {"status": "stopped"}, "p") == TaskSight(UPID, "unexpected status")
        with pytest.raises(values.UnexpectedAnswerError):
            tasks.task_sight(UPID, {}, "p")


class TestVmVerdict:
    def test_nothing_against_it(self) -> None:
        verdict = vm_verdict(allowed_nodes=["pve2"], not_allowed_nodes={})
        assert (verdict.vmid, verdict.asked_at, verdict.refusal, verdict.refused_nodes) == (100, NOW, None, ())

    def test_missing_allowed_nodes_are_not_nothing_allowed(self) -> None:
        assert vm_verdict().refusal is None
        assert vm_verdict(allowed_nodes=[]).refused_nodes == ()

    def test_local_disks_are_named(self) -> None:
        disks = [{"volid": "local-lvm:vm-100-disk-0", "cdrom": 0}, {"volid": "local:100/a.raw"}]
        expected = Refusal(100, RefusalReason.LOCAL_DISK, "local-lvm:vm-100-disk-0, local:100/a.raw")
        assert vm_verdict(local_disks=disks).refusal == expected

    def test_unused_local_disks_count(self) -> None:
        assert vm_verdict(local_disks=[{"volid": "local:100/old.raw", "is_unused": 1}]).refusal.reason is RefusalReason.LOCAL_DISK

    @pytest.mark.parametrize("volid", ["local-lvm:vm-100-cloudinit", "local:100/vm-100-cloudinit.qcow2", "none"])
    def test_a_generated_cloud_init_image_is_no_local_disk(self, volid: str) -> None:
        assert vm_verdict(local_disks=[{"volid": volid, "cdrom": 1}]).refusal is None

    def test_the_nodes_own_cd_drive_is_told(self) -> None:
        refusal = vm_verdict(local_disks=[{"volid": "cdrom", "drivename": "ide2", "cdrom": 1}]).refusal
        assert refusal == Refusal(100, RefusalReason.LOCAL_IMAGE, "ide2 (the node's own drive)")

    def test_an_image_on_local_storage_is_told_from_a_disk(self) -> None:
        image = {"volid": "local:iso/a.iso", "drivename": "ide2", "cdrom": 1}
        assert vm_verdict(local_disks=[image]).refusal == Refusal(100, RefusalReason.LOCAL_IMAGE, "local:iso/a.iso")
        assert vm_verdict(local_disks=[image, {"volid": "local:d"}]).refusal == Refusal(100, RefusalReason.LOCAL_DISK, "local:d")

    def test_devices_come_before_disks(self) -> None:
        verdict = vm_verdict(local_resources=["usb0", "hostpci1"], local_disks=[{"volid": "local:x"}])
        assert verdict.refusal == Refusal(100, RefusalReason.LOCAL_DEVICE, "hostpci1, usb0")

    def test_a_mapped_device_keeps_a_running_vm(self) -> None:
        assert (
            vm_verdict(**{"local_resources": ["hostpci0"], "mapped-resources": ["hostpci0"]}).refusal.reason is RefusalReason.LOCAL_DEVICE
        )

    def test_a_mapped_device_does_not_keep_a_stopped_vm(self) -> None:
        assert vm_verdict(**{"running": 0, "local_resources": ["hostpci0"], "mapped-resources": ["hostpci0"]}).refusal is None

    def test_a_mapped_device_that_can_migrate_live_keeps_nobody(self) -> None:
        info = {"hostpci0": {"name": "vgpu", "live-migration": 1}}
        answer = {"local_resources": ["hostpci0"], "mapped-resources": ["hostpci0"], "mapped-resource-info": info}
        assert vm_verdict(**answer).refusal is None

    def test_refused_nodes_say_why(self) -> None:
        refused = {
            "pve4": {"surprise": 1},
            "pve3": {"unavailable-resources": ["hostpci0"], "blocking-ha-resources": [{"sid": "vm:7", "cause": "resource-affinity"}]},
            "pve2": {"unavailable_storages": ["a", "b"]},
            "pve5": None,
        }
        assert vm_verdict(not_allowed_nodes=refused).refused_nodes == (
            ("pve2", Refusal(100, RefusalReason.STORAGE_MISSING, "a, b")),
            ("pve3", Refusal(100, RefusalReason.DEVICE_MISSING, "hostpci0; HA rule: vm:7 (resource-affinity)")),
            ("pve4", Refusal(100, RefusalReason.NODE_REFUSED, "surprise")),
            ("pve5", Refusal(100, RefusalReason.NODE_REFUSED)),
        )

    @pytest.mark.parametrize("said", ["VM is locked (backup)", "VM is locked (backup)\n", "can't lock: VM is locked (backup)."])
    def test_a_lock_is_told_by_its_name(self, said: str) -> None:
        assert verdict.verdict_of_refusal(100, said, NOW).refusal == Refusal(100, RefusalReason.LOCKED, "backup")

    def test_any_other_no_of_pve_is_kept_in_its_words(self) -> None:
        said = "Configuration file 'nodes/a/qemu-server/100.conf' does not exist"
        assert verdict.verdict_of_refusal(100, said, NOW).refusal == Refusal(100, RefusalReason.PRECONDITION, said)


class TestContainerVerdict:
    def test_what_pve_9_says_of_nodes_is_kept(self) -> None:
        answer = {"not-allowed-nodes": {"pve2": {"blocking-ha-resources": [{"sid": "ct:5", "cause": "resource-affinity"}]}}}
        refused = Refusal(101, RefusalReason.NODE_REFUSED, "HA rule: ct:5 (resource-affinity)")
        assert verdict.container_verdict(101, answer, NOW) == Verdict(101, NOW, None, (("pve2", refused),))

    def test_no_answer_of_pve_8_refuses_nothing(self) -> None:
        assert verdict.container_verdict(101, None, NOW) == Verdict(101, NOW)


def vm_needs(**config: object) -> GuestNeeds:
    return configuration.needs_of(GuestType.QEMU, config, None)


def ct_needs(**config: object) -> GuestNeeds:
    return configuration.needs_of(GuestType.LXC, {"rootfs": "ceph:d"} | config, None)


class TestNeeds:
    @pytest.mark.parametrize(
        ("said", "size_bytes"),
        [
            ("size=32G", 32 << 30),
            ("size=528K", 528 << 10),
            ("size=4M", 4 << 20),
            ("size=1.5T", 3 << 39),
            ("size=1024", 1024),
            ("size=x", None),
            ("size=-1G", None),
            ("size=1e9G", None),
            ("resize=5G", None),
            ("", None),
        ],
    )
    def test_a_volume_has_the_size_that_its_configuration_says(self, said: str, size_bytes: int | None) -> None:
        assert vm_needs(scsi0=f"lvm:vm-100-disk-0,iothread=1,{said}").volumes[0].size_bytes == size_bytes

    def test_of_others_pve_itself_tells_the_size(self) -> None:
        needs = vm_needs(scsi0="lvm:a,size=1G", unused0="lvm:b", unused1="lvm:c")
        disks = [{"volid": "lvm:a", "size": 7}, {"volid": "lvm:b", "size": "8"}, {"volid": "lvm:c", "size": "x"}, {"size": 9}, 3]
        sizes = verdict.disk_sizes({"local_disks": disks})
        assert [volume.size_bytes for volume in configuration.with_sizes(needs, sizes).volumes] == [1 << 30, 8, None]
        assert configuration.with_sizes(needs, {}) == needs
        assert verdict.disk_sizes(None) == verdict.disk_sizes({"local_disks": {}}) == {}

    def test_a_vms_volumes(self) -> None:
        config = {
            "scsi0": "ceph:vm-100-disk-0,size=8G", "virtio3": "file=nfs:100/vm-100-disk-1.qcow2,iothread=1",
            "efidisk0": "ceph:vm-100-disk-2", "tpmstate0": "ceph:vm-100-disk-3", "unused1": "local-lvm:vm-100-disk-4",
            "ide0": "none,media=cdrom", "ide1": "cdrom,media=cdrom", "ide2": "local:iso/a.iso,media=cdrom,size=1M",
            "ide3": "local-lvm:vm-100-cloudinit,media=cdrom", "sata0": "/dev/sdb",
            "scsihw": "virtio-scsi-pci", "vmgenid": "a:b",
        }  # fmt: skip
        assert [(one.name, one.storage, one.kind) for one in vm_needs(**config).volumes] == [
            ("ceph:vm-100-disk-2", "ceph", VolumeKind.DISK),
            ("local:iso/a.iso", "local", VolumeKind.IMAGE),
            ("local-lvm:vm-100-cloudinit", "local-lvm", VolumeKind.CLOUD_INIT),
            ("ceph:vm-100-disk-0", "ceph", VolumeKind.DISK),
            ("ceph:vm-100-disk-3", "ceph", VolumeKind.DISK),
            ("local-lvm:vm-100-disk-4", "local-lvm", VolumeKind.DISK),
            ("nfs:100/vm-100-disk-1.qcow2", "nfs", VolumeKind.DISK),
        ]

    def test_bridges_of_vms_and_containers(self) -> None:
        nets = {
            "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr1,tag=5",
            "net1": "e1000=BC:24:11:00:00:02",
            "net12": "model=virtio,bridge=vmbr0",
        }
        assert vm_needs(**nets).bridges == ("vmbr0", "vmbr1")
        assert ct_needs(net0="name=eth0,bridge=vnet1,ip=dhcp").bridges == ("vnet1",)

    @pytest.mark.parametrize(
        ("cpu", "kind"), [("host", "host"), ("host,flags=+aes", "host"), ("cputype=max,flags=+aes", "max"), ("flags=+aes", ""), (None, "")]
    )
    def test_the_cpu_type_may_be_spelt_out_or_left_out(self, cpu: str | None, kind: str) -> None:
        assert vm_needs(cpu=cpu).cpu_type == kind

    @pytest.mark.parametrize("machine", ["pc-q35-9.2+pve1", "pc-q35-9.2+pve1,viommu=intel", "type=pc-q35-9.2+pve1"])
    def test_the_machine_may_have_options(self, machine: str) -> None:
        assert vm_needs(machine=machine).machine == "pc-q35-9.2+pve1"

    def test_what_binds_a_vm(self) -> None:
        needs = vm_needs(args="-device foo", affinity="0,5-9", hookscript="local:snippets/proxlb-hook")
        assert (needs.args, needs.affinity, needs.hookscript) == ("-device foo", "0,5-9", "local:snippets/proxlb-hook")

    def test_a_containers_volumes(self) -> None:
        needs = ct_needs(
            rootfs="ceph:vm-101-disk-0,size=8G", mp0="volume=ceph:vm-101-disk-1,mp=/x", unused0="local-lvm:e", mp1="/mnt/x,mp=/y"
        )
        assert [one.name for one in needs.volumes] == ["ceph:vm-101-disk-1", "ceph:vm-101-disk-0", "local-lvm:e"]

    def test_a_containers_cores_bind_nobody(self) -> None:
        assert ct_needs(cpu="host", args="x", affinity="0") == ct_needs()

    @pytest.mark.parametrize(("mount", "devices"), [("/mnt/x,mp=/x", ("mp0 /mnt/x",)), ("/mnt/x,mp=/x,shared=1", ()), ("ceph:x,mp=/x", ())])
    def test_a_bind_mount_is_of_the_node_unless_it_is_everywhere(self, mount: str, devices: tuple[str, ...]) -> None:
        assert ct_needs(mp0=mount).devices == devices

    @pytest.mark.parametrize(
        ("device", "name"), [("/dev/ttyUSB0", "dev0 /dev/ttyUSB0"), ("path=/dev/dri/card0,gid=44", "dev0 /dev/dri/card0")]
    )
    def test_a_device_is_of_the_node(self, device: str, name: str) -> None:
        assert ct_needs(dev0=device).devices == (name,)

    def test_raw_settings_that_reach_into_the_node(self) -> None:
        raw = [
            ["lxc.apparmor.profile", "x"],
            ["lxc.mount.entry", "/dev/net/tun dev/net/tun none bind"],
            ["lxc.cgroup2.devices.allow", "c 1:1"],
        ]
        assert ct_needs(lxc=raw).devices == ("lxc.mount.entry", "lxc.cgroup2.devices.allow")
        assert ct_needs(lxc=raw[:1]).devices == ()


class TestFiles:
    def test_a_file_says_what_the_api_says(self) -> None:
        content = (
            "#a %3A note\ncpu: host\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nargs: -device a=b\nname: x\n\n[PENDING]\ncpu: kvm64\n"
        )
        content += "[before-upgrade]\naffinity: 1\n"
        config = configuration.read_config(content)
        assert config == {"cpu": "host", "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0", "args": "-device a=b", "name": "x"}

    def test_raw_settings_of_a_container_in_both_spellings(self) -> None:
        config = configuration.read_config("lxc.mount.entry: /a b none bind\nlxc.cgroup2.devices.allow = c 1:1\nrootfs: ceph:d,size=1G\n")
        assert config == {
            "lxc": [["lxc.mount.entry", "/a b none bind"], ["lxc.cgroup2.devices.allow", "c 1:1"]],
            "rootfs": "ceph:d,size=1G",
        }

    def test_where_the_file_is(self) -> None:
        assert configuration.config_file("pve1", GuestType.QEMU, 100) == "nodes/pve1/qemu-server/100.conf"
        assert configuration.config_file("pve1", GuestType.LXC, 101) == "nodes/pve1/lxc/101.conf"

    def test_replication_is_the_same_by_file_and_by_rows(self) -> None:
        content = (
            "local: 100-0\n\ttarget pve2\n\trate 10\n\tsource pve1\n\nlocal: 100-1\n\tdisable\n\ttarget pve3\n\nlocal: 7-0\n\ttarget pve1\n"
        )
        rows = [
            {"id": "100-0", "guest": 100, "target": "pve2"},
            {"id": "100-1", "target": "pve3", "disable": 1},
            {"guest": "7", "target": "pve1"},
        ]
        expected = {7: ("pve1",), 100: ("pve2", "pve3")}
        assert configuration.replication_targets(configuration.read_replication(content)) == expected
        assert configuration.replication_targets(rows) == expected


class TestOrders:
    def test_a_running_vm_goes_online_and_a_running_container_restarts(self) -> None:
        vm = MigrationOrder(100, GuestType.QEMU, "pve1", "pve2", online=True, restart=False, bandwidth_limit_kib_s=1024)
        ct = MigrationOrder(101, GuestType.LXC, "pve1", "pve2", online=False, restart=True)
        stopped = MigrationOrder(102, GuestType.QEMU, "pve1", "pve2", online=False, restart=False)
        assert migration.migrate_parameters(vm) == {"target": "pve2", "online": 1, "bwlimit": 1024}
        assert migration.migrate_parameters(ct) == {"target": "pve2", "restart": 1}
        assert migration.migrate_parameters(stopped) == {"target": "pve2"}

    def test_disks_go_along_with_a_map_of_those_storages_that_change(self) -> None:
        order = MigrationOrder(100, GuestType.QEMU, "pve1", "pve2", online=True, restart=False, local_disks=True)
        assert migration.migrate_parameters(order) == {"target": "pve2", "online": 1, "with-local-disks": 1}
        told = {"target": "pve2", "online": 1, "with-local-disks": 1, "targetstorage": "a:b,c:d"}
        assert migration.migrate_parameters(replace(order, storage_map=(("a", "b"), ("c", "d")))) == told
        stopped = replace(order, online=False, storage_map=(("a", "b"),))
        assert migration.migrate_parameters(stopped) == {"target": "pve2", "targetstorage": "a:b"}

    def test_connections_are_kept_of_a_running_vm_alone(self) -> None:
        order = MigrationOrder(100, GuestType.QEMU, "pve1", "pve2", online=True, restart=False, conntrack=True)
        assert migration.migrate_parameters(order) == {"target": "pve2", "online": 1, "with-conntrack-state": 1}
        assert migration.migrate_parameters(replace(order, online=False)) == {"target": "pve2"}
        ct = replace(order, type=GuestType.LXC, restart=True, local_disks=True, storage_map=(("a", "b"),))
        assert migration.migrate_parameters(ct) == {"target": "pve2", "restart": 1}

    def test_paths_cannot_be_left_by_odd_names(self) -> None:
        assert migration.migrate_path("a/../b", GuestType.QEMU, 1) == "nodes/a%2F..%2Fb/qemu/1/migrate"


KEYS = [
    "type", "node", "vmid", "id", "status", "cpu", "maxcpu", "mem", "tags", "storage", "shared", "upid", "endtime", "volid",
    "pve1", "manager_status", "node_status", "node_request", "timestamp", "maintenance", "local_disks", "local_resources",
    "mapped-resources", "mapped-resource-info", "not_allowed_nodes", "blocking-ha-resources", "not-allowed-nodes", "rootfs",
    "mp0", "lxc", "dev0", "scsi0", "net0", "cpu", "args", "machine", "hookscript", "guest", "target",
]  # fmt: skip


class TestAnythingElse:
    json = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(KEYS),
                inner,
                max_size=6,
            )
        ),
        max_leaves=20,
    )

    @given(json)
    def test_no_json_makes_anything_but_the_one_error(self, answer: object) -> None:
        known = (Node("pve1", True, 1, 1),)
        readers = [
            lambda: [
                read(values.rows(answer, "p"))
                for read in (resources.nodes, resources.guests, resources.storages, resources.storage_use, tasks.tasks)
            ],
            lambda: maintenance.ha_nodes_of_resources(values.rows(answer, "p"), known),
            lambda: maintenance.ha_nodes(answer, known, NOW),
            lambda: verdict.vm_verdict(1, answer, "p", NOW),
            lambda: verdict.container_verdict(1, answer, NOW),
            lambda: [configuration.needs_of(kind, values.fields(answer, "p"), None) for kind in GuestType],
            lambda: configuration.replication_targets(values.rows(answer, "p")),
            lambda: tasks.task_sight(UPID, answer, "p"),
            lambda: resources.version(answer),
        ]
        for read in readers:
            with contextlib.suppress(values.UnexpectedAnswerError):
                read()

    @pytest.mark.parametrize(("answer", "kind"), [(None, "nothing"), ({}, "fields"), ("x", "text"), (3, "a number")])
    def test_what_is_no_list_is_told(self, answer: object, kind: str) -> None:
        with pytest.raises(values.UnexpectedAnswerError, match=f"GET /cluster/resources with {kind}, not with a list"):
            values.rows(answer, resources.RESOURCES)

    def test_text_is_one_line_of_bounded_length(self) -> None:
        assert values.one_line(" a\n\tb\x1b[31m\x00c ") == "a b [31m c"
        assert len(values.one_line("x" * 9999)) == values.TEXT_LENGTH

    def test_versions(self) -> None:
        assert resources.version({"version": "8.4.1", "release": "8.4"}) == "8.4.1"
        assert [resources.major(text) for text in ("9.0.10", "8", "", "x.1")] == [9, 8, None, None]

    def test_how_full_storages_are(self) -> None:
        def row(name: str, node: str, shared: int, disk: object, maxdisk: object) -> dict[str, object]:
            return {"type": "storage", "storage": name, "node": node, "shared": shared, "disk": disk, "maxdisk": maxdisk}

        rows = [
            row("ceph", "pve2", 1, 70, 100),
            row("ceph", "pve1", 1, "71", 100),
            row("local", "pve2", 0, 5, 10),
            row("local", "pve1", 0, 0, 10),
        ]
        rows += [row("off", "pve1", 0, None, None), row("empty", "pve1", 0, 0, 0), row("odd", "pve1", 0, -1, "x")]
        assert resources.storage_use([*rows]) == (
            StorageUse("ceph", ("pve1", "pve2"), 71, 100),
            StorageUse("local", ("pve1",), 0, 10),
            StorageUse("local", ("pve2",), 5, 10),
        )

    def test_a_storage_is_shared_only_if_it_is_so_on_each_node(self) -> None:
        rows = [{"type": "storage", "storage": "a", "node": n, "shared": s} for n, s in (("pve1", 1), ("pve2", "1"))]
        rows += [{"type": "storage", "storage": "b", "node": n, "shared": s} for n, s in (("pve1", 1), ("pve2", 0))]
        assert resources.storages([*rows]) == (Storage("a", True, ("pve1", "pve2")), Storage("b", False, ("pve1", "pve2")))

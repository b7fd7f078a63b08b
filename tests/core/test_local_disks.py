# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks that a VM takes along: only where that is allowed, where they fit, and where copying them does not take too long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.cluster import GIB, HaResource, HighAvailability, Maintenance, Snapshot, Storage, StorageUse
from agent.core.local_disks import one_copy_a_node
from agent.core.migrations import MigrationState
from agent.core.needs import Volume, VolumeKind
from agent.core.plan_types import Plan, Refusal, Verdict
from agent.core.planner import plan
from agent.core.question import Question
from agent.core.reasons import RefusalReason as R
from agent.core.settings import Settings
from tests.core.clusters import NOW, changed, cluster, ct, node, settings, stopped, vm, wrong_in
from tests.core.needs import FACTS, equipped, needing, volume
from tests.core.records import record
from tests.core.test_slots import move

THREE = (node("pve1"), node("pve2"), node("pve3"))
LEAVING = cluster(*THREE, vm(101, "pve1", 8, 2), vm(102, "pve3", 2), drain=["pve1"])  # pve2 is the emptiest
ALLOWED = settings({"guests": {"local_disks": True}})
DISK = volume("local-lvm:vm-101-disk-0", gib=100)


def mapped(**names: str) -> Settings:
    return settings({"guests": {"local_disks": True, "storage_map": {key.replace("_", "-"): name for key, name in names.items()}}})


def stored(snapshot: Snapshot, *uses: tuple[str, str, float, float], storages: tuple[Storage, ...] = ()) -> Snapshot:
    """With how full local storages are: (name, node, used GiB, total GiB)."""
    found = equipped(snapshot)
    use = tuple(StorageUse(name, (where,), int(used * GIB), int(total * GIB)) for name, where, used, total in uses)
    return replace(found, storage_use=use, storages=tuple(sorted({*found.storages, *storages}, key=lambda storage: storage.name)))


ROOMY = stored(LEAVING, ("local-lvm", "pve2", 100, 1000), ("local-lvm", "pve3", 100, 1000))


def planned(snapshot: Snapshot, how: Settings = ALLOWED, volumes: tuple[Volume, ...] = (DISK,), **needs: object) -> Plan:
    question = Question(verdicts=needing(101, volumes=volumes, **needs))
    made = plan(snapshot, how, question)
    assert wrong_in(snapshot, made, how, question) == []
    return made


def told(made: Plan) -> list[object]:
    return [(one.vmid, one.target) for one in made.moves] or [(one.reason, one.detail) for one in made.refused if one.vmid == 101]


def test_they_go_along_where_that_is_allowed_and_are_counted() -> None:
    assert told(planned(ROOMY, settings())) == [(R.LOCAL_DISK, "local-lvm:vm-101-disk-0")]
    made = planned(ROOMY)
    assert told(made) == [(101, "pve2")]
    assert made.moves[0].disk_bytes == 100 * GIB


def test_what_pve_has_against_local_disks_alone_gives_way() -> None:
    needs = needing(101, volumes=(DISK,))[101]
    for reason, moves in ((R.LOCAL_DISK, 1), (R.LOCAL_DEVICE, 0)):
        question = Question(verdicts={101: replace(needs, refusal=Refusal(101, reason, "x"))})
        assert len(plan(ROOMY, ALLOWED, question).moves) == moves
        assert plan(ROOMY, settings(), question).moves == ()
    unread = Question(verdicts={101: Verdict(101, NOW, Refusal(101, R.LOCAL_DISK, "x"))})
    assert plan(ROOMY, ALLOWED, unread).moves == ()


def test_a_stopped_vm_takes_them_along_and_a_container_never_does() -> None:
    how = settings({"guests": {"local_disks": True}, "drain": {"stopped": True}})
    idle = replace(ROOMY, guests=tuple(stopped(one) if one.vmid == 101 else one for one in ROOMY.guests))
    assert told(planned(idle, how)) == [(101, "pve2")]
    held = stored(cluster(*THREE, ct(101, "pve1", 8, 2), drain=["pve1"]), ("local-lvm", "pve2", 0, 1000))
    assert told(planned(held)) == [(R.LOCAL_DISK, "local-lvm:vm-101-disk-0")]


def test_an_image_of_the_node_still_ties() -> None:
    image = volume("local-lvm:iso/a.iso", VolumeKind.IMAGE)
    assert told(planned(ROOMY, volumes=(DISK, image))) == [(R.LOCAL_IMAGE, "local-lvm:iso/a.iso")]


@pytest.mark.parametrize(("used_gib", "target"), [(800, "pve2"), (801, "pve3")])
def test_they_must_fit_below_the_threshold_of_the_storage(used_gib: float, target: str) -> None:
    snapshot = stored(LEAVING, ("local-lvm", "pve2", used_gib, 1000), ("local-lvm", "pve3", 100, 1000))
    assert told(planned(snapshot)) == [(101, target)]


def test_why_they_do_not_fit_is_said() -> None:
    full = stored(LEAVING, ("local-lvm", "pve2", 850, 1000), ("local-lvm", "pve3", 950, 1000))
    said = "no-disk-room on pve2 (100 GiB, local-lvm has 50 of 1000 GiB left), pve3 (100 GiB, local-lvm has 0 of 1000 GiB left)"
    assert told(planned(full)) == [(R.NO_TARGET, said)]
    unknown = stored(LEAVING, ("local-lvm", "pve3", 100, 1000))
    assert told(planned(unknown)) == [(101, "pve3")]
    unused = volume("local-lvm:vm-101-disk-9")
    said = "no-disk-room on pve2, pve3 (the size of local-lvm:vm-101-disk-9 is not known)"
    assert told(planned(ROOMY, volumes=(DISK, unused))) == [(R.NO_TARGET, said)]


def test_a_cloud_init_image_needs_its_storage_and_no_size() -> None:
    assert told(planned(ROOMY, volumes=(DISK, volume("local-lvm:vm-101-cloudinit", VolumeKind.CLOUD_INIT)))) == [(101, "pve2")]


def test_two_disks_count_together_also_where_the_map_brings_them_to_one_storage() -> None:
    other = Storage("old", False, ("pve1",))
    uses = (("local-lvm", "pve2", 750, 1000), ("local-lvm", "pve3", 100, 1000))
    volumes = (DISK, volume("old:vm-101-disk-1", gib=60))
    assert told(planned(stored(LEAVING, *uses, storages=(other,)), mapped(old="local-lvm"), volumes)) == [(101, "pve3")]


def test_the_map_names_the_storage_that_takes_them() -> None:
    storages = (Storage("zfs", False, ("pve2",)), Storage("old", False, ("pve1",)))
    snapshot = stored(LEAVING, ("zfs", "pve2", 0, 500), storages=storages)
    disk = (volume("old:vm-101-disk-0", gib=100),)
    assert told(planned(snapshot, ALLOWED, disk)) == [(R.NO_TARGET, "storage-missing on pve2, pve3 (old)")]
    assert told(planned(snapshot, mapped(old="zfs"), disk)) == [(101, "pve2")]


def test_pve_that_misses_a_storage_which_the_map_replaces_is_not_heard() -> None:
    storages = (Storage("zfs", False, ("pve2",)), Storage("old", False, ("pve1",)))
    snapshot = stored(LEAVING, ("zfs", "pve2", 0, 500), storages=storages)
    needs = needing(101, volumes=(volume("old:vm-101-disk-0", gib=100),))[101]
    for detail, moves in (("old", 1), ("nfs, old", 0), ("old; usb0", 0)):
        verdict = replace(needs, refused_nodes=(("pve2", Refusal(101, R.STORAGE_MISSING, detail)),))
        assert len(plan(snapshot, mapped(old="zfs"), Question(verdicts={101: verdict})).moves) == moves


def test_the_names_stay_where_the_ha_manager_or_replication_wants_them() -> None:
    storages = (Storage("zfs", False, ("pve2",)),)
    uses = (("zfs", "pve2", 0, 500), ("local-lvm", "pve3", 0, 500))
    how = mapped(local_lvm="zfs")
    assert told(planned(stored(LEAVING, *uses, storages=storages), how)) == [(101, "pve2")]
    managed = cluster(
        *THREE,
        vm(101, "pve1", 8, 2, ha="started"),
        drain=["pve1"],
        ha=HighAvailability((HaResource(101, state="started", node="pve1"),)),
    )
    assert told(planned(stored(managed, *uses, storages=storages), how)) == [(101, "pve3")]
    assert told(planned(stored(LEAVING, *uses, storages=storages), how, replicated_to=("pve3",))) == [(101, "pve3")]


def test_load_does_not_wait_for_hours_of_copying_but_a_drain_does() -> None:
    huge = (volume("local-lvm:vm-101-disk-0", gib=800),)
    snapshot = stored(LEAVING, ("local-lvm", "pve2", 0, 10_000), ("local-lvm", "pve3", 0, 10_000))
    assert told(planned(snapshot, volumes=huge)) == [(101, "pve2")]
    uneven = replace(snapshot, maintenance=())
    question = Question(verdicts=needing(101, volumes=huge), force=True)
    assert [(one.vmid) for one in plan(uneven, ALLOWED, question).moves if one.vmid == 101] == []


def test_copying_disks_costs_what_it_copies() -> None:
    guests = [vm(101 + i, "pve1", 8, 2) for i in range(6)]
    snapshot = stored(cluster(*THREE, *guests), ("local-lvm", "pve2", 0, 9000), ("local-lvm", "pve3", 0, 9000))
    light = plan(snapshot, ALLOWED, Question(force=True, verdicts=needing(101)))
    heavy = plan(snapshot, ALLOWED, Question(force=True, verdicts=needing(101, volumes=(volume("local-lvm:a", gib=400),))))
    assert 101 in {one.vmid for one in light.moves}
    assert 101 not in {one.vmid for one in heavy.moves}
    assert len(heavy.moves) == len(light.moves)  # another one goes


def test_one_copy_at_a_time_goes_to_a_node() -> None:
    ready = [replace(move(101 + i, "pve1", f"pve{2 + i // 2}"), disk_bytes=GIB * (i != 3)) for i in range(4)]
    assert [one.vmid for one in one_copy_a_node(ready, [])] == [101, 103, 104]
    busy = record(200, MigrationState.RUNNING, target="pve2", disk_bytes=GIB)
    assert [one.vmid for one in one_copy_a_node(ready, [busy])] == [103, 104]
    assert [one.vmid for one in one_copy_a_node(ready, [replace(busy, disk_bytes=0)])] == [101, 103, 104]


def test_facts_are_still_compared() -> None:
    lacking = changed(ROOMY, "pve2", facts=replace(FACTS, bridges=()))
    assert told(planned(lacking, bridges=("vmbr0",))) == [(101, "pve3")]


# --- The way home -------------------------------------------------------------------------------------------------------------------

AWAY = cluster(*THREE, vm(101, "pve2", 8, 2))
MOVED = (volume("zfs:vm-101-disk-0", gib=100),)
HOME = Question(verdicts=needing(101, volumes=MOVED), homes={101: "pve1"})


def at_home(*names: str, map_: dict[str, str], misses: str = "") -> list[object]:
    """The moves of a guest that came to zfs on pve2, where pve1 has storages of these names, and PVE misses one there."""
    storages = (Storage("zfs", False, ("pve1", "pve2") if "zfs" in names else ("pve2",)),)
    storages += tuple(Storage(name, False, ("pve1",)) for name in ("lvm", "old") if name in names)
    snapshot = stored(AWAY, *((name, "pve1", 0, 500) for name in names), storages=storages)
    how = settings({"guests": {"local_disks": True, "storage_map": map_}})
    assert wrong_in(snapshot, plan(snapshot, how, HOME), how, HOME) == []
    refused = (("pve1", Refusal(101, R.STORAGE_MISSING, misses)),) if misses else ()
    return told(plan(snapshot, how, replace(HOME, verdicts={101: replace(HOME.verdicts[101], refused_nodes=refused)})))


def test_disks_come_home_to_the_storage_from_which_the_map_took_them() -> None:
    assert at_home("lvm", map_={"lvm": "zfs"}) == [(101, "pve1")]
    assert at_home("zfs", map_={"lvm": "zfs"}) == [(101, "pve1")]
    assert at_home("lvm", map_={}) == [(R.STORAGE_MISSING, "zfs")]


def test_where_several_lead_to_it_or_none_is_at_home_nobody_guesses() -> None:
    assert at_home("lvm", "old", map_={"lvm": "zfs", "old": "zfs"}) == [(R.STORAGE_MISSING, "zfs")]
    assert at_home("lvm", map_={"lvm": "zfs", "old": "zfs"}) == [(101, "pve1")]
    assert at_home(map_={"lvm": "zfs"}) == [(R.STORAGE_MISSING, "zfs")]


def test_pve_that_misses_the_storage_elsewhere_is_not_heard_for_the_way_home() -> None:
    assert at_home("lvm", map_={"lvm": "zfs"}, misses="zfs") == [(101, "pve1")]
    assert at_home("lvm", map_={"lvm": "zfs"}, misses="nfs, zfs") == [(R.STORAGE_MISSING, "nfs, zfs")]
    assert at_home("zfs", map_={"lvm": "zfs"}, misses="zfs") == [(R.STORAGE_MISSING, "zfs")]


def test_to_a_node_that_is_not_its_home_nobody_goes_against_the_map() -> None:
    snapshot = stored(
        replace(AWAY, maintenance=(Maintenance("pve2", "flag"),)),
        ("lvm", "pve1", 0, 500),
        storages=(Storage("zfs", False, ("pve2",)), Storage("lvm", False, ("pve1",))),
    )
    how = settings({"guests": {"local_disks": True, "storage_map": {"lvm": "zfs"}}})
    assert plan(snapshot, how, Question(verdicts=needing(101, volumes=MOVED))).moves == ()
    (back,) = plan(snapshot, how, HOME).moves
    assert (back.target, back.reason.value) == ("pve1", "maintenance")

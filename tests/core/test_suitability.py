# SPDX-License-Identifier: GPL-3.0-or-later
"""Each thing a guest may need of a node: who lacks it is no target, with that reason, and the next best node is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from agent.core import planner
from agent.core.cluster import NodeFacts, Snapshot
from agent.core.conditions import Conditions, Purpose
from agent.core.needs import VolumeKind
from agent.core.plan_types import Refusal, Verdict
from agent.core.question import Question
from agent.core.reasons import RefusalReason as R
from agent.core.rule_reading import read_rules
from agent.core.settings import Settings
from agent.core.suitability import Suitability, version_of
from tests.core.clusters import NOW, cluster, ct, node, settings, vm, wrong_in
from tests.core.needs import FACTS, STORAGES, equipped, needing, volume

PLAIN = settings()
HOME = {101: "pve2"}
THREE = (node("pve1"), node("pve2"), node("pve3"))
LEAVING = cluster(*THREE, vm(101, "pve1", 8, 2), vm(102, "pve3", 2), drain=["pve1"])  # pve2 is the emptiest
LEAVING_CT = cluster(*THREE, ct(101, "pve1", 8, 2), vm(102, "pve3", 2), drain=["pve1"])


def older(**versions: str) -> NodeFacts:
    return replace(FACTS, **versions)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Lack:
    """What pve2 has not, and what the guest needs; `reason` is why it does not go there, `word` how the checker calls it."""

    reason: R
    word: str
    detail: str
    needs: dict[str, object] = field(default_factory=dict)
    pve2: NodeFacts | None = FACTS
    pve1: NodeFacts | None = FACTS
    snapshot: Snapshot = LEAVING


LACKS = {
    "storage": Lack(R.STORAGE_MISSING, "storage", "nfs", {"volumes": (volume("nfs:101/disk.raw"),)}),
    "storage of an image": Lack(R.STORAGE_MISSING, "storage", "nfs", {"volumes": (volume("nfs:iso/a.iso", VolumeKind.IMAGE),)}),
    "bridge": Lack(R.BRIDGE_MISSING, "bridge", "vmbr1", {"bridges": ("vmbr0", "vmbr1")}, replace(FACTS, bridges=("vmbr0",))),
    "bridge of a container": Lack(
        R.BRIDGE_MISSING, "bridge", "vmbr1", {"bridges": ("vmbr1",)}, snapshot=LEAVING_CT, pve2=replace(FACTS, bridges=("vmbr0",)),
    ),
    "cpu: host, another model": Lack(
        R.CPU_UNLIKE, "cpu", "cpu: host, EPYC 7313 instead of Xeon Gold 6130", {"cpu_type": "host"}, replace(FACTS, cpu_model="EPYC 7313"),
    ),
    "cpu: max, other flags": Lack(
        R.CPU_UNLIKE, "cpu", "cpu: max, not both have avx2, sse9", {"cpu_type": "max"}, replace(FACTS, cpu_flags="aes avx sse9"),
    ),
    "custom cpu": Lack(
        R.CPU_UNLIKE, "cpu", "cpu: custom-a, EPYC instead of Xeon Gold 6130", {"cpu_type": "custom-a"}, replace(FACTS, cpu_model="EPYC"),
    ),
    "cpu: host, unknown there": Lack(
        R.NODE_UNKNOWN, "cpu", "cpu: host, and not both CPUs are known", {"cpu_type": "host"}, replace(FACTS, cpu_model=""),
    ),
    "older QEMU": Lack(R.NODE_OLDER, "older", "QEMU 9.2.0, the guest needs 10.1.2", {}, older(qemu_version="9.2.0-7")),
    "older Proxmox VE": Lack(R.NODE_OLDER, "older", "Proxmox VE 8, the guest needs 9", {}, older(pve_version="8.4.1")),
    "older Proxmox VE for a container": Lack(
        R.NODE_OLDER, "older", "Proxmox VE 8, the guest needs 9", {}, older(pve_version="8.4.1"), snapshot=LEAVING_CT,
    ),
    "no facts": Lack(R.NODE_UNKNOWN, "unknown", "its agent has not told what it has", {}, None),
    "no version of QEMU": Lack(R.NODE_UNKNOWN, "older", "its version of QEMU", {}, older(qemu_version="")),
    "hookscript": Lack(
        R.HOOKSCRIPT_MISSING, "hookscript", "local:snippets/proxlb-hook", {"hookscript": "local:snippets/proxlb-hook"},
        replace(FACTS, hookscripts=()),
    ),
    "replication": Lack(R.NOT_REPLICATED, "replication", "replicated to pve3", {"replicated_to": ("pve3",)}),
}  # fmt: skip


def scene(lack: Lack) -> tuple[Snapshot, Question]:
    everywhere = {"pve1": lack.pve1, "pve2": lack.pve2}
    return equipped(lack.snapshot, **everywhere), Question(verdicts=needing(101, **lack.needs))


def why_not(snapshot: Snapshot, question: Question, target: str) -> Refusal | None:
    rules = read_rules(snapshot, Settings())
    guest = snapshot.guest(101)
    assert guest is not None
    return Conditions(snapshot, PLAIN, question, rules, {}).why_never(guest, target, Purpose.DRAIN)


def test_it_would_go_to_the_emptiest_node_if_that_had_all() -> None:
    for snapshot in (LEAVING, LEAVING_CT):
        found = planner.plan(equipped(snapshot), PLAIN, Question(verdicts=needing(101, bridges=("vmbr0",), cpu_type="host")))
        assert [(move.vmid, move.target) for move in found.moves] == [(101, "pve2")]


@pytest.mark.parametrize("name", LACKS)
def test_who_lacks_it_is_no_target_and_the_next_best_is(name: str) -> None:
    lack = LACKS[name]
    snapshot, question = scene(lack)
    assert why_not(snapshot, question, "pve2") == Refusal(101, lack.reason, lack.detail)
    assert why_not(snapshot, question, "pve3") is None
    found = planner.plan(snapshot, PLAIN, question)
    assert [(move.vmid, move.target) for move in found.moves] == [(101, "pve3")]
    assert wrong_in(snapshot, found, PLAIN, question) == []


@pytest.mark.parametrize("name", LACKS)
def test_a_check_that_says_yes_to_all_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, question = scene(LACKS[name])
    monkeypatch.setattr(Suitability, "why_not_there", lambda *_, **__: None)
    found = planner.plan(snapshot, PLAIN, question)
    assert [(move.vmid, move.target) for move in found.moves] == [(101, "pve2")]
    assert LACKS[name].word in {finding.split(":")[0] for finding in wrong_in(snapshot, found, PLAIN, question)}


TIES = {
    "local disk": (R.LOCAL_DISK, {"volumes": (volume("ceph:a"), volume("local-lvm:vm-101-disk-0"))}, "local-lvm:vm-101-disk-0"),
    "disk on a storage nobody sees": (R.LOCAL_DISK, {"volumes": (volume("san:a"),)}, "san:a (storage san is not to be seen)"),
    "local image": (R.LOCAL_IMAGE, {"volumes": (volume("local-lvm:iso/a.iso", VolumeKind.IMAGE),)}, "local-lvm:iso/a.iso"),
    "device": (R.LOCAL_DEVICE, {"devices": ("dev0 /dev/dri/card0",)}, "dev0 /dev/dri/card0"),
    "args": (R.ARGS, {"args": "-device foo"}, "args: -device foo"),
    "affinity": (R.CPU_AFFINITY, {"affinity": "0-3"}, "affinity: 0-3"),
}  # fmt: skip


@pytest.mark.parametrize("name", TIES)
def test_what_ties_a_guest_to_its_node_keeps_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reason, needs, detail = TIES[name]
    snapshot, question = equipped(LEAVING), Question(verdicts=needing(101, **needs))
    found = planner.plan(snapshot, PLAIN, question)
    assert [(refusal.reason, refusal.detail) for refusal in found.refused if refusal.vmid == 101] == [(reason, detail)]
    assert found.moves == ()
    monkeypatch.setattr(Suitability, "why_stays", lambda *_: None)
    monkeypatch.setattr(Suitability, "why_not_there", lambda *_, **__: None)
    blind = planner.plan(snapshot, PLAIN, question)
    assert {"tied", "local"} & {finding.split(":")[0] for finding in wrong_in(snapshot, blind, PLAIN, question)}


def test_a_cloud_init_image_on_local_storage_keeps_nobody() -> None:
    question = Question(verdicts=needing(101, volumes=(volume("local-lvm:vm-101-cloudinit", VolumeKind.CLOUD_INIT),)))
    assert planner.plan(equipped(LEAVING), PLAIN, question).moves[0].target == "pve2"


def test_a_device_that_only_some_nodes_have_mapped_sends_the_guest_there() -> None:
    refused = (("pve2", Refusal(101, R.DEVICE_MISSING, "hostpci0")),)
    question = Question(verdicts={101: replace(needing(101)[101], refused_nodes=refused)})
    found = planner.plan(equipped(LEAVING), PLAIN, question)
    assert [(move.vmid, move.target) for move in found.moves] == [(101, "pve3")]
    assert why_not(equipped(LEAVING), question, "pve2") == refused[0][1]


def test_where_no_node_tells_anything_only_the_nodes_own_cpu_keeps_a_guest() -> None:
    blind = replace(LEAVING, storages=STORAGES)
    free = Question(verdicts=needing(101, bridges=("vmbr9",), volumes=(volume("ceph:a"),), cpu_type="x86-64-v2-AES"))
    assert planner.plan(blind, PLAIN, free).moves[0].target == "pve2"
    host = Question(verdicts=needing(101, cpu_type="host"))
    assert {why_not(blind, host, name).reason for name in ("pve2", "pve3")} == {R.NODE_UNKNOWN}  # type: ignore[union-attr]
    assert planner.plan(blind, PLAIN, host).moves == ()


def test_a_node_whose_own_agent_is_silent_can_be_left_for_the_newest_only() -> None:
    snapshot = equipped(LEAVING, pve1=None, pve2=older(qemu_version="9.2.0-7"))
    question = Question(verdicts=needing(101))
    assert why_not(snapshot, question, "pve2").reason is R.NODE_OLDER  # type: ignore[union-attr]
    assert why_not(snapshot, question, "pve3") is None


def test_a_machine_newer_than_the_qemu_there_does_not_go_there() -> None:
    old = older(qemu_version="9.2.0-7")
    snapshot = equipped(LEAVING, pve1=old, pve2=old, pve3=FACTS)
    question = Question(verdicts=needing(101, machine="pc-q35-10.1+pve1"))
    assert why_not(snapshot, question, "pve2") == Refusal(101, R.NODE_OLDER, "QEMU 9.2.0, the guest needs 10.1")
    assert why_not(snapshot, question, "pve3") is None
    assert why_not(snapshot, Question(verdicts=needing(101, machine="pc-q35-9.0")), "pve2") is None


def test_from_the_old_to_the_new_is_always_right() -> None:
    snapshot = equipped(LEAVING, pve1=older(qemu_version="9.2.0-7", pve_version="8.4.1"))
    assert why_not(snapshot, Question(verdicts=needing(101)), "pve2") is None


def test_who_runs_an_older_qemu_than_is_installed_may_go_to_the_older_node() -> None:
    """A node is upgraded first and emptied then, to be booted anew: its guests still run what they were started with."""
    upgraded = older(qemu_before="9.2.0-7", qemu_since=NOW - 3600)
    snapshot = equipped(LEAVING, pve1=upgraded, pve2=older(qemu_version="9.2.0-7"), pve3=older(qemu_version="9.0.2-1"))
    question = Question(verdicts=needing(101))
    assert why_not(snapshot, question, "pve2") is None
    assert why_not(snapshot, question, "pve3") == Refusal(101, R.NODE_OLDER, "QEMU 9.0.2, the guest needs 9.2.0")
    for uptime_s in (3500.0, 3700.0, None):  # started since, or not surely before
        guests = tuple(replace(guest, uptime_s=uptime_s) for guest in snapshot.guests)
        refusal = why_not(replace(snapshot, guests=guests), question, "pve2")
        assert refusal == Refusal(101, R.NODE_OLDER, "QEMU 9.2.0, the guest needs 10.1.2")
    unknown = equipped(LEAVING, pve1=replace(upgraded, qemu_before=""), pve2=older(qemu_version="9.2.0-7"))
    assert why_not(unknown, question, "pve2").reason is R.NODE_OLDER  # type: ignore[union-attr]


def test_builds_of_one_qemu_are_one_version() -> None:
    snapshot = equipped(LEAVING, pve2=older(qemu_version="10.1.2-1", pve_version="9.1.0"))
    assert why_not(snapshot, Question(verdicts=needing(101)), "pve2") is None


def test_a_container_does_not_care_for_qemu() -> None:
    snapshot = equipped(LEAVING_CT, pve2=older(qemu_version="9.2.0-7"))
    assert why_not(snapshot, Question(verdicts=needing(101)), "pve2") is None


def test_a_hookscript_on_shared_storage_goes_where_that_is() -> None:
    question = Question(verdicts=needing(101, hookscript="nfs:snippets/a.pl"))
    assert why_not(equipped(LEAVING), question, "pve3") is None
    assert why_not(equipped(LEAVING), question, "pve2") == Refusal(101, R.HOOKSCRIPT_MISSING, "nfs:snippets/a.pl cannot be seen")


@pytest.mark.parametrize(
    ("text", "parts", "version"),
    [("10.1.2-3", 3, (10, 1, 2)), ("9.1.1", 1, (9,)), ("1:9.2+dfsg", 3, (9, 2)), ("", 2, None), ("x", 2, None)],
)
def test_versions_are_read_from_their_packages(text: str, parts: int, version: tuple[int, ...] | None) -> None:
    assert version_of(text, parts) == version


def test_a_guest_whose_configuration_was_not_read_is_judged_by_pve_alone() -> None:
    assert planner.plan(equipped(LEAVING), PLAIN, Question(verdicts={101: Verdict(101, NOW)})).moves[0].target == "pve2"

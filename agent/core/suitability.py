# SPDX-License-Identifier: GPL-3.0-or-later
"""Which node has what a guest needs. What cannot be seen counts as a no, unless it cannot be seen of any node."""

from __future__ import annotations

import re
from collections.abc import Callable

from agent.core.cluster import Guest, GuestType, NodeFacts, Snapshot
from agent.core.local_disks import Copied, copied, why_no_disk_room
from agent.core.needs import GuestNeeds, Volume, VolumeKind
from agent.core.reasons import RefusalReason
from agent.core.settings import Settings

Why = tuple[RefusalReason, str]
Version = tuple[int, ...]

QEMU_PARTS = 3  # 10.1.2: what comes after that counts builds of one QEMU
PVE_PARTS = 1  # 9: within it, nodes are kept compatible both ways
UPTIME_TOLERANCE_S = 120.0  # of a guest's uptime as PVE last told it: who may have started on either side of an upgrade counts as newer
OWN_CPU = ("host", "max", "custom-")  # a custom type may stand on `host`: nobody but the node knows
LOCAL_SNIPPETS = "local:snippets/"

_VERSION = re.compile(r"\d+(?:\.\d+)*")
_MACHINE = re.compile(r"-(\d+)\.(\d+)")


def version_of(text: str, parts: int) -> Version | None:
    """The first numbers of a package's version, None when there are none."""
    match = _VERSION.match(text.partition(":")[2] or text)
    return None if match is None else tuple(int(part) for part in match[0].split(".")[:parts])


CONNTRACK_SINCE = (9,)  # of PVE: before, it does not know the parameter, and refuses the whole request


def keeps_connections(snapshot: Snapshot, source: str, target: str) -> bool:
    """True where both nodes' own agents tell a PVE that can take a VM's firewall connections along."""
    facts = [node.facts for node in snapshot.nodes if node.name in (source, target)]
    versions = [None if told is None else _pve(told) for told in facts]
    return len(versions) == 2 and all(version is not None and version >= CONNTRACK_SINCE for version in versions)


class Suitability:
    """The nodes and storages of one snapshot, asked for one guest and one node at a time.

    A cluster where no node tells a version, or where none tells its facts at all (as seen off a node), is not judged by
    that; but a guest with its node's own CPU type goes nowhere then.
    """

    def __init__(self, snapshot: Snapshot, settings: Settings) -> None:
        self._settings, self._storage_use = settings, snapshot.storage_use
        self._taken_at = snapshot.taken_at
        self._storages = {storage.name: storage for storage in snapshot.storages}
        self._facts = {node.name: node.facts for node in snapshot.nodes if node.facts is not None}
        self._newest_qemu = self._newest(_qemu)
        self._newest_pve = self._newest(_pve)

    def _newest(self, version: Callable[[NodeFacts], Version | None]) -> Version | None:
        return max((found for facts in self._facts.values() if (found := version(facts)) is not None), default=None)

    def copied(self, guest: Guest, needs: GuestNeeds, home: str | None = None) -> Copied:
        """The disks that the guest takes along when it moves; `home` is the node to which it comes home, None elsewhere."""
        return copied(guest, needs, self._storages, self._settings, home)

    def why_stays(self, guest: Guest, needs: GuestNeeds) -> Why | None:
        """What ties the guest to its node, None when nothing does."""
        if needs.devices:
            return RefusalReason.LOCAL_DEVICE, ", ".join(needs.devices)
        if needs.args:
            return RefusalReason.ARGS, f"args: {needs.args}"
        if needs.affinity:
            return RefusalReason.CPU_AFFINITY, f"affinity: {needs.affinity}"
        local = [volume for volume in needs.volumes if not self._is_shared(volume.storage)]
        taken = self.copied(guest, needs).volumes
        if disks := [volume for volume in local if volume.kind is VolumeKind.DISK and volume not in taken]:
            return RefusalReason.LOCAL_DISK, self._named(disks)
        if images := [volume for volume in local if volume.kind is VolumeKind.IMAGE]:
            return RefusalReason.LOCAL_IMAGE, self._named(images)
        return None

    def _named(self, volumes: list[Volume]) -> str:
        unseen = sorted({volume.storage for volume in volumes} - self._storages.keys())
        hint = f" (storage {', '.join(unseen)} is not to be seen)" if unseen else ""
        return ", ".join(volume.name for volume in volumes) + hint

    def _is_shared(self, name: str) -> bool:
        storage = self._storages.get(name)
        return storage is not None and storage.shared

    def why_not_there(self, guest: Guest, needs: GuestNeeds, target: str, *, is_home: bool = False) -> Why | None:
        """What the guest needs and the node has not, None when it has all; `is_home`: it would come home there."""
        taken = self.copied(guest, needs, target if is_home else None)
        wanted = sorted({taken.names.get(volume.storage, volume.storage) for volume in needs.volumes})
        if missing := [name for name in wanted if name not in self._storages or target not in self._storages[name].nodes]:
            return RefusalReason.STORAGE_MISSING, ", ".join(missing)
        full = why_no_disk_room(taken, target, self._storage_use, self._settings.balance.storage.threshold_percent)
        if full is not None:
            return RefusalReason.NO_DISK_ROOM, full
        if needs.replicated_to is not None and target not in needs.replicated_to:
            return RefusalReason.NOT_REPLICATED, f"replicated to {', '.join(needs.replicated_to)}"
        source, there = self._facts.get(guest.node), self._facts.get(target)
        if (unlike := _why_cpu_unlike(needs, source, there)) is not None:
            return unlike
        if not self._facts:
            return None
        if there is None:
            return RefusalReason.NODE_UNKNOWN, "its agent has not told what it has"
        return self._why_older(guest, needs, source, there) or _why_no_bridge(needs, there) or self._why_no_hookscript(needs, target, there)

    def _why_older(self, guest: Guest, needs: GuestNeeds, source: NodeFacts | None, there: NodeFacts) -> Why | None:
        """Why the node's software is older than what the guest runs on now; where that is not known, the newest of all counts."""
        here = (None if source is None else _pve(source)) or self._newest_pve
        if here is not None and (older := _why_behind("Proxmox VE", _pve(there), here)) is not None:
            return older
        if guest.type is GuestType.LXC:
            return None
        qemu = (None if source is None else self._qemu_of(guest, source)) or self._newest_qemu
        if qemu is None:
            return None
        if (match := _MACHINE.search(needs.machine)) is not None:
            qemu = max(qemu, (int(match[1]), int(match[2])))
        return _why_behind("QEMU", _qemu(there), qemu)

    def _qemu_of(self, guest: Guest, facts: NodeFacts) -> Version | None:
        """The QEMU that the guest runs: an upgrade of the node does not reach into who runs already, and such a guest can go back."""
        started_at = None if guest.uptime_s is None else self._taken_at - guest.uptime_s
        if facts.qemu_since is not None and started_at is not None and started_at < facts.qemu_since - UPTIME_TOLERANCE_S:
            return version_of(facts.qemu_before, QEMU_PARTS) or _qemu(facts)
        return _qemu(facts)

    def _why_no_hookscript(self, needs: GuestNeeds, target: str, there: NodeFacts) -> Why | None:
        script = needs.hookscript
        if not script:
            return None
        if script.startswith(LOCAL_SNIPPETS):
            return None if script.removeprefix(LOCAL_SNIPPETS) in there.hookscripts else (RefusalReason.HOOKSCRIPT_MISSING, script)
        storage = self._storages.get(script.partition(":")[0])
        if storage is not None and storage.shared and target in storage.nodes:
            return None
        return RefusalReason.HOOKSCRIPT_MISSING, f"{script} cannot be seen"


def _qemu(facts: NodeFacts) -> Version | None:
    return version_of(facts.qemu_version, QEMU_PARTS)


def _pve(facts: NodeFacts) -> Version | None:
    return version_of(facts.pve_version, PVE_PARTS)


def _why_behind(what: str, there: Version | None, here: Version) -> Why | None:
    if there is None:
        return RefusalReason.NODE_UNKNOWN, f"its version of {what}"
    if there < here:
        return RefusalReason.NODE_OLDER, f"{what} {_dotted(there)}, the guest needs {_dotted(here)}"
    return None


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _why_cpu_unlike(needs: GuestNeeds, source: NodeFacts | None, there: NodeFacts | None) -> Why | None:
    """Why a guest that sees its node's own CPU would not find the same one there."""
    if not needs.cpu_type.startswith(OWN_CPU):
        return None
    if source is None or there is None or not source.cpu_model or not there.cpu_model:
        return RefusalReason.NODE_UNKNOWN, f"cpu: {needs.cpu_type}, and not both CPUs are known"
    if source.cpu_model != there.cpu_model:
        return RefusalReason.CPU_UNLIKE, f"cpu: {needs.cpu_type}, {there.cpu_model} instead of {source.cpu_model}"
    if source.cpu_flags != there.cpu_flags:
        unlike = sorted(set(source.cpu_flags.split()) ^ set(there.cpu_flags.split()))
        return RefusalReason.CPU_UNLIKE, f"cpu: {needs.cpu_type}, not both have {', '.join(unlike[:3])}{', ...' if unlike[3:] else ''}"
    return None


def _why_no_bridge(needs: GuestNeeds, there: NodeFacts) -> Why | None:
    missing = [name for name in needs.bridges if name not in there.bridges]
    return (RefusalReason.BRIDGE_MISSING, ", ".join(missing)) if missing else None

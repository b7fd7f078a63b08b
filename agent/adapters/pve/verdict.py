# SPDX-License-Identifier: GPL-3.0-or-later
"""What PVE itself says about a migration before it happens: GET .../migrate, and the configuration of a container."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from agent.adapters.pve.values import Row, fields, flag, names, one_line, table, text
from agent.core.cluster import Storage
from agent.core.plan_types import Refusal, Verdict
from agent.core.reasons import RefusalReason

_CONTAINER_VOLUME = re.compile(r"rootfs|mp\d+|unused\d+")
_CONTAINER_DEVICE = re.compile(r"dev\d+")
_RAW_DEVICE = re.compile(r"lxc\.(mount|hook|cgroup2?\.devices)\b")
_LOCKED = re.compile(r"\b(?:VM|CT) is locked\b(?: \(([^)]*)\))?")
_CLOUD_INIT = re.compile(r"vm-\d+-cloudinit(\.\w+)?$")


def verdict_of_refusal(vmid: int, said: str, wall_s: float) -> Verdict:
    """The verdict when PVE refused to answer, with its own words."""
    locked = _LOCKED.search(said)
    if locked is None:
        return Verdict(vmid, wall_s, Refusal(vmid, RefusalReason.PRECONDITION, one_line(said)))
    return Verdict(vmid, wall_s, Refusal(vmid, RefusalReason.LOCKED, locked[1] or ""))


def vm_verdict(vmid: int, answer: object, path: str, wall_s: float) -> Verdict:
    """What PVE says about migrating a VM.

    Devices come before disks: a device keeps the VM where it is, for disks there may be a way. PVE before 8.4 tells
    allowed nodes only for a stopped VM, so a missing list says nothing; nor does a node's absence from it, as PVE names
    each refused node with its cause.
    """
    row = fields(answer, path)
    devices = _blocking_devices(row)
    if devices:
        refusal = Refusal(vmid, RefusalReason.LOCAL_DEVICE, one_line(", ".join(devices)))
        return Verdict(vmid, wall_s, refusal)
    disks = _local_disks(row.get("local_disks"))
    refusal_of_disks = Refusal(vmid, RefusalReason.LOCAL_DISK, one_line(", ".join(disks))) if disks else None
    return Verdict(vmid, wall_s, refusal_of_disks, _refused_nodes(row.get("not_allowed_nodes")))


def _blocking_devices(row: Row) -> list[str]:
    """Devices that keep the VM where it is. PVE lists mapped ones among the local ones, too."""
    info = table(row.get("mapped-resource-info"))
    mapped = {*names(row.get("mapped-resources")), *info}
    local = [name for name in names(row.get("local_resources")) if name not in mapped]
    fixed = [name for name in sorted(mapped) if not flag(table(info.get(name)).get("live-migration"))]
    physical = [f"{_drive(disk)} (the node's own drive)" for disk in _disks(row.get("local_disks")) if _volid(disk) == "cdrom"]
    return sorted(local) + (fixed if flag(row.get("running")) else []) + physical


def _local_disks(value: object) -> list[str]:
    """Volumes that exist on this node alone; a cloud-init image is made anew by PVE wherever the VM starts."""
    found = []
    for disk in _disks(value):
        volid = _volid(disk)
        if volid in ("", "none", "cdrom") or _CLOUD_INIT.search(volid):
            continue
        found.append(f"{volid} (cdrom)" if flag(disk.get("cdrom")) else volid)
    return sorted(found)


def _disks(value: object) -> Iterator[Row]:
    for disk in value if isinstance(value, list) else ():
        yield disk if isinstance(disk, dict) else {"volid": disk}


def _volid(disk: Row) -> str:
    return text(disk.get("volid")) or _drive(disk)


def _drive(disk: Row) -> str:
    return text(disk.get("drivename"))


def _refused_nodes(value: object) -> tuple[tuple[str, str], ...]:
    return tuple((node, one_line(_why_not_node(why))) for node, why in sorted(table(value).items()))


def _why_not_node(why: object) -> str:
    row = table(why)
    said = []
    if stores := names(row.get("unavailable_storages")):
        said.append(f"storage {', '.join(stores)} is not there")
    if devices := names(row.get("unavailable-resources")):
        said.append(f"mapped device {', '.join(devices)} is not there")
    blocking = row.get("blocking-ha-resources")
    guests_there = [table(entry) for entry in blocking] if isinstance(blocking, list) else []
    if guests_there:
        said.append("HA rule: " + ", ".join(f"{text(entry.get('sid'))} ({text(entry.get('cause'))})" for entry in guests_there))
    return "; ".join(said) or "PVE does not allow it" + (f" ({', '.join(sorted(map(str, row)))})" if row else "")


def container_verdict(
    vmid: int, precondition: object, config: object, known: Mapping[str, Storage], cluster_nodes: Collection[str], wall_s: float
) -> Verdict:
    """What keeps a container from migrating, from its configuration and, where PVE has it, PVE's own check.

    Shape:   `precondition` is the answer of GET .../migrate, None on PVE 8; a storage that is not in `known` counts as local.
    """
    row = fields(config, "nodes/.../config")
    if lock := text(row.get("lock")):
        return Verdict(vmid, wall_s, Refusal(vmid, RefusalReason.LOCKED, one_line(lock)))
    devices = _container_devices(row)
    if devices:
        return Verdict(vmid, wall_s, Refusal(vmid, RefusalReason.LOCAL_DEVICE, one_line(", ".join(devices))))
    volumes = _container_volumes(row)
    local = [volid for storage, volid in volumes if storage not in known or not known[storage].shared]
    refused = dict(_refused_nodes(table(precondition).get("not-allowed-nodes")))
    shared = sorted({storage for storage, _ in volumes if storage in known and known[storage].shared})
    for node in sorted(cluster_nodes):
        missing = [storage for storage in shared if node not in known[storage].nodes]
        if missing:
            refused.setdefault(node, one_line(f"storage {', '.join(missing)} is not there"))
    refusal = Refusal(vmid, RefusalReason.LOCAL_DISK, one_line(", ".join(local))) if local else None
    return Verdict(vmid, wall_s, refusal, tuple(sorted(refused.items())))


def container_storages(config: object) -> set[str]:
    """The storages a container has volumes on."""
    return {storage for storage, _ in _container_volumes(table(config))}


def _container_devices(config: Row) -> list[str]:
    """Devices, directories and raw settings of its node that a container uses."""
    found = [f"{key} {_first(value)}" for key, value in sorted(config.items()) if _CONTAINER_DEVICE.fullmatch(key)]
    for key, value in sorted(config.items()):
        if _CONTAINER_VOLUME.fullmatch(key) and _first(value).startswith("/") and "shared=1" not in text(value).split(","):
            found.append(f"{key} {_first(value)}")
    raw = config.get("lxc")
    for entry in raw if isinstance(raw, list) else ():
        key = text(entry[0]) if isinstance(entry, list) and entry else ""
        if _RAW_DEVICE.match(key):
            found.append(key)
    return list(dict.fromkeys(found))


def _container_volumes(config: Row) -> list[tuple[str, str]]:
    """(storage, volid) of each volume, by its key; what begins with a slash is none."""
    volids = [_first(value) for key, value in sorted(config.items()) if _CONTAINER_VOLUME.fullmatch(key)]
    return [(volid.partition(":")[0], volid) for volid in volids if volid and not volid.startswith("/")]


def _first(value: object) -> str:
    """The value of a property string's default key, which may be spelt out."""
    first = text(value).split(",")[0]
    return first.partition("=")[2] if first.startswith(("volume=", "path=")) else first

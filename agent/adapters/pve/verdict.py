# SPDX-License-Identifier: GPL-3.0-or-later
"""What PVE itself says about a migration before it happens: GET .../migrate."""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.adapters.pve.values import Row, fields, flag, names, number, one_line, table, text
from agent.core.plan_types import Refusal, Verdict
from agent.core.reasons import RefusalReason

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
    refusal = None
    if devices := _blocking_devices(row):
        refusal = Refusal(vmid, RefusalReason.LOCAL_DEVICE, one_line(", ".join(devices)))
    elif disks := _local_disks(row.get("local_disks"), cdrom=False):
        refusal = Refusal(vmid, RefusalReason.LOCAL_DISK, one_line(", ".join(disks)))
    elif images := _local_disks(row.get("local_disks"), cdrom=True):
        refusal = Refusal(vmid, RefusalReason.LOCAL_IMAGE, one_line(", ".join(images)))
    return Verdict(vmid, wall_s, refusal, _refused_nodes(vmid, row.get("not_allowed_nodes")))


def disk_sizes(answer: object) -> dict[str, int]:
    """The sizes that PVE tells of a VM's volumes on its node, in bytes."""
    found = {}
    for disk in _disks(table(answer).get("local_disks")):
        size = number(disk.get("size"))
        if size is not None and size > 0 and (volid := _volid(disk)):
            found[one_line(volid)] = int(size)
    return found


def container_verdict(vmid: int, answer: object, wall_s: float) -> Verdict:
    """What PVE 9 says about migrating a container: it looks at the HA manager's rules, and at no storage."""
    return Verdict(vmid, wall_s, None, _refused_nodes(vmid, table(answer).get("not-allowed-nodes")))


def _blocking_devices(row: Row) -> list[str]:
    """Devices that keep the VM where it is. PVE lists mapped ones among the local ones, too."""
    info = table(row.get("mapped-resource-info"))
    mapped = {*names(row.get("mapped-resources")), *info}
    local = [name for name in names(row.get("local_resources")) if name not in mapped]
    fixed = [name for name in sorted(mapped) if not flag(table(info.get(name)).get("live-migration"))]
    return sorted(local) + (fixed if flag(row.get("running")) else [])


def _local_disks(value: object, *, cdrom: bool) -> list[str]:
    """Volumes on this node alone, in CD drives or not; a cloud-init image is made anew by PVE wherever the VM starts."""
    found = []
    for disk in _disks(value):
        volid = _volid(disk)
        if volid in ("", "none") or _CLOUD_INIT.search(volid) or cdrom != (volid == "cdrom" or flag(disk.get("cdrom"))):
            continue
        found.append(f"{_drive(disk)} (the node's own drive)".strip() if volid == "cdrom" else volid)
    return sorted(found)


def _disks(value: object) -> Iterator[Row]:
    for disk in value if isinstance(value, list) else ():
        yield disk if isinstance(disk, dict) else {"volid": disk}


def _volid(disk: Row) -> str:
    return text(disk.get("volid")) or _drive(disk)


def _drive(disk: Row) -> str:
    return text(disk.get("drivename"))


def _refused_nodes(vmid: int, value: object) -> tuple[tuple[str, Refusal], ...]:
    return tuple((node, _why_not_node(vmid, why)) for node, why in sorted(table(value).items()))


def _why_not_node(vmid: int, why: object) -> Refusal:
    row = table(why)
    said: list[tuple[RefusalReason, str]] = []
    if stores := names(row.get("unavailable_storages")):
        said.append((RefusalReason.STORAGE_MISSING, ", ".join(stores)))
    if devices := names(row.get("unavailable-resources")):
        said.append((RefusalReason.DEVICE_MISSING, ", ".join(devices)))
    blocking = row.get("blocking-ha-resources")
    guests_there = [table(entry) for entry in blocking] if isinstance(blocking, list) else []
    if guests_there:
        guests = ", ".join(f"{text(entry.get('sid'))} ({text(entry.get('cause'))})" for entry in guests_there)
        said.append((RefusalReason.NODE_REFUSED, f"HA rule: {guests}"))
    if not said:
        said.append((RefusalReason.NODE_REFUSED, ", ".join(sorted(map(str, row)))))
    reason = said[0][0]
    return Refusal(vmid, reason, one_line("; ".join(detail for _, detail in said)))

# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's rows of /cluster/resources become nodes, guests and storages."""

from __future__ import annotations

import re

from agent.adapters.pve.values import Row, flag, number, table, text, whole
from agent.core.cluster import Guest, GuestType, Node, Storage, StorageUse

RESOURCES = "cluster/resources"
VERSION = "version"
VMID_MAX = 999_999_999
HA_HANDS_OFF = frozenset({"ignored", "unmanaged"})  # the HA manager knows the guest and leaves it alone: PVE migrates it like any other

_TAG_SEPARATORS = re.compile(r"[;,\s]+")


def version(answer: object) -> str:
    """PVE's version (9.0.10) from GET /version, "" when it does not say."""
    return text(table(answer).get("version"))


def major(pve_version: str) -> int | None:
    """The release of a version: 8 or 9; None when it cannot be told."""
    first = pve_version.partition(".")[0]
    return int(first) if first.isascii() and first.isdigit() else None


def nodes(resources: list[Row]) -> tuple[Node, ...]:
    """The nodes among the rows of /cluster/resources, by name.

    A node without numbers (offline, or the token may not see them) has size 0 and unknown load.
    """
    found: dict[str, Node] = {}
    for row in resources:
        name = text(row.get("node")) or text(row.get("id")).removeprefix("node/")
        if row.get("type") != "node" or not name:
            continue
        cores = number(row.get("maxcpu")) or 0.0
        cpu = number(row.get("cpu"))
        node = Node(
            name=name,
            online=row.get("status") == "online",
            cpu_cores=cores,
            memory_bytes=whole(row.get("maxmem")) or 0,
            cpu_used_cores=cpu * cores if cpu is not None and cores else None,
            memory_used_bytes=whole(row.get("mem")),
            uptime_s=number(row.get("uptime")),
        )
        found.setdefault(name, node)
    return tuple(found[name] for name in sorted(found))


def guests(resources: list[Row]) -> tuple[Guest, ...]:
    """The guests among the rows of /cluster/resources, by VMID, also those on nodes that have no row."""
    found: dict[int, Guest] = {}
    for row in resources:
        kind = row.get("type")
        if kind not in ("qemu", "lxc"):
            continue
        vmid = whole(row.get("vmid")) or whole(text(row.get("id")).rpartition("/")[2])
        node = text(row.get("node"))
        if vmid is not None and 0 < vmid <= VMID_MAX and node:
            found.setdefault(vmid, _guest(row, vmid, GuestType(kind), node))
    return tuple(found[vmid] for vmid in sorted(found))


def _guest(row: Row, vmid: int, kind: GuestType, node: str) -> Guest:
    cores = number(row.get("maxcpu")) or 0.0
    cpu = number(row.get("cpu"))  # a fraction of the guest's own vCPUs
    return Guest(
        vmid=vmid,
        type=kind,
        name=text(row.get("name")) or (f"VM {vmid}" if kind is GuestType.QEMU else f"CT{vmid}"),  # as PVE calls the nameless
        node=node,
        status=text(row.get("status")) or "unknown",
        cpu_cores=cores,
        memory_bytes=whole(row.get("maxmem")) or 0,
        cpu_used_cores=cpu * cores if cpu is not None and cores else None,
        memory_used_bytes=whole(row.get("mem")),
        memory_host_bytes=whole(row.get("memhost")),
        uptime_s=number(row.get("uptime")),
        tags=tuple(dict.fromkeys(tag for tag in _TAG_SEPARATORS.split(text(row.get("tags"))) if tag)),
        pool=text(row.get("pool")) or None,
        lock=text(row.get("lock")) or None,
        ha=ha if (ha := text(row.get("hastate"))) not in HA_HANDS_OFF and ha else None,
        template=flag(row.get("template")),
    )


def storages(resources: list[Row]) -> tuple[Storage, ...]:
    """The storages among the rows of /cluster/resources, by name; PVE has a row for each node on which a storage is to be had."""
    shared: dict[str, bool] = {}
    where: dict[str, set[str]] = {}
    for row in resources:
        name, node = text(row.get("storage")), text(row.get("node"))
        if row.get("type") == "storage" and name and node:
            shared[name] = shared.get(name, True) and flag(row.get("shared"))
            where.setdefault(name, set()).add(node)
    return tuple(Storage(name, shared[name], tuple(sorted(where[name]))) for name in sorted(shared))


def storage_use(resources: list[Row]) -> tuple[StorageUse, ...]:
    """How full the storages are: a shared one once, by the row that says most; without those whose use PVE does not tell."""
    found: dict[tuple[str, str], StorageUse] = {}
    where = {storage.name: storage for storage in storages(resources)}
    for row in resources:
        name, node = text(row.get("storage")), text(row.get("node"))
        used, total = whole(row.get("disk")), whole(row.get("maxdisk"))
        if row.get("type") != "storage" or name not in where or not node or used is None or not total:
            continue
        nodes = where[name].nodes if where[name].shared else (node,)
        use, before = StorageUse(name, nodes, used, total), found.get((name, nodes[0]))
        if before is None or used / total > before.used_bytes / before.total_bytes:
            found[name, nodes[0]] = use
    return tuple(sorted(found.values(), key=lambda use: (use.name, use.nodes)))

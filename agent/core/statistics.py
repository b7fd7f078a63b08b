# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that pmxcfs makes up, as values: `.rrd` (loads), `.vmlist` (where guests are), `.members` (who is there)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from agent.core.cluster import GuestType
from agent.core.json_types import Json, JsonObject

# Columns of a line, its key being the first. PVE 9 appended to those of PVE 8, so one numbering serves both.
_UPTIME = 1
_NODE_CTIME, _NODE_CORES, _NODE_CPU, _NODE_MEMORY, _NODE_MEMORY_USED = 3, 5, 6, 8, 9
_NODE_ZFS_CACHE, _NODE_CPU_PRESSURE, _NODE_MEMORY_PRESSURE = 17, 18, 21
_GUEST_NAME, _GUEST_STATUS, _GUEST_CTIME, _GUEST_CORES, _GUEST_CPU = 2, 3, 5, 6, 7
_GUEST_MEMORY, _GUEST_MEMORY_USED, _GUEST_MEMORY_HOST = 8, 9, 16
# A line with fewer was cut off: its last number may be wrong, so none of it is taken.
_COLUMNS_8 = 16
_COLUMNS_9 = 23

ZFS_LEAST_SHARE = 1 / 32  # zfs_arc_min: the cache gives back what is over the larger of these, zfs(4)
ZFS_LEAST_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class NodeSample:
    """A node's load as its pvestatd sent it last.

    Units:   `at_s` are Unix seconds of the node's clock; cores, bytes, seconds. None is unknown, never zero.
    Shape:   what the ZFS cache would give back and the pressure (of cpu and memory the larger) are known on PVE 9 alone.
    """

    name: str
    at_s: int
    uptime_s: float | None
    cpu_cores: float | None
    cpu_used_cores: float | None
    memory_bytes: int | None
    memory_used_bytes: int | None
    zfs_cache_bytes: int | None = None
    pressure_fraction: float | None = None


class GuestSample(NamedTuple):
    """A guest's load as its node's pvestatd sent it last. A tuple, as thousands are made every few seconds: a frozen dataclass takes
    three times as long.

    Units:   `at_s` are Unix seconds of the node's clock; `cpu_used_cores` are cores of the node. None is unknown, never zero.
    Shape:   `status` is PVE's word (running, stopped, paused, ...); `memory_host_bytes` is known for VMs on PVE 9 alone.
    """

    vmid: int
    at_s: int
    name: str
    status: str
    cpu_cores: float | None
    cpu_used_cores: float | None
    memory_bytes: int | None
    memory_used_bytes: int | None
    memory_host_bytes: int | None
    uptime_s: float | None

    @property
    def is_running(self) -> bool:
        """True when PVE says the guest runs."""
        return self.status == "running"


@dataclass(frozen=True, slots=True)
class Statistics:
    """All of `.rrd`: nodes sorted by name, guests by VMID. What was not sent for five minutes is not in it."""

    nodes: tuple[NodeSample, ...] = ()
    guests: tuple[GuestSample, ...] = ()


class VmEntry(NamedTuple):
    """Where a guest's configuration is. `version` changes each time it is written or moved, also by a lock being set."""

    vmid: int
    node: str
    type: GuestType
    version: int


@dataclass(frozen=True, slots=True)
class Members:
    """Who is in the cluster, as the node `nodename` sees it.

    Shape:   `nodes` is name -> online, `addresses` name -> the address that the name stands for where it is known; `quorate` is None
             on a node that is in no cluster, and then both are empty.
    """

    nodename: str
    quorate: bool | None
    nodes: Mapping[str, bool] = field(default_factory=dict)
    addresses: Mapping[str, str] = field(default_factory=dict)


def parse_rrd(text: str) -> Statistics:
    """Return the loads in `.rrd`; broken lines and those of other things are left out, and columns past the known ones allowed.

    A guest that came from a node with the other release is there twice for five minutes: the later sample is taken.

    Units:   PVE gives a guest's cpu as fraction of its own vCPUs, a node's as fraction of its cores; both become cores here.
    Source:  PVE/Service/pvestatd.pm: update_node_status, update_qemu_status, update_lxc_status, in pve-manager 8.4.21 (keys
             `pve2-node/`, `pve2.3-vm/`, 15 columns) and 9.2.11 (`pve-node-9.0/`, `pve-vm-9.0/`, 22 columns, the first 15 the same).
             PVE/ProcFSTools.pm, read_meminfo: a node's used memory is MemTotal - MemAvailable (libpve-common-perl from 8.3.1 on;
             before, MemTotal - MemFree - Buffers - Cached). The kernel counts the ZFS cache as none of these, so it is in
             the used memory of every release; `arcsize` is its whole size. Pressures are `some avg10` in percent.
    """
    nodes: dict[str, NodeSample] = {}
    guests: dict[int, GuestSample] = {}
    for line in text.split("\n"):
        columns = line.split(":")
        prefix, _, name = columns[0].partition("/")
        if prefix == "pve2.3-vm" or prefix.startswith("pve-vm-"):
            guest = _guest_sample(name, columns, _COLUMNS_8 if prefix == "pve2.3-vm" else _COLUMNS_9)
            if guest is not None and (guest.vmid not in guests or guests[guest.vmid].at_s <= guest.at_s):
                guests[guest.vmid] = guest
        elif prefix == "pve2-node" or prefix.startswith("pve-node-"):
            node = _node_sample(name, columns, _COLUMNS_8 if prefix == "pve2-node" else _COLUMNS_9)
            if node is not None and (name not in nodes or nodes[name].at_s <= node.at_s):
                nodes[name] = node
    return Statistics(tuple(nodes[name] for name in sorted(nodes)), tuple(guests[vmid] for vmid in sorted(guests)))


def parse_vmlist(text: str) -> tuple[VmEntry, ...] | None:
    """Return all guests of the cluster by VMID, or None for a text that was cut off: read it again, and take it for no empty cluster.

    Source:  cfs_create_vmlist_msg in pve-cluster's status.c (9.1.6).
    """
    document = _object(text)
    if document is None or not isinstance(document.get("version"), int):
        return None
    ids = document.get("ids", {})
    if not isinstance(ids, dict):
        return None
    found: list[VmEntry] = []
    for key, row in ids.items():
        vmid = _vmid(key)
        if vmid is None or not isinstance(row, dict):
            continue
        node, kind, version = row.get("node"), row.get("type"), row.get("version")
        if isinstance(node, str) and isinstance(kind, str) and kind in _GUEST_TYPES and isinstance(version, int):
            found.append(VmEntry(vmid, node, _GUEST_TYPES[kind], version))
    found.sort(key=_vmid_of)
    return tuple(found)


def parse_members(text: str) -> Members | None:
    """Return who is in the cluster, or None for a text that was cut off: read it again.

    Source:  cfs_create_memberlist_msg in pve-cluster's status.c (9.1.6).
    """
    document = _object(text)
    nodename = None if document is None else document.get("nodename")
    if document is None or not isinstance(nodename, str):
        return None
    cluster = document.get("cluster")
    if not isinstance(cluster, dict):
        return Members(nodename, None)
    nodelist = document.get("nodelist")
    rows = nodelist if isinstance(nodelist, dict) else {}
    nodes = {name: isinstance(row, dict) and row.get("online") == 1 for name, row in sorted(rows.items())}
    addresses = {name: ip for name, row in sorted(rows.items()) if isinstance(row, dict) and isinstance(ip := row.get("ip"), str)}
    return Members(nodename, cluster.get("quorate") == 1, nodes, addresses)


_GUEST_TYPES = {kind.value: kind for kind in GuestType}
_vmid_of = attrgetter("vmid")


def _node_sample(name: str, columns: list[str], least: int) -> NodeSample | None:
    if len(columns) < least or not name or "/" in name:
        return None
    at_s = _whole(columns[_NODE_CTIME])
    if at_s is None:
        return None
    cores, cpu = _number(columns[_NODE_CORES]), _number(columns[_NODE_CPU])
    memory_bytes = _whole(columns[_NODE_MEMORY])
    is_9 = least > _NODE_MEMORY_PRESSURE
    return NodeSample(
        name=name,
        at_s=at_s,
        uptime_s=_number(columns[_UPTIME]),
        cpu_cores=cores,
        cpu_used_cores=None if cores is None or cpu is None else cores * cpu,
        memory_bytes=memory_bytes,
        memory_used_bytes=_whole(columns[_NODE_MEMORY_USED]),
        zfs_cache_bytes=zfs_given_back(_whole(columns[_NODE_ZFS_CACHE]), memory_bytes) if is_9 else None,
        pressure_fraction=_pressure(columns[_NODE_CPU_PRESSURE], columns[_NODE_MEMORY_PRESSURE]) if is_9 else None,
    )


def zfs_given_back(size_bytes: int | None, memory_bytes: int | None) -> int | None:
    """What a ZFS cache of that size gives back when memory is short, None when its size or the node's is not known."""
    if size_bytes is None or not memory_bytes:
        return None
    return max(0, size_bytes - max(int(memory_bytes * ZFS_LEAST_SHARE), ZFS_LEAST_BYTES))


def _pressure(*percents: str) -> float | None:
    """The largest of the pressures that are known."""
    known = [value / 100 for value in map(_number, percents) if value is not None and value <= 100]
    return max(known, default=None)


def _guest_sample(name: str, columns: list[str], least: int) -> GuestSample | None:
    if len(columns) < least:
        return None
    vmid, at_s = _vmid(name), _whole(columns[_GUEST_CTIME])
    if vmid is None or at_s is None:
        return None
    cores, cpu = _number(columns[_GUEST_CORES]), _number(columns[_GUEST_CPU])
    return GuestSample(
        vmid=vmid,
        at_s=at_s,
        name="" if columns[_GUEST_NAME] == "U" else columns[_GUEST_NAME],
        status="unknown" if columns[_GUEST_STATUS] == "U" else columns[_GUEST_STATUS],
        cpu_cores=cores,
        cpu_used_cores=None if cores is None or cpu is None else cores * cpu,
        memory_bytes=_whole(columns[_GUEST_MEMORY]),
        memory_used_bytes=_whole(columns[_GUEST_MEMORY_USED]),
        memory_host_bytes=_whole(columns[_GUEST_MEMORY_HOST]) if least > _GUEST_MEMORY_HOST else None,
        uptime_s=_number(columns[_UPTIME]),
    )


def _number(text: str) -> float | None:
    """Return what perl printed, None for `U` and what is no sane number."""
    if text == "U":  # a third of a quiet cluster's columns: an exception for each would cost more than all the rest
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.0 <= value < math.inf else None


def _whole(text: str) -> int | None:
    if text.isascii() and text.isdigit():
        return int(text)  # not by float: it has no room for all of a large number of bytes
    value = _number(text)
    return None if value is None else int(value)


def _vmid(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= len("999999999") else None


def _object(text: str) -> JsonObject | None:
    try:
        document: Json = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None

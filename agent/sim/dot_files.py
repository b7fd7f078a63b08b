# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that pmxcfs makes up when they are read, printed as PVE 8 and 9 print them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from agent.core.cluster import GuestType
from agent.sim.inventory import SimGuest, SimNode
from agent.sim.statistics import GuestRow, NodeRow


def rrd_text(node_rows: Mapping[str, NodeRow], guest_rows: Mapping[int, GuestRow], types: Mapping[int, GuestType], major: int) -> str:
    """`.rrd`: a line for each node and guest, values separated by colons, U for what is not known."""
    nodes = [_node_line(name, row, major) for name, row in sorted(node_rows.items())]
    guests = [_guest_line(vmid, row, types.get(vmid), major) for vmid, row in sorted(guest_rows.items())]
    return "".join(line + "\n" for line in nodes + guests)


def _node_line(name: str, row: NodeRow, major: int) -> str:
    cpu, load = _number(row.cpu_fraction), f"{row.cpu_fraction * row.cores:.2f}"
    disks = f"{100 << 30}:{20 << 30}"
    line = (
        f"{name}:{row.uptime_s}::{row.ctime}:{load}:{_number(row.cores)}:{cpu}:0:{row.memory_bytes}:{row.memory_used_bytes}:0:0:{disks}:0:0"
    )
    if major < 9:
        return f"pve2-node/{line}"
    return (
        f"pve-node-9.0/{line}:{row.memory_bytes - row.memory_used_bytes}:{row.zfs_cache_bytes}:{_number(row.pressure_cpu_percent)}:0:0:0:0"
    )


def _guest_line(vmid: int, row: GuestRow, type_: GuestType | None, major: int) -> str:
    head = f"{vmid}:{row.uptime_s}:{row.name}:{row.status}:{int(row.template)}:{row.ctime}:{_number(row.cores)}"
    if row.status == "stopped":
        line = f"{head}:U:{row.memory_bytes}:U:{32 << 30}:0:U:U:U:U"
        return f"pve2.3-vm/{line}" if major < 9 else f"pve-vm-9.0/{line}:U:U:U:U:U:U:U"
    line = f"{head}:{_number(row.cpu_fraction)}:{row.memory_bytes}:{row.memory_used_bytes}:{32 << 30}:0:0:0:0:0"
    if major < 9:
        return f"pve2.3-vm/{line}"
    host_memory = "U" if type_ is GuestType.LXC else row.memory_host_bytes
    return f"pve-vm-9.0/{line}:{host_memory}:{_number(row.pressure_cpu_percent)}:0:0:0:0:0"


def _number(value: float) -> str:
    """As perl prints a number."""
    return f"{value:.15g}"


def vmlist_text(guests: Iterable[SimGuest], version: int) -> str:
    """`.vmlist`: where each guest's configuration is, and when (by a counter) it was written last."""
    lines = [
        f'"{guest.vmid}": {{ "node": "{guest.node}", "type": "{guest.type.value}", "version": {guest.conf_version} }}' for guest in guests
    ]
    return f'{{\n"version": {version},\n"ids": {{\n' + ",\n".join(lines) + "}\n\n}\n"


def members_text(node: SimNode, nodes: Iterable[SimNode], version: int, *, standalone: bool) -> str:
    """`.members`: who is there, as this node sees it."""
    if standalone:
        return f'{{\n"nodename": "{node.name}",\n"version": {version}\n}}\n'
    every = list(nodes)
    head = f'"cluster": {{ "name": "sim", "version": 1, "nodes": {len(every)}, "quorate": {int(node.partition.quorate)} }}'
    lines = [
        f'  "{other.name}": {{ "id": {other.number}, "online": {int(other.online and other.partition is node.partition)}, '
        f'"ip": "192.0.2.{other.number}"}}'
        for other in every
    ]
    return f'{{\n"nodename": "{node.name}",\n"version": {version},\n{head},\n"nodelist": {{\n' + ",\n".join(lines) + "\n  }\n}\n"


def version_text(start_wall_s: int, membership_version: int, vmlist_version: int) -> str:
    """`.version`: counters that move when something changes. As in pmxcfs, `proxlb/` and the cluster log move none."""
    counters: dict[str, int] = {"starttime": start_wall_s, "clinfo": membership_version, "vmlist": vmlist_version}
    return json.dumps(counters)


def manager_status_text(asked: Iterable[str], states: Mapping[str, str], services: Mapping[str, Mapping[str, str]], now: int) -> str:
    """ha/manager_status: what an admin asked for, the states of nodes that are not simply online, and those of guests."""
    document = {
        "node_request": {name: {"maintenance": 1} for name in sorted(asked)},
        "node_status": dict(sorted(states.items())),
        "service_status": {sid: dict(status) for sid, status in services.items()},
        "timestamp": now,
    }
    return json.dumps(document)


def config_text(guest: SimGuest) -> str:
    """A guest's configuration, as far as anybody reads it."""
    fields = {
        "cores": _number(guest.cores),
        "description": guest.description,
        "hostname" if guest.type is GuestType.LXC else "name": guest.name,
        "lock": guest.lock or "",
        "memory": str(guest.memory_bytes >> 20),
        "tags": ";".join(guest.tags),
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items() if value)

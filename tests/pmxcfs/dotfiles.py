# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that pmxcfs makes up when they are looked at, letter by letter as it writes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from tests.pmxcfs.cluster import Cluster
from tests.pmxcfs.node import COUNTED_FILES, LogEntry, Node

Value = str | int | float | None
SHOWN_LOG_ENTRIES = 50
NODE_COLUMNS_8 = (
    "uptime", "level", "ctime", "loadavg", "maxcpu", "cpu", "iowait", "memtotal", "memused", "swaptotal", "swapused", "roottotal",
    "rootused", "netin", "netout",
)  # fmt: skip
NODE_COLUMNS_9 = (*NODE_COLUMNS_8, "memavailable", "arcsize", "pcpusome", "piosome", "piofull", "pmemsome", "pmemfull")
GUEST_COLUMNS_8 = (
    "uptime", "name", "status", "template", "ctime", "maxcpu", "cpu", "maxmem", "mem", "maxdisk", "disk", "netin", "netout", "diskread",
    "diskwrite",
)  # fmt: skip
GUEST_COLUMNS_9 = (*GUEST_COLUMNS_8, "memhost", "pcpusome", "pcpufull", "piosome", "piofull", "pmemsome", "pmemfull")
STORAGE_COLUMNS = ("ctime", "total", "used")
# What stands for a column nobody set: a running guest, a node with a subscription level of "", no pressure.
NODE_DEFAULTS: dict[str, Value] = {"uptime": 86400, "level": "", "loadavg": 0, "netin": 0, "netout": 0}
NO_TRAFFIC = dict.fromkeys(("netin", "netout", "diskread", "diskwrite"), 0)
GUEST_DEFAULTS: dict[str, Value] = {"uptime": 86400, "status": "running", "template": 0, **NO_TRAFFIC}
TABLES = {
    9: {
        "nodes": ("pve-node-9.0", NODE_COLUMNS_9),
        "guests": ("pve-vm-9.0", GUEST_COLUMNS_9),
        "storages": ("pve-storage-9.0", STORAGE_COLUMNS),
    },
    8: {
        "nodes": ("pve2-node", NODE_COLUMNS_8),
        "guests": ("pve2.3-vm", GUEST_COLUMNS_8),
        "storages": ("pve2-storage", STORAGE_COLUMNS),
    },
}
DEFAULTS: Mapping[str, Mapping[str, Value]] = {"nodes": NODE_DEFAULTS, "guests": GUEST_DEFAULTS}


def rrd_lines(table: str, rows: Mapping[str, Mapping[str, Value]], *, release: int) -> dict[str, str]:
    """Return the lines of `.rrd`, by their keys, for the rows of one table (nodes, guests or storages), as that release of PVE writes them.

    A missing ctime is now; a column that is missing or None is written `U`.
    Raises:  KeyError naming a column that the table does not have.
    """
    prefix, columns = TABLES[release][table]
    known = set(TABLES[9][table][1])
    lines = {}
    for key, row in rows.items():
        if unknown := set(row) - known:
            raise KeyError(f"no such column of {table}: {', '.join(sorted(unknown))}")
        values = {"ctime": int(time.time()), **DEFAULTS.get(table, {}), **row}
        shown = ["U" if values.get(column) is None else str(values[column]) for column in columns]
        lines[f"{prefix}/{key}"] = ":".join([f"{prefix}/{key}", *shown])
    return lines


def text(cluster: Cluster, node: Node, name: str) -> str:
    """Return what that node shows in the dot file of that name now."""
    return cluster.told.get(name) if name in cluster.told else WRITERS[name](cluster, node)  # type: ignore[return-value]


def _version(cluster: Cluster, node: Node) -> str:
    rows = [f'"starttime": {node.started},\n', f'"clinfo": {node.member_changes},\n', f'"vmlist": {node.guest_changes},\n']
    rows += [f'"{path}": {node.loads + node.changes[path]},\n' for path in COUNTED_FILES]
    stores = []
    for name in [node.name, *(other for other in node.status if other != node.name)]:
        counts = ",\n".join(f'"{key}": {count}' for key, count in node.status[name].items())
        stores.append(f'"{name}": {{\n{counts}}}\n')
    return "{\n" + "".join(rows) + '"kvstore": {\n' + ",\n".join(stores) + "}\n}\n"


def _members(cluster: Cluster, node: Node) -> str:
    rows = []
    for other in cluster.nodes.values():
        sees = other is node or (other.there and node.there and other.side == node.side)
        rows.append(f'  "{other.name}": {{ "id": {other.id}, "online": {int(sees)}, "ip": "192.0.2.{other.id}"}}')
    head = f'"nodename": "{node.name}",\n"version": {node.member_changes},\n'
    one = f'"cluster": {{ "name": "{cluster.name}", "version": {len(rows)}, "nodes": {len(rows)}, "quorate": {int(node.quorate)} }},\n'
    return "{\n" + head + one + '"nodelist": {\n' + ",\n".join(rows) + "\n  }\n}\n"


def _vmlist(cluster: Cluster, node: Node) -> str:
    head = f'{{\n"version": {node.guest_changes}'
    rows = [f'"{vmid}": {{ "node": "{at}", "type": "{kind}", "version": {n} }}' for vmid, (at, kind, n) in sorted(node.guests.items())]
    return head + (',\n"ids": {\n' + ",\n".join(rows) + "}\n" if rows else "\n") + "\n}\n"


def _clusterlog(cluster: Cluster, node: Node) -> str:
    rows = [_log_row(entry) for entry in list(node.log)[:SHOWN_LOG_ENTRIES]]
    return '{\n"data": [\n' + ",\n".join(rows) + ("\n" if rows else "") + "]\n}\n"


def _log_row(entry: LogEntry) -> str:
    """Quotes are escaped in the message alone, and backslashes nowhere: that is how the real file comes to be no JSON."""
    msg = "".join(_letter(letter) for letter in entry.msg)
    return (
        f'{{"uid": {entry.uid}, "time": {entry.time}, "pri": {entry.pri}, "tag": "{entry.tag}", "pid": {entry.pid}, '
        f'"node": "{entry.node}", "user": "{entry.user}", "msg": "{msg}"}}'
    )


def _letter(letter: str) -> str:
    code = ord(letter)
    if letter == '"':
        return '\\"'
    if code < 32 or code == 127:
        return f"#{code:03}"
    return letter if code < 127 else f"\\u{code:04x}" if code < 65536 else ""


def _rrd(cluster: Cluster, node: Node) -> str:
    return node.numbers()


WRITERS: dict[str, Callable[[Cluster, Node], str]] = {
    ".version": _version,
    ".members": _members,
    ".vmlist": _vmlist,
    ".clusterlog": _clusterlog,
    ".rrd": _rrd,
}

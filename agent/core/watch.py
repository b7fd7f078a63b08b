# SPDX-License-Identifier: GPL-3.0-or-later
"""What the leader sees of the cluster without asking the API: a snapshot of loads from the files of pmxcfs, and what differs
between two of them."""

from __future__ import annotations

import json

from agent.core.cluster import Guest, Node, Snapshot
from agent.core.events import Event, EventKind, EventSource
from agent.core.guest_load import FRESH_S
from agent.core.json_types import Json
from agent.core.statistics import Members, Statistics, VmEntry


def loads_snapshot(statistics: Statistics, entries: tuple[VmEntry, ...], members: Members | None, now: float) -> Snapshot:
    """Loads and places of nodes and guests; tags, locks and tasks are not in these files.

    A member without statistics, as one that is down for long or has just come up, is a node without known load.

    Units:   `now` in Unix seconds of this node; ages are taken against it.
    Source:  `.rrd`, `.vmlist`, `.members` of pmxcfs.
    """
    online = members.nodes if members is not None else {}
    silent = online.keys() - {sample.name for sample in statistics.nodes}
    nodes = tuple(Node(name=name, online=online[name], cpu_cores=0.0, memory_bytes=0) for name in silent) + tuple(
        Node(
            name=sample.name,
            online=online.get(sample.name, True),
            cpu_cores=sample.cpu_cores or 0.0,
            memory_bytes=sample.memory_bytes or 0,
            cpu_used_cores=sample.cpu_used_cores,
            memory_used_bytes=sample.memory_used_bytes,
            uptime_s=sample.uptime_s,
            sample_age_s=max(0.0, now - sample.at_s),
            zfs_cache_bytes=sample.zfs_cache_bytes,
            pressure_fraction=sample.pressure_fraction,
        )
        for sample in statistics.nodes
    )
    samples = {sample.vmid: sample for sample in statistics.guests}
    guests = []
    for entry in sorted(entries, key=lambda entry: entry.vmid):
        sample = samples.get(entry.vmid)
        guests.append(
            Guest(
                vmid=entry.vmid,
                type=entry.type,
                name=sample.name if sample else "",
                node=entry.node,
                status=sample.status if sample else "unknown",
                cpu_cores=(sample.cpu_cores if sample else None) or 0.0,
                memory_bytes=(sample.memory_bytes if sample else None) or 0,
                cpu_used_cores=sample.cpu_used_cores if sample else None,
                memory_used_bytes=sample.memory_used_bytes if sample else None,
                memory_host_bytes=sample.memory_host_bytes if sample else None,
                uptime_s=sample.uptime_s if sample else None,
            )
        )
    return Snapshot(taken_at=now, nodes=tuple(sorted(nodes, key=lambda node: node.name)), guests=tuple(guests))


def differences(before: Snapshot, after: Snapshot, at_s: float) -> list[Event]:
    """What happened between two looks, as events: the net under hooks and cluster log."""
    events: list[Event] = []
    old = {guest.vmid: guest for guest in before.guests}
    ages_s = {node.name: min(node.sample_age_s or 0.0, FRESH_S) for node in after.nodes}

    def seen(kind: EventKind, guest: Guest) -> Event:
        """It was so when the node's numbers were taken: a start that others told of since is not undone by it."""
        age_s = ages_s.get(guest.node, 0.0)
        return Event(kind, EventSource.STATISTICS, at_s, node=guest.node, vmid=guest.vmid, age_s=age_s)

    for guest in after.guests:
        was = old.get(guest.vmid)
        if guest.status == "unknown" or (was is not None and was.status == "unknown"):
            continue  # statistics come later than configurations, and vanish with a node: neither is a start or a stop
        if guest.is_running and (was is None or not was.is_running or _restarted(was, guest)):
            events.append(seen(EventKind.GUEST_STARTED, guest))
        elif was is not None and was.is_running and not guest.is_running:
            events.append(seen(EventKind.GUEST_STOPPED, guest))
        elif was is not None and was.node != guest.node:
            events.append(seen(EventKind.GUEST_CHANGED, guest))
    nodes = {node.name: node.online for node in before.nodes}
    for node in after.nodes:
        was_online = nodes.get(node.name)
        if was_online is not None and was_online != node.online:
            kind = EventKind.NODE_ONLINE if node.online else EventKind.NODE_OFFLINE
            events.append(Event(kind, EventSource.STATISTICS, at_s, node=node.name))
    return events


def _restarted(was: Guest, now: Guest) -> bool:
    """True when the guest runs on the same node, but for a shorter time than before: it was restarted in between."""
    return was.node == now.node and now.uptime_s is not None and was.uptime_s is not None and now.uptime_s + 5 < was.uptime_s


def asked_of_ha(text: str | None) -> tuple[str, ...]:
    """The nodes that an admin asked the HA manager to put into maintenance, by name; none for a file that is not there or torn.

    The manager's state alone does not count: a node that shuts down with policy `migrate` has it, too.
    Source:  /etc/pve/ha/manager_status, node_request.<node>.maintenance
    """
    try:
        document: Json = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return ()
    requests = document.get("node_request") if isinstance(document, dict) else None
    if not isinstance(requests, dict):
        return ()
    return tuple(sorted(node for node, asked in requests.items() if isinstance(asked, dict) and asked.get("maintenance")))

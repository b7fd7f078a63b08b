# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent cluster`: the cluster and its nodes."""

from __future__ import annotations

import argparse
import json
from collections import Counter

from agent import wiring
from agent.commands.plan import conflict_words, conflicts_document
from agent.commands.tables import aligned, clock, counted, few, gib, iso, percent
from agent.commands.wrong_use import settings_of
from agent.core.cluster import Snapshot, StorageUse
from agent.core.explain import why_no_target
from agent.core.guest_load import Ledger
from agent.core.imbalance import Weights, balance_of
from agent.core.json_types import Json, JsonObject
from agent.core.node_load import node_loads
from agent.core.planner import conflicts_of
from agent.core.pressure import known_pressure
from agent.core.settings import Settings

SCHEMA = "proxlb-agent/cluster/1"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def execute(arguments: argparse.Namespace) -> int:
    """Print the cluster."""
    settings = settings_of(arguments)
    snapshot = wiring.look(settings)
    document = cluster_document(snapshot, settings)
    print(json.dumps(document, indent=1, allow_nan=False) if arguments.json else cluster_text(snapshot, settings))
    return 0


def cluster_document(snapshot: Snapshot, settings: Settings) -> JsonObject:
    """The cluster as `agent/schemas/cluster-1.json` describes it."""
    loads = node_loads(snapshot, Ledger(), settings)
    refusals = why_no_target(snapshot, settings)
    causes = {maintenance.node: maintenance.cause for maintenance in snapshot.maintenance}
    guests = Counter(guest.node for guest in snapshot.guests if not guest.template)
    running = Counter(guest.node for guest in snapshot.guests if guest.is_running)
    nodes: list[Json] = []
    for node in snapshot.nodes:
        load, refusal = loads.get(node.name), refusals[node.name]
        nodes.append(
            {
                "name": node.name,
                "online": node.online,
                "cpu_cores": node.cpu_cores,
                "memory_bytes": node.memory_bytes,
                "cpu_fraction": None if load is None else round(load.cpu_fraction, 4),
                "memory_fraction": None if load is None else round(load.memory_fraction, 4),
                "pressure_fraction": None if (pressure := known_pressure(node)) is None else round(pressure, 4),
                "uptime_s": node.uptime_s,
                "reports": node.reports,
                "guests": guests[node.name],
                "guests_running": running[node.name],
                "maintenance": causes.get(node.name),
                "no_target": None if refusal is None else refusal.reason.value,
                "detail": "" if refusal is None else refusal.detail,
            }
        )
    usable = [name for name, refusal in refusals.items() if refusal is None and name in loads]
    return {
        "schema": SCHEMA,
        "taken_at": iso(snapshot.taken_at),
        "pve_version": snapshot.pve_version,
        "nodes": nodes,
        "storages": [
            {"name": use.name, "nodes": list(use.nodes), "used_bytes": use.used_bytes, "total_bytes": use.total_bytes}
            for use in snapshot.storage_use
        ],
        "imbalance": round(balance_of(loads, usable, Weights.of(settings, loads.values())).imbalance, 6),
        "unseen": list(snapshot.unseen),
        "conflicts": conflicts_document(conflicts_of(snapshot, settings)),
    }


def full_storages(snapshot: Snapshot, settings: Settings) -> list[StorageUse]:
    """The storages over the threshold, none where it is switched off."""
    threshold = settings.balance.storage.threshold_percent
    return [use for use in snapshot.storage_use if 0 < threshold < 100 and 100 * use.used_bytes >= threshold * use.total_bytes]


def cluster_text(snapshot: Snapshot, settings: Settings) -> str:
    """The cluster for people to read."""
    loads = node_loads(snapshot, Ledger(), settings)
    refusals = why_no_target(snapshot, settings)
    causes = {maintenance.node: maintenance.cause for maintenance in snapshot.maintenance}
    running = Counter(guest.node for guest in snapshot.guests if guest.is_running)
    pressures = {node.name: known_pressure(node) for node in snapshot.nodes}
    has_pressure = any(pressure is not None for pressure in pressures.values())
    rows = []
    for node in snapshot.nodes:
        load, refusal = loads.get(node.name), refusals[node.name]
        says = "takes guests" if refusal is None else f"{refusal.reason.value}{f' ({refusal.detail})' if refusal.detail else ''}"
        if node.name in causes:
            says = f"maintenance: {causes[node.name]}"
        rows.append(
            (
                node.name,
                "online" if node.online else "offline",
                f"{node.cpu_cores:g}",
                percent(None if load is None else load.cpu_fraction),
                gib(node.memory_bytes),
                percent(None if load is None else load.memory_fraction),
                *((percent(pressures[node.name]),) if has_pressure else ()),
                str(running[node.name]),
                says,
            )
        )
    usable = [name for name, refusal in refusals.items() if refusal is None and name in loads]
    imbalance = balance_of(loads, usable, Weights.of(settings, loads.values())).imbalance
    release = f", PVE {snapshot.pve_version}" if snapshot.pve_version else ""
    first = f"{counted(len(snapshot.nodes), 'node')}{release}, imbalance {100 * imbalance:.1f} points, as of {clock(snapshot.taken_at)}"
    header = ("NODE", "STATE", "CORES", "CPU", "MEMORY", "USED", *(("PRESSURE",) if has_pressure else ()), "RUNNING", "AS A TARGET")
    parts = [first, aligned(header, rows)]
    full = full_storages(snapshot, settings)
    if full:
        parts.append(
            f"storages over {settings.balance.storage.threshold_percent:g} %:\n"
            + "\n".join(
                f"  {use.name} on {few(use.nodes)}: {percent(use.used_bytes / use.total_bytes)} of {gib(use.total_bytes)}" for use in full
            )
        )
    if len(snapshot.nodes) == 1:
        parts.append("one node alone: there is nothing to balance")
    if snapshot.unseen:
        parts.append(f"not shown to the token: {', '.join(str(vmid) for vmid in snapshot.unseen[:10])}")
    conflicts = conflicts_of(snapshot, settings)
    if conflicts:
        parts.append("rules that cannot be kept as they are written:\n" + "\n".join(map(conflict_words, conflicts)))
    return "\n\n".join(parts)

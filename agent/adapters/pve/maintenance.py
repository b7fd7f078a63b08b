# SPDX-License-Identifier: GPL-3.0-or-later
"""Which nodes the HA manager is to empty, and which it keeps from receiving guests."""

from __future__ import annotations

from agent.adapters.pve.values import Row, flag, number, table, text
from agent.core.cluster import ASKED_OF_HA, Maintenance, Node

HA_STATUS = "cluster/ha/status/manager_status"
HA_STATUS_FRESH_S = 60.0  # the CRM writes every 10 s while it has something to do, and its last word stays for good when it has not
HA_NO_TARGET = frozenset({"maintenance", "fence", "unknown", "gone"})


def ha_nodes(answer: object, known: tuple[Node, ...], wall_s: float) -> tuple[tuple[Maintenance, ...], tuple[str, ...]]:
    """Which nodes an admin asked the HA manager to empty, and which others may receive nobody as it says.

    A request stands until it is taken back. A state alone (a node that reboots with shutdown policy migrate, one that
    is fenced) is believed for a minute after the HA manager last wrote it down: on a cluster without HA guests it
    stops writing, and its last word would stand for ever.
    """
    manager = table(table(answer).get("manager_status"))
    asked = {name for name, request in table(manager.get("node_request")).items() if flag(table(request).get("maintenance"))}
    written_at = number(manager.get("timestamp"))
    is_fresh = written_at is not None and wall_s - written_at < HA_STATUS_FRESH_S
    states = table(manager.get("node_status")) if is_fresh else {}
    barred = {name for name, state in states.items() if isinstance(state, str) and state in HA_NO_TARGET} - asked
    maintenance = tuple(Maintenance(node.name, ASKED_OF_HA) for node in known if node.name in asked)
    return maintenance, tuple(node.name for node in known if node.online and node.name in barred)


def ha_nodes_of_resources(resources: list[Row], known: tuple[Node, ...]) -> tuple[str, ...]:
    """Which online nodes may receive nobody as PVE 9 says in /cluster/resources; for want of the HA manager's own status."""
    barred = {text(row.get("node")) for row in resources if row.get("type") == "node" and row.get("hastate") in ("maintenance", "fence")}
    return tuple(node.name for node in known if node.online and node.name in barred)

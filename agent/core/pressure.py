# SPDX-License-Identifier: GPL-3.0-or-later
"""Pressure of nodes: PSI `some`, of cpu and memory the larger. What a guest takes along: `agent.core.node_load.counted`.

It is the share of the time in which something on the node waits. It cannot be added up: two guests that wait at the same time are
one wait, and a node's pressure is zero until it is nearly full. What a guest takes along is therefore an estimate: its share of
the node's cpu use, of the node's pressure. In truth a source loses more than that and a target with room gains less, so the
estimate is too small for the gain and too large for the target: it moves too few guests rather than too many. A node whose
pressure is not known (PVE 8) is compared as if it stood at the mean of those that are known, so that it is neither better nor
worse for it, and is never over the threshold. Where none is known the measure is left out, weight and all.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.cluster import Node, Snapshot
from agent.core.guest_load import sane
from agent.core.settings import Settings


def known_pressure(node: Node) -> float | None:
    """The node's pressure when it can be one, else None."""
    return sane(node.pressure_fraction, 1.0) if node.online and (node.pressure_fraction or 0.0) <= 1.0 else None


def known_pressures(nodes: Iterable[Node], settings: Settings) -> dict[str, float]:
    """The pressures that are known, by node; none where pressure does not count."""
    if not _does_pressure_count(settings):
        return {}
    return {node.name: known for node in nodes if (known := known_pressure(node)) is not None}


def _does_pressure_count(settings: Settings) -> bool:
    pressure = settings.balance.pressure
    return pressure.weight > 0 or 0 < pressure.threshold_percent < 100


def why_pressure_unknown(snapshot: Snapshot, settings: Settings) -> str | None:
    """Of which online nodes the pressure is not known and what comes of it, for people; None when it is, or does not count."""
    online = [node for node in snapshot.nodes if node.online]
    silent = [node.name for node in online if known_pressure(node) is None]
    if not silent or not _does_pressure_count(settings):
        return None
    if len(silent) == len(online):
        return "balance.pressure is left out: no node's pressure is known (PVE 9 tells it, to the nodes alone)"
    return f"the pressure of {', '.join(silent)} is not known: compared as if at the mean of the others (PVE 9 tells it)"

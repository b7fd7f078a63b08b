# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests that need something of their node, and nodes that have it or not: for the tests of the conditions."""

from __future__ import annotations

from dataclasses import replace

from agent.core.cluster import GIB, NodeFacts, Snapshot, Storage
from agent.core.needs import GuestNeeds, Volume, VolumeKind
from agent.core.plan_types import Verdict
from tests.core.clusters import NOW

FACTS = NodeFacts(
    "9.1.1",
    "10.1.2-3",
    cpu_model="Xeon Gold 6130",
    cpu_flags="aes avx avx2",
    bridges=("vmbr0", "vmbr1"),
    hookscripts=("proxlb-hook",),
)
STORAGES = (
    Storage("ceph", True, ("pve1", "pve2", "pve3")),
    Storage("local-lvm", False, ("pve1", "pve2", "pve3")),
    Storage("nfs", True, ("pve1", "pve3")),
)


def equipped(snapshot: Snapshot, **unlike: NodeFacts | None) -> Snapshot:
    """The snapshot with the usual facts and storages, but for the nodes named."""
    nodes = tuple(replace(node, facts=unlike.get(node.name, FACTS)) for node in snapshot.nodes)
    return replace(snapshot, nodes=nodes, storages=STORAGES)


def needing(vmid: int = 101, **needs: object) -> dict[int, Verdict]:
    """What was learned about a guest that PVE lets go anywhere."""
    return {vmid: Verdict(vmid, NOW, needs=GuestNeeds(**needs))}  # type: ignore[arg-type]


def volume(name: str, kind: VolumeKind = VolumeKind.DISK, gib: float | None = None) -> Volume:
    """A volume by its name, and its size where that matters."""
    return Volume(name, name.split(":", maxsplit=1)[0], kind, None if gib is None else int(gib * GIB))

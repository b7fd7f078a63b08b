# SPDX-License-Identifier: GPL-3.0-or-later
"""A small simulated cluster, and what is asked of it again and again."""

from __future__ import annotations

from agent.core.cluster import GIB, Guest, GuestType
from agent.core.clusterlog import ClusterLogCursor
from agent.ports import MigrationOrder
from agent.sim.inventory import SimGuest, SimNode
from agent.sim.ports import NodePorts, ports_of
from agent.sim.world import World

VM = MigrationOrder(100, GuestType.QEMU, "pve1", "pve2", online=True, restart=False)
CT = MigrationOrder(200, GuestType.LXC, "pve1", "pve2", online=False, restart=True)


def made_world(*more: SimGuest, pve_version: str = "9.0.10") -> World:
    nodes = [SimNode(name, 16, 64 * GIB, overhead_cores=1.0, sample_phase_s=0.0) for name in ("pve1", "pve2", "pve3")]
    vm = SimGuest(100, "pve1", cores=4, memory_bytes=8 * GIB, used_cores=2.0, used_memory_bytes=4 * GIB, migration_s=20.0, hook=True)
    ct = SimGuest(200, "pve1", type=GuestType.LXC, used_cores=1.0, used_memory_bytes=GIB, migration_s=20.0, hook=True)
    return World(nodes, [vm, ct, *more], pve_version=pve_version)


def on(world: World, node: str) -> NodePorts:
    return ports_of(world, node)


def seen(world: World, vmid: int, node: str = "pve1") -> Guest:
    found = on(world, node).api.look().guest(vmid)
    assert found is not None
    return found


def log_of(world: World, since: str) -> list[str]:
    """The messages since a reading of the log, without what differs from task to task."""
    advance = ClusterLogCursor().advance(since).cursor.advance(on(world, "pve3").files.read(".clusterlog") or "")
    return [" ".join(word.split(":")[5] if word.startswith("UPID") else word for word in e.message.split()) for e in advance.entries]

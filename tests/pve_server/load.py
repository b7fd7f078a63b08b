# SPDX-License-Identifier: GPL-3.0-or-later
"""The numbers of nodes and guests: derived from what runs where, and as old as the last pvestatd round."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.pve_server.state import GIB
from tests.pve_server.tasks import TasksApi

NODE_DISK, NODE_MAXDISK = 8 * GIB, 94 * GIB
PRESSURES = tuple(f"{what}{how}" for what in ("cpu", "io", "memory") for how in ("some", "full"))


class Load(TasksApi):
    """What a node or guest uses now, and what the status cache says about it."""

    def apply(self, spec: Any) -> None:
        super().apply(spec)
        self.incoming: dict[int, set[str]] = {}  # VMID -> nodes that hold its memory besides its own
        self.sampled_start: dict[int, float | None] = {guest.vmid: guest.started_at for guest in self.guests()}
        self.sampled_nodes: dict[str, dict[str, Any]] = {}
        self.sampled_guests: dict[int, dict[str, Any]] = {}
        self.pvestatd: asyncio.Task[None] | None = None
        self.restart_pvestatd()

    def restart_pvestatd(self) -> None:
        """Sample now, and then as often as the state says."""
        if self.pvestatd is not None:
            self.pvestatd.cancel()
            self.pvestatd = None
        if self.spec.pvestatd_s != 0:
            self.sample()
        if self.spec.pvestatd_s:
            self.pvestatd = self.spawn(self._pvestatd(self.spec.pvestatd_s))

    async def _pvestatd(self, period_s: float) -> None:
        while True:
            await asyncio.sleep(period_s)
            self.sample()

    def sample(self) -> None:
        """Do a pvestatd round: from now on these numbers are shown. A new process shows no CPU in its first round."""
        self.sampled_nodes = {name: self.node_numbers(name) for name in self.nodes if self.is_online(name)}
        for guest in self.guests():
            if self.is_online(guest.node):
                numbers = self.guest_numbers(guest)
                if self.sampled_start.get(guest.vmid) != guest.started_at:
                    numbers["cpu"] = 0
                self.sampled_start[guest.vmid] = guest.started_at
                self.sampled_guests[guest.vmid] = numbers

    # ---- live

    def qemu_status(self, guest: Any) -> str:
        """running, stopped, or what QEMU says: paused, prelaunch, io-error, suspended."""
        return str(getattr(guest, "qmpstatus", None) or guest.status) if guest.status == "running" else str(guest.status)

    def guest_maxcpu(self, guest: Any) -> float:
        return min(self.spec_of(guest).maxcpu, self.spec.nodes[guest.node].cores)

    def guest_numbers(self, guest: Any) -> dict[str, Any]:
        """What pvestatd measures for a guest."""
        spec = self.spec_of(guest)
        running = guest.status == "running"
        maxcpu = self.guest_maxcpu(guest)
        age_s = time.time() - guest.started_at if running and guest.started_at else 0.0
        blank = age_s < self.spec.cpu_blank_s
        numbers: dict[str, Any] = {
            "status": self.qemu_status(guest),
            "uptime": int(age_s),
            "cpu": spec.cpu_cores / maxcpu if running and maxcpu and not blank else 0,
            "maxcpu": maxcpu,
            "mem": spec.mem_bytes if running else 0,
            "maxmem": spec.maxmem_bytes,
            "disk": spec.disk_bytes,
            "maxdisk": spec.maxdisk_bytes if spec.maxdisk_bytes is not None else 32 * GIB,
        }
        numbers |= dict.fromkeys(("netin", "netout", "diskread", "diskwrite"), 0)
        if spec.type == "qemu" and self.major(guest.node) >= 9:
            numbers["memhost"] = spec.host_bytes if running else 0
        return numbers

    def guest_pressure(self, guest: Any) -> dict[str, Any]:
        """The pressure keys of a running guest; PVE 8 has none, and containers give strings."""
        if guest.status != "running" or self.major(guest.node) < 9:
            return {}
        spec = self.spec_of(guest)
        values = {f"pressure{key}": spec.pressure.get(key, 0) for key in PRESSURES}
        return values if spec.type == "qemu" else {key: f"{value:.2f}" for key, value in values.items()}

    def used_by_node(self) -> dict[str, tuple[float, int]]:
        """Cores and bytes that guests use on each node; a guest that moves live has its memory on both."""
        cores, sizes = dict.fromkeys(self.nodes, 0.0), dict.fromkeys(self.nodes, 0)
        for guest in self.guests():
            if guest.status == "running":
                spec = self.spec_of(guest)
                cores[guest.node] += spec.cpu_cores
                for node in {guest.node, *self.incoming.get(guest.vmid, ())}:
                    sizes[node] += spec.host_bytes
        return {name: (cores[name], sizes[name]) for name in self.nodes}

    def node_numbers(self, name: str, used: tuple[float, int] | None = None) -> dict[str, Any]:
        """What pvestatd measures for a node."""
        node = self.spec.nodes[name]
        cores, size = used or self.used_by_node()[name]
        cpu = node.cpu_fraction if node.cpu_fraction is not None else min((cores + node.overhead_cores) / node.cores, 1.0)
        mem = node.mem_bytes if node.mem_bytes is not None else min(size + node.overhead_bytes, node.memory_bytes)
        return {
            "cpu": cpu,
            "maxcpu": node.cores,
            "mem": mem,
            "maxmem": node.memory_bytes,
            "disk": NODE_DISK,
            "maxdisk": NODE_MAXDISK,
            "uptime": int(time.time() - self.node_started[name]),
        }

    # ---- as the status cache has it

    def shown_nodes(self) -> dict[str, dict[str, Any]]:
        """The numbers of each node as the cluster knows them; offline nodes have none."""
        if self.spec.pvestatd_s != 0:
            return {name: dict(numbers) for name, numbers in self.sampled_nodes.items() if self.is_online(name)}
        used = self.used_by_node()
        return {name: self.node_numbers(name, used[name]) for name in self.nodes if self.is_online(name)}

    def shown_guest(self, guest: Any) -> dict[str, Any] | None:
        """A guest's numbers as the cluster knows them; None: its node is dead for so long that there are none."""
        dead_since = self.dead_since.get(guest.node)
        if dead_since is not None and time.time() - dead_since >= self.spec.dead_known_s:
            return None
        if self.spec.pvestatd_s == 0:
            return self.guest_numbers(guest)
        numbers = self.sampled_guests.get(guest.vmid)
        return dict(numbers) if numbers is not None else None

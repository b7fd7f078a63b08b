# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads over five minutes: what a node and its guests take on the average, and which nodes have been over for long.

A node's smoothed load is that of the node without its guests plus the smoothed loads of the guests that are on it now.
So a guest takes its history along when it moves, and a node does not pay for guests that have left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from agent.core.cluster import Guest, Node, Snapshot
from agent.core.load import is_fresh, measured_load, sane

WINDOW_S = 300.0


@dataclass(frozen=True, slots=True)
class Series:
    """Samples of one figure over the last `WINDOW_S` seconds: (time, value), by time."""

    samples: tuple[tuple[float, float], ...] = ()

    def with_sample(self, at: float, value: float) -> Series:
        """The series with one more sample; a time that is already there, or goes back, changes nothing."""
        if self.samples and at <= self.samples[-1][0]:
            return self
        kept = tuple(sample for sample in self.samples if sample[0] > at - WINDOW_S)
        return Series((*kept, (at, value)))

    @property
    def mean(self) -> float | None:
        """The mean of the samples, None when there are none."""
        return sum(value for _, value in self.samples) / len(self.samples) if self.samples else None


@dataclass(frozen=True, slots=True)
class Smoothing:
    """The cpu series of each guest, and of each node without its guests; memory changes slowly and is taken as it is.

    Units:   cores.
    """

    guests: Mapping[int, Series] = field(default_factory=dict)
    nodes: Mapping[str, Series] = field(default_factory=dict)

    def with_snapshot(self, snapshot: Snapshot, at: float) -> Smoothing:
        """The series with the snapshot's loads as one more sample; guests and nodes that are gone are forgotten."""
        guests: dict[int, Series] = {}
        used: dict[str, float] = {}
        for guest in snapshot.guests:
            load = measured_load(guest)
            if load is None:
                continue
            used[guest.node] = used.get(guest.node, 0.0) + load.cpu_cores
            series = self.guests.get(guest.vmid, Series())
            guests[guest.vmid] = series if is_fresh(guest) else series.with_sample(at, load.cpu_cores)
        nodes: dict[str, Series] = {}
        for node in snapshot.nodes:
            cpu = sane(node.cpu_used_cores, node.cpu_cores) if node.online else None
            if cpu is not None:
                nodes[node.name] = self.nodes.get(node.name, Series()).with_sample(at, cpu - used.get(node.name, 0.0))
        return Smoothing(guests, nodes)

    def applied(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with smoothed cpu loads; who has no samples keeps the load PVE reported."""
        guests: list[Guest] = []
        delta: dict[str, float] = {}
        for guest in snapshot.guests:
            load, mean = measured_load(guest), self.guests.get(guest.vmid, Series()).mean
            if load is not None and mean is not None and not is_fresh(guest):
                delta[guest.node] = delta.get(guest.node, 0.0) + mean - load.cpu_cores
                guests.append(replace(guest, cpu_used_cores=mean))
            else:
                guests.append(guest)
        measured: dict[str, float] = {}
        for guest in snapshot.guests:
            if (load := measured_load(guest)) is not None:
                measured[guest.node] = measured.get(guest.node, 0.0) + load.cpu_cores
        nodes: list[Node] = []
        for node in snapshot.nodes:
            own = self.nodes.get(node.name, Series()).mean
            if own is None or node.cpu_used_cores is None:
                nodes.append(node)
            else:
                cpu = own + measured.get(node.name, 0.0) + delta.get(node.name, 0.0)
                nodes.append(replace(node, cpu_used_cores=max(0.0, cpu)))
        return replace(snapshot, guests=tuple(guests), nodes=tuple(nodes))


@dataclass(frozen=True, slots=True)
class Held:
    """Since when each node has been over a threshold without a break; times in CLOCK_BOOTTIME seconds."""

    cpu_since: Mapping[str, float] = field(default_factory=dict)
    memory_since: Mapping[str, float] = field(default_factory=dict)

    def with_look(self, now_s: float, cpu_over: Iterable[str], memory_over: Iterable[str]) -> Held:
        """The state after a look that found these nodes over."""
        return Held(
            {name: self.cpu_since.get(name, now_s) for name in sorted(cpu_over)},
            {name: self.memory_since.get(name, now_s) for name in sorted(memory_over)},
        )

    def long_enough(self, now_s: float, cpu_hold_s: float, memory_hold_s: float) -> frozenset[str]:
        """The nodes whose overload has lasted."""
        cpu = {name for name, since in self.cpu_since.items() if now_s - since >= cpu_hold_s}
        memory = {name for name, since in self.memory_since.items() if now_s - since >= memory_hold_s}
        return frozenset(cpu | memory)

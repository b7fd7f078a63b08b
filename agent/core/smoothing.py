# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads over five minutes: what a node and its guests take on the average, and which nodes have been over for long.

A node's smoothed load is that of the node without its guests plus the smoothed loads of the guests that are on it now.
So a guest takes its history along when it moves, and a node does not pay for guests that have left. Pressure cannot be
divided among guests, so the mean of a node begins anew when one that ran has left it or come to it; not when one starts there, as
a start makes a peak.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from agent.core.cluster import Snapshot
from agent.core.guest_load import is_fresh, measured_load, sane
from agent.core.pressure import known_pressure

SMOOTHED_OVER_S = 300.0


@dataclass(frozen=True, slots=True)
class Average:
    """An exponentially weighted mean with the time constant `SMOOTHED_OVER_S`; of the first samples the plain mean.

    Units:   `at` in seconds of the clock of the samples.
    """

    mean: float
    at: float
    samples: int = 1

    def with_sample(self, at: float, value: float) -> Average:
        """The mean with one more sample; a time that is already there, or goes back, changes nothing."""
        if at <= self.at:
            return self
        share = max(1 / (self.samples + 1), 1 - math.exp((self.at - at) / SMOOTHED_OVER_S))
        return Average(self.mean + share * (value - self.mean), at, self.samples + 1)


@dataclass(frozen=True, slots=True)
class Smoothing:
    """The mean cpu load of each guest, and of each node without its guests, and the mean pressure of each node; memory changes
    slowly and is taken as it is.

    Units:   cores; pressures are fractions.
    Shape:   `places` is where each guest that was measured was at the last sample.
    """

    guests: Mapping[int, Average] = field(default_factory=dict)
    nodes: Mapping[str, Average] = field(default_factory=dict)
    pressures: Mapping[str, Average] = field(default_factory=dict)
    places: Mapping[int, str] = field(default_factory=dict)

    def with_snapshot(self, snapshot: Snapshot, at: float) -> Smoothing:
        """The means with the snapshot's loads as one more sample; guests and nodes that are gone are forgotten."""
        guests: dict[int, Average] = {}
        used: dict[str, float] = {}
        places: dict[int, str] = {}
        for guest in snapshot.guests:
            load = measured_load(guest)
            if load is None:
                continue
            places[guest.vmid] = guest.node
            used[guest.node] = used.get(guest.node, 0.0) + load.cpu_cores
            before = self.guests.get(guest.vmid)
            if not is_fresh(guest):
                guests[guest.vmid] = _sampled(before, at, load.cpu_cores)
            elif before is not None:
                guests[guest.vmid] = before
        nodes: dict[str, Average] = {}
        pressures: dict[str, Average] = {}
        changed = self._left_or_reached(places)
        for node in snapshot.nodes:
            if (pressure := known_pressure(node)) is not None:
                mean = None if node.name in changed else self.pressures.get(node.name)
                pressures[node.name] = _sampled(mean, at, pressure)
            cpu = sane(node.cpu_used_cores, node.cpu_cores) if node.online else None
            if cpu is not None:
                nodes[node.name] = _sampled(self.nodes.get(node.name), at, cpu - used.get(node.name, 0.0))
        return Smoothing(guests, nodes, pressures, places)

    def _left_or_reached(self, places: Mapping[int, str]) -> set[str]:
        """The nodes that guests which ran have left or come to since the last sample."""
        changed: set[str] = set()
        if places == self.places:  # as nearly always
            return changed
        for vmid, was_on in self.places.items():
            if (is_on := places.get(vmid)) != was_on:
                changed |= {was_on} if is_on is None else {was_on, is_on}
        return changed

    def applied(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with smoothed cpu loads and pressures; who has no samples keeps what PVE reported."""
        guests = list(snapshot.guests)
        smoothed: dict[str, float] = {}
        for index, guest in enumerate(guests):
            load = measured_load(guest)
            if load is None:
                continue
            cpu, average = load.cpu_cores, self.guests.get(guest.vmid)
            if average is not None and not is_fresh(guest):
                cpu = average.mean
                guests[index] = guest.with_cpu_used(cpu)
            smoothed[guest.node] = smoothed.get(guest.node, 0.0) + cpu
        nodes = list(snapshot.nodes)
        for index, node in enumerate(nodes):
            own = self.nodes.get(node.name)
            if own is not None and node.cpu_used_cores is not None:
                # Below 0 after a guest has come whose place was told before its time was among the node's: that is no room.
                nodes[index] = replace(node, cpu_used_cores=max(0.0, own.mean) + smoothed.get(node.name, 0.0))
            if (pressure := self.pressures.get(node.name)) is not None:
                nodes[index] = replace(nodes[index], pressure_fraction=pressure.mean)
        return replace(snapshot, guests=tuple(guests), nodes=tuple(nodes))


def _sampled(before: Average | None, at: float, value: float) -> Average:
    return Average(value, at) if before is None else before.with_sample(at, value)


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

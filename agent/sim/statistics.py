# SPDX-License-Identifier: GPL-3.0-or-later
"""pvestatd on demand: the numbers each node last told the cluster, computed only when somebody looks or something changes.

Whoever changes a node or a guest has the sample taken first. So a sample is taken of what was before the change, and what lies
between two changes costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.sim.inventory import SimGuest, SimNode

SAMPLE_EVERY_S = 10.0  # one round of pvestatd
ROW_LIFE_S = 300.0  # pmxcfs drops what a node said longer ago


@dataclass(frozen=True, slots=True)
class NodeRow:
    """What a node last said of itself.

    Units:   `sampled_s` simulated seconds, `ctime` Unix seconds of the node's clock; fractions of the node's size.
    """

    sampled_s: float
    ctime: int
    uptime_s: int
    cores: float
    cpu_fraction: float
    memory_bytes: int
    memory_used_bytes: int
    zfs_cache_bytes: int
    pressure_cpu_percent: float


@dataclass(frozen=True, slots=True)
class GuestRow:
    """What its node last said of a guest; `cpu_fraction` is of the guest's own cores."""

    sampled_s: float
    ctime: int
    node: str
    name: str
    template: bool
    uptime_s: int
    status: str
    cores: float
    cpu_fraction: float
    memory_bytes: int
    memory_used_bytes: int
    memory_host_bytes: int
    pressure_cpu_percent: float


@dataclass(frozen=True, slots=True)
class Incoming:
    """A guest on its way to a node: its memory arrives evenly from `since_s` to `until_s`."""

    memory_bytes: int
    since_s: float
    until_s: float

    def memory_at(self, at_s: float) -> float:
        """Bytes that have arrived."""
        if at_s <= self.since_s:
            return 0.0
        return self.memory_bytes * min(1.0, (at_s - self.since_s) / max(self.until_s - self.since_s, 1.0))


def last_round_s(node: SimNode, now_s: float) -> float:
    """The last moment at which the node's pvestatd ran, which may lie before its boot."""
    phase = node.sample_phase_s or 0.0
    return math.floor((now_s - phase) / SAMPLE_EVERY_S) * SAMPLE_EVERY_S + phase


def is_due(node: SimNode, now_s: float) -> bool:
    """True when the node's pvestatd had a round since its last sample."""
    if node.sampled_s is not None and now_s < node.sampled_s + SAMPLE_EVERY_S:
        return False
    return node.online and not node.statistics_stopped and last_round_s(node, now_s) > node.booted_at_s


def sample(node: SimNode, guests: Iterable[SimGuest], incoming: Iterable[Incoming], now_s: float) -> None:
    """Take the sample that is due, from what is now, which is what was then.

    Shape:   `guests` are those whose configuration is on the node.
    """
    at_s = last_round_s(node, now_s)
    node.sampled_s = at_s
    here = list(guests)
    wanted = {guest.vmid: _wanted_cores(guest, at_s) for guest in here if guest.status == "running"}
    demand = node.overhead_cores + math.fsum(wanted.values())
    share = min(1.0, node.cores / demand) if demand > 0 else 1.0
    memory = node.overhead_memory_bytes + sum(guest.taken_memory_bytes for guest in here if guest.has_process)
    memory += int(math.fsum(flight.memory_at(at_s) for flight in incoming))
    cache = max(0, min(node.zfs_cache_bytes or 0, node.memory_bytes - memory))  # what others want it gives back
    ctime = int(node.wall_s(at_s))
    pressure = round(100.0 * (1.0 - share), 2)
    partition = node.partition
    partition.rows_changed += 1
    partition.node_rows[node.name] = NodeRow(
        sampled_s=at_s,
        ctime=ctime,
        uptime_s=int(at_s - node.booted_at_s),
        cores=node.cores,
        cpu_fraction=min(demand, node.cores) / node.cores,
        memory_bytes=node.memory_bytes,
        memory_used_bytes=min(memory + cache, node.memory_bytes),
        zfs_cache_bytes=cache,
        pressure_cpu_percent=pressure,
    )
    for guest in here:
        is_up = guest.has_process
        is_first = at_s - SAMPLE_EVERY_S <= guest.seen_since_s  # no earlier sample to count cpu time from
        partition.guest_rows[guest.vmid] = GuestRow(
            sampled_s=at_s,
            ctime=ctime,
            node=node.name,
            name=guest.name,
            template=guest.template,
            uptime_s=max(0, int(at_s - guest.since_s)) if is_up else 0,
            status=guest.status,
            cores=guest.cores,
            cpu_fraction=0.0 if is_first or guest.cores <= 0 else wanted.get(guest.vmid, 0.0) * share / guest.cores,
            memory_bytes=guest.memory_bytes,
            memory_used_bytes=guest.used_memory_bytes if is_up else 0,
            memory_host_bytes=guest.taken_memory_bytes if is_up else 0,
            pressure_cpu_percent=pressure if is_up else 0.0,
        )


def _wanted_cores(guest: SimGuest, at_s: float) -> float:
    if guest.noise_fraction == 0.0:
        return guest.used_cores
    mixed = (guest.vmid * 2_654_435_761 ^ int(at_s * 10) * 2_246_822_519) & 0xFFFFFFFF
    mixed = ((mixed ^ mixed >> 15) * 2_246_822_519) & 0xFFFFFFFF
    mixed ^= mixed >> 13
    return guest.used_cores * (1.0 + guest.noise_fraction * (mixed / 0x7FFFFFFF - 1.0))

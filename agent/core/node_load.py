# SPDX-License-Identifier: GPL-3.0-or-later
"""What nodes carry and may take, corrected by what is known to change. How nodes compare: `agent.core.imbalance`.

The ledger. PVE's numbers are up to 14 s old, a guest that just started shows none of its load, and one that migrates
shows it on one node only. So a node's load is what PVE measured there, plus for each of its guests the difference
between expected and measured load; a guest in flight is counted where it goes, and, for all that must fit, also
where it comes from:

    used = reported - given back + sum over its guests of (expected - measured) + arrivals - departures

`given back` is what the node's ZFS cache gives back when memory is short: PVE counts the cache as used memory. What is left
is never less than the measured memory of the node's guests, as a cache cannot hold that.

What counts when nodes are compared. With `measure: used` that is `used`; with `measure: assigned` the configured cores and
memory of its guests that have a process, those in flight where they go. Divided by the node's cores and memory it is the
fraction that thresholds, spread and imbalance speak of. What must fit is judged by `used` alone, whatever counts, and by
the cap of assigned memory, for which guests in flight count on both nodes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from agent.core.cluster import GIB, Guest, GuestType, Node, Snapshot
from agent.core.guest_load import (
    MOST,
    NO_LOAD,
    NO_PROCESS,
    GuestLoad,
    Ledger,
    expected_load,
    known_size,
    load_to_expect,
    measured_loads,
    sane,
)
from agent.core.pressure import known_pressures
from agent.core.settings import Measure, Settings

STALE_S = 60.0  # load older than six rounds of pvestatd says nothing about now
LEAST_CORES = 0.01  # a node of less cores or memory has no size to divide by
LEAST_MEMORY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Counted:
    """What a guest counts for when nodes are compared; whether it fits is judged by its `GuestLoad` alone.

    Units:   cores, bytes, and the share of its node's pressure (0..1) that it is held to cause.
    """

    cpu_cores: float
    memory_bytes: float
    pressure_fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """Load of one node and what it may take.

    Units:   cores and bytes. `leaving_*` is the load of guests that are on their way out: gone for balance, still there
             for whatever must fit. `memory_limit_bytes` is the node's memory less the reserve. `counted_*` is what counts when
             nodes are compared, `*_used_*` what counts when something must fit.
    Shape:   `pressure_fraction` is 0.0 where pressure does not count, and the mean of the others where the node's own is not
             known; `has_pressure` tells. `assigned_memory_bytes` is the configured memory of all guests on the node, on their
             way to it or out of it; `assigned_limit_bytes` the most of that with one more guest, None without a cap.
    """

    name: str
    cpu_cores: float
    memory_bytes: float
    cpu_used_cores: float
    memory_used_bytes: float
    leaving_cpu_cores: float
    leaving_memory_bytes: float
    memory_limit_bytes: float
    counted_cpu_cores: float
    counted_memory_bytes: float
    pressure_fraction: float = 0.0
    has_pressure: bool = False
    assigned_memory_bytes: float = 0.0
    assigned_limit_bytes: float | None = None

    @property
    def cpu_fraction(self) -> float:
        """Counted share of the cores."""
        return self.counted_cpu_cores / self.cpu_cores

    @property
    def memory_fraction(self) -> float:
        """Counted share of the memory."""
        return self.counted_memory_bytes / self.memory_bytes


def counted(guest: Guest, load: GuestLoad, node: NodeLoad | None, settings: Settings) -> Counted:
    """What the guest, with that load, counts for in the balance of the node it is on.

    Moving it takes this from the source's `counted_*` and pressure and adds it to the target's. Of an unknown node (None) it takes
    no pressure along.
    """
    balance = settings.balance
    cpu = known_size(guest.cpu_cores) if balance.cpu.measure is Measure.ASSIGNED else load.cpu_cores
    memory = known_size(guest.memory_bytes) if balance.memory.measure is Measure.ASSIGNED else load.memory_bytes
    if node is None or node.pressure_fraction <= 0 or load.cpu_cores <= 0:
        return Counted(cpu, memory)
    return Counted(cpu, memory, node.pressure_fraction * load.cpu_cores / max(node.cpu_used_cores, load.cpu_cores))


def assigned_memory_bytes(guest: Guest) -> float:
    """The configured memory of a guest: what it counts for under the cap."""
    return known_size(guest.memory_bytes)


def memory_limit_bytes(node: Node, settings: Settings) -> float:
    """What guests and system may use of the node's memory: all of it less the larger of the two reserves."""
    reserve = settings.balance.node_reserve
    return node.memory_bytes - max(node.memory_bytes * reserve.memory_percent / 100, reserve.memory_gib * GIB)


class _Sums:
    """What is on a node beside the numbers that PVE reports of it, gathered guest by guest."""

    __slots__ = (
        "assigned_cpu", "assigned_memory", "cpu", "leaving_assigned", "leaving_cpu", "leaving_memory", "measured_memory", "memory",
        "spare_cpu", "spare_memory",
    )  # fmt: skip

    def __init__(self) -> None:
        self.cpu = self.memory = 0.0  # to be added to what PVE reports
        self.leaving_cpu = self.leaving_memory = self.leaving_assigned = 0.0
        self.assigned_cpu = self.assigned_memory = 0.0
        self.measured_memory = 0.0
        self.spare_cpu = self.spare_memory = 0.0  # counts where something must fit alone

    def add(self, load: GuestLoad, measured: GuestLoad = NO_LOAD) -> None:
        """A load that is expected, of which so much is measured here."""
        self.cpu += load.cpu_cores - measured.cpu_cores
        self.memory += load.memory_bytes - measured.memory_bytes

    def keep_free(self, spare: GuestLoad) -> None:
        """What a guest here may come to take."""
        self.spare_cpu += spare.cpu_cores
        self.spare_memory += spare.memory_bytes

    def assign(self, guest: Guest) -> None:
        """A guest that is here, or on its way here, with its size."""
        cores, memory_bytes = guest.cpu_cores, guest.memory_bytes
        if 0 < cores <= MOST:  # as `known_size`, for thousands of guests
            self.assigned_cpu += cores
        if 0 < memory_bytes <= MOST:
            self.assigned_memory += memory_bytes

    def hold(self, load: GuestLoad) -> None:
        """What a process takes that is about to end."""
        self.leaving_cpu += load.cpu_cores
        self.leaving_memory += load.memory_bytes

    def leave(self, guest: Guest, load: GuestLoad) -> None:
        """A guest that is on its way out, with what it takes until it is gone."""
        self.hold(load)
        self.leaving_assigned += known_size(guest.memory_bytes)


def node_loads(
    snapshot: Snapshot, ledger: Ledger, settings: Settings, of_guests: Mapping[int, GuestLoad] | None = None
) -> dict[str, NodeLoad]:
    """Return the load of each node whose load is known, by name.

    Shape:   nodes that are offline, of no size, or without sane or recent numbers are left out: unknown is never zero. `of_guests`
             are the measured loads of the snapshot's guests, for who has them at hand.
    Raises:  nothing, and gives no NaN, infinity or negative load, whatever PVE reports.
    """
    of_guests = measured_loads(snapshot) if of_guests is None else of_guests
    sums: defaultdict[str, _Sums] = defaultdict(_Sums)
    flying = {flight.vmid: flight for flight in ledger.in_flight}
    for guest in snapshot.guests:
        flight, here = flying.get(guest.vmid), sums[guest.node]
        if flight is None and guest.vmid in ledger.unsampled:
            here.add(ledger.learned.get(guest.vmid) or expected_load(guest, ledger))
            here.assign(guest)
            continue
        if flight is not None and guest.node not in (flight.source, flight.target):
            flight = None  # it went somewhere else altogether
        if flight is None and guest.status in NO_PROCESS:
            continue
        known = of_guests.get(guest.vmid)
        measured = known or NO_LOAD
        here.measured_memory += measured.memory_bytes
        sums[guest.node if flight is None else flight.target].assign(guest)
        if flight is not None and guest.node == flight.source and guest.is_running:
            sums[flight.target].add(flight.load)
            here.add(NO_LOAD, measured)
            here.leave(guest, measured)
        elif flight is not None and not guest.is_running:
            # a container between stop and start, and back to its source if the migration fails
            sums[flight.target].add(flight.load)
            if guest.node == flight.source:
                here.leave(guest, flight.load)
        elif guest.is_running and (expected := load_to_expect(guest, ledger, known)) is not measured:
            here.add(expected, measured)
        if flight is not None and guest.node == flight.target and guest.is_running and guest.type is GuestType.QEMU:
            sums[flight.source].hold(flight.load)  # its configuration has moved; its process there goes with the end of the task
        if guest.vmid in ledger.taken and guest.is_running:
            load = load_to_expect(guest, ledger, known) if flight is None else flight.load
            sums[guest.node if flight is None else flight.target].keep_free(ledger.spare(guest.vmid, load))
    judged = [node for node in snapshot.nodes if why_not_measured(node) is None]
    pressures = known_pressures(judged, settings)
    mean_pressure = math.fsum(pressures.values()) / len(pressures) if pressures else 0.0
    return {node.name: _node_load(node, sums[node.name], pressures.get(node.name), mean_pressure, settings) for node in judged}


def _node_load(node: Node, sums: _Sums, pressure: float | None, mean_pressure: float, settings: Settings) -> NodeLoad:
    balance = settings.balance
    cpu = max(0.0, (node.cpu_used_cores or 0.0) + sums.cpu)
    memory = max(0.0, _reported_memory(node, sums.measured_memory) + sums.memory)
    cap = balance.assigned_memory_cap_percent
    return NodeLoad(
        name=node.name,
        cpu_cores=node.cpu_cores,
        memory_bytes=node.memory_bytes,
        cpu_used_cores=cpu + sums.spare_cpu,
        memory_used_bytes=memory + sums.spare_memory,
        leaving_cpu_cores=sums.leaving_cpu,
        leaving_memory_bytes=sums.leaving_memory,
        memory_limit_bytes=memory_limit_bytes(node, settings),
        counted_cpu_cores=sums.assigned_cpu if balance.cpu.measure is Measure.ASSIGNED else cpu,
        counted_memory_bytes=sums.assigned_memory if balance.memory.measure is Measure.ASSIGNED else memory,
        pressure_fraction=mean_pressure if pressure is None else pressure,
        has_pressure=pressure is not None,
        assigned_memory_bytes=sums.assigned_memory + sums.leaving_assigned,
        assigned_limit_bytes=node.memory_bytes * cap / 100 if cap > 0 else None,
    )


def _reported_memory(node: Node, guests_bytes: float) -> float:
    """The used memory that PVE reports, without what the ZFS cache would give back, and not below what the guests take."""
    reported = float(node.memory_used_bytes or 0)
    given_back = sane(node.zfs_cache_bytes, node.memory_bytes) or 0.0
    return min(reported, max(reported - given_back, guests_bytes))


def why_not_measured(node: Node) -> str | None:
    """Why a node's load cannot be used, None when it can."""
    if not node.online:
        return "offline"
    if not (LEAST_CORES <= node.cpu_cores <= MOST and LEAST_MEMORY_BYTES <= node.memory_bytes <= MOST):  # nor is NaN a size
        return "PVE reports no size for it"
    if sane(node.cpu_used_cores, node.cpu_cores) is None or sane(node.memory_used_bytes, node.memory_bytes) is None:
        return "PVE reports no load for it"
    if node.sample_age_s is not None and node.sample_age_s > STALE_S:
        return f"its load is {node.sample_age_s:.0f} s old"
    return None


def why_over_assigned(load_bytes: float, assigned_bytes: float, limit_bytes: float | None) -> str | None:
    """How far guests with so much configured memory would lift a node over the cap, for people; None when they would not."""
    if limit_bytes is None or load_bytes <= 0 or assigned_bytes + load_bytes <= limit_bytes:
        return None
    return f"{(assigned_bytes + load_bytes) / GIB:.1f} of {limit_bytes / GIB:.1f} GiB assigned"

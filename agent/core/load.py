# SPDX-License-Identifier: GPL-3.0-or-later
"""Load of nodes and guests, corrected by what is known to change, and the formulas that judge it.

The ledger: PVE's numbers are up to 14 s old, a guest that just started shows none of its load, and one that migrates
shows it on one node only. So a node's load is what PVE measured there, plus for each of its guests the difference
between expected and measured load; a guest in flight is counted where it goes, and, for all that must fit, also
where it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.core.cluster import GIB, Guest, Node, Snapshot
from agent.core.plan_types import Balance, NodeFractions
from agent.core.settings import Settings

FRESH_S = 25.0  # two rounds of pvestatd, 10 s apart, and its own duration: until then a guest has no two valid samples
STALE_S = 60.0  # load older than six rounds of pvestatd says nothing about now
NODE_SETTLED_S = 120.0  # a node that is up for less is still starting its own guests
EXPECTED_MEMORY_FRACTION = 0.70  # of the configured memory, for a guest never measured
EXPECTED_CPU_FRACTION = 0.25  # of the configured cores, for a guest never measured
SANE_FACTOR = 4.0  # a load of more than this times the size is a broken number, not a load


@dataclass(frozen=True, slots=True)
class GuestLoad:
    """What a guest takes of its node: cores and bytes."""

    cpu_cores: float
    memory_bytes: float


NO_LOAD = GuestLoad(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Counted:
    """What a guest counts for when nodes are compared; whether it fits is judged by its `GuestLoad` alone.

    Units:   cores, bytes, and the share of its node's pressure (0..1) that it is held to cause.
    """

    cpu_cores: float
    memory_bytes: float
    pressure_fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class InFlight:
    """A migration under way or just over: the guest's load is expected on `target` and still counted on `source`."""

    vmid: int
    source: str
    target: str
    load: GuestLoad


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """Load of one node and what it may take.

    Units:   cores and bytes. `leaving_*` is the load of guests that are on their way out: gone for balance, still there
             for whatever must fit. `memory_limit_bytes` is the node's memory less the reserve. `counted_*` is what counts when
             nodes are compared, `*_used_*` what counts when something must fit.
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

    @property
    def cpu_fraction(self) -> float:
        """Counted share of the cores."""
        return self.counted_cpu_cores / self.cpu_cores

    @property
    def memory_fraction(self) -> float:
        """Counted share of the memory."""
        return self.counted_memory_bytes / self.memory_bytes


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is known about loads beyond PVE's numbers: learned loads of guests, migrations under way, guests that just landed.

    A VM's uptime counts from the start of its process on the target, so after a long migration it does not look fresh
    although its first samples there are as low as any new process's: `landed` tells. Those of them that may have come after the last
    sample of their new node are `unsampled`: nothing of their load is in the node's.
    """

    learned: Mapping[int, GuestLoad] = field(default_factory=dict)
    in_flight: tuple[InFlight, ...] = ()
    landed: frozenset[int] = frozenset()
    unsampled: frozenset[int] = frozenset()


def sane(value: float | None, size: float) -> float | None:
    """The value when it can be a load of something of that size, else None (missing, NaN, negative, absurd)."""
    if value is None or not math.isfinite(value) or not 0 <= value <= SANE_FACTOR * size:  # a size of NaN is none
        return None
    return float(value)


def measured_load(guest: Guest) -> GuestLoad | None:
    """What PVE measured of a running guest, None when it did not; of guest-used and host-used memory the larger.

    Units:   cores and bytes.
    """
    if not guest.is_running:
        return None
    cpu = sane(guest.cpu_used_cores, max(_size(guest.cpu_cores), 1.0))
    used, host = sane(guest.memory_used_bytes, guest.memory_bytes), sane(guest.memory_host_bytes, guest.memory_bytes)
    if cpu is None or (used is None and host is None):
        return None
    return GuestLoad(cpu, max(used or 0.0, host or 0.0))


def is_fresh(guest: Guest) -> bool:
    """True while a running guest has been up for less than two samples of its load."""
    return guest.is_running and (guest.uptime_s is None or guest.uptime_s < FRESH_S)


def expected_load(guest: Guest, ledger: Ledger) -> GuestLoad:
    """What the guest will take: measured once there are two samples, before that learned, else a share of its size.

    A guest that does not run takes nothing.
    """
    return _expected(guest, ledger, measured_load(guest)) if guest.is_running else NO_LOAD


def _expected(guest: Guest, ledger: Ledger, measured: GuestLoad | None) -> GuestLoad:
    """The expected load of a running guest, where the measured one is at hand."""
    if measured is not None and not is_fresh(guest) and guest.vmid not in ledger.landed:
        return measured
    known = ledger.learned.get(guest.vmid)
    if known is None:
        known = GuestLoad(EXPECTED_CPU_FRACTION * _size(guest.cpu_cores), EXPECTED_MEMORY_FRACTION * _size(guest.memory_bytes))
    if measured is None:
        return known
    return GuestLoad(max(known.cpu_cores, measured.cpu_cores), max(known.memory_bytes, measured.memory_bytes))


def _size(value: float) -> float:
    """The size of a guest, nothing where PVE reports none."""
    return value if math.isfinite(value) and value > 0 else 0.0


def counted(guest: Guest, load: GuestLoad, node: NodeLoad | None, settings: Settings) -> Counted:
    """What the guest, with that load, counts for in the balance of the node it is on."""
    return Counted(load.cpu_cores, load.memory_bytes)


def memory_limit_bytes(node: Node, settings: Settings) -> float:
    """What guests and system may use of the node's memory: all of it less the larger of the two reserves."""
    reserve = settings.balance.node_reserve
    return node.memory_bytes - max(node.memory_bytes * reserve.memory_percent / 100, reserve.memory_gib * GIB)


def node_loads(snapshot: Snapshot, ledger: Ledger, settings: Settings) -> dict[str, NodeLoad]:
    """Return the load of each node whose load is known, by name.

    Shape:   nodes that are offline, of no size, or without sane or recent numbers are left out: unknown is never zero.
    """
    cpu_extra: dict[str, float] = {}
    memory_extra: dict[str, float] = {}
    leaving: dict[str, GuestLoad] = {}
    flying = {flight.vmid: flight for flight in ledger.in_flight}
    for guest in snapshot.guests:
        flight = flying.get(guest.vmid)
        if flight is None and guest.vmid in ledger.unsampled:
            _add(cpu_extra, memory_extra, guest.node, ledger.learned.get(guest.vmid) or expected_load(guest, ledger))
            continue
        if flight is None and not guest.is_running:
            continue
        known = measured_load(guest)
        measured = known or NO_LOAD
        if flight is not None and guest.node == flight.source and guest.is_running:
            load = flight.load
            _add(cpu_extra, memory_extra, flight.target, load)
            _add(cpu_extra, memory_extra, guest.node, GuestLoad(-measured.cpu_cores, -measured.memory_bytes))
            before = leaving.get(guest.node, NO_LOAD)
            leaving[guest.node] = GuestLoad(before.cpu_cores + measured.cpu_cores, before.memory_bytes + measured.memory_bytes)
        elif flight is not None and guest.node in (flight.source, flight.target) and not guest.is_running:
            # a container between stop and start, and back to its source if the migration fails
            _add(cpu_extra, memory_extra, flight.target, flight.load)
            if guest.node == flight.source:
                before = leaving.get(guest.node, NO_LOAD)
                leaving[guest.node] = GuestLoad(before.cpu_cores + flight.load.cpu_cores, before.memory_bytes + flight.load.memory_bytes)
        elif guest.is_running and (expected := _expected(guest, ledger, known)) is not measured:
            _add(
                cpu_extra,
                memory_extra,
                guest.node,
                GuestLoad(expected.cpu_cores - measured.cpu_cores, expected.memory_bytes - measured.memory_bytes),
            )
    loads: dict[str, NodeLoad] = {}
    for node in snapshot.nodes:
        if why_not_measured(node) is not None:
            continue
        away = leaving.get(node.name, NO_LOAD)
        cpu = max(0.0, (node.cpu_used_cores or 0.0) + cpu_extra.get(node.name, 0.0))
        memory = max(0.0, (node.memory_used_bytes or 0) + memory_extra.get(node.name, 0.0))
        loads[node.name] = NodeLoad(
            name=node.name,
            cpu_cores=node.cpu_cores,
            memory_bytes=node.memory_bytes,
            cpu_used_cores=cpu,
            memory_used_bytes=memory,
            leaving_cpu_cores=away.cpu_cores,
            leaving_memory_bytes=away.memory_bytes,
            memory_limit_bytes=memory_limit_bytes(node, settings),
            counted_cpu_cores=cpu,
            counted_memory_bytes=memory,
        )
    return loads


def why_not_measured(node: Node) -> str | None:
    """Why a node's load cannot be used, None when it can."""
    if not node.online:
        return "offline"
    if not (math.isfinite(node.cpu_cores) and node.cpu_cores > 0 and math.isfinite(node.memory_bytes) and node.memory_bytes > 0):
        return "PVE reports no size for it"
    if sane(node.cpu_used_cores, node.cpu_cores) is None or sane(node.memory_used_bytes, node.memory_bytes) is None:
        return "PVE reports no load for it"
    if node.sample_age_s is not None and node.sample_age_s > STALE_S:
        return f"its load is {node.sample_age_s:.0f} s old"
    return None


def _add(cpu: dict[str, float], memory: dict[str, float], node: str, load: GuestLoad) -> None:
    cpu[node] = cpu.get(node, 0.0) + load.cpu_cores
    memory[node] = memory.get(node, 0.0) + load.memory_bytes


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each resource counts: weights of the goal function, and the thresholds as fractions (None: off)."""

    cpu: float
    memory: float
    cpu_threshold: float | None
    memory_threshold: float | None
    pressure: float = 0.0
    pressure_threshold: float | None = None

    @classmethod
    def of(cls, settings: Settings) -> Weights:
        """The weights that the settings state."""

        def threshold(percent: float) -> float | None:
            return percent / 100 if 0 < percent < 100 else None

        cpu, memory = settings.balance.cpu, settings.balance.memory
        return cls(cpu.weight, memory.weight, threshold(cpu.threshold_percent), threshold(memory.threshold_percent))


OVERLOAD_WEIGHT = 1.0  # one point over a threshold on one of n nodes counts as one point of 1/n imbalance


def imbalance(loads: Iterable[NodeLoad], weights: Weights) -> float:
    """The weighted mean, over cpu and memory, of the population standard deviation of the used fraction over the nodes.

    Units:   none; 0.0 is even. No nodes, or no weights, give 0.0.
    """
    nodes = list(loads)
    total = weights.cpu + weights.memory
    if not nodes or total <= 0:
        return 0.0
    cpu = _deviation([node.cpu_fraction for node in nodes])
    memory = _deviation([node.memory_fraction for node in nodes])
    return (weights.cpu * cpu + weights.memory * memory) / total


def _deviation(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def over_threshold(load: NodeLoad, weights: Weights) -> str | None:
    """Which resource of the node is over its threshold, for people; None when none is."""
    found = []
    if weights.cpu_threshold is not None and load.cpu_fraction > weights.cpu_threshold:
        found.append(f"cpu {100 * load.cpu_fraction:.0f} % over {100 * weights.cpu_threshold:.0f} %")
    if weights.memory_threshold is not None and load.memory_fraction > weights.memory_threshold:
        found.append(f"memory {100 * load.memory_fraction:.0f} % over {100 * weights.memory_threshold:.0f} %")
    return ", ".join(found) or None


def spread(loads: Iterable[NodeLoad], weights: Weights) -> tuple[float, str, str]:
    """The larger, over the resources that have a weight, of highest less lowest node, and those two nodes' names.

    Units:   a fraction, 0.0 even.
    """
    nodes = sorted(loads, key=lambda node: node.name)
    best = (0.0, "", "")
    if not nodes:
        return best
    for weight, fraction in ((weights.cpu, _cpu_fraction), (weights.memory, _memory_fraction)):
        if weight > 0:
            high, low = max(nodes, key=fraction), min(nodes, key=fraction)
            best = max(best, (fraction(high) - fraction(low), high.name, low.name), key=lambda found: found[0])
    return best


def _cpu_fraction(load: NodeLoad) -> float:
    return load.cpu_fraction


def _memory_fraction(load: NodeLoad) -> float:
    return load.memory_fraction


def balance_of(loads: Mapping[str, NodeLoad], usable: Iterable[str], weights: Weights) -> Balance:
    """The imbalance of the usable nodes, and the fractions of all nodes whose load is known."""
    return Balance(
        imbalance=imbalance((loads[name] for name in sorted(usable)), weights),
        nodes=tuple((name, NodeFractions(load.cpu_fraction, load.memory_fraction)) for name, load in sorted(loads.items())),
    )

# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests take, measured or expected. What nodes carry: `agent.core.node_load`.

A guest's load. Measured are its cores (PVE's fraction times its own) and of what it uses and what the node spends for it
(memhost of PVE 9) the larger: the second holds what QEMU and the page cache take, the first what the guest will claim again
after ballooning. Until there are two samples of it, the load it is known to have taken before, else 70 % of its memory and
25 % of its cores, and never less than what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.core.cluster import Guest, Snapshot

FRESH_S = 25.0  # two rounds of pvestatd, 10 s apart, and its own duration: until then a guest has no two valid samples
EXPECTED_MEMORY_FRACTION = 0.70  # of the configured memory, for a guest never measured
EXPECTED_CPU_FRACTION = 0.25  # of the configured cores, for a guest never measured
SANE_FACTOR = 4.0  # a load of more than this times the size is a broken number, not a load
MOST = 1e18  # no node has as many bytes or cores: beyond it a number is broken
NO_PROCESS = frozenset({"stopped", "unknown"})  # PVE's words for a guest that holds no memory, as far as can be told


@dataclass(frozen=True, slots=True)
class GuestLoad:
    """What a guest takes of its node: cores and bytes."""

    cpu_cores: float
    memory_bytes: float


NO_LOAD = GuestLoad(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class InFlight:
    """A migration under way or just over: the guest's load is expected on `target` and still counted on `source`."""

    vmid: int
    source: str
    target: str
    load: GuestLoad


@dataclass(frozen=True, slots=True)
class Ledger:
    """What is known about loads beyond PVE's numbers: learned loads of guests, migrations under way, guests that just landed.

    A VM's uptime counts from the start of its process on the target, so after a long migration it does not look fresh
    although its first samples there are as low as any new process's: `landed` tells. Those of them that may have come after the last
    sample of their new node are `unsampled`: nothing of their load is in the node's. `taken` is what guests took some minutes after they
    had moved: where they must fit, the larger of it and of what they take now counts.
    """

    learned: Mapping[int, GuestLoad] = field(default_factory=dict)
    in_flight: tuple[InFlight, ...] = ()
    landed: frozenset[int] = frozenset()
    unsampled: frozenset[int] = frozenset()
    taken: Mapping[int, GuestLoad] = field(default_factory=dict)

    def spare(self, vmid: int, load: GuestLoad) -> GuestLoad:
        """What is kept free for the guest beside the load it has."""
        known = self.taken.get(vmid)
        if known is None:
            return NO_LOAD
        return GuestLoad(max(0.0, known.cpu_cores - load.cpu_cores), max(0.0, known.memory_bytes - load.memory_bytes))


def sane(value: float | None, size: float) -> float | None:
    """The value when it can be a load of something of that size, else None (missing, NaN, negative, absurd)."""
    if value is None or not 0 <= value <= min(SANE_FACTOR * size, MOST):  # of a NaN, or a size of NaN, none of it is true
        return None
    return float(value)


def measured_load(guest: Guest) -> GuestLoad | None:
    """What PVE measured of a running guest, None when it did not; of guest-used and host-used memory the larger.

    Units:   cores and bytes.
    """
    if not guest.is_running:
        return None
    cpu = sane(guest.cpu_used_cores, max(known_size(guest.cpu_cores), 1.0))
    used = sane(guest.memory_used_bytes, guest.memory_bytes)
    host = None if guest.memory_host_bytes is None else sane(guest.memory_host_bytes, guest.memory_bytes)
    if cpu is None or (used is None and host is None):
        return None
    return GuestLoad(cpu, max(used or 0.0, host or 0.0))


def measured_loads(snapshot: Snapshot) -> dict[int, GuestLoad]:
    """What PVE measured of each guest of which it did, by VMID."""
    return {guest.vmid: load for guest in snapshot.guests if (load := measured_load(guest)) is not None}


def is_fresh(guest: Guest) -> bool:
    """True while a running guest has been up for less than two samples of its load."""
    return guest.is_running and (guest.uptime_s is None or guest.uptime_s < FRESH_S)


def expected_load(guest: Guest, ledger: Ledger) -> GuestLoad:
    """What the guest will take: measured once there are two samples, before that learned, else a share of its size.

    A guest that does not run takes nothing.
    """
    return load_to_expect(guest, ledger, measured_load(guest)) if guest.is_running else NO_LOAD


def load_to_expect(guest: Guest, ledger: Ledger, measured: GuestLoad | None) -> GuestLoad:
    """The expected load of a running guest, where the measured one is at hand."""
    if measured is not None and not is_fresh(guest) and guest.vmid not in ledger.landed:
        return measured
    known = ledger.learned.get(guest.vmid)
    if known is None:
        known = GuestLoad(EXPECTED_CPU_FRACTION * known_size(guest.cpu_cores), EXPECTED_MEMORY_FRACTION * known_size(guest.memory_bytes))
    if measured is None:
        return known
    return GuestLoad(max(known.cpu_cores, measured.cpu_cores), max(known.memory_bytes, measured.memory_bytes))


def known_size(value: float) -> float:
    """The size of a guest, nothing where PVE reports none."""
    return value if 0 < value <= MOST else 0.0  # NaN is neither

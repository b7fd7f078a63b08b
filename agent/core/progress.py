# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a number of moves has come, and how long the rest takes where the cluster's own migrations tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.core.cluster import GIB, Guest, GuestType
from agent.core.documents import Timing
from agent.core.durations import remaining, words
from agent.core.migrations import Migration
from agent.core.plan_types import Move
from agent.core.settings import Settings


@dataclass(frozen=True, slots=True)
class Progress:
    """So many guests have moved, of so many in all.

    Units:   bytes are of memory and of disks that go along; 0 in all where nothing is copied. `left_s` is None where nothing tells.
    """

    guests: int
    guests_in_all: int
    bytes: int = 0
    bytes_in_all: int = 0
    left_s: float | None = None

    @property
    def words(self) -> str:
        """`2 of 5 guests, 12.0 of 42.5 GiB, about 3 min left`."""
        parts = [f"{self.guests} of {self.guests_in_all} guest{'' if self.guests_in_all == 1 else 's'}"]
        if self.bytes_in_all:
            parts.append(f"{self.bytes / GIB:.1f} of {self.bytes_in_all / GIB:.1f} GiB")
        if self.left_s is not None:
            parts.append(f"about {words(self.left_s)} left")
        return ", ".join(parts)


def copied_bytes(guest: Guest) -> int:
    """What moving the guest copies of its memory, as far as PVE tells; a container's and a stopped guest's stays."""
    if guest.type is not GuestType.QEMU or guest.status == "stopped":
        return 0
    return max(guest.memory_used_bytes or 0, guest.memory_host_bytes or 0)


def progress_of(sizes: Mapping[int, int], left: Iterable[int], left_s: float | None) -> Progress:
    """The progress when of these guests (by VMID, in bytes) those are left."""
    still = {vmid for vmid in left if vmid in sizes}
    gone = [size for vmid, size in sizes.items() if vmid not in still]
    return Progress(len(gone), len(sizes), sum(gone), sum(sizes.values()), left_s)


def time_left_s(
    moves: Sequence[Move], under_way: Sequence[Migration], timings: Sequence[Timing], settings: Settings, now: float
) -> float | None:
    """How long all that takes, None where it would rest on no migration of this cluster."""
    if not moves and not under_way:
        return None
    expected = remaining(moves, under_way, timings, settings, now)
    return expected.seconds if expected.rests_on else None

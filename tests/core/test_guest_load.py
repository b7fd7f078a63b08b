# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads of guests: the measured one, and what stands for it while there is none."""

from __future__ import annotations

from agent.core.cluster import GIB
from agent.core.guest_load import Ledger, expected_load
from tests.core.clusters import started, vm


def gib(amount_bytes: float) -> float:
    return round(amount_bytes / GIB, 6)


def test_of_guest_used_and_host_used_memory_the_larger_counts() -> None:
    for used, host in ((10, 14), (14, 10)):
        guest = vm(101, "pve1", 10, 1, memory_bytes=16 * GIB, memory_used_bytes=used * GIB, memory_host_bytes=host * GIB)
        assert gib(expected_load(guest, Ledger()).memory_bytes) == 14


def test_a_guest_that_has_just_started_is_guessed_by_its_size() -> None:
    guest = started(vm(101, "pve1", 4, 2, cpu_cores=8.0, memory_bytes=10 * GIB))
    load = expected_load(guest, Ledger())
    assert (load.cpu_cores, gib(load.memory_bytes)) == (2.0, 7)

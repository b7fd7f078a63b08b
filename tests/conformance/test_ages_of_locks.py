# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks that grow old: what has reached the age goes when somebody asks, unless it was renewed or has something in it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import pytest
from locks import ask, is_dropped, lock, take
from mounts import Cluster, outcome, write

ANSWER_S = 5.0  # asked for once a second, a lock goes that long after its time


@dataclass(frozen=True)
class Aged:
    """Locks of the second node, older than the life of a lock; `asked` was asked for by the third one once a second from the start."""

    silent: str
    filled: str
    is_renewed_dropped: bool
    asked_gone_after_s: float
    still_there: frozenset[str]


@pytest.fixture(scope="module")
def aged(pve: Cluster) -> Aged:
    """Wait for a life of a lock, once for all tests that need old ones."""
    holder, asker = pve.nodes[1:3]
    silent, filled, renewed, asked = (f"conformance-{os.getpid()}-{what}" for what in ("silent", "filled", "renewed", "asked"))
    for name in (silent, filled, renewed):
        take(pve, holder, name)
    write(lock(holder, filled) / "file")
    begun = time.monotonic()  # before the lock is made whose time is taken: what making it takes must not make it go early
    take(pve, holder, asked)
    gone_after_s = 0.0
    while (age_s := time.monotonic() - begun) < pve.lock_life_s + ANSWER_S and not (gone_after_s and age_s > pve.lock_life_s + 2):
        if not gone_after_s:
            ask(asker, asked)
            gone_after_s = 0.0 if asked in os.listdir(asker.mount / "priv/lock") else time.monotonic() - begun
        if age_s > pve.lock_life_s / 2:
            os.utime(lock(holder, renewed), (0, os.stat(lock(holder, renewed)).st_mtime + 1))
        time.sleep(min(1.0, pve.lock_life_s / 10))
    is_renewed_dropped = is_dropped(asker, renewed)  # now, while its last renewal is young
    there = frozenset(os.listdir(pve.nodes[0].mount / "priv/lock"))
    return Aged(silent, filled, is_renewed_dropped, gone_after_s, there)


def test_an_old_lock_stays_until_somebody_asks(pve: Cluster, aged: Aged) -> None:
    assert aged.silent in aged.still_there
    taker = pve.nodes[2]
    assert outcome(lambda: os.mkdir(lock(taker, aged.silent))) == "EEXIST"
    assert is_dropped(taker, aged.silent)
    assert outcome(lambda: os.mkdir(lock(taker, aged.silent))) == ""
    assert outcome(lambda: os.utime(lock(pve.nodes[1], aged.silent), (0, time.time() + 5))) == "EACCES"


def test_a_lock_that_is_asked_for_goes_at_its_age_and_not_before(pve: Cluster, aged: Aged) -> None:
    assert pve.lock_life_s <= aged.asked_gone_after_s < pve.lock_life_s + ANSWER_S, "asking neither hastens nor delays it"


def test_renewals_start_the_age_anew(aged: Aged) -> None:
    assert not aged.is_renewed_dropped


def test_an_old_lock_with_something_in_it_stays(pve: Cluster, aged: Aged) -> None:
    assert not is_dropped(pve.nodes[2], aged.filled)

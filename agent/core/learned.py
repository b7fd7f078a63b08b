# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests took before they stopped: the best guess of what they take when they start again.

A load is learned when a guest that was measured for long stops, starts anew or comes to another node: only then is it of use,
as a guest that runs is measured. It is the mean cpu of its last five minutes and its last memory. Only the leader learns,
and each node keeps what it learned itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from agent.core.cluster import Guest, Snapshot
from agent.core.documents import LOADS_SCHEMA, LearnedLoad, LoadsFile
from agent.core.guest_load import GuestLoad, is_fresh, measured_load, sane
from agent.core.smoothing import Average, Smoothing

LEAST_RUN_S = 300.0  # a guest that ran for less has shown its start alone
LEAST_SAMPLES = 30  # as long, in pvestatd's rounds: of a guest that has just been moved, and began to count its time anew
MOST_KEPT = 4000  # some 300 KiB of JSON, and 1 MiB in memory
KEPT_S = 60 * 86400.0  # a guest that has been off for longer is guessed anew

Learned = Mapping[int, LearnedLoad]


def with_look(known: Learned, before: Snapshot, smoothing: Smoothing, after: Snapshot, changed: Collection[int]) -> Learned:
    """What is known after a look at the cluster; the same object when nothing was learned.

    Shape:   `before` is the look before, as PVE reported it, `smoothing` the means up to then, `changed` the guests of which the
             two looks tell that something happened. Who is no longer there is forgotten, as another guest may get the number.
    """
    if not changed:
        return known
    now = {guest.vmid: guest for guest in after.guests}
    found = {vmid: load for vmid, load in known.items() if vmid in now}
    is_new = len(found) != len(known)
    for was in before.guests:
        average, guest = smoothing.guests.get(was.vmid), now.get(was.vmid)
        if was.vmid not in changed or average is None or guest is None or not _ran_for_long(was, average):
            continue
        load = measured_load(was)
        if load is not None and _has_ended(was, guest):
            found[was.vmid] = LearnedLoad(was.vmid, average.mean, load.memory_bytes, after.taken_at)
            is_new = True
    return bounded(found.values(), after.taken_at) if is_new else known


def _ran_for_long(was: Guest, average: Average) -> bool:
    """True for a guest that has shown what it takes, be it before this look or, of a leader who has just begun, before its first one."""
    return not is_fresh(was) and (average.samples >= LEAST_SAMPLES or (was.uptime_s is not None and was.uptime_s >= LEAST_RUN_S))


def _has_ended(was: Guest, guest: Guest) -> bool:
    """True when the process that ran is over."""
    if not guest.is_running or guest.node != was.node:
        return True
    return guest.uptime_s is not None and was.uptime_s is not None and guest.uptime_s + 5 < was.uptime_s


def bounded(loads: Iterable[LearnedLoad], now: float) -> Learned:
    """The newest of them, without what is old or broken; a time that lies ahead was written by a clock that did."""
    sound = [load for load in loads if _is_sound(load) and now - load.at < KEPT_S]
    sound.sort(key=lambda load: (load.at, load.vmid))
    return {load.vmid: replace(load, at=min(load.at, now)) for load in sound[-MOST_KEPT:]}


def _is_sound(load: LearnedLoad) -> bool:
    return sane(load.cpu_cores, load.cpu_cores) is not None and sane(load.memory_bytes, load.memory_bytes) is not None


def of_starting(known: Learned, snapshot: Snapshot, arrived: Collection[int] = ()) -> dict[int, GuestLoad]:
    """The loads to expect of the guests that have just started or, as the caller knows, arrived; never more than a guest may have now."""
    found = {}
    for guest in snapshot.guests:
        if (is_fresh(guest) or guest.vmid in arrived) and (load := known.get(guest.vmid)) is not None:
            found[guest.vmid] = GuestLoad(min(load.cpu_cores, guest.cpu_cores), min(load.memory_bytes, guest.memory_bytes))
    return found


def as_file(known: Learned) -> LoadsFile:
    """What is known as loads.json holds it."""
    return LoadsFile(LOADS_SCHEMA, tuple(load for _, load in sorted(known.items())))

# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests take after a move, against what was expected: noted when one has arrived, measured some minutes later.

A guest that was short of something where it was shows it only where it has room: what is measured on a full node is what the node
gave. So what a guest took `AFTER_S` after its arrival is remembered for a day as it is, in cores and bytes. It does not change how nodes
are compared, which is a matter of now; but wherever the guest must fit, the larger of it and of what it takes now counts.

The nodes' errors are kept beside the guest's: what others on the node did meanwhile is in them as well, so they correct nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.core.cluster import Snapshot
from agent.core.documents import Calibration, Footprint, HistoryFile
from agent.core.guest_load import GuestLoad, Ledger, measured_load
from agent.core.json_types import JsonObject
from agent.core.migrations import Migration, MigrationState
from agent.core.node_load import node_loads
from agent.core.settings import Settings

AFTER_S = 240.0  # four minutes: loads are smoothed over five, and the guest's own peak of settling in is over
UNTIL_S = 1800.0  # what could not be measured until then says more about other things
REMEMBERED_S = 86400.0
MOST_KEPT = 24  # 9 KiB of JSON

_HALF_S = AFTER_S / 2  # a guest that has been up for less was started anew


def _footprint(guest: GuestLoad, source: str, target: str, snapshot: Snapshot, ledger: Ledger, settings: Settings) -> Footprint:
    loads = node_loads(snapshot, replace(ledger, taken={}), settings)
    here, there = loads.get(source), loads.get(target)
    return Footprint(
        guest.cpu_cores,
        guest.memory_bytes,
        None if here is None else here.cpu_used_cores,
        None if here is None else here.memory_used_bytes,
        None if there is None else there.cpu_used_cores,
        None if there is None else there.memory_used_bytes,
    )


def with_arrivals(
    history: HistoryFile, arrived: Iterable[Migration], snapshot: Snapshot, ledger: Ledger, settings: Settings
) -> HistoryFile:
    """The history with what is expected of guests that have just arrived, and of the nodes they left and came to.

    Shape:   `ledger` knows of the arrivals: they are in no numbers yet.
    """
    new = [
        Calibration(
            record.intent,
            record.vmid,
            record.source,
            record.target,
            record.ended_at,
            _footprint(record.load, record.source, record.target, snapshot, ledger, settings),
        )
        for record in arrived
        if record.state is MigrationState.DONE and record.online and record.ended_at is not None
    ]
    return replace(history, calibrations=_bounded([*history.calibrations, *new])) if new else history


def _bounded(found: Iterable[Calibration]) -> tuple[Calibration, ...]:
    """The latest of each guest, at most so many."""
    latest = {one.vmid: one for one in sorted(found, key=lambda one: (one.at, one.vmid))}
    return tuple(sorted(latest.values(), key=lambda one: (one.at, one.vmid)))[-MOST_KEPT:]


def calibrated(history: HistoryFile, snapshot: Snapshot, now: float, settings: Settings) -> HistoryFile:
    """The history with what is measured now of guests that arrived long enough ago, and without what has grown old.

    A guest that has moved on, does not run, or was started anew since tells nothing of its move.
    """
    kept = []
    for one in history.calibrations:
        since_s = abs(now - one.at)
        if since_s > REMEMBERED_S:
            continue
        if one.measured is not None or since_s < AFTER_S:
            kept.append(one)
            continue
        guest = snapshot.guest(one.vmid)
        is_the_same = guest is not None and guest.node == one.target and (guest.uptime_s is None or guest.uptime_s >= _HALF_S)
        load = measured_load(guest) if guest is not None and is_the_same else None
        if load is None or since_s > UNTIL_S:
            continue
        measured = _footprint(load, one.source, one.target, snapshot, Ledger(), settings)
        kept.append(replace(one, measured=measured, measured_at=now))
    return history if tuple(kept) == history.calibrations else replace(history, calibrations=tuple(kept))


def taken(history: HistoryFile, snapshot: Snapshot, now: float) -> dict[int, GuestLoad]:
    """What guests took after their last move, as far as that is remembered, and never more than they are configured for."""
    found = {}
    for one in history.calibrations:
        guest = snapshot.guest(one.vmid)
        if one.measured is None or guest is None or abs(now - one.at) > REMEMBERED_S:
            continue
        cpu, memory = min(one.measured.guest_cpu_cores, guest.cpu_cores), min(one.measured.guest_memory_bytes, guest.memory_bytes)
        found[one.vmid] = GuestLoad(max(0.0, cpu), max(0.0, memory))
    return found


def rows(history: HistoryFile) -> list[JsonObject]:
    """What `status` shows of them: of each measured one the error, measured less expected."""
    return [
        {
            "vmid": one.vmid,
            "source": one.source,
            "target": one.target,
            "at": one.at,
            "expected_cpu_cores": round(one.expected.guest_cpu_cores, 3),
            "expected_memory_bytes": round(one.expected.guest_memory_bytes),
            "error_cpu_cores": _error(one.measured.guest_cpu_cores, one.expected.guest_cpu_cores, 3),
            "error_memory_bytes": _error(one.measured.guest_memory_bytes, one.expected.guest_memory_bytes),
            "source_error_cpu_cores": _error(one.measured.source_cpu_cores, one.expected.source_cpu_cores, 3),
            "source_error_memory_bytes": _error(one.measured.source_memory_bytes, one.expected.source_memory_bytes),
            "target_error_cpu_cores": _error(one.measured.target_cpu_cores, one.expected.target_cpu_cores, 3),
            "target_error_memory_bytes": _error(one.measured.target_memory_bytes, one.expected.target_memory_bytes),
        }
        for one in history.calibrations
        if one.measured is not None
    ]


def _error(measured: float | None, expected: float | None, digits: int = 0) -> float | None:
    return None if measured is None or expected is None else round(measured - expected, digits)

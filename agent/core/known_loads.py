# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger of one look: what records, the HA manager and what was learned tell of loads beyond PVE's numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.core import history as memory
from agent.core.calibration import taken
from agent.core.cluster import Snapshot
from agent.core.documents import HistoryFile
from agent.core.guest_load import Ledger
from agent.core.learned import Learned, of_starting
from agent.core.migrations import Migration, in_flight
from agent.core.others import foreign_arrivals, foreign_flights


def ledger_of(
    snapshot: Snapshot, history: HistoryFile, under_way: Iterable[Migration], now: float, learned: Learned | None = None
) -> Ledger:
    """Return what is known of loads at that time (Unix seconds), with the migrations under way, ours and those of the HA manager.

    Shape:   `learned` is what guests took before: it counts for those that have just started, or that others have just moved.
    """
    records = tuple(under_way)
    arrivals = foreign_arrivals(snapshot, {record.upid for record in history.migrations if record.upid is not None}, now)
    place = {guest.vmid: guest.node for guest in snapshot.guests if guest.vmid in arrivals}
    unsampled = {vmid for vmid, since_s in arrivals.items() if memory.is_unsampled(place[vmid], since_s, snapshot)}
    ledger = Ledger(
        {**of_starting(learned or {}, snapshot, arrivals.keys()), **memory.learned(history, now)},
        in_flight(records),
        memory.landed(history, now) | arrivals.keys(),
        memory.unsampled(history, snapshot, now) | unsampled,
        taken(history, snapshot, now),
    )
    others = foreign_flights(snapshot, {record.vmid for record in records}, ledger)
    return replace(ledger, in_flight=(*ledger.in_flight, *others)) if others else ledger

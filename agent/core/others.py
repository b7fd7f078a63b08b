# SPDX-License-Identifier: GPL-3.0-or-later
"""Migrations that somebody else has under way: a person, another balancer, PVE's bulk actions, the HA manager on its own account."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from agent.core.cluster import Snapshot, Task
from agent.core.guest_load import FRESH_S, InFlight, Ledger, expected_load
from agent.core.ha_maintenance import bound_for
from agent.core.ha_moves import MOVE_KINDS, MOVING_STATES
from agent.core.migrations import Migration

CLOCK_S = 5.0  # between the clocks of two nodes
MOST_NAMED = 3  # in one line


@dataclass(frozen=True, slots=True)
class Foreign:
    """One such migration. `target` is None where nobody tells: PVE's task list names the source alone."""

    vmid: int
    source: str
    target: str | None


def foreign_migrations(snapshot: Snapshot, ours: AbstractSet[int]) -> tuple[Foreign, ...]:
    """The migrations of others, by VMID: their tasks, and what the HA manager has begun. `ours` are the guests of our own."""
    online = {node.name for node in snapshot.nodes if node.online}  # what a lost node was moving moves no more
    return tuple(foreign for foreign in _begun(snapshot, ours) if foreign.source in online)


def _begun(snapshot: Snapshot, ours: AbstractSet[int]) -> tuple[Foreign, ...]:
    found: dict[int, Foreign] = {}
    for task in snapshot.tasks:
        if task.is_running and task.kind in MOVE_KINDS and task.vmid is not None:
            found[task.vmid] = Foreign(task.vmid, task.node, _target(task, snapshot))
    place = {guest.vmid: guest.node for guest in snapshot.guests}
    for resource in snapshot.ha.resources:
        if resource.state not in MOVING_STATES or resource.target is None or resource.node in (None, resource.target):
            continue
        if resource.vmid in found or place.get(resource.vmid) != resource.target:  # else it is there, and only that is not reported yet
            source = found[resource.vmid].source if resource.vmid in found else resource.node
            found[resource.vmid] = Foreign(resource.vmid, source or "", resource.target)
    return tuple(foreign for vmid, foreign in sorted(found.items()) if vmid not in ours)


def _target(task: Task, snapshot: Snapshot) -> str | None:
    """Where a migration goes: where the guest is by now, else where PVE has started its process for it."""
    guest = snapshot.guest(task.vmid or 0)
    if guest is not None and guest.node != task.node:
        return guest.node
    starts = [
        other.node
        for other in snapshot.tasks
        if other.vmid == task.vmid and other.kind == "qmstart" and other.node != task.node and other.started_at >= task.started_at - CLOCK_S
    ]
    return starts[-1] if starts else None


def arriving(snapshot: Snapshot, records: Iterable[Migration]) -> dict[str, tuple[int, ...]]:
    """Node to the guests that are on their way to it, by our open attempts (`records`) or by others, as far as their targets are known:
    whom the HA manager will bring home is among them."""
    found: dict[str, set[int]] = {}
    flights = [(record.target, record.vmid) for record in records]
    flights += [(other.target, other.vmid) for other in foreign_migrations(snapshot, frozenset()) if other.target is not None]
    for target, vmid in flights:
        found.setdefault(target, set()).add(vmid)
    for node in snapshot.nodes:
        if node.name not in snapshot.ha.closed_nodes:
            found.setdefault(node.name, set()).update(bound_for(snapshot, node.name))
    place = {guest.vmid: guest.node for guest in snapshot.guests if guest.is_running}
    coming = {node: tuple(sorted(vmid for vmid in vmids if place.get(vmid) != node)) for node, vmids in sorted(found.items())}
    return {node: vmids for node, vmids in coming.items() if vmids}


def foreign_flights(snapshot: Snapshot, ours: AbstractSet[int], ledger: Ledger) -> tuple[InFlight, ...]:
    """What of it the ledger must count on two nodes: whom others move where that is known, and whom the HA manager is about to bring back.

    A guest that left its node for the HA manager's maintenance goes back as soon as that is over, and needs its room there. One whose
    source was lost on the way may be there already, or be recovered there: its place is kept until the HA manager says where it is.
    """
    places = {foreign.vmid: foreign for foreign in _begun(snapshot, ours)}
    for resource in snapshot.ha.resources:
        home = resource.maintenance_node
        if home is None or resource.vmid in ours or resource.vmid in places or resource.node in (None, home):
            continue
        node = snapshot.node(home)
        if node is not None and node.online and home not in snapshot.ha.closed_nodes:
            places[resource.vmid] = Foreign(resource.vmid, resource.node or "", home)
    flights = []
    for vmid, foreign in sorted(places.items()):
        guest = snapshot.guest(vmid)
        if guest is not None and foreign.target is not None and guest.is_running:
            flights.append(InFlight(vmid, foreign.source, foreign.target, expected_load(guest, ledger)))
    return tuple(flights)


def foreign_arrivals(snapshot: Snapshot, ours: AbstractSet[str], now: float) -> dict[int, float]:
    """The guests that others have just brought to their node, and how many seconds ago. `ours` are the UPIDs of our own migrations."""
    place = {guest.vmid: guest.node for guest in snapshot.guests if guest.is_running}
    return {
        task.vmid: abs(now - task.ended_at)
        for task in sorted(snapshot.tasks, key=lambda task: task.ended_at or 0.0)
        if task.kind in MOVE_KINDS
        and task.upid not in ours
        and task.vmid is not None
        and task.ended_at is not None
        and abs(now - task.ended_at) < FRESH_S
        and place.get(task.vmid, task.node) != task.node
    }


def foreign_words(foreign: tuple[Foreign, ...]) -> str:
    """`guest 105 off pve2, guest 106 off pve2 and 3 more`."""
    named = ", ".join(f"guest {one.vmid} off {one.source}" for one in foreign[:MOST_NAMED])
    return named + (f" and {len(foreign) - MOST_NAMED} more" if len(foreign) > MOST_NAMED else "")

# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves that the HA manager carries out: who goes along, and how one stands by what a look shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from agent.core.cluster import Guest, GuestType, HighAvailability, Snapshot
from agent.core.history import is_success
from agent.core.migrations import Migration, MigrationState
from agent.core.plan_types import Move

REQUEST_KIND = "hamigrate"  # PVE's task that only queues the request: its OK says nothing of the guest
MOVE_KINDS = frozenset({"qmigrate", "vzmigrate"})
MOVING_STATES = frozenset({"migrate", "relocate"})
FENCED_STATES = frozenset({"fence", "recovery"})
CLOCKS_S = 15.0  # between the clocks of two nodes, and between a process's start and the first sample of it
# A guest that arrives is reported by its node's manager (10 s), taken note of (10 s), and in the next round (10 s) brought back or not.
PULLED_BACK_S = 60.0


class Course(Enum):
    """How a move stands that was handed to the HA manager."""

    WAITS = auto()  # on its old node, and nobody moves it
    MOVES = auto()
    MOVES_ELSEWHERE = auto()  # the HA manager has something else in mind
    ARRIVED = auto()
    DOES_NOT_RUN = auto()  # on the target, but not started there yet
    ELSEWHERE = auto()
    IN_ERROR = auto()
    NODE_LOST = auto()
    RELEASED = auto()  # the HA manager does not have the guest any more
    GONE = auto()


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look tells of one such move; `text` is for people, "" where the course says all."""

    course: Course
    text: str = ""


def sight(record: Migration, snapshot: Snapshot, waited_s: float) -> Sight:
    """How the move stands by this look: where the guest is comes first, then what the HA manager and its tasks say.

    Units:   `waited_s` is for how long the move has been followed, by a clock that nobody sets back.
    """
    guest = snapshot.guest(record.vmid)
    if guest is None:
        return Sight(Course.GONE, "the guest is gone")
    known = snapshot.ha.resource(record.vmid)
    state = known.state if known is not None and known.state else guest.ha
    target = known.target if known is not None else None
    node = snapshot.node(guest.node)
    is_lost = node is None or not node.online
    if is_lost or state in FENCED_STATES:  # a lock may be left of a migration that died with its node
        return Sight(Course.NODE_LOST, f"{guest.node} is lost; the HA manager recovers the guest")
    has_task = any(task.is_running and task.vmid == record.vmid and task.kind in MOVE_KINDS for task in snapshot.tasks)
    if has_task or guest.lock == "migrate":
        is_ours = guest.node in (record.source, record.target) and target in (None, record.target)
        return Sight(Course.MOVES if is_ours else Course.MOVES_ELSEWHERE)
    if guest.node == record.target:
        return Sight(Course.ARRIVED if not record.online or _runs_anew(guest, record, snapshot, waited_s) else Course.DOES_NOT_RUN)
    if state in MOVING_STATES:
        return Sight(Course.MOVES if target in (None, record.target) else Course.MOVES_ELSEWHERE)
    if guest.node != record.source:
        return Sight(Course.ELSEWHERE, f"the guest is on {guest.node} now")
    if state == "error":
        return Sight(Course.IN_ERROR, f"the HA manager has {guest.label} in its error state: disable it there, repair it, enable it again")
    if state is None:
        return Sight(Course.RELEASED, "the HA manager does not have the guest any more")
    failed = _failed_task(record, snapshot)
    return Sight(Course.WAITS, "" if failed is None else f"the HA manager's migration ended: {failed}")


def _runs_anew(guest: Guest, record: Migration, snapshot: Snapshot, waited_s: float) -> bool:
    """True when the guest runs where it is now. A container's restart is believed when its uptime has begun anew: until then the
    numbers are those of its old node."""
    if not guest.is_running:
        return False
    if guest.type is GuestType.QEMU or guest.uptime_s is None:
        return True
    since_s = snapshot.taken_at - (record.asked_at or record.planned_at)
    return guest.uptime_s <= max(waited_s, since_s) + CLOCKS_S


def _failed_task(record: Migration, snapshot: Snapshot) -> str | None:
    """How the HA manager's last migration of the guest ended since it was asked for, None when none failed."""
    since = (record.asked_at or record.planned_at) - CLOCKS_S
    ended = [
        task
        for task in snapshot.tasks
        if task.vmid == record.vmid and task.kind in MOVE_KINDS and task.node == record.source and task.started_at >= since
    ]
    return ended[-1].status if ended and not is_success(ended[-1].status) else None


def pulled_back(records: Iterable[Migration], snapshot: Snapshot, now: float) -> list[tuple[Migration, str]]:
    """The moves whose guest the HA manager takes elsewhere again right after it had arrived, with where to.

    Not those that somebody else asks for, and not those off a target that is lost or in maintenance.

    Units:   `now` in Unix seconds.
    Source:  failback of PVE's HA manager: a service goes to the best node of its node affinity by itself.
    """
    latest = {record.vmid: record for record in records if record.asked_at is not None}
    closed = {*snapshot.no_target, *(maintenance.node for maintenance in snapshot.maintenance)}
    found = []
    for _, record in sorted(latest.items()):
        ended_at, guest = record.ended_at, snapshot.guest(record.vmid)
        if not record.through_ha or record.state is not MigrationState.DONE or record.text or ended_at is None or guest is None:
            continue
        node, known = snapshot.node(record.target), snapshot.ha.resource(record.vmid)
        if abs(now - ended_at) > PULLED_BACK_S or record.target in closed or node is None or not node.online:
            continue
        wanted = any(task.kind == REQUEST_KIND and task.vmid == record.vmid and task.started_at >= ended_at for task in snapshot.tasks)
        leaves_for = known.target if known is not None and known.state in MOVING_STATES and known.target != record.target else None
        to = guest.node if guest.node != record.target else leaves_for
        if to is not None and not wanted:
            found.append((record, to))
    return found


def partners(ha: HighAvailability, vmid: int) -> frozenset[int]:
    """The other guests that the HA manager moves along when it is asked to move this one."""
    found = {vmid}
    while True:
        more = {other for rule in ha.resource_affinity if rule.together and found & {*rule.vmids} for other in rule.vmids}
        if more <= found:
            break
        found |= more
    return frozenset(other for other in found - {vmid} if (known := ha.resource(other)) is not None and known.requested != "ignored")


def with_partners(ready: Sequence[Move], planned: Sequence[Move], snapshot: Snapshot, open_records: Iterable[Migration]) -> list[Move]:
    """What may start, each move of an HA guest followed by those of the guests that go along with it.

    A bundle starts whole, whatever slots there are, as the HA manager moves it whole. Where the plan does not bring one of them to
    the same node, none of them starts.
    """
    there = {(record.vmid, record.target) for record in open_records}
    move_of = {move.vmid: move for move in planned}
    chosen: dict[int, Move] = {}
    for move in ready:
        guest = snapshot.guest(move.vmid)
        if move.vmid in chosen:
            continue
        if guest is None or guest.ha is None:
            chosen[move.vmid] = move
            continue
        places = {vmid: snapshot.guest(vmid) for vmid in partners(snapshot.ha, move.vmid)}
        along = {
            vmid
            for vmid, other in places.items()
            if other is not None and other.ha is not None and other.node != move.target and (vmid, move.target) not in there
        }
        if all(vmid in move_of and move_of[vmid].target == move.target for vmid in along):
            chosen[move.vmid] = move
            chosen.update((vmid, move_of[vmid]) for vmid in sorted(along))
    return list(chosen.values())

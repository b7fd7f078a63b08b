# SPDX-License-Identifier: GPL-3.0-or-later
"""What was done: one record for each migration, through its states, and what follows from the records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from agent.core.cluster import MIGRATE_KINDS, Guest, GuestType, Snapshot
from agent.core.failures import FailureClass
from agent.core.guest_load import GuestLoad, InFlight
from agent.core.plan_types import Move
from agent.core.reasons import LOAD_REASONS, MoveReason


class MigrationState(StrEnum):
    """Where an attempt stands."""

    PLANNED = "planned"
    ASKED = "asked"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    LOST = "lost"


MOST_TEXT = 200  # characters of PVE's words that are kept: the rest is in the task's log

S = MigrationState
MEANING: dict[MigrationState, str] = {
    S.PLANNED: "written down as intended; nothing was asked of PVE",
    S.ASKED: "the request went out; its answer is not known",
    S.QUEUED: "handed to the HA manager, which has not begun",
    S.RUNNING: "PVE's task runs, or the HA manager is at it",
    S.DONE: "the guest is on the target",
    S.FAILED: "the guest is not on the target; the text says why",
    S.SKIPPED: "given up before anything was asked of PVE",
    S.LOST: "nobody can tell what became of it; the guest's place decides",
}
NEXT: dict[MigrationState, frozenset[MigrationState]] = {
    S.PLANNED: frozenset({S.ASKED, S.SKIPPED}),
    S.ASKED: frozenset({S.RUNNING, S.QUEUED, S.DONE, S.FAILED, S.SKIPPED, S.LOST}),
    S.QUEUED: frozenset({S.RUNNING, S.DONE, S.FAILED, S.LOST}),
    S.RUNNING: frozenset({S.DONE, S.FAILED, S.LOST}),
    S.DONE: frozenset(),
    S.FAILED: frozenset(),
    S.SKIPPED: frozenset(),
    S.LOST: frozenset({S.DONE, S.FAILED}),
}
OPEN = frozenset({S.PLANNED, S.ASKED, S.QUEUED, S.RUNNING})


@dataclass(frozen=True, slots=True)
class Migration:
    """One attempt to move one guest.

    Units:   times in Unix seconds, memory in bytes, cpu in cores; None is not yet.
    Shape:   `intent` identifies the attempt in the cluster: epoch and a running number; `through_ha` says that the HA manager
             carries it out, `along_with` is the intent of the request that takes this guest along, None for one of its own;
             `online` that the guest ran; `began_at` is when PVE was seen to be at it, `failure` the class of a failed one;
             `disk_bytes` is what is copied beside memory, `limit_kib_s` the limit that was asked for, None without one;
             `drains` is the node in maintenance that the move empties or makes room for, None for another purpose.
    """

    intent: str
    vmid: int
    type: GuestType
    name: str
    source: str
    target: str
    reason: MoveReason
    epoch: int
    memory_bytes: int
    cpu_cores: float
    gain: float
    planned_at: float
    state: MigrationState = S.PLANNED
    asked_at: float | None = None
    ended_at: float | None = None
    upid: str | None = None
    text: str = ""
    request: str | None = None
    online: bool = True
    through_ha: bool = False
    along_with: str | None = None
    began_at: float | None = None
    failure: FailureClass | None = None
    disk_bytes: int = 0
    limit_kib_s: int | None = None
    drains: str | None = None

    @property
    def is_open(self) -> bool:
        """True until the attempt has ended one way or another."""
        return self.state in OPEN

    @property
    def load(self) -> GuestLoad:
        """What the guest was expected to take when it was planned."""
        return GuestLoad(self.cpu_cores, self.memory_bytes)


def intended(
    move: Move,
    intent: str,
    epoch: int,
    now: float,
    request: str | None = None,
    *,
    through_ha: bool = False,
    along_with: str | None = None,
    drains: str | None = None,
) -> Migration:
    """The record of a move that is about to be asked for."""
    return Migration(
        intent=intent,
        vmid=move.vmid,
        type=move.type,
        name=move.name,
        source=move.source,
        target=move.target,
        reason=move.reason,
        epoch=epoch,
        memory_bytes=move.memory_bytes,
        cpu_cores=move.cpu_cores,
        gain=move.gain,
        planned_at=now,
        request=request,
        online=move.is_running,
        through_ha=through_ha,
        along_with=along_with,
        drains=drains,
        disk_bytes=move.disk_bytes,
    )


def advanced(record: Migration, state: MigrationState, now: float, *, text: str = "", upid: str | None = None) -> Migration:
    """The record in its next state.

    Raises:  ValueError for a step that `NEXT` does not know: a bug, never an outside condition.
    """
    if state not in NEXT[record.state]:
        raise ValueError(f"a migration cannot go from {record.state} to {state}")
    return replace(
        record,
        state=state,
        asked_at=now if state is S.ASKED else record.asked_at,
        began_at=now if state is S.RUNNING and record.began_at is None else record.began_at,
        ended_at=now if state not in OPEN else None,
        upid=upid or record.upid,
        text=(text or record.text)[:MOST_TEXT],
    )


def in_flight(records: Iterable[Migration]) -> tuple[InFlight, ...]:
    """The open attempts as the ledger counts them: on both nodes."""
    return tuple(
        InFlight(record.vmid, record.source, record.target, record.load)
        for record in sorted(records, key=lambda record: record.vmid)
        if record.is_open
    )


def is_load_move(record: Migration) -> bool:
    """True for moves made to even out load, which cooldowns and the hourly brake count."""
    return record.reason in LOAD_REASONS


def left_locks(snapshot: Snapshot) -> tuple[Guest, ...]:
    """Guests with the lock of a migration that no task carries out, on nodes that are there."""
    migrating = {task.vmid for task in snapshot.tasks if task.is_running and task.kind in MIGRATE_KINDS}
    online = {node.name for node in snapshot.nodes if node.online}
    return tuple(guest for guest in snapshot.guests if guest.lock == "migrate" and guest.node in online and guest.vmid not in migrating)

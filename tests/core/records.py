# SPDX-License-Identifier: GPL-3.0-or-later
"""Small builders for what was done: records of migrations and events."""

from __future__ import annotations

from agent.core.cluster import GIB, GuestType
from agent.core.events import Event, EventKind, EventSource
from agent.core.migrations import Migration, MigrationState
from agent.core.reasons import MoveReason
from tests.core.clusters import NOW


def record(vmid: int = 101, state: MigrationState = MigrationState.DONE, ago_s: float = 600.0, **other: object) -> Migration:
    """A migration from pve1 to pve2, planned so long ago; it was asked a second later and ended, if it did, ten seconds later."""
    at = NOW - ago_s
    is_over = state in (MigrationState.DONE, MigrationState.FAILED, MigrationState.LOST, MigrationState.SKIPPED)
    known: dict[str, object] = {
        "intent": f"1-{vmid}-{ago_s:.0f}",
        "type": GuestType.QEMU,
        "name": f"guest{vmid}",
        "source": "pve1",
        "target": "pve2",
        "reason": MoveReason.OVERLOAD,
        "epoch": 1,
        "memory_bytes": 4 * GIB,
        "cpu_cores": 0.5,
        "gain": 0.03,
        "planned_at": at,
        "state": state,
        "asked_at": None if state in (MigrationState.PLANNED, MigrationState.SKIPPED) else at + 1,
        "ended_at": at + 11 if is_over else None,
    }
    return Migration(vmid=vmid, **(known | other))  # type: ignore[arg-type]


def event(
    kind: EventKind = EventKind.GUEST_STARTED, vmid: int | None = 101, node: str | None = "pve1", at_s: float = 100.0, **other: object
) -> Event:
    """A hint from a node's hook."""
    return Event(kind, EventSource.HOOK, at_s, node=node, vmid=vmid, **other)  # type: ignore[arg-type]

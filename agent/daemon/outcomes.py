# SPDX-License-Identifier: GPL-3.0-or-later
"""How a migration came out, by where its guest is and whether it runs there, and the words for it."""

from __future__ import annotations

from agent.core.cluster import Guest, Snapshot
from agent.core.durations import ended_task
from agent.core.failures import Failure, FailureClass
from agent.core.history import is_success
from agent.core.journal import Level, MessageId, Record
from agent.core.migrations import Migration, MigrationState
from agent.core.sentences import migration_words
from agent.daemon.outputs import Say

CLOCK_MARGIN_S = 5.0  # between the clocks of two nodes
NO_TASK = "there is no task of it"
FORGOTTEN = "its node does not know the task any more"
SILENT = "its node has not answered for"

_STOPS = frozenset({"vzstop", "vzshutdown"})


def judged(record: Migration, guest: Guest | None, status: str, why: Failure) -> tuple[MigrationState, str]:
    """How an attempt whose task has ended came out, by where its guest is (None: nowhere), and what is said of it."""
    if guest is None:
        return MigrationState.LOST, "the guest is gone"
    if guest.node == record.target:
        return MigrationState.DONE, "" if is_success(status) else f"the guest is there, but {_said(status, why)}"
    if guest.node != record.source:
        return MigrationState.FAILED, f"the guest is on {guest.node} now"
    return MigrationState.FAILED, f"the guest stayed where it was, {_said(status, why)}"


def blamed(why: Failure, target: str, snapshot: Snapshot) -> Failure:
    """The failure as that of a target that went down meanwhile; PVE's words for it are many, and say little."""
    node = snapshot.node(target)
    if why.failure is not FailureClass.UNKNOWN or node is None or node.online:
        return why
    offline = f"{target} is offline"
    return Failure(FailureClass.NETWORK, f"{why.text}, {offline}" if why.text else offline)


def ended_unseen(record: Migration, snapshot: Snapshot, now: float) -> float | None:
    """When the attempt of a former leader ended, by what PVE's task of it took; None when that is not in the list. All in Unix seconds.

    The task's times are of its node's clock, which may be another one than the leader's.
    """
    task = ended_task(record, snapshot.tasks)
    if task is None or task.ended_at is None:
        return None
    return min(now, (record.asked_at or record.planned_at) + max(0.0, task.ended_at - task.started_at))


def _said(status: str, why: Failure) -> str:
    """PVE's words, with those of its log that say why; what the status says already is not said again. Of no task PVE says nothing."""
    if status.startswith((NO_TASK, FORGOTTEN, SILENT)):
        return status
    return "its task says: " + (why.text if status in why.text else (f"{status}, {why.text}" if why.text else status))


def has_stopped(record: Migration, guest: Guest) -> bool:
    """True for a guest that ran before and does not run now, whatever its task says; on a node that is lost nobody can tell."""
    return record.online and guest.status in ("stopped", "paused", "postmigrate", "prelaunch")


def was_stopped(record: Migration, snapshot: Snapshot) -> bool:
    """True when somebody has stopped the guest since its migration was asked for: PVE's own stop on the way is no task."""
    since = (record.asked_at or record.planned_at) - CLOCK_MARGIN_S
    return any(task.vmid == record.vmid and task.kind in _STOPS and task.started_at >= since for task in snapshot.tasks)


def not_running(record: Migration, guest: Guest) -> str:
    """That the guest does not run after its migration, where it is, and what is to be done."""
    where = f"is on {record.target}" if guest.node == record.target else f"is on {guest.node} still"
    more = "does not run" if guest.node == record.target else "does not run any more"
    if guest.status != "stopped":
        return f"{guest.label} {where} and is {guest.status}: see why, and resume or restart it there"
    return f"{guest.label} {where} {'but' if guest.node == record.target else 'and'} {more}: start it there"


def said_of(record: Migration, is_done: bool | None, text: str) -> Say:
    """The journal's record of how an attempt stands; `is_done` is None while it goes on."""
    level = {True: Level.NOTICE, False: Level.WARNING, None: Level.INFO}[is_done]
    return Say(
        Record(
            level,
            MessageId.OUTCOME,
            f"{migration_words(record)}: {text}",
            reason=record.reason.value,
            vmid=record.vmid,
            source=record.source,
            target=record.target,
            epoch=record.epoch,
        )
    )


def alarm_of(record: Migration, text: str) -> Say:
    """The journal's record of what somebody has to look after."""
    return Say(Record(Level.ERROR, MessageId.ALARM, text, vmid=record.vmid, source=record.source, target=record.target))

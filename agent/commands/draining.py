# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for a node to be empty, or for its guests to be home, with a line for each change."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from agent import wiring
from agent.commands.planning import question_of, remembered
from agent.commands.tables import counted
from agent.core.cluster import MIGRATE_KINDS, Guest, Snapshot
from agent.core.conditions import leaves_stopped
from agent.core.documents import HistoryFile
from agent.core.plan_types import Refusal
from agent.core.planner import plan as make_plan
from agent.core.reasons import MEANING, RefusalReason
from agent.core.settings import Settings
from agent.ports import PermanentError, TemporaryError

LOOK_EVERY_S = 5.0
SAME_LOOKS = 3  # so many looks in a row must say that the rest cannot leave: one alone may fall between two moves
STALL_S = 300.0  # nothing has moved and nothing migrates: nobody is at work


def wait_until_empty(settings: Settings, node: str) -> int:
    """Wait until no guest runs on the node; returns 0 then.

    Raises:  PermanentError that names those that cannot leave, or says that nobody is at work.
    """
    before: frozenset[int] | None = None
    changed_s, hopeless = time.monotonic(), 0
    while True:
        snapshot = _look(settings)
        if snapshot is not None:
            here = those_to_leave(snapshot, node, settings)
            under_way = still_leaving(snapshot, wiring.read_history(settings), node)
            if not here and not under_way:
                print(f"{node} is empty")
                return 0
            vmids = frozenset(guest.vmid for guest in here)
            if vmids != before:
                text = f"{counted(len(here), 'guest')} on {node}: {_few(here)}"
                _tell(text if here else f"the last migrations off {node} are not over yet")
            if vmids != before or _migrates(snapshot, vmids | under_way):
                before, changed_s = vmids, time.monotonic()
            stuck = who_cannot_leave(snapshot, settings, here)
            hopeless = hopeless + 1 if len(stuck) == len(here) and not under_way else 0
            if hopeless >= SAME_LOOKS:
                raise PermanentError(f"{node} is not empty: {'; '.join(stuck)}", "move or stop these by hand, or end what keeps them")
        if time.monotonic() - changed_s >= STALL_S:
            text = f"{node} is not empty, and nothing has moved for {STALL_S / 60:.0f} minutes"
            raise PermanentError(text, "the flag stays; does an agent lead? See: proxlb-agent status")
        time.sleep(LOOK_EVERY_S)


def wait_until_home(settings: Settings, node: str) -> int:
    """Wait until the guests that left the node for its maintenance are back; returns 0 then.

    Raises:  PermanentError that names those that are not.
    """
    if not settings.drain.return_home:
        _tell("drain.return_home is false: nobody comes home")
        return 0
    before: frozenset[int] | None = None
    changed_s = time.monotonic()
    while True:
        history = wiring.read_history(settings)
        away = frozenset(home.vmid for home in (history.homes if history is not None else ()) if home.home == node)
        if not away:
            print(f"all guests of {node} are home")
            return 0
        if away != before:
            _tell(f"{counted(len(away), 'guest')} of {node} away: {', '.join(str(vmid) for vmid in sorted(away)[:10])}")
            before, changed_s = away, time.monotonic()
        if any(record.is_open and record.vmid in away for record in (history.migrations if history is not None else ())):
            changed_s = time.monotonic()
        if time.monotonic() - changed_s >= STALL_S:
            shown = ", ".join(str(vmid) for vmid in sorted(away)[:10])
            text = f"not home after {STALL_S / 60:.0f} minutes without a move: guests {shown}"
            raise PermanentError(text, "proxlb-agent explain VMID says why; see also: journalctl -u proxlb-agent")
        time.sleep(LOOK_EVERY_S)


def running_on(snapshot: Snapshot, node: str) -> tuple[Guest, ...]:
    """The guests that have a process on the node: all that are not known to be stopped."""
    return tuple(guest for guest in snapshot.guests if guest.node == node and not guest.template and guest.status != "stopped")


def those_to_leave(snapshot: Snapshot, node: str, settings: Settings) -> tuple[Guest, ...]:
    """Those that run on the node, and the stopped ones that leave it, too, where the settings say so."""
    stopped = (guest for guest in snapshot.guests if guest.node == node and leaves_stopped(guest, settings))
    return tuple(sorted((*running_on(snapshot, node), *stopped), key=lambda guest: guest.vmid))


def still_leaving(snapshot: Snapshot, history: HistoryFile | None, node: str) -> frozenset[int]:
    """The guests whose migration off the node is not over, wherever they are shown.

    A container is stopped while it is moved, and a VM is shown on its target while its task still runs on the source: whoever
    reboots then ends the task, and perhaps the guest.
    """
    found = {task.vmid for task in snapshot.tasks if task.is_running and task.kind in MIGRATE_KINDS and task.node == node}
    found |= {guest.vmid for guest in snapshot.guests if guest.node == node and guest.lock == "migrate"}
    records = history.migrations if history is not None else ()
    found |= {record.vmid for record in records if record.is_open and record.source == node}
    return frozenset(vmid for vmid in found if vmid is not None)


def who_cannot_leave(snapshot: Snapshot, settings: Settings, here: Iterable[Guest]) -> list[str]:
    """Those of the guests that the planner leaves where they are, each with why."""
    plan = make_plan(snapshot, settings, question_of(settings, snapshot, remembered(settings)))
    refused = {refusal.vmid: refusal for refusal in plan.refused}
    return [
        f"{guest.label} stays: {MEANING[refusal.reason]}" + (f" ({refusal.detail})" if refusal.detail else "")
        for guest in here
        if (refusal := refused.get(guest.vmid)) is not None and not will_pass(refusal, snapshot)
    ]


_PASSES = frozenset({RefusalReason.BUSY, RefusalReason.HA_EMPTIES, RefusalReason.NODE_STARTING, RefusalReason.UNANSWERED})


def will_pass(refusal: Refusal, snapshot: Snapshot) -> bool:
    """True when what keeps the guest ends by itself and soon: a task, the boot of its node, the HA manager's own work, a question."""
    if refusal.reason is RefusalReason.HA_BUSY:
        resource = snapshot.ha.resource(refusal.vmid)
        return resource is not None and not snapshot.ha.disarmed and resource.target is not None
    return refusal.reason in _PASSES or (refusal.reason is RefusalReason.LOCKED and refusal.detail == "migrate")


def _look(settings: Settings) -> Snapshot | None:
    """The cluster now; None when it cannot be looked at just now, as the node that answers may be the one that reboots."""
    try:
        return wiring.look(settings)
    except TemporaryError as error:
        _tell(f"cannot look now: {error}")
        return None


def _migrates(snapshot: Snapshot, vmids: frozenset[int]) -> bool:
    return any(task.is_running and task.kind in MIGRATE_KINDS and task.vmid in vmids for task in snapshot.tasks)


def _few(guests: tuple[Guest, ...]) -> str:
    shown = ", ".join(guest.label for guest in guests[:10])
    return shown if len(guests) <= 10 else f"{shown} and {len(guests) - 10} more"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

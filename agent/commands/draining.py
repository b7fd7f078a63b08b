# SPDX-License-Identifier: GPL-3.0-or-later
"""Waiting for a node to be empty, or for its guests to be home: how far that has come, and who stays, why, and what helps."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from typing import NoReturn

from agent import wiring
from agent.commands.planning import Remembered, asker, checked_plan, question_of, remembered, timings_in
from agent.commands.progress import Teller, teller
from agent.commands.tables import counted, few
from agent.core import history as memory
from agent.core.aside import passing
from agent.core.cluster import MIGRATE_KINDS, Guest, Snapshot
from agent.core.conditions import leaves_stopped
from agent.core.documents import HistoryFile
from agent.core.homes import return_of, return_words
from agent.core.others import arriving
from agent.core.plan_types import Move, Plan, Refusal, Verdict, drained_by
from agent.core.progress import copied_bytes, progress_of, time_left_s
from agent.core.reasons import MEANING, RefusalReason
from agent.core.remedies import remedy_of
from agent.core.settings import Mode, Settings
from agent.daemon.inputs import Now
from agent.daemon.permission import why_only_observe
from agent.ports import PermanentError, TemporaryError

LOOK_EVERY_S = 5.0
SAME_LOOKS = 3  # so many looks in a row must say that the rest cannot leave: one alone may fall between two moves
STALL_S = 300.0  # nothing has moved and nothing migrates: nobody is at work
VERDICT_S = 60.0  # PVE is asked again whether a guest may leave after so long

_PASSES = frozenset({RefusalReason.BUSY, RefusalReason.HA_EMPTIES, RefusalReason.NODE_STARTING, RefusalReason.UNANSWERED})


def wait_until_empty(settings: Settings, node: str) -> int:
    """Wait until no guest runs on the node; returns 0 then.

    Raises:  PermanentError when somebody stays; each of them was named then, with why and what helps. The same when nobody is at work.
    """
    with teller(f"emptying {node}") as told:
        _Emptying(settings, node, told).wait()
        told.answer(f"{node} is empty")
    return 0


class _Emptying:
    """The wait for the leader to empty the node. `here` are those that should leave, `refused` why some of them do not, by VMID, of
    which `stays` are those for whom waiting does not help."""

    def __init__(self, settings: Settings, node: str, told: Teller) -> None:
        self._settings, self._node, self._told = settings, node, told
        self._here: tuple[Guest, ...] = ()
        self._refused: dict[int, Refusal] = {}
        self._stays: dict[int, Refusal] = {}
        self._sizes: dict[int, int] = {}
        self._verdicts: dict[int, Verdict] = {}
        self._before: frozenset[int] | None = None
        self._changed_s = time.monotonic()
        self._hopeless = 0
        self._said = self._failure = ""

    def wait(self) -> None:
        """Return when the node is empty. Raises as `wait_until_empty`."""
        while True:
            snapshot = self._look()
            if snapshot is not None and self._is_empty(snapshot):
                return
            if time.monotonic() - self._changed_s >= STALL_S:
                self._give_up(f"nothing has moved for {STALL_S / 60:.0f} minutes; does an agent lead? See: proxlb-agent status")
            self._told.wait(LOOK_EVERY_S)

    def _look(self) -> Snapshot | None:
        """The cluster now; None when it cannot be looked at just now, as the node that answers may be the one that reboots."""
        try:
            snapshot = wiring.look(self._settings)
        except TemporaryError as error:
            if str(error) != self._failure:
                self._told.say(f"cannot look now: {error}")
            self._failure = str(error)
            return None
        self._failure = ""
        return snapshot

    def _is_empty(self, snapshot: Snapshot) -> bool:
        known = remembered(self._settings)
        history = known.history
        here = self._here = those_to_leave(snapshot, self._node, self._settings)
        leaving = still_leaving(snapshot, history, self._node)
        coming = still_coming(snapshot, history, self._node)
        if not here and not leaving and not coming:
            return True
        vmids = frozenset(guest.vmid for guest in here)
        moves = bool(leaving) or _migrates(snapshot, vmids | coming)
        plan = self._planned(snapshot, known, ask=not moves)
        self._refused = refused = {refusal.vmid: refusal for refusal in plan.refused if refusal.vmid in vmids - leaving}
        soon = passing(history, snapshot.taken_at) if history is not None else frozenset()
        self._stays = {vmid: refusal for vmid, refusal in refused.items() if vmid not in soon and not will_pass(refusal, snapshot)}
        self._show(snapshot, history, plan, leaving, coming)
        waits = self._waits_for_all(snapshot, known)
        if vmids != self._before or moves or waits:
            self._before, self._changed_s = vmids, time.monotonic()
        self._hopeless = self._hopeless + 1 if len(self._stays) == len(here) and not moves and not coming else 0
        if self._hopeless >= SAME_LOOKS:
            self._give_up("")
        return False

    def _planned(self, snapshot: Snapshot, known: Remembered, *, ask: bool) -> Plan:
        """What the leader would do now; PVE itself is asked only while nothing moves, as the leader asks it before each move."""
        now = snapshot.taken_at
        self._verdicts = {vmid: verdict for vmid, verdict in self._verdicts.items() if abs(now - verdict.asked_at) < VERDICT_S}

        def asked(guest: Guest | Move, node: str) -> Verdict:
            self._verdicts[guest.vmid] = asker(self._settings, snapshot)(guest, node)
            return self._verdicts[guest.vmid]

        question = replace(question_of(self._settings, snapshot, known), verdicts=dict(self._verdicts))
        return checked_plan(snapshot, self._settings, question, asked if ask else None)

    def _show(self, snapshot: Snapshot, history: HistoryFile | None, plan: Plan, leaving: Collection[int], coming: Collection[int]) -> None:
        for guest in self._here:
            self._sizes[guest.vmid] = max(copied_bytes(guest), self._sizes.get(guest.vmid, 0))
        for vmid in leaving:
            self._sizes.setdefault(vmid, 0)
        vmids = {guest.vmid for guest in self._here}
        moves = [move for move in plan.moves if drained_by(move, plan.moves) == self._node]
        records = [record for record in memory.open_migrations(history) if record.source == self._node] if history is not None else []
        is_known = vmids <= {move.vmid for move in moves} | {record.vmid for record in records} | self._stays.keys()
        left_s = time_left_s(moves, records, timings_in(history), wiring.in_slots(self._settings), snapshot.taken_at) if is_known else None
        text = f"{counted(len(vmids), 'guest')} on {self._node}: {few([guest.label for guest in self._here], 10)}"
        if not vmids:
            text = f"the last migrations off {self._node} are not over yet"
        if not vmids and not leaving:
            text = f"on the way to {self._node}: {counted(len(coming), 'guest')}: {few([str(vmid) for vmid in sorted(coming)], 10)}"
        self._told.show(progress_of(self._sizes, vmids | set(leaving), left_s), text)

    def _waits_for_all(self, snapshot: Snapshot, known: Remembered) -> bool:
        """Say why nobody is moved at all, if that is so; true when it ends by itself. Raises when the settings say so."""
        paused, history = known.paused, known.history
        now = Now(boot_s=0.0, wall_s=snapshot.taken_at)
        why = why_only_observe(self._settings, snapshot, history or memory.empty(snapshot.taken_at), now, paused)
        if why is None:
            return False
        if self._settings.mode in (Mode.OFF, Mode.OBSERVE):
            self._give_up(f"{why}, so nobody moves its guests")
        if why.partition(" for ")[0] != self._said:
            self._said = why.partition(" for ")[0]
            self._told.say(f"nobody is moved at present: {why}")
        return not snapshot.unseen and (paused is None or paused.until is not None)

    def _give_up(self, why: str) -> NoReturn:
        for guest in self._here:
            name = f"{guest.label} {guest.name}".rstrip()
            refusal = self._refused.get(guest.vmid)
            if refusal is None:
                self._told.answer(f"{name} has not left yet; nothing is known to keep it")
            else:
                detail = f" ({refusal.detail})" if refusal.detail else ""
                self._told.answer(f"{name} stays: {MEANING[refusal.reason]}{detail}\n  what helps: {remedy_of(refusal, guest)}")
        count = len(self._here)
        text = f"{self._node} is not empty: {counted(count, 'guest')} still there" + (f", and {why}" if why else "")
        hint = f"the node stays in maintenance; to end that: proxlb-agent maintenance leave {self._node}"
        raise PermanentError(text, hint)


def wait_until_home(settings: Settings, node: str) -> int:
    """Wait until the guests that left the node for its maintenance are back; returns 0 then.

    Raises:  PermanentError that names those that are not.
    """
    with teller(f"guests come home to {node}") as told:
        if not settings.drain.return_home:
            told.say("drain.return_home is false: nobody comes home")
            return 0
        waited_for = _wait_until_home(settings, node, told)
        told.answer(_came_home(settings, node, waited_for) if waited_for else f"no guest of {node} is away")
    return 0


def _came_home(settings: Settings, node: str, vmids: Collection[int]) -> str:
    """What became of those who were waited for, by where they are."""
    places = {guest.vmid: guest.node for guest in wiring.look(settings).guests}
    return return_words(return_of(node, vmids, places))


def _wait_until_home(settings: Settings, node: str, told: Teller) -> Collection[int]:
    """Wait; returns the guests that were waited for."""
    before: frozenset[int] | None = None
    changed_s = time.monotonic()
    sizes: dict[int, int] = {}
    while True:
        history = wiring.read_history(settings)
        away = frozenset(home.vmid for home in (history.homes if history is not None else ()) if home.home == node)
        if not away:
            return sizes
        sizes |= dict.fromkeys(away, 0)
        names = [str(vmid) for vmid in sorted(away)]
        told.show(progress_of(sizes, away, None), f"{counted(len(away), 'guest')} of {node} away: {few(names, 10)}")
        moves = any(record.is_open and record.vmid in away for record in (history.migrations if history is not None else ()))
        if away != before or moves:
            before, changed_s = away, time.monotonic()
        if time.monotonic() - changed_s >= STALL_S and _migrates(wiring.look(settings), away):  # by the HA manager
            changed_s = time.monotonic()
        if time.monotonic() - changed_s >= STALL_S:
            text = f"not home after {STALL_S / 60:.0f} minutes without a move: guests {few(names, 10)}"
            raise PermanentError(text, "proxlb-agent explain VMID says why; see also: journalctl -u proxlb-agent")
        told.wait(LOOK_EVERY_S)


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


def still_coming(snapshot: Snapshot, history: HistoryFile | None, node: str) -> frozenset[int]:
    """The guests on their way to the node, or about to be brought there by the HA manager: they will run there in a moment."""
    return frozenset(arriving(snapshot, memory.open_migrations(history) if history is not None else ()).get(node, ()))


def will_pass(refusal: Refusal, snapshot: Snapshot) -> bool:
    """True when what keeps the guest ends by itself and soon: a task, the boot of its node, the HA manager's own work, a question."""
    if refusal.reason is RefusalReason.HA_BUSY:
        resource = snapshot.ha.resource(refusal.vmid)
        return resource is not None and not snapshot.ha.disarmed and resource.target is not None
    return refusal.reason in _PASSES or (refusal.reason is RefusalReason.LOCKED and refusal.detail == "migrate")


def _migrates(snapshot: Snapshot, vmids: Collection[int]) -> bool:
    return any(task.is_running and task.kind in MIGRATE_KINDS and task.vmid in vmids for task in snapshot.tasks)

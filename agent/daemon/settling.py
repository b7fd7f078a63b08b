# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of the migrations: kept for later decisions, and told where a person should know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agent.core import aside, homes
from agent.core.calibration import calibrated, with_arrivals
from agent.core.cluster import GuestType, Snapshot
from agent.core.durations import bounded as bounded_timings
from agent.core.durations import timing_of
from agent.core.failures import PASSING, TREATMENT, FailureClass, Treatment, remedy
from agent.core.ha_moves import pulled_back
from agent.core.journal import Level, MessageId, Record
from agent.core.known_loads import ledger_of
from agent.core.leadership import Leadership
from agent.core.migrations import Migration, MigrationState, left_locks
from agent.core.sentences import migration_words
from agent.core.settings import Settings
from agent.daemon.agenda import RETRY_S, Agenda
from agent.daemon.chronicle import Chronicle
from agent.daemon.follow import Follow
from agent.daemon.inputs import MigrationAnswer, Now, SearchAnswer, StartAnswer, TaskAnswer
from agent.daemon.outputs import Output, Say, StartGuest
from agent.daemon.verdicts import Verdicts

LEFT_LOCK_S = 30.0  # a lock of a migration that nobody carries out: PVE takes it back within seconds after a task's end


class Settling:
    """Closes attempts, and draws from each what the next decisions rest on.

    Shape:   `has_failed` says that one failed since the last trigger was answered.
    """

    def __init__(self, chronicle: Chronicle, follow: Follow, verdicts: Verdicts, agenda: Agenda) -> None:
        self._chronicle = chronicle
        self._follow = follow
        self._verdicts = verdicts
        self._agenda = agenda
        self._locked_since_s: dict[int, float] = {}
        self.has_failed = False

    def on_answer(self, answer: MigrationAnswer | TaskAnswer | SearchAnswer, settings: Settings, now: Now) -> list[Output]:
        """Take an answer about a migration under way."""
        records = self._chronicle.history.migrations
        if isinstance(answer, SearchAnswer) and any(record.upid == answer.upid and record.intent != answer.intent for record in records):
            answer = replace(answer, upid=None)  # the newest task is that of a former attempt: of this one there is none
        changed, outputs = self._follow.on_answer(answer, settings, now)
        self._chronicle.record(changed)
        for record in changed:
            if record.state is MigrationState.FAILED:
                self._failed(record, now)
        return outputs

    def on_look(self, seen: Snapshot, enriched: Snapshot, settings: Settings, now: Now) -> list[Output]:
        """Close what has ended, by where the guests are.

        Shape:   `seen` is what PVE answered, `enriched` the same with what the leader knows beside it.
        """
        changed, outputs = self._follow.settle(seen, settings, now)
        self._chronicle.record(changed)
        arrived: list[Migration] = []
        for record in changed:
            if record.state is MigrationState.DONE:
                self._chronicle.history = homes.with_success(self._chronicle.history, record)
                self._time(record, seen)
                self._verdicts.forget(record.vmid)  # that was asked of the node it has left
                self._agenda.landed(now)
                arrived.append(record)
            elif record.state in (MigrationState.FAILED, MigrationState.LOST):
                self._failed(record, now)
        if arrived:
            ledger = ledger_of(enriched, self._chronicle.history, self._follow.records, now.wall_s)
            self._chronicle.history = with_arrivals(self._chronicle.history, arrived, enriched, ledger, settings)
        return outputs + self._pulled_back(seen, now)

    def _time(self, record: Migration, snapshot: Snapshot) -> None:
        """Keep what the migration took, for the next ones to be foretold."""
        timing, history = timing_of(record, snapshot.tasks), self._chronicle.history
        if timing is not None:
            self._chronicle.history = replace(history, timings=bounded_timings((*history.timings, timing)))

    def _failed(self, record: Migration, now: Now) -> None:
        failure = record.failure or FailureClass.UNKNOWN
        where = record.source if record.state is MigrationState.FAILED else ""
        text, history = record.text or record.state.value, self._chronicle.history
        self._chronicle.history = aside.with_failure(history, record.vmid, failure, text, now.wall_s, node=where, target=record.target)
        if TREATMENT[failure] in PASSING:
            again_s = now.boot_s + aside.next_try_s(self._chronicle.history, record.vmid, now.wall_s) + 1.0
            self._agenda.retry(again_s, [record.drains] if record.drains is not None else ())
        self._verdicts.forget(record.vmid)
        self.has_failed |= TREATMENT[failure] is not Treatment.LOOK_AGAIN
        self._agenda.wish_look(now.boot_s + RETRY_S)

    def _pulled_back(self, snapshot: Snapshot, now: Now) -> list[Output]:
        """Guests that the HA manager does not leave where they were brought: they are not sent there again for a while."""
        outputs: list[Output] = []
        for record, node in pulled_back(self._chronicle.history.migrations, snapshot, now.wall_s):
            text = f"the HA manager takes it from {record.target} to {node} again"
            self._chronicle.record([replace(record, text=text)])
            history = self._chronicle.history
            self._chronicle.history = aside.with_failure(history, record.vmid, FailureClass.HA_REJECTED, text, now.wall_s)
            said = f"{migration_words(record)}: {text}; it is left alone for a while (see the HA rules)"
            outputs.append(
                Say(
                    Record(
                        Level.WARNING,
                        MessageId.OUTCOME,
                        said,
                        reason=record.reason.value,
                        vmid=record.vmid,
                        source=record.target,
                        target=node,
                        epoch=record.epoch,
                    )
                )
            )
        return outputs

    def calibrate(self, snapshot: Snapshot, settings: Settings, now: Now) -> None:
        """Measure what guests take that have moved some minutes ago."""
        self._chronicle.history = calibrated(self._chronicle.history, snapshot, now.wall_s, settings)

    def start_left(self, lead: Leadership) -> list[Output]:
        """Start the containers that PVE has not started again after their migrations."""
        left, self._follow.to_start = self._follow.to_start, []
        outputs: list[Output] = []
        for record, node in left:
            text = f"{migration_words(record)}: it is on {node} and does not run, as PVE could not start it again: starting it"
            said = Record(Level.WARNING, MessageId.OUTCOME, text, vmid=record.vmid, source=record.source, target=record.target)
            outputs += [Say(said), StartGuest(record.vmid, record.type, node, self._chronicle.leader, lead.lease_until_s)]
        return outputs

    def reconsider(self, snapshot: Snapshot, digests: Mapping[int, str], now: Now) -> list[Output]:
        """Let go of guests set aside for whom somebody has done something, and keep those on which a migration left its lock.

        Shape:   `digests` are of the configurations of guests set aside, by VMID.
        """
        self._chronicle.history, released = aside.reconsidered(self._chronicle.history, snapshot, digests)
        outputs: list[Output] = []
        for vmid, why in sorted(released.items()):
            self._verdicts.forget(vmid)
            text = f"guest {vmid} is no longer set aside: {why}"
            outputs.append(Say(Record(Level.INFO, MessageId.OUTCOME, text, vmid=vmid)))
        return outputs + self._left_locks(snapshot, now)

    def _left_locks(self, snapshot: Snapshot, now: Now) -> list[Output]:
        outputs: list[Output] = []
        ours = {record.vmid for record in self._chronicle.history.migrations if not record.is_open and record.asked_at is not None}
        busy = {record.vmid for record in self._follow.records}
        left = [guest for guest in left_locks(snapshot) if guest.vmid in ours - busy]
        self._locked_since_s = {guest.vmid: self._locked_since_s.get(guest.vmid, now.boot_s) for guest in left}
        for guest in left:
            if now.boot_s - self._locked_since_s[guest.vmid] < LEFT_LOCK_S:
                self._agenda.wish_look(now.boot_s + RETRY_S)
            elif not aside.has_left_lock(self._chronicle.history, guest.vmid):
                self._chronicle.history = aside.with_left_lock(self._chronicle.history, guest)
                text = f"a migration has left its lock on {guest.label} on {guest.node}, and nothing migrates it"
                hint = remedy(FailureClass.LOCKED, guest.vmid, guest.type is GuestType.QEMU)
                outputs.append(Say(Record(Level.ERROR, MessageId.ALARM, f"{text}; {hint}", vmid=guest.vmid, source=guest.node)))
        return outputs


def start_failed(answer: StartAnswer) -> list[Output]:
    """PVE did not take the request to start a guest: whether it runs is looked at all the same."""
    if not answer.error:
        return []
    text = f"guest {answer.vmid} could not be started: {answer.error}"
    return [Say(Record(Level.WARNING, MessageId.OUTSIDE, text, vmid=answer.vmid))]

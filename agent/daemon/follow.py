# SPDX-License-Identifier: GPL-3.0-or-later
"""Migrations under way: asks how they stand, and settles them by where the guest is, not by what a task says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.core.cluster import MIGRATE_KINDS, Guest, GuestType, Snapshot
from agent.core.failures import Failure, FailureClass, understood
from agent.core.ha_moves import REQUEST_KIND, Course, sight
from agent.core.history import is_success
from agent.core.migrations import OPEN, Migration, MigrationState, advanced
from agent.core.settings import Settings
from agent.daemon.ha_looks import HA_LOOK_S, RUNS_AGAIN_S, HaLooks
from agent.daemon.inputs import MigrationAnswer, Now, PostOutcome, SearchAnswer, TaskAnswer
from agent.daemon.outcomes import (
    CLOCK_MARGIN_S,
    FORGOTTEN,
    NO_TASK,
    SILENT,
    alarm_of,
    blamed,
    ended_unseen,
    has_stopped,
    judged,
    not_running,
    said_of,
    was_stopped,
)
from agent.daemon.outputs import AskTask, Output, SearchMigration

POLL_S = 5.0
DOUBT_S = 60.0  # an intent without a task is in doubt for so long
STATISTICS_S = 20.0  # two rounds of pvestatd: before, a guest may run and not be shown
STARTED_S = 60.0  # a start that was asked for has come to nothing after that: pvestatd's round, and a container's own time
SILENT_S = 600.0  # a task whose node has not answered for so long is lost; where the guest is decides


class Follow:
    """The open attempts of this lead, those taken over from a former leader included."""

    def __init__(self, taken_over: Iterable[Migration], now: Now) -> None:
        self._open: dict[str, Migration] = {record.intent: record for record in taken_over}
        for record in self.records:
            if record.state is MigrationState.ASKED and record.along_with is not None and record.along_with not in self._open:
                self._open[record.intent] = advanced(record, MigrationState.QUEUED, now.wall_s)  # where it is decides
        self._began_s: dict[str, float] = dict.fromkeys(self._open, now.boot_s)
        self._ended: dict[str, str] = {}
        self._why: dict[str, Failure] = {}
        self._ended_s: dict[str, float] = {}
        self._asked_s: dict[str, float] = {}
        self._waiting: set[str] = set()
        self._silent_since_s: dict[str, float] = {}
        self._adopted = set(self._open)
        self._unsent: set[str] = set()  # of those, the ones that PVE knows nothing of
        self._ha = HaLooks()
        self._told_to_start_s: dict[str, float] = {}
        self.to_start: list[tuple[Migration, str]] = []
        self.look_at_s: float | None = now.boot_s if self._open else None

    @property
    def records(self) -> tuple[Migration, ...]:
        """The attempts that have not ended, by VMID."""
        return tuple(sorted(self._open.values(), key=lambda record: record.vmid))

    @property
    def is_asking(self) -> bool:
        """True while a request to migrate that went out, or is about to, has no answer."""
        return any(record.state is MigrationState.ASKED and record.intent in self._waiting for record in self._open.values())

    def next_outputs(self, now: Now) -> list[Output]:
        """Questions about attempts that are due."""
        outputs: list[Output] = []
        for record in self.records:
            if record.intent in self._waiting or now.boot_s < self._due_s(record):
                continue
            self._asked_s[record.intent] = now.boot_s
            if record.upid is not None and self._has_task_to_ask(record):
                self._waiting.add(record.intent)
                outputs.append(AskTask(record.intent, record.upid))
            elif self._must_be_searched(record):
                self._waiting.add(record.intent)
                outputs.append(SearchMigration(record.intent, record.vmid, record.source, record.planned_at - CLOCK_MARGIN_S))
        return outputs

    @staticmethod
    def _has_task_to_ask(record: Migration) -> bool:
        """True for an attempt whose own task tells more: of a move of the HA manager, only whether the request was queued."""
        if record.through_ha:
            return record.state is MigrationState.ASKED and record.upid is not None
        return record.state is MigrationState.RUNNING

    def _must_be_searched(self, record: Migration) -> bool:
        """True for an attempt that may have been asked for without anybody knowing its task."""
        if record.along_with is not None or record.upid is not None:
            return False
        is_adopted = record.intent in self._adopted
        return (record.state is MigrationState.ASKED and (bool(record.text) or is_adopted)) or (
            record.state is MigrationState.PLANNED and is_adopted
        )

    def on_log(self, upids: Iterable[str]) -> None:
        """The cluster log says that these tasks have ended: they are asked about at once, as a hint only says where to look."""
        told = frozenset(upids)
        for record in self.records if told else ():
            if record.upid in told and record.intent not in self._ended:
                self._asked_s.pop(record.intent, None)

    def next_wakeup_s(self) -> float:
        """When the next question is due."""
        waiting = [self._due_s(record) for record in self.records if record.intent not in self._waiting]
        return min(waiting, default=float("inf"))

    def _due_s(self, record: Migration) -> float:
        if record.intent in self._ended or _is_followed_by_looks(record):
            return float("inf")
        return self._asked_s.get(record.intent, -1e9) + POLL_S

    # acts

    def ask(self, record: Migration, now: Now) -> Migration:
        """The request is about to go out."""
        asked = advanced(record, MigrationState.ASKED, now.wall_s)
        self._open[record.intent] = asked
        self._began_s[record.intent] = now.boot_s
        if record.along_with is None:
            self._waiting.add(record.intent)
        return asked

    def skipped(self, records: Iterable[Migration], why: str, now: Now) -> list[Migration]:
        """Nothing was asked of PVE for these."""
        return [advanced(record, MigrationState.SKIPPED, now.wall_s, text=why) for record in records]

    def on_answer(
        self, answer: MigrationAnswer | TaskAnswer | SearchAnswer, settings: Settings, now: Now
    ) -> tuple[list[Migration], list[Output]]:
        """Take an answer; returns the records it changed and what to say."""
        self._waiting.discard(answer.intent)
        record = self._open.get(answer.intent)
        if record is None:
            return [], []
        if isinstance(answer, MigrationAnswer):
            return self._on_post(record, answer, now)
        if isinstance(answer, SearchAnswer):
            return self._on_search(record, answer, now)
        return self._on_task(record, answer, settings, now)

    def _on_post(self, record: Migration, answer: MigrationAnswer, now: Now) -> tuple[list[Migration], list[Output]]:
        self._asked_s[record.intent] = now.boot_s
        if record.state is MigrationState.PLANNED:  # written down by a former leader, asked for, and answered only now
            record = advanced(record, MigrationState.ASKED, now.wall_s)
        match answer.outcome:
            case PostOutcome.STARTED:
                return self._put(_under_way(record, answer.upid or "", now, is_found=False), now), []
            case PostOutcome.REFUSED:
                failed = advanced(record, MigrationState.FAILED, now.wall_s, text=answer.text)
                why = understood(answer.text).failure
                return self._put(replace(failed, failure=why), now), [said_of(record, False, answer.text)]
            case PostOutcome.NOT_SENT:
                skipped = advanced(record, MigrationState.SKIPPED, now.wall_s, text=answer.text)
                self._wish_look(now.boot_s + POLL_S)
                return self._put(skipped, now), [said_of(record, False, f"not started: {answer.text}")]
        text = f"no answer to the request ({answer.text}): looking for its task before anything else is tried"
        return self._put(replace(record, text=answer.text or "no answer"), now), [said_of(record, None, text)]

    def _on_search(self, record: Migration, answer: SearchAnswer, now: Now) -> tuple[list[Migration], list[Output]]:
        if record.state not in (MigrationState.PLANNED, MigrationState.ASKED):
            return [], []  # the answer to the request itself, long given up, came after all
        if answer.upid is not None:
            if record.state is MigrationState.PLANNED:
                record = advanced(record, MigrationState.ASKED, now.wall_s)
            found = replace(_under_way(record, answer.upid, now, is_found=True), text="")
            return self._put(found, now), [said_of(record, None, "found under way")]
        if answer.error:
            if (silent := self._silence(record, now)) is not None:
                self._end(record, silent, now)
            return [], []
        self._silent_since_s.pop(record.intent, None)
        if now.boot_s - self._began_s.get(record.intent, now.boot_s) < DOUBT_S:
            return [], []  # counted on this node's own clock: nobody sets that back
        if record.state is not MigrationState.PLANNED and record.intent in self._adopted:
            self._unsent.add(record.intent)
        self._end(record, NO_TASK, now)
        return [], []

    def _on_task(self, record: Migration, answer: TaskAnswer, settings: Settings, now: Now) -> tuple[list[Migration], list[Output]]:
        if record.through_ha:
            return self._on_request_task(record, answer, now)
        if answer.error and answer.is_known:
            if (silent := self._silence(record, now)) is not None:
                self._end(record, silent, now)
            return [], []
        self._silent_since_s.pop(record.intent, None)
        if not answer.is_known:
            self._end(record, FORGOTTEN, now)
        elif answer.exit_status is not None:
            self._end(record, answer.exit_status, now, answer.log)
        elif record.asked_at is not None and now.wall_s - record.asked_at > settings.migration.timeout_s and not record.text:
            text = f"runs for longer than {settings.migration.timeout_s:g} s; it is not interfered with"
            return self._put(replace(record, text=text), now), [said_of(record, None, text)]
        return [], []

    def _on_request_task(self, record: Migration, answer: TaskAnswer, now: Now) -> tuple[list[Migration], list[Output]]:
        """The task that queues a request at the HA manager: its OK moves nobody, and its failure may have queued it all the same."""
        if record.state is not MigrationState.ASKED:
            return [], []
        has_ended = answer.exit_status is not None or not answer.is_known
        silent_since_s = self._silent_since_s.setdefault(record.intent, now.boot_s)
        if not has_ended and (not answer.error or now.boot_s - silent_since_s < DOUBT_S):
            return [], []
        is_queued = answer.exit_status is None or is_success(answer.exit_status)
        self._began_s[record.intent] = now.boot_s
        self._wish_look(now.boot_s + HA_LOOK_S)
        queued = advanced(record, MigrationState.QUEUED, now.wall_s, text="" if is_queued else answer.exit_status or "")
        return self._put(queued, now), [said_of(queued, None, "handed to the HA manager" if is_queued else queued.text)]

    def _silence(self, record: Migration, now: Now) -> str | None:
        """Why no answer about the attempt is waited for any more, None while one is."""
        silent_s = now.boot_s - self._silent_since_s.setdefault(record.intent, now.boot_s)
        return f"{SILENT} {silent_s:.0f} s" if silent_s >= SILENT_S else None

    def _end(self, record: Migration, status: str, now: Now, log: tuple[str, ...] = ()) -> None:
        self._ended[record.intent] = status
        self._why[record.intent] = understood(status, log)
        self._ended_s[record.intent] = now.boot_s
        self._wish_look(now.boot_s)

    def _wish_look(self, at_s: float) -> None:
        self.look_at_s = at_s if self.look_at_s is None else min(at_s, self.look_at_s)

    # the guest's place decides

    def settle(self, snapshot: Snapshot, settings: Settings, now: Now) -> tuple[list[Migration], list[Output]]:
        """Close the attempts whose task has ended, and those the HA manager carries out, by where their guest is."""
        self.look_at_s = None
        changed: list[Migration] = []
        outputs: list[Output] = []
        migrating = {task.vmid for task in snapshot.tasks if task.is_running and task.kind in MIGRATE_KINDS}
        for record in self.records:
            if _is_followed_by_looks(record):
                if record.intent in self._open:  # else it has been settled together with another one
                    records, said = self._settle_ha_move(self._open[record.intent], snapshot, settings, now)
                    changed += records
                    outputs += said
                continue
            status = self._ended.get(record.intent)
            if status is None:
                continue
            if record.vmid in migrating:
                self._wish_look(now.boot_s + POLL_S)  # the task list lags behind, or somebody moves it again
                continue
            guest = snapshot.guest(record.vmid)
            if (never := self._never_began(record, guest, status)) is not None:
                changed += self._put(advanced(record, MigrationState.SKIPPED, now.wall_s, text=never), now)
                outputs.append(said_of(record, None, never))
                continue
            why = blamed(self._why.get(record.intent, Failure(FailureClass.UNKNOWN)), record.target, snapshot)
            state, text = judged(record, guest, status, why)
            waited_s = now.boot_s - self._ended_s.get(record.intent, now.boot_s)
            if state in (MigrationState.DONE, MigrationState.FAILED) and guest is not None and has_stopped(record, guest):
                if self._is_being_started(record, guest, status, snapshot, now) or waited_s < RUNS_AGAIN_S:
                    self._wish_look(now.boot_s + POLL_S)
                    continue
                outputs.append(alarm_of(record, not_running(record, guest)))
            ended_at = ended_unseen(record, snapshot, now.wall_s) if record.intent in self._adopted else None
            # One that was only written down, and has come to pass: PVE has forgotten it, or the HA manager has recovered the guest there.
            asked = advanced(record, MigrationState.ASKED, record.planned_at) if record.state is MigrationState.PLANNED else record
            records, said = self._closed(asked, state, text, now, why.failure, ended_at)
            changed += records
            outputs += said
        if self._ha.is_watching(now) or any(_is_followed_by_looks(record) for record in self.records):
            self._wish_look(now.boot_s + HA_LOOK_S)
        return changed, outputs

    def _never_began(self, record: Migration, guest: Guest | None, status: str) -> str | None:
        """Why a former leader's attempt, of which there is no task, is nothing but given up; None where it is judged like any other."""
        where = None if guest is None else guest.node
        if record.state is MigrationState.PLANNED and where != record.target:
            return "the former leader did not start it" if status == NO_TASK else status
        if record.intent in self._unsent and where == record.source:
            return "the former leader's request for it never got to PVE: it is looked at anew"
        return None

    def _is_being_started(self, record: Migration, guest: Guest, status: str, snapshot: Snapshot, now: Now) -> bool:
        """True while a start that was asked for may still bring the guest up; one that PVE has left stopped is asked for once.

        PVE starts a container again at the end of its migration, and says so when it could not. Where it says that all went well, or
        somebody has stopped the container since, it is stopped as somebody wants it so.
        """
        told_s = self._told_to_start_s.get(record.intent)
        if told_s is not None:
            return now.boot_s - told_s < STARTED_S
        is_left = record.type is GuestType.LXC and guest.status == "stopped" and guest.lock is None and not is_success(status)
        if not is_left or was_stopped(record, snapshot):
            return False
        if now.boot_s - self._ended_s.get(record.intent, now.boot_s) < STATISTICS_S:
            return True
        self._told_to_start_s[record.intent] = now.boot_s
        self.to_start.append((record, guest.node))
        return True

    def _closed(
        self,
        record: Migration,
        state: MigrationState,
        text: str,
        now: Now,
        failure: FailureClass | None = None,
        ended_at: float | None = None,
    ) -> tuple[list[Migration], list[Output]]:
        """The attempt is over, and what is said of it; `ended_at` None: now."""
        ended_at = now.wall_s if ended_at is None else ended_at
        took_s = ended_at - (record.asked_at or record.planned_at)
        done = state is MigrationState.DONE
        how = "done" if done else "failed"
        if took_s >= 0:  # else the clock was set back meanwhile
            how += f" {'in' if done else 'after'} {took_s:.0f} s"
        closed = advanced(replace(record, text=""), state, ended_at, text=text)
        if state is MigrationState.FAILED:
            closed = replace(closed, failure=failure or understood(text).failure)
        return self._put(closed, now), [said_of(record, done, how + (f": {text}" if text else ""))]

    def _settle_ha_move(self, record: Migration, snapshot: Snapshot, settings: Settings, now: Now) -> tuple[list[Migration], list[Output]]:
        """Take one look at a move that the HA manager carries out."""
        waited_s = now.boot_s - self._began_s.setdefault(record.intent, now.boot_s)
        seen = sight(record, snapshot, waited_s)
        ended = self._ha.ended(record, seen, waited_s, now)
        if ended is None:
            return self._moves(record, waited_s, settings, now) if seen.course is Course.MOVES else ([], [])
        closed, said = self._closed(record, *ended, now)
        guest = snapshot.guest(record.vmid)
        if seen.course is Course.DOES_NOT_RUN and guest is not None and not guest.is_running:
            said = [alarm_of(record, f"{guest.label} is on {record.target} but does not run: start it there"), *said]
        return closed, said

    def _moves(self, record: Migration, waited_s: float, settings: Settings, now: Now) -> tuple[list[Migration], list[Output]]:
        if record.state is MigrationState.QUEUED:
            running = replace(advanced(record, MigrationState.RUNNING, now.wall_s), text="")
            return self._put(running, now), [said_of(running, None, "the HA manager moves it")]
        if waited_s > settings.migration.timeout_s and not record.text:
            text = f"runs for longer than {settings.migration.timeout_s:g} s; it is not interfered with"
            return self._put(replace(record, text=text), now), [said_of(record, None, text)]
        return [], []

    def _put(self, record: Migration, now: Now) -> list[Migration]:
        if record.state in OPEN:
            self._open[record.intent] = record
        else:
            self._open.pop(record.intent, None)
            for known in self._times():
                known.pop(record.intent, None)
            self._ended.pop(record.intent, None)
            self._why.pop(record.intent, None)
            self._unsent.discard(record.intent)
            self._ha.forget(record.intent)
        return [record, *self._taken_along(record, now)]

    def _times(self) -> tuple[dict[str, float], ...]:
        return (self._ended_s, self._asked_s, self._began_s, self._silent_since_s, self._told_to_start_s)

    def _taken_along(self, lead: Migration, now: Now) -> list[Migration]:
        """The attempts that go along with this one's request: queued when it is, given up when nothing was queued."""
        changed: list[Migration] = []
        is_undecided = lead.state in (MigrationState.PLANNED, MigrationState.ASKED)
        for record in () if is_undecided else self.records:
            if record.along_with != lead.intent or record.state not in (MigrationState.PLANNED, MigrationState.ASKED):
                continue
            if lead.through_ha and lead.state in (MigrationState.QUEUED, MigrationState.RUNNING):
                asked = advanced(record, MigrationState.ASKED, now.wall_s) if record.state is MigrationState.PLANNED else record
                self._began_s[record.intent] = now.boot_s
                changed += self._put(advanced(asked, MigrationState.QUEUED, now.wall_s, text=lead.text), now)
            else:
                text = "nothing was asked of the HA manager for it"
                changed += self._put(advanced(record, MigrationState.SKIPPED, now.wall_s, text=text), now)
        return changed


def _is_followed_by_looks(record: Migration) -> bool:
    """True for what the HA manager has been asked for: it has no task of its own that could be asked how it stands."""
    return record.through_ha and record.state in (MigrationState.QUEUED, MigrationState.RUNNING)


def _under_way(record: Migration, upid: str, now: Now, *, is_found: bool) -> Migration:
    """The record of a request whose task is known: it moves the guest, or hands the request to the HA manager."""
    if upid.split(":")[5:6] == [REQUEST_KIND]:
        return replace(record, upid=upid, through_ha=True)
    if record.through_ha and is_found:  # what is there to be found is the HA manager's own migration already
        return advanced(record, MigrationState.QUEUED, now.wall_s, upid=upid)
    return replace(advanced(record, MigrationState.RUNNING, now.wall_s, upid=upid), through_ha=False)

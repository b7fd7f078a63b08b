# SPDX-License-Identifier: GPL-3.0-or-later
"""The leader's work: look, plan, ask PVE, write down, migrate, and look again until the plan has no moves left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum, auto

from agent.core import aside
from agent.core import history as memory
from agent.core.backups import kept_off_words, not_understood
from agent.core.calibration import calibrated, with_arrivals
from agent.core.cluster import GuestType, Snapshot
from agent.core.documents import Answer, HistoryFile, LeaderFile, render
from agent.core.durations import bounded as bounded_timings
from agent.core.durations import timing_of
from agent.core.events import Event, EventKind, EventSource
from agent.core.failures import TREATMENT, FailureClass, Treatment, remedy
from agent.core.ha_moves import partners, pulled_back, with_partners
from agent.core.journal import Level, MessageId, Record
from agent.core.known_loads import ledger_of
from agent.core.leadership import Leadership
from agent.core.learned import of_starting
from agent.core.load import Weights, why_pressure_unknown
from agent.core.local_disks import one_copy_a_node
from agent.core.migrations import Migration, MigrationState, intended, left_locks
from agent.core.others import Foreign, foreign_migrations, foreign_words
from agent.core.placement import Placement
from agent.core.plan_types import Gate, Move, Plan
from agent.core.planner import plan as make_plan
from agent.core.question import Question
from agent.core.reasons import LOAD_REASONS, MoveReason
from agent.core.sentences import decision_line, migration_words, move_words, nothing_words, state_words, stuck_words, summary
from agent.core.settings import Settings
from agent.core.slots import startable
from agent.core.survival import Survival, survival
from agent.core.triggers import Rank, Trigger, described, gathered, joined, traces, why_echo, with_starts, without_echoes
from agent.daemon.follow import Follow
from agent.daemon.inputs import MigrationAnswer, Now, Observed, SearchAnswer, StartAnswer, TaskAnswer, VerdictSeen, WriteAnswer, Written
from agent.daemon.orders import order_of
from agent.daemon.outputs import AskVerdict, KeepDecision, Observe, Output, Say, StartGuest, StartMigration, WriteShared
from agent.daemon.perform import HISTORY_PATH
from agent.daemon.permission import NOTHING, Permission, permission
from agent.daemon.senses import Senses
from agent.daemon.telling import Telling, of_event
from agent.daemon.verdicts import PATIENCE, Verdicts

LANDING_S = memory.SAMPLED_S  # before that, loads still show the guest where it was
RETRY_S = 10.0
OLD_LOOK_S = 20.0  # nobody is moved by what was seen longer ago
FOREIGN_S = 30.0  # between looks while migrations of others take all slots: nobody else tells when one ends
OPEN_S = 1800.0  # a forced or opened balancing that lasts longer, as a migration hangs, goes on within the gates
LEFT_LOCK_S = 30.0  # a lock of a migration that nobody carries out: PVE takes it back within seconds after a task's end
TOLD_SINGLY = 3  # starts and stops of one trigger that have a line each; of a storm the rest is told in one
SAME_S = 30.0  # hook, cluster log and statistics tell of one start within so long
SURVIVAL_S = 60.0  # N+1 is looked at no more often: of a large cluster it takes as long as a plan
MOST_ROUNDS = 25  # plan, ask PVE, plan without the refused: what is still refused then waits for the next look


class Phase(Enum):
    """What the work waits for."""

    IDLE = auto()
    OBSERVING = auto()
    ASKING = auto()
    WRITING = auto()


class Work:
    """One lead's work, made anew with each epoch; what must outlive it stands in history.json."""

    def __init__(self, history: HistoryFile, leader: LeaderFile, now: Now) -> None:
        self.history = history
        self.leader = leader
        self.pending: Trigger | None = None
        self.current: Trigger | None = None
        self.plan: Plan | None = None
        self.snapshot: Snapshot | None = None
        self.sentence = ""
        self.survival: Survival | None = None
        self.survival_at = -1e9
        self.permission = NOTHING
        self.failing_since_s: float | None = None
        self.follow = Follow(memory.open_migrations(history), now)
        self._phase = Phase.IDLE
        self._look_at_s: float | None = None
        self._opened_by: Gate | None = None
        self._has_moved = self._has_failed = False
        self._waits_for: tuple[Foreign, ...] = ()
        self._verdicts = Verdicts()
        self._again: Trigger | None = None
        self._again_at_s = math.inf
        self._unanswered: set[int] = set()
        self._rounds = 0
        self._to_start: list[Migration] = []
        self._serial = 0
        self._writing: int | None = None
        self._dirty = True
        self._write_again_s = -1e9
        self._intents = 0
        self._took_lead_s = now.boot_s
        self._looked_s = -1e9
        self._landed_s = -1e9
        self._retry_at_s: float | None = None
        self._locked_since_s: dict[int, float] = {}
        self._telling = Telling()
        self._told_cleared_s = now.boot_s
        self._gathered: list[Event] = []
        self._told: dict[tuple[EventKind, int | None, str | None], tuple[EventSource, float]] = {}

    # events

    def on_event(self, event: Event, senses: Senses, now: Now) -> list[Output]:
        """Take a hint, unless it only repeats a migration."""
        if (vmids := self._asked_again(event)) is not None:
            self.history = aside.asked_again(self.history, vmids)
        echo = why_echo(event, traces(None, self.history.migrations), now.wall_s)
        if echo is None and event.vmid is not None and event.vmid in senses.migrating:
            ended = senses.migrating[event.vmid]
            if (ended is None or now.wall_s - ended < 60.0) and event.kind in _GUEST_EVENTS:
                echo = "it is migrating" if ended is None else f"it migrated {now.wall_s - ended:.0f} s ago"
        if echo is not None:
            text = f"guest {event.vmid}: {event.kind.value} on {event.node}, {echo}: nothing to look at"
            return [of_event(Level.DEBUG, text, event)]
        if self._is_told_again(event) or self._is_answered_already(event):
            return []
        before = self.pending
        self.pending = joined(self.pending, event)
        if before is not None and len(before.events) == len(self.pending.events):
            return []
        level = Level.DEBUG if event.kind is EventKind.TIMER else Level.INFO
        if event.kind in _GUEST_EVENTS and sum(other.kind in _GUEST_EVENTS for other in self.pending.events) > TOLD_SINGLY:
            level = Level.DEBUG
            self._gathered.append(event)
        return [of_event(level, f"{described(joined(None, event))}, seen by {event.source.value}", event)]

    def _asked_again(self, event: Event) -> frozenset[int] | None:
        """The guests that somebody asks anew to move with this event, None when nobody does."""
        guests = () if self.snapshot is None else self.snapshot.guests
        if event.kind is EventKind.MAINTENANCE_BEGAN:
            return frozenset(guest.vmid for guest in guests if guest.node == event.node)
        if event.kind is EventKind.REQUEST and event.force:
            return frozenset(guest.vmid for guest in guests)
        return None

    def _is_answered_already(self, event: Event) -> bool:
        """True for load that what is being carried out looks at anyhow, again and again until nothing is left to do."""
        if self.current is None or not self._has_moved or event.kind not in (EventKind.OVERLOAD, EventKind.SPREAD):
            return False
        return event.node is not None and self.current.scope.covers_node(event.node)

    def _is_told_again(self, event: Event) -> bool:
        """True when another source told the same a moment ago: hook, cluster log and statistics all see one start."""
        if event.kind not in _GUEST_EVENTS:
            return False
        key = (event.kind, event.vmid, event.node)
        if event.at_s != self._told_cleared_s:  # not for each event of a burst
            self._told_cleared_s = event.at_s
            self._told = {known: told for known, told in self._told.items() if event.at_s - told[1] < SAME_S}
        source, _ = self._told.setdefault(key, (event.source, event.at_s))
        return source is not event.source

    def on_flags(self, senses: Senses) -> list[Output]:
        """Say which maintenance flags are for nobody."""
        return self._telling.strange_flags(senses.strange_flags)

    # stepping

    def next_outputs(self, now: Now, lead: Leadership, settings: Settings) -> list[Output]:
        """What is due: a look, a write, questions about migrations under way."""
        outputs = self.follow.next_outputs(now)
        if self.follow.look_at_s is not None:
            self._wish_look(self.follow.look_at_s)
            self.follow.look_at_s = None
        if self._retry_at_s is not None and now.boot_s >= self._retry_at_s:
            self._retry_at_s = None
            self.pending = joined(self.pending, Event(EventKind.TIMER, EventSource.AGENT, now.boot_s))
        if self._again is not None and now.boot_s >= self._again_at_s:
            self.pending = self._again if self.pending is None else _merged(self._again, self.pending)
            self._again, self._again_at_s = None, math.inf
        if self.pending is not None and now.boot_s >= self._pending_due_s(settings):
            if self._gathered:
                text = f"{gathered(self._gathered, self.pending.left_out)}, seen since {now.boot_s - self.pending.first_s:.0f} s"
                outputs.append(Say(Record(Level.INFO, MessageId.EVENT, text)))
                self._gathered = []
            self.current = self.pending if self.current is None else _merged(self.current, self.pending)
            self.pending = None
            self._wish_look(now.boot_s)
        if self._phase is Phase.IDLE and self._look_at_s is not None and now.boot_s >= self._look_at_s:
            self._phase, self._look_at_s = Phase.OBSERVING, None
            outputs.append(Observe(self.leader.epoch, tuple(sorted({entry.vmid for entry in self.history.set_aside}))))
        if self._dirty and self._writing is None and self._phase is not Phase.WRITING and now.boot_s >= self._write_again_s:
            outputs.append(self._write(now))
        return outputs

    def next_wakeup_s(self, settings: Settings) -> float:
        """When something is due by itself."""
        due = min(self.follow.next_wakeup_s(), self._again_at_s)
        if self.pending is not None:
            due = min(due, self._pending_due_s(settings))
        if self._retry_at_s is not None:
            due = min(due, self._retry_at_s)
        if self._look_at_s is not None and self._phase is Phase.IDLE:
            due = min(due, self._look_at_s)
        return due

    def _pending_due_s(self, settings: Settings) -> float:
        assert self.pending is not None
        due = self.pending.due_s(settings.triggers)
        return due if self.pending.rank is Rank.MAINTENANCE else max(due, self._landed_s + LANDING_S)

    def _wish_look(self, at_s: float) -> None:
        self._look_at_s = at_s if self._look_at_s is None else min(at_s, self._look_at_s)

    @property
    def guest_types(self) -> dict[int, GuestType]:
        """What kind of guest each is, as last seen."""
        return {} if self.snapshot is None else {guest.vmid: guest.type for guest in self.snapshot.guests}

    @property
    def is_busy(self) -> bool:
        """True while a trigger is being answered or a migration is under way."""
        return self.current is not None or bool(self.follow.records)

    # looking and planning

    def on_observed(self, seen: Observed, senses: Senses, settings: Settings, lead: Leadership, now: Now) -> list[Output]:
        """Take the look: settle what has ended, then plan. An answer to somebody else's question is none."""
        if seen.epoch != self.leader.epoch or self._phase is not Phase.OBSERVING:
            return []
        self._phase, self._looked_s = Phase.IDLE, now.boot_s
        if seen.snapshot is None:
            self.failing_since_s = self.failing_since_s if self.failing_since_s is not None else now.boot_s
            self._wish_look(now.boot_s + RETRY_S)
            return self._telling.failure(seen.error, seen.hint)
        outputs = self._telling.success()
        self.failing_since_s = None
        self.snapshot = senses.enriched(seen.snapshot)
        outputs += self._settle_ended(seen.snapshot, settings, now)
        outputs += self._start_left(lead)
        self._calibrate(settings, now)
        outputs += self._reconsider(seen.snapshot, dict(seen.digests), now)
        senses.forget_ended(seen.snapshot)
        self.history = memory.without_stale_homes(self.history, self.snapshot)
        if now.wall_s < self.history.first_seen_at:
            self.history = replace(self.history, first_seen_at=now.wall_s)  # the clock was set back: observing begins anew
            self._dirty = True
        outputs += self._telling.unseen(self.snapshot)
        outputs += self._telling.pressure(why_pressure_unknown(self.snapshot, settings))
        outputs += self._telling.schedules(not_understood(self.snapshot))
        outputs += self._telling.full_storages(self.snapshot, settings.balance.storage.threshold_percent)
        outputs += self._telling.empty_nodes(self.snapshot, (record.source for record in self.follow.records), settings)
        if self.current is None:
            return outputs
        trigger: Trigger | None = self.current
        if not self._has_moved:  # later on, the guest may well have moved for this very trigger
            trigger = without_echoes(self.current, traces(seen.snapshot, self.history.migrations), now.wall_s)
        if trigger is None:
            echo = f"{described(self.current)}: part of a migration, nothing to do"
            self._done()
            return [*outputs, *self._conclude(echo, Level.INFO, now)]
        self.current = trigger
        self.snapshot = with_starts(self.snapshot, trigger, now.boot_s)
        if trigger.rank is not Rank.MAINTENANCE and now.boot_s < self._landed_s + LANDING_S:
            self._wish_look(self._landed_s + LANDING_S)  # loads still show the guest where it was: plan when they do not
            return outputs
        self._rounds = 0
        return outputs + self._plan_and_go(senses, settings, lead, now)

    def warm_at_s(self, settings: Settings) -> float:
        """When load balancing may begin: `warmup_s` after the lead was taken or the membership changed."""
        return self._took_lead_s + settings.triggers.warmup_s

    def membership_changed(self, at_s: float) -> None:
        """Nodes came or went: loads are in motion, so warming up begins again."""
        self._took_lead_s = max(self._took_lead_s, at_s)

    def question(self, trigger: Trigger, senses: Senses, settings: Settings, now: Now) -> Question:
        """The question to the planner that answers the trigger."""
        assert self.snapshot is not None
        started = frozenset(event.node for event in trigger.events if event.kind in _JUDGED_AT_ONCE and event.node is not None)
        is_old = now.boot_s - trigger.first_s > OPEN_S
        under_way = sum(record.reason is not MoveReason.MAINTENANCE for record in self.follow.records)
        is_asked_for = bool(trigger.requests)  # a person does not wait for hold_s, and was shown a plan without it
        held = None if senses.held is None or is_asked_for else senses.long_held(now, settings) | started
        return Question(
            trigger=trigger.events[0].kind.value,
            scope=trigger.scope,
            held=held,
            opened_by=None if is_old else self._opened_by,
            force=trigger.force and not is_old,
            balance_load=self.permission.load,
            ledger=ledger_of(self.snapshot, self.history, self.follow.records, now.wall_s, of_starting(senses.learned, self.snapshot)),
            cooling=memory.cooling(self.history, self.snapshot, now.wall_s, settings.balance.guest_cooldown_s),
            set_aside=aside.set_aside(self.history, now.wall_s),
            avoided=aside.avoided(self.history, now.wall_s),
            homes={home.vmid: home.home for home in self.history.homes} if settings.drain.return_home else {},
            verdicts=self._verdicts.for_planning(now),
            moves_per_pass=max(0, settings.balance.max_moves_per_pass - under_way),
            moves_left=memory.moves_left(self.history, now.wall_s, settings.balance.max_moves_per_hour),
        )

    def _permission(self, settings: Settings, now: Now) -> Permission:
        assert self.current is not None and self.snapshot is not None
        return permission(
            settings,
            self.snapshot,
            self.history,
            now,
            warm_at_s=self.warm_at_s(settings),
            settled_at_s=self._landed_s + LANDING_S,
            force=self.current.force,
        )

    def _plan_and_go(self, senses: Senses, settings: Settings, lead: Leadership, now: Now) -> list[Output]:
        assert self.current is not None and self.snapshot is not None
        outputs: list[Output] = []
        self.permission = self._permission(settings, now)
        outputs += self._telling.alarm(memory.alarm(self.history, now.wall_s))
        self.plan = make_plan(self.snapshot, settings, self.question(self.current, senses, settings, now))
        open_records = self.follow.records
        foreign = foreign_migrations(self.snapshot, {record.vmid for record in open_records})
        ready = startable(self.plan.moves, open_records, settings, foreign) if self.permission.act else []
        is_held_up = bool(foreign) and not ready and self.permission.act and bool(startable(self.plan.moves, open_records, settings))
        ready = with_partners(ready, self.plan.moves, self.snapshot, open_records)
        ask = [move for move in ready if not self._verdicts.is_fresh(move.vmid, now)]
        if ask and self._rounds < MOST_ROUNDS:
            self._rounds += 1
            self._phase = Phase.ASKING
            self._unanswered = {move.vmid for move in ask}
            return [*outputs, *(AskVerdict(move.vmid, move.type, move.source) for move in ask)]
        ready = one_copy_a_node([move for move in ready if move not in ask], open_records)
        if ready and now.boot_s - self._looked_s > OLD_LOOK_S:
            self._wish_look(now.boot_s)  # PVE took long to answer: what was seen before may not hold any more
            return outputs
        outputs += self._telling.refusals(self.plan) + self._telling.conflicts(self.plan)
        if ready:
            return outputs + self._intend(ready, lead, now)
        if open_records:
            self._look_at_survival(settings)
            return outputs  # a slot or a batch has to end first; its end is a look
        if is_held_up:
            self._wish_look(now.boot_s + FOREIGN_S)
            return outputs + self._wait_for_others(foreign, now)
        if now.boot_s < self._landed_s + LANDING_S and (self.current.scope.nodes != frozenset() or self.plan.refused):
            self._wish_look(self._landed_s + LANDING_S)
            return outputs
        return outputs + self._end_cycle(settings, now)

    def _wait_for_others(self, foreign: tuple[Foreign, ...], now: Now) -> list[Output]:
        """All slots are taken by migrations that others started; said when it begins."""
        assert self.current is not None and self.plan is not None
        text = f"{described(self.current)}: {summary(self.plan)} wait for slots, which other migrations take ({foreign_words(foreign)})"
        if self._waits_for == foreign:
            return []
        self._waits_for = foreign
        return self._conclude(text, Level.INFO, now)

    def _end_cycle(self, settings: Settings, now: Now) -> list[Output]:
        assert self.current is not None and self.plan is not None and self.snapshot is not None
        self._look_at_survival(settings)
        weights, what = Weights.of(settings), described(self.current)
        level = Level.INFO
        away = {*(maintenance.node for maintenance in self.snapshot.maintenance), *self.snapshot.no_target}
        stuck = stuck_words(self.plan, self.snapshot, settings)
        if stuck is not None and not self.plan.moves:
            text, level = stuck, Level.WARNING
        elif not self.plan.moves:
            is_all_done = self._has_moved and not self.plan.refused and not self._has_failed
            is_settled = now.boot_s >= self._landed_s + LANDING_S  # before that, who has arrived is counted to be on the safe side
            done = f"nothing more to do ({state_words(self.plan, weights, away)})" if is_settled else "nothing more to do"
            text = done if is_all_done else nothing_words(self.plan, weights, away)
            is_held_back = not self.permission.load or bool(self.snapshot.unseen)
            if is_held_back and self.permission.why_not and not self.plan.refused and not self._has_moved:
                text += f"; {self.permission.why_not}"
            kept_off = kept_off_words(self.snapshot)
            if kept_off is not None and self.permission.load and not self._has_moved:
                text += f"; {kept_off}"
        elif not self.permission.act:
            text = f"would make {summary(self.plan)}, first {move_words(self.plan.moves[0])}, but {self.permission.why_not}"
        elif not any(move.first_pass for move in self.plan.moves):
            text = f"{summary(self.plan)} wait: max_moves_per_hour is used up"
        else:
            text = f"{summary(self.plan)} wait for the next look"
        raised_again = () if self._again is None else self._again.requests
        for request in self.current.requests:
            answer = Answer(request, now.wall_s, text, final=request not in raised_again, failed=self._has_failed)
            self.history = memory.with_answer(self.history, answer)
            self._dirty = True
        only_timer = all(event.kind is EventKind.TIMER for event in self.current.events)
        self._done()
        return self._conclude(f"{what}: {text}", Level.DEBUG if only_timer and not self.plan.moves else level, now)

    def _look_at_survival(self, settings: Settings) -> None:
        """Whether any one node could be lost, as of the last look: when nothing is about to start, so that nothing waits for it."""
        assert self.snapshot is not None
        if abs(self.snapshot.taken_at - self.survival_at) < SURVIVAL_S:
            return
        question = Question(ledger=ledger_of(self.snapshot, self.history, self.follow.records, self.snapshot.taken_at))
        self.survival = survival(Placement(self.snapshot, settings, question))
        self.survival_at = self.snapshot.taken_at

    def _done(self) -> None:
        """The trigger is answered."""
        self.current, self._opened_by, self._waits_for = None, None, ()
        self._has_moved = self._has_failed = False

    def _conclude(self, text: str, level: Level, now: Now, moves: Sequence[Move] = ()) -> list[Output]:
        """The sentence that ends a look: in the journal, in the status, and, unless it is routine, in the decision journal."""
        self.sentence = text
        said: list[Output] = [Say(Record(level, MessageId.DECISION, text))]
        if level <= Level.INFO:
            said.append(KeepDecision(decision_line(now.wall_s, text, moves)))
        return said

    def on_verdict(self, seen: VerdictSeen, senses: Senses, settings: Settings, lead: Leadership, now: Now) -> list[Output]:
        """Take PVE's own check of a guest; when all have come, plan again with them."""
        self._unanswered.discard(seen.vmid)
        outputs: list[Output] = []
        if seen.verdict is not None:
            self._verdicts.take(seen.verdict)
        else:
            outputs.append(self._left_unanswered(seen, now))
        if self._phase is not Phase.ASKING or self._unanswered:
            return outputs
        self._phase = Phase.IDLE
        if self.current is None:
            return outputs
        return outputs + self._plan_and_go(senses, settings, lead, now)

    def _left_unanswered(self, seen: VerdictSeen, now: Now) -> Say:
        """PVE's check of a guest got no answer: what asked for its move is raised again when the guest may be asked about again."""
        silence = self._verdicts.no_answer(seen.vmid, seen.error, now)
        if self.current is not None and silence.times <= PATIENCE:
            self._again = self.current if self._again is None else _merged(self._again, self.current)
            self._again_at_s = min(silence.until_s, self._again_at_s)
        again = f"asked about again in {silence.until_s - now.boot_s:.0f} s"
        text = f"guest {seen.vmid} stays for now, {again}: {seen.error}"
        return Say(Record(Level.WARNING, MessageId.OUTSIDE, text, vmid=seen.vmid))

    # acting

    def _intend(self, moves: list[Move], lead: Leadership, now: Now) -> list[Output]:
        """Write the moves down before anything is asked of PVE: a new leader must know what may be under way."""
        assert self.current is not None and self.plan is not None
        request = self.current.requests[0] if self.current.requests else None
        self._to_start = []
        outputs: list[Output] = []
        for move in moves:
            self._intents += 1
            intent, through_ha, along_with = f"{lead.epoch}-{self._intents}", self._is_of_ha(move.vmid), self._leads_along(move)
            record = intended(move, intent, lead.epoch, now.wall_s, request, through_ha=through_ha, along_with=along_with)
            self._to_start.append(record)
        self.history = memory.with_migrations(self.history, self._to_start)
        count = "starting now"
        if len(moves) < len(self.plan.moves):
            count = f"{len(moves)} of them start{'s' if len(moves) == 1 else ''} now"
        text = f"{described(self.current)}: {summary(self.plan)}; {count}"
        outputs += self._conclude(text, Level.NOTICE, now, moves)
        self._has_moved = True
        if self._opened_by is None and any(move.reason in LOAD_REASONS for move in moves):
            self._opened_by = self.plan.gate
        for request_id in self.current.requests:
            self.history = memory.with_answer(self.history, Answer(request_id, now.wall_s, text, final=False))
        self._phase = Phase.WRITING
        return [*outputs, self._write(now)]

    def _is_of_ha(self, vmid: int) -> bool:
        guest = self.snapshot.guest(vmid) if self.snapshot is not None else None
        return guest is not None and guest.ha is not None

    def _leads_along(self, move: Move) -> str | None:
        """The intent of the request with which the HA manager moves this guest, too; None when it needs one of its own."""
        if self.snapshot is None or not self._is_of_ha(move.vmid):
            return None
        bound = partners(self.snapshot.ha, move.vmid)
        leads = (lead for lead in self._to_start if lead.vmid in bound and lead.target == move.target and lead.along_with is None)
        return next((lead.intent for lead in leads), None)

    def _write(self, now: Now) -> WriteShared:
        self.history = memory.bounded(self.history, now.wall_s)
        self._serial += 1
        self._writing, self._dirty = self._serial, False
        return WriteShared(Written.HISTORY, HISTORY_PATH, render(self.history), self._serial, self.leader)

    def on_written(self, answer: WriteAnswer, lead: Leadership, senses: Senses, settings: Settings, now: Now) -> list[Output]:
        """The history was written: now the requests may go out. It was not: then nothing is asked of PVE."""
        if answer.serial != self._writing:
            return []
        self._writing = None
        if answer.error:
            self._dirty = True
            self._write_again_s = now.boot_s + RETRY_S
        if self._phase is not Phase.WRITING:
            return []
        self._phase = Phase.IDLE
        records, self._to_start = self._to_start, []
        why = self._why_not_start(lead, settings, now, answer.error)
        if why is not None:
            self._forget(records)
            self._wish_look(now.boot_s + RETRY_S)
            return [Say(Record(Level.WARNING, MessageId.OUTSIDE, f"nothing was started: {why}"))]
        outputs: list[Output] = []
        ended = self._drains_that_ended(senses, settings)
        unwanted = {
            record.along_with or record.intent
            for record in records
            if (record.reason is MoveReason.MAINTENANCE and not self._is_still_wanted(record.source, senses, settings))
            or (record.reason is MoveReason.ROOM and ended)  # for whom room is made is seen anew
        }
        for record in records:
            if (record.along_with or record.intent) in unwanted:  # who moves along with one stays with it
                self._forget([record])
                self._wish_look(now.boot_s + RETRY_S)
                continue
            assert self.snapshot is not None
            order = order_of(record, self.snapshot, self._verdicts.needs(record.vmid), settings)
            limit_kib_s = None if record.through_ha else order.bandwidth_limit_kib_s  # the HA manager drops it
            asked = self.follow.ask(replace(record, limit_kib_s=limit_kib_s), now)
            self._record([asked])
            move = next((move for move in (self.plan.moves if self.plan else ()) if move.vmid == record.vmid), None)
            lead_vmid = next((other.vmid for other in records if other.intent == record.along_with), None)
            how = "" if lead_vmid is None else f", along with guest {lead_vmid}, as the HA manager wants"
            outputs.append(
                Say(
                    Record(
                        Level.NOTICE,
                        MessageId.MOVE,
                        (f"moving {move_words(move)}" if move is not None else f"moving guest {record.vmid}") + how,
                        event=self.current.events[0].kind.value if self.current else None,
                        reason=record.reason.value,
                        vmid=record.vmid,
                        source=record.source,
                        target=record.target,
                        epoch=record.epoch,
                    )
                )
            )
            if record.along_with is None:
                outputs.append(StartMigration(record.intent, order, self.leader, lead.lease_until_s))
        self._dirty = False
        return outputs

    def _why_not_start(self, lead: Leadership, settings: Settings, now: Now, error: str) -> str | None:
        """Why what was written down must not begin after all: a write can take long, and much may change meanwhile."""
        if error:
            return f"history.json was not written: {error}"
        if not lead.may_act(now.boot_s):
            return "the lease is too short"
        if self.snapshot is None or self.current is None:
            return "there is nothing to answer any more"
        allowed = self._permission(settings, now)
        return allowed.why_not if not allowed.act or (self.permission.load and not allowed.load) else None

    def _drains_that_ended(self, senses: Senses, settings: Settings) -> list[str]:
        """The nodes that the plan empties and nobody wants empty any more."""
        nodes = sorted({move.source for move in (self.plan.moves if self.plan else ()) if move.reason is MoveReason.MAINTENANCE})
        return [node for node in nodes if not self._is_still_wanted(node, senses, settings)]

    def _is_still_wanted(self, node: str, senses: Senses, settings: Settings) -> bool:
        """True while somebody wants the node empty."""
        asked = {maintenance.node for maintenance in senses.maintenance()} | set(settings.nodes.maintenance)
        by_api = {maintenance.node for maintenance in self.snapshot.maintenance} if self.snapshot is not None else set()
        return node.lower() in {name.lower() for name in asked} or (not senses.has_seen and node in by_api)

    def _forget(self, records: list[Migration]) -> None:
        """Nothing was asked of PVE for these, and nobody has to know of them."""
        intents = {record.intent for record in records}
        kept = tuple(record for record in self.history.migrations if record.intent not in intents)
        self.history = replace(self.history, migrations=kept)
        self._dirty = True

    def _record(self, records: list[Migration]) -> None:
        if records:
            self.history = memory.with_migrations(self.history, records)
            self._dirty = True

    def on_migration(self, answer: MigrationAnswer | TaskAnswer | SearchAnswer, settings: Settings, now: Now) -> list[Output]:
        """Take an answer about a migration under way."""
        if isinstance(answer, SearchAnswer) and any(
            record.upid == answer.upid and record.intent != answer.intent for record in self.history.migrations
        ):
            answer = replace(answer, upid=None)  # the newest task is that of a former attempt: of this one there is none
        changed, outputs = self.follow.on_answer(answer, settings, now)
        self._record(changed)
        for record in changed:
            if record.state is MigrationState.FAILED:
                self._failed(record, now)
        return outputs

    def _settle_ended(self, snapshot: Snapshot, settings: Settings, now: Now) -> list[Output]:
        changed, outputs = self.follow.settle(snapshot, settings, now)
        self._record(changed)
        arrived: list[Migration] = []
        for record in changed:
            if record.state is MigrationState.DONE:
                self.history = memory.with_success(self.history, record)
                self._time(record, snapshot)
                self._verdicts.forget(record.vmid)  # that was asked of the node it has left
                self._landed_s = now.boot_s
                arrived.append(record)
            elif record.state in (MigrationState.FAILED, MigrationState.LOST):
                self._failed(record, now)
        if arrived and self.snapshot is not None:
            ledger = ledger_of(self.snapshot, self.history, self.follow.records, now.wall_s)
            self.history = with_arrivals(self.history, arrived, self.snapshot, ledger, settings)
        return outputs + self._tell_pulled_back(snapshot, now)

    def _calibrate(self, settings: Settings, now: Now) -> None:
        """Measure what guests take that have moved some minutes ago."""
        assert self.snapshot is not None
        before, self.history = self.history, calibrated(self.history, self.snapshot, now.wall_s, settings)
        self._dirty = self._dirty or before is not self.history

    def _start_left(self, lead: Leadership) -> list[Output]:
        """Start the containers that PVE has not started again after their migrations."""
        left, self.follow.to_start = self.follow.to_start, []
        outputs: list[Output] = []
        for record, node in left:
            text = f"{migration_words(record)}: it is on {node} and does not run, as PVE could not start it again: starting it"
            said = Record(Level.WARNING, MessageId.OUTCOME, text, vmid=record.vmid, source=record.source, target=record.target)
            outputs += [Say(said), StartGuest(record.vmid, record.type, node, self.leader, lead.lease_until_s)]
        return outputs

    def on_start(self, answer: StartAnswer) -> list[Output]:
        """PVE did not take the request to start a guest: whether it runs is looked at all the same."""
        if not answer.error:
            return []
        text = f"guest {answer.vmid} could not be started: {answer.error}"
        return [Say(Record(Level.WARNING, MessageId.OUTSIDE, text, vmid=answer.vmid))]

    def _time(self, record: Migration, snapshot: Snapshot) -> None:
        """Keep what the migration took, for the next ones to be foretold."""
        timing = timing_of(record, snapshot.tasks)
        if timing is not None:
            self.history = replace(self.history, timings=bounded_timings((*self.history.timings, timing)))

    def _reconsider(self, snapshot: Snapshot, digests: dict[int, str], now: Now) -> list[Output]:
        """Let go of guests set aside for whom somebody has done something, and keep those on which a migration left its lock."""
        self.history, released = aside.reconsidered(self.history, snapshot, digests)
        outputs: list[Output] = []
        for vmid, why in sorted(released.items()):
            self._dirty = True
            self._verdicts.forget(vmid)
            text = f"guest {vmid} is no longer set aside: {why}"
            outputs.append(Say(Record(Level.INFO, MessageId.OUTCOME, text, vmid=vmid)))
        ours = {record.vmid for record in self.history.migrations if not record.is_open and record.asked_at is not None}
        busy = {record.vmid for record in self.follow.records}
        left = [guest for guest in left_locks(snapshot) if guest.vmid in ours - busy]
        self._locked_since_s = {guest.vmid: self._locked_since_s.get(guest.vmid, now.boot_s) for guest in left}
        for guest in left:
            if now.boot_s - self._locked_since_s[guest.vmid] < LEFT_LOCK_S:
                self._wish_look(now.boot_s + RETRY_S)
            elif not aside.has_left_lock(self.history, guest.vmid):
                self.history = aside.with_left_lock(self.history, guest)
                self._dirty = True
                text = f"a migration has left its lock on {guest.label} on {guest.node}, and nothing migrates it"
                hint = remedy(FailureClass.LOCKED, guest.vmid, guest.type is GuestType.QEMU)
                outputs.append(Say(Record(Level.ERROR, MessageId.ALARM, f"{text}; {hint}", vmid=guest.vmid, source=guest.node)))
        return outputs

    def _tell_pulled_back(self, snapshot: Snapshot, now: Now) -> list[Output]:
        """Guests that the HA manager does not leave where they were brought: they are not sent there again for a while."""
        outputs: list[Output] = []
        for record, node in pulled_back(self.history.migrations, snapshot, now.wall_s):
            text = f"the HA manager takes it from {record.target} to {node} again"
            self._record([replace(record, text=text)])
            self.history = aside.with_failure(self.history, record.vmid, FailureClass.HA_REJECTED, text, now.wall_s)
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

    def _failed(self, record: Migration, now: Now) -> None:
        failure = record.failure or FailureClass.UNKNOWN
        where = record.source if record.state is MigrationState.FAILED else ""
        self.history = aside.with_failure(
            self.history, record.vmid, failure, record.text or record.state.value, now.wall_s, node=where, target=record.target
        )
        if TREATMENT[failure] is Treatment.WAIT:
            self._retry_at_s = now.boot_s + aside.WAIT_S + 1.0
        self._verdicts.forget(record.vmid)
        self._has_failed = True
        self._wish_look(now.boot_s + RETRY_S)


_GUEST_EVENTS = frozenset({EventKind.GUEST_STARTED, EventKind.GUEST_STOPPED, EventKind.GUEST_CHANGED})
_JUDGED_AT_ONCE = frozenset({EventKind.GUEST_STARTED, EventKind.OVERLOAD})


def _merged(one: Trigger, other: Trigger) -> Trigger:
    result = one
    for event in other.events:
        result = joined(result, event)
    return replace(result, scope=result.scope.union(other.scope), left_out=result.left_out + other.left_out)

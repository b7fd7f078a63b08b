# SPDX-License-Identifier: GPL-3.0-or-later
"""The leader's work: look, plan, ask PVE, write down, migrate, and look again until the plan has no moves left."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from enum import Enum, auto

from agent.core import aside
from agent.core import history as memory
from agent.core.backups import not_understood
from agent.core.cluster import GuestType, Snapshot
from agent.core.documents import Answer, HistoryFile, Home, LeaderFile
from agent.core.events import Event, EventKind, EventSource
from agent.core.flags import ASKED_AGAIN, Flag
from agent.core.ha_maintenance import closing
from agent.core.ha_moves import with_partners
from agent.core.homes import homes_of, returns, with_homecomings, with_look, without_returns
from agent.core.journal import Level, MessageId, Record
from agent.core.known_loads import ledger_of
from agent.core.leadership import Leadership
from agent.core.local_disks import one_copy_a_node
from agent.core.others import Foreign, arriving, foreign_migrations, foreign_words
from agent.core.plan_types import Gate, Move, Plan
from agent.core.planner import plan as make_plan
from agent.core.pressure import why_pressure_unknown
from agent.core.question import Question
from agent.core.reasons import LOAD_REASONS, MoveReason
from agent.core.sentences import decision_line, summary
from agent.core.settings import Settings
from agent.core.slots import startable
from agent.core.triggers import Rank, Trigger, described, traces, with_starts, without_echoes
from agent.daemon.acting import Acting
from agent.daemon.agenda import RETRY_S, Agenda
from agent.daemon.beside import Beside
from agent.daemon.chronicle import Chronicle
from agent.daemon.conclusions import conclusion
from agent.daemon.follow import Follow
from agent.daemon.ha_maintenance import HaMaintenance
from agent.daemon.hearing import Hearing
from agent.daemon.held import Held
from agent.daemon.inputs import (
    HaMaintenanceAnswer,
    MigrationAnswer,
    Now,
    Observed,
    SearchAnswer,
    StartAnswer,
    TaskAnswer,
    VerdictSeen,
    WriteAnswer,
)
from agent.daemon.outputs import AskVerdict, KeepDecision, Observe, Output, Say
from agent.daemon.permission import NOTHING, Permission, permission, why_only_observe
from agent.daemon.senses import Senses
from agent.daemon.settling import Settling, start_failed
from agent.daemon.survival_look import SurvivalLook
from agent.daemon.telling import Telling
from agent.daemon.verdicts import PATIENCE, Verdicts

LONG_WRITE_S = 10.0  # of history.json: what was to be begun is looked at anew after that, as people may have thought better of it
OLD_LOOK_S = 20.0  # nobody is moved by what was seen longer ago
FOREIGN_S = 30.0  # between looks while migrations of others take all slots: nobody else tells when one ends
OPEN_S = 1800.0  # a forced or opened balancing that lasts longer, as a migration hangs, goes on within the gates
MOST_ROUNDS = 25  # plan, ask PVE, plan without the refused: what is still refused then waits for the next look

_JUDGED_AT_ONCE = frozenset({EventKind.GUEST_STARTED, EventKind.OVERLOAD})


class Phase(Enum):
    """What the work waits for."""

    IDLE = auto()
    OBSERVING = auto()
    ASKING = auto()
    WRITING = auto()


class Work:
    """One lead's work, made anew with each epoch; what must outlive it stands in history.json."""

    def __init__(self, history: HistoryFile, leader: LeaderFile, now: Now) -> None:
        self.leader = leader
        self.current: Trigger | None = None
        self.plan: Plan | None = None
        self.snapshot: Snapshot | None = None
        self.sentence = ""
        self.permission = NOTHING
        self.failing_since_s: float | None = None
        self.paused: Flag | None = None
        self.follow = Follow(memory.open_migrations(history), now)
        self.ha = HaMaintenance(history.ha_asks, now)
        self.beside = Beside()
        self.survival = SurvivalLook()
        self._agenda = Agenda()
        self._chronicle = Chronicle(history, leader)
        self._hearing = Hearing(now)
        self._held = Held()
        self._telling = Telling()
        self._verdicts = Verdicts()
        self._acting = Acting(self._chronicle, self.follow, self._verdicts)
        self._settling = Settling(self._chronicle, self.follow, self._verdicts, self._agenda)
        self._phase = Phase.IDLE
        self._opened_by: Gate | None = None
        self._has_moved = False
        self._waits_for: tuple[Foreign, ...] = ()
        self._unanswered: set[int] = set()
        self._rounds = 0
        self._took_lead_s = now.boot_s
        self._looked_s = self._intended_s = -1e9

    @property
    def history(self) -> HistoryFile:
        """What stands in history.json, or will with the next write."""
        return self._chronicle.history

    @property
    def pending(self) -> Trigger | None:
        """What waits to be answered."""
        return self._hearing.pending

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps the leader from looking or from acting, as the journal has told it."""
        return self._telling.problems

    @property
    def guest_types(self) -> dict[int, GuestType]:
        """What kind of guest each is, as last seen."""
        return {} if self.snapshot is None else {guest.vmid: guest.type for guest in self.snapshot.guests}

    @property
    def is_busy(self) -> bool:
        """True while a trigger is being answered or a migration is under way."""
        return self.current is not None or bool(self.follow.records)

    # events

    def on_event(self, event: Event, senses: Senses, now: Now) -> list[Output]:
        """Take a hint, unless it only repeats a migration."""
        if (vmids := self._asked_again(event)) is not None:
            wholly = event.kind is EventKind.MAINTENANCE_BEGAN and event.detail == ASKED_AGAIN
            self._chronicle.history = aside.asked_again(self.history, vmids, wholly=wholly)
            self._verdicts.ask_anew(vmids)
        if self._is_answered_already(event):
            return []
        if self._is_brought_to_leave(event, senses):
            self._agenda.retry(now.boot_s + RETRY_S, [event.node] if event.node is not None else ())
        return self._hearing.on_event(event, self.history.migrations, senses.migrating, now)

    def _asked_again(self, event: Event) -> frozenset[int] | None:
        """The guests that somebody asks anew to move with this event, None when nobody does."""
        guests = () if self.snapshot is None else self.snapshot.guests
        if event.kind is EventKind.MAINTENANCE_BEGAN and event.source is not EventSource.AGENT:
            return frozenset(guest.vmid for guest in guests if guest.node == event.node)
        if event.kind is EventKind.REQUEST and event.force:
            return frozenset(guest.vmid for guest in guests)
        return None

    def _is_answered_already(self, event: Event) -> bool:
        """True for load that what is being carried out looks at anyhow, again and again until nothing is left to do."""
        if self.current is None or not self._has_moved or event.kind not in (EventKind.OVERLOAD, EventKind.SPREAD):
            return False
        return event.node is not None and self.current.scope.covers_node(event.node)

    def _is_brought_to_leave(self, event: Event, senses: Senses) -> bool:
        """True when somebody has migrated a guest to a node that is to be empty: an echo, but who empties that node counts on it."""
        if event.kind is not EventKind.GUEST_CHANGED or all(asked.node != event.node for asked in senses.maintenance()):
            return False
        return event.vmid not in {record.vmid for record in self.follow.records}

    def close_requests(self, heard: AbstractSet[str | None], now: Now) -> None:
        """Tell commands that still wait for what a former leader began that nothing follows, but for those that were heard again."""
        for answer in self.history.answers:
            if not answer.final and answer.request not in heard:
                text = "the leader has changed: what is under way goes on, ask again for the rest"
                self._chronicle.answer(replace(answer, at=now.wall_s, text=text, final=True, failed=True))

    def on_flags(self, senses: Senses) -> list[Output]:
        """Say which maintenance flags are for nobody."""
        return self._telling.strange_flags(senses.flags.strange)

    def on_pause(self, senses: Senses) -> list[Output]:
        """Take note of whether all moves are paused."""
        self.paused = senses.flags.paused
        return self._telling.pause(self.paused)

    def warm_at_s(self, settings: Settings) -> float:
        """When load balancing may begin: `warmup_s` after the lead was taken or the membership changed."""
        return self._took_lead_s + settings.triggers.warmup_s

    def membership_changed(self, at_s: float) -> None:
        """Nodes came or went: loads are in motion, so warming up begins again."""
        self._took_lead_s = max(self._took_lead_s, at_s)

    # stepping

    def next_outputs(self, now: Now, lead: Leadership, settings: Settings) -> list[Output]:
        """What is due: a look, a write, questions about migrations under way."""
        outputs = self.follow.next_outputs(now)
        for part in (self.follow, self.ha):
            self._agenda.wish_look(part.look_at_s)
            part.look_at_s = None
        self._hearing.pending = self._agenda.takes_due(self._hearing.pending, now)
        if now.boot_s >= self._hearing.due_s(settings, self._agenda.settled_at_s):
            self.current, said = self._hearing.take(self.current, now)
            outputs += said
            self._agenda.wish_look(now.boot_s)
        if self._phase is Phase.IDLE and self._agenda.takes_look(now):
            self._phase = Phase.OBSERVING
            outputs.append(Observe(self.leader.epoch, tuple(sorted({entry.vmid for entry in self.history.set_aside}))))
        if self._phase is not Phase.WRITING and self._chronicle.is_due(now):
            outputs.append(self._chronicle.write(now))
        return outputs

    def next_wakeup_s(self, settings: Settings) -> float:
        """When something is due by itself."""
        return min(
            self.follow.next_wakeup_s(),
            self._hearing.due_s(settings, self._agenda.settled_at_s),
            self._agenda.next_wakeup_s(may_look=self._phase is Phase.IDLE),
        )

    # looking and planning

    def on_observed(self, seen: Observed, senses: Senses, settings: Settings, lead: Leadership, now: Now) -> list[Output]:
        """Take the look: settle what has ended, then plan. An answer to somebody else's question is none."""
        if seen.epoch != self.leader.epoch or self._phase is not Phase.OBSERVING:
            return []
        self._phase, self._looked_s = Phase.IDLE, now.boot_s
        if seen.snapshot is None:
            self.failing_since_s = self.failing_since_s if self.failing_since_s is not None else now.boot_s
            self._agenda.wish_look(now.boot_s + RETRY_S)
            return self._telling.failure(seen.error, seen.hint)
        outputs = self._telling.success()
        self.failing_since_s, homes = None, self.history.homes
        before, self.snapshot = self.snapshot, senses.enriched(seen.snapshot, self.ha.ours)
        outputs += self._settling.on_look(seen.snapshot, self.snapshot, settings, now)
        self._chronicle.history = memory.with_places(self.history, before, self.snapshot, now.wall_s)
        outputs += self._see_to_ha(seen.snapshot, senses, settings, now)
        outputs += self._settling.start_left(lead)
        self._settling.calibrate(self.snapshot, settings, now)
        outputs += self._settling.reconsider(seen.snapshot, dict(seen.digests), now)
        senses.forget_ended(seen.snapshot)
        outputs += self._see_to_homes(homes)
        if now.wall_s < self.history.first_seen_at:
            # the clock was set back: observing begins anew
            self._chronicle.history = replace(self.history, first_seen_at=now.wall_s)
        outputs += self.beside.on_look(self.snapshot, self.history, settings, now)
        outputs += self._telling.unseen(self.snapshot)
        outputs += self._telling.pressure(why_pressure_unknown(self.snapshot, settings))
        outputs += self._telling.schedules(not_understood(self.snapshot))
        outputs += self._telling.full_storages(self.snapshot, settings.balance.storage.threshold_percent)
        outputs += self._telling.last_nodes(self.snapshot, settings)
        coming = arriving(seen.snapshot, self.follow.records).keys()
        outputs += self._telling.empty_nodes(self.snapshot, {record.source for record in self.follow.records} | coming, settings)
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
        if trigger.rank is not Rank.MAINTENANCE and now.boot_s < self._agenda.settled_at_s:
            self._agenda.wish_look(self._agenda.settled_at_s)  # loads still show the guest where it was: plan when they do not
            return outputs
        self._rounds = 0
        return outputs + self._plan_and_go(senses, settings, lead, now)

    def _see_to_ha(self, snapshot: Snapshot, senses: Senses, settings: Settings, now: Now) -> list[Output]:
        """Ask the HA manager to empty nodes, as far as that helps, and take back what was asked for nodes that need not be empty."""
        assert self.snapshot is not None
        wanted = {maintenance.node for maintenance in senses.maintenance() if not maintenance.shuts_down}
        why_not = why_only_observe(settings, self.snapshot, self.history, now, self.paused)
        outputs = self.ha.on_look(replace(snapshot, no_target=self.snapshot.no_target), wanted, settings, now, why_not)
        self._keep_ha_asks()
        self.snapshot = closing(self.snapshot, self.ha.asks, wanted)
        outputs += self._tell_of_ha(senses, now)
        return outputs

    def _tell_of_ha(self, senses: Senses, now: Now) -> list[Output]:
        """What the HA manager no longer sees to is looked at anew: the way home, and guests that it does not move after all."""
        came_back, self.ha.came_back = self.ha.came_back, []
        let_go, self.ha.let_go = self.ha.let_go, []
        told = [(EventKind.MAINTENANCE_BEGAN, node, "without the HA manager") for node in let_go]
        homes, wanted = set(homes_of(self.history).values()), {maintenance.node for maintenance in senses.maintenance()}
        told += [(EventKind.MAINTENANCE_ENDED, node, "the HA manager's, too") for node in came_back if node in homes - wanted]
        if not wanted.isdisjoint(came_back):
            self._agenda.wish_look(now.boot_s)  # asked for anew meanwhile: nobody should come back first
        outputs: list[Output] = []
        for kind, node, detail in told:
            outputs += self.on_event(Event(kind, EventSource.AGENT, now.boot_s, node=node, detail=detail), senses, now)
        return outputs

    def _see_to_homes(self, before: tuple[Home, ...]) -> list[Output]:
        """Take note of who came home and who left, since the homes were as `before`, and say of each node when nobody is awaited there."""
        assert self.snapshot is not None
        self._chronicle.history = with_homecomings(with_look(self.history, self.snapshot), before)
        moving = {record.vmid for record in self.follow.records}
        over = [one for one in returns(self.history, self.snapshot) if not one.away and moving.isdisjoint(one.vmids)]
        self._chronicle.history = without_returns(self.history, over)
        return self._telling.returns(over)

    def _keep_ha_asks(self) -> None:
        self._chronicle.history = replace(self.history, ha_asks=self.ha.asks)
        if self.ha.has_due:
            self._chronicle.touch()

    def on_ha_maintenance(self, answer: HaMaintenanceAnswer, senses: Senses, now: Now) -> list[Output]:
        """Take what became of a request for the HA manager's maintenance."""
        outputs = self.ha.on_answer(answer, now)
        self._keep_ha_asks()
        return outputs + self._tell_of_ha(senses, now)

    def question(self, trigger: Trigger, senses: Senses, settings: Settings, now: Now) -> Question:
        """The question to the planner that answers the trigger."""
        assert self.snapshot is not None
        started = frozenset(event.node for event in trigger.events if event.kind in _JUDGED_AT_ONCE and event.node is not None)
        is_old = now.boot_s - trigger.first_s > OPEN_S
        under_way = sum(record.reason is not MoveReason.MAINTENANCE for record in self.follow.records)
        is_asked_for = bool(trigger.requests)  # a person does not wait for hold_s, and was shown a plan without it
        held = None if senses.overloads.held is None or is_asked_for else senses.overloads.long_held(now, settings) | started
        return Question(
            trigger=trigger.events[0].kind.value,
            scope=trigger.scope,
            held=held,
            opened_by=None if is_old else self._opened_by,
            force=trigger.force and not is_old,
            balance_load=self.permission.load,
            ledger=ledger_of(self.snapshot, self.history, self.follow.records, now.wall_s, senses.learned_by(self.snapshot)),
            cooling=memory.cooling(self.history, self.snapshot, now.wall_s, settings.balance.guest_cooldown_s),
            stepped_back=self.beside.stepped_back(now),
            set_aside=aside.set_aside(self.history, now.wall_s),
            avoided=aside.avoided(self.history, now.wall_s),
            homes=homes_of(self.history) if settings.drain.return_home else {},
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
            paused=self.paused,
            warm_at_s=self.warm_at_s(settings),
            settled_at_s=self._agenda.settled_at_s,
            force=self.current.force,
        )

    def _plan_and_go(self, senses: Senses, settings: Settings, lead: Leadership, now: Now) -> list[Output]:
        assert self.current is not None and self.snapshot is not None
        outputs: list[Output] = []
        self.permission = self._permission(settings, now)
        if self.permission.until is not None:
            self._agenda.retry(now.boot_s + max(0.0, self.permission.until - now.wall_s) + 1.0)
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
            self._agenda.wish_look(now.boot_s)  # PVE took long to answer: what was seen before may not hold any more
            return outputs
        is_settling = now.boot_s < self._agenda.settled_at_s and (self.current.scope.nodes != frozenset() or bool(self.plan.refused))
        if not ready and not open_records and not is_held_up and is_settling:
            self._agenda.wish_look(
                self._agenda.settled_at_s
            )  # who has just arrived counts on both nodes: what it stands in the way of may go
            return outputs
        outputs += self._telling.refusals(self.plan) + self._telling.conflicts(self.plan)
        if ready:
            return outputs + self._intend(ready, lead, now)
        if open_records:
            self.survival.on_look(self.snapshot, self.history, self.follow.records, settings)
            return outputs  # a slot or a batch has to end first; its end is a look
        if is_held_up:
            self._agenda.wish_look(now.boot_s + FOREIGN_S)
            return outputs + self._wait_for_others(foreign, now)
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
        self.survival.on_look(self.snapshot, self.history, self.follow.records, settings)
        text, level = conclusion(
            self.plan,
            self.snapshot,
            settings,
            self.permission,
            homes_of(self.history).values() if any(event.kind is EventKind.MAINTENANCE_ENDED for event in self.current.events) else (),
            has_moved=self._has_moved,
            has_failed=self._settling.has_failed,
            is_settled=now.boot_s >= self._agenda.settled_at_s,
        )
        for request in self.current.requests:
            answer = Answer(request, now.wall_s, text, final=request not in self._agenda.requests_again, failed=self._settling.has_failed)
            self._chronicle.answer(answer)
        current = self.current
        homes = homes_of(self.history) if settings.drain.return_home else {}
        said = self._telling.kept_away(returns(self.history, self.snapshot) if homes else (), self.plan)
        if (again := self._held.again(self.plan, self.snapshot, homes, current, now)) is not None:
            self._agenda.retry(again.at_s, again.drained)
        only_timer = all(event.kind is EventKind.TIMER for event in current.events)
        self._done()
        return said + self._conclude(f"{described(current)}: {text}", Level.DEBUG if only_timer and not self.plan.moves else level, now)

    def _done(self) -> None:
        """The trigger is answered."""
        self.current, self._opened_by, self._waits_for = None, None, ()
        self._has_moved = self._settling.has_failed = False

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
            self._agenda.raise_again(self.current, silence.until_s)
        again = f"asked about again in {silence.until_s - now.boot_s:.0f} s"
        text = f"guest {seen.vmid} stays for now, {again}: {seen.error}"
        return Say(Record(Level.WARNING, MessageId.OUTSIDE, text, vmid=seen.vmid))

    # acting

    def _intend(self, moves: list[Move], lead: Leadership, now: Now) -> list[Output]:
        """Write the moves down before anything is asked of PVE."""
        assert self.current is not None and self.plan is not None and self.snapshot is not None
        requests = self.current.requests
        self._acting.intend(moves, self.plan, self.snapshot, requests[0] if requests else None, lead.epoch, now)
        count = "starting now"
        if len(moves) < len(self.plan.moves):
            count = f"{len(moves)} of them start{'s' if len(moves) == 1 else ''} now"
        text = f"{described(self.current)}: {summary(self.plan)}; {count}"
        outputs = self._conclude(text, Level.NOTICE, now, moves)
        self._has_moved = True
        if self._opened_by is None and any(move.reason in LOAD_REASONS for move in moves):
            self._opened_by = self.plan.gate
        for request in requests:
            self._chronicle.answer(Answer(request, now.wall_s, text, final=False))
        self._phase, self._intended_s = Phase.WRITING, now.boot_s
        return [*outputs, self._chronicle.write(now)]

    def on_written(self, answer: WriteAnswer, lead: Leadership, senses: Senses, settings: Settings, now: Now) -> list[Output]:
        """The history was written: now the requests may go out. It was not: then nothing is asked of PVE."""
        if not self._chronicle.on_written(answer, now):
            return []
        requests = [] if answer.error or not lead.may_act(now.boot_s) else self.ha.due(self.leader, lead.lease_until_s, now)
        if self._phase is not Phase.WRITING:
            return requests
        self._phase = Phase.IDLE
        return requests + self._start(answer.error, lead, senses, settings, now)

    def _start(self, error: str, lead: Leadership, senses: Senses, settings: Settings, now: Now) -> list[Output]:
        """Ask PVE for what was written down just now."""
        why = self._why_not_start(lead, settings, now, error)
        if why is not None or self.plan is None or self.snapshot is None or self.current is None:
            self._acting.drop()
            self._agenda.wish_look(now.boot_s + RETRY_S)
            text = f"nothing was started: {why or 'there is nothing to answer any more'}"
            return [Say(Record(Level.WARNING, MessageId.OUTSIDE, text))]
        event, empty = self.current.events[0].kind.value, self._wanted_empty(senses, settings)
        outputs, is_less = self._acting.start(self.plan, self.snapshot, empty, event, lead, settings, now)
        if is_less:
            self._agenda.wish_look(now.boot_s + RETRY_S)
        return outputs

    def _why_not_start(self, lead: Leadership, settings: Settings, now: Now, error: str) -> str | None:
        """Why what was written down must not begin after all: a write can take long, and much may change meanwhile."""
        if error:
            return f"history.json was not written: {error}"
        if not lead.may_act(now.boot_s):
            return "the lease is too short"
        if now.boot_s - self._intended_s > LONG_WRITE_S:
            return f"writing it down took {now.boot_s - self._intended_s:.0f} s, and flags could not be read meanwhile"
        if self.snapshot is None or self.current is None:
            return None
        allowed = self._permission(settings, now)
        return allowed.why_not if not allowed.act or (self.permission.load and not allowed.load) else None

    def _wanted_empty(self, senses: Senses, settings: Settings) -> frozenset[str]:
        """The nodes that somebody wants empty, in small letters."""
        asked = {maintenance.node for maintenance in senses.maintenance()} | set(settings.nodes.maintenance)
        if not senses.has_seen and self.snapshot is not None:
            asked |= {maintenance.node for maintenance in self.snapshot.maintenance}
        return frozenset(name.lower() for name in asked)

    def on_migration(self, answer: MigrationAnswer | TaskAnswer | SearchAnswer, settings: Settings, now: Now) -> list[Output]:
        """Take an answer about a migration under way."""
        return self._settling.on_answer(answer, settings, now)

    def on_start(self, answer: StartAnswer) -> list[Output]:
        """Take an answer to the request to start a guest."""
        return start_failed(answer)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent of one node as a step: `step(now, inputs) -> (outputs, next wake-up)`. It has no clock and makes no call."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass

from agent import __version__
from agent.core import history as memory
from agent.core.documents import DocumentError, HistoryFile, parse
from agent.core.events import Event, EventKind, EventSource
from agent.core.ha_maintenance import ours as ours_of
from agent.core.journal import Level, MessageId, Record
from agent.core.leadership import LockTimes, Stage
from agent.core.load import NODE_SETTLED_S
from agent.core.settings import Mode, Settings
from agent.daemon import inputs, outputs
from agent.daemon.inputs import Now, Written
from agent.daemon.kept_loads import KeptLoads
from agent.daemon.lead import STOP_WITHIN_S, Lead
from agent.daemon.mailbox import CLAIM_EVERY_S, FACTS_EVERY_S, Mailbox
from agent.daemon.network import Network
from agent.daemon.outputs import Output, Say
from agent.daemon.senses import Senses
from agent.daemon.settings_in_force import SettingsInForce
from agent.daemon.status import StatusTold
from agent.daemon.work import Work
from agent.ports import FilesystemState

AGAIN_S = 5.0  # between two tries of what failed
WITHDRAW_S = NODE_SETTLED_S + 15.0  # up for long enough to take guests, also by what pvestatd tells every 10 s: then they come home

_WAITING = {
    FilesystemState.NOT_MOUNTED: "waiting: /etc/pve is not mounted (is pve-cluster running?)",
    FilesystemState.NO_QUORUM: "waiting: this node is not in the quorate part of the cluster",
    FilesystemState.STANDALONE: "waiting: this node is in no cluster, so there is nothing to balance",
}


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often the agent looks at what does not announce itself, in seconds; simulations of weeks look less often.

    Shape:   `signs_s` for the cluster log, inboxes and flags (0.2 ms of reading), `statistics_s` is pvestatd's own round.
    """

    signs_s: float = 2.0
    statistics_s: float = 10.0
    settings_s: float = 10.0
    status_s: float = 5.0
    inbox_s: float = CLAIM_EVERY_S
    facts_s: float = FACTS_EVERY_S


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this agent is: its node's name, a word for this run of it, and for this boot of the node."""

    node: str
    incarnation: str
    boot_id: str


class Agent:
    """One node's agent. Everything it knows of the world came in as an input."""

    def __init__(self, identity: Identity, settings: Settings, times: LockTimes, now: Now, cadence: Cadence | None = None) -> None:
        self.identity = identity
        self._cadence = cadence or Cadence()
        self._in_force = SettingsInForce(settings, self._cadence.settings_s)
        self.lead = Lead(identity.node, identity.incarnation, times, now.boot_s)
        self.mailbox = Mailbox(identity.node, identity.incarnation, identity.boot_id, self._cadence.inbox_s, self._cadence.facts_s)
        self.senses = Senses(identity.node)
        self.work: Work | None = None
        self.exit_status: int | None = None
        self._history: HistoryFile | None = None
        self._asked_history = False
        self._history_again_s = -1e9
        self._signs_s = self._statistics_s = self._timer_s = -1e9
        self._reading_signs = False
        self._stop_s: float | None = None
        self._left_under_way = 0
        self._said_state: FilesystemState | None = FilesystemState.QUORATE
        self._said_signs = ""
        self._said_flag = ""
        self._local_events: list[Event] = []
        self.network = Network()
        self._told = StatusTold(self._cadence.status_s)
        self._kept_loads = KeptLoads(self.senses.learned, now)
        self._withdraw_s: float | None = WITHDRAW_S  # when to take back the flag of a shutdown, None: nothing is to be taken back
        self._begun = False
        self._was_warm = False

    def step(self, now: Now, arrived: Iterable[inputs.Input]) -> tuple[list[Output], float]:
        """Take what has arrived; return what to do, and the CLOCK_BOOTTIME second of the next step if nothing arrives.

        A bug in one input's treatment is journalled with its traceback, and the agent goes on with the next.
        """
        result: list[Output] = []
        if not self._begun:
            self._begun = True
            text = f"proxlb-agent {__version__} runs on {self.identity.node}, mode {self.settings.mode.value}"
            result += [Say(Record(Level.NOTICE, MessageId.STARTED, text)), outputs.TellReady()]
        for one in arrived:
            try:
                result += self._take(one, now)
            except Exception:  # noqa: BLE001  # the one place where bugs are caught
                result.append(_bug(f"while taking {type(one).__name__}"))
        try:
            result += self._due(now)
        except Exception:  # noqa: BLE001  # the one place where bugs are caught
            result.append(_bug("while deciding what is due"))
        return result, self._next_wakeup_s(now)

    # inputs

    def _take(self, one: inputs.Input, now: Now) -> list[Output]:  # noqa: C901  # one case an input
        match one:
            case inputs.LockAnswer():
                return self._on_lock(one, now)
            case inputs.SignsSeen():
                return self._on_signs(one, now)
            case inputs.HistorySeen():
                return self._on_history(one, now)
            case inputs.LoadsSeen():
                self.senses.learned, said = self._kept_loads.on_seen(one, self.senses.learned, now)
                return said
            case inputs.WriteAnswer(what=Written.INBOX):
                return self.mailbox.on_written(one)
            case inputs.WriteAnswer():
                return [] if self.work is None else self.work.on_written(one, self.lead.state, self.senses, self.settings, now)
            case inputs.FlagRemoved():
                return self._on_flag_removed(one)
            case inputs.InboxSeen():
                events, said = self.mailbox.on_claimed(one, now)
                if self.work is not None:
                    for event in events:
                        said += self.work.on_event(event, self.senses, now)
                elif self.lead.state.stage is Stage.LEADING:
                    self._local_events += [event for event in events if event.request is not None]
                return said
            case inputs.FactsSeen():
                return self.mailbox.on_facts(one, now)
            case inputs.OwnInboxSeen():
                self.mailbox.on_own_file(one)
                return []
            case inputs.ShutdownFlagWithdrawn():
                return self._on_flag_withdrawn(one, now)
            case inputs.SettingsSeen():
                return self._on_settings(one, now)
            case inputs.BellRang():
                self.mailbox.ring()
                return []
            case inputs.ReloadAsked():
                return self._in_force.reload(now)
            case inputs.StopAsked():
                if self._stop_s is None:
                    self._stop_s = now.boot_s
                    self._left_under_way = len(self.work.follow.records) if self.work is not None else 0
                    return [
                        *self._kept_loads.keep(self.senses.learned, now),
                        *self._give_up(now, stops=True, why="the agent was asked to stop"),
                    ]
                return []
        if self.work is None:
            return []  # an answer to a lead that is over
        match one:
            case inputs.Observed():
                return self.work.on_observed(one, self.senses, self.settings, self.lead.state, now)
            case inputs.HaMaintenanceAnswer():
                return self.work.on_ha_maintenance(one, self.senses, now)
            case inputs.VerdictSeen():
                return self.work.on_verdict(one, self.senses, self.settings, self.lead.state, now)
            case inputs.MigrationAnswer() | inputs.TaskAnswer() | inputs.SearchAnswer():
                return self.work.on_migration(one, self.settings, now)
            case inputs.StartAnswer():
                return self.work.on_start(one)
        raise TypeError(f"nobody takes {one!r}")

    def _on_lock(self, answer: inputs.LockAnswer, now: Now) -> list[Output]:
        said = self.lead.on_answer(answer, now)
        said += self._tell_state(answer.filesystem)
        if self.lead.state.stage is not Stage.LEADING:
            self._forget_lead()
        return said

    def _forget_lead(self) -> None:
        """What a lead knew is over with it; what must live on stands in history.json and in PVE's tasks."""
        self.work = None
        self._history = None
        self._asked_history = False
        self._reading_signs = False

    def _tell_state(self, state: FilesystemState) -> list[Output]:
        """Say once what the agent waits for, and once that it is over."""
        if state is self._said_state:
            return []
        before, self._said_state = self._said_state, state
        if state in _WAITING:
            return [Say(Record(Level.NOTICE, MessageId.WAITING, _WAITING[state]))]
        return [Say(Record(Level.NOTICE, MessageId.WAITING, "goes on: /etc/pve can be used again"))] if before is not None else []

    def _on_signs(self, seen: inputs.SignsSeen, now: Now) -> list[Output]:
        self._reading_signs = False
        if self.lead.state.stage is not Stage.LEADING:
            return []
        if seen.error:
            said = [] if seen.error == self._said_signs else [_outside(Level.WARNING, f"files below /etc/pve cannot be read: {seen.error}")]
            self._said_signs = seen.error
            return list(said)
        self._said_signs = ""
        answered = frozenset(answer.request for answer in self._history.answers) if self._history is not None else frozenset()
        if self.work is not None:
            answered = frozenset(answer.request for answer in self.work.history.answers)
        ours = ours_of(self._history.ha_asks) if self._history is not None else frozenset()
        if self.work is not None:
            ours = self.work.ha.ours
        events = self.senses.on_signs(seen, now, self.settings, lambda request: request in answered, ours)
        self.mailbox.nodes = max(1, len(self.senses.inboxes))
        if self.senses.shuts_down(self.identity.node, self.identity.boot_id):
            return self.lead.give_up(now, stops=False, why="this node shuts down")
        result: list[Output] = self.network.on_signs(seen)
        if self.work is None:
            self._local_events += [event for event in events if event.request is not None]
            return result + self._begin_work(now)
        result += self.work.on_pause(self.senses)
        result += self.work.on_flags(self.senses)
        for event in events:
            result += self.work.on_event(event, self.senses, now)
        self.work.follow.on_log(self.senses.ended)
        self.work.beside.on_log(self.senses.told, now)
        if self.senses.membership_changed_s == now.boot_s:
            self.work.membership_changed(now.boot_s)
        return result

    def _on_flag_removed(self, answer: inputs.FlagRemoved) -> list[Output]:
        before, self._said_flag = self._said_flag, answer.error
        if answer.error:
            text = f"the time of {answer.words} is up, and its flag cannot be removed: {answer.error}"
            return [_outside(Level.WARNING, text)] if answer.error != before else []
        text = f"the time of {answer.words} is up: its flag is removed"
        return [Say(Record(Level.NOTICE, MessageId.MAINTENANCE, text))] if answer.was_there else []

    def _on_history(self, seen: inputs.HistorySeen, now: Now) -> list[Output]:
        self._asked_history = False
        if self.lead.state.stage is not Stage.LEADING or self.work is not None:
            return []
        if seen.error:
            self._history_again_s = now.boot_s + AGAIN_S
            return [_outside(Level.WARNING, f"history.json cannot be read: {seen.error}")]
        said: list[Output] = []
        if seen.text is None:
            self._history = memory.empty(now.wall_s)
        else:
            try:
                self._history = parse(HistoryFile, seen.text)
            except DocumentError as error:
                said.append(_outside(Level.ERROR, f"history.json cannot be used and begins anew: {error}"))
                self._history = memory.empty(now.wall_s)
        return said + self._begin_work(now)

    def _on_flag_withdrawn(self, answer: inputs.ShutdownFlagWithdrawn, now: Now) -> list[Output]:
        """The flag with which this node said that it shuts down holds until the node is up again, and no longer."""
        if answer.error:
            self._withdraw_s = now.boot_s + AGAIN_S
            return []
        self._withdraw_s = None
        return [_outside(Level.NOTICE, "this node is up again: the flag of its shutdown is withdrawn")] if answer.done else []

    def _begin_work(self, now: Now) -> list[Output]:
        """Begin to lead in earnest: what former leaders left is known, and what nodes report has been read."""
        if self._history is None or not self.senses.has_seen or self.work is not None:
            return []
        leader = self.lead.state.leader
        if leader is None:
            return []
        self.work = Work(self._history, leader, now)
        self._timer_s = now.boot_s
        self._was_warm = False
        said = self.work.on_pause(self.senses)
        drained = [maintenance.node for maintenance in self.senses.maintenance()]
        detail = f"{', '.join(drained)} {'are' if drained[1:] else 'is'} to be empty" if drained else ""
        said += self.work.on_event(Event(EventKind.TOOK_LEAD, EventSource.AGENT, now.boot_s, detail=detail), self.senses, now)
        for event in self._local_events:
            said += self.work.on_event(event, self.senses, now)
        said += self.work.on_flags(self.senses)
        self._local_events = []
        said.append(outputs.MakeFlagFolder())
        taken = self.work.follow.records
        if taken:
            said.append(_outside(Level.NOTICE, f"takes over {len(taken)} migration{'s' if len(taken) != 1 else ''} of the former leader"))
        return said

    def _on_settings(self, seen: inputs.SettingsSeen, now: Now) -> list[Output]:
        is_new, said = self._in_force.on_seen(seen)
        if not is_new or self.work is None:
            return said
        event = Event(EventKind.SETTINGS_CHANGED, EventSource.AGENT, now.boot_s)
        return said + self.work.on_event(event, self.senses, now)

    # what is due

    def _due(self, now: Now) -> list[Output]:
        result: list[Output] = []
        if self._stop_s is not None:
            return self._stop(now)
        can_write = self._said_state is FilesystemState.QUORATE
        may_stand = self.settings.mode is not Mode.OFF and can_write
        if self.settings.mode is Mode.OFF and self.lead.state.stage is Stage.LEADING:
            result += self._give_up(now, stops=False, why="mode is off")
        if self.work is not None and self.work.failing_since_s is not None:
            failing_s = now.boot_s - self.work.failing_since_s
            if failing_s >= self.lead.state.times.api_failure_s:
                result += self._give_up(now, stops=False, why=f"its access to the API fails for {failing_s:.0f} s")
        result += self.lead.next_outputs(now, may_stand=may_stand)
        if self.lead.state.stage is not Stage.LEADING and (self.work is not None or self._history is not None):
            self._forget_lead()
        result += self.mailbox.next_outputs(now, can_write=can_write, leads=self.work is not None)
        if can_write and self._withdraw_s is not None and now.boot_s >= self._withdraw_s:
            self._withdraw_s = float("inf")  # until the answer
            result.append(outputs.WithdrawShutdownFlag(self.identity.node, self.identity.boot_id))
        result += self._in_force.due(now)
        if self.lead.state.stage is Stage.LEADING:
            result += self._due_as_leader(now)
        return result + self._told.due(self, now)

    def _due_as_leader(self, now: Now) -> list[Output]:
        result: list[Output] = []
        if self.work is None and self._history is None and not self._asked_history and now.boot_s >= self._history_again_s:
            self._asked_history = True
            self.senses = Senses(self.identity.node, self.senses.learned)
            self._signs_s = self._statistics_s = -1e9
            result.append(outputs.ReadHistory())
            result += self._kept_loads.asked_once()
        if not self._reading_signs and now.boot_s - self._signs_s >= self._cadence.signs_s:
            statistics = now.boot_s - self._statistics_s >= self._cadence.statistics_s
            self._signs_s, self._reading_signs = now.boot_s, True
            self._statistics_s = now.boot_s if statistics else self._statistics_s
            result.append(outputs.ReadSigns(statistics=statistics))
        result += self._kept_loads.due(self.senses.learned, now)
        if self.work is None:
            return result
        is_warm = now.boot_s >= self.work.warm_at_s(self.settings)
        if now.boot_s - self._timer_s >= self.settings.triggers.reconcile_s or (is_warm and not self._was_warm):
            result.append(outputs.MakeFlagFolder())
            if now.boot_s > self._timer_s:
                result += self.work.on_event(Event(EventKind.TIMER, EventSource.AGENT, now.boot_s), self.senses, now)
            self._timer_s = now.boot_s
        self._was_warm = is_warm
        for ended in self.senses.flags.ended(now):
            result.append(outputs.RemoveFlag(ended.path, ended.text, ended.words, self.work.leader))
        return result + self.work.next_outputs(now, self.lead.state, self.settings)

    def _give_up(self, now: Now, *, stops: bool, why: str) -> list[Output]:
        is_asking = self.work is not None and self.work.follow.is_asking
        return self.lead.give_up(now, stops=stops, why=why, is_asking=is_asking)

    def _stop(self, now: Now) -> list[Output]:
        assert self._stop_s is not None
        if self.exit_status is not None:
            return []
        result = self.lead.next_outputs(now, may_stand=False)
        late = now.boot_s - self._stop_s >= STOP_WITHIN_S
        if self.lead.state.stage in (Stage.LEFT, Stage.FOLLOWING) or late:
            self.exit_status = 0
            count = self._left_under_way
            goes_on = "1 migration goes on" if count == 1 else f"{count} migrations go on"
            text = "stopped" + (f"; {goes_on} in PVE, the next leader finds what is under way" if count else "")
            text += "; the lock could not be given back in time, it expires by itself" if late else ""
            result += [Say(Record(Level.NOTICE, MessageId.STOPPED, text)), outputs.Exit(0)]
        return result

    @property
    def settings(self) -> Settings:
        """The settings in force, with one slot for migrations where these share corosync's network."""
        return self.network.bound(self._in_force.settings)

    @property
    def filesystem(self) -> FilesystemState | None:
        """What can be done below /etc/pve as far as is known, None before the first look."""
        return self.lead.filesystem

    def _next_wakeup_s(self, now: Now) -> float:
        if self._stop_s is not None:
            return now.boot_s + 0.2
        due = min(now.boot_s + self.lead.state.times.look_every_s, self.mailbox.next_wakeup_s())
        if self.work is not None:
            due = min(due, self.work.next_wakeup_s(self.settings), self.senses.flags.next_end_s())
        return max(due, now.boot_s + 0.05)


def _outside(level: Level, text: str) -> Say:
    return Say(Record(level, MessageId.OUTSIDE, text))


def _bug(where: str) -> Say:
    text = f"a bug in the agent, {where}; it goes on. Please report this:\n{traceback.format_exc()}"
    return Say(Record(Level.ERROR, MessageId.BUG, text))

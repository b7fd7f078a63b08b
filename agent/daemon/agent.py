# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent of one node as a step: `step(now, inputs) -> (outputs, next wake-up)`. It has no clock and makes no call."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING

from agent import __version__
from agent.core.cluster import NODE_SETTLED_S
from agent.core.events import Event, EventKind, EventSource
from agent.core.journal import Level, MessageId, Record
from agent.core.leadership import LockTimes, Stage
from agent.core.settings import Mode, Settings
from agent.daemon import inputs, outputs
from agent.daemon.identity import Cadence, Identity
from agent.daemon.inputs import Now, Written
from agent.daemon.lead import STOP_WITHIN_S, Lead
from agent.daemon.mailbox import Mailbox
from agent.daemon.outputs import Output, Say
from agent.daemon.settings_in_force import SettingsInForce
from agent.daemon.status import StatusTold
from agent.ports import FilesystemState

if TYPE_CHECKING:
    from agent.daemon.kept_loads import KeptLoads
    from agent.daemon.leading import Leading
    from agent.daemon.work import Work

AGAIN_S = 5.0  # between two tries of what failed
WITHDRAW_S = NODE_SETTLED_S + 15.0  # up for long enough to take guests, also by what pvestatd tells every 10 s: then they come home

_WAITING = {
    FilesystemState.NOT_MOUNTED: "waiting: /etc/pve is not mounted (is pve-cluster running?)",
    FilesystemState.NO_QUORUM: "waiting: this node is not in the quorate part of the cluster",
    FilesystemState.STANDALONE: "waiting: this node is in no cluster, so there is nothing to balance",
}


class Agent:
    """One node's agent. Everything it knows of the world came in as an input."""

    def __init__(self, identity: Identity, settings: Settings, times: LockTimes, now: Now, cadence: Cadence | None = None) -> None:
        self.identity = identity
        self._cadence = cadence or Cadence()
        self._in_force = SettingsInForce(settings, self._cadence.settings_s)
        self.lead = Lead(identity.node, identity.incarnation, times, now.boot_s)
        self.mailbox = Mailbox(identity.node, identity.incarnation, identity.boot_id, self._cadence.inbox_s, self._cadence.facts_s)
        self.leading: Leading | None = None
        self.exit_status: int | None = None
        self._kept_loads: KeptLoads | None = None  # from one lead to the next
        self._stop_s: float | None = None
        self._left_under_way = 0
        self._said_state: FilesystemState | None = FilesystemState.QUORATE
        self._said_flag = ""
        self._told = StatusTold(self._cadence.status_s)
        self._withdraw_s: float | None = WITHDRAW_S  # when to take back the flag of a shutdown, None: nothing is to be taken back
        self._begun = False

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

    def _take(self, one: inputs.Input, now: Now) -> list[Output]:  # one case an input
        match one:
            case inputs.LockAnswer():
                return self._on_lock(one, now)
            case inputs.WriteAnswer(what=Written.INBOX):
                return self.mailbox.on_written(one)
            case inputs.FlagRemoved():
                return self._on_flag_removed(one)
            case inputs.InboxSeen():
                events, said = self.mailbox.on_claimed(one, now)
                return said if self.leading is None else said + self.leading.on_events(events, now)
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
                return self._on_stop(now)
        if self.leading is not None:
            said = self.leading.take(one, self.settings, now)
            if isinstance(one, inputs.SignsSeen) and not one.error:
                self.mailbox.nodes = max(1, len(self.leading.senses.inboxes))
            return said
        if isinstance(one, inputs.LoadsSeen) and self._kept_loads is not None:
            return self._kept_loads.on_seen(one, now)
        return []  # an answer to a lead that is over

    def _on_stop(self, now: Now) -> list[Output]:
        if self._stop_s is not None:
            return []
        self._stop_s = now.boot_s
        self._left_under_way = 0 if self.leading is None else self.leading.under_way
        kept = self._kept_loads if self.leading is None else self.leading.kept_loads
        return [*([] if kept is None else kept.keep(now)), *self._give_up(now, stops=True, why="the agent was asked to stop")]

    def _on_lock(self, answer: inputs.LockAnswer, now: Now) -> list[Output]:
        said = self.lead.on_answer(answer, now)
        said += self._tell_state(answer.filesystem)
        self._begin_or_end(now)
        return said

    def _begin_or_end(self, now: Now) -> None:
        """What a lead knew is over with it; what must live on stands in history.json and in PVE's tasks."""
        leads = self.lead.state.stage is Stage.LEADING
        if leads and self.leading is None:
            from agent.daemon.leading import Leading  # with it comes what a follower has no use for: senses, planner, work

            self.leading = Leading(self.identity, self.lead, self._cadence, self._kept_loads, now)
        elif not leads and self.leading is not None:
            self._kept_loads, self.leading = self.leading.kept_loads, None

    def _tell_state(self, state: FilesystemState) -> list[Output]:
        """Say once what the agent waits for, and once that it is over."""
        if state is self._said_state:
            return []
        before, self._said_state = self._said_state, state
        if state in _WAITING:
            return [Say(Record(Level.NOTICE, MessageId.WAITING, _WAITING[state]))]
        return [Say(Record(Level.NOTICE, MessageId.WAITING, "goes on: /etc/pve can be used again"))] if before is not None else []

    def _on_flag_removed(self, answer: inputs.FlagRemoved) -> list[Output]:
        before, self._said_flag = self._said_flag, answer.error
        if answer.error:
            text = f"the time of {answer.words} is up, and its flag cannot be removed: {answer.error}"
            return [_outside(Level.WARNING, text)] if answer.error != before else []
        text = f"the time of {answer.words} is up: its flag is removed"
        return [Say(Record(Level.NOTICE, MessageId.MAINTENANCE, text))] if answer.was_there else []

    def _on_flag_withdrawn(self, answer: inputs.ShutdownFlagWithdrawn, now: Now) -> list[Output]:
        """The flag with which this node said that it shuts down holds until the node is up again, and no longer."""
        if answer.error:
            self._withdraw_s = now.boot_s + AGAIN_S
            return []
        self._withdraw_s = None
        return [_outside(Level.NOTICE, "this node is up again: the flag of its shutdown is withdrawn")] if answer.done else []

    def _on_settings(self, seen: inputs.SettingsSeen, now: Now) -> list[Output]:
        is_new, said = self._in_force.on_seen(seen)
        if not is_new or self.leading is None:
            return said
        return said + self.leading.on_events([Event(EventKind.SETTINGS_CHANGED, EventSource.AGENT, now.boot_s)], now)

    # what is due

    def _due(self, now: Now) -> list[Output]:
        result: list[Output] = []
        if self._stop_s is not None:
            return self._stop(now)
        can_write = self._said_state is FilesystemState.QUORATE
        may_stand = self.settings.mode is not Mode.OFF and can_write
        if self.settings.mode is Mode.OFF and self.lead.state.stage is Stage.LEADING:
            result += self._give_up(now, stops=False, why="mode is off")
        failing_s = 0.0 if self.leading is None else self.leading.failing_s(now)
        if failing_s >= self.lead.state.times.api_failure_s:
            result += self._give_up(now, stops=False, why=f"its access to the API fails for {failing_s:.0f} s")
        result += self.lead.next_outputs(now, may_stand=may_stand)
        self._begin_or_end(now)
        result += self.mailbox.next_outputs(now, can_write=can_write, leads=self.work is not None)
        if can_write and self._withdraw_s is not None and now.boot_s >= self._withdraw_s:
            self._withdraw_s = float("inf")  # until the answer
            result.append(outputs.WithdrawShutdownFlag(self.identity.node, self.identity.boot_id))
        result += self._in_force.due(now)
        if self.leading is not None:
            result += self.leading.next_outputs(self.settings, now)
        return result + self._told.due(self, now)

    def _give_up(self, now: Now, *, stops: bool, why: str) -> list[Output]:
        is_asking = self.leading is not None and self.leading.is_asking
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
    def work(self) -> Work | None:
        """The work of this node's lead, None while it does not lead or has not begun."""
        return None if self.leading is None else self.leading.work

    @property
    def settings(self) -> Settings:
        """The settings in force, of a leader with one slot for migrations where these share corosync's network."""
        settings = self._in_force.settings
        return settings if self.leading is None else self.leading.network.bound(settings)

    @property
    def settings_problems(self) -> tuple[str, ...]:
        """Why other settings are in force than the files hold now."""
        return (f"the settings are not taken: {self._in_force.problem}",) if self._in_force.problem else ()

    @property
    def filesystem(self) -> FilesystemState | None:
        """What can be done below /etc/pve as far as is known, None before the first look."""
        return self.lead.filesystem

    def _next_wakeup_s(self, now: Now) -> float:
        if self._stop_s is not None:
            return now.boot_s + 0.2
        due = min(now.boot_s + self.lead.state.times.look_every_s, self.mailbox.next_wakeup_s())
        if self.leading is not None:
            due = min(due, self.leading.next_wakeup_s(self.settings))
        return max(due, now.boot_s + 0.05)


def _outside(level: Level, text: str) -> Say:
    return Say(Record(level, MessageId.OUTSIDE, text))


def _bug(where: str) -> Say:
    text = f"a bug in the agent, {where}; it goes on. Please report this:\n{traceback.format_exc()}"
    return Say(Record(Level.ERROR, MessageId.BUG, text))

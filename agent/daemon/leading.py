# SPDX-License-Identifier: GPL-3.0-or-later
"""What an agent has only while it leads: senses for the whole cluster, and the work. Followers never import this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.core import history as memory
from agent.core.documents import DocumentError, HistoryFile, parse
from agent.core.events import Event, EventKind, EventSource
from agent.core.ha_maintenance import ours as ours_of
from agent.core.history import finally_answered
from agent.core.journal import Level, MessageId, Record
from agent.core.json_types import JsonObject
from agent.core.settings import Settings
from agent.daemon import inputs, outputs
from agent.daemon.inputs import Now
from agent.daemon.kept_loads import KeptLoads
from agent.daemon.network import Network
from agent.daemon.outputs import Output, Say
from agent.daemon.senses import Senses
from agent.daemon.status import NO_WORK
from agent.daemon.work import Work
from agent.daemon.work_status import work_line, work_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent.daemon.identity import Cadence, Identity
    from agent.daemon.lead import Lead

AGAIN_S = 5.0  # between two tries of what failed


class Leading:
    """One lead, from the first look at what former leaders left to its end.

    What lives on after it stands in history.json, in PVE's tasks, and in the kept loads, which the next lead of this process is given.
    """

    def __init__(self, identity: Identity, lead: Lead, cadence: Cadence, kept_loads: KeptLoads | None, now: Now) -> None:
        self._kept_loads = kept_loads or KeptLoads(now)
        self.senses = Senses(identity.node, self._kept_loads.learned)
        self.work: Work | None = None
        self.network = Network()
        self._identity = identity
        self._lead = lead
        self._cadence = cadence
        self._history: HistoryFile | None = None
        self._asked_history = False
        self._history_again_s = -1e9
        self._signs_s = self._statistics_s = self._timer_s = -1e9
        self._reading_signs = False
        self._said_signs = ""
        self._events: list[Event] = []  # what came before the work could begin
        self._was_warm = False

    @property
    def kept_loads(self) -> KeptLoads:
        """What guests were seen to take, up to now."""
        self._kept_loads.learned = self.senses.learned
        return self._kept_loads

    @property
    def under_way(self) -> int:
        """How many migrations this lead knows to be under way."""
        return 0 if self.work is None else len(self.work.follow.records)

    @property
    def is_asking(self) -> bool:
        """True while a request to migrate has no answer."""
        return self.work is not None and self.work.follow.is_asking

    def failing_s(self, now: Now) -> float:
        """For how long the API has not been reached."""
        since_s = None if self.work is None else self.work.failing_since_s
        return 0.0 if since_s is None else now.boot_s - since_s

    # inputs

    def take(self, one: inputs.Input, settings: Settings, now: Now) -> list[Output]:  # one case an input
        """Take an input that only a leader has asked for."""
        match one:
            case inputs.SignsSeen():
                return self._on_signs(one, settings, now)
            case inputs.HistorySeen():
                return self._on_history(one, now)
            case inputs.LoadsSeen():
                kept = self.kept_loads
                said = kept.on_seen(one, now)
                self.senses.learned = kept.learned
                return said
        if self.work is None:
            return []  # an answer to a lead that is over
        match one:
            case inputs.WriteAnswer():
                return self.work.on_written(one, self._lead.state, self.senses, settings, now)
            case inputs.Observed():
                return self.work.on_observed(one, self.senses, settings, self._lead.state, now)
            case inputs.HaMaintenanceAnswer():
                return self.work.on_ha_maintenance(one, self.senses, now)
            case inputs.VerdictSeen():
                return self.work.on_verdict(one, self.senses, settings, self._lead.state, now)
            case inputs.MigrationAnswer() | inputs.TaskAnswer() | inputs.SearchAnswer():
                return self.work.on_migration(one, settings, now)
            case inputs.StartAnswer():
                return self.work.on_start(one)
        raise TypeError(f"nobody takes {one!r}")

    def on_events(self, events: Iterable[Event], now: Now) -> list[Output]:
        """Take this node's own events; of the time before the work begins, requests alone are kept: the rest a full look sees."""
        if self.work is None:
            self._events += [event for event in events if event.request is not None]
            return []
        return [output for event in events for output in self.work.on_event(event, self.senses, now)]

    def _on_signs(self, seen: inputs.SignsSeen, settings: Settings, now: Now) -> list[Output]:
        self._reading_signs = False
        if seen.error:
            said = [] if seen.error == self._said_signs else [_outside(Level.WARNING, f"files below /etc/pve cannot be read: {seen.error}")]
            self._said_signs = seen.error
            return list(said)
        self._said_signs = ""
        history = self._history if self.work is None else self.work.history
        answered = frozenset() if history is None else finally_answered(history)
        ours = ours_of(self._history.ha_asks) if self._history is not None else frozenset()
        if self.work is not None:
            ours = self.work.ha.ours
        events = self.senses.on_signs(seen, now, settings, lambda request: request in answered, ours)
        if self.senses.shuts_down(self._identity.node, self._identity.boot_id):
            return self._lead.give_up(now, stops=False, why="this node shuts down")
        result: list[Output] = self.network.on_signs(seen, settings)
        if self.work is None:
            self.on_events(events, now)
            return result + self._begin_work(now)
        result += self.work.on_pause(self.senses)
        result += self.work.on_flags(self.senses)
        result += self.on_events(events, now)
        self.work.follow.on_log(self.senses.ended)
        self.work.beside.on_log(self.senses.told, now)
        if self.senses.membership_changed_s == now.boot_s:
            self.work.membership_changed(now.boot_s)
        return result

    def _on_history(self, seen: inputs.HistorySeen, now: Now) -> list[Output]:
        self._asked_history = False
        if self.work is not None:
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

    def _begin_work(self, now: Now) -> list[Output]:
        """Begin to lead in earnest: what former leaders left is known, and what nodes report has been read."""
        leader = self._lead.state.leader
        if self._history is None or not self.senses.has_seen or self.work is not None or leader is None:
            return []
        self.work = Work(self._history, leader, now)
        self._timer_s = now.boot_s
        self._was_warm = False
        said = self.work.on_pause(self.senses)
        drained = [maintenance.node for maintenance in self.senses.maintenance()]
        detail = f"{', '.join(drained)} {'are' if drained[1:] else 'is'} to be empty" if drained else ""
        said += self.work.on_event(Event(EventKind.TOOK_LEAD, EventSource.AGENT, now.boot_s, detail=detail), self.senses, now)
        answered = finally_answered(self._history)
        requests = [event for event in self._events if event.request not in answered]  # the signs may have been read before the history
        said += self.on_events(requests, now)
        self.work.close_requests({event.request for event in requests}, now)
        said += self.work.on_flags(self.senses)
        said.append(outputs.MakeFlagFolder())
        taken = self.under_way
        if taken:
            said.append(_outside(Level.NOTICE, f"takes over {taken} migration{'s' if taken != 1 else ''} of the former leader"))
        return said

    # what is due

    def next_outputs(self, settings: Settings, now: Now) -> list[Output]:
        """What to read and to do now."""
        result: list[Output] = []
        if self.work is None and self._history is None and not self._asked_history and now.boot_s >= self._history_again_s:
            self._asked_history = True
            self.senses = Senses(self._identity.node, self.senses.learned)
            self._signs_s = self._statistics_s = -1e9
            result.append(outputs.ReadHistory())
            result += self.kept_loads.asked_once()
        if not self._reading_signs and now.boot_s - self._signs_s >= self._cadence.signs_s:
            statistics = now.boot_s - self._statistics_s >= self._cadence.statistics_s
            self._signs_s, self._reading_signs = now.boot_s, True
            self._statistics_s = now.boot_s if statistics else self._statistics_s
            result.append(outputs.ReadSigns(statistics=statistics))
        result += self.kept_loads.due(now)
        if self.work is None:
            return result
        is_warm = now.boot_s >= self.work.warm_at_s(settings)
        if now.boot_s - self._timer_s >= settings.triggers.reconcile_s or (is_warm and not self._was_warm):
            result.append(outputs.MakeFlagFolder())
            if now.boot_s > self._timer_s:
                result += self.work.on_event(Event(EventKind.TIMER, EventSource.AGENT, now.boot_s), self.senses, now)
            self._timer_s = now.boot_s
        self._was_warm = is_warm
        for ended in self.senses.flags.ended(now):
            result.append(outputs.RemoveFlag(ended.path, ended.text, ended.words, self.work.leader))
        return result + self.work.next_outputs(now, self._lead.state, settings)

    def next_wakeup_s(self, settings: Settings) -> float:
        """When something is due that no input tells."""
        if self.work is None:
            return float("inf")
        return min(self.work.next_wakeup_s(settings), self.senses.flags.next_end_s())

    # what is told of it

    def line(self) -> str:
        """The work in a few words, for systemd's one line."""
        return "" if self.work is None else work_line(self.work)

    def rows(self, settings: Settings, now: Now) -> JsonObject:
        """What `status` shows of the work."""
        return NO_WORK if self.work is None else work_rows(self.work, self.senses, self.network.shared, settings, now)


def _outside(level: Level, text: str) -> Say:
    return Say(Record(level, MessageId.OUTSIDE, text))

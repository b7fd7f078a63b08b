# SPDX-License-Identifier: GPL-3.0-or-later
"""Which events the leader has to answer: not the echoes of migrations, and each only once, whoever tells of it."""

from __future__ import annotations

import itertools
import math

from agent.core.events import Event, EventKind, EventSource
from agent.core.journal import Level, MessageId, Record
from agent.core.migrations import Migration
from agent.core.settings import Settings
from agent.core.triggers import ECHO_S, MigrationTraces, Rank, Trigger, described, gathered, joined, merged, traces, why_echo
from agent.daemon.inputs import Now
from agent.daemon.mailbox import KEPT_S
from agent.daemon.outputs import Output, Say
from agent.daemon.telling import of_event

TOLD_SINGLY = 3  # starts and stops of one trigger that have a line each; of a storm the rest is told in one
MOST_TOLD = 20_000  # starts and stops that are remembered as told: of more guests than a cluster has, in five minutes
SAME_S = 30.0  # hook, cluster log and statistics tell of one start within so long

_OPPOSITE = {EventKind.GUEST_STARTED: EventKind.GUEST_STOPPED, EventKind.GUEST_STOPPED: EventKind.GUEST_STARTED}
_GUEST_EVENTS = frozenset({EventKind.GUEST_STARTED, EventKind.GUEST_STOPPED, EventKind.GUEST_CHANGED})


class Hearing:
    """The events that wait to be answered together, as one trigger."""

    def __init__(self, now: Now) -> None:
        self.pending: Trigger | None = None
        self._gathered: list[Event] = []
        self._told: dict[tuple[EventKind, int | None, str | None], tuple[EventSource, float]] = {}
        self._told_cleared_s = now.boot_s

    def on_event(self, event: Event, records: tuple[Migration, ...], migrating: dict[int, float | None], now: Now) -> list[Output]:
        """Take a hint, unless it only repeats a migration.

        Shape:   `records` are the leader's own attempts; `migrating` maps the VMIDs that the cluster log tells of to the end of
                 their migration in Unix seconds, None while it runs.
        """
        echo = _why_echo(event, traces(None, records), migrating, now)
        if echo is not None:
            text = f"guest {event.vmid}: {event.kind.value} on {event.node}, {echo}: nothing to look at"
            return [of_event(Level.DEBUG, text, event)]
        if self._is_told_again(event):
            return []
        before = self.pending
        self.pending = joined(self.pending, event)
        if before is not None and len(before.events) == len(self.pending.events):
            return []
        level = Level.DEBUG if event.kind is EventKind.TIMER else Level.INFO
        if event.kind in _GUEST_EVENTS and sum(other.kind in _GUEST_EVENTS for other in self.pending.events) > TOLD_SINGLY:
            level = Level.DEBUG
            self._gathered.append(event)
        return [_heard(event, level)]

    def _is_told_again(self, event: Event) -> bool:
        """True when another source told the same a moment ago, as hook, cluster log and statistics all see one start; or told since
        that it is otherwise."""
        if event.kind not in _GUEST_EVENTS:
            return False
        if event.at_s != self._told_cleared_s:  # not for each event of a burst
            self._told_cleared_s = event.at_s
            self._told = {known: told for known, told in self._told.items() if event.at_s - told[1] < SAME_S + KEPT_S}
        key = (event.kind, event.vmid, event.node)
        if event.source is EventSource.STATISTICS and event.kind in _OPPOSITE:
            since = self._told.get((_OPPOSITE[event.kind], event.vmid, event.node))
            if since is not None and since[1] > event.happened_s:
                return True  # the numbers were taken before that
        source, told_s = self._told.get(key, (event.source, 0.0))
        if source is not event.source and event.happened_s - SAME_S < told_s < event.at_s + SAME_S:
            return True
        self._told.pop(key, None)  # so that the oldest come first
        self._told[key] = (event.source, event.at_s)
        if len(self._told) > MOST_TOLD:
            self._told = dict(itertools.islice(self._told.items(), MOST_TOLD // 2, None))
        return False

    def due_s(self, settings: Settings, settled_at_s: float) -> float:
        """When what waits is to be answered: not before loads are settled, but for maintenance."""
        if self.pending is None:
            return math.inf
        due = self.pending.due_s(settings.triggers)
        return due if self.pending.rank is Rank.MAINTENANCE else max(due, settled_at_s)

    def take(self, current: Trigger | None, now: Now) -> tuple[Trigger, list[Output]]:
        """What is to be answered now, together with what is being answered already; and the line that sums a storm up."""
        assert self.pending is not None
        outputs: list[Output] = []
        if len(self._gathered) == 1 and not self.pending.left_out:
            outputs.append(_heard(self._gathered[0], Level.INFO))
        elif self._gathered:
            text = f"{gathered(self._gathered, self.pending.left_out)}, seen since {now.boot_s - self.pending.first_s:.0f} s"
            outputs.append(Say(Record(Level.INFO, MessageId.EVENT, text)))
        self._gathered = []
        trigger = self.pending if current is None else merged(current, self.pending)
        self.pending = None
        return trigger, outputs


def _why_echo(event: Event, seen: MigrationTraces, migrating: dict[int, float | None], now: Now) -> str | None:
    """Why the event is only part of a migration, None when it is not."""
    echo = why_echo(event, seen, now.wall_s)
    if echo is None and event.vmid in migrating and event.kind in _GUEST_EVENTS:
        ended = migrating[event.vmid]
        if ended is None:
            return "it is migrating"
        if -ECHO_S < now.wall_s - ended < ECHO_S + event.age_s:
            return f"it migrated {max(0.0, now.wall_s - ended):.0f} s ago"
    return echo


def _heard(event: Event, level: Level) -> Output:
    """What happened, and how it got known."""
    return of_event(level, f"{described(joined(None, event))}, seen by {event.source.value}", event)

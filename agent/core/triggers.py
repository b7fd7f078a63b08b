# SPDX-License-Identifier: GPL-3.0-or-later
"""From hints to reasons to look: which event is an echo, what it makes worth looking at, and when to look."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

from agent.core.cluster import MIGRATE_KINDS, Snapshot
from agent.core.events import Event, EventKind
from agent.core.guest_load import FRESH_S
from agent.core.migrations import Migration
from agent.core.question import EVERYWHERE, Scope
from agent.core.settings import TriggerSettings

ECHO_S = 60.0  # a migration's starts and stops are reported, on all ways, within this time after its end
MOST_EVENTS = 500  # of one trigger; what comes on top is covered by looking everywhere
NAMED, MOST_NAMED = 3, 6  # of a trigger in words: so many guests at the most, and all else up to so many


class Rank(IntEnum):
    """What is served first."""

    MAINTENANCE = 0
    RULES = 1
    OVERLOAD = 2
    SPREAD = 3


_EVERYWHERE = frozenset(
    {
        EventKind.MAINTENANCE_ENDED,
        EventKind.NODE_ONLINE,
        EventKind.REQUEST,
        EventKind.TOOK_LEAD,
        EventKind.GAP,
        EventKind.SETTINGS_CHANGED,
        EventKind.RESUMED,
        EventKind.TIMER,
    }
)
_AT_ONCE = frozenset({EventKind.MAINTENANCE_BEGAN, EventKind.REQUEST, EventKind.RESUMED})
_OF_A_GUEST = frozenset({EventKind.GUEST_STARTED, EventKind.GUEST_STOPPED, EventKind.GUEST_CHANGED})
_NOT_YET_SEEN = frozenset({"stopped", "unknown"})
_RANK = {EventKind.MAINTENANCE_BEGAN: Rank.MAINTENANCE, EventKind.OVERLOAD: Rank.OVERLOAD, EventKind.SPREAD: Rank.SPREAD}


def scope_of(event: Event) -> Scope:
    """What one event makes worth looking at: a start may overload its node, a stop only makes room."""
    if event.kind in _EVERYWHERE:
        return EVERYWHERE
    vmids = frozenset() if event.vmid is None else frozenset({event.vmid})
    loaded = {EventKind.GUEST_STARTED, EventKind.OVERLOAD, EventKind.SPREAD, EventKind.GUEST_CHANGED}
    nodes = frozenset({event.node}) if event.node is not None and event.kind in loaded else frozenset()
    return Scope(nodes, vmids)


def rank_of(event: Event) -> Rank:
    """How urgent the event is: who takes the lead while nodes are to be emptied goes on with that, and who looks again for one does."""
    if (event.kind is EventKind.TOOK_LEAD and event.detail) or (event.kind is EventKind.TIMER and event.node is not None):
        return Rank.MAINTENANCE
    return _RANK.get(event.kind, Rank.RULES)


@dataclass(frozen=True, slots=True)
class Trigger:
    """A settled reason to look at the cluster.

    Units:   CLOCK_BOOTTIME seconds.
    Shape:   `events` in order of arrival, without repetitions, at most `MOST_EVENTS`; `left_out` more came on top, and `scope` covers
             all of them.
    """

    events: tuple[Event, ...]
    scope: Scope
    rank: Rank
    first_s: float
    last_s: float
    left_out: int = 0

    @property
    def force(self) -> bool:
        """True when a person asked to go past gates and cooldowns."""
        return any(event.force for event in self.events)

    @property
    def requests(self) -> tuple[str, ...]:
        """The commands that wait for an answer."""
        return tuple(event.request for event in self.events if event.request is not None)

    def due_s(self, times: TriggerSettings) -> float:
        """When to look: when the burst is over, at the latest `settle_max_s` after its first event; maintenance and
        requests at once."""
        if any(event.kind in _AT_ONCE for event in self.events):
            return self.first_s
        return min(self.last_s + times.settle_s, self.first_s + times.settle_max_s)


def joined(trigger: Trigger | None, event: Event) -> Trigger:
    """The trigger with one more event; the events of one burst are answered together."""
    if trigger is None:
        return Trigger((event,), scope_of(event), rank_of(event), event.at_s, event.at_s)
    known = next((index for index, other in enumerate(trigger.events) if _same(event, other)), None)
    is_known = known is not None
    is_full = len(trigger.events) >= MOST_EVENTS and event.kind in _OF_A_GUEST  # what else happens is rare, and may be urgent
    events = trigger.events
    if known is not None and events[known].happened_s < event.happened_s:  # the last counts: who starts, stops and starts again runs
        events = (*events[:known], replace(events[known], at_s=event.at_s, age_s=event.age_s), *events[known + 1 :])
    return Trigger(
        events=events if is_known or is_full else (*events, event),
        scope=EVERYWHERE if is_full and not is_known else trigger.scope.union(scope_of(event)),
        rank=min(trigger.rank, rank_of(event)),
        first_s=trigger.first_s,
        last_s=max(trigger.last_s, event.at_s),
        left_out=trigger.left_out + (is_full and not is_known),
    )


def merged(one: Trigger, other: Trigger) -> Trigger:
    """One trigger with the events, the scope and the rank of both."""
    result = one
    for event in other.events:
        result = joined(result, event)
    return replace(result, scope=result.scope.union(other.scope), left_out=result.left_out + other.left_out)


def _same(event: Event, other: Event) -> bool:
    if event.kind is EventKind.SPREAD:
        return other.kind is EventKind.SPREAD
    return (event.kind, event.vmid, event.node, event.request) == (other.kind, other.vmid, other.node, other.request)


@dataclass(frozen=True, slots=True)
class MigrationTraces:
    """Which guests migrate or have just done so, from all that the agent can see.

    Units:   Unix seconds; `ended` are VMIDs with when a migration of theirs ended, `running` are those under way.
    """

    running: frozenset[int] = frozenset()
    ended: tuple[tuple[int, float], ...] = ()


def traces(snapshot: Snapshot | None, records: Iterable[Migration]) -> MigrationTraces:
    """The traces in PVE's task list and in the agent's own records."""
    running: set[int] = set()
    ended: set[tuple[int, float]] = set()  # all of them: one that a clock dated ahead hides no other
    for task in snapshot.tasks if snapshot is not None else ():
        if task.kind in MIGRATE_KINDS and task.vmid is not None:
            if task.ended_at is None:
                running.add(task.vmid)
            else:
                ended.add((task.vmid, task.ended_at))
    for record in records:
        if record.is_open:
            running.add(record.vmid)
        elif record.ended_at is not None and record.asked_at is not None:
            ended.add((record.vmid, record.ended_at))
    return MigrationTraces(frozenset(running), tuple(sorted(ended)))


def why_echo(event: Event, seen: MigrationTraces, now: float) -> str | None:
    """Why the event only repeats a migration, None when it is news.

    Migrations start and stop guests: a live migration runs the start hooks on its target, a container's migration the
    stop and start hooks, and each leaves start lines in the cluster log.
    """
    if event.kind not in _OF_A_GUEST or event.vmid is None:
        return None
    if event.origin is not None:
        return f"it is arriving from {event.origin}"
    if event.vmid in seen.running:
        return "it is migrating"
    for vmid, ended_at in seen.ended:
        if vmid == event.vmid and -ECHO_S < now - ended_at < ECHO_S + event.age_s:
            return f"it migrated {max(0.0, now - ended_at):.0f} s ago"
    return None


def without_echoes(trigger: Trigger, seen: MigrationTraces, now: float) -> Trigger | None:
    """The trigger less its echoes, None when nothing else is left."""
    kept = [event for event in trigger.events if why_echo(event, seen, now) is None]
    if len(kept) == len(trigger.events) or len(trigger.events) >= MOST_EVENTS:
        return trigger  # a full one stands for events that it does not hold
    result: Trigger | None = None
    for event in kept:
        result = joined(result, event)
    return result


def with_starts(snapshot: Snapshot, trigger: Trigger, now_s: float) -> Snapshot:
    """The snapshot with guests running that have just started, by what the trigger's events say.

    PVE shows a start only when pvestatd has looked, up to `FRESH_S` later. Such a guest has no load yet, so its expected
    one counts. An event of a stop that came after takes it back.

    Units:   `now_s` in CLOCK_BOOTTIME seconds, as the events' times.
    """
    started: dict[int, bool] = {}
    for event in sorted(trigger.events, key=lambda event: event.happened_s):
        if event.vmid is not None and event.kind in _OF_A_GUEST and event.kind is not EventKind.GUEST_CHANGED and event.origin is None:
            started[event.vmid] = event.kind is EventKind.GUEST_STARTED and now_s - event.happened_s < FRESH_S
    guests = tuple(
        replace(guest, status="running", uptime_s=0.0, cpu_used_cores=0.0, memory_used_bytes=0, memory_host_bytes=None)
        if started.get(guest.vmid) and guest.status in _NOT_YET_SEEN and not guest.template
        else guest
        for guest in snapshot.guests
    )
    return replace(snapshot, guests=guests) if any(started.values()) else snapshot


def described(trigger: Trigger) -> str:
    """The trigger in words, for the journal: what happened, not what is done about it."""
    of_nodes = [event for event in trigger.events if event.kind not in _OF_A_GUEST][:MOST_NAMED]  # many starts do not hide them
    of_guests = [event for event in trigger.events if event.kind in _OF_A_GUEST][: max(0, NAMED - len(of_nodes))]
    parts = [_words(event) for event in trigger.events if event in of_nodes or event in of_guests]
    more = len(trigger.events) + trigger.left_out - len(parts)
    if more > 0:
        parts.append(f"and {more} more event{'s' if more > 1 else ''}")
    return ", ".join(parts)


def gathered(events: Iterable[Event], left_out: int = 0) -> str:
    """What happened to many guests, in one line: `57 more guests started on pve3 (304, 305, 306, 307, 308 and 52 more)`."""
    groups: dict[EventKind, list[Event]] = {}
    for event in events:
        groups.setdefault(event.kind, []).append(event)
    parts = []
    for kind, of_kind in groups.items():
        nodes = sorted({event.node for event in of_kind if event.node is not None})
        where = f" on {nodes[0]}" if len(nodes) == 1 else f" on {len(nodes)} nodes"
        which = ", ".join(str(event.vmid) for event in of_kind[:5]) + (f" and {len(of_kind) - 5} more" if len(of_kind) > 5 else "")
        parts.append(f"{len(of_kind)} more guest{'s' if len(of_kind) > 1 else ''} {_HAPPENED[kind]}{where} ({which})")
    if left_out:
        parts.append(f"{left_out} more event{'s' if left_out > 1 else ''} than are kept")
    return ", ".join(parts)


_HAPPENED = {EventKind.GUEST_STARTED: "started", EventKind.GUEST_STOPPED: "stopped", EventKind.GUEST_CHANGED: "changed"}


_PLAIN = {
    EventKind.TOOK_LEAD: "took the lead",
    EventKind.SETTINGS_CHANGED: "the settings changed",
    EventKind.RESUMED: "the pause is over",
    EventKind.TIMER: "regular look",
}


def _words(event: Event) -> str:
    guest = f"guest {event.vmid}"
    where = f" on {event.node}" if event.node else ""
    match event.kind:
        case EventKind.GUEST_STARTED:
            return f"{guest} started{where}"
        case EventKind.GUEST_STOPPED:
            return f"{guest} stopped{where}"
        case EventKind.GUEST_CHANGED:
            return f"{guest} changed{where}"
        case EventKind.MAINTENANCE_BEGAN:
            return f"maintenance of {event.node} began" + (f" ({event.detail})" if event.detail else "")
        case EventKind.MAINTENANCE_ENDED:
            return f"maintenance of {event.node} ended" + (f" ({event.detail})" if event.detail else "")
        case EventKind.NODE_SHUTS_DOWN:
            return f"{event.node} shuts down ({event.detail})"
        case EventKind.NODE_ONLINE:
            return f"node {event.node} is online"
        case EventKind.NODE_OFFLINE:
            return f"node {event.node} is offline"
        case EventKind.OVERLOAD:
            return f"{event.node} is overloaded ({event.detail})"
        case EventKind.SPREAD:
            return f"the load is uneven ({event.detail})"
        case EventKind.REQUEST:
            return "balancing was asked for" + (f" by {event.detail}" if event.detail else "")
        case EventKind.TOOK_LEAD if event.detail:
            return f"took the lead, {event.detail}"
        case EventKind.TIMER if event.node is not None:
            return f"{event.node} is to be empty"
        case EventKind.GAP:
            return "the cluster log has a gap" if event.node is None else f"{event.detail} of {event.node} did not get here"
        case _:
            return _PLAIN[event.kind]

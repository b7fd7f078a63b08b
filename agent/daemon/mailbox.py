# SPDX-License-Identifier: GPL-3.0-or-later
"""This node's events on their way to the leader: from the local inbox into the node's relay file below /etc/pve."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from agent import __version__
from agent.core.documents import INBOX_SCHEMA, DocumentError, Facts, InboxEvent, InboxFile, RequestFile, parse, render
from agent.core.events import Event, EventKind, EventSource
from agent.core.journal import Level, MessageId, Record
from agent.daemon.inputs import FactsSeen, InboxSeen, Now, OwnInboxSeen, WriteAnswer, Written
from agent.daemon.outputs import ClaimInbox, Output, ReadFacts, ReadOwnInbox, Say, WriteShared
from agent.ports import FactsSight, InboxSight

CLAIM_EVERY_S = 5.0  # a bell may be missed; the folder is listed at least so often
KEPT_S = 300.0
CLOCK_STEP_S = 30.0
KEPT_EVENTS = 300  # newest; what a burst of more drops, the leader counts by their numbers, and looks at everything
MOST_USER = 100  # letters of who asks: the relay file stays far below what pmxcfs hands over in one piece
LEAST_WRITE_S = 2.0
OWN_EVERY_S = 300.0  # somebody may have removed or changed the relay file, and a new leader takes the node for one without an agent
FACTS_EVERY_S = 60.0
CACHE_STEP_FRACTION = 0.05  # of the node's memory: a ZFS cache that moved by less is told along with something else
CACHE_WRITE_S = 300.0  # and one that moves all the time, so often

_NAME = re.compile(r"([1-9][0-9]{2,8})\.(pre-start|post-start|pre-stop|post-stop)(?:\.([A-Za-z0-9][A-Za-z0-9-]{0,62}))?")
_PHASES = {"post-start": EventKind.GUEST_STARTED, "post-stop": EventKind.GUEST_STOPPED}


def event_of_name(name: str, node: str, at_s: float) -> Event | None:
    """The event that a hookscript's file stands for, None for phases that say nothing yet and for foreign names."""
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in _PHASES:
        return None
    return Event(_PHASES[match[2]], EventSource.HOOK, at_s, node=node, vmid=int(match[1]), origin=match[3])


def events_of_sight(sight: InboxSight, node: str, at_s: float) -> tuple[list[Event], list[str], int]:
    """The events of one look into the inbox, the problems with what else was there, and how many events were too old.

    What is older than `KEPT_S` was left there while no agent ran, or none that could pass it on. Who led meanwhile has seen in the
    statistics what it tells, and who leads from now on looks at everything first.
    """
    events, problems, old = [], [], 0
    for name, age_s in zip(sight.names, sight.ages_s or [0.0] * len(sight.names), strict=True):
        event = event_of_name(name, node, at_s)
        if event is not None and age_s >= KEPT_S:
            old += 1
        elif event is not None:
            events.append(replace(event, age_s=age_s))
        elif _NAME.fullmatch(name) is None:
            problems.append(f"a file in the inbox that no hookscript of ours makes was thrown away: {name[:80]!r}")
    for identity, text in sight.requests:
        try:
            request = parse(RequestFile, text)
        except DocumentError as error:
            problems.append(f"request {identity[:40]} cannot be read: {error}")
            continue
        events.append(
            Event(
                EventKind.REQUEST,
                EventSource.COMMAND,
                at_s,
                node=node,
                request=identity,
                detail=request.user[:MOST_USER],
                force=request.force,
            )
        )
    return events, problems, old


class Mailbox:
    """Claims local events, keeps the relay file, and hands the events to the leader when that is this node itself."""

    def __init__(
        self, node: str, incarnation: str, boot_id: str, claim_every_s: float = CLAIM_EVERY_S, facts_every_s: float = FACTS_EVERY_S
    ) -> None:
        self._claim_every_s, self._facts_every_s = claim_every_s, facts_every_s
        self._file = InboxFile(INBOX_SCHEMA, node, incarnation, boot_id, 0, 0.0, (), None, Facts(__version__))
        self._claiming = False
        self._claimed_s = -1e9
        self._knows_own_file = False
        self._asked_own_s = -1e9
        self._dirty = True
        self._written: str | None = None
        self._text = ""
        self._writing: int | None = None
        self._serial = 0
        self._wrote_s = -1e9
        self._bell = True
        self._said = self._said_facts = ""
        self._facts_s = -1e9
        self._reading_facts, self._knows_facts = False, False
        self._cache_bytes: int | None = None
        self._wrote_cache_s = -1e9
        self._clock_offset_s = 0.0
        self._can_write = self._passed_on = True
        self.nodes = 3

    @property
    def flag(self) -> str | None:
        """The text of this node's own maintenance flag, None when there is none."""
        return self._file.flag

    def ring(self) -> None:
        """The doorbell rang: look at once."""
        self._bell = True

    def next_outputs(self, now: Now, *, can_write: bool, leads: bool) -> list[Output]:
        """Claims and writes that are due.

        Claiming says that what was claimed before has been passed on. So a follower claims nothing more until its relay
        file is written; a leader has the events already, and its successor looks at everything.
        """
        outputs: list[Output] = []
        offset_s = now.wall_s - now.boot_s
        if abs(offset_s - self._clock_offset_s) > CLOCK_STEP_S:
            self._clock_offset_s, self._dirty = offset_s, True  # whoever judges by `written_at` must not take this node for silent
        passed_on = leads or (not self._dirty and self._writing is None) or not self._file.events
        self._can_write, self._passed_on = can_write, passed_on
        if not self._claiming and passed_on and (self._bell or now.boot_s - self._claimed_s >= self._claim_every_s):
            self._claiming, self._bell, self._claimed_s = True, False, now.boot_s
            outputs.append(ClaimInbox())
        if not self._reading_facts and now.boot_s - self._facts_s >= self._facts_every_s:
            self._reading_facts, self._facts_s = True, now.boot_s
            outputs.append(ReadFacts())
        if can_write and now.boot_s - self._asked_own_s >= (OWN_EVERY_S if self._knows_own_file else CLAIM_EVERY_S):
            self._asked_own_s = now.boot_s
            outputs.append(ReadOwnInbox(self._file.node))
        if self._knows_own_file and self._may_write() and now.boot_s >= self._next_write_s():
            self._serial += 1
            self._writing, self._dirty, self._wrote_s = self._serial, False, now.boot_s
            if self._file.facts.zfs_cache_bytes != self._cache_bytes:
                self._wrote_cache_s = now.boot_s
            self._file = replace(self._file, written_at=now.wall_s, facts=replace(self._file.facts, zfs_cache_bytes=self._cache_bytes))
            path = f"proxlb/inbox/{self._file.node}.json"
            self._text = render(self._file)
            outputs.append(WriteShared(Written.INBOX, path, self._text, self._serial))
        return outputs

    def next_wakeup_s(self) -> float:
        """When something is due by itself."""
        due = self._claimed_s + self._claim_every_s if self._passed_on and not self._claiming else float("inf")
        if not self._reading_facts:
            due = min(due, self._facts_s + self._facts_every_s)
        return min(due, self._next_write_s()) if self._may_write() else due

    def _may_write(self) -> bool:
        return self._can_write and self._knows_own_file and self._knows_facts and self._dirty and self._writing is None

    def _next_write_s(self) -> float:
        return self._wrote_s + max(LEAST_WRITE_S, float(self.nodes))

    def on_own_file(self, seen: OwnInboxSeen) -> None:
        """Go on counting where the former incarnation stopped, so that no leader takes a new event for an old one; later on, put back
        what is not this agent's."""
        if seen.error:
            return
        self.nodes = seen.nodes or self.nodes
        if self._knows_own_file:
            self._dirty = self._dirty or (self._written is not None and seen.text != self._written)
            return
        self._knows_own_file = True
        if seen.text is not None:
            try:
                former = parse(InboxFile, seen.text)
            except DocumentError:
                former = None
            if former is not None:
                kept = tuple(event for event in former.events if abs(former.written_at - event.at) < KEPT_S)
                moved = tuple(replace(event, seq=event.seq + former.seq) for event in self._file.events)
                self._file = replace(self._file, seq=self._file.seq + former.seq, events=(*kept, *moved))

    def on_claimed(self, seen: InboxSeen, now: Now) -> tuple[list[Event], list[Output]]:
        """Take what was claimed; returns the events for a leader on this node, and what to say."""
        self._claiming = False
        node = self._file.node
        if seen.sight is None:
            is_known = seen.error == self._said
            said: list[Output] = [] if is_known else [_say(Level.WARNING, f"this node's inbox cannot be read: {seen.error}")]
            self._said = seen.error
            return [], said
        self._said = ""
        events, problems, old = events_of_sight(seen.sight, node, now.boot_s)
        outputs: list[Output] = [_say(Level.WARNING, problem) for problem in problems[:5]]
        if old:
            what = "1 event has waited for more than 5 minutes: what it tells"
            what = what if old == 1 else f"{old} events have waited for more than 5 minutes: what they tell"
            outputs.append(_say(Level.INFO, f"{what} was seen since"))
        if seen.sight.flag != self._file.flag:
            self._file = replace(self._file, flag=seen.sight.flag)
            self._dirty = True
        if events:
            kept = [event for event in self._file.events if event.at > now.wall_s - KEPT_S]
            seq = self._file.seq
            for event in events:
                seq += 1
                at = now.wall_s - event.age_s
                kept.append(InboxEvent(seq, at, event.kind, event.vmid, event.origin, event.request, event.detail, event.force))
            self._file = replace(self._file, seq=seq, events=_newest(kept))
            self._dirty = True
        return events, outputs

    def on_facts(self, seen: FactsSeen, now: Now) -> list[Output]:
        """Take what this node has; a change is told to all, one of the ZFS cache only when it is large."""
        self._reading_facts, self._knows_facts = False, True
        if seen.sight is None:
            is_known = seen.error == self._said_facts
            self._said_facts = seen.error
            return [] if is_known else [_say(Level.WARNING, seen.error)]
        self._said_facts = ""
        told, sight = self._file.facts, seen.sight
        self._cache_bytes = sight.zfs_cache_bytes
        if sight.facts != told.node:
            self._file = replace(self._file, facts=replace(told, node=sight.facts))
            self._dirty = True
        if self._has_moved_far(told.zfs_cache_bytes, sight) and now.boot_s - self._wrote_cache_s >= CACHE_WRITE_S:
            self._dirty = True
        return []

    @staticmethod
    def _has_moved_far(told_bytes: int | None, sight: FactsSight) -> bool:
        if told_bytes is None or sight.zfs_cache_bytes is None:
            return told_bytes != sight.zfs_cache_bytes
        return abs(sight.zfs_cache_bytes - told_bytes) > CACHE_STEP_FRACTION * sight.memory_bytes

    def on_written(self, answer: WriteAnswer) -> list[Output]:
        """The relay file was written, or has to be written again."""
        if answer.serial == self._writing:
            self._writing = None
            self._dirty = self._dirty or bool(answer.error)
            self._written = None if answer.error else self._text
        return []


def _newest(events: list[InboxEvent]) -> tuple[InboxEvent, ...]:
    """As many as the file may hold. Of more the requests stay: somebody waits for each, and no look at the cluster finds them."""
    surplus = len(events) - KEPT_EVENTS
    if surplus <= 0:
        return tuple(events)
    hints = [event.seq for event in events if event.request is None]
    dropped = frozenset(hints[:surplus])
    return tuple(event for event in events if event.seq not in dropped)[-KEPT_EVENTS:]


def _say(level: Level, text: str) -> Say:
    return Say(Record(level, MessageId.OUTSIDE, text))


def request_text(user: str, *, force: bool) -> str:
    """The text of a request file that asks for balancing."""
    return json.dumps({"schema": "proxlb-agent/request/1", "kind": "balance", "force": force, "user": user}, sort_keys=True)

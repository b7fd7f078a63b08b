# SPDX-License-Identifier: GPL-3.0-or-later
"""What the leader has said already, so that it says each thing once, and again only when it has changed."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from agent.core.cluster import GIB, Snapshot
from agent.core.conditions import leaves_stopped, why_starting
from agent.core.events import Event
from agent.core.flags import Flag, flag_words
from agent.core.ha_maintenance import usable_nodes
from agent.core.homes import Return, kept_away_words, return_words
from agent.core.journal import Level, MessageId, Record
from agent.core.plan_types import Plan
from agent.core.reasons import RefusalReason
from agent.core.settings import Settings
from agent.daemon.outputs import Output, Say

FULL_AGAIN_PERCENT = 1.0  # points below the threshold at which a storage is no longer full, so that one on the edge is not said daily
MOST_REFUSALS = 25  # of one plan; the rest is in `proxlb-agent plan`

_PASSES = frozenset(  # what keeps a guest from coming home for a moment
    {
        RefusalReason.LOCKED,
        RefusalReason.BUSY,
        RefusalReason.UNANSWERED,
        RefusalReason.NODE_STARTING,
        RefusalReason.NODE_STALE,
        RefusalReason.NODE_SILENT,
        RefusalReason.NODE_MAINTENANCE,
    }
)


class Telling:
    """Remembers what was said of refusals, conflicts, alarms, empty nodes, full storages and failures of the API."""

    def __init__(self) -> None:
        self._refusals: dict[int, str] = {}
        self._conflicts: frozenset[str] = frozenset()
        self._alarm: str | None = None
        self._empty: frozenset[str] = frozenset()
        self._kept_away: dict[str, tuple[int, ...]] = {}
        self._failure = ""
        self._paused: Flag | None = None
        self._last: frozenset[str] = frozenset()
        self._unseen: tuple[int, ...] = ()
        self._pressure: str | None = None
        self._schedules: tuple[str, ...] = ()
        self._strange_flags: frozenset[str] = frozenset()
        self._full: frozenset[tuple[str, tuple[str, ...]]] = frozenset()

    def refusals(self, plan: Plan) -> list[Output]:
        """Each refusal of the plan whose reason is new."""
        said: list[Output] = []
        for refusal in plan.refused:
            if refusal.reason is RefusalReason.HA_EMPTIES or (self._last and refusal.reason is RefusalReason.NO_TARGET):
                continue  # said once, of the node
            if self._refusals.get(refusal.vmid) != refusal.reason.value and len(said) < MOST_REFUSALS:
                detail = f" ({refusal.detail})" if refusal.detail else ""
                text = f"guest {refusal.vmid} stays: {refusal.reason.value}{detail}"
                said.append(Say(Record(Level.INFO, MessageId.REFUSAL, text, reason=refusal.reason.value, vmid=refusal.vmid)))
        self._refusals = {refusal.vmid: refusal.reason.value for refusal in plan.refused}
        return said

    def pause(self, paused: Flag | None) -> list[Output]:
        """The beginning and the end of a pause, and a change of what it says."""
        before, self._paused = self._paused, paused
        if paused == before:
            return []
        if paused is None:
            return [Say(Record(Level.NOTICE, MessageId.PAUSE, "goes on: the pause is over"))]
        words = flag_words(paused)
        end = "" if paused.until is not None else ", until proxlb-agent resume"
        text = f"paused{f' ({words})' if words else ''}{end}: nobody is moved, not for maintenance either; what is under way goes on"
        return [Say(Record(Level.NOTICE, MessageId.PAUSE, text))]

    def conflicts(self, plan: Plan) -> list[Output]:
        """Each conflict of the rules that is new."""
        texts = {f"{conflict.rule}: {conflict.detail}{_of_guests(conflict.vmids)}" for conflict in plan.conflicts}
        new, self._conflicts = sorted(texts - self._conflicts), frozenset(texts)
        return [Say(Record(Level.WARNING, MessageId.CONFLICT, f"a rule cannot be kept: {text}")) for text in new]

    def alarm(self, alarm: str | None) -> list[Output]:
        """The beginning and the end of an alarm."""
        before, self._alarm = self._alarm, alarm
        if alarm is not None and before is None:
            text = f"load balancing stops, maintenance and rules go on: {alarm}; it goes on by itself when that is past"
            return [Say(Record(Level.ERROR, MessageId.ALARM, text))]
        if alarm is None and before is not None:
            return [Say(Record(Level.NOTICE, MessageId.ALARM, "load balancing goes on"))]
        return []

    def empty_nodes(self, snapshot: Snapshot, busy: AbstractSet[str], settings: Settings) -> list[Output]:
        """Each node in maintenance once when nobody who should leave is left on it, and nobody is on the way out of it or to it,
        as somebody is with those that are `busy`.

        Of one that is offline nobody can tell, and its guests did not leave it; one that has just booted is not called empty before
        it has started its guests.
        """
        full = {guest.node for guest in snapshot.guests if guest.is_running or leaves_stopped(guest, settings)} | busy
        full |= {node.name for node in snapshot.nodes if not node.online or why_starting(node) is not None}
        empty = frozenset(maintenance.node for maintenance in snapshot.maintenance if maintenance.node not in full)
        new, self._empty = sorted(empty - self._empty), empty
        return [Say(Record(Level.NOTICE, MessageId.MAINTENANCE, f"{node} is empty: no guest runs there", source=node)) for node in new]

    def returns(self, over: Iterable[Return]) -> list[Output]:
        """Of each node whose guests are not waited for any more, that they are home again, or who is not."""
        return [Say(Record(Level.NOTICE, MessageId.MAINTENANCE, return_words(one), source=one.node)) for one in over]

    def kept_away(self, returns: Iterable[Return], plan: Plan) -> list[Output]:
        """Of each node to which guests cannot come home for now, who they are and why, once until they are others."""
        why = {refusal.vmid: refusal.reason.value for refusal in plan.refused if refusal.reason not in _PASSES}
        kept = {one.node: one for one in returns if one.away and why.keys() >= set(one.away)}
        new = [one for name, one in sorted(kept.items()) if self._kept_away.get(name) != one.away]
        self._kept_away = {name: one.away for name, one in kept.items()}
        return [Say(Record(Level.NOTICE, MessageId.MAINTENANCE, kept_away_words(one, why), source=one.node)) for one in new]

    def last_nodes(self, snapshot: Snapshot, settings: Settings) -> list[Output]:
        """Nodes in maintenance whose guests have nowhere to go, as no other node is usable: once until one is."""
        full = {guest.node for guest in snapshot.guests if guest.is_running}
        kept = frozenset(maintenance.node for maintenance in snapshot.maintenance if maintenance.node in full)
        before, self._last = self._last, frozenset() if usable_nodes(snapshot, settings) else kept
        if not self._last - before:
            return []
        names = sorted(self._last)
        which = f"{names[0]} is the last usable node" if len(names) == 1 else f"{', '.join(names)} are the last usable nodes"
        text = f"{which}: nobody leaves until another node can be used; the maintenance stays asked for"
        return [Say(Record(Level.WARNING, MessageId.MAINTENANCE, text, source=names[0] if len(names) == 1 else None))]

    def pressure(self, unknown: str | None) -> list[Output]:
        """Of which nodes the pressure is not known, when that has changed."""
        before, self._pressure = self._pressure, unknown
        if unknown == before:
            return []
        return [Say(Record(Level.NOTICE, MessageId.OUTSIDE, unknown if unknown is not None else "the pressure of all nodes is known"))]

    def schedules(self, not_understood: tuple[str, ...]) -> list[Output]:
        """The backup jobs whose schedule cannot be read, when they have changed."""
        before, self._schedules = self._schedules, not_understood
        new = [job for job in not_understood if job not in before]
        if not new:
            return []
        text = f"the schedule of backup job {'; '.join(new)} is not understood: load balancing does not keep off its guests beforehand"
        return [Say(Record(Level.WARNING, MessageId.OUTSIDE, text))]

    def strange_flags(self, names: frozenset[str]) -> list[Output]:
        """Each flag that is for no node of the cluster, once as long as it is there."""
        new, self._strange_flags = sorted(names - self._strange_flags), names
        texts = [f"maintenance flag {name[:80]!r} changes nothing: the cluster has no node of that name" for name in new]
        return [Say(Record(Level.WARNING, MessageId.MAINTENANCE, text)) for text in texts[:MOST_REFUSALS]]

    def full_storages(self, snapshot: Snapshot, threshold_percent: float) -> list[Output]:
        """Each storage that has come over the threshold, once until it has been clearly below."""
        said: list[Output] = []
        still = set()
        for use in snapshot.storage_use:
            key, percent = (use.name, use.nodes), 100 * use.used_bytes / use.total_bytes
            if not 0 < threshold_percent < 100 or percent < threshold_percent - FULL_AGAIN_PERCENT:
                continue
            if percent >= threshold_percent or key in self._full:
                still.add(key)
            if percent >= threshold_percent and key not in self._full:
                where = f"on {use.nodes[0]}" if len(use.nodes) == 1 else f"of {len(use.nodes)} nodes"
                text = f"storage {use.name} {where} is {percent:.0f} % full: {use.used_bytes / GIB:.0f} of {use.total_bytes / GIB:.0f} GiB"
                said.append(Say(Record(Level.WARNING, MessageId.STORAGE, text, source=use.nodes[0] if len(use.nodes) == 1 else None)))
        self._full = frozenset(still)
        return said

    def unseen(self, snapshot: Snapshot) -> list[Output]:
        """The guests that the token does not show, when they have changed: until it shows all, nobody is moved."""
        before, self._unseen = self._unseen, snapshot.unseen
        if snapshot.unseen == before:
            return []
        if not snapshot.unseen:
            return [Say(Record(Level.NOTICE, MessageId.OUTSIDE, "the token sees all guests again"))]
        return [Say(Record(Level.WARNING, MessageId.OUTSIDE, _unseen_words(snapshot.unseen)))]

    def failure(self, error: str, hint: str) -> list[Output]:
        """The cluster could not be looked at."""
        text = f"the cluster cannot be looked at: {error}" + (f" ({hint})" if hint else "")
        is_known, self._failure = text == self._failure, text
        return [] if is_known else [Say(Record(Level.WARNING, MessageId.OUTSIDE, text))]

    def success(self) -> list[Output]:
        """The cluster could be looked at."""
        failed, self._failure = self._failure, ""
        return [Say(Record(Level.NOTICE, MessageId.OUTSIDE, "the cluster can be looked at again"))] if failed else []

    @property
    def problems(self) -> tuple[str, ...]:
        """What was told of the world outside, still is so, and keeps the agent from its work."""
        return tuple(text for text in (self._failure, _unseen_words(self._unseen) if self._unseen else "") if text)


def of_event(level: Level, text: str, event: Event) -> Say:
    """A line about an event, with its fields."""
    return Say(Record(level, MessageId.EVENT, text, event=event.kind.value, vmid=event.vmid, source=event.node))


def _unseen_words(vmids: tuple[int, ...]) -> str:
    which = f"guest{'s' if len(vmids) != 1 else ''} {few(vmids)}"
    return f"only observes, as the token does not see {which}: run proxlb-agent setup"


def few(vmids: tuple[int, ...]) -> str:
    """The first VMIDs, and how many more there are."""
    shown = ", ".join(str(vmid) for vmid in vmids[:5])
    return shown if len(vmids) <= 5 else f"{shown} and {len(vmids) - 5} more"


def _of_guests(vmids: tuple[int, ...]) -> str:
    """` (guest 101)`, ` (guests 101, 102)`; nothing when it is about no guest."""
    return f" ({'guest' if len(vmids) == 1 else 'guests'} {few(vmids)})" if vmids else ""

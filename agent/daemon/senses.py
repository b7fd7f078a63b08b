# SPDX-License-Identifier: GPL-3.0-or-later
"""The leader's senses: the cluster log, the nodes' inboxes, flags and statistics, turned into events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace

from agent.core.cluster import MIGRATE_KINDS, Maintenance, Node, Snapshot
from agent.core.clusterlog import ClusterLogCursor, LogTask, log_tasks
from agent.core.documents import DocumentError, InboxFile, parse
from agent.core.events import Event, EventKind, EventSource
from agent.core.guest_load import Ledger
from agent.core.learned import Learned, of_starting, with_look
from agent.core.node_load import node_loads
from agent.core.settings import Settings
from agent.core.shutdown import ShutdownFlag
from agent.core.smoothing import Smoothing
from agent.core.statistics import parse_members, parse_rrd, parse_vmlist
from agent.core.triggers import ECHO_S
from agent.core.watch import asked_of_ha, differences, loads_snapshot
from agent.daemon.flags import Flags, Told
from agent.daemon.inputs import Now, SignsSeen
from agent.daemon.mailbox import KEPT_S
from agent.daemon.overloads import Overloads
from agent.daemon.sample_ages import SampleAges

_STARTS = frozenset({"qmstart", "vzstart"})
_STOPS = frozenset({"qmstop", "qmshutdown", "vzstop", "vzshutdown"})
_REPORTED = frozenset({EventKind.GUEST_STARTED, EventKind.GUEST_STOPPED, EventKind.REQUEST})  # what a node's inbox may tell of
REQUEST_S = 300.0  # a command has long given up waiting for a request that is older
WAYS = 8  # of a node's files: what took longer than the quickest of them was held up
REPORT_TOLERANCE_S = 60.0  # between the clocks of two nodes, and between a boot and the agent's first report


class Senses:
    """What the leader has seen so far. Made anew when a node takes the lead: what is there then is covered by a full look."""

    def __init__(self, node: str, learned: Learned | None = None) -> None:
        self._node = node
        self.learned: Learned = {} if learned is None else learned
        self._cursor = ClusterLogCursor()
        self._seqs: dict[str, int] | None = None
        self._texts: dict[str, str] = {}
        self._torn: set[str] = set()  # whose files could not be read at the first look: what stands there when they can is history
        self._ways: dict[str, tuple[float, ...]] = {}
        self._log = ""
        self.flags = Flags()
        self._nodes: Mapping[str, bool] | None = None
        self._gone: set[tuple[str, str]] = set()
        self._ages = SampleAges()
        self._before: Snapshot | None = None
        self.inboxes: dict[str, InboxFile] = {}
        self.loads: Snapshot | None = None
        self.overloads = Overloads()
        self.smoothing = Smoothing()
        self.vmids: frozenset[int] = frozenset()
        self.migrating: dict[int, float | None] = {}
        self.ended: tuple[str, ...] = ()  # migrations that the cluster log said the end of just now
        self.told: tuple[LogTask, ...] = ()  # all tasks that it told of just now
        self.membership_changed_s: float | None = None
        self._came_s: dict[str, float] = {}
        self.has_seen = False

    def on_signs(
        self, seen: SignsSeen, now: Now, settings: Settings, is_answered: Callable[[str], bool], ours: AbstractSet[str] = frozenset()
    ) -> list[Event]:
        """The events in what was read; `is_answered` tells requests that a former leader has answered, `ours` are the nodes whose
        maintenance the HA manager was asked for by leaders: that is no request of an admin."""
        events = self._from_inboxes(seen, now, is_answered)
        events += self._from_log(seen, now)
        events += self._from_flags(seen, now, settings, ours)
        events += self._from_statistics(seen, now, settings)
        self.has_seen = True
        return events

    # inboxes

    def _from_inboxes(self, seen: SignsSeen, now: Now, is_answered: Callable[[str], bool]) -> list[Event]:
        events: list[Event] = []
        is_first_look = self._seqs is None
        seqs = {} if self._seqs is None else self._seqs
        for node, text in seen.inboxes or ():
            if self._texts.get(node) == text:
                continue  # read before
            self._texts[node] = text
            try:
                inbox = parse(InboxFile, text)
            except DocumentError:
                self._torn |= {node} if is_first_look else set()
                continue  # torn or of another version: what comes in its place is read
            if inbox.node != node:
                continue  # a file put there by hand speaks for nobody
            self.inboxes[node] = inbox
            is_first = is_first_look or node in self._torn
            self._torn.discard(node)
            late_s = self._late_s(inbox, now) if not is_first else 0.0
            last = seqs.get(node, 0)
            if inbox.seq < last:
                last = 0  # the file was made anew, and counts from the start
            missed = inbox.seq - last - sum(entry.seq > last for entry in inbox.events)
            if missed > 0 and node != self._node and not is_first:
                detail = f"{missed} event{'s' if missed > 1 else ''}"
                events.append(Event(EventKind.GAP, EventSource.INBOX, now.boot_s, node=node, detail=detail))
            for entry in inbox.events:
                if entry.kind not in _REPORTED:
                    continue  # no agent writes that: who leads, flags and loads are the leader's own to see
                is_request = entry.kind is EventKind.REQUEST and entry.request is not None and abs(now.wall_s - entry.at) < REQUEST_S
                is_news = entry.seq > last and not is_first
                if is_request and entry.request is not None and (is_news or is_first) and is_answered(entry.request):
                    continue
                # of this node itself, the events came directly; but requests of the time before it led did not
                if (node != self._node and is_news) or (is_first and is_request):
                    events.append(
                        Event(
                            entry.kind,
                            EventSource.INBOX,
                            now.boot_s,
                            node=node,
                            vmid=entry.vmid,
                            origin=entry.origin,
                            request=entry.request,
                            detail=entry.detail,
                            force=entry.force,
                            age_s=min(KEPT_S, max(0.0, inbox.written_at - entry.at) + late_s),
                        )
                    )
            seqs[node] = inbox.seq
        self._seqs = seqs
        if seen.inboxes is not None:
            there = {node for node, _ in seen.inboxes}
            self._texts = {node: text for node, text in self._texts.items() if node in there}
        return events

    def _late_s(self, inbox: InboxFile, now: Now) -> float:
        """How much longer than others of its node this file was on its way. Nobody knows how far clocks differ: the least counts as 0."""
        took_s = now.wall_s - inbox.written_at
        before = self._ways.get(inbox.node, ())
        self._ways[inbox.node] = (*before[-(WAYS - 1) :], took_s)
        return max(0.0, took_s - min(before, default=took_s))

    def has_reported(self, node: str, taken_at: float, uptime_s: float | None) -> bool:
        """True when the node's agent has reported since the node booted."""
        inbox = self.inboxes.get(node)
        if inbox is None:
            return False
        return uptime_s is None or inbox.written_at > taken_at - uptime_s - REPORT_TOLERANCE_S

    # the cluster log

    def _from_log(self, seen: SignsSeen, now: Now) -> list[Event]:
        self.ended, self.told = (), ()
        if seen.log is None or seen.log == self._log:
            return []
        self._log = seen.log
        advance = self._cursor.advance(seen.log)
        self._cursor = advance.cursor
        self.told = log_tasks(advance.entries)
        events = [event for task in self.told if (event := self._of_task(task, now)) is not None]
        if advance.gap:
            events.append(Event(EventKind.GAP, EventSource.CLUSTER_LOG, now.boot_s))
        return events

    def _of_task(self, task: LogTask, now: Now) -> Event | None:
        if task.vmid is None:
            return None
        if task.kind in MIGRATE_KINDS:
            self.ended += (task.upid,) if task.has_ended else ()
            self.migrating[task.vmid] = now.wall_s if task.has_ended else None
            self.migrating = {v: at for v, at in self.migrating.items() if at is None or now.wall_s - at < ECHO_S + KEPT_S}
            return None
        if not task.has_ended or not (task.status == "OK" or (task.status or "").startswith("WARNINGS")):
            return None  # a start that failed changes nothing
        if task.kind in _STARTS:
            return Event(EventKind.GUEST_STARTED, EventSource.CLUSTER_LOG, now.boot_s, node=task.node, vmid=task.vmid)
        if task.kind in _STOPS:
            return Event(EventKind.GUEST_STOPPED, EventSource.CLUSTER_LOG, now.boot_s, node=task.node, vmid=task.vmid)
        return None

    def forget_ended(self, snapshot: Snapshot) -> None:
        """Migrations whose end the cluster log did not tell: PVE's task list does not know them as running."""
        running = {task.vmid for task in snapshot.tasks if task.is_running and task.kind in MIGRATE_KINDS}
        self.migrating = {vmid: at for vmid, at in self.migrating.items() if at is not None or vmid in running}

    # flags

    def _from_flags(self, seen: SignsSeen, now: Now, settings: Settings, ours: AbstractSet[str]) -> list[Event]:
        if seen.flags is None:
            return []
        members = None if seen.members is None else parse_members(seen.members)
        self._nodes = dict(members.nodes) if members is not None and members.nodes else self._nodes
        told = Told(
            by_node={node: inbox.flag for node, inbox in sorted(self.inboxes.items()) if inbox.flag is not None},
            by_settings=settings.nodes.maintenance,
            by_ha=[node for node in asked_of_ha(seen.ha_status) if node not in ours],
            known=self._nodes or (),
        )
        return self.flags.on_signs(seen.flags, seen.paused, told, now, lambda shutdowns: self._going(shutdowns, seen, now))

    def _going(self, shutdowns: Mapping[str, ShutdownFlag], seen: SignsSeen, now: Now) -> frozenset[str]:
        """The nodes that are there, in the boot that their flags say ends."""
        if not shutdowns:
            return frozenset()
        if self._nodes is not None:  # right after its boot, a node's report and statistics are still those of before
            self._gone |= {(node, flag.boot_id) for node, flag in shutdowns.items() if not self._nodes.get(node, False)}
        known = () if self.loads is None else self.loads.nodes
        uptimes = {node.name: node.uptime_s for node in (known if seen.rrd is None else parse_rrd(seen.rrd).nodes)}
        return frozenset(
            node
            for node, flag in shutdowns.items()
            if (node, flag.boot_id) not in self._gone
            and (inbox := self.inboxes.get(node)) is not None
            and inbox.boot_id == flag.boot_id
            and self.has_reported(node, now.wall_s, uptimes.get(node))
        )

    def maintenance(self) -> tuple[Maintenance, ...]:
        """The nodes that are to be empty, and why."""
        return self.flags.maintenance()

    def shuts_down(self, node: str, boot_id: str) -> bool:
        """True when the node has said that this boot of it ends."""
        flag = self.flags.shutdowns.get(node)
        return flag is not None and flag.boot_id == boot_id

    # statistics

    def _from_statistics(self, seen: SignsSeen, now: Now, settings: Settings) -> list[Event]:
        entries = None if seen.vmlist is None else parse_vmlist(seen.vmlist)
        if seen.rrd is None or entries is None:
            return []
        self.vmids = frozenset(entry.vmid for entry in entries)
        members = None if seen.members is None else parse_members(seen.members)
        statistics = parse_rrd(seen.rrd)
        snapshot = self._with_caches(loads_snapshot(statistics, entries, members, now.wall_s))
        snapshot = self._ages.applied(snapshot, statistics, now)
        events = [] if self._before is None else differences(self._before, snapshot, now.boot_s)
        if any(event.kind in (EventKind.NODE_ONLINE, EventKind.NODE_OFFLINE) for event in events):
            self.membership_changed_s = now.boot_s
        self._came_s |= {event.node: now.wall_s for event in events if event.kind is EventKind.NODE_ONLINE and event.node is not None}
        if self._before is not None:
            happened = {event.vmid for event in events if event.vmid is not None}
            self.learned = with_look(self.learned, self._before, self.smoothing, snapshot, happened)
        self._before = snapshot
        self.smoothing = self.smoothing.with_snapshot(snapshot, now.boot_s)
        self.loads = self.smoothing.applied(snapshot)
        loads = node_loads(self.loads, Ledger(of_starting(self.learned, self.loads)), settings)
        return events + self.overloads.on_loads(loads, self._away(settings), settings, now)

    def learned_by(self, snapshot: Snapshot) -> Learned:
        """What is known of guests' loads at that look of PVE's API, which sees who has come to another node before the statistics do."""
        if self._before is None:
            return self.learned
        was_on = {guest.vmid: guest.node for guest in self._before.guests}
        moved = {guest.vmid for guest in snapshot.guests if was_on.get(guest.vmid, guest.node) != guest.node}
        return with_look(self.learned, self._before, self.smoothing, snapshot, moved)

    def _away(self, settings: Settings) -> list[str]:
        """The nodes that are in maintenance or ignored: their load need not be even with that of the others."""
        return [*settings.nodes.ignore, *settings.nodes.maintenance, *(maintenance.node for maintenance in self.maintenance())]

    def _with_caches(self, snapshot: Snapshot) -> Snapshot:
        """With the ZFS caches that nodes tell of themselves, where PVE's statistics do not: those of PVE 8."""
        told = {name: inbox.facts.zfs_cache_bytes for name, inbox in self.inboxes.items()}
        if all(cache is None for cache in told.values()):
            return snapshot
        return replace(
            snapshot,
            nodes=tuple(
                replace(node, zfs_cache_bytes=told.get(node.name)) if node.zfs_cache_bytes is None else node for node in snapshot.nodes
            ),
        )

    def _uptime_s(self, node: Node, age_s: float | None, taken_at: float) -> float | None:
        """How long the node is up: what PVE tells of one that has just come online may be from before."""
        came = self._came_s.get(node.name)
        since_s = None if came is None else max(0.0, taken_at - came)
        is_old = since_s is not None and (age_s is None or age_s >= since_s)
        return node.uptime_s if since_s is None or not is_old or node.uptime_s is None else min(node.uptime_s, since_s)

    def enriched(self, snapshot: Snapshot, ours: AbstractSet[str] = frozenset()) -> Snapshot:
        """The snapshot with what only this node's files tell: flags, who has reported and what it has, smoothed loads, pressures,
        ZFS caches, unseen guests. `ours` as for `on_signs`."""
        if not self.has_seen:
            return snapshot
        asked = {maintenance.node: maintenance for maintenance in snapshot.maintenance if maintenance.node not in ours}
        asked |= {maintenance.node: maintenance for maintenance in self.maintenance()}
        still_closed = ours & {maintenance.node for maintenance in snapshot.maintenance} - asked.keys()
        ages: dict[str, float] = {}
        if self.loads is not None:  # as old as they were when they were read, and what has passed since
            since_s = max(0.0, snapshot.taken_at - self.loads.taken_at)
            ages = {node.name: node.sample_age_s + since_s for node in self.loads.nodes if node.sample_age_s is not None}
        caches = {} if self.loads is None else {node.name: node.zfs_cache_bytes for node in self.loads.nodes}
        reported = {node.name: self.has_reported(node.name, snapshot.taken_at, node.uptime_s) for node in snapshot.nodes}
        facts = {name: self.inboxes[name].facts for name, has_reported in reported.items() if has_reported}
        nodes = tuple(
            replace(
                node,
                reports=reported[node.name],
                facts=told.node if (told := facts.get(node.name)) is not None else None,
                sample_age_s=node.sample_age_s if node.sample_age_s is not None else ages.get(node.name),
                zfs_cache_bytes=node.zfs_cache_bytes if node.zfs_cache_bytes is not None else caches.get(node.name),
                uptime_s=self._uptime_s(node, ages.get(node.name), snapshot.taken_at),
            )
            for node in snapshot.nodes
        )
        known = {guest.vmid for guest in snapshot.guests}
        return self.smoothing.applied(
            replace(
                snapshot,
                nodes=nodes,
                maintenance=tuple(maintenance for _, maintenance in sorted(asked.items())),
                no_target=tuple(sorted({*snapshot.no_target, *still_closed, *self.flags.going_down})),
                going_down=tuple(sorted(self.flags.going_down)),
                unseen=tuple(sorted(self.vmids - known)),
            )
        )

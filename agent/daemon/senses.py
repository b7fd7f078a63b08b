# SPDX-License-Identifier: GPL-3.0-or-later
"""The leader's senses: the cluster log, the nodes' inboxes, flags and statistics, turned into events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from agent.core.cluster import MIGRATE_KINDS, Maintenance, Snapshot
from agent.core.clusterlog import ClusterLogCursor, LogTask, log_tasks
from agent.core.documents import DocumentError, InboxFile, parse
from agent.core.events import Event, EventKind, EventSource
from agent.core.learned import Learned, of_starting, with_look
from agent.core.load import Ledger, NodeLoad, Weights, node_loads, over_threshold, spread
from agent.core.settings import Settings
from agent.core.shutdown import ShutdownFlag, flags_of_nodes, why_guests_stay
from agent.core.smoothing import Held, Smoothing
from agent.core.statistics import parse_members, parse_rrd, parse_vmlist
from agent.core.watch import asked_of_ha, differences, loads_snapshot
from agent.daemon.inputs import Now, SignsSeen

_STARTS = frozenset({"qmstart", "vzstart"})
_STOPS = frozenset({"qmstop", "qmshutdown", "vzstop", "vzshutdown"})
REQUEST_S = 300.0  # a command has long given up waiting for a request that is older
REPORT_TOLERANCE_S = 60.0  # between the clocks of two nodes, and between a boot and the agent's first report


class Senses:
    """What the leader has seen so far. Made anew when a node takes the lead: what is there then is covered by a full look."""

    def __init__(self, node: str, learned: Learned | None = None) -> None:
        self._node = node
        self.learned: Learned = {} if learned is None else learned
        self._cursor = ClusterLogCursor()
        self._seqs: dict[str, int] | None = None
        self._texts: dict[str, str] = {}
        self._log = ""
        self._flags: dict[str, str] | None = None
        self.strange_flags: frozenset[str] = frozenset()
        self._nodes: Mapping[str, bool] | None = None
        self._shutdowns: dict[str, ShutdownFlag] = {}
        self._gone: set[tuple[str, str]] = set()
        self.going_down: dict[str, str] = {}
        self._before: Snapshot | None = None
        self._raised: dict[str, float] = {}
        self.inboxes: dict[str, InboxFile] = {}
        self.loads: Snapshot | None = None
        self.node_loads: Mapping[str, NodeLoad] = {}
        self.smoothing = Smoothing()
        self.held: Held | None = None
        self.vmids: frozenset[int] = frozenset()
        self.migrating: dict[int, float | None] = {}
        self.ended: tuple[str, ...] = ()  # migrations that the cluster log said the end of just now
        self.membership_changed_s: float | None = None
        self.has_seen = False

    def on_signs(self, seen: SignsSeen, now: Now, settings: Settings, is_answered: Callable[[str], bool]) -> list[Event]:
        """The events in what was read; `is_answered` tells requests that a former leader has answered."""
        events = self._from_inboxes(seen, now, is_answered)
        events += self._from_log(seen, now)
        events += self._from_flags(seen, now)
        events += self._from_statistics(seen, now, settings)
        self.has_seen = True
        return events

    # inboxes

    def _from_inboxes(self, seen: SignsSeen, now: Now, is_answered: Callable[[str], bool]) -> list[Event]:
        events: list[Event] = []
        is_first = self._seqs is None
        seqs = {} if self._seqs is None else self._seqs
        for node, text in seen.inboxes or ():
            if self._texts.get(node) == text:
                continue  # read and taken before
            try:
                inbox = parse(InboxFile, text)
            except DocumentError:
                continue  # torn or of another version: read again in two seconds
            self._texts[node] = text
            if inbox.node != node:
                continue  # a file put there by hand speaks for nobody
            self.inboxes[node] = inbox
            last = seqs.get(node, 0)
            if inbox.seq < last:
                last = 0  # the file was made anew, and counts from the start
            missed = inbox.seq - last - sum(entry.seq > last for entry in inbox.events)
            if missed > 0 and node != self._node and not is_first:
                detail = f"{missed} event{'s' if missed > 1 else ''}"
                events.append(Event(EventKind.GAP, EventSource.INBOX, now.boot_s, node=node, detail=detail))
            for entry in inbox.events:
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
                        )
                    )
            seqs[node] = inbox.seq
        self._seqs = seqs
        if seen.inboxes is not None:
            there = {node for node, _ in seen.inboxes}
            self._texts = {node: text for node, text in self._texts.items() if node in there}
        return events

    def has_reported(self, node: str, taken_at: float, uptime_s: float | None) -> bool:
        """True when the node's agent has reported since the node booted."""
        inbox = self.inboxes.get(node)
        if inbox is None:
            return False
        return uptime_s is None or inbox.written_at > taken_at - uptime_s - REPORT_TOLERANCE_S

    # the cluster log

    def _from_log(self, seen: SignsSeen, now: Now) -> list[Event]:
        self.ended = ()
        if seen.log is None or seen.log == self._log:
            return []
        self._log = seen.log
        advance = self._cursor.advance(seen.log)
        self._cursor = advance.cursor
        events = [event for task in log_tasks(advance.entries) if (event := self._of_task(task, now)) is not None]
        if advance.gap:
            events.append(Event(EventKind.GAP, EventSource.CLUSTER_LOG, now.boot_s))
        return events

    def _of_task(self, task: LogTask, now: Now) -> Event | None:
        if task.vmid is None:
            return None
        if task.kind in MIGRATE_KINDS:
            self.ended += (task.upid,) if task.has_ended else ()
            self.migrating[task.vmid] = now.wall_s if task.has_ended else None
            self.migrating = {v: at for v, at in self.migrating.items() if at is None or now.wall_s - at < 120}
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

    def _from_flags(self, seen: SignsSeen, now: Now) -> list[Event]:
        if seen.flags is None:
            return []
        members = None if seen.members is None else parse_members(seen.members)
        self._nodes = dict(members.nodes) if members is not None and members.nodes else self._nodes
        names = {name.lower(): name for name in self._nodes or ()}
        wanted = dict(seen.flags)
        self.strange_flags = frozenset(name for name in wanted if names and name.lower() not in names)
        for node, inbox in sorted(self.inboxes.items()):
            if inbox.flag is not None:
                wanted.setdefault(node, inbox.flag)
        for node in asked_of_ha(seen.ha_status):
            wanted.setdefault(node, "asked of the HA manager")
        flags: dict[str, str] = {}
        for node, reason in wanted.items():
            name = names.get(node.lower()) if names else node
            if name is not None:  # of a node that has left the cluster, files may still be there
                flags.setdefault(name, reason)
        self._shutdowns = flags_of_nodes(flags)
        going_before, self.going_down = self.going_down, why_guests_stay(self._shutdowns, self._going(seen, now))
        before, self._flags = self._flags, flags
        if before is None:
            return []
        events = []
        emptied = flags.keys() - self.going_down.keys()
        for node in sorted(emptied - (before.keys() - going_before.keys())):
            detail = "it shuts down" if node in self._shutdowns else flags[node][:100]
            events.append(Event(EventKind.MAINTENANCE_BEGAN, EventSource.FLAG, now.boot_s, node=node, detail=detail))
        for node in sorted(self.going_down.keys() - going_before.keys()):
            detail = f"its guests stay: {self.going_down[node]}"[:100]
            events.append(Event(EventKind.NODE_SHUTS_DOWN, EventSource.FLAG, now.boot_s, node=node, detail=detail))
        for node in sorted(before.keys() - flags.keys()):
            events.append(Event(EventKind.MAINTENANCE_ENDED, EventSource.FLAG, now.boot_s, node=node))
        return events

    def _going(self, seen: SignsSeen, now: Now) -> frozenset[str]:
        """The nodes that are there, in the boot that their flags say ends."""
        if not self._shutdowns:
            return frozenset()
        if self._nodes is not None:  # right after its boot, a node's report and statistics are still those of before
            self._gone |= {(node, flag.boot_id) for node, flag in self._shutdowns.items() if not self._nodes.get(node, False)}
        known = () if self.loads is None else self.loads.nodes
        uptimes = {node.name: node.uptime_s for node in (known if seen.rrd is None else parse_rrd(seen.rrd).nodes)}
        return frozenset(
            node
            for node, flag in self._shutdowns.items()
            if (node, flag.boot_id) not in self._gone
            and (inbox := self.inboxes.get(node)) is not None
            and inbox.boot_id == flag.boot_id
            and self.has_reported(node, now.wall_s, uptimes.get(node))
        )

    def maintenance(self) -> tuple[Maintenance, ...]:
        """Nodes that somebody wants empty by a flag, with its text."""
        return tuple(
            Maintenance(node, text or "maintenance flag", shuts_down=node in self._shutdowns)
            for node, text in sorted((self._flags or {}).items())
            if node not in self.going_down
        )

    def shuts_down(self, node: str, boot_id: str) -> bool:
        """True when the node has said that this boot of it ends."""
        flag = self._shutdowns.get(node)
        return flag is not None and flag.boot_id == boot_id

    # statistics

    def _from_statistics(self, seen: SignsSeen, now: Now, settings: Settings) -> list[Event]:
        entries = None if seen.vmlist is None else parse_vmlist(seen.vmlist)
        if seen.rrd is None or entries is None:
            return []
        self.vmids = frozenset(entry.vmid for entry in entries)
        members = None if seen.members is None else parse_members(seen.members)
        snapshot = self._with_caches(loads_snapshot(parse_rrd(seen.rrd), entries, members, now.wall_s))
        events = [] if self._before is None else differences(self._before, snapshot, now.boot_s)
        if any(event.kind in (EventKind.NODE_ONLINE, EventKind.NODE_OFFLINE) for event in events):
            self.membership_changed_s = now.boot_s
        if self._before is not None:
            happened = {event.vmid for event in events if event.vmid is not None}
            self.learned = with_look(self.learned, self._before, self.smoothing, snapshot, happened)
        self._before = snapshot
        self.smoothing = self.smoothing.with_snapshot(snapshot, now.boot_s)
        self.loads = self.smoothing.applied(snapshot)
        return events + self._overloads(now, settings)

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

    def _overloads(self, now: Now, settings: Settings) -> list[Event]:
        """Overload that has lasted, and uneven load: told once as long as it lasts, and at most every `reconcile_s` when it comes and
        goes. What becomes possible meanwhile, the regular look finds."""
        if self.loads is None:
            return []
        loads = self.node_loads = node_loads(self.loads, Ledger(of_starting(self.learned, self.loads)), settings)
        weights = Weights.of(settings, loads.values())
        cpu_only = replace(weights, memory_threshold=None)
        memory_only = replace(weights, cpu_threshold=None, pressure_threshold=None)  # pressure is held for as long as cpu
        self.held = (self.held or Held()).with_look(
            now.boot_s,
            [name for name, load in loads.items() if over_threshold(load, cpu_only)],
            [name for name, load in loads.items() if over_threshold(load, memory_only)],
        )
        held = self.long_held(now, settings)
        wanted = [
            Event(EventKind.OVERLOAD, EventSource.STATISTICS, now.boot_s, node=name, detail=over_threshold(loads[name], weights) or "")
            for name in sorted(held)
        ]
        width, high, low = spread(self._balanced(loads, settings), weights)
        if 0 < settings.balance.spread_percent < 100 * width:
            detail = f"{100 * width:.0f} points between {high} and {low}"
            wanted.append(Event(EventKind.SPREAD, EventSource.STATISTICS, now.boot_s, node=high, detail=detail))
        keys = {f"{event.kind}:{event.node}" for event in wanted}
        self._raised = {key: at for key, at in self._raised.items() if key in keys or now.boot_s - at < settings.triggers.reconcile_s}
        events = [event for event in wanted if f"{event.kind}:{event.node}" not in self._raised]
        self._raised.update({f"{event.kind}:{event.node}": now.boot_s for event in events})
        return events

    def _balanced(self, loads: Mapping[str, NodeLoad], settings: Settings) -> list[NodeLoad]:
        """The loads that should be even: not those of nodes in maintenance or ignored."""
        away = {name.lower() for name in (*settings.nodes.ignore, *settings.nodes.maintenance, *(self._flags or {}))}
        return [load for name, load in loads.items() if name.lower() not in away]

    def long_held(self, now: Now, settings: Settings) -> frozenset[str]:
        """Nodes that have been over a threshold for as long as the settings want."""
        if self.held is None:
            return frozenset()
        return self.held.long_enough(now.boot_s, settings.balance.cpu.hold_s, settings.balance.memory.hold_s)

    def enriched(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with what only this node's files tell: flags, who has reported and what it has, smoothed loads, pressures,
        ZFS caches, unseen guests."""
        if not self.has_seen:
            return snapshot
        asked = {maintenance.node: maintenance for maintenance in (*self.maintenance(), *snapshot.maintenance)}
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
            )
            for node in snapshot.nodes
        )
        known = {guest.vmid for guest in snapshot.guests}
        return self.smoothing.applied(
            replace(
                snapshot,
                nodes=nodes,
                maintenance=tuple(maintenance for _, maintenance in sorted(asked.items())),
                no_target=tuple(sorted({*snapshot.no_target, *self.going_down})),
                going_down=tuple(sorted(self.going_down)),
                unseen=tuple(sorted(self.vmids - known)),
            )
        )

# SPDX-License-Identifier: GPL-3.0-or-later
"""The ports of `agent.ports` as a node of the simulated cluster has them. A call takes no simulated time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from agent.core.backups import CRON_FILE, JOBS_FILE, read_cron, read_jobs
from agent.core.cluster import MIGRATE_KINDS, BackupJob, Guest, GuestType, Maintenance, Node, Snapshot
from agent.core.journal import Record
from agent.core.plan_types import Refusal, Verdict
from agent.core.reasons import RefusalReason
from agent.ports import (
    Clock,
    ClusterApi,
    ClusterFiles,
    FactsSight,
    FactsSource,
    FilesystemState,
    InboxSight,
    InDoubtError,
    JournalSink,
    LeaderLock,
    LocalFiles,
    LocalInbox,
    LockSight,
    MigrationOrder,
    NotHolderError,
    RefusedError,
    ServiceNotifier,
    TaskSight,
    TemporaryError,
)
from agent.sim.dot_files import config_text, manager_status_text, members_text, version_text
from agent.sim.inventory import START_WALL_S, SimGuest
from agent.sim.pmxcfs import check_path
from agent.sim.statistics import GuestRow, NodeRow
from agent.sim.world import AGENT_USER, JournalLine, Post, World

LOOK_REQUESTS = ("GET /cluster/resources", "GET /cluster/tasks", "GET /cluster/ha/status/manager_status")
HA_ASKED_BY = "ha-manager"


class SimClock:
    """Both clocks of a node."""

    def __init__(self, world: World, node: str) -> None:
        self._world, self._node = world, world.nodes[node]

    def boottime_s(self) -> float:
        """Seconds since the node's boot."""
        return self._node.boottime_s(self._world.now_s)

    def wall_s(self) -> float:
        """What the node's clock shows."""
        return self._node.wall_s(self._world.now_s)


class SimLock:
    """The leader lock as a node sees it."""

    def __init__(self, world: World, node: str) -> None:
        self._pmxcfs, self._node = world.pmxcfs, world.nodes[node]

    def sight(self) -> LockSight:
        """See `agent.ports.LeaderLock`."""
        self._pmxcfs.check_readable(self._node)
        lock = self._node.partition.lock
        return LockSight(None if lock is None else lock.mtime_s)

    def take(self) -> bool:
        """See `agent.ports.LeaderLock`."""
        return self._pmxcfs.lock_take(self._node)

    def renew(self) -> None:
        """See `agent.ports.LeaderLock`."""
        if not self._pmxcfs.lock_renew(self._node):
            raise NotHolderError("the leader lock is gone or belongs to another node")

    def ask_expiry(self) -> None:
        """See `agent.ports.LeaderLock`."""
        self._pmxcfs.lock_ask_expiry(self._node)

    def release(self) -> None:
        """See `agent.ports.LeaderLock`."""
        self._pmxcfs.lock_release(self._node)


class SimFiles:
    """/etc/pve as a node sees it."""

    def __init__(self, world: World, node: str) -> None:
        self._world, self._node = world, world.nodes[node]

    def state(self) -> FilesystemState:
        """See `agent.ports.ClusterFiles`."""
        return self._world.pmxcfs.state(self._node)

    def read(self, path: str) -> str | None:
        """See `agent.ports.ClusterFiles`."""
        world, node = self._world, self._node
        check_path(path)
        world.pmxcfs.check_readable(node)
        if path == ".clusterlog":
            return node.partition.ring.text()
        if path == ".rrd":
            return world.rrd_text(node.partition)
        if path == ".vmlist":
            return world.vmlist_text()
        if path == ".members":
            version = world.pmxcfs.membership_version
            return members_text(node, world.nodes.values(), version, standalone=world.pmxcfs.is_standalone())
        if path == ".version":
            start = int(START_WALL_S + node.booted_at_s)
            return version_text(start, world.pmxcfs.membership_version, world.vmlist_version)
        if path == "ha/manager_status" and (world.ha_requests or world.ha_states or world.ha.services):
            services = world.ha.status_of_services()
            return manager_status_text(world.ha_requests, world.ha_states, services, int(node.wall_s(world.now_s)))
        if (guest := world.guest_of_file(path)) is not None:
            return config_text(guest)
        return node.partition.files.get(path)

    def list(self, path: str) -> tuple[str, ...]:
        """See `agent.ports.ClusterFiles`."""
        check_path(path)
        self._world.pmxcfs.check_readable(self._node)
        if path == "nodes":
            return tuple(sorted(self._world.nodes))
        return self._world.pmxcfs.names(self._node, path)

    def write(self, path: str, text: str) -> None:
        """See `agent.ports.ClusterFiles`."""
        self._world.pmxcfs.write(self._node, path, text)

    def remove(self, path: str) -> None:
        """See `agent.ports.ClusterFiles`."""
        self._world.pmxcfs.remove(self._node, path)

    def make_folder(self, path: str) -> None:
        """See `agent.ports.ClusterFiles`."""
        self._world.pmxcfs.make_folder(self._node, path)


class SimApi:
    """PVE's API as asked on a node, at its own server."""

    def __init__(self, world: World, node: str) -> None:
        self._world, self._node = world, world.nodes[node]
        self._knows_version = False

    def _ask(self, *requests: str, of: str | None = None) -> None:
        """Count the requests; raise when the own server, or that of the node that is asked about, does not answer."""
        world, node = self._world, self._node
        world.api_requests.update(requests)
        if node.api_failures > 0:
            node.api_failures -= 1
            raise TemporaryError(f"{node.name}: the API answers 500: internal error")
        if node.api_cut or not node.online:
            raise TemporaryError(f"{node.name}: the API cannot be reached: connection refused; is pveproxy running?")
        if world.now_s < node.api_hangs_until_s:
            raise TemporaryError(f"{node.name}: the API does not answer in time")
        if of is None or of == node.name:
            return
        other = world.nodes.get(of)
        if other is None or not other.online or other.api_cut or other.partition is not node.partition:
            raise TemporaryError(f"{of}: the node cannot be reached: 595 No route to host")
        if world.now_s < other.api_hangs_until_s:
            raise TemporaryError(f"{of}: the API does not answer in time")

    def look(self) -> Snapshot:
        """See `agent.ports.ClusterApi`."""
        self._ask(*LOOK_REQUESTS, *(() if self._knows_version else ("GET /version",)))
        self._knows_version = True
        world, here = self._world, self._node
        node_rows, guest_rows = world.rows(here.partition)
        reachable = {node.name for node in world.pmxcfs.members(here.partition)}
        requested = dict.fromkeys(world.ha_requests, HA_ASKED_BY)
        return Snapshot(
            taken_at=here.wall_s(world.now_s),
            nodes=tuple(_node(name, name in reachable, node_rows.get(name)) for name in world.nodes),
            guests=tuple(
                _guest(guest, guest_rows.get(vmid), world.pve_version) for vmid, guest in sorted(world.guests.items()) if not guest.hidden
            ),
            tasks=world.tasks.shown(reachable),
            maintenance=tuple(Maintenance(name, cause) for name, cause in sorted(requested.items())),
            no_target=tuple(sorted(name for name in world.ha_states if name in reachable and name not in requested)),
            pve_version=world.pve_version,
            storage_use=tuple(use for _, use in sorted(world.storage_use.items())),
            storages=world.storages,
            registered_tags=world.registered_tags,
            ha=world.ha.seen(),
            backup_jobs=self._backup_jobs(),
            utc_offset_s=world.utc_offset_s,
        )

    def _backup_jobs(self) -> tuple[BackupJob, ...]:
        files = self._node.partition.files
        jobs = read_jobs(files.get(JOBS_FILE, "")) + read_cron(files.get(CRON_FILE, ""))
        return tuple(sorted(jobs, key=lambda job: job.id))

    def verdict(self, vmid: int, type: GuestType, node: str, wall_s: float) -> Verdict:
        """See `agent.ports.ClusterApi`."""
        self._ask("GET migrate", of=node)
        guest = self._world.guests.get(vmid)
        refusal: Refusal | None = None
        if guest is None or guest.node != node:
            refusal = Refusal(vmid, RefusalReason.PRECONDITION, f"its configuration is not on {node}")
        elif guest.lock is not None:
            refusal = Refusal(vmid, RefusalReason.LOCKED, guest.lock)
        elif guest.local_devices:
            refusal = Refusal(vmid, RefusalReason.LOCAL_DEVICE, ", ".join(guest.local_devices))
        if guest is None or refusal is not None:
            return Verdict(vmid, wall_s, refusal)
        if guest.local_disks:
            refusal = Refusal(vmid, RefusalReason.LOCAL_DISK, ", ".join(guest.local_disks))
        refused = {name: Refusal(vmid, RefusalReason.NODE_REFUSED, why) for name, why in guest.not_allowed.items()}
        for name in self._world.nodes:
            if missing := [device for device, nodes in sorted(guest.mapped.items()) if name not in nodes]:
                refused[name] = Refusal(vmid, RefusalReason.DEVICE_MISSING, ", ".join(missing))
        return Verdict(vmid, wall_s, refusal, tuple(sorted(refused.items())), guest.needs)

    def migrate(self, order: MigrationOrder, send_until_s: float = math.inf) -> str:
        """See `agent.ports.ClusterApi`."""
        world = self._world
        if self._node.boottime_s(world.now_s) >= send_until_s:
            raise TemporaryError("timed out before the request was sent")
        lock = self._node.partition.lock
        held_lock = lock is not None and lock.writer == self._node.name and world.pmxcfs.is_quorate(self._node)
        try:
            self._ask("POST migrate", of=order.source)
            upid = world.migrations.request(order, AGENT_USER).upid
        except (RefusedError, InDoubtError, TemporaryError) as error:
            world.post_record.append(Post(world.now_s, self._node.name, order, held_lock, f"{type(error).__name__}: {error}"))
            raise
        world.post_record.append(Post(world.now_s, self._node.name, order, held_lock, upid))
        return upid

    def start(self, vmid: int, type: GuestType, node: str, send_until_s: float = math.inf) -> str:
        """See `agent.ports.ClusterApi`."""
        if self._node.boottime_s(self._world.now_s) >= send_until_s:
            raise TemporaryError("timed out before the request was sent")
        self._ask("POST start", of=node)
        guest = self._world.guests.get(vmid)
        if guest is None or (guest.node, guest.type) != (node, type):
            raise RefusedError(f"Configuration file for {vmid} does not exist on {node}")
        task = self._world.start_guest(vmid, AGENT_USER)
        if task is None:
            raise RefusedError(f"{'VM' if guest.type is GuestType.QEMU else 'CT'} {vmid} already running")
        return task.upid

    def task(self, upid: str) -> TaskSight:
        """See `agent.ports.ClusterApi`."""
        parts = upid.split(":")
        if len(parts) != 9 or parts[0] != "UPID" or parts[1] not in self._world.nodes:
            raise RefusedError(f"{upid}: not a task of this cluster")
        self._ask("GET task", of=parts[1])
        task = self._world.tasks.known(upid)
        if task is None:
            raise RefusedError(f"{upid}: no such task")
        return TaskSight(upid, task.status)

    def task_log(self, upid: str) -> tuple[str, ...]:
        """See `agent.ports.ClusterApi`."""
        self.task(upid)
        return self._world.tasks.written(upid)

    def close(self) -> None:
        """See `agent.ports.ClusterApi`."""

    def find_migration(self, vmid: int, source: str, since_wall_s: float) -> str | None:
        """See `agent.ports.ClusterApi`."""
        self._ask("GET tasks", of=source)
        found = [
            task
            for task in self._world.tasks.of_node(source)
            if task.kind in MIGRATE_KINDS and task.vmid == vmid and task.started_at >= int(since_wall_s)
        ]
        return found[-1].upid if found else None


def _node(name: str, online: bool, row: NodeRow | None) -> Node:
    if row is None:
        return Node(name, online, 0.0, 0)
    return Node(
        name=name,
        online=online,
        cpu_cores=row.cores,
        memory_bytes=row.memory_bytes,
        cpu_used_cores=row.cpu_fraction * row.cores,
        memory_used_bytes=row.memory_used_bytes,
        uptime_s=float(row.uptime_s),
    )


def _guest(guest: SimGuest, row: GuestRow | None, pve_version: str) -> Guest:
    if row is None:
        return Guest(
            vmid=guest.vmid,
            type=guest.type,
            name=f"{'VM ' if guest.type is GuestType.QEMU else 'CT'}{guest.vmid}",
            node=guest.node,
            status="unknown",
            cpu_cores=0.0,
            memory_bytes=0,
            tags=guest.tags,
            pool=guest.pool,
            lock=guest.lock,
            ha=guest.ha,
            template=guest.template,
        )
    has_host_memory = guest.type is GuestType.QEMU and not pve_version.startswith("8.")
    return Guest(
        vmid=guest.vmid,
        type=guest.type,
        name=row.name,
        node=guest.node,
        status=row.status,
        cpu_cores=row.cores,
        memory_bytes=row.memory_bytes,
        cpu_used_cores=row.cpu_fraction * row.cores,
        memory_used_bytes=row.memory_used_bytes,
        memory_host_bytes=row.memory_host_bytes if has_host_memory else None,
        uptime_s=float(row.uptime_s),
        tags=guest.tags,
        pool=guest.pool,
        lock=guest.lock,
        ha=guest.ha,
        template=guest.template,
    )


class SimInbox:
    """What hookscripts and commands left on a node. What was claimed last is claimed again by the process that comes next."""

    def __init__(self, world: World, node: str) -> None:
        self._node = world.nodes[node]
        self._has_claimed = False

    def claim(self) -> InboxSight:
        """See `agent.ports.LocalInbox`."""
        inbox = self._node.inbox
        if inbox.is_broken:
            raise TemporaryError("/run/proxlb-agent/inbox: the inbox is missing")
        if self._has_claimed:
            inbox.claimed_names.clear()
            inbox.claimed_requests.clear()
        self._has_claimed = True
        inbox.claimed_names |= inbox.names
        inbox.claimed_requests |= inbox.requests
        inbox.names.clear()
        inbox.requests.clear()
        return InboxSight(tuple(inbox.claimed_names), tuple(inbox.claimed_requests.items()), self._node.local_flag)


class SimFacts:
    """What a node has."""

    def __init__(self, world: World, node: str) -> None:
        self._world, self._node = world, world.nodes[node]

    def read(self) -> FactsSight:
        """See `agent.ports.FactsSource`."""
        facts = self._node.facts
        known = replace(facts, pve_version=facts.pve_version or self._world.pve_version)
        return FactsSight(known, self._node.zfs_cache_bytes, self._node.memory_bytes)


class SimLocalFiles:
    """A node's own files."""

    def __init__(self, world: World, node: str) -> None:
        self._node = world.nodes[node]

    def _check(self) -> None:
        if self._node.disk_full:
            raise TemporaryError("/var/lib/proxlb-agent: no space left on device")

    def write_status(self, text: str) -> None:
        """See `agent.ports.LocalFiles`."""
        self._check()
        self._node.status_text = text

    def append_decision(self, line: str) -> None:
        """See `agent.ports.LocalFiles`."""
        self._check()
        self._node.decisions.append(line.replace("\n", " "))

    def read_decisions(self) -> tuple[str, ...]:
        """See `agent.ports.LocalFiles`."""
        return tuple(self._node.decisions)

    def write_loads(self, text: str) -> None:
        """See `agent.ports.LocalFiles`."""
        self._check()
        self._node.loads_text = text

    def read_loads(self) -> str | None:
        """See `agent.ports.LocalFiles`."""
        return self._node.loads_text


class SimJournal:
    """The journal of all nodes, in `World.journal`."""

    def __init__(self, world: World, node: str) -> None:
        self._world, self._node = world, node

    def say(self, record: Record) -> None:
        """See `agent.ports.JournalSink`."""
        self._world.journal.append(JournalLine(self._world.now_s, self._node, record))


class SimNotifier:
    """systemd on a node: what the agent told it is in `World.notices`, how often it was alive in `World.alive_notices`."""

    def __init__(self, world: World, node: str) -> None:
        self._world, self._node = world, node
        self._status = ""

    def ready(self) -> None:
        """READY=1"""
        self._note("ready")

    def alive(self) -> None:
        """WATCHDOG=1"""
        self._world.alive_notices[self._node] += 1

    def status(self, text: str) -> None:
        """STATUS=text"""
        if text != self._status:
            self._status = text
            self._note(f"status: {text}")

    def reloading(self) -> None:
        """RELOADING=1"""
        self._note("reloading")

    def stopping(self) -> None:
        """STOPPING=1"""
        self._note("stopping")

    def _note(self, what: str) -> None:
        self._world.notices.append((self._world.now_s, self._node, what))


@dataclass(frozen=True, slots=True)
class NodePorts:
    """All that an agent on a node has of the world outside."""

    clock: Clock
    lock: LeaderLock
    files: ClusterFiles
    api: ClusterApi
    inbox: LocalInbox
    facts: FactsSource
    local_files: LocalFiles
    journal: JournalSink
    notifier: ServiceNotifier


def ports_of(world: World, node: str) -> NodePorts:
    """The ports of an agent on that node. A restarted agent gets new ones; what they stand for is the world's."""
    return NodePorts(
        clock=SimClock(world, node),
        lock=SimLock(world, node),
        files=SimFiles(world, node),
        api=SimApi(world, node),
        inbox=SimInbox(world, node),
        facts=SimFacts(world, node),
        local_files=SimLocalFiles(world, node),
        journal=SimJournal(world, node),
        notifier=SimNotifier(world, node),
    )

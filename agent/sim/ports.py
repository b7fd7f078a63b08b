# SPDX-License-Identifier: GPL-3.0-or-later
"""The ports of `agent.ports` as a node of the simulated cluster has them. A call takes no simulated time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.core.journal import Record
from agent.ports import (
    Clock,
    ClusterApi,
    ClusterFiles,
    FactsSight,
    FactsSource,
    FilesystemState,
    HaNodes,
    InboxSight,
    JournalSink,
    LeaderLock,
    LocalFiles,
    LocalInbox,
    LockSight,
    NoQuorumError,
    NotHolderError,
    NotMountedError,
    PermanentError,
    ServiceNotifier,
    TemporaryError,
)
from agent.sim.api import SimApi
from agent.sim.dot_files import config_text, manager_status_text, members_text, version_text
from agent.sim.inventory import START_WALL_S
from agent.sim.pmxcfs import check_path
from agent.sim.records import HaPost, JournalLine
from agent.sim.world import World


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


class SimInbox:
    """What hookscripts and commands left on a node. What was claimed last is claimed again by the process that comes next."""

    def __init__(self, world: World, node: str) -> None:
        self._world, self._node = world, world.nodes[node]
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
        ages_s = tuple(self._world.now_s - left_s for left_s in inbox.claimed_names.values())
        return InboxSight(tuple(inbox.claimed_names), tuple(inbox.claimed_requests.items()), self._node.local_flag, ages_s)


class SimHaNodes:
    """`ha-manager` on a node."""

    def __init__(self, world: World, node: str) -> None:
        self._world, self._node = world, world.nodes[node]

    def set_maintenance(self, node: str, wanted: bool) -> None:
        """See `agent.ports.HaNodes`."""
        world, here = self._world, self._node
        if here.ha_command_failures:
            raise here.ha_command_failures.pop(0)
        if node not in world.nodes:
            raise PermanentError(f"ha-manager: no such cluster node '{node}'")
        if world.pmxcfs.state(here) is FilesystemState.NOT_MOUNTED:
            raise NotMountedError("ha-manager: ipcc_send_rec[1] failed: Connection refused")
        if not world.pmxcfs.is_quorate(here):
            raise NoQuorumError("ha-manager: cluster not ready - no quorum?")
        held_lock = here.partition.lock is not None and here.partition.lock.writer == here.name
        world.ha_record.append(HaPost(world.now_s, here.name, node, wanted, held_lock))
        world.ha.ask_maintenance(node, wanted)


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
            raise TemporaryError("/var/lib/proxlb-agent: No space left on device")

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
    ha_nodes: HaNodes
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
        ha_nodes=SimHaNodes(world, node),
        local_files=SimLocalFiles(world, node),
        journal=SimJournal(world, node),
        notifier=SimNotifier(world, node),
    )

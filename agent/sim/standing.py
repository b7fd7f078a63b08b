# SPDX-License-Identifier: GPL-3.0-or-later
"""How a simulated cluster stands at an instant, and what may be asked of it then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agent.core.cluster import GuestType, Storage, StorageUse
from agent.core.needs import Volume
from agent.sim import dot_files, statistics
from agent.sim.ha import HaManager
from agent.sim.inventory import AgentWish, SimGuest, SimNode
from agent.sim.migrations import Migration, Migrations
from agent.sim.pmxcfs import Partition, Pmxcfs
from agent.sim.records import HaPost, JournalLine, Post
from agent.sim.tasks import Tasks
from agent.sim.timeline import Timeline


@dataclass(frozen=True, slots=True)
class NodeUse:
    """What is on a node at this instant, guests in flight counted on both of their nodes.

    Units:   cores and bytes.
    """

    cores: float
    used_cores: float
    memory_bytes: int
    used_memory_bytes: int


class Standing:
    """Nodes, guests and whatever else there is, and what follows from it. What people and machines do to it: `agent.sim.guests`,
    `agent.sim.nodes` and `agent.sim.world`.

    Units:   as of `agent.sim.world.World`.
    """

    migrations: Migrations
    ha: HaManager

    def __init__(self, nodes: Iterable[SimNode], pve_version: str, storages: Iterable[Storage]) -> None:
        self.timeline = Timeline()
        self.pve_version = pve_version
        self.storages = tuple(sorted(storages, key=lambda storage: storage.name))
        self.nodes: dict[str, SimNode] = {}
        self.guests: dict[int, SimGuest] = {}
        self.tasks = Tasks(self.timeline)
        self.utc_offset_s = 0.0
        self.registered_tags: tuple[str, ...] | None = None
        self.pmxcfs = Pmxcfs(self.timeline, self.nodes)
        self.main = Partition()
        self.post_record: list[Post] = []
        self.ha_record: list[HaPost] = []
        self.journal: list[JournalLine] = []
        self.notices: list[tuple[float, str, str]] = []
        self.api_requests: Counter[str] = Counter()
        self.alive_notices: Counter[str] = Counter()
        self.ha_requests: set[str] = set()
        self.ha_states: dict[str, str] = {}
        self.storage_use: dict[tuple[str, tuple[str, ...]], StorageUse] = {}
        self.vmlist_version = 1
        self._residents: dict[str, dict[int, SimGuest]] = {}
        self._vmlist: tuple[int, str] = (0, "")
        for node in sorted(nodes, key=lambda node: node.name):
            node.number = len(self.nodes) + 1
            if node.sample_phase_s is None:
                node.sample_phase_s = float(node.number * 7 % 10)  # whole, so that rounds are exact; and nodes differ
            node.partition = self.main
            self.nodes[node.name] = node
            self._residents[node.name] = {}

    # time

    @property
    def now_s(self) -> float:
        """The current second."""
        return self.timeline.now_s

    def next_change_s(self) -> float | None:
        """When the next thing happens by itself; None: never, as far as is known now."""
        return self.timeline.next_s()

    # what is

    def placements(self) -> dict[int, str]:
        """Each guest's node, by its configuration."""
        return {vmid: guest.node for vmid, guest in sorted(self.guests.items())}

    def running(self) -> dict[int, str]:
        """The node of each guest that runs."""
        return {vmid: guest.node for vmid, guest in sorted(self.guests.items()) if guest.status == "running"}

    def in_flight(self) -> tuple[Migration, ...]:
        """The migrations whose task runs, by VMID."""
        return tuple(migration for _, migration in sorted(self.migrations.under_way.items()))

    def local_volumes(self, guest: SimGuest) -> list[Volume]:
        """The guest's volumes on storages of its node alone."""
        local = {storage.name for storage in self.storages if not storage.shared}
        return [volume for volume in guest.needs.volumes if volume.storage in local]

    def local_disk_bytes(self, guest: SimGuest) -> int:
        """What a migration copies beside the guest's memory."""
        return sum(volume.size_bytes or 0 for volume in self.local_volumes(guest))

    def copy_disks(self, guest: SimGuest, node: str, renamed: Mapping[str, str], *, sign: int = 1) -> None:
        """The guest's disks are allocated on the node, or are gone from it."""
        for volume in self.local_volumes(guest):
            key = (renamed.get(volume.storage, volume.storage), (node,))
            if (use := self.storage_use.get(key)) is not None:
                self.storage_use[key] = replace(use, used_bytes=use.used_bytes + sign * (volume.size_bytes or 0))

    def free_disks(self, guest: SimGuest, node: str, renamed: Mapping[str, str] | None = None) -> None:
        """The guest's disks are gone from the node."""
        self.copy_disks(guest, node, renamed or {}, sign=-1)

    def rename_disks(self, guest: SimGuest, renamed: Mapping[str, str]) -> None:
        """The guest's disks are on storages of other names from now on."""
        moved = []
        for volume in guest.needs.volumes:
            storage = renamed.get(volume.storage, volume.storage)
            moved.append(replace(volume, name=f"{storage}:{volume.name.partition(':')[2]}", storage=storage))
        names = {volume.name: new.name for volume, new in zip(guest.needs.volumes, moved, strict=True)}
        guest.needs = replace(guest.needs, volumes=tuple(moved))
        guest.local_disks = tuple(names.get(name, name) for name in guest.local_disks)

    def use(self) -> dict[str, NodeUse]:
        """What is on each node that is up, at this instant and not as last sampled."""
        cores = {name: node.overhead_cores for name, node in self.nodes.items() if node.online}
        memory = {name: node.overhead_memory_bytes for name, node in self.nodes.items() if node.online}
        for guest in self.guests.values():
            migration = self.migrations.under_way.get(guest.vmid)
            on_its_way = migration is not None and migration.was_running
            where = {guest.node} if guest.has_process or on_its_way else set()
            if migration is not None and on_its_way:
                where |= {migration.source, migration.target}
            for name in where & cores.keys():
                cores[name] += guest.used_cores
                memory[name] += guest.taken_memory_bytes
        return {name: NodeUse(self.nodes[name].cores, cores[name], self.nodes[name].memory_bytes, memory[name]) for name in sorted(cores)}

    def agents_wanted(self) -> tuple[str, ...]:
        """The nodes on which an agent is to run now."""
        return tuple(name for name, node in self.nodes.items() if node.online and node.agent is AgentWish.RUN)

    def lock_holder(self) -> str | None:
        """The node that has the lock in the quorate part, None when nobody has."""
        for node in self.nodes.values():
            if self.pmxcfs.is_quorate(node):
                return node.partition.lock.writer if node.partition.lock else None
        return None

    def guest_of_file(self, path: str) -> SimGuest | None:
        """The guest whose configuration the file below /etc/pve is, None when it is no such file."""
        match path.split("/"):
            case ["nodes", node, ("qemu-server" | "lxc") as folder, name] if name.removesuffix(".conf").isdigit():
                guest = self.guests.get(int(name.removesuffix(".conf")))
                kind = GuestType.QEMU if folder == "qemu-server" else GuestType.LXC
                return guest if guest is not None and (guest.node, guest.type) == (node, kind) else None
        return None

    def residents(self, node: str) -> Mapping[int, SimGuest]:
        """The guests whose configuration is on the node."""
        return self._residents[node]

    # what the rest of the simulation needs

    def settle(self, name: str) -> None:
        """Take the node's last sample before something on it changes."""
        node = self.nodes[name]
        if statistics.is_due(node, self.now_s):
            statistics.sample(node, self._residents[name].values(), self.migrations.incoming(name), self.now_s)

    def _settle_all(self) -> None:
        for name in self.nodes:
            self.settle(name)

    def rows(self, partition: Partition) -> tuple[dict[str, statistics.NodeRow], dict[int, statistics.GuestRow]]:
        """The numbers that part of the cluster has now, without those that are too old."""
        self._settle_all()
        oldest = self.now_s - statistics.ROW_LIFE_S
        nodes = {name: row for name, row in partition.node_rows.items() if row.sampled_s >= oldest}
        guests = {vmid: row for vmid, row in partition.guest_rows.items() if row.sampled_s >= oldest}
        return nodes, guests

    def move_configuration(self, guest: SimGuest, target: str) -> None:
        """The guest's configuration is renamed to the other node's folder."""
        self.settle(guest.node)
        self.settle(target)
        del self._residents[guest.node][guest.vmid]
        guest.node = target
        self._residents[target][guest.vmid] = guest
        self._configuration_written(guest)

    def _configuration_written(self, guest: SimGuest) -> None:
        self.vmlist_version += 1
        guest.conf_version = self.vmlist_version

    def rrd_text(self, partition: Partition) -> str:
        """`.rrd` as that part of the cluster shows it."""
        self._settle_all()
        known = partition.rrd_shown
        if known is None or known[0] != partition.rows_changed or self.now_s > known[1]:
            nodes, guests = self.rows(partition)
            types = {vmid: guest.type for vmid, guest in self.guests.items()}
            text = dot_files.rrd_text(nodes, guests, types, int(self.pve_version.split(".")[0]))
            oldest = min((row.sampled_s for row in nodes.values()), default=self.now_s)
            oldest = min(oldest, min((row.sampled_s for row in guests.values()), default=oldest))
            known = (partition.rows_changed, oldest + statistics.ROW_LIFE_S, text)
            partition.rrd_shown = known
        return known[2]

    def vmlist_text(self) -> str:
        """`.vmlist`."""
        if self._vmlist[0] != self.vmlist_version:
            guests = [guest for _, guest in sorted(self.guests.items())]
            self._vmlist = (self.vmlist_version, dot_files.vmlist_text(guests, self.vmlist_version))
        return self._vmlist[1]

    def _node(self, name: str) -> SimNode:
        if name not in self.nodes:
            raise ValueError(f"no node {name}")
        return self.nodes[name]

    def _guest(self, vmid: int) -> SimGuest:
        if vmid not in self.guests:
            raise ValueError(f"no guest {vmid}")
        return self.guests[vmid]

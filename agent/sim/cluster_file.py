# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated cluster from a scenario's `cluster.yaml`, parsed already: units stand in the keys, unknown keys are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.core.cluster import GIB, MIB, GuestType, HaNodeAffinity, HaResourceAffinity, NodeFacts, Storage, StorageUse
from agent.core.codec import CodecError, from_json
from agent.core.json_types import Json
from agent.core.needs import GuestNeeds, Volume
from agent.sim.generator import Shape, generate, world_from
from agent.sim.inventory import LONG_UP_S, USUAL_FACTS, AgentWish, SimGuest, SimNode
from agent.sim.world import World


class ScenarioError(ValueError):
    """A scenario's file says what the simulation does not know; `str()` is one line that names the place."""


HOOKSCRIPT = "local:snippets/proxlb-hook"


@dataclass(frozen=True, slots=True)
class NodeEntry:
    """A node below `nodes`, by name. `pve` and `qemu` are its versions, where they are not the cluster's."""

    cores: float
    memory_gib: float
    overhead_cores: float = 0.1
    overhead_memory_gib: float = 2.0
    online: bool = True
    uptime_s: float = LONG_UP_S
    wall_offset_s: float = 0.0
    sample_phase_s: float | None = None
    agent: bool = True
    pve: str = ""
    qemu: str = USUAL_FACTS.qemu_version
    cpu_model: str = USUAL_FACTS.cpu_model
    cpu_flags: str = USUAL_FACTS.cpu_flags
    bridges: tuple[str, ...] = USUAL_FACTS.bridges
    hookscripts: tuple[str, ...] = USUAL_FACTS.hookscripts
    zfs_cache_gib: float | None = None

    def node(self, name: str) -> SimNode:
        """The node as the world takes it."""
        return SimNode(
            name=name,
            cores=self.cores,
            memory_bytes=int(self.memory_gib * GIB),
            overhead_cores=self.overhead_cores,
            overhead_memory_bytes=int(self.overhead_memory_gib * GIB),
            online=self.online,
            booted_at_s=-self.uptime_s,
            wall_offset_s=self.wall_offset_s,
            sample_phase_s=self.sample_phase_s,
            agent=AgentWish.RUN if self.agent else AgentWish.STOP,
            facts=NodeFacts(
                pve_version=self.pve,
                qemu_version=self.qemu,
                cpu_model=self.cpu_model,
                cpu_flags=self.cpu_flags,
                bridges=self.bridges,
                hookscripts=self.hookscripts,
            ),
            zfs_cache_bytes=None if self.zfs_cache_gib is None else int(self.zfs_cache_gib * GIB),
        )


def _volume(text: str) -> Volume:
    """`local-zfs:vm-101-disk-0`, with `,size_gib=32` where that matters."""
    name, found, gib = text.partition(",size_gib=")
    return Volume(name, name.partition(":")[0], size_bytes=int(float(gib) * GIB) if found else None)


@dataclass(frozen=True, slots=True)
class GuestEntry:
    """A guest in the list `guests`. `used_*` default to a quarter of the cores and seven tenths of the memory."""

    vmid: int
    node: str
    name: str = ""
    type: GuestType = GuestType.QEMU
    cores: float = 2.0
    memory_gib: float = 4.0
    used_cores: float | None = None
    used_memory_gib: float | None = None
    host_memory_gib: float | None = None
    noise_fraction: float = 0.0
    status: str = "running"
    tags: tuple[str, ...] = ()
    pool: str | None = None
    lock: str | None = None
    ha: str | None = None
    template: bool = False
    onboot: bool = True
    hook: bool = False
    local_disks: tuple[str, ...] = ()
    local_devices: tuple[str, ...] = ()
    mapped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ("vmbr0",)
    cpu: str = ""
    machine: str = ""
    hookscript: str = ""
    args: str = ""
    affinity: str = ""
    replicated_to: tuple[str, ...] | None = None
    not_allowed: Mapping[str, str] = field(default_factory=dict)
    migration_s: float | None = None
    shutdown_s: float = 5.0
    cannot_start: bool = False
    uptime_s: float = LONG_UP_S

    def guest(self, now_s: float = 0.0) -> SimGuest:
        """The guest as the world takes it at that second."""
        used_gib = 0.7 * self.memory_gib if self.used_memory_gib is None else self.used_memory_gib
        return SimGuest(
            vmid=self.vmid,
            node=self.node,
            name=self.name,
            type=self.type,
            cores=self.cores,
            memory_bytes=int(self.memory_gib * GIB),
            used_cores=0.25 * self.cores if self.used_cores is None else self.used_cores,
            used_memory_bytes=int(used_gib * GIB),
            host_memory_bytes=None if self.host_memory_gib is None else int(self.host_memory_gib * GIB),
            noise_fraction=self.noise_fraction,
            status=self.status,
            tags=self.tags,
            pool=self.pool,
            lock=self.lock,
            ha=self.ha,
            template=self.template,
            onboot=self.onboot,
            hook=self.hook,
            local_disks=self.local_disks,
            local_devices=self.local_devices,
            mapped=dict(self.mapped),
            needs=GuestNeeds(
                volumes=tuple(_volume(text) for text in self.volumes),
                bridges=self.bridges,
                cpu_type=self.cpu,
                machine=self.machine,
                hookscript=self.hookscript or (HOOKSCRIPT if self.hook else ""),
                args=self.args,
                affinity=self.affinity,
                replicated_to=self.replicated_to,
            ),
            not_allowed=dict(self.not_allowed),
            migration_s=self.migration_s,
            shutdown_s=self.shutdown_s,
            cannot_start=self.cannot_start,
            since_s=now_s - self.uptime_s,
        )


@dataclass(frozen=True, slots=True)
class StorageEntry:
    """A storage below `storages`, by name; on all nodes where none is named."""

    shared: bool = True
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateEntry:
    """Instead of `nodes` and `guests`: what the generator makes."""

    seed: int
    nodes: int
    guests: int
    shape: Shape = Shape.MIXED
    hook: bool = False


@dataclass(frozen=True, slots=True)
class StorageUseEntry:
    """How full a storage is, in the list `storage_use`; of a shared one `nodes` are all that have it."""

    name: str
    nodes: tuple[str, ...]
    used_gib: float
    total_gib: float

    def use(self) -> StorageUse:
        """As PVE tells it."""
        return StorageUse(self.name, self.nodes, int(self.used_gib * GIB), int(self.total_gib * GIB))


@dataclass(frozen=True, slots=True)
class NodeAffinityEntry:
    """An HA rule that says where guests belong; `nodes` map a node to its priority."""

    name: str
    vmids: tuple[int, ...]
    nodes: Mapping[str, int]
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ResourceAffinityEntry:
    """An HA rule that keeps guests together or apart."""

    name: str
    vmids: tuple[int, ...]
    together: bool


@dataclass(frozen=True, slots=True)
class HaEntry:
    """The HA manager. `no_failback` and `no_auto_rebalance` list guests whose resource says so; `balances` as the cluster's options."""

    node_affinity: tuple[NodeAffinityEntry, ...] = ()
    resource_affinity: tuple[ResourceAffinityEntry, ...] = ()
    no_failback: tuple[int, ...] = ()
    no_auto_rebalance: tuple[int, ...] = ()
    balances: bool = False
    disarmed: bool = False

    def put_into(self, world: World) -> None:
        """Tell the world's HA manager."""
        ha = world.ha
        ha.node_affinity = tuple(
            HaNodeAffinity(rule.name, tuple(sorted(rule.vmids)), tuple(sorted(rule.nodes.items())), rule.strict)
            for rule in self.node_affinity
        )
        ha.resource_affinity = tuple(
            HaResourceAffinity(rule.name, tuple(sorted(rule.vmids)), rule.together) for rule in self.resource_affinity
        )
        ha.balances, ha.disarmed = self.balances, self.disarmed
        for vmid, service in ha.services.items():
            service.failback = vmid not in self.no_failback
            service.auto_rebalance = vmid not in self.no_auto_rebalance


@dataclass(frozen=True, slots=True)
class ClusterEntry:
    """The whole document. `files` are below /etc/pve at the start, `flags` map a node in maintenance to the reason.

    `registered_tags` are those that only admins may set, `utc_offset_h` is what local time is ahead of UTC.
    """

    nodes: Mapping[str, NodeEntry] = field(default_factory=dict)
    guests: tuple[GuestEntry, ...] = ()
    generate: GenerateEntry | None = None
    storages: Mapping[str, StorageEntry] = field(default_factory=dict)
    storage_use: tuple[StorageUseEntry, ...] = ()
    pve: str = "9.0.10"
    bandwidth_mib_s: float = 500.0
    files: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    ha: HaEntry = HaEntry()
    registered_tags: tuple[str, ...] | None = None
    utc_offset_h: float = 0.0


def read_cluster(document: Json) -> World:
    """Return the world that the document describes.

    Raises:  ScenarioError with the first place that does not fit.
    """
    try:
        entry = from_json(ClusterEntry, document)
    except CodecError as error:
        raise ScenarioError(f"cluster: {error}") from None
    bandwidth_bytes_s = entry.bandwidth_mib_s * MIB
    if entry.generate is not None:
        if entry.nodes or entry.guests:
            raise ScenarioError("cluster: generate stands instead of nodes and guests, not beside them")
        made = entry.generate
        snapshot = generate(made.seed, made.nodes, made.guests, made.shape)
        world = world_from(snapshot, pve_version=entry.pve, bandwidth_bytes_s=bandwidth_bytes_s, hook=made.hook)
    else:
        world = _listed(entry, bandwidth_bytes_s)
    for use in entry.storage_use:
        world.set_storage_use(use.use())
    entry.ha.put_into(world)
    world.registered_tags = entry.registered_tags
    world.set_utc_offset(entry.utc_offset_h * 3600)
    for path, text in sorted(entry.files.items()):
        world.put_file(path, text)
    for node, reason in sorted(entry.flags.items()):
        world.set_flag(node, reason)
    world.pmxcfs.writes.clear()
    return world


def _listed(entry: ClusterEntry, bandwidth_bytes_s: float) -> World:
    if not entry.nodes:
        raise ScenarioError("cluster.nodes: a cluster has at least one node")
    seen: set[int] = set()
    for number, guest in enumerate(entry.guests):
        if guest.node not in entry.nodes:
            raise ScenarioError(f"cluster: guests[{number}].node: there is no node {guest.node}")
        if guest.vmid in seen:
            raise ScenarioError(f"cluster: guests[{number}].vmid: {guest.vmid} stands there twice")
        seen.add(guest.vmid)
    nodes = [node.node(name) for name, node in sorted(entry.nodes.items())]
    guests = [guest.guest() for guest in entry.guests]
    for made in guests:
        if not entry.nodes[made.node].online:
            made.status = "stopped"
    storages = [Storage(name, one.shared, tuple(sorted(one.nodes or entry.nodes))) for name, one in entry.storages.items()]
    return World(nodes, guests, pve_version=entry.pve, bandwidth_bytes_s=bandwidth_bytes_s, storages=storages)

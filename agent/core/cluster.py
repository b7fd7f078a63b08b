# SPDX-License-Identifier: GPL-3.0-or-later
"""What is: nodes, guests and running tasks of a cluster at one instant."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GIB = 1 << 30
NODE_SETTLED_S = 120.0  # a node that is up for less is still starting its own guests
MIB = 1 << 20
VMID_DIGITS = 9  # PVE's largest VMID is 999999999; Python refuses to read a number of thousands of digits


class GuestType(StrEnum):
    """The two kinds of guests, spelt as PVE's API paths spell them."""

    QEMU = "qemu"
    LXC = "lxc"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node has for guests, as its own agent tells it.

    Units:   `qemu_since` in Unix seconds.
    Shape:   versions as their packages are numbered ("10.1.2-3"), "" when unknown; `qemu_before` is the QEMU that guests
             run which were started before `qemu_since`, "" and None when nobody knows; `cpu_flags` sorted, a space between
             two, without those that the kernel makes up; `bridges` and `hookscripts` (executable files among the snippets
             of the storage `local`) are names, sorted.
    """

    pve_version: str = ""
    qemu_version: str = ""
    qemu_before: str = ""
    qemu_since: float | None = None
    cpu_model: str = ""
    cpu_flags: str = ""
    bridges: tuple[str, ...] = ()
    hookscripts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A node and its load as PVE reported it last.

    Units:   cores (not percent), bytes, seconds; None is unknown and never counts as zero.
    Shape:   `sample_age_s` is the age of the load, None where the source does not tell it; `reports` says whether
             the node's own agent has reported itself, None where that cannot be seen (off a node). `zfs_cache_bytes` is what
             the ZFS cache would give back, `pressure_fraction` the share of the time in which something waits for cpu or
             memory, of the two the larger. `facts` are what its agent tells.
    """

    name: str
    online: bool
    cpu_cores: float
    memory_bytes: int
    cpu_used_cores: float | None = None
    memory_used_bytes: int | None = None
    uptime_s: float | None = None
    sample_age_s: float | None = None
    reports: bool | None = None
    zfs_cache_bytes: int | None = None
    pressure_fraction: float | None = None
    facts: NodeFacts | None = None


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest, where it is, and its load as PVE reported it last.

    Units:   `cpu_used_cores` are cores of the node (PVE's fraction times the guest's vCPUs), memory in bytes.
    Shape:   `memory_host_bytes` is what the node spends for the guest where PVE 9 tells it; `status` is PVE's word
             (running, stopped, paused, unknown, ...); `ha` is the HA manager's state or None when not managed (`Snapshot.ha`
             tells more).
    """

    vmid: int
    type: GuestType
    name: str
    node: str
    status: str
    cpu_cores: float
    memory_bytes: int
    cpu_used_cores: float | None = None
    memory_used_bytes: int | None = None
    memory_host_bytes: int | None = None
    uptime_s: float | None = None
    tags: tuple[str, ...] = ()
    pool: str | None = None
    lock: str | None = None
    ha: str | None = None
    template: bool = False

    @property
    def label(self) -> str:
        """`vm:101` or `ct:102`, as PVE's HA manager writes guests."""
        return f"{'vm' if self.type is GuestType.QEMU else 'ct'}:{self.vmid}"

    @property
    def is_running(self) -> bool:
        """True when PVE says the guest runs."""
        return self.status == "running"

    def with_cpu_used(self, cores: float) -> Guest:
        """The guest with another cpu load: what `replace` gives, in a third of its time, which thousands of guests need every 10 s."""
        return Guest(
            self.vmid,
            self.type,
            self.name,
            self.node,
            self.status,
            self.cpu_cores,
            self.memory_bytes,
            cores,
            self.memory_used_bytes,
            self.memory_host_bytes,
            self.uptime_s,
            self.tags,
            self.pool,
            self.lock,
            self.ha,
            self.template,
        )


@dataclass(frozen=True, slots=True)
class Task:
    """A task of PVE as the cluster's task list shows it.

    Units:   `started_at` and `ended_at` are Unix seconds; a running task has no `ended_at` and no `status`.
    Shape:   `kind` is PVE's worker type (qmigrate, vzmigrate, vzdump, ...), `target_id` its id field (a VMID or "").
    """

    upid: str
    node: str
    kind: str
    target_id: str
    user: str
    started_at: float
    ended_at: float | None = None
    status: str | None = None

    @property
    def is_running(self) -> bool:
        """True while PVE has not said how the task ended."""
        return self.ended_at is None

    @property
    def vmid(self) -> int | None:
        """The guest the task is about, None when it is about something else."""
        is_number = self.target_id.isascii() and self.target_id.isdigit() and len(self.target_id) <= VMID_DIGITS
        return int(self.target_id) if is_number else None


MIGRATE_KINDS = frozenset({"qmigrate", "vzmigrate", "hamigrate"})
CLUSTER_BULK_KINDS = frozenset({"bulk-start", "bulk-shutdown", "bulk-suspend", "bulk-migrate"})  # PVE 9's, of guests on any node
NODE_BULK_KINDS = frozenset({"startall", "stopall", "suspendall", "migrateall"})  # of the guests of the node whose task it is
BULK_KINDS = NODE_BULK_KINDS | CLUSTER_BULK_KINDS


ASKED_OF_HA = "ha-manager"  # the cause of a maintenance that stands in the HA manager's own requests


@dataclass(frozen=True, slots=True)
class Maintenance:
    """A node that is to be emptied, and who asked for it; with `shuts_down`, as it is about to go: its HA guests are the HA manager's."""

    node: str
    cause: str
    shuts_down: bool = False


@dataclass(frozen=True, slots=True)
class StorageUse:
    """How full a storage is: a shared one once, with all nodes that have it; any other once for its node."""

    name: str
    nodes: tuple[str, ...]
    used_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class HaNodeAffinity:
    """On which nodes HA resources belong: a node-affinity rule of PVE 9, or a group of PVE 8 with its resources.

    Shape:   `vmids` sorted; `nodes` are (name, priority), sorted by name, the highest priority first choice; only a `strict`
             one keeps its guests off every other node when none of its own is available.
    """

    name: str
    vmids: tuple[int, ...]
    nodes: tuple[tuple[str, int], ...]
    strict: bool = False


@dataclass(frozen=True, slots=True)
class HaResourceAffinity:
    """HA resources that share a node (`together`) or never do: a resource-affinity rule of PVE 9. `vmids` sorted."""

    name: str
    vmids: tuple[int, ...]
    together: bool


@dataclass(frozen=True, slots=True)
class HaResource:
    """A guest as the HA manager knows it.

    Shape:   `requested` is what its owner asks for (started, stopped, disabled, ignored); `state` what the HA manager does with it
             (started, migrate, relocate, error, fence, ...), "" while it has not said; `node` where it has it, `target` where
             it is bringing it, `maintenance_node` where it will bring it back when a maintenance ends. `failback` says that it
             brings the guest back to better nodes of its node affinity by itself, `auto_rebalance` that it may move it for load
             where the cluster does that.
    """

    vmid: int
    requested: str = "started"
    state: str = ""
    node: str | None = None
    target: str | None = None
    maintenance_node: str | None = None
    failback: bool = True
    auto_rebalance: bool = True


@dataclass(frozen=True, slots=True)
class HighAvailability:
    """What the HA manager knows and wants; empty where it is not in use.

    Shape:   resources sorted by VMID, rules by name, those that are switched off or that the HA manager itself drops left out;
             `closed_nodes` are those it brings nobody to and empties itself (maintenance, fencing), sorted; `balances` when the
             cluster evens out its HA guests itself; `disarmed` when the HA manager has been told to let go of everything.
    """

    resources: tuple[HaResource, ...] = ()
    node_affinity: tuple[HaNodeAffinity, ...] = ()
    resource_affinity: tuple[HaResourceAffinity, ...] = ()
    closed_nodes: tuple[str, ...] = ()
    balances: bool = False
    disarmed: bool = False

    def resource(self, vmid: int) -> HaResource | None:
        """The guest as the HA manager knows it, None when it does not."""
        return next((resource for resource in self.resources if resource.vmid == vmid), None)


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a storage is: on all of `nodes` the same (`shared`), or on each of them another. `nodes` are sorted."""

    name: str
    shared: bool
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackupJob:
    """A backup that PVE begins by itself.

    Shape:   `schedule` is one of PVE's calendar events, as it is written; it takes the guests of `pool` where one is named, else
             all but those in `exclude` (`is_all`), else `vmids`; of them those on `node` where one is named.
    """

    id: str
    schedule: str
    is_all: bool = False
    vmids: tuple[int, ...] = ()
    exclude: tuple[int, ...] = ()
    pool: str | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at one instant.

    Units:   `taken_at` in Unix seconds; `utc_offset_s` is what the nodes' local time is ahead of UTC.
    Shape:   nodes sorted by name, guests by VMID, tasks by start; `maintenance` are nodes to be emptied, `no_target`
             nodes that are online but may receive nobody, `going_down` those of them that shut down with their guests;
             `unseen` are VMIDs that exist but the token does not show: with any of them the agent only observes.
             `storage_use` is sorted by name, then nodes; a storage of unknown use is not in it. `registered_tags` are those
             that only admins may set, as they are written and sorted, None where the cluster does not tell; `storages` are
             sorted by name, `backup_jobs` (those switched on) by id.
    Source:  GET /cluster/resources, /cluster/tasks, /cluster/options, /cluster/ha/...; on a node also files below /etc/pve.
    """

    taken_at: float
    nodes: tuple[Node, ...]
    guests: tuple[Guest, ...]
    tasks: tuple[Task, ...] = ()
    maintenance: tuple[Maintenance, ...] = ()
    no_target: tuple[str, ...] = ()
    unseen: tuple[int, ...] = ()
    pve_version: str = ""
    storage_use: tuple[StorageUse, ...] = ()
    ha: HighAvailability = HighAvailability()
    registered_tags: tuple[str, ...] | None = None
    storages: tuple[Storage, ...] = ()
    backup_jobs: tuple[BackupJob, ...] = ()
    utc_offset_s: float = 0.0
    going_down: tuple[str, ...] = ()

    def node(self, name: str) -> Node | None:
        """The node of that name, None when there is none."""
        return next((node for node in self.nodes if node.name == name), None)

    def guest(self, vmid: int) -> Guest | None:
        """The guest of that VMID, None when there is none."""
        return next((guest for guest in self.guests if guest.vmid == vmid), None)

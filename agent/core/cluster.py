# SPDX-License-Identifier: GPL-3.0-or-later
"""What is: nodes, guests and running tasks of a cluster at one instant."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GIB = 1 << 30
MIB = 1 << 20
VMID_DIGITS = 9  # PVE's largest VMID is 999999999; Python refuses to read a number of thousands of digits


class GuestType(StrEnum):
    """The two kinds of guests, spelt as PVE's API paths spell them."""

    QEMU = "qemu"
    LXC = "lxc"


@dataclass(frozen=True, slots=True)
class Node:
    """A node and its load as PVE reported it last.

    Units:   cores (not percent), bytes, seconds; None is unknown and never counts as zero.
    Shape:   `sample_age_s` is the age of the load, None where the source does not tell it; `reports` says whether
             the node's own agent has reported itself, None where that cannot be seen (off a node). `zfs_cache_bytes` is what
             the ZFS cache would give back, `pressure_fraction` the share of the time in which something waits for cpu or
             memory, of the two the larger.
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


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest, where it is, and its load as PVE reported it last.

    Units:   `cpu_used_cores` are cores of the node (PVE's fraction times the guest's vCPUs), memory in bytes.
    Shape:   `memory_host_bytes` is what the node spends for the guest where PVE 9 tells it; `status` is PVE's word
             (running, stopped, paused, unknown, ...); `ha` is the HA manager's state or None when not managed.
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
BULK_KINDS = frozenset({"startall", "stopall", "migrateall"})


@dataclass(frozen=True, slots=True)
class Maintenance:
    """A node that is to be emptied, and who asked for it."""

    node: str
    cause: str


@dataclass(frozen=True, slots=True)
class StorageUse:
    """How full a storage is: a shared one once, with all nodes that have it; any other once for its node."""

    name: str
    nodes: tuple[str, ...]
    used_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at one instant.

    Units:   `taken_at` in Unix seconds.
    Shape:   nodes sorted by name, guests by VMID, tasks by start; `maintenance` are nodes to be emptied, `no_target`
             nodes that are online but may receive nobody; `unseen` are VMIDs that exist but the token does not show:
             with any of them the agent only observes. `storage_use` is sorted by name, then nodes; a storage of unknown
             use is not in it.
    Source:  GET /cluster/resources, /cluster/tasks, /cluster/ha/status/manager_status; on a node also files below /etc/pve.
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

    def node(self, name: str) -> Node | None:
        """The node of that name, None when there is none."""
        return next((node for node in self.nodes if node.name == name), None)

    def guest(self, vmid: int) -> Guest | None:
        """The guest of that VMID, None when there is none."""
        return next((guest for guest in self.guests if guest.vmid == vmid), None)

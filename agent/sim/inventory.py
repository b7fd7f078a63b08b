# SPDX-License-Identifier: GPL-3.0-or-later
"""What a simulated cluster is made of: nodes and guests, with the state that changes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from agent.core.cluster import GuestType, NodeFacts
from agent.core.needs import GuestNeeds
from agent.ports import OutsideError

if TYPE_CHECKING:
    from agent.sim.pmxcfs import Partition

START_WALL_S = 1_767_225_600.0  # 2026-01-01T00:00:00Z: what the nodes' clocks show when the simulation starts
LONG_UP_S = 86_400.0  # long enough that nothing looks as if it had just started
DECISIONS_KEPT = 10_000  # the decision journal is bounded


class AgentWish(StrEnum):
    """What whoever drives the agents should do with a node's agent."""

    RUN = "run"
    STOP = "stop"  # systemctl stop: it may release the lead
    KILL = "kill"  # kill -9: it does nothing more


@dataclass(slots=True)
class Inbox:
    """A node's folder of events and requests, oldest first, and what of it was claimed last; events with the second they were left."""

    names: dict[str, float] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)
    claimed_names: dict[str, float] = field(default_factory=dict)
    claimed_requests: dict[str, str] = field(default_factory=dict)
    is_broken: bool = False

    def __len__(self) -> int:
        """How much waits to be claimed."""
        return len(self.names) + len(self.requests)


USUAL_FACTS = NodeFacts(
    pve_version="",  # that of the cluster
    qemu_version="10.1.2-3",
    cpu_model="Simulated CPU @ 2.10GHz",
    cpu_flags="aes avx avx2 sse4_2",
    bridges=("vmbr0",),
    hookscripts=("proxlb-hook",),
)
USUAL_NEEDS = GuestNeeds(bridges=("vmbr0",))


@dataclass(slots=True)
class SimNode:
    """A node.

    Units:   `booted_at_s` in simulated seconds (negative: before the simulation began), `wall_offset_s` is how far its
             clock is off, `sample_phase_s` shifts its pvestatd's rounds, `zfs_cache_bytes` is what its ZFS cache takes while
             nobody else wants the memory (None: it has no ZFS); the `*_until_s` are simulated seconds.
    """

    name: str
    cores: float
    memory_bytes: int
    overhead_cores: float = 0.1
    overhead_memory_bytes: int = 2 << 30
    online: bool = True
    booted_at_s: float = -LONG_UP_S
    wall_offset_s: float = 0.0
    sample_phase_s: float | None = None
    agent: AgentWish = AgentWish.RUN
    facts: NodeFacts = USUAL_FACTS
    zfs_cache_bytes: int | None = None

    number: int = field(default=0, init=False)  # corosync's node id
    boots: int = field(default=1, init=False)
    agent_starts: int = field(default=1, init=False)  # counts up at each start, so that kill and start at once is seen
    agent_reloads: int = field(default=0, init=False)
    agent_frozen_until_s: float = field(default=0.0, init=False)
    mounted: bool = field(default=True, init=False)
    partition: Partition = field(init=False, repr=False)
    pmxcfs_hangs_until_s: float = field(default=0.0, init=False)
    pmxcfs_failures: list[bool] = field(default_factory=list, init=False)  # of the next writes; True: applied all the same
    statistics_stopped: bool = field(default=False, init=False)
    sampled_s: float | None = field(default=None, init=False)
    log_uid: int = field(default=0, init=False)
    log_last: tuple[int, int] = field(default=(0, 0), init=False)
    next_pid: int = field(default=1000, init=False)
    api_cut: bool = field(default=False, init=False)
    api_hangs_until_s: float = field(default=0.0, init=False)
    api_failures: int = field(default=0, init=False)
    ha_command_failures: list[OutsideError] = field(default_factory=list, init=False)
    inbox: Inbox = field(default_factory=Inbox, init=False)
    local_flag: str | None = field(default=None, init=False)
    disk_full: bool = field(default=False, init=False)
    status_text: str | None = field(default=None, init=False)
    loads_text: str | None = field(default=None, init=False)
    decisions: deque[str] = field(default_factory=lambda: deque(maxlen=DECISIONS_KEPT), init=False)

    @property
    def requests(self) -> dict[str, str]:
        """Requests of commands that wait to be claimed."""
        return self.inbox.requests

    def boottime_s(self, now_s: float) -> float:
        """CLOCK_BOOTTIME of the node."""
        return now_s - self.booted_at_s

    def wall_s(self, now_s: float) -> float:
        """What the node's clock shows."""
        return START_WALL_S + now_s + self.wall_offset_s


@dataclass(slots=True)
class SimGuest:
    """A guest.

    Units:   cores and bytes; `used_*` are what it takes while it runs and stay as given while it does not;
             `host_memory_bytes` None: as much as it uses; `noise_fraction` lets each sample of cpu differ by up to that.
    Shape:   `needs` is what its configuration says; `local_disks` and `local_devices` are what PVE names besides; `mapped`
             maps a device to the nodes that have it, `not_allowed` a node to PVE's reason; `hook` says whether proxlb-hook is
             attached; `migration_s` None: by size and bandwidth; `shutdown_s` is what a container takes to stop.
    """

    vmid: int
    node: str
    name: str = ""
    type: GuestType = GuestType.QEMU
    cores: float = 2.0
    memory_bytes: int = 4 << 30
    used_cores: float = 0.5
    used_memory_bytes: int = 2 << 30
    host_memory_bytes: int | None = None
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
    mapped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    needs: GuestNeeds = USUAL_NEEDS
    not_allowed: dict[str, str] = field(default_factory=dict)
    migration_s: float | None = None
    shutdown_s: float = 5.0
    description: str = ""
    since_s: float = -LONG_UP_S  # start of its process
    cannot_start: bool = False  # as something that it needs is broken

    seen_since_s: float = field(default=-LONG_UP_S, init=False)  # from then on its node's pvestatd sees that process
    conf_version: int = field(default=1, init=False)
    hidden: bool = field(default=False, init=False)  # the agent's token does not show it

    def __post_init__(self) -> None:
        self.type = GuestType(self.type)
        self.name = self.name or f"{'vm' if self.type is GuestType.QEMU else 'ct'}{self.vmid}"
        self.seen_since_s = self.since_s
        if self.template:
            self.status = "stopped"

    @property
    def has_process(self) -> bool:
        """True when it takes memory of its node: running, paused and whatever else is not stopped."""
        return self.status != "stopped"

    @property
    def taken_memory_bytes(self) -> int:
        """What its node spends for it while it runs."""
        return self.used_memory_bytes if self.host_memory_bytes is None else self.host_memory_bytes

    @property
    def label(self) -> str:
        """`vm:101` or `ct:102`, as the HA manager writes guests."""
        return f"{'vm' if self.type is GuestType.QEMU else 'ct'}:{self.vmid}"

    @property
    def short_kind(self) -> str:
        """`qm` or `vz`, as PVE's task types begin."""
        return "qm" if self.type is GuestType.QEMU else "vz"

    @property
    def folder(self) -> str:
        """The folder of its configuration, as PVE spells it."""
        return "qemu-server" if self.type is GuestType.QEMU else "lxc"

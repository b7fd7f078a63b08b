# SPDX-License-Identifier: GPL-3.0-or-later
"""What a test may do to the world around a port, whichever side it runs on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agent.core.cluster import HaNodeAffinity, HaResourceAffinity
from agent.ports import Clock, ClusterApi, ClusterFiles, FactsSource, JournalSink, LeaderLock, LocalFiles, LocalInbox

NODES = ("pve1", "pve2", "pve3")
EVENTUALLY_STEPS, EVENTUALLY_STEP_S = 1200, 0.05


class Stage(Protocol):
    """Something where time passes."""

    def pass_s(self, seconds: float) -> None:
        """Let so much time pass."""


class PmxcfsStage(Stage, Protocol):
    """A cluster of three nodes with /etc/pve on each."""

    def lock(self, node: str) -> LeaderLock: ...

    def files(self, node: str) -> ClusterFiles: ...

    def cut(self, node: str) -> None:
        """The node loses quorum; returns when it can know that."""

    def heal(self) -> None:
        """All nodes are one cluster again; returns when they can know that."""

    def unmount(self, node: str) -> None: ...

    def mount(self, node: str) -> None: ...

    def left_behind(self, node: str) -> list[str]:
        """What is in the bare directory of a node where pmxcfs is not mounted."""

    def age_lock(self, by_s: float) -> None:
        """Make the lock's last change that much older."""

    def step_clock(self, node: str, by_s: float) -> None: ...

    def put_guest(self, vmid: int, node: str) -> None:
        """A VM exists on that node."""

    def report(self) -> None:
        """pve1 (16 cores, 64 GiB) tells its load, and that of VM 100 (4 cores, 8 GiB) that runs on it."""

    def log(self, node: str, msg: str) -> None:
        """A line in the cluster log."""


class InboxStage(Stage, Protocol):
    """A node's inbox."""

    def inbox(self) -> LocalInbox:
        """The port as a process that just started has it."""

    def leave_event(self, name: str) -> None: ...

    def leave_request(self, request_id: str, text: str) -> None: ...

    def set_flag(self, text: str | None) -> None: ...

    def set_broken(self, broken: bool) -> None: ...


class LocalFilesStage(Protocol):
    """A node's own disk."""

    def files(self) -> LocalFiles: ...

    def status(self) -> str | None:
        """What somebody reads in status.json."""

    def set_broken(self, broken: bool) -> None: ...


class FactsStage(Protocol):
    """What a node of PVE 9 has: QEMU 10.1.2-3, the bridge vmbr0, the hookscript proxlb-hook, no ZFS."""

    def source(self) -> FactsSource: ...

    def upgrade_qemu(self, version: str) -> None: ...

    def add_bridge(self, name: str) -> None: ...

    def set_cache(self, cache_bytes: int | None) -> None:
        """What the ZFS cache could give back; None: no ZFS."""


class ClockStage(Stage, Protocol):
    def clock(self) -> Clock: ...


class JournalStage(Protocol):
    """Where an agent's records go."""

    def sink(self) -> JournalSink: ...

    def texts(self) -> list[str]:
        """The texts that arrived, oldest first."""

    def close(self) -> None:
        """Nobody reads any more, as far as that can happen here."""


class ApiStage(Protocol):
    """A cluster of three nodes with an API, as an agent on pve1 uses it.

    VM 100 (4 cores, 8 GiB, of which 1.5 cores and 4 GiB used) and VM 101 (stopped) are on pve1, container 200 (2 cores, 2 GiB) on
    pve2, the template 300 on pve3. A migration runs until `finish_migration`.
    """

    def api(self) -> ClusterApi: ...

    def requests(self) -> int:
        """How many requests were made so far."""

    def wall_s(self, node: str) -> float:
        """What the node's clock shows."""

    def finish_migration(self, vmid: int) -> None: ...

    def fail_migration(self, vmid: int) -> None:
        """The next migration's task ends with `migration aborted`, the guest where it was."""

    def lose_answer(self) -> None:
        """The next request to migrate a VM is carried out, and its answer gets lost."""

    def lock_guest(self, vmid: int, lock: str | None) -> None: ...

    def add_local_disk(self, vmid: int) -> None: ...

    def power_off(self, node: str) -> None: ...

    def manage(self, vmid: int, state: str) -> None:
        """The guest is the HA manager's, in that state; on its own, that one does nothing here."""

    def make_ha_rules(self, *rules: HaNodeAffinity | HaResourceAffinity) -> None:
        """The HA manager has these rules."""

    def set_options(self, *, balances: bool, registered_tags: tuple[str, ...]) -> None:
        """The cluster's options, before anybody has looked at them."""

    def hang_ha(self) -> None:
        """The HA manager takes requests and does nothing any more."""

    def ha_begins(self, vmid: int) -> None:
        """Wait until the HA manager has begun to migrate the guest."""

    def ha_rests(self, vmid: int) -> None:
        """Let that migration end, and wait until the HA manager has seen that."""

    def set_reachable(self, reachable: bool) -> None:
        """Whether pve1's own server answers."""

    def ask_maintenance(self, node: str) -> None:
        """An admin asks the HA manager to empty the node."""


def eventually(stage: Stage, true: Callable[[], bool]) -> bool:
    """Return whether it becomes true within a minute of the stage's time."""
    for _ in range(EVENTUALLY_STEPS):
        if true():
            return True
        stage.pass_s(EVENTUALLY_STEP_S)
    return true()

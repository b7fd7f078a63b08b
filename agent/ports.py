# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's view of the world outside: a protocol for each thing, and the only errors they may raise.

The real ones live in `agent.adapters`, the simulated ones in `agent.sim`; one suite in `tests/contracts` holds both
to what is written here. A call may take long or hang; none may be made from the thread that steps the daemon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from agent.core.cluster import GuestType, NodeFacts, Snapshot
from agent.core.journal import Record
from agent.core.plan_types import Verdict
from agent.core.settings import Settings


class OutsideError(Exception):
    """Something outside refused, lied or vanished. `str()` is one line for the user."""


class TemporaryError(OutsideError):
    """The same call may succeed later."""

    def __init__(self, message: str, retry_after_s: float = 10.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PermanentError(OutsideError):
    """The same call fails until somebody does what `hint` says."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UnknownTokenError(PermanentError):
    """PVE does not know the API token, or the token's secret is another."""


class NotMountedError(TemporaryError):
    """pmxcfs is not mounted (or is restarting): nothing was read or written."""


class NoQuorumError(TemporaryError):
    """The cluster filesystem refuses writes as this node is not in the quorate part."""


class NotHolderError(OutsideError):
    """The leader lock is gone, or belongs to another node."""


class RefusedError(OutsideError):
    """PVE refused the request with a text of its own; nothing was started."""


class InDoubtError(OutsideError):
    """Bytes of a POST went out and no answer came: it may have been carried out. Look before trying again."""


class Clock(Protocol):
    """Two clocks: one that only goes forward and counts suspended time, one that people read."""

    def boottime_s(self) -> float:
        """Seconds of CLOCK_BOOTTIME."""

    def wall_s(self) -> float:
        """Unix seconds; may step either way."""


@dataclass(frozen=True, slots=True)
class LockSight:
    """What a look at the lock's directory shows; `mtime_s` is None when there is no lock."""

    mtime_s: int | None


class LeaderLock(Protocol):
    """The directory `priv/lock/proxlb-agent` of pmxcfs. It belongs to a node; anybody may remove it.

    Every call raises NotMountedError when pmxcfs is not there, NoQuorumError when it refuses for want of quorum,
    TemporaryError for any other failure (busy, timed out).
    """

    def sight(self) -> LockSight:
        """Look without writing."""

    def take(self) -> bool:
        """mkdir: True when this node has it now, False when somebody holds it, be it this node. Atomic in the cluster. After an
        error it may have succeeded all the same: `renew` finds out."""

    def renew(self) -> None:
        """utime(max(now, stored + 1)). Raises NotHolderError when the lock is gone or another node's."""

    def ask_expiry(self) -> None:
        """utime(0, 0): ask pmxcfs to drop the lock if nobody renewed it for 120 s. Never tells whether it will."""

    def release(self) -> None:
        """rmdir. Call only right after a renewal that succeeded: pmxcfs does not ask who removes it."""


class FilesystemState(StrEnum):
    """What can be done below /etc/pve."""

    NOT_MOUNTED = "not mounted"
    NO_QUORUM = "no quorum"
    STANDALONE = "no cluster"
    QUORATE = "quorate"


class ClusterFiles(Protocol):
    """Files below /etc/pve, named relative to it (`proxlb/leader.json`, `.clusterlog`, `nodes/pve1/qemu-server/101.conf`)."""

    def state(self) -> FilesystemState:
        """What can be done now; never raises."""

    def read(self, path: str) -> str | None:
        """The whole text in one read, None when there is no such file, or a folder. Raises NotMountedError, TemporaryError."""

    def list(self, path: str) -> tuple[str, ...]:
        """Names in a folder, sorted; empty when there is no such folder. Raises NotMountedError, TemporaryError."""

    def write(self, path: str, text: str) -> None:
        """Replace the file as a whole for all nodes (temporary file and rename), making its folder below `proxlb/` or
        `priv/proxlb/`. Never writes to the bare directory when pmxcfs is not mounted. Raises NotMountedError,
        NoQuorumError, TemporaryError, PermanentError (over 100 KiB, or outside `proxlb/` and `priv/proxlb/`)."""

    def remove(self, path: str) -> None:
        """Remove a file below `proxlb/`; one that is gone already is fine. Raises as `write`."""

    def make_folder(self, path: str) -> None:
        """Make a folder below `proxlb/` where it is missing; one that is there costs no write. Raises as `write`."""


@dataclass(frozen=True, slots=True)
class MigrationOrder:
    """What is asked of PVE for one guest.

    Units:   `bandwidth_limit_kib_s` in KiB/s, None leaves PVE's own settings alone.
    Shape:   `online` for a running VM, `restart` for a running container, neither for a stopped guest; `local_disks` lets a running VM
             take disks of its node along, `storage_map` names the storages that take them, where these change; `conntrack` lets it
             keep the connections that its node's firewall knows, which PVE can from 9 on.
    """

    vmid: int
    type: GuestType
    source: str
    target: str
    online: bool
    restart: bool
    bandwidth_limit_kib_s: int | None = None
    local_disks: bool = False
    storage_map: tuple[tuple[str, str], ...] = ()
    conntrack: bool = False


@dataclass(frozen=True, slots=True)
class TaskSight:
    """A task as its node tells it: `exit_status` is None while it runs, else OK, `WARNINGS: n`, or an error's text."""

    upid: str
    exit_status: str | None


MOST_LOG_LINES = 400  # why a migration failed stands at its begin or at its end; what lies between is progress


class ClusterApi(Protocol):
    """PVE's API. Every call raises TemporaryError (unreachable, timed out, 5xx of the proxy) or PermanentError (token
    refused, certificate not trusted, no permission), with one clear line that says what to do."""

    def look(self) -> Snapshot:
        """The cluster now, in at most 6 requests however many guests. Own files below /etc/pve are not consulted here."""

    def verdict(self, vmid: int, type: GuestType, node: str, wall_s: float) -> Verdict:
        """PVE's own check whether the guest may migrate, and where not; one request, two for a container."""

    def migrate(self, order: MigrationOrder, send_until_s: float = math.inf) -> str:
        """Start a migration; returns its UPID. Raises RefusedError with PVE's text when nothing was started, InDoubtError
        when that is not known. Never sends the request to a second host after bytes went out, and none once CLOCK_BOOTTIME
        is past `send_until_s`: TemporaryError."""

    def start(self, vmid: int, type: GuestType, node: str, send_until_s: float = math.inf) -> str:
        """Start a guest that does not run; returns its UPID. Raises as `migrate`."""

    def task(self, upid: str) -> TaskSight:
        """How the task stands. Raises TemporaryError when its node does not answer, RefusedError when it is unknown there."""

    def task_log(self, upid: str) -> tuple[str, ...]:
        """What the task wrote, a line each; of more than `MOST_LOG_LINES` the first and the last ones. Raises as `task`."""

    def close(self) -> None:
        """Close connections; the next call opens them again."""

    def find_migration(self, vmid: int, source: str, since_wall_s: float) -> str | None:
        """UPID of a migrate task of the guest started on `source` since then, None when there is none. Whole seconds of the
        source's clock: allow for a difference of clocks."""


class HaNodes(Protocol):
    """Maintenance of nodes as the HA manager does it: it takes all its guests off the node, and back when the maintenance ends."""

    def set_maintenance(self, node: str, wanted: bool) -> None:
        """Hand the HA manager the request for maintenance of the node, or what takes it back. It reads that within 10 s, or drops it
        (the node is not online, it is disarmed): its status shows. Asking for what is so already changes nothing. Raises
        TemporaryError (busy, no quorum, no answer in time: it may have been handed over all the same), PermanentError (no such node,
        no HA manager here, or one that is too old)."""


@dataclass(frozen=True, slots=True)
class InboxSight:
    """What a look into this node's inbox found; all of it is claimed, and gone from the inbox.

    Shape:   `names` are names of event files as `proxlb-hook` makes them (not checked), `requests` are (id, text) of
             commands' request files; `flag` is the text of /etc/proxlb-agent/maintenance, None when there is none. `ages_s` is how
             long each of the names has been there by the node's clock, none of them: not known.
    """

    names: tuple[str, ...]
    requests: tuple[tuple[str, str], ...]
    flag: str | None
    ages_s: tuple[float, ...] = field(default=(), compare=False)


class LocalInbox(Protocol):
    """The folder where hookscripts and commands of this node leave events."""

    def claim(self) -> InboxSight:
        """Take all that is there, oldest first. Asking again says that what was given before has been passed on: until then
        it is kept, and given again to the next process. Raises TemporaryError when the folder is missing or unsafe."""


@dataclass(frozen=True, slots=True)
class FactsSight:
    """What a look at the own node shows; `zfs_cache_bytes` is what the ZFS cache could give back now, None without ZFS."""

    facts: NodeFacts
    zfs_cache_bytes: int | None
    memory_bytes: int


class FactsSource(Protocol):
    """What this node has for guests."""

    def read(self) -> FactsSight:
        """How it is now, without starting a process. Raises TemporaryError."""


class LocalFiles(Protocol):
    """This node's own files: /run/proxlb-agent/status.json and below /var/lib/proxlb-agent."""

    def write_status(self, text: str) -> None:
        """Replace status.json. Raises TemporaryError (disk full, read-only)."""

    def append_decision(self, line: str) -> None:
        """Append one JSON line to the bounded decision journal. Raises TemporaryError."""

    def read_decisions(self) -> tuple[str, ...]:
        """The lines of the decision journal, oldest first. Raises TemporaryError."""

    def write_loads(self, text: str) -> None:
        """Replace loads.json. Raises TemporaryError."""

    def read_loads(self) -> str | None:
        """The text of loads.json, None when there is none. Raises TemporaryError."""


class SettingsSource(Protocol):
    """The configuration files."""

    def read(self) -> Settings:
        """The settings now. Raises PermanentError whose text names every problem, TemporaryError when the cluster's file
        cannot be read (not mounted); a file that does not exist is empty."""


class JournalSink(Protocol):
    """Where records go: journald with fields, a terminal, or a list."""

    def say(self, record: Record) -> None:
        """Write one record; never raises and never blocks for long."""


class ServiceNotifier(Protocol):
    """systemd's view of the agent."""

    def ready(self) -> None:
        """READY=1"""

    def alive(self) -> None:
        """WATCHDOG=1"""

    def status(self, text: str) -> None:
        """STATUS=text"""

    def reloading(self) -> None:
        """RELOADING=1"""

    def stopping(self) -> None:
        """STOPPING=1"""

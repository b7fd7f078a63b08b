# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon asks of the world. Each names its lane: outputs of one lane are done in order, lanes are independent,
so that a call that hangs holds up its own lane only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from agent.core.cluster import GuestType
from agent.core.documents import LeaderFile
from agent.core.journal import Record
from agent.core.leadership import LockAct
from agent.daemon.inputs import Written
from agent.ports import MigrationOrder


class Lane(Enum):
    """Which thread does it."""

    LOCK = auto()
    FILES = auto()
    API = auto()
    HA = auto()
    LOCAL = auto()
    NOW = auto()


@dataclass(frozen=True, slots=True)
class DoLock:
    """One act of the leader protocol.

    Shape:   `leader` is what to write, for the acts that write; `until_s` is when the lease of the last renewal ends: a lock is not
             removed after it, as it may be the next leader's by then.
    """

    lane: ClassVar[Lane] = Lane.LOCK
    act: LockAct
    leader: LeaderFile | None = None
    until_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ReadSigns:
    """Read what may hold news: the cluster log, inboxes and flags, and at times the statistics."""

    lane: ClassVar[Lane] = Lane.FILES
    statistics: bool


@dataclass(frozen=True, slots=True)
class ReadHistory:
    """Read history.json."""

    lane: ClassVar[Lane] = Lane.FILES


@dataclass(frozen=True, slots=True)
class ReadOwnInbox:
    """Read this node's relay file: after the start, and then to see that it is still as this agent wrote it."""

    lane: ClassVar[Lane] = Lane.FILES
    node: str


@dataclass(frozen=True, slots=True)
class WithdrawShutdownFlag:
    """Remove the flag that this node made when an earlier boot of it was shut down, once after the start."""

    lane: ClassVar[Lane] = Lane.FILES
    node: str
    boot_id: str


@dataclass(frozen=True, slots=True)
class WriteShared:
    """Write history.json or this node's relay file; with `leader` only while leader.json still says that."""

    lane: ClassVar[Lane] = Lane.FILES
    what: Written
    path: str
    text: str
    serial: int
    leader: LeaderFile | None = None


@dataclass(frozen=True, slots=True)
class MakeFlagFolder:
    """Make the folder of the maintenance flags where it is missing, so that a person needs nothing but a file for one."""

    lane: ClassVar[Lane] = Lane.FILES


@dataclass(frozen=True, slots=True)
class RemoveFlag:
    """Remove a flag whose time is up, if it still has that text and while leader.json names `leader`."""

    lane: ClassVar[Lane] = Lane.FILES
    path: str
    text: str
    words: str
    leader: LeaderFile


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """Read the configuration files; `asked` when a person wants to know how it went."""

    lane: ClassVar[Lane] = Lane.FILES
    asked: bool


@dataclass(frozen=True, slots=True)
class ClaimInbox:
    """Take what is in this node's inbox."""

    lane: ClassVar[Lane] = Lane.LOCAL


@dataclass(frozen=True, slots=True)
class ReadFacts:
    """Look at what this node has for guests."""

    lane: ClassVar[Lane] = Lane.LOCAL


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Replace status.json."""

    lane: ClassVar[Lane] = Lane.LOCAL
    text: str


@dataclass(frozen=True, slots=True)
class KeepDecision:
    """Append a line to the decision journal."""

    lane: ClassVar[Lane] = Lane.LOCAL
    line: str


@dataclass(frozen=True, slots=True)
class ReadLoads:
    """Read loads.json, once before the first lead."""

    lane: ClassVar[Lane] = Lane.LOCAL


@dataclass(frozen=True, slots=True)
class KeepLoads:
    """Replace loads.json."""

    lane: ClassVar[Lane] = Lane.LOCAL
    text: str


@dataclass(frozen=True, slots=True)
class Observe:
    """Look at the cluster through the API, for the lead of that epoch; and read the configurations of some guests for their digests."""

    lane: ClassVar[Lane] = Lane.API
    epoch: int
    digests_of: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AskVerdict:
    """Ask PVE whether a guest may migrate."""

    lane: ClassVar[Lane] = Lane.API
    vmid: int
    type: GuestType
    node: str


@dataclass(frozen=True, slots=True)
class StartMigration:
    """Ask PVE for a migration, after a renewal of the lock that must succeed and while leader.json still names `leader`."""

    lane: ClassVar[Lane] = Lane.API
    intent: str
    order: MigrationOrder
    leader: LeaderFile
    lease_until_s: float


@dataclass(frozen=True, slots=True)
class AskHaMaintenance:
    """Hand the HA manager a request for maintenance, or what takes it back; as `StartMigration` only while this node leads."""

    lane: ClassVar[Lane] = Lane.HA
    node: str
    wanted: bool
    leader: LeaderFile
    lease_until_s: float


@dataclass(frozen=True, slots=True)
class StartGuest:
    """Ask PVE to start a guest that its migration has left stopped, with the same care as for a migration."""

    lane: ClassVar[Lane] = Lane.API
    vmid: int
    type: GuestType
    node: str
    leader: LeaderFile
    lease_until_s: float


@dataclass(frozen=True, slots=True)
class AskTask:
    """Ask how a task stands, and what it wrote when it failed."""

    lane: ClassVar[Lane] = Lane.API
    intent: str
    upid: str


@dataclass(frozen=True, slots=True)
class SearchMigration:
    """Look for a migration whose answer was lost."""

    lane: ClassVar[Lane] = Lane.API
    intent: str
    vmid: int
    source: str
    since_wall_s: float


@dataclass(frozen=True, slots=True)
class Say:
    """Write a record to the journal."""

    lane: ClassVar[Lane] = Lane.NOW
    record: Record


@dataclass(frozen=True, slots=True)
class SetStatusLine:
    """What systemctl status shows."""

    lane: ClassVar[Lane] = Lane.NOW
    text: str


@dataclass(frozen=True, slots=True)
class TellReady:
    """Tell systemd that the agent is up, or has reloaded."""

    lane: ClassVar[Lane] = Lane.NOW


@dataclass(frozen=True, slots=True)
class Exit:
    """The agent is done."""

    lane: ClassVar[Lane] = Lane.NOW
    status: int


Output = (
    DoLock
    | ReadSigns
    | ReadHistory
    | ReadOwnInbox
    | WithdrawShutdownFlag
    | WriteShared
    | MakeFlagFolder
    | RemoveFlag
    | ReadSettings
    | ClaimInbox
    | ReadFacts
    | WriteStatus
    | KeepDecision
    | ReadLoads
    | KeepLoads
    | Observe
    | AskVerdict
    | StartMigration
    | AskHaMaintenance
    | StartGuest
    | AskTask
    | SearchMigration
    | Say
    | SetStatusLine
    | TellReady
    | Exit
)

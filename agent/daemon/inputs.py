# SPDX-License-Identifier: GPL-3.0-or-later
"""What the world tells the daemon: answers to what it asked for, and signals. Each is a frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent.core.cluster import Snapshot
from agent.core.leadership import LockAct
from agent.core.plan_types import Verdict
from agent.core.settings import Settings
from agent.ports import FactsSight, FilesystemState, InboxSight


class LockOutcome(StrEnum):
    """How a call about the lock ended."""

    DONE = "done"
    REFUSED = "refused"
    NOT_HOLDER = "not-holder"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class LockAnswer:
    """A call about the lock came back. `called_s` is CLOCK_BOOTTIME from before the call."""

    act: LockAct
    outcome: LockOutcome
    called_s: float
    filesystem: FilesystemState
    mtime_s: int | None = None
    leader_text: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class SignsSeen:
    """Files below /etc/pve as they are now; None was not asked for or is not there."""

    log: str | None = None
    rrd: str | None = None
    vmlist: str | None = None
    members: str | None = None
    ha_status: str | None = None
    inboxes: tuple[tuple[str, str], ...] | None = None
    flags: tuple[tuple[str, str], ...] | None = None
    paused: str | None = None
    datacenter: str | None = None
    corosync: str | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class ShutdownFlagWithdrawn:
    """What became of the flag of an earlier boot's shutdown: `done` when there was one; `error` when it may still be there."""

    done: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class HistorySeen:
    """history.json: its text, None when there is none; `error` when it could not be read."""

    text: str | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class LoadsSeen:
    """loads.json: its text, None when there is none; `error` when it could not be read."""

    text: str | None
    error: str = ""


class Written(StrEnum):
    """Files the daemon writes below /etc/pve, beside leader.json."""

    HISTORY = "history"
    INBOX = "inbox"


@dataclass(frozen=True, slots=True)
class WriteAnswer:
    """A write came back; `error` is empty when it succeeded."""

    what: Written
    serial: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class FlagRemoved:
    """A flag whose time is up was removed, if it `was_there` as it had been seen; `words` say what it was for, `error` why not."""

    words: str
    was_there: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class InboxSeen:
    """What was claimed from this node's inbox; None when it could not be read."""

    sight: InboxSight | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class FactsSeen:
    """What this node has for guests; None when it could not be read."""

    sight: FactsSight | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class OwnInboxSeen:
    """This node's relay file as it is, None when there is none, and of how many nodes the cluster is (0: not known)."""

    text: str | None
    error: str = ""
    nodes: int = 0


@dataclass(frozen=True, slots=True)
class SettingsSeen:
    """The configuration was read; None with `error` when it is broken or cannot be read (`is_broken` tells which)."""

    settings: Settings | None
    error: str = ""
    is_broken: bool = False
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """The cluster was looked at; None with `error` when that failed (`hint` says what to do, if anything).

    Shape:   `epoch` is that of the lead that asked; `digests` are of configurations it asked for, as far as they could be read.
    """

    epoch: int
    snapshot: Snapshot | None
    error: str = ""
    hint: str = ""
    digests: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class VerdictSeen:
    """PVE's own check of a migration; None with `error` when it could not be asked."""

    vmid: int
    verdict: Verdict | None
    error: str = ""


class PostOutcome(StrEnum):
    """How the request for a migration ended."""

    STARTED = "started"
    REFUSED = "refused"
    IN_DOUBT = "in-doubt"
    NOT_SENT = "not-sent"


@dataclass(frozen=True, slots=True)
class HaMaintenanceAnswer:
    """A request for the HA manager's maintenance was handed over, or taken back; `error` says why not, `is_lasting` that trying
    again would not help."""

    node: str
    wanted: bool
    error: str = ""
    is_lasting: bool = False


@dataclass(frozen=True, slots=True)
class MigrationAnswer:
    """The request for a migration came back: a UPID, PVE's refusal, nothing, or it was never sent."""

    intent: str
    outcome: PostOutcome
    upid: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class StartAnswer:
    """The request to start a guest came back; `error` is "" when PVE is at it."""

    vmid: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class TaskAnswer:
    """A task was asked for: `exit_status` None while it runs; `is_known` False when its node does not know it.

    Shape:   `log` is what a failed one wrote, as far as it could be read.
    """

    intent: str
    exit_status: str | None = None
    is_known: bool = True
    error: str = ""
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """A migration whose answer was lost was looked for; `upid` None when there is none, with `error` when unknown."""

    intent: str
    upid: str | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class BellRang:
    """Something changed in this node's inbox."""


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    """SIGHUP."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """SIGTERM or SIGINT."""


Input = (
    LockAnswer
    | SignsSeen
    | HistorySeen
    | LoadsSeen
    | WriteAnswer
    | FlagRemoved
    | InboxSeen
    | FactsSeen
    | OwnInboxSeen
    | ShutdownFlagWithdrawn
    | SettingsSeen
    | Observed
    | VerdictSeen
    | HaMaintenanceAnswer
    | MigrationAnswer
    | StartAnswer
    | TaskAnswer
    | SearchAnswer
    | BellRang
    | ReloadAsked
    | StopAsked
)


@dataclass(frozen=True, slots=True)
class Now:
    """The two clocks at the moment of a step: CLOCK_BOOTTIME and Unix seconds."""

    boot_s: float
    wall_s: float

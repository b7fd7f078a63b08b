# SPDX-License-Identifier: GPL-3.0-or-later
"""Events: hints that something changed somewhere. They say where to look, never what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """What a hint says."""

    GUEST_STARTED = "guest-started"
    GUEST_STOPPED = "guest-stopped"
    GUEST_CHANGED = "guest-changed"
    MAINTENANCE_BEGAN = "maintenance-began"
    MAINTENANCE_ENDED = "maintenance-ended"
    NODE_SHUTS_DOWN = "node-shuts-down"
    NODE_ONLINE = "node-online"
    NODE_OFFLINE = "node-offline"
    OVERLOAD = "overload"
    SPREAD = "spread"
    REQUEST = "request"
    GAP = "gap"
    TOOK_LEAD = "took-lead"
    SETTINGS_CHANGED = "settings-changed"
    RESUMED = "resumed"
    TIMER = "timer"


class EventSource(StrEnum):
    """Where the hint came from."""

    HOOK = "hook"
    INBOX = "inbox"
    CLUSTER_LOG = "cluster-log"
    STATISTICS = "statistics"
    FLAG = "flag"
    COMMAND = "command"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Event:
    """One hint.

    Units:   `at_s` is CLOCK_BOOTTIME seconds of the agent that holds it, set when it was first seen; `age_s` is how long before that
             it happened, as far as clocks of nodes can tell: a hint that was on its way for long.
    Shape:   `vmid` and `node` where the hint names them, of a timer the node that is to be emptied; `origin` is the node a
             live migration came from (then the start is an echo); `request` the id of a command's request, `detail` its
             text, the flag's reason, or what a new leader finds begun.
    """

    kind: EventKind
    source: EventSource
    at_s: float
    node: str | None = None
    vmid: int | None = None
    origin: str | None = None
    request: str | None = None
    detail: str = ""
    force: bool = False
    age_s: float = 0.0

    @property
    def happened_s(self) -> float:
        """When it happened at the earliest, on the clock of `at_s`."""
        return self.at_s - self.age_s

# SPDX-License-Identifier: GPL-3.0-or-later
"""When the leader looks at the cluster by itself, without an event."""

from __future__ import annotations

import math
from collections.abc import Iterable

from agent.core.events import Event, EventKind, EventSource
from agent.core.history import SAMPLED_S
from agent.core.triggers import Trigger, joined, merged
from agent.daemon.inputs import Now

LANDING_S = SAMPLED_S  # before that, loads still show the guest where it was
RETRY_S = 10.0


class Agenda:
    """What is due by itself. All times are seconds of CLOCK_BOOTTIME; what is wished earlier wins."""

    def __init__(self) -> None:
        self._look_at_s = math.inf
        self._retry_at_s = math.inf
        self._drained: frozenset[str] = frozenset()
        self._again: Trigger | None = None
        self._again_at_s = math.inf
        self._landed_s = -1e9

    def wish_look(self, at_s: float | None) -> None:
        """Look at the cluster then, for what is being answered or under way."""
        if at_s is not None:
            self._look_at_s = min(at_s, self._look_at_s)

    def takes_look(self, now: Now) -> bool:
        """True once when a look is due."""
        if now.boot_s < self._look_at_s:
            return False
        self._look_at_s = math.inf
        return True

    def retry(self, at_s: float, drained: Iterable[str] = ()) -> None:
        """Ask then whether something is to be done, as if the timer did; `drained` are the nodes that are to be emptied by it."""
        self._retry_at_s = min(at_s, self._retry_at_s)
        self._drained |= frozenset(drained)

    def raise_again(self, trigger: Trigger, at_s: float) -> None:
        """Raise a trigger again that could not be answered."""
        self._again = trigger if self._again is None else merged(self._again, trigger)
        self._again_at_s = min(at_s, self._again_at_s)

    @property
    def requests_again(self) -> tuple[str, ...]:
        """The requests of commands that wait to be raised again."""
        return () if self._again is None else self._again.requests

    def takes_due(self, pending: Trigger | None, now: Now) -> Trigger | None:
        """What waits to be answered, with what is raised again now."""
        if now.boot_s >= self._retry_at_s:
            drained, self._drained, self._retry_at_s = sorted(self._drained), frozenset(), math.inf
            for node in drained or (None,):
                pending = joined(pending, Event(EventKind.TIMER, EventSource.AGENT, now.boot_s, node=node))
        if self._again is not None and now.boot_s >= self._again_at_s:
            pending = self._again if pending is None else merged(self._again, pending)
            self._again, self._again_at_s = None, math.inf
        return pending

    def landed(self, now: Now) -> None:
        """A guest has arrived."""
        self._landed_s = now.boot_s

    @property
    def settled_at_s(self) -> float:
        """When loads show every guest where it is."""
        return self._landed_s + LANDING_S

    def next_wakeup_s(self, *, may_look: bool) -> float:
        """When something is due; a look only when nothing else is waited for."""
        return min(self._retry_at_s, self._again_at_s, self._look_at_s if may_look else math.inf)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Bugs planted on purpose: what the simulated days must find."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from agent.core import triggers
from agent.core.leadership import LockAct
from agent.daemon import hearing, inputs, outputs, senses, work
from agent.daemon.perform import Performer
from tests.chaos.day import DAY_S

Patches = Callable[[contextlib.ExitStack], None]


@dataclass(frozen=True, slots=True)
class Plant:
    """A bug, how it is planted, what is said of it, and the first seed whose day shows it."""

    words: str
    plant: Patches
    says: str
    seed: int
    until_s: float = DAY_S

    def __str__(self) -> str:
        return self.words

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """The agents have the bug while this lasts."""
        with contextlib.ExitStack() as stack:
            self.plant(stack)
            yield


def _no_renewal(stack: contextlib.ExitStack) -> None:
    def why_not(self: Performer, leader: Any, lease_until_s: float, called_s: float) -> str | None:
        return None if called_s < lease_until_s else "the lease ran out"

    stack.enter_context(patch.object(Performer, "_why_not_leading", why_not))


def _late_rmdir(stack: contextlib.ExitStack) -> None:
    lock = Performer._lock

    def without_end(self: Performer, asked: outputs.DoLock) -> inputs.LockAnswer:
        return lock(self, replace(asked, until_s=float("inf")) if asked.act is LockAct.RELEASE else asked)

    stack.enter_context(patch.object(Performer, "_lock", without_end))


def _no_echo_filter(stack: contextlib.ExitStack) -> None:
    taken = work.Work.on_event

    def on_event(self: work.Work, event: Any, seen: senses.Senses, now: inputs.Now) -> list[outputs.Output]:
        seen.migrating.clear()
        return taken(self, event, seen, now)

    stack.enter_context(patch.object(work.Work, "on_event", on_event))
    for module in (hearing, triggers):
        stack.enter_context(patch.object(module, "why_echo", lambda event, seen, now: None))


def _blind_retry(stack: contextlib.ExitStack) -> None:
    start = Performer._start

    def twice(self: Performer, asked: outputs.StartMigration) -> inputs.MigrationAnswer:
        answer = start(self, asked)
        return start(self, asked) if answer.outcome is inputs.PostOutcome.IN_DOUBT else answer

    stack.enter_context(patch.object(Performer, "_start", twice))


def _forgotten_sequence(stack: contextlib.ExitStack) -> None:
    from_inboxes = senses.Senses._from_inboxes

    def forgets(self: senses.Senses, *given: Any) -> Any:
        if self._seqs is not None:
            self._seqs = dict.fromkeys(self._seqs, 0)
        return from_inboxes(self, *given)

    stack.enter_context(patch.object(senses.Senses, "_from_inboxes", forgets))


PLANTS = (
    Plant("no renewal before the POST", _no_renewal, "sends", 1, 1800.0),
    Plant("rmdir after the lease", _late_rmdir, "removes the lock of", 1, 7600.0),
    Plant("no echo filter", _no_echo_filter, "for news", 1, 400.0),
    Plant("blind retry of a POST", _blind_retry, "sends", 1),
    Plant("an inbox sequence forgotten", _forgotten_sequence, "times what happened", 2, 78000.0),
)  # fmt: skip

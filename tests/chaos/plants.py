# SPDX-License-Identifier: GPL-3.0-or-later
"""Bugs planted on purpose: what the simulated days must find."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from agent.core import triggers
from agent.daemon import hearing, inputs, outputs, senses, work
from agent.daemon.perform import Performer
from tests.chaos.day import DAY_S, Day
from tests.planted import Put, late_rmdir, no_renewal


@dataclass(frozen=True, slots=True)
class Plant:
    """A bug, how it is planted, what is said of it, and from which seed on a day that is soon over is looked for that shows it."""

    words: str
    plant: Callable[[Put], None]
    says: str
    seed: int
    until_s: float

    def __str__(self) -> str:
        return self.words

    def found_by(self, seed: int, until_s: float = DAY_S) -> str | None:
        """What that seed's day says of the bug, None when it does not find it."""
        with self.planted():
            day = Day(seed)
            day.run(until_s)
            return next((problem for problem in day.problems() if self.says in problem), None)

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """The agents have the bug while this lasts."""
        with contextlib.ExitStack() as stack:
            self.plant(lambda target, name, value: stack.enter_context(patch.object(target, name, value)))
            yield


def _no_echo_filter(put: Put) -> None:
    taken = work.Work.on_event

    def on_event(self: work.Work, event: Any, seen: senses.Senses, now: inputs.Now) -> list[outputs.Output]:
        seen.migrating.clear()
        return taken(self, event, seen, now)

    put(work.Work, "on_event", on_event)
    for module in (hearing, triggers):
        put(module, "why_echo", lambda event, seen, now: None)


def _blind_retry(put: Put) -> None:
    start = Performer._start

    def twice(self: Performer, asked: outputs.StartMigration) -> inputs.MigrationAnswer:
        answer = start(self, asked)
        return start(self, asked) if answer.outcome is inputs.PostOutcome.IN_DOUBT else answer

    put(Performer, "_start", twice)


def _forgotten_sequence(put: Put) -> None:
    from_inboxes = senses.Senses._from_inboxes

    def forgets(self: senses.Senses, *given: Any) -> Any:
        if self._seqs is not None:
            self._seqs = dict.fromkeys(self._seqs, 0)
        return from_inboxes(self, *given)

    put(senses.Senses, "_from_inboxes", forgets)


PLANTS = (
    Plant("no renewal before the POST", no_renewal, "has the lock", 1, 7200.0),
    Plant("rmdir after the lease", late_rmdir, "removes the lock of", 11, 7200.0),
    Plant("no echo filter", _no_echo_filter, "for news", 1, 7200.0),
    Plant("blind retry of a POST", _blind_retry, "again, 0 s after", 7, 7200.0),
    Plant("an inbox sequence forgotten", _forgotten_sequence, "times what happened", 6, 7200.0),
)  # fmt: skip

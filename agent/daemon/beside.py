# SPDX-License-Identifier: GPL-3.0-or-later
"""Others that balance beside the agent: noticed, said once, and stepped back from."""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.balancers import (
    Balancer,
    Emptying,
    Seen,
    balancer_words,
    emptying_words,
    nobody_on,
    others_at_work,
    stepped_back,
    with_tasks,
)
from agent.core.cluster import Snapshot, Task
from agent.core.clusterlog import LogTask
from agent.core.documents import HistoryFile
from agent.core.journal import Level, MessageId, Record
from agent.core.settings import Settings
from agent.daemon.inputs import Now
from agent.daemon.outputs import Output, Say


class Beside:
    """What of other people's migrations was seen during this lead.

    Shape:   `found` are those who balance, by user.
    """

    def __init__(self) -> None:
        self._seen: Seen = {}
        self.found: tuple[Balancer, ...] = ()
        self._empty: frozenset[str] = frozenset()
        self._emptied: dict[str, float] = {}
        self._told: frozenset[tuple[str, str]] = frozenset()

    def on_log(self, tasks: Iterable[LogTask], now: Now) -> None:
        """Take note of what the cluster log tells of tasks: between two looks, the cluster's task list may have let go of some."""
        if told := [_task_of(task, now.wall_s) for task in tasks]:
            self._seen = with_tasks(self._seen, told, now.wall_s)

    def on_look(self, snapshot: Snapshot, history: HistoryFile, settings: Settings, now: Now) -> list[Output]:
        """Take the look; what has changed is said."""
        self._seen = with_tasks(self._seen, snapshot.tasks, now.wall_s)
        ours = {record.upid for record in history.migrations if record.upid is not None}
        before = {balancer.user for balancer in self.found}
        before_empty, self._empty = self._empty, nobody_on(snapshot)
        self._emptied |= dict.fromkeys(self._empty - before_empty, now.wall_s)
        self.found, emptying = others_at_work(self._seen, snapshot, ours, settings.api.token_id, now.wall_s, self._emptied)
        still = {balancer.user for balancer in self.found}
        said = [
            Record(
                Level.WARNING,
                MessageId.OUTSIDE,
                f"another balancer seems to be at work: {balancer_words(balancer)}; load balancing leaves them alone for an hour after "
                "their last move, as two balancers undo each other's moves: let only one of them run",
            )
            for balancer in self.found
            if balancer.user not in before
        ]
        for user in sorted(before - still - {one.user for one in emptying}):  # of those, what they do is said
            said.append(Record(Level.NOTICE, MessageId.OUTSIDE, f"{user} has migrated nobody for an hour: all guests are balanced again"))
        return [Say(record) for record in [*said, *self._new_of(emptying, snapshot)]]

    def _new_of(self, emptying: Iterable[Emptying], snapshot: Snapshot) -> list[Record]:
        """That somebody empties a node by hand, said once as long as they are at it; of one in maintenance that is no news."""
        asked = {maintenance.node for maintenance in snapshot.maintenance}
        before, self._told = self._told, frozenset((one.user, one.node) for one in emptying)
        return [
            Record(Level.NOTICE, MessageId.OUTSIDE, emptying_words(one), source=one.node)
            for one in emptying
            if (one.user, one.node) not in before and one.node not in asked
        ]

    def stepped_back(self, now: Now) -> dict[int, str]:
        """The guests that load balancing leaves alone, with the words that say why."""
        return stepped_back(self.found, now.wall_s)


def _task_of(told: LogTask, now: float) -> Task:
    """As the task list would show it."""
    ended_at = now if told.has_ended else None
    return Task(told.upid, told.node, told.kind, told.target_id, told.user, float(told.started_at), ended_at, told.status)

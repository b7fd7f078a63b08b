# SPDX-License-Identifier: GPL-3.0-or-later
"""Others that balance beside the agent: noticed, said once, and stepped back from."""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.balancers import Balancer, Seen, balancer_words, balancers, stepped_back, with_tasks
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

    def on_log(self, tasks: Iterable[LogTask], now: Now) -> None:
        """Take note of what the cluster log tells of tasks: between two looks, the cluster's task list may have let go of some."""
        if told := [_task_of(task, now.wall_s) for task in tasks]:
            self._seen = with_tasks(self._seen, told, now.wall_s)

    def on_look(self, snapshot: Snapshot, history: HistoryFile, settings: Settings, now: Now) -> list[Output]:
        """Take the look; what has changed is said."""
        self._seen = with_tasks(self._seen, snapshot.tasks, now.wall_s)
        ours = {record.upid for record in history.migrations if record.upid is not None}
        before = {balancer.user for balancer in self.found}
        self.found = balancers(self._seen, snapshot, ours, settings.api.token_id, now.wall_s)
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
        for user in sorted(before - still):
            said.append(Record(Level.NOTICE, MessageId.OUTSIDE, f"{user} has migrated nobody for an hour: all guests are balanced again"))
        return [Say(record) for record in said]

    def stepped_back(self, now: Now) -> dict[int, str]:
        """The guests that load balancing leaves alone, with the words that say why."""
        return stepped_back(self.found, now.wall_s)


def _task_of(told: LogTask, now: float) -> Task:
    """As the task list would show it."""
    ended_at = now if told.has_ended else None
    return Task(told.upid, told.node, told.kind, told.target_id, told.user, float(told.started_at), ended_at, told.status)

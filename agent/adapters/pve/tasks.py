# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's tasks: what a UPID says, lists of tasks, how one stands."""

from __future__ import annotations

import re
from urllib.parse import quote

from agent.adapters.pve.values import Parameter, Row, UnexpectedAnswerError, fields, number, one_line, quoted, text
from agent.core.cluster import MIGRATE_KINDS, Task
from agent.ports import MOST_LOG_LINES, TaskSight

TASKS = "cluster/tasks"

_UPID = re.compile(r"UPID:([^:/\s]+):[0-9A-Fa-f]{8}:[0-9A-Fa-f]{8,9}:([0-9A-Fa-f]{8}):([^:\s]+):([^:]*):([^:\s]+):")


def upid_task(upid: str) -> Task | None:
    """What a UPID says about its task, as if it ran; None when it is no UPID."""
    match = _UPID.fullmatch(upid)
    if match is None:
        return None
    node, started, kind, target_id, user = match.groups()
    return Task(upid, node, kind, target_id, user, float(int(started, 16)))


def tasks(answer: list[Row]) -> tuple[Task, ...]:
    """The tasks of a task list, by start; what its UPID says is believed before the other fields."""
    found: dict[str, Task] = {}
    for row in answer:
        task = upid_task(text(row.get("upid")))
        if task is None:
            continue
        status = text(row.get("status")) or None
        ended_at = number(row.get("endtime"))
        if ended_at is None and status is not None and status.lower() != "running":
            ended_at = task.started_at
        if ended_at is None:
            status = None
        ended = Task(task.upid, task.node, task.kind, task.target_id, task.user, task.started_at, ended_at, status)
        found.setdefault(task.upid, ended)
    return tuple(sorted(found.values(), key=lambda task: (task.started_at, task.upid)))


def task_status_path(task: Task) -> str:
    """Where its node tells how a task stands."""
    return f"nodes/{quoted(task.node)}/tasks/{quote(task.upid, safe=':@!')}/status"


def task_log_path(task: Task) -> str:
    """Where its node has what a task wrote."""
    return f"nodes/{quoted(task.node)}/tasks/{quote(task.upid, safe=':@!')}/log"


WHOLE_LOG: dict[str, Parameter] = {"limit": 0}  # PVE gives the first 50 lines unless told so, and says how it ended in the last


def log_lines(answer: list[Row]) -> tuple[str, ...]:
    """The lines of a log, each as one line of printable text; of a long one the first and the last ones."""
    lines = [one_line(text(row.get("t"))) for row in answer]
    if len(lines) > MOST_LOG_LINES:
        half = MOST_LOG_LINES // 2
        lines = [*lines[:half], *lines[-half:]]
    return tuple(lines)


def task_sight(upid: str, answer: object, path: str) -> TaskSight:
    """How a task stands. Raises UnexpectedAnswerError when it neither runs nor has stopped."""
    row = fields(answer, path)
    status = row.get("status")
    if status == "running":
        return TaskSight(upid, None)
    if status != "stopped":
        raise UnexpectedAnswerError(f"PVE does not say whether the task {one_line(upid)} runs")
    return TaskSight(upid, text(row.get("exitstatus")) or "unexpected status")


def node_tasks_path(node: str) -> str:
    """Where a node lists its tasks."""
    return f"nodes/{quoted(node)}/tasks"


def migrations_wanted(vmid: int, since_wall_s: float) -> dict[str, Parameter]:
    """What to ask of a node's task list for a guest's migrations; PVE counts in whole seconds."""
    return {"vmid": vmid, "source": "all", "since": int(since_wall_s)}


def newest_migration(found: tuple[Task, ...], vmid: int, node: str, since_wall_s: float) -> str | None:
    """UPID of the last migrate task of the guest on the node started since then."""
    ours = [task for task in found if task.vmid == vmid and task.kind in MIGRATE_KINDS and task.node == node]
    return max(((task.started_at, task.upid) for task in ours if task.started_at >= int(since_wall_s)), default=(0.0, None))[1]

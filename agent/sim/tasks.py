# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks with UPIDs, and the cluster log that their beginnings and ends go to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from agent.core.cluster import Task
from agent.sim.inventory import SimNode
from agent.sim.timeline import Timeline

RING_ENTRIES = 800  # pmxcfs's ring is 128 KiB, which holds about so many
SHOWN_ENTRIES = 50  # .clusterlog never shows more
RECENT_TASKS = 25  # finished tasks a node tells the cluster of
KEPT_TASKS = 1000  # finished tasks a node still knows
ROOT = "root@pam"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of the cluster log. `uid` counts on its node and begins anew with its pmxcfs."""

    uid: int
    time: int
    pri: int
    tag: str
    pid: int
    node: str
    user: str
    msg: str


class LogRing:
    """The cluster log as one part of the cluster holds it."""

    def __init__(self, entries: Iterable[LogEntry] = ()) -> None:
        self.entries: deque[LogEntry] = deque(entries, maxlen=RING_ENTRIES)
        self._text: str | None = None

    def append(self, entry: LogEntry) -> None:
        """Add the newest entry."""
        self.entries.append(entry)
        self._text = None

    def merged(self, other: LogRing) -> LogRing:
        """What two parts hold after they met: by time, node and uid, so that old entries can appear behind newer ones."""
        both = dict.fromkeys([*self.entries, *other.entries])
        return LogRing(sorted(both, key=lambda entry: (entry.time, entry.node, entry.uid)))

    def text(self) -> str:
        """`.clusterlog` as pmxcfs prints it: newest first, and nothing escaped but the quote."""
        if self._text is None:
            shown = list(self.entries)[: -SHOWN_ENTRIES - 1 : -1]
            self._text = '{\n"data": [\n' + ",\n".join(map(_line, shown)) + ("\n" if shown else "") + "]\n}\n"
        return self._text


def _line(entry: LogEntry) -> str:
    msg = entry.msg.replace('"', '\\"')
    return (
        f'{{"uid": {entry.uid}, "time": {entry.time}, "pri": {entry.pri}, "tag": "{entry.tag}", "pid": {entry.pid}, '
        f'"node": "{entry.node}", "user": "{entry.user}", "msg": "{msg}"}}'
    )


class Tasks:
    """All tasks of all nodes, and the writer of the cluster log."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._running: dict[str, Task] = {}
        self._ended: dict[str, deque[Task]] = {}
        self._known: dict[str, Task] = {}
        self._written: dict[str, list[str]] = {}

    def write(self, task: Task, *lines: str) -> None:
        """What the task writes into its own log."""
        self._written.setdefault(task.upid, []).extend(lines)

    def written(self, upid: str) -> tuple[str, ...]:
        """The log of a task, its end included."""
        task = self._known.get(upid)
        lines = list(self._written.get(upid, ()))
        if task is not None and task.status not in (None, "unexpected status"):
            good = task.status == "OK" or str(task.status).startswith("WARNINGS")
            lines.append("TASK OK" if task.status == "OK" else f"TASK {'' if good else 'ERROR: '}{task.status}")
        return tuple(lines)

    def forget(self, task: Task) -> None:
        """Its node does not know the task any more."""
        if self._known.pop(task.upid, None) is not None:
            self._ended[task.node].remove(next(done for done in self._ended[task.node] if done.upid == task.upid))

    def log(self, node: SimNode, msg: str, *, pri: int = 6, tag: str = "pvedaemon", user: str = ROOT) -> None:
        """Put a line into the cluster log of the part of the cluster the node is in.

        After its clock stepped back a node's lines are lost until the clock has caught up, as pmxcfs drops what is not
        newer than the last one seen.
        """
        node.log_uid += 1
        seen = (int(node.wall_s(self._timeline.now_s)), node.log_uid)
        if seen <= node.log_last:
            return
        node.log_last = seen
        node.partition.ring.append(LogEntry(seen[1], seen[0], pri, tag, 900 + node.number, node.name, user, msg))

    def begin(self, node: SimNode, kind: str, target_id: str, user: str = ROOT) -> Task:
        """A new running task of the node, with its line in the cluster log."""
        now_s = self._timeline.now_s
        node.next_pid += 7
        wall = int(node.wall_s(now_s))
        ticks = int(node.boottime_s(now_s) * 100) & 0xFFFFFFFF
        upid = f"UPID:{node.name}:{node.next_pid:08X}:{ticks:08X}:{wall:08X}:{kind}:{target_id}:{user}:"
        task = Task(upid, node.name, kind, target_id, user, float(wall))
        self._running[upid] = self._known[upid] = task
        self.log(node, f"starting task {upid}", user=user)
        return task

    def end(self, node: SimNode, task: Task, status: str) -> None:
        """The task ends, with its line in the cluster log; nothing when it ended already."""
        if self._running.pop(task.upid, None) is None:
            return
        wall = float(int(node.wall_s(self._timeline.now_s)))
        done = Task(task.upid, task.node, task.kind, task.target_id, task.user, task.started_at, wall, status)
        self._known[task.upid] = done
        ended = self._ended.setdefault(task.node, deque())
        ended.append(done)
        if len(ended) > KEPT_TASKS:
            oldest = ended.popleft().upid
            del self._known[oldest]
            self._written.pop(oldest, None)
        good = status == "OK" or status.startswith("WARNINGS")
        self.log(node, f"end task {task.upid} {status}", pri=6 if good else 3, user=task.user)

    def cut_off(self, node: SimNode) -> None:
        """The node went down: its running tasks end without a line, and it will say it does not know how."""
        for task in [task for task in self._running.values() if task.node == node.name]:
            del self._running[task.upid]
            wall = node.wall_s(self._timeline.now_s)
            self._known[task.upid] = Task(
                task.upid, task.node, task.kind, task.target_id, task.user, task.started_at, wall, "unexpected status"
            )

    def known(self, upid: str) -> Task | None:
        """The task as its node knows it."""
        return self._known.get(upid)

    def shown(self, nodes: Iterable[str]) -> tuple[Task, ...]:
        """What the cluster's task list shows of these nodes: all running and the latest ended ones, by start."""
        wanted = set(nodes)
        found = [task for task in self._running.values() if task.node in wanted]
        for name in sorted(wanted):
            found += list(self._ended.get(name, ()))[-RECENT_TASKS:]
        return tuple(sorted(found, key=lambda task: (task.started_at, task.upid)))

    def of_node(self, name: str) -> tuple[Task, ...]:
        """All tasks a node still knows, running and ended, by start."""
        return tuple(sorted((t for t in self._known.values() if t.node == name), key=lambda task: (task.started_at, task.upid)))

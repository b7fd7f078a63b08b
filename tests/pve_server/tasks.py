# SPDX-License-Identifier: GPL-3.0-or-later
"""Worker tasks and what PVE says about them: the task lists with their filters, the cluster log."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web
from fakepve.model import PveError, TaskError
from fakepve.server import USER, ok, params

from tests.pve_server.base import Base

RECENT_FINISHED = 25  # finished tasks of a node in the cluster-wide list
LOG_LINES_DEFAULT = 50  # of a task; 0: all
LOG_DEFAULT = 50  # entries of /cluster/log without max
PRI_INFO, PRI_ERROR = 6, 3
UPID = re.compile(r"UPID:[^:\s]+:[0-9A-F]{8}:[0-9A-F]{8,9}:[0-9A-F]{8}:[^:\s]+:[^:\s]*:[^:\s]+:", re.IGNORECASE)


class TaskWarningsError(Exception):
    """The task did its work and ends with WARNINGS."""


class TasksApi(Base):
    """Tasks run in the background unless `time_scale` is 0 and nobody asks for the wall clock."""

    def apply(self, spec: Any) -> None:
        self.task_faults: list[dict[str, Any]] = []
        self.workers: dict[str, asyncio.Task[Any]] = {}
        self.log_entries: list[dict[str, Any]] = []
        self.log_uids: dict[str, int] = {}
        self.drop_end_lines = False
        super().apply(spec)

    # ---- running

    async def task(
        self,
        node: str,
        ttype: str,
        tid: Any,
        user: str,
        body: Callable[[], Awaitable[Any]],
        vm: Any = None,
        lock: bool = True,
        log: Iterable[str] = (),
        background: bool = False,
        tag: str = "pvedaemon",
    ) -> str:
        """Start a task and return its UPID.

        `background` True: it goes on after the request was answered even if `time_scale` is 0.
        """
        upid, record = self.open_task(node, ttype, tid, user, log, tag)

        async def run() -> None:
            status = "OK"
            try:
                fault = self._take_task_fault(ttype, record["id"])
                if vm is not None and lock:
                    await self.acquire(vm, upid)
                try:
                    if fault is not None and not fault.startswith("WARNINGS"):
                        raise TaskError(fault)
                    note = await body()
                    record["log"].extend([note] if note else [])
                    status = fault or status
                finally:
                    if vm is not None and lock:
                        self.release(vm, upid)
            except TaskWarningsError as warning:
                status = str(warning)
            except TaskError as error:
                status = str(error)
            except asyncio.CancelledError:
                if record["status"] == "stopped":  # its node died: nobody is left to write anything
                    return
                status = "interrupted by signal"
            self.close_task(record, status, tag)

        worker = self.spawn(run())
        self.workers[upid] = worker
        worker.add_done_callback(lambda _: self.workers.pop(upid, None))
        if not self.time_scale and not background:
            await asyncio.shield(worker)
        return upid

    def open_task(
        self, node: str, ttype: str, tid: Any, user: str, log: Iterable[str] = (), tag: str = "pvedaemon"
    ) -> tuple[str, dict[str, Any]]:
        """Record a task as running; returns its UPID and its record."""
        upid, pid, start = self._upid(node, ttype, tid, user)
        record = {
            "upid": upid,
            "node": node,
            "pid": pid,
            "pstart": pid * 7,
            "starttime": start,
            "type": ttype,
            "id": str(tid),
            "user": user,
            "status": "running",
            "log": log if isinstance(log, list) else list(log),
        }
        self.tasks[upid] = record
        self.tasklog.append(record)
        self.add_log(node, user, f"starting task {upid}", pid=pid, tag=tag)
        self.event("task-start", upid=upid, node=node, type=ttype, id=str(tid), user=user)
        return str(upid), record

    def close_task(self, record: dict[str, Any], status: str, tag: str = "pvedaemon") -> None:
        """End a recorded task; one of a state that was replaced meanwhile is forgotten."""
        if self.tasks.get(record["upid"]) is not record:
            return
        good = status == "OK" or status.startswith("WARNINGS")
        record.update(status="stopped", exitstatus=status, endtime=int(time.time()))
        if status != "unexpected status":
            record["log"].append("TASK OK" if status == "OK" else f"TASK {'' if good else 'ERROR: '}{status}")
        if not self.drop_end_lines:
            line = f"end task {record['upid']} {status}"
            self.add_log(record["node"], record["user"], line, pri=PRI_INFO if good else PRI_ERROR, pid=record["pid"], tag=tag)
        self.event("task-end", upid=record["upid"], node=record["node"], type=record["type"], id=record["id"], exitstatus=status)

    def kill_tasks_on(self, node: str) -> None:
        """The node died: its workers are gone without a last word."""
        for record in self.tasklog:
            if record["node"] == node and record["status"] == "running":
                record.update(status="stopped", exitstatus="unexpected status", endtime=int(time.time()))
                self.event("task-end", upid=record["upid"], node=node, type=record["type"], id=record["id"], exitstatus="unexpected status")
                worker = self.workers.get(record["upid"])
                if worker is not None:
                    worker.cancel()

    def _take_task_fault(self, ttype: str, tid: str) -> str | None:
        for fault in self.task_faults:
            if fault["type"] == ttype and fault["vmid"] in (None, tid):
                fault["times"] -= 1
                if not fault["times"]:
                    self.task_faults.remove(fault)
                return str(fault["exitstatus"])
        return None

    # ---- the cluster log

    def add_log(self, node: str, user: str, message: str, pri: int = PRI_INFO, pid: int = 1, tag: str = "pvedaemon") -> None:
        """Add a line to the cluster log; uids count for each node by itself."""
        uid = self.log_uids[node] = self.log_uids.get(node, 0) + 1
        now = int(time.time())
        entry = {"uid": uid, "time": now, "pri": pri, "tag": tag, "pid": pid, "node": node, "user": user, "msg": message}
        self.log_entries.append(entry | {"id": f"{uid}:{node}"})

    def _routes_tasks(self) -> list[tuple[str, str, Any]]:
        return [
            ("GET", "/cluster/log", self._cluster_log),
            ("GET", "/cluster/tasks", self._cluster_tasks),
            ("DELETE", "/nodes/{node}/tasks/{upid}", self._stop_task),
        ]

    async def _cluster_log(self, values: dict[str, Any], user: str) -> list[dict[str, Any]]:
        everything = self.allowed(user, "/", "Sys.Syslog")
        seen = [entry for entry in reversed(self.log_entries) if everything or entry["user"] == user]
        return seen[: values.get("max") or LOG_DEFAULT]

    # ---- the lists

    async def _cluster_tasks(self, _values: dict[str, Any], user: str) -> list[dict[str, Any]]:
        everything = self.allowed(user, "/", "Sys.Audit")
        finished = dict.fromkeys(self.nodes, 0)
        rows = []
        for task in reversed(self.tasklog):
            node = task["node"]
            if not self.is_online(node):
                continue
            if task["status"] != "running":
                finished[node] += 1
                if finished[node] > RECENT_FINISHED:
                    continue
            if everything or self._task_owner(user, task):
                rows.append(self._task_view(task, True) | {"saved": "0" if task["status"] == "running" else "1"})
        return rows

    async def _task_list(self, request: web.Request) -> web.Response:
        node, user = request.match_info["node"], request[USER]
        asked = self._verify(request, await params(request))
        audit = self.allowed(user, f"/nodes/{node}", "Sys.Audit")
        wanted = [task for task in reversed(self.tasklog) if task["node"] == node and _is_wanted(task, asked)]
        rows = [self._task_view(task, True) for task in wanted if audit or self._task_owner(user, task)]
        start = asked.get("start", 0)
        return ok(rows[start : start + asked.get("limit", 50)])

    def _find_task(self, node: str, upid: str) -> dict[str, Any]:
        task: dict[str, Any] | None = self.tasks.get(upid)
        if task is None or task["node"] != node:
            text = "no such task" if UPID.fullmatch(upid) else "unable to parse worker upid"
            raise PveError(400, "Parameter verification failed.", {"upid": text})
        return task

    def _get_task(self, request: web.Request) -> dict[str, Any]:
        task = self._find_task(request.match_info["node"], request.match_info["upid"])
        if not self._task_owner(request[USER], task):
            self.require(request[USER], f"/nodes/{task['node']}", "Sys.Audit")
        return task

    async def _task_log(self, request: web.Request) -> web.Response:
        task = self._get_task(request)
        asked = await params(request)
        start, limit = int(asked.get("start", 0)), int(asked.get("limit", LOG_LINES_DEFAULT))
        lines = task["log"][start : start + limit] if limit else task["log"][start:]
        return ok([{"n": start + number, "t": line} for number, line in enumerate(lines, 1)] or [{"n": 1, "t": "no content"}])

    async def _stop_task(self, values: dict[str, Any], user: str) -> None:
        task = self._find_task(values["node"], values["upid"])
        if not self._task_owner(user, task):
            self.require(user, f"/nodes/{task['node']}", "Sys.Modify")
        worker = self.workers.get(values["upid"])
        if worker is not None:
            worker.cancel()


def _is_wanted(task: dict[str, Any], asked: dict[str, Any]) -> bool:
    """What PVE's node_tasks keeps: the archive (which is the default) holds finished tasks alone, `active` those that run."""
    running, status = task["status"] == "running", task.get("exitstatus", "")
    words = str(asked.get("statusfilter", "")).replace(";", ",").replace(" ", ",").split(",")
    return all(
        (
            asked.get("source", "archive") in ("all", "active" if running else "archive"),
            asked.get("typefilter") in (None, task["type"]),
            asked.get("vmid") is None or task["id"] == str(asked["vmid"]),
            asked.get("userfilter", "").lower() in task["user"].lower(),
            task["starttime"] >= asked.get("since", 0),
            task["starttime"] <= asked.get("until", task["starttime"]),
            not asked.get("errors") or status != "OK",
            words == [""] or (not running and _status_word(status) in words),
        )
    )


def _status_word(status: str) -> str:
    """The kind of an exit status as `statusfilter` has it."""
    if status == "OK":
        return "ok"
    if status.startswith("WARNINGS"):
        return "warning"
    return "unknown" if status.startswith("un") else "error"

# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's API over HTTPS with a token: the real `ClusterApi`."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from agent.adapters.pve import configuration, migration, resources, tasks, values, verdict
from agent.adapters.pve.ha import HaReader
from agent.adapters.pve.hosts import Hosts
from agent.adapters.pve.judging import AnsweredError
from agent.adapters.pve.maintenance import HA_STATUS, ha_nodes, ha_nodes_of_resources
from agent.adapters.pve.schedule import backup_jobs, utc_offset_s
from agent.adapters.pve.trust import ApiAccess
from agent.adapters.pve.values import Parameter, Row
from agent.core.cluster import GuestType, Snapshot, Task
from agent.core.plan_types import Refusal, Verdict
from agent.core.reasons import RefusalReason
from agent.ports import InDoubtError, MigrationOrder, OutsideError, PermanentError, RefusedError, TaskSight, TemporaryError

T = TypeVar("T")
ReadFile = Callable[[str], str | None]

VERSION_LIFE_S = 3600.0  # PVE's version changes with an upgrade, which also breaks the connection, as a rule
REPLICATION_LIFE_S = 3600.0  # for commands off a node, which end long before
ABSENT = frozenset({404, 501})  # PVE's word for a path it does not have is 501

_NO_TASK = re.compile("no such task|unable to parse worker upid")


class PveApi:
    """The cluster's API for one thread, over as few connections as possible. Opens nothing before it is asked.

    Shape:   `read_file` gives a file below /etc/pve by its path there (None: there is no such file), where that is mounted:
             it spares requests. It may raise what `ClusterFiles.read` does.
    """

    def __init__(self, access: ApiAccess, wall_s: Callable[[], float] = time.time, read_file: ReadFile | None = None) -> None:
        self._hosts = Hosts(access)
        self._wall_s = wall_s
        self._read_file = read_file
        self._replication: tuple[float, dict[int, tuple[str, ...]]] | None = None
        self._ha = HaReader(lambda path: self._get(path, absent_is_none=True))

    @property
    def requests_made(self) -> int:
        """How many requests have gone out so far, whatever came of them."""
        return self._hosts.requests_made

    def close(self) -> None:
        """Close all connections; the next call opens them again."""
        self._hosts.close()

    # ---- the port

    def look(self) -> Snapshot:
        """As `ClusterApi.look`: 3 requests, 2 more where HA is in use, and now and then one for what changes rarely."""
        try:
            return self._look()
        except OutsideError:
            self._ha.forget()
            raise

    def _look(self) -> Snapshot:
        taken_at = self._wall_s()
        rows = self._rows(resources.RESOURCES)
        found_tasks = tasks.tasks(self._rows(tasks.TASKS))
        nodes = resources.nodes(rows)
        ha_status = self._get(HA_STATUS, absent_is_none=True)
        maintenance, no_target = ha_nodes(ha_status, nodes, taken_at)
        if not ha_status:
            no_target = ha_nodes_of_resources(rows, nodes)
        closed = tuple(sorted({*no_target, *(entry.node for entry in maintenance)}))
        version = self._version()
        ha = _expected(lambda: self._ha.read(ha_status, closed, resources.major(version), taken_at))
        return Snapshot(
            taken_at=taken_at,
            nodes=nodes,
            guests=resources.guests(rows),
            tasks=found_tasks,
            maintenance=maintenance,
            no_target=no_target,
            pve_version=version,
            storages=resources.storages(rows),
            storage_use=resources.storage_use(rows),
            ha=ha,
            registered_tags=self._ha.options().registered_tags,
            backup_jobs=backup_jobs(self._read_file),
            utc_offset_s=utc_offset_s(taken_at),
        )

    def verdict(self, vmid: int, type: GuestType, node: str, wall_s: float) -> Verdict:
        """As `ClusterApi.verdict`. Where /etc/pve is not to be read, a request more for the configuration, and one an hour for
        replication. PVE 8 has no check of containers: there it is a request less."""
        path = migration.migrate_path(node, type, vmid)
        sizes: dict[str, int] = {}
        try:
            if type is GuestType.QEMU:
                answer = self._hosts.call("GET", path, {})
                said = _expected(lambda: verdict.vm_verdict(vmid, answer, path, wall_s))
                sizes = verdict.disk_sizes(answer)
            else:
                said = verdict.container_verdict(vmid, self._container_precondition(path), wall_s)
            config = self._config(vmid, type, node)
        except AnsweredError as error:
            if error.status != 500:
                raise self._refused_read(path, error) from error
            return verdict.verdict_of_refusal(vmid, error.text, wall_s)
        if config is None:
            return verdict.verdict_of_refusal(vmid, f"its configuration is not on {node}", wall_s)
        if lock := values.text(config.get("lock")):
            return Verdict(vmid, wall_s, Refusal(vmid, RefusalReason.LOCKED, values.one_line(lock)))
        needs = configuration.needs_of(type, config, self._replicated_to(vmid))
        return replace(said, needs=configuration.with_sizes(needs, sizes))

    def migrate(self, order: MigrationOrder, send_until_s: float = math.inf) -> str:
        """As `ClusterApi.migrate`. A guest of the HA manager gives the UPID of a `hamigrate` task, which ends at once."""
        path = migration.migrate_path(order.source, order.type, order.vmid)
        return self._begun(path, migration.migrate_parameters(order), order.source, send_until_s)

    def start(self, vmid: int, type: GuestType, node: str, send_until_s: float = math.inf) -> str:
        """As `ClusterApi.start`."""
        return self._begun(migration.start_path(node, type, vmid), {}, node, send_until_s)

    def _begun(self, path: str, parameters: Mapping[str, Parameter], node: str, send_until_s: float) -> str:
        """The UPID of a task that a request has begun on the node."""
        try:
            answer = self._hosts.call("POST", path, parameters, send_until_s)
        except AnsweredError as error:
            raise RefusedError(error.text) from error
        if not isinstance(answer, str) or tasks.upid_task(answer) is None:
            raise InDoubtError(f"{self._hosts.last} answered POST /{path} without naming a task: see the task list of {node}")
        return answer

    def task(self, upid: str) -> TaskSight:
        """As `ClusterApi.task`, asked of the node that the UPID names."""
        path, answer = self._of_task(upid, tasks.task_status_path, {})
        return _expected(lambda: tasks.task_sight(upid, answer, path))

    def task_log(self, upid: str) -> tuple[str, ...]:
        """As `ClusterApi.task_log`, asked of the node that the UPID names."""
        path, answer = self._of_task(upid, tasks.task_log_path, tasks.WHOLE_LOG)
        return tasks.log_lines(_expected(lambda: values.rows(answer, path)))

    def _of_task(self, upid: str, path_of: Callable[[Task], str], parameters: Mapping[str, Parameter]) -> tuple[str, object]:
        task = tasks.upid_task(upid)
        if task is None:
            raise RefusedError(f"{values.one_line(upid)!r} is not the UPID of a task")
        path = path_of(task)
        try:
            return path, self._hosts.call("GET", path, parameters)
        except AnsweredError as error:
            if error.status in (400, 404) or _NO_TASK.search(error.text):
                raise RefusedError(f"{task.node} does not know the task {upid}: {error.text}") from error
            raise self._refused_read(path, error) from error

    def find_migration(self, vmid: int, source: str, since_wall_s: float) -> str | None:
        """As `ClusterApi.find_migration`; of several the last one. The time is compared with the clock of `source`, in whole seconds."""
        found = tasks.tasks(self._rows(tasks.node_tasks_path(source), tasks.migrations_wanted(vmid, since_wall_s)))
        return tasks.newest_migration(found, vmid, source, since_wall_s)

    # ---- reading

    def _rows(self, path: str, parameters: Mapping[str, Parameter] | None = None) -> list[Row]:
        answer = self._get(path, parameters)
        return _expected(lambda: values.rows(answer, path))

    def _get(self, path: str, parameters: Mapping[str, Parameter] | None = None, absent_is_none: bool = False) -> object:
        try:
            return self._hosts.call("GET", path, parameters or {})
        except AnsweredError as error:
            if absent_is_none and error.status in ABSENT:
                return None
            raise self._refused_read(path, error) from error

    def _version(self) -> str:
        """PVE's version on the host that answered last, asked once a connection."""
        line = self._hosts.line()
        if line is not None and time.monotonic() < line.version_until_s:
            return line.version
        found = resources.version(self._get(resources.VERSION))
        line = self._hosts.line()
        if line is not None:
            line.version, line.version_until_s = found, time.monotonic() + VERSION_LIFE_S
        return found

    def _container_precondition(self, path: str) -> object:
        """PVE's own check of a container, None where it has none."""
        release = resources.major(self._version())
        if release is not None and release < 9:
            return None
        try:
            return self._hosts.call("GET", path, {})
        except AnsweredError as error:
            if error.status in ABSENT:  # the node is an 8 in a cluster half-way to 9
                return None
            raise

    def _config(self, vmid: int, type: GuestType, node: str) -> Row | None:
        """The guest's configuration as it is now, None when it is not on the node."""
        if self._read_file is not None:
            content = self._read_file(configuration.config_file(node, type, vmid))
            return None if content is None else configuration.read_config(content)
        path = configuration.config_path(node, type, vmid)
        answer = self._hosts.call("GET", path, {"current": 1})
        return _expected(lambda: values.fields(answer, path))

    def _replicated_to(self, vmid: int) -> tuple[str, ...] | None:
        """The nodes to which the guest is replicated, None when it is not."""
        if self._read_file is not None:
            content = self._read_file(configuration.REPLICATION_FILE) or ""
            return configuration.replication_targets(configuration.read_replication(content)).get(vmid)
        now_s = time.monotonic()
        if self._replication is None or now_s > self._replication[0]:
            jobs = configuration.replication_targets(self._rows(configuration.REPLICATION))
            self._replication = (now_s + REPLICATION_LIFE_S, jobs)
        return self._replication[1].get(vmid)

    def _refused_read(self, path: str, error: AnsweredError) -> OutsideError:
        if error.status == 400 or error.status in ABSENT:
            hint = "this version of Proxmox VE is not one that the agent knows: update proxlb-agent, or report it"
            return PermanentError(f"{self._hosts.last} does not take GET /{path}: {error.text}", hint)
        return TemporaryError(f"{self._hosts.last} cannot answer GET /{path}: {error.text}")


def _expected(read: Callable[[], T]) -> T:
    try:
        return read()
    except values.UnexpectedAnswerError as error:
        raise TemporaryError(str(error)) from error

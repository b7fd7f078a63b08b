# SPDX-License-Identifier: GPL-3.0-or-later
"""Migrations that really move a guest: what PVE refuses at once, what fails in the task, what happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import Any

from fakepve.model import PveError, TaskError

from tests.pve_server.preconditions import PreconditionsApi
from tests.pve_server.tasks import TaskWarningsError

LOG_TIME = "2026-11-28 15:00:00"  # PVE begins each line with the time
LXC_STOP_S = 180  # PVE's default for the shutdown of a container before it moves
ROOT_ONLY = ("force", "migration_type", "migration_network")


@dataclasses.dataclass
class Outcome:
    """How the next migrations of a guest (None: of any guest) end, if not well.

    `exitstatus` None: PVE's own, which only says how far it came; why stands in the log. `early`: before anything was touched.
    `arrives`: it fails after the guest is on its target already; `at_fraction` of the time: when;
    `starts` False: a container does not start on its target; `leave_lock`: the lock stays, as after a crash.
    """

    vmid: int | None = None
    exitstatus: str | None = None
    detail: str = "something went wrong"
    early: bool = False
    at_fraction: float = 0.5
    arrives: bool = False
    starts: bool = True
    leave_lock: bool = False
    times: int = 1


@dataclasses.dataclass
class Course:
    """A migration under way: the two moments at which a test can end the waiting early."""

    switched: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    finished: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class MigrationApi(PreconditionsApi):
    """POST .../migrate for VMs and containers."""

    def apply(self, spec: Any) -> None:
        self.outcomes: list[Outcome] = []
        self.courses: dict[int, Course] = {}
        self.phase_2: set[int] = set()
        super().apply(spec)

    def _routes_migration(self) -> list[tuple[str, str, Any]]:
        return [("POST", "/nodes/{node}/qemu/{vmid}/migrate", self._qemu_migrate)]

    # ---- the requests

    async def _qemu_migrate(self, values: dict[str, Any], user: str) -> str:
        source, target = values["node"], values["target"]
        if target == source:
            raise PveError(400, "Parameter verification failed.", {"target": "target is local node."})
        self.need_quorum()
        self.check_node(target)
        for name in ROOT_ONLY:
            if values.get(name) and user != "root@pam":
                raise PveError(400, "Parameter verification failed.", {name: "Only root may use this option."})
        vm = self.find(source, values["vmid"])
        self._check_lock(vm)
        live = vm.status == "running"
        spec = self.spec_of(vm)
        if live and not values.get("online"):
            raise PveError(500, "can't migrate running VM without --online")
        if live and spec.replication and target not in spec.replication and not values.get("force"):
            text = f"Cannot live-migrate replicated VM to node '{target}' - not a replication target. Use 'force' to override."
            raise PveError(500, text)
        self._check_storages(vm, target, values.get("targetstorage"))
        if self.is_ha_managed(vm):
            return await self.request_ha_migration(vm, target, user)
        return await self.migrate_guest(vm, target, user, with_local_disks=bool(values.get("with-local-disks")))

    async def _lxc_migrate(self, user: str, values: dict[str, Any]) -> str:
        source, target = values["node"], values["target"]
        if target == source:
            raise PveError(400, "Parameter verification failed.", {"target": "target is local node."})
        self.need_quorum()
        self.check_node(target)
        ct = self._find_ct(source, values["vmid"])
        self._ct_check_lock(ct)
        if ct.status == "running" and not values.get("online") and not values.get("restart"):
            raise PveError(500, "can't migrate running container without --online or --restart")
        self._check_storages(ct, target, values.get("target-storage"))
        if self.is_ha_managed(ct):
            return await self.request_ha_migration(ct, target, user)
        return await self.migrate_guest(ct, target, user, online=bool(values.get("online")), timeout_s=values.get("timeout") or LXC_STOP_S)

    def is_ha_managed(self, _guest: Any) -> bool:
        return False

    async def request_ha_migration(self, guest: Any, target: str, user: str) -> str:
        raise AssertionError("no HA manager here")

    # ---- the worker

    async def migrate_guest(
        self,
        guest: Any,
        target: str,
        user: str,
        with_local_disks: bool = False,
        online: bool = False,
        timeout_s: int = LXC_STOP_S,
        tag: str = "pvedaemon",
    ) -> str:
        """Start the qmigrate or vzmigrate task and return its UPID.

        `online` and `timeout_s` mean something for containers alone: the first is refused in the task, the
        second is how long (in PVE seconds) the container may take to stop.
        """
        source, spec = guest.node, self.spec_of(guest)
        kind, name = ("qmigrate", "VM") if spec.type == "qemu" else ("vzmigrate", "CT")
        log = [f"starting migration of {name} {guest.vmid} to node '{target}' ({self.node_ip(target)})"]

        async def body() -> str:
            began = time.monotonic()
            if guest.lock:
                raise TaskError(f"{name} is locked ({guest.lock})")
            try:
                await self._carry(guest, source, target, with_local_disks, online, timeout_s)
            except (TaskError, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and not self.is_online(source):
                    raise  # the node died, and nobody cleans up
                detail = str(error) or "interrupted by signal"
                duration = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - began))
                text = getattr(error, "exitstatus", None)
                is_phase_2 = guest.vmid in self.phase_2
                if text is None:
                    text = "migration problems" if is_phase_2 else "migration aborted"
                if is_phase_2:
                    log.append(f"{LOG_TIME} ERROR: online migrate failure - {detail}")
                    log.append(f"{LOG_TIME} ERROR: migration finished with problems (duration {duration})")
                else:
                    log.append(f"{LOG_TIME} ERROR: migration aborted (duration {duration}): {detail}")
                raise TaskError(text) from None
            finally:
                self.phase_2.discard(guest.vmid)
            return "migration finished successfully"

        return await self.task(source, kind, guest.vmid, user, body, vm=guest, log=log, background=True, tag=tag)

    async def _carry(self, guest: Any, source: str, target: str, with_local_disks: bool, online: bool, timeout_s: int) -> None:
        running, spec = guest.status == "running", self.spec_of(guest)
        if online and spec.type == "lxc":
            raise TaskError("lxc live migration is currently not implemented")
        why_not = self.why_not_migratable(guest, target, with_local_disks)
        if why_not:
            raise TaskError(why_not)
        outcome = self._take_outcome(guest.vmid)
        keep_lock = False
        course = self.courses[guest.vmid] = Course()
        try:
            if spec.type == "lxc" and running:
                await self._ct_powerdown(guest, timeout_s, False)
                self.event("guest-stop", vmid=guest.vmid, node=source)
            self.set_lock(guest, "migrate")
            if spec.type == "qemu" and running:
                if outcome is None or not outcome.early:
                    self.phase_2.add(guest.vmid)
                self._begin_incoming(guest, target)
            await self._travel(guest, source, target, running, course, outcome)
        except _PlayedError as failure:
            keep_lock = failure.outcome.leave_lock
            raise
        except asyncio.CancelledError:
            keep_lock = not self.is_online(source)
            raise
        finally:
            self.incoming.pop(guest.vmid, None)
            self.courses.pop(guest.vmid, None)
            if guest.lock == "migrate" and not keep_lock:
                self.set_lock(guest, None)
            if spec.type == "lxc" and running and guest.node == source and self.is_online(source) and guest.status != "running":
                self.start_process(guest)  # PVE starts it again where it was

    async def _travel(self, guest: Any, source: str, target: str, running: bool, course: Course, outcome: Outcome | None) -> None:
        """Let the time pass, and change the guest's node on the way."""
        total_s, switch = self._duration_s(guest), self.spec.migration.switch_fraction
        if outcome is not None and not outcome.arrives and outcome.starts:
            await self._wait(course.switched, total_s, outcome.at_fraction)
            raise _PlayedError(outcome)
        await self._wait(course.switched, total_s, switch)
        if not self.is_online(target):
            raise TaskError("target node is not reachable any more")
        guest.node = target
        started = running and (outcome is None or outcome.starts)
        if started:
            self.start_process(guest)
        self.event("guest-moved", vmid=guest.vmid, source=source, target=target, running=started)
        await self._wait(course.finished, total_s, 1 - switch)
        if outcome is None:
            return
        if (outcome.exitstatus or "").startswith("WARNINGS"):
            raise TaskWarningsError(outcome.exitstatus)
        if outcome.exitstatus in (None, "migration aborted"):  # PVE never calls it that once the guest has moved
            outcome = dataclasses.replace(outcome, exitstatus="migration problems")
        raise _PlayedError(outcome)

    @staticmethod
    async def _wait(told: asyncio.Event, total_s: float | None, fraction: float) -> None:
        """Until the test gives the word, or the time is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(told.wait(), None if total_s is None else total_s * fraction)

    def _duration_s(self, guest: Any) -> float | None:
        spec, play = self.spec_of(guest), self.spec.migration
        if spec.migration_s is not None:
            return spec.migration_s
        if play.bytes_per_s is None or play.duration_s is None:
            return play.duration_s
        size = spec.host_bytes if spec.type == "qemu" and guest.status == "running" else 0
        size += sum(disk["size"] for disk in self.local_disks(guest) if not disk["cdrom"])
        return play.duration_s + size / play.bytes_per_s

    def _take_outcome(self, vmid: int) -> Outcome | None:
        for outcome in self.outcomes:
            if outcome.vmid in (None, vmid):
                outcome.times -= 1
                if not outcome.times:
                    self.outcomes.remove(outcome)
                return outcome
        return None

    # ---- what changes on the guest

    def _begin_incoming(self, guest: Any, target: str) -> None:
        """The target's side of a live migration: a short qmstart of its own, and the memory there as well."""
        self.incoming[guest.vmid] = {guest.node, target}
        _, record = self.open_task(target, "qmstart", guest.vmid, "root@pam", tag="qm")
        self.close_task(record, "OK", tag="qm")

    def set_lock(self, guest: Any, lock: str | None) -> None:
        if self.spec_of(guest).type == "qemu":
            self._qm_lock(guest, lock)
        else:
            guest.lock = lock
        self.event("lock" if lock else "unlock", vmid=guest.vmid, node=guest.node, lock=lock)

    def start_process(self, guest: Any) -> None:
        """The guest has a new process: uptime starts again."""
        guest.status = "running"
        guest.started_at = time.time()
        if hasattr(guest, "qmpstatus"):
            guest.qmpstatus = guest.qmpstatus if guest.qmpstatus != "stopped" else "running"
        else:
            guest.pid = next(self._ct_pids)

    def stop_process(self, guest: Any) -> None:
        """The guest does not run any more."""
        guest.status, guest.started_at = "stopped", None
        if hasattr(guest, "qmpstatus"):
            guest.qmpstatus = "stopped"

    def set_online(self, node: str, online: bool, rebooted: bool) -> None:
        """A node dies with its tasks, or comes back: after a reboot with its guests stopped, else as it was."""
        self.nodes[node]["online"] = online
        if online:
            self.dead_since.pop(node, None)
        else:
            self.dead_since.setdefault(node, time.time())
            self.kill_tasks_on(node)
        if rebooted:
            self.node_started[node] = time.time()
            for guest in self.guests():
                if guest.node == node and guest.status == "running":
                    self.stop_process(guest)
        self.event("node-online" if online else "node-offline", node=node)


class _PlayedError(TaskError):
    """A migration that a test wanted to fail."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.detail)
        self.outcome = outcome
        self.exitstatus = outcome.exitstatus

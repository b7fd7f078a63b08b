# SPDX-License-Identifier: GPL-3.0-or-later
"""How guests change their node: PVE's steps with their tasks, locks, hooks and log lines, and the ways they go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from agent.core.cluster import GuestType, Task
from agent.ports import InDoubtError, MigrationOrder, RefusedError
from agent.sim.inventory import SimGuest
from agent.sim.statistics import Incoming
from agent.sim.timeline import Due

if TYPE_CHECKING:
    from agent.sim.world import World

TARGET_START_S = 1.0  # from the task's begin to `qm start` on the target
HAND_OVER_S = 1.0  # from the configuration's rename to the task's end
SETUP_S = 2.0  # what a migration takes beside copying
OFFLINE_S = 2.0  # a stopped guest on shared storage: only its configuration moves
LOG_TIME = "2026-01-01 00:00:00"  # PVE begins each line with the time, which nobody reads here
HA_TASK_S = 1.0  # a hamigrate task ends as soon as the request is queued


class FailureKind(StrEnum):
    """How a migration can go wrong."""

    REFUSED = "refused"  # PVE says no to the request
    REQUEST_LOST = "request-lost"  # no answer, and nothing was started
    ANSWER_LOST = "answer-lost"  # no answer, and it was started
    ABORTED = "aborted"  # the task ends right after it began
    HALF_WAY = "half-way"  # the task ends in the middle, the guest is where it was
    WORKER_KILLED = "worker-killed"  # as half-way, but nobody cleans up: no last word, and the lock stays
    PROBLEMS = "problems"  # the guest is on the target, and the task ends with an error
    WARNINGS = "warnings"  # the guest is on the target, and the task ends with a warning
    NOT_RUNNING = "not-running"  # as problems, and the guest does not run any more
    FORGOTTEN = "forgotten"  # all goes well, but its node does not know the task any more when it has ended
    STUCK = "stuck"  # the task runs until `end_migration`


ANSWERS = {
    FailureKind.REFUSED: "storage 'local-zfs' is not available on node '{target}'",
    FailureKind.REQUEST_LOST: "no answer to the request: connection lost",
    FailureKind.ANSWER_LOST: "no answer to the request: connection lost",
}
ABORTED, PROBLEMS = "migration aborted", "migration problems"  # all that a task's status says; why stands in its log
INTERRUPTED = "interrupted by signal"


@dataclass(slots=True)
class Failure:
    """What goes wrong with the next migrations; `vmid` None: whichever comes; `text` is PVE's answer, or what stands in the log."""

    kind: FailureKind
    vmid: int | None = None
    text: str | None = None
    times: int = 1

    def answer(self, target: str) -> str:
        """PVE's words instead of a UPID."""
        return self.text if self.text is not None else ANSWERS[self.kind].format(target=target)

    @property
    def detail(self) -> str:
        """Why, as the log has it."""
        return self.text if self.text is not None else "something went wrong"


class MigrationState(StrEnum):
    """Where a migration stands."""

    STARTING = "starting"  # the task runs, the guest is untouched
    RUNNING = "running"  # a process is on the target, or the container is stopped
    SWITCHED = "switched"  # the configuration is on the target, the task still runs
    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True)
class Migration:
    """One guest on its way.

    Units:   simulated seconds.
    """

    guest: SimGuest
    source: str
    target: str
    task: Task
    was_running: bool
    since_s: float
    until_s: float
    failure: Failure | None
    state: MigrationState = MigrationState.STARTING
    started_s: float = 0.0  # of the process on the target
    renamed: dict[str, str] = field(default_factory=dict)  # storages of its disks that others take there
    due: list[Due] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """True when its task ended."""
        return self.state in (MigrationState.DONE, MigrationState.FAILED)


class Migrations:
    """All migrations under way, and what is to go wrong with the next."""

    def __init__(self, world: World, bandwidth_bytes_s: float) -> None:
        self._world = world
        self.bandwidth_bytes_s = bandwidth_bytes_s
        self.under_way: dict[int, Migration] = {}
        self.failures: list[Failure] = []

    def incoming(self, node: str) -> list[Incoming]:
        """The guests whose memory is arriving on a node."""
        return [
            Incoming(m.guest.taken_memory_bytes, m.since_s, m.until_s - HAND_OVER_S)
            for m in self.under_way.values()
            if m.target == node and m.state is MigrationState.RUNNING and m.guest.type is GuestType.QEMU
        ]

    def request(self, order: MigrationOrder, user: str) -> Task:
        """Do what PVE does with a POST to migrate.

        Raises:  RefusedError with PVE's text when nothing was started, InDoubtError when the answer gets lost.
        """
        guest = self._check(order)
        failure = self._failure_for(order.vmid)
        if failure is not None and failure.kind is FailureKind.REFUSED:
            raise RefusedError(failure.answer(order.target))
        if failure is not None and failure.kind is FailureKind.REQUEST_LOST:
            raise InDoubtError(failure.answer(order.target))
        if guest.ha is not None:
            task = self._queue_for_ha(guest, order, user, failure)
        else:
            task = self.begin(guest, order.target, user, failure, order)
        if failure is not None and failure.kind is FailureKind.ANSWER_LOST:
            raise InDoubtError(failure.answer(order.target))
        return task

    def _check(self, order: MigrationOrder) -> SimGuest:
        world = self._world
        folder = "qemu-server" if order.type is GuestType.QEMU else "lxc"
        guest = world.guests.get(order.vmid)
        if guest is None or guest.node != order.source or guest.type is not order.type:
            raise RefusedError(f"Configuration file 'nodes/{order.source}/{folder}/{order.vmid}.conf' does not exist")
        if not world.pmxcfs.is_quorate(world.nodes[order.source]):
            raise RefusedError("cluster not ready - no quorum?")
        if order.target == order.source:
            raise RefusedError("target is local node.")
        if order.target not in world.nodes:
            raise RefusedError(f"no such cluster node '{order.target}'")
        if guest.lock is not None:
            raise RefusedError(f"{'VM' if guest.type is GuestType.QEMU else 'CT'} is locked ({guest.lock})")
        if guest.has_process and guest.type is GuestType.QEMU and not order.online:
            raise RefusedError("can't migrate running VM without --online")
        if guest.has_process and guest.type is GuestType.LXC and not order.restart:
            raise RefusedError("can't migrate running container without --online or --restart")
        if order.target in guest.not_allowed:
            raise RefusedError(guest.not_allowed[order.target])
        versions = [world.nodes[name].facts.pve_version or world.pve_version for name in (order.source, order.target)]
        if order.conntrack and any(version.startswith("8.") for version in versions):
            raise RefusedError(
                "with-conntrack-state: property is not defined in schema and the schema does not allow additional properties"
            )
        return guest

    def _failure_for(self, vmid: int) -> Failure | None:
        for failure in self.failures:
            if failure.vmid in (None, vmid):
                failure.times -= 1
                if failure.times <= 0:
                    self.failures.remove(failure)
                return failure
        return None

    def _queue_for_ha(self, guest: SimGuest, order: MigrationOrder, user: str, failure: Failure | None) -> Task:
        world = self._world
        task = world.tasks.begin(world.nodes[order.source], "hamigrate", str(guest.vmid), user)

        def queued() -> None:
            status = "OK"
            if guest.ha == "error":
                status = f"service '{guest.label}' in error state, must be disabled and fixed first"
            elif guest.vmid in world.ha.services:
                world.ha.command(guest.vmid, order.target, failure)
            world.tasks.end(world.nodes[order.source], task, status)

        world.timeline.after(HA_TASK_S, queued)
        return task

    def begin(self, guest: SimGuest, target: str, user: str, failure: Failure | None, order: MigrationOrder | None = None) -> Task:
        """Start the task that migrates the guest, for the HA manager without an order; whether that is allowed was asked before."""
        world = self._world
        source = guest.node
        world.settle(source)
        world.settle(target)
        kind = "qmigrate" if guest.type is GuestType.QEMU else "vzmigrate"
        task = world.tasks.begin(world.nodes[source], kind, str(guest.vmid), user)
        now_s = world.now_s
        duration_s = self._duration_s(guest, None if order is None else order.bandwidth_limit_kib_s)
        renamed = {} if order is None else dict(order.storage_map)
        migration = Migration(guest, source, target, task, guest.has_process, now_s, now_s + duration_s, failure, renamed=renamed)
        self.under_way[guest.vmid] = migration
        world.set_guest_lock(guest, "migrate")
        name = "VM" if guest.type is GuestType.QEMU else "CT"
        world.tasks.write(task, f"{LOG_TIME} starting migration of {name} {guest.vmid} to node '{target}' (192.0.2.1)")
        why_not = self._why_not(guest, target, takes_disks_along=order is None or order.local_disks)
        if failure is not None and failure.kind is FailureKind.ABORTED:
            why_not = failure.detail
        if why_not is not None:
            self._then(migration, min(1.0, duration_s), lambda: self._abort(migration, why_not))
            return task
        world.copy_disks(guest, target, renamed)
        if failure is not None and failure.kind is FailureKind.HALF_WAY:
            self._then(migration, duration_s / 2, lambda: self._abort(migration, failure.detail))
        if failure is not None and failure.kind is FailureKind.WORKER_KILLED:
            self._then(migration, duration_s / 2, lambda: self._break_off(migration))
        if not migration.was_running:
            self._then(migration, duration_s / 2, lambda: self._switch(migration))
        elif guest.type is GuestType.QEMU:
            self._then(migration, min(TARGET_START_S, duration_s / 4), lambda: self._start_on_target(migration))
            self._then(migration, max(duration_s - HAND_OVER_S, duration_s * 0.75), lambda: self._switch(migration))
        else:
            stop_s = min(guest.shutdown_s, duration_s / 2)
            world.hook(guest, source, "pre-stop")
            self._then(migration, stop_s, lambda: self._stop_container(migration))
            self._then(migration, max(duration_s - HAND_OVER_S, duration_s * 0.75), lambda: self._switch(migration))
        if failure is None or failure.kind is not FailureKind.STUCK:
            self._then(migration, duration_s, lambda: self._finish(migration))
        return task

    def _why_not(self, guest: SimGuest, target: str, *, takes_disks_along: bool) -> str | None:
        """What PVE's worker finds before it begins."""
        if not self._world.nodes[target].online:
            return "Can't connect to destination address using public key"
        if guest.local_devices:
            return f"can't migrate VM which uses local devices: {', '.join(guest.local_devices)}"
        if guest.local_disks and guest.has_process and not takes_disks_along:
            return "can't live migrate attached local disks without with-local-disks option"
        return None

    def _then(self, migration: Migration, delay_s: float, act: Callable[[], None]) -> None:
        def step() -> None:
            if not migration.is_over:
                act()

        migration.due.append(self._world.timeline.after(delay_s, step))

    def _duration_s(self, guest: SimGuest, limit_kib_s: int | None) -> float:
        if guest.migration_s is not None:
            return guest.migration_s
        disks_s = self._world.local_disk_bytes(guest) / self.bandwidth_bytes_s
        if not guest.has_process:
            return OFFLINE_S + disks_s
        if guest.type is GuestType.LXC:
            return guest.shutdown_s + SETUP_S + HAND_OVER_S
        rate = self.bandwidth_bytes_s if not limit_kib_s else min(self.bandwidth_bytes_s, limit_kib_s * 1024.0)
        return SETUP_S + HAND_OVER_S + guest.taken_memory_bytes / rate + disks_s

    def _start_on_target(self, migration: Migration) -> None:
        world, guest = self._world, migration.guest
        world.settle(migration.target)
        target = world.nodes[migration.target]
        migration.state, migration.started_s = MigrationState.RUNNING, world.now_s
        world.hook(guest, migration.target, "pre-start", migration.source)
        start = world.tasks.begin(target, "qmstart", str(guest.vmid))
        world.hook(guest, migration.target, "post-start", migration.source)
        world.tasks.end(target, start, "OK")

    def _stop_container(self, migration: Migration) -> None:
        world, guest = self._world, migration.guest
        world.settle(migration.source)
        guest.status = "stopped"
        migration.state = MigrationState.RUNNING
        world.hook(guest, migration.source, "post-stop")

    def _switch(self, migration: Migration) -> None:
        if migration.failure is not None and migration.failure.kind is FailureKind.STUCK:
            return
        world, guest = self._world, migration.guest
        world.free_disks(guest, migration.source)
        world.move_configuration(guest, migration.target)
        world.rename_disks(guest, migration.renamed)
        migration.state = MigrationState.SWITCHED
        if not migration.was_running:
            return
        guest.since_s = migration.started_s if guest.type is GuestType.QEMU else world.now_s
        guest.seen_since_s = world.now_s
        if migration.failure is not None and migration.failure.kind is FailureKind.NOT_RUNNING:
            guest.status = "stopped"
        elif guest.type is GuestType.LXC:
            target = world.nodes[migration.target]
            world.hook(guest, migration.target, "pre-start")
            start = world.tasks.begin(target, "vzstart", str(guest.vmid))
            guest.status = "running"
            world.hook(guest, migration.target, "post-start")
            world.tasks.end(target, start, "OK")

    def _finish(self, migration: Migration) -> None:
        failure, kind = migration.failure, None if migration.failure is None else migration.failure.kind
        if kind in (FailureKind.PROBLEMS, FailureKind.NOT_RUNNING):
            assert failure is not None
            self._world.tasks.write(migration.task, f"{LOG_TIME} ERROR: {failure.detail}")
            self._world.tasks.write(migration.task, f"{LOG_TIME} ERROR: migration finished with problems (duration 00:00:12)")
            self._end(migration, MigrationState.FAILED, PROBLEMS)
        elif kind is FailureKind.WARNINGS:
            self._end(migration, MigrationState.DONE, "WARNINGS: 1")
        else:
            self._end(migration, MigrationState.DONE, "OK")
        if kind is FailureKind.FORGOTTEN:
            self._world.tasks.forget(migration.task)

    def _abort(self, migration: Migration, why: str) -> None:
        """End it with the guest where it was."""
        world, guest = self._world, migration.guest
        if migration.state is not MigrationState.STARTING:
            world.free_disks(guest, migration.target, migration.renamed)
        for node in (migration.source, migration.target):
            world.settle(node)
        is_live = migration.state is MigrationState.RUNNING and guest.type is GuestType.QEMU
        if is_live:
            world.hook(guest, migration.target, "post-stop")
            world.tasks.write(migration.task, f"{LOG_TIME} ERROR: online migrate failure - {why}")
            world.tasks.write(migration.task, f"{LOG_TIME} aborting phase 2 - cleanup resources")
        elif migration.state is MigrationState.RUNNING and world.nodes[migration.source].online:
            self._start_again(migration)
        last = (
            f"migration finished with problems (duration 00:00:12): {why}" if is_live else f"migration aborted (duration 00:00:12): {why}"
        )
        world.tasks.write(migration.task, f"{LOG_TIME} ERROR: {last}")
        self._end(migration, MigrationState.FAILED, PROBLEMS if is_live else ABORTED)

    def _start_again(self, migration: Migration) -> None:
        """PVE starts a container again where it was."""
        world, guest = self._world, migration.guest
        world.hook(guest, migration.source, "pre-start")
        guest.status, guest.since_s, guest.seen_since_s = "running", world.now_s, world.now_s
        world.hook(guest, migration.source, "post-start")

    def _break_off(self, migration: Migration) -> None:
        """Somebody kills the worker: the guest is where it was, with the lock on it, and the task has no last word."""
        world = self._world
        for due in migration.due:
            due.cancelled = True
        del self.under_way[migration.guest.vmid]
        migration.state = MigrationState.FAILED
        world.tasks.end(world.nodes[migration.source], migration.task, "unexpected status")
        world.ha.migration_ended(migration.guest, is_good=False)

    def _end(self, migration: Migration, state: MigrationState, status: str) -> None:
        world = self._world
        for due in migration.due:
            due.cancelled = True
        del self.under_way[migration.guest.vmid]
        migration.state = state
        world.set_guest_lock(migration.guest, None)
        world.tasks.end(world.nodes[migration.source], migration.task, status)
        world.ha.migration_ended(migration.guest, is_good=state is MigrationState.DONE)

    def end_stuck(self, vmid: int) -> None:
        """Somebody stops the guest's migration task: the guest stays where it was."""
        migration = self.under_way[vmid]
        if migration.state is MigrationState.SWITCHED:
            self._world.tasks.write(migration.task, f"{LOG_TIME} ERROR: {INTERRUPTED}")
            self._end(migration, MigrationState.FAILED, PROBLEMS)
        else:
            self._abort(migration, INTERRUPTED)

    def node_went_down(self, name: str) -> None:
        """What a node's end does to the migrations from and to it; called before its guests are counted as dead."""
        for migration in [m for m in self.under_way.values() if name in (m.source, m.target)]:
            if name == migration.target:
                switched = migration.state is MigrationState.SWITCHED
                if switched:
                    self._end(migration, MigrationState.FAILED, PROBLEMS)
                else:
                    self._abort(migration, "no reply to command 'resume': broken pipe")
                continue
            for due in migration.due:
                due.cancelled = True
            migration.state = MigrationState.FAILED
            del self.under_way[migration.guest.vmid]  # the lock stays, as in PVE, until somebody runs `qm unlock`

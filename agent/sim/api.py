# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's API as a node of the simulated cluster has it: what is, as last sampled, and requests that change something."""

from __future__ import annotations

import math

from agent.core.backups import CRON_FILE, JOBS_FILE, read_cron, read_jobs
from agent.core.cluster import ASKED_OF_HA, MIGRATE_KINDS, BackupJob, Guest, GuestType, Maintenance, Node, Snapshot
from agent.core.plan_types import Refusal, Verdict
from agent.core.reasons import RefusalReason
from agent.ports import InDoubtError, MigrationOrder, RefusedError, TaskSight, TemporaryError
from agent.sim.inventory import SimGuest
from agent.sim.records import Post
from agent.sim.statistics import GuestRow, NodeRow
from agent.sim.world import World

AGENT_USER = "proxlb@pve!agent"
LOOK_REQUESTS = ("GET /cluster/resources", "GET /cluster/tasks", "GET /cluster/ha/status/manager_status")


class SimApi:
    """PVE's API as asked on a node, at its own server."""

    def __init__(self, world: World, node: str) -> None:
        self._world, self._node = world, world.nodes[node]
        self._knows_version = False

    def _ask(self, *requests: str, of: str | None = None) -> None:
        """Count the requests; raise when the own server, or that of the node that is asked about, does not answer."""
        world, node = self._world, self._node
        world.api_requests.update(requests)
        if node.api_failures > 0:
            node.api_failures -= 1
            raise TemporaryError(f"{node.name}: the API answers 500: internal error")
        if node.api_cut or not node.online:
            raise TemporaryError(f"{node.name}: the API cannot be reached: connection refused; is pveproxy running?")
        if world.now_s < node.api_hangs_until_s:
            raise TemporaryError(f"{node.name}: the API does not answer in time")
        if of is None or of == node.name:
            return
        other = world.nodes.get(of)
        if other is None or not other.online or other.api_cut or other.partition is not node.partition:
            raise TemporaryError(f"{of}: the node cannot be reached: 595 No route to host")
        if world.now_s < other.api_hangs_until_s:
            raise TemporaryError(f"{of}: the API does not answer in time")

    def look(self) -> Snapshot:
        """See `agent.ports.ClusterApi`."""
        self._ask(*LOOK_REQUESTS, *(() if self._knows_version else ("GET /version",)))
        self._knows_version = True
        world, here = self._world, self._node
        node_rows, guest_rows = world.rows(here.partition)
        reachable = {node.name for node in world.pmxcfs.members(here.partition)}
        requested = dict.fromkeys(world.ha_requests, ASKED_OF_HA)
        return Snapshot(
            taken_at=here.wall_s(world.now_s),
            nodes=tuple(_node(name, name in reachable, node_rows.get(name)) for name in world.nodes),
            guests=tuple(
                _guest(guest, guest_rows.get(vmid), world.pve_version) for vmid, guest in sorted(world.guests.items()) if not guest.hidden
            ),
            tasks=world.tasks.shown(reachable),
            maintenance=tuple(Maintenance(name, cause) for name, cause in sorted(requested.items())),
            no_target=tuple(sorted(name for name in world.ha_states if name in reachable and name not in requested)),
            pve_version=world.pve_version,
            storage_use=tuple(use for _, use in sorted(world.storage_use.items())),
            storages=world.storages,
            registered_tags=world.registered_tags,
            ha=world.ha.seen(),
            backup_jobs=self._backup_jobs(),
            utc_offset_s=world.utc_offset_s,
        )

    def _backup_jobs(self) -> tuple[BackupJob, ...]:
        files = self._node.partition.files
        jobs = read_jobs(files.get(JOBS_FILE, "")) + read_cron(files.get(CRON_FILE, ""))
        return tuple(sorted(jobs, key=lambda job: job.id))

    def verdict(self, vmid: int, type: GuestType, node: str, wall_s: float) -> Verdict:
        """See `agent.ports.ClusterApi`."""
        self._ask("GET migrate", of=node)
        guest = self._world.guests.get(vmid)
        refusal: Refusal | None = None
        if guest is None or guest.node != node:
            refusal = Refusal(vmid, RefusalReason.PRECONDITION, f"its configuration is not on {node}")
        elif guest.lock is not None:
            refusal = Refusal(vmid, RefusalReason.LOCKED, guest.lock)
        elif guest.local_devices:
            refusal = Refusal(vmid, RefusalReason.LOCAL_DEVICE, ", ".join(guest.local_devices))
        if guest is None or refusal is not None:
            return Verdict(vmid, wall_s, refusal)
        if guest.local_disks:
            refusal = Refusal(vmid, RefusalReason.LOCAL_DISK, ", ".join(guest.local_disks))
        refused = {name: Refusal(vmid, RefusalReason.NODE_REFUSED, why) for name, why in guest.not_allowed.items()}
        for name in self._world.nodes:
            if missing := [device for device, nodes in sorted(guest.mapped.items()) if name not in nodes]:
                refused[name] = Refusal(vmid, RefusalReason.DEVICE_MISSING, ", ".join(missing))
        return Verdict(vmid, wall_s, refusal, tuple(sorted(refused.items())), guest.needs)

    def migrate(self, order: MigrationOrder, send_until_s: float = math.inf) -> str:
        """See `agent.ports.ClusterApi`."""
        world = self._world
        if self._node.boottime_s(world.now_s) >= send_until_s:
            raise TemporaryError("timed out before the request was sent")
        lock = self._node.partition.lock
        held_lock = lock is not None and lock.writer == self._node.name and world.pmxcfs.is_quorate(self._node)
        try:
            self._ask("POST migrate", of=order.source)
            upid = world.migrations.request(order, AGENT_USER).upid
        except (RefusedError, InDoubtError, TemporaryError) as error:
            world.post_record.append(Post(world.now_s, self._node.name, order, held_lock, f"{type(error).__name__}: {error}"))
            raise
        world.post_record.append(Post(world.now_s, self._node.name, order, held_lock, upid))
        return upid

    def start(self, vmid: int, type: GuestType, node: str, send_until_s: float = math.inf) -> str:
        """See `agent.ports.ClusterApi`."""
        if self._node.boottime_s(self._world.now_s) >= send_until_s:
            raise TemporaryError("timed out before the request was sent")
        self._ask("POST start", of=node)
        guest = self._world.guests.get(vmid)
        if guest is None or (guest.node, guest.type) != (node, type):
            raise RefusedError(f"Configuration file for {vmid} does not exist on {node}")
        task = self._world.start_guest(vmid, AGENT_USER)
        if task is None:
            raise RefusedError(f"{'VM' if guest.type is GuestType.QEMU else 'CT'} {vmid} already running")
        return task.upid

    def task(self, upid: str) -> TaskSight:
        """See `agent.ports.ClusterApi`."""
        parts = upid.split(":")
        if len(parts) != 9 or parts[0] != "UPID" or parts[1] not in self._world.nodes:
            raise RefusedError(f"{upid}: not a task of this cluster")
        self._ask("GET task", of=parts[1])
        task = self._world.tasks.known(upid)
        if task is None:
            raise RefusedError(f"{upid}: no such task")
        return TaskSight(upid, task.status)

    def task_log(self, upid: str) -> tuple[str, ...]:
        """See `agent.ports.ClusterApi`."""
        self.task(upid)
        return self._world.tasks.written(upid)

    def close(self) -> None:
        """See `agent.ports.ClusterApi`."""

    def find_migration(self, vmid: int, source: str, since_wall_s: float) -> str | None:
        """See `agent.ports.ClusterApi`."""
        self._ask("GET tasks", of=source)
        found = [
            task
            for task in self._world.tasks.of_node(source)
            if task.kind in MIGRATE_KINDS and task.vmid == vmid and task.started_at >= int(since_wall_s)
        ]
        return found[-1].upid if found else None


def _node(name: str, online: bool, row: NodeRow | None) -> Node:
    if row is None:
        return Node(name, online, 0.0, 0)
    return Node(
        name=name,
        online=online,
        cpu_cores=row.cores,
        memory_bytes=row.memory_bytes,
        cpu_used_cores=row.cpu_fraction * row.cores,
        memory_used_bytes=row.memory_used_bytes,
        uptime_s=float(row.uptime_s),
    )


def _guest(guest: SimGuest, row: GuestRow | None, pve_version: str) -> Guest:
    if row is None:
        return Guest(
            vmid=guest.vmid,
            type=guest.type,
            name=f"{'VM ' if guest.type is GuestType.QEMU else 'CT'}{guest.vmid}",
            node=guest.node,
            status="unknown",
            cpu_cores=0.0,
            memory_bytes=0,
            tags=guest.tags,
            pool=guest.pool,
            lock=guest.lock,
            ha=guest.ha,
            template=guest.template,
        )
    has_host_memory = guest.type is GuestType.QEMU and not pve_version.startswith("8.")
    return Guest(
        vmid=guest.vmid,
        type=guest.type,
        name=row.name,
        node=guest.node,
        status=row.status,
        cpu_cores=row.cores,
        memory_bytes=row.memory_bytes,
        cpu_used_cores=row.cpu_fraction * row.cores,
        memory_used_bytes=row.memory_used_bytes,
        memory_host_bytes=row.memory_host_bytes if has_host_memory else None,
        uptime_s=float(row.uptime_s),
        tags=guest.tags,
        pool=guest.pool,
        lock=guest.lock,
        ha=guest.ha,
        template=guest.template,
    )

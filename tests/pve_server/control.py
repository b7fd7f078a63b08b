# SPDX-License-Identifier: GPL-3.0-or-later
"""The tests' own way in: plain HTTP on the loopback, to change what happens and to see what happened."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import Any

from aiohttp import web

from tests.pve_server.faults import Fault, FaultyApi
from tests.pve_server.listeners import Listeners
from tests.pve_server.migration import Outcome
from tests.pve_server.state import GuestSpec, StateError, read_state, spec

MAX_WAIT_S = 30.0
SETTINGS = ("numbers_as_strings", "cpu_blank_s", "dead_known_s", "pvestatd_s", "options")


class Control:
    """POST /control {"do": name, ...} calls the method `do_<name>` with the other keys as its arguments."""

    def __init__(self, pve: FaultyApi, listeners: Listeners) -> None:
        self.pve = pve
        self.listeners = listeners

    def app(self) -> web.Application:
        app = web.Application(client_max_size=256 * 1024**2)
        app.router.add_post("/control", self._post)
        for name in ("requests", "state", "rows", "events"):
            app.router.add_get(f"/control/{name}", getattr(self, f"_get_{name}"))
        return app

    async def _post(self, request: web.Request) -> web.Response:
        document = await request.json()
        name = document.pop("do", None)
        action = getattr(self, f"do_{name}", None)
        if action is None:
            known = sorted(name[len("do_") :] for name in dir(self) if name.startswith("do_"))
            return web.json_response({"error": f"no action {name!r}; known: {', '.join(known)}"}, status=400)
        try:
            return web.json_response({"result": await action(**document)})
        except (StateError, TypeError, ValueError, KeyError) as error:
            return web.json_response({"error": f"{name}: {error}"}, status=400)

    # ---- looking

    async def _get_requests(self, request: web.Request) -> web.Response:
        return web.json_response({"requests": self.pve.recorded, "counters": dict(self.pve.counters)})

    async def _get_state(self, request: web.Request) -> web.Response:
        pve = self.pve
        guests = {str(guest.vmid): self._guest_view(guest) for guest in pve.guests()}
        tasks = [{key: value for key, value in task.items() if key not in ("pid", "pstart")} for task in pve.tasklog]
        nodes = {name: {"online": pve.is_online(name)} for name in pve.nodes}
        return web.json_response({"guests": guests, "tasks": tasks, "nodes": nodes, "quorate": pve.quorate, "ha": pve.manager_status()})

    async def _get_rows(self, request: web.Request) -> web.Response:
        """The numbers that pvestatd sent last, as /cluster/resources would show them to root; no request is counted."""
        pve = self.pve
        shown = pve.shown_nodes()
        nodes = [pve._node_row(name, shown.get(name)) for name in sorted(pve.nodes)]
        return web.json_response({"nodes": nodes, "guests": [pve._guest_row(guest) for guest in pve.guests()]})

    def _guest_view(self, guest: Any) -> dict[str, Any]:
        kind = self.pve.spec_of(guest).type
        return {
            "node": guest.node,
            "type": kind,
            "status": self.pve.qemu_status(guest),
            "lock": guest.lock,
            "ha": guest.ha_state,
            "tags": guest.config.get("tags"),
        }

    async def _get_events(self, request: web.Request) -> web.Response:
        """The events after `since`; with `wait_s` it waits for one. Other items (kind, vmid, ...) must equal the event's."""
        asked = dict(request.query)
        since, wait_s = int(asked.pop("since", 0)), min(float(asked.pop("wait_s", 0)), MAX_WAIT_S)
        deadline = time.monotonic() + wait_s
        while not (events := self._events_like(since, asked)) and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.pve.event_came.wait(), deadline - time.monotonic())
        return web.json_response({"events": events})

    def _events_like(self, since: int, asked: dict[str, str]) -> list[dict[str, Any]]:
        return [event for event in self.pve.events_after(since) if all(str(event.get(key)) == value for key, value in asked.items())]

    # ---- the whole

    async def do_load(self, state: dict[str, Any]) -> None:
        """Become another cluster, as if the server had been started with it."""
        spec_read = read_state(state)
        await self.pve.end_running()
        self.pve.apply(spec_read)
        self.listeners.name_nodes()

    async def do_settings(self, **values: Any) -> None:
        """Change settings of the state that hold for the cluster as a whole."""
        for name, value in values.items():
            if name not in SETTINGS:
                raise StateError(f"no setting {name!r}; known: {', '.join(SETTINGS)}")
            setattr(self.pve.spec, name, value)
        if "pvestatd_s" in values:
            self.pve.restart_pvestatd()

    async def do_sample(self) -> None:
        """A pvestatd round on every node, now."""
        self.pve.sample()

    async def do_quorum(self, quorate: bool) -> None:
        self.pve.quorate = quorate
        self.pve.event("quorum", quorate=quorate)

    async def do_clear(self) -> None:
        """Forget the requests and counters so far; the faults stay."""
        self.pve.recorded.clear()
        self.pve.counters.clear()

    # ---- guests

    async def do_add_guest(self, guest: dict[str, Any]) -> None:
        """A guest as in the state file. A running one has just started, with a qmstart or vzstart in the log."""
        added = spec(GuestSpec, {"uptime_s": 0} | guest, "guest")
        self.pve.put_guest(added)
        if added.status != "stopped":
            self._log_task(added.node, "start", added, "root@pam")
        self.pve.event("guest-added", vmid=added.vmid, node=added.node)

    async def do_remove_guest(self, vmid: int) -> None:
        self.pve.remove_guest(vmid)
        self.pve.event("guest-removed", vmid=vmid)

    async def do_start_guest(self, vmid: int, user: str = "root@pam", silent: bool = False) -> None:
        """Start a guest; `silent`: without a task, as a reboot inside a container."""
        guest = self.pve.need_guest(vmid)
        self.pve.start_process(guest)
        if not silent:
            self._log_task(guest.node, "start", self.pve.spec_of(guest), user)
        self.pve.event("guest-start", vmid=vmid, node=guest.node)

    async def do_stop_guest(self, vmid: int, user: str = "root@pam", silent: bool = False) -> None:
        """Stop a guest; `silent`: without a task, as a shutdown from inside."""
        guest = self.pve.need_guest(vmid)
        self.pve.stop_process(guest)
        if not silent:
            self._log_task(guest.node, "stop", self.pve.spec_of(guest), user)
        self.pve.event("guest-stop", vmid=vmid, node=guest.node)

    def _log_task(self, node: str, verb: str, guest: GuestSpec, user: str) -> None:
        _, record = self.pve.open_task(node, f"{'qm' if guest.type == 'qemu' else 'vz'}{verb}", guest.vmid, user)
        self.pve.close_task(record, "OK")

    async def do_set_guest(self, vmid: int, **values: Any) -> None:
        """Change what the state file says of a guest: its load, sizes, disks, devices, its tags; `config` None: the key is gone."""
        guest = self.pve.need_guest(vmid)
        changed = dataclasses.asdict(self.pve.spec_of(guest)) | values
        fixed = {"vmid", "type", "node", "status", "lock", "ha", "template", "pool", "uptime_s"} & set(values)
        if fixed:
            raise StateError(f"guest {vmid}: {', '.join(sorted(fixed))} cannot be set this way")
        self.pve.guest_specs[vmid] = spec(GuestSpec, changed, f"guest {vmid}")
        if "tags" in values:
            guest.config["tags"] = values["tags"] or ""
        sizes = {"memory": values.get("maxmem_bytes", 0) // 1024**2, "cores": int(values.get("maxcpu", 0))}
        guest.config.update({key: value for key, value in sizes.items() if value})
        for key, value in values.get("config", {}).items():
            if value is None:
                guest.config.pop(key, None)
            else:
                guest.config[key] = value

    async def do_status(self, vmid: int, status: str) -> None:
        """What QEMU says of a running VM: running, paused, prelaunch, io-error, suspended."""
        self.pve.need_guest(vmid).qmpstatus = status

    async def do_lock(self, vmid: int, lock: str | None) -> None:
        self.pve.set_lock(self.pve.need_guest(vmid), lock)

    async def do_move_guest(self, vmid: int, node: str) -> None:
        """The configuration is elsewhere, without a task: HA's recovery, or somebody's mv."""
        guest = self.pve.need_guest(vmid)
        self.pve.need_node(node)
        source, guest.node = guest.node, node
        self.pve.event("guest-moved", vmid=vmid, source=source, target=node, running=guest.status == "running")

    async def do_migrate(self, vmid: int, target: str, user: str = "root@pam") -> str:
        """Somebody else's migration; returns its UPID."""
        self.pve.need_node(target)
        return await self.pve.migrate_guest(self.pve.need_guest(vmid), target, user, with_local_disks=True)

    async def do_hide_guest(self, vmid: int, user: str, hidden: bool = True) -> None:
        """Take a user's (or a token's) rights on a guest away."""
        users = self.pve.hidden.setdefault(vmid, set())
        (users.add if hidden else users.discard)(user)

    # ---- nodes and endpoints

    async def do_node_online(self, node: str, online: bool, rebooted: bool = False) -> None:
        """A node dies (its tasks with it, its guests stay where they are), or comes back; `rebooted`: its guests stopped."""
        self.pve.need_node(node)
        self.pve.set_online(node, online, rebooted)

    async def do_node_load(self, node: str, cpu_fraction: float | None = None, mem_bytes: int | None = None) -> None:
        """What a node reports, whatever its guests use; None: derived again."""
        found = self.pve.need_node(node)
        found.cpu_fraction, found.mem_bytes = cpu_fraction, mem_bytes

    async def do_row(self, row: str, values: dict[str, Any] | None = None, drop: list[str] | None = None) -> None:
        """How a row of /cluster/resources and /nodes looks, by its id (qemu/101, node/pve1): keys set, keys missing."""
        self.pve.row_edits[row] = {"set": values or {}, "drop": drop or []}

    async def do_endpoint(self, index: int, up: bool) -> None:
        """Take an endpoint away, its open connections too, or bring it back on the same port."""
        await self.listeners.set_up(index, up)

    # ---- calls that go wrong

    async def do_fault(self, **values: Any) -> None:
        """See `Fault`."""
        self.pve.faults.append(spec(Fault, values, "fault"))

    async def do_clear_faults(self) -> None:
        self.pve.faults.clear()
        self.pve.task_faults.clear()
        self.pve.outcomes.clear()

    async def do_task_fault(self, kind: str, exitstatus: str, vmid: int | None = None, times: int = 1) -> None:
        """The next tasks of a type (of one guest) end with this status; `WARNINGS: 1` does the work all the same."""
        wanted = None if vmid is None else str(vmid)
        self.pve.task_faults.append({"type": kind, "vmid": wanted, "exitstatus": exitstatus, "times": times})

    async def do_drop_end_lines(self, drop: bool = True) -> None:
        """The cluster log has no line at the end of a task."""
        self.pve.drop_end_lines = drop

    async def do_task(self, node: str, kind: str, about: str = "", user: str = "root@pam", ended: bool = False, status: str = "OK") -> str:
        """A task of somebody else's (vzdump, startall): it runs until end_task, or has ended at once."""
        self.pve.need_node(node)
        upid, record = self.pve.open_task(node, kind, about, user)
        if ended:
            self.pve.close_task(record, status)
        return upid

    async def do_end_task(self, upid: str, status: str = "OK") -> None:
        self.pve.close_task(self.pve.tasks[upid], status)

    async def do_log(self, node: str, message: str, user: str = "root@pam", pri: int = 6, tag: str = "pvedaemon") -> None:
        """A line in the cluster log."""
        self.pve.add_log(node, user, message, pri=pri, tag=tag)

    # ---- migrations

    async def do_migration(self, **values: Any) -> None:
        """See `MigrationSpec`; what is not named stays."""
        self.pve.spec.migration = spec(type(self.pve.spec.migration), dataclasses.asdict(self.pve.spec.migration) | values, "migration")

    async def do_fail_migration(self, **values: Any) -> None:
        """See `Outcome`."""
        self.pve.outcomes.append(spec(Outcome, values, "outcome"))

    async def do_switch_migration(self, vmid: int) -> None:
        """The migration under way puts the guest on its target now, and goes on."""
        self.pve.courses[vmid].switched.set()

    async def do_finish_migration(self, vmid: int) -> None:
        """The migration under way ends now."""
        course = self.pve.courses[vmid]
        course.switched.set()
        course.finished.set()

    # ---- HA

    async def do_ha(self, **values: Any) -> None:
        """See `HaSpec`; what is not named stays. `resources` here are further keys only; `ha_guest` makes a resource."""
        self.pve.spec.ha = spec(type(self.pve.spec.ha), dataclasses.asdict(self.pve.spec.ha) | values, "ha")

    async def do_ha_guest(self, vmid: int, state: str | None) -> None:
        """Put a guest under the HA manager, or take it away with None."""
        self.pve.put_under_ha(self.pve.need_guest(vmid), state)

    async def do_ha_service(self, sid: str, **entry: Any) -> None:
        """What service_status says of a resource: state, target, maintenance_node."""
        guest = self.pve.guest_of(sid)
        if guest is None:
            raise StateError(f"no guest {sid}")
        self.pve.service(guest).update(entry)

    async def do_ha_node(self, node: str, state: str | None) -> None:
        """The CRM's state of a node with no request behind it (a reboot with shutdown policy migrate); None: its own."""
        self.pve.need_node(node)
        self.pve.ha_used = True
        if state is None:
            self.pve.ha_nodes.pop(node, None)
        else:
            self.pve.ha_nodes[node] = state

    async def do_ha_maintenance(self, node: str, wanted: bool) -> None:
        """An admin's request for maintenance, or its end."""
        self.pve.need_node(node)
        await self.pve.maintain(node, wanted)

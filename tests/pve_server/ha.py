# SPDX-License-Identifier: GPL-3.0-or-later
"""The HA manager: it takes requests at once and carries them out later, with tasks of its own, or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fakepve.model import PveError, TaskError

from tests.pve_server.migration import LXC_STOP_S, MigrationApi

HA_USER, HA_TAG = "root@pam", "pve-ha-lrm"


class HaApi(MigrationApi):
    """Resources, rules (PVE 9), groups (PVE 8), the manager's status, maintenance, and `hamigrate`."""

    def apply(self, spec: Any) -> None:
        self.services: dict[str, dict[str, Any]] = {}
        self.ha_nodes: dict[str, str] = {}
        self.ha_requests: dict[str, dict[str, int]] = {}
        self.ha_used = bool(spec.ha.resources)
        super().apply(spec)
        for sid, values in list(spec.ha.resources.items()):
            guest = self.guest_of(sid)
            if guest is not None:
                self.put_under_ha(guest, values.get("state", "started"))

    def _routes_ha(self) -> list[tuple[str, str, Any]]:
        return [
            ("GET", "/cluster/ha/resources", self._ha_resources),
            ("GET", "/cluster/ha/rules", self._ha_rules),
            ("GET", "/cluster/ha/groups", self._ha_groups),
            ("GET", "/cluster/ha/status/manager_status", self._ha_manager_status),
            ("GET", "/cluster/ha/status/current", self._ha_current),
        ]

    # ---- what is managed

    def guest_of(self, sid: str) -> Any:
        """The guest of vm:101 or ct:101, or None."""
        number = sid.partition(":")[2]
        return self.guest(int(number)) if number.isdigit() else None

    def put_guest(self, spec: Any) -> Any:
        guest = super().put_guest(spec)
        self.put_under_ha(guest, spec.ha)
        return guest

    def put_under_ha(self, guest: Any, state: str | None) -> None:
        """Make a guest an HA resource in that state; None: it is none. `ignored`: it is listed, and HA keeps its hands off."""
        sid = self.spec_of(guest).sid
        guest.ha_state = None if state == "ignored" else state
        self.ha_used = self.ha_used or state is not None
        if state == "ignored":
            self.spec.ha.resources[sid] = self.spec.ha.resources.get(sid, {}) | {"state": state}

    def is_ha_managed(self, guest: Any) -> bool:
        return guest.ha_state is not None

    def managed(self) -> list[Any]:
        """The guests under the HA manager, by their sid."""
        return sorted((guest for guest in self.guests() if guest.ha_state), key=lambda guest: self.spec_of(guest).sid)

    def service(self, guest: Any) -> dict[str, Any]:
        """The CRM's entry for a guest, made when there is none."""
        sid = self.spec_of(guest).sid
        entry = self.services.setdefault(sid, {"state": guest.ha_state, "uid": f"uid-{guest.vmid}", "running": 1, "node": guest.node})
        if entry["state"] not in ("migrate", "relocate"):
            entry |= {"node": guest.node, "running": int(guest.status == "running")}
            entry["state"] = guest.ha_state if entry["state"] not in ("error", "fence", "recovery", "freeze") else entry["state"]
        return entry

    def guest_ha_state(self, guest: Any) -> str | None:
        """As PVE shows it among the resources: the CRM's state of the service."""
        return str(self.service(guest)["state"]) if guest.ha_state else None

    def node_ha_state(self, name: str) -> str | None:
        if not self.ha_used:
            return None
        return self.ha_nodes.get(name, "online" if self.is_online(name) else "unknown")

    # ---- rules

    def affinity_group(self, guest: Any, kind: str) -> set[str]:
        """The other resources that a positive or negative resource-affinity rule binds to this guest."""
        sid = self.spec_of(guest).sid
        found: set[str] = set()
        for rule in self.spec.ha.rules:
            members = _words(rule.get("resources"))
            if rule.get("type") == "resource-affinity" and rule.get("affinity") == kind and sid in members and not rule.get("disable"):
                found.update(members)
        return found - {sid}

    def ha_partners(self, guest: Any) -> list[str]:
        return sorted(self.affinity_group(guest, "positive")) if guest.ha_state else []

    def ha_blocking(self, guest: Any, node: str) -> list[dict[str, str]]:
        """Resource affinity alone: against a node-affinity rule PVE says nothing here."""
        if not guest.ha_state:
            return []
        others = [(sid, self.guest_of(sid)) for sid in sorted(self.affinity_group(guest, "negative"))]
        return [{"sid": sid, "cause": "resource-affinity"} for sid, other in others if other is not None and other.node == node]

    def strict_nodes(self, guest: Any) -> set[str]:
        """The nodes a strict rule or a restricted group leaves to a guest; all of them where there is none."""
        sid = self.spec_of(guest).sid
        nodes = set(self.nodes)
        for rule in self.spec.ha.rules:
            if (
                rule.get("type") == "node-affinity"
                and rule.get("strict")
                and not rule.get("disable")
                and sid in _words(rule.get("resources"))
            ):
                nodes &= {word.partition(":")[0] for word in _words(rule.get("nodes"))}
        group = self.spec.ha.resources.get(sid, {}).get("group")
        for entry in self.spec.ha.groups:
            if entry.get("group") == group and entry.get("restricted"):
                nodes &= {word.partition(":")[0] for word in _words(entry.get("nodes"))}
        return nodes

    def preferred_node(self, guest: Any) -> str | None:
        """Where the CRM brings a guest back to by itself; None when it leaves it where it is.

        Off a node that a strict rule forbids, and, unless failback is switched off, to a node of a higher priority.
        """
        sid = self.spec_of(guest).sid
        resource = self.spec.ha.resources.get(sid, {})
        rules = [rule for rule in self.spec.ha.rules if rule.get("type") == "node-affinity" and not rule.get("disable")]
        rules = [rule for rule in rules if sid in _words(rule.get("resources"))]
        groups = [entry for entry in self.spec.ha.groups if entry.get("group") == resource.get("group")]
        rules += [entry | {"strict": entry.get("restricted")} for entry in groups]
        if not rules:
            return None
        named = (word.partition(":") for word in _words(rules[0].get("nodes")))
        priority_of = {name: int(priority or 0) for name, _, priority in named if self.node_ha_state(name) == "online"}
        best = sorted(name for name, priority in priority_of.items() if priority == max(priority_of.values()))
        stays = guest.node in best or (
            (guest.node in priority_of or not rules[0].get("strict")) and not self._fails_back(resource, rules[0])
        )
        return None if stays or not best else best[0]

    @staticmethod
    def _fails_back(resource: dict[str, Any], rule: dict[str, Any]) -> bool:
        return bool(resource.get("failback", 1)) and not rule.get("nofailback")

    # ---- migration through the manager

    async def request_ha_migration(self, guest: Any, target: str, user: str) -> str:
        """The guest's migrate call: its task only queues the request, and ends OK whatever comes of it."""
        name = "VM" if self.spec_of(guest).type == "qemu" else "CT"

        async def body() -> None:
            sid = self.spec_of(guest).sid
            if self.service(guest)["state"] == "error":
                raise TaskError(f"service '{sid}' in error state, must be disabled and fixed first")
            self.event("ha-request", sid=sid, target=target)
            if self.spec.ha.acts:
                self.spawn(self._crm_migrate(guest, target))

        log = [f"Requesting HA migration for {name} {guest.vmid} to node {target}"]
        return await self.task(guest.node, "hamigrate", guest.vmid, user, body, log=log, background=True)

    async def _crm_migrate(self, guest: Any, target: str) -> None:
        """The CRM's next round: take the command or drop it with a line in its own syslog."""
        await asyncio.sleep(self.spec.ha.delay_s)
        sid = self.spec_of(guest).sid
        state = self.service(guest)["state"]
        why_not = None
        if sid in self.spec.ha.reject:
            why_not = "rejected"
        elif not self.is_online(target) or self.ha_nodes.get(target, "online") != "online":
            why_not = f"node '{target}' not online"
        elif state not in ("started", "stopped"):
            why_not = f"service '{sid}' in {state} state"
        elif self.ha_blocking(guest, target):
            why_not = f"negative affinity with {self.ha_blocking(guest, target)[0]['sid']}"
        if why_not:
            self.event("ha-reject", sid=sid, target=target, detail=why_not)
            return
        movers = [guest, *(self.guest_of(partner) for partner in self.ha_partners(guest))]
        await asyncio.gather(*(self._lrm_migrate(mover, target) for mover in movers if mover is not None and mover.node != target))
        for mover in movers:
            back = self.preferred_node(mover) if mover is not None else None
            if back is not None:
                await asyncio.sleep(self.spec.ha.delay_s)
                await self._lrm_migrate(mover, back)

    async def _lrm_migrate(self, guest: Any, target: str) -> None:
        """The source's LRM moves the guest, as root@pam and with parameters of its own: a running container is shut down, moved, and
        started again by its new node's LRM."""
        entry = self.service(guest)
        relocate = self.spec_of(guest).type == "lxc" or guest.status != "running"
        entry |= {"state": "relocate" if relocate else "migrate", "target": target}
        await asyncio.sleep(self.spec.ha.delay_s)
        must_run = guest.status == "running"
        if must_run and self.spec_of(guest).type == "lxc":
            await self._ended(
                await self.task(
                    guest.node, "vzshutdown", guest.vmid, HA_USER, self._shut_down(guest), vm=guest, background=True, tag=HA_TAG
                )
            )
        await self._ended(await self.migrate_guest(guest, target, HA_USER, with_local_disks=True, tag=HA_TAG))
        await asyncio.sleep(self.spec.ha.delay_s)
        entry.pop("target", None)
        entry |= {"state": guest.ha_state or "started", "node": guest.node}
        if must_run and guest.status != "running" and self.is_online(guest.node):
            await asyncio.sleep(self.spec.ha.delay_s)
            _, record = self.open_task(guest.node, "vzstart", guest.vmid, HA_USER, tag=HA_TAG)
            self.start_process(guest)
            self.close_task(record, "OK", tag=HA_TAG)
        self.event("ha-done", sid=self.spec_of(guest).sid, node=guest.node, target=target)

    def _shut_down(self, guest: Any) -> Callable[[], Awaitable[None]]:
        async def body() -> None:
            await self._ct_powerdown(guest, LXC_STOP_S, False)
            self.event("guest-stop", vmid=guest.vmid, node=guest.node)

        return body

    async def _ended(self, upid: str) -> None:
        """Wait until the task is over, however it went."""
        worker = self.workers.get(upid)
        if worker is not None:
            await asyncio.wait([worker])

    # ---- maintenance

    async def maintain(self, node: str, wanted: bool) -> None:
        """`ha-manager crm-command node-maintenance enable|disable`: the request now, the state and the moves later."""
        self.ha_used = True
        if wanted:
            self.ha_requests[node] = {"maintenance": 1}
        else:
            self.ha_requests.pop(node, None)
        if self.spec.ha.acts:
            self.spawn(self._maintenance_round(node, wanted))

    async def _maintenance_round(self, node: str, wanted: bool) -> None:
        await asyncio.sleep(self.spec.ha.delay_s)
        if wanted:
            self.ha_nodes[node] = "maintenance"
        else:
            self.ha_nodes.pop(node, None)
        self.event("ha-node", node=node, state=self.ha_nodes.get(node, "online"))
        if wanted:
            leaving = [guest for guest in self.managed() if guest.node == node]
        else:
            leaving = [guest for guest in self.managed() if self.service(guest).get("maintenance_node") == node]
        moves = []
        for number, guest in enumerate(leaving):
            targets = [name for name in sorted(self.strict_nodes(guest)) if name != node and self.node_ha_state(name) == "online"]
            if wanted and targets:
                self.service(guest)["maintenance_node"] = node
                moves.append(self._lrm_migrate(guest, targets[number % len(targets)]))
            elif not wanted:
                self.service(guest).pop("maintenance_node")
                moves.append(self._lrm_migrate(guest, node))
        await asyncio.gather(*moves)

    # ---- what can be read

    async def _ha_resources(self, values: dict[str, Any], _user: str) -> list[dict[str, Any]]:
        rows = []
        for guest in self.managed():
            sid = self.spec_of(guest).sid
            row = {"sid": sid, "type": sid[:2], "state": guest.ha_state, "max_restart": 1, "max_relocate": 1, "digest": "0" * 40}
            row |= {"failback": 1} if self.major(next(iter(self.nodes))) >= 9 else {}
            rows.append(
                row | {key: value for key, value in self.spec.ha.resources.get(sid, {}).items() if key != "group" or self.has_groups()}
            )
        shown = {row["sid"] for row in rows}
        for sid, given in sorted(self.spec.ha.resources.items()):
            if sid not in shown:  # ignored ones, and those whose guest is gone
                rows.append({"sid": sid, "type": sid[:2], "state": "started"} | given)
        return [row for row in rows if values.get("type") in (None, row["type"])]

    async def _ha_rules(self, values: dict[str, Any], _user: str) -> list[dict[str, Any]]:
        rows = [rule for rule in (*self.spec.ha.rules, *self._rules_of_groups()) if values.get("type") in (None, rule.get("type"))]
        rows = [rule for rule in rows if values.get("resource") in (None, *_words(rule.get("resources")))]
        return [{"digest": "0" * 40, "order": number} | rule for number, rule in enumerate(rows, 1)]

    def has_groups(self) -> bool:
        """False once all nodes are a 9 and the groups are rules; one that is still there has not been migrated yet."""
        return bool(self.spec.ha.groups) or any(self.major(node) < 9 for node in self.nodes)

    def _rules_of_groups(self) -> list[dict[str, Any]]:
        """PVE 9 shows groups that have not been migrated as the rules they will be."""
        rows = []
        for group in self.spec.ha.groups:
            name = group["group"]
            members = sorted(sid for sid, values in self.spec.ha.resources.items() if values.get("group") == name)
            row = {"rule": f"ha-group-{name}", "type": "node-affinity", "resources": ",".join(members), "nodes": group["nodes"]}
            if members:
                rows.append(row | ({"strict": group["restricted"]} if "restricted" in group else {}))
        return rows

    async def _ha_groups(self, _values: dict[str, Any], _user: str) -> list[dict[str, Any]]:
        if not self.has_groups():
            raise PveError(500, "cannot index groups: ha groups have been migrated to rules")
        return [{"type": "group", "digest": "0" * 40} | group for group in self.spec.ha.groups]

    def manager_status(self) -> dict[str, Any]:
        """/etc/pve/ha/manager_status; empty where HA was never used."""
        if not self.ha_used:
            return {}
        return {
            "master_node": self.master(),
            "timestamp": int(time.time()),
            "node_status": {name: self.node_ha_state(name) for name in self.nodes},
            "node_request": dict(self.ha_requests),
            "service_status": {self.spec_of(guest).sid: dict(self.service(guest)) for guest in self.managed()},
        }

    def master(self) -> str:
        """The node whose CRM leads."""
        return self.spec.ha.master or next((name for name in self.nodes if self.is_online(name)), next(iter(self.nodes)))

    async def _ha_manager_status(self, _values: dict[str, Any], _user: str) -> dict[str, Any]:
        status = self.manager_status()
        answer: dict[str, Any] = {"manager_status": status, "quorum": {"node": self.master(), "quorate": str(int(self.quorate))}}
        if status:
            answer["lrm_status"] = {name: self._lrm(name, state) for name, state in status["node_status"].items()}
        return answer

    def _lrm(self, name: str, state: str) -> dict[str, Any]:
        busy = any(guest.node == name for guest in self.managed())
        maintained = state == "maintenance"
        now = "maintenance" if maintained else "active" if busy else "wait_for_agent_lock"
        return {"mode": "maintenance" if maintained else "active", "state": now, "timestamp": int(time.time()), "results": {}}

    async def _ha_current(self, _values: dict[str, Any], _user: str) -> list[dict[str, Any]]:
        when = time.strftime("%a %b %e %H:%M:%S %Y")
        quorate = {
            "id": "quorum",
            "type": "quorum",
            "node": self.master(),
            "status": "OK" if self.quorate else "No quorum!",
            "quorate": int(self.quorate),
        }
        status = self.manager_status()
        if not status:
            return [quorate]
        rows = [quorate, {"id": "master", "type": "master", "node": self.master(), "status": f"{self.master()} (active, {when})"}]
        for name, state in status["node_status"].items():
            text = "maintenance mode" if state == "maintenance" else "active" if state == "online" else "old timestamp - dead?"
            rows.append({"id": f"lrm:{name}", "type": "lrm", "node": name, "status": f"{name} ({text}, {when})"})
        for sid, entry in status["service_status"].items():
            row = {
                "id": f"service:{sid}",
                "type": "service",
                "sid": sid,
                "node": entry["node"],
                "state": entry["state"],
                "crm_state": entry["state"],
            }
            rows.append(row | {"status": f"{sid} ({entry['node']}, {entry['state']})", "request_state": self.guest_of(sid).ha_state})
        return rows


def _words(text: Any) -> list[str]:
    return [word for word in str(text or "").replace(";", ",").replace(" ", ",").split(",") if word]

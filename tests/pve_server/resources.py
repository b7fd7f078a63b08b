# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be read: the cluster's resources and nodes, their status and versions, configuration of the datacenter."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web
from fakepve import shapes
from fakepve.model import PveError
from fakepve.server import USER, ok, params

from tests.pve_server.load import Load

RRD_ROWS = 70  # PVE gives an hour as 70 rows of a minute
STORAGE_PRIVS = ("Datastore.Audit", "Datastore.AllocateSpace", "Datastore.Allocate")


class ResourcesApi(Load):
    """The reading endpoints whose answers fakepve makes up or keeps constant."""

    def apply(self, spec: Any) -> None:
        self.row_edits: dict[str, dict[str, Any]] = {}
        super().apply(spec)

    def _routes_resources(self) -> list[tuple[str, str, Any]]:
        node = "/nodes/{node}"
        return [
            ("GET", "/cluster/options", self._options),
            ("GET", "/cluster/replication", self._replication),
            ("GET", node + "/status", self._node_status),
            ("GET", node + "/version", self._node_version),
            ("GET", node + "/network", self._node_network),
            ("GET", node + "/rrddata", self._node_rrd),
            ("GET", node + "/qemu/{vmid}/rrddata", self._guest_rrd),
            ("GET", node + "/lxc/{vmid}/rrddata", self._guest_rrd),
        ]

    # ---- rows, and the odd ways they can look

    def dress(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row as a test wants it: keys changed, null or missing, numbers as strings."""
        if not self.row_edits and not self.spec.numbers_as_strings:
            return row
        edit = self.row_edits.get(str(row.get("id"))) or {}
        row = {key: value for key, value in (row | edit.get("set", {})).items() if key not in edit.get("drop", ())}
        if self.spec.numbers_as_strings:
            row = {key: str(value) if isinstance(value, (int, float)) else value for key, value in row.items()}
        return row

    def _guest_row(self, guest: Any) -> dict[str, Any]:
        spec = self.spec_of(guest)
        row: dict[str, Any] = {"id": f"{spec.type}/{guest.vmid}", "type": spec.type, "vmid": guest.vmid, "node": guest.node}
        row["template"] = 1 if guest.template else 0
        numbers = self.shown_guest(guest)
        if numbers is None:
            row["status"] = "unknown"
        else:
            row |= numbers | {"name": guest.name}
        tags = guest.config.get("tags")
        extra = {"lock": guest.lock, "pool": guest.pool, "tags": tags, "hastate": self.guest_ha_state(guest)}
        return row | {key: value for key, value in extra.items() if value}

    def _node_row(self, name: str, numbers: dict[str, Any] | None) -> dict[str, Any]:
        row: dict[str, Any] = {"id": f"node/{name}", "node": name, "type": "node", "level": ""}
        row["status"] = "online" if self.is_online(name) else "offline"
        return row | (numbers or {})

    def guest_ha_state(self, guest: Any) -> str | None:
        """What the HA manager does with a guest; None where it is not managed."""
        return str(guest.ha_state) if guest.ha_state else None

    def node_ha_state(self, _name: str) -> str | None:
        """What the HA manager says of a node; None where it is not in use."""
        return None

    async def _resources(self, request: web.Request) -> web.Response:
        kind, user = self._verify(request, await params(request)).get("type"), request[USER]
        rows = []
        if kind in (None, "vm"):
            rows += [self._guest_row(guest) for guest in self.guests() if self.allowed(user, f"/vms/{guest.vmid}", "VM.Audit")]
        if kind in (None, "node"):
            shown = self.shown_nodes()
            for name in sorted(self.nodes):
                audit = self.allowed(user, f"/nodes/{name}", "Sys.Audit")
                row = self._node_row(name, shown.get(name) if audit else None)
                state = self.node_ha_state(name) if self.major(self.local_node(request)) >= 9 else None
                rows.append(row | ({"hastate": state} if state else {}) | ({"cgroup-mode": 2} if self.is_online(name) else {}))
        if kind in (None, "storage"):
            for node in sorted(self.nodes):
                for name in self.storages:
                    storage = self._storage_resource(node, name)
                    if storage and any(self.allowed(user, f"/storage/{name}", priv) for priv in STORAGE_PRIVS):
                        rows.append(storage)
        return ok([self.dress(row) for row in rows])

    def _storage_resource(self, node: str, name: str) -> dict[str, Any] | None:
        row = super()._storage_resource(node, name)
        spec = self.spec.storages.get(name)
        if row is None or spec is None:
            return row
        here = spec.per_node.get(node, {})
        row |= {"maxdisk": here.get("total_bytes", spec.total_bytes), "disk": here.get("used_bytes", spec.used_bytes)}
        if not self.is_online(node) or not spec.active:
            row["status"] = "unknown"
            row.pop("disk"), row.pop("maxdisk")
        return row

    async def _nodes(self, request: web.Request) -> web.Response:
        shown = self.shown_nodes()
        rows = []
        for name in sorted(self.nodes):
            audit = self.allowed(request[USER], f"/nodes/{name}", "Sys.Audit")
            row = self._node_row(name, shown.get(name) if audit else None)
            rows.append(self.dress(row | {"ssl_fingerprint": shapes.FINGERPRINT}))
        return ok(rows)

    async def _cluster_status(self, request: web.Request) -> web.Response:
        cluster = {"type": "cluster", "id": "cluster", "name": self.cluster_name, "nodes": len(self.nodes), "version": len(self.nodes)}
        rows: list[dict[str, Any]] = [cluster | {"quorate": int(self.quorate)}]
        local = self.local_node(request)
        for number, name in enumerate(self.nodes, 1):
            row = {"type": "node", "id": f"node/{name}", "name": name, "nodeid": number, "level": "", "online": int(self.is_online(name))}
            rows.append(row | {"ip": self.node_ip(name), "local": int(name == local)})
        return ok(rows)

    async def _version(self, request: web.Request) -> web.Response:
        return ok(self._version_of(self.local_node(request)))

    # ---- one node

    def _version_of(self, node: str) -> dict[str, str]:
        version = str(self.spec.nodes[node].version)
        return {"version": version, "release": ".".join(version.split(".")[:2]), "repoid": "0123456789abcdef"}

    async def _node_version(self, values: dict[str, Any], _user: str) -> dict[str, str]:
        return self._version_of(values["node"])

    async def _node_status(self, values: dict[str, Any], _user: str) -> dict[str, Any]:
        """Live, not from the status cache."""
        name = values["node"]
        spec, now = self.spec.nodes[name], self.node_numbers(name)
        total, used = now["maxmem"], now["mem"]
        memory = {"total": total, "used": used, "free": total - used}
        kernel = "6.14.11-1-pve" if self.major(name) >= 9 else "6.8.12-1-pve"
        swap = {"total": 8 * 1024**3, "used": 0, "free": 8 * 1024**3}
        load = now["cpu"] * spec.cores
        return {
            "cpu": now["cpu"],
            "wait": 0,
            "idle": 0,
            "uptime": now["uptime"],
            "memory": memory | ({"available": total - used} if self.major(name) >= 9 else {}),
            "ksm": {"shared": 0},
            "swap": swap,
            "rootfs": {
                "total": now["maxdisk"],
                "used": now["disk"],
                "free": now["maxdisk"] - now["disk"],
                "avail": now["maxdisk"] - now["disk"],
            },
            "loadavg": [f"{load:.2f}"] * 3,
            "cpuinfo": {
                "cpus": spec.cores,
                "cores": max(spec.cores // spec.sockets, 1),
                "sockets": spec.sockets,
                "model": spec.cpu_model,
                "flags": spec.cpu_flags,
                "hvm": "1",
                "mhz": "2000.000",
                "user_hz": 100,
            },
            "kversion": f"Linux {kernel} #1 SMP PREEMPT_DYNAMIC",
            "current-kernel": {"sysname": "Linux", "release": kernel, "version": "#1 SMP PREEMPT_DYNAMIC", "machine": "x86_64"},
            "pveversion": f"pve-manager/{spec.version}/0123456789abcdef",
            "boot-info": {"mode": "efi", "secureboot": 0},
        }

    async def _node_network(self, values: dict[str, Any], _user: str) -> list[dict[str, Any]]:
        bridges = (
            self.spec.nodes[values["node"]].bridges if values.get("type") in (None, "bridge", "any_bridge", "any_local_bridge") else []
        )
        return [{"iface": name, "type": "bridge", "active": 1, "autostart": 1, "method": "manual", "priority": 3} for name in bridges]

    # ---- rrd, from the present numbers; the last row is not complete yet

    def _rrd(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        now = int(time.time()) // 60 * 60
        return [{"time": now - 60 * back} | (row if back else {}) for back in range(RRD_ROWS - 1, -1, -1)]

    async def _node_rrd(self, values: dict[str, Any], _user: str) -> list[dict[str, Any]]:
        name = values["node"]
        now, spec = self.node_numbers(name), self.spec.nodes[name]
        row = {
            "cpu": now["cpu"],
            "maxcpu": now["maxcpu"],
            "memtotal": now["maxmem"],
            "memused": now["mem"],
            "iowait": 0,
            "loadavg": now["cpu"],
        }
        if self.major(name) >= 9:
            row |= {"memavailable": now["maxmem"] - now["mem"], "arcsize": 0}
            keys = ("cpusome", "iosome", "iofull", "memorysome", "memoryfull")
            row |= {f"pressure{key}": spec.pressure.get(key, 0) for key in keys}
        return self._rrd(row)

    async def _guest_rrd(self, values: dict[str, Any], _user: str) -> list[dict[str, Any]]:
        guest = self.guest(int(values["vmid"]))
        if guest is None or guest.node != values["node"]:
            raise PveError(500, f"Configuration file 'nodes/{values['node']}/{values['vmid']}.conf' does not exist")
        row = {key: value for key, value in self.guest_numbers(guest).items() if key not in ("status", "uptime")}
        pressure = {key: float(value) for key, value in self.guest_pressure(guest).items()}
        return self._rrd(row | pressure if guest.status == "running" else {})

    # ---- fakepve's lists and status of guests, with our numbers

    def _vm_usage(self, vm: Any) -> dict[str, Any]:
        return {"memhost": None} | {key: value for key, value in self.guest_numbers(vm).items() if key != "status"}

    def _vm_status(self, vm: Any, listing: bool = False) -> dict[str, Any]:
        row: dict[str, Any] = super()._vm_status(vm, listing)
        row = {key: value for key, value in row.items() if not key.startswith("pressure")} | self.guest_pressure(vm)
        if "running-qemu" in row:
            row["running-qemu"] = self.spec.nodes[vm.node].qemu_version
        return row

    def _status(self, ct: Any) -> dict[str, Any]:
        row: dict[str, Any] = super()._status(ct)
        numbers = self.guest_numbers(ct)
        row = {key: value for key, value in row.items() if not key.startswith("pressure")} | self.guest_pressure(ct)
        return row | {key: value for key, value in numbers.items() if key != "maxcpu"} | {"cpus": numbers["maxcpu"]}

    # ---- the datacenter

    async def _options(self, _values: dict[str, Any], _user: str) -> dict[str, Any]:
        return {"keyboard": "en-us", "mac_prefix": "BC:24:11"} | self.spec.options

    async def _replication(self, _values: dict[str, Any], user: str) -> list[dict[str, Any]]:
        rows = []
        for guest in self.guests():
            if self.allowed(user, f"/vms/{guest.vmid}", "VM.Audit"):
                for number, target in enumerate(self.spec_of(guest).replication):
                    job = {"id": f"{guest.vmid}-{number}", "guest": guest.vmid, "jobnum": number, "type": "local"}
                    rows.append(job | {"target": target, "source": guest.node})
        return rows

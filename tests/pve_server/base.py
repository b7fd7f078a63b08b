# SPDX-License-Identifier: GPL-3.0-or-later
"""What every part of the played cluster rests on: its state, look-ups by VMID, and the event list."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Any, Protocol

from aiohttp import web
from fakepve import FakePve
from fakepve.model import FakeVm, PveError

from tests.pve_server.state import ClusterSpec, GuestSpec, NodeSpec, StateError

MAX_EVENTS = 20000


class Guest(Protocol):
    """What fakepve's VMs and containers have in common."""

    vmid: int
    name: str
    node: str
    status: str
    config: dict[str, Any]
    lock: str | None
    template: bool
    started_at: float | None
    ha_state: str | None


class IndexedGuests(list):
    """A list of guests that also finds one by VMID without looking at all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.by_vmid: dict[int, Any] = {}

    def append(self, guest: Any) -> None:
        super().append(guest)
        self.by_vmid[guest.vmid] = guest

    def remove(self, guest: Any) -> None:
        super().remove(guest)
        self.by_vmid.pop(guest.vmid, None)


class Base(FakePve):
    """fakepve with a state file, events, and nodes and guests that know their load."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.running: set[asyncio.Task[Any]] = set()
        self.listener_nodes: dict[tuple[str, int], str] = {}
        self.generation = 0
        self.apply(spec)

    # ---- state

    def apply(self, spec: ClusterSpec) -> None:
        """Become the cluster of the given state. What still runs is to be ended before: `end_running`."""
        self.generation += 1
        runner = getattr(self, "runner", None)
        super().__init__(host="127.0.0.1", port=0)
        self.runner = runner
        self.vms = IndexedGuests()
        self.cts = IndexedGuests()
        self.spec = spec
        self.guest_specs: dict[int, GuestSpec] = {}
        self.hidden: dict[int, set[str]] = {}
        self.dead_since: dict[str, float] = {}
        self.node_started: dict[str, float] = {}
        self.events: list[dict[str, Any]] = []
        self.first_event = 1
        self.event_came = asyncio.Event()
        self.time_scale = spec.time_scale
        self.quorate = spec.quorate
        self.ha_delay = spec.ha.delay_s / (spec.time_scale or 1)
        self.storages = {name: self._storage_entry(item) for name, item in spec.storages.items()}
        self.nodes = {}
        for name, node in spec.nodes.items():
            self.nodes[name] = {"online": node.online}
            self.node_started[name] = time.time() - node.uptime_s
            if not node.online:
                self.dead_since[name] = float("-inf")
        for guest in spec.guests:
            self.put_guest(guest)
        self._sync_pools()
        self.apitokens = dict(spec.tokens)
        self.users = dict(spec.users)
        if spec.acl is not None:
            self.acl = {}
            for line in spec.acl:
                self.grant(line["user"], line["path"], *line["privs"])
        newest = max((node.version or "" for node in spec.nodes.values()), key=version_key)
        self.version, self.release_version = newest, ".".join(newest.split(".")[:2])

    @staticmethod
    def _storage_entry(item: Any) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": item.type, "content": item.content, "active": 1 if item.active else 0, "files": set()}
        entry |= {"total": item.total_bytes, "avail": max(item.total_bytes - item.used_bytes, 0)}
        entry |= {"shared": 1} if item.shared else {}
        return entry | ({"nodes": ",".join(item.nodes)} if item.nodes else {})

    def put_guest(self, spec: GuestSpec) -> Any:
        """Add a guest as its spec says; returns fakepve's VM or container."""
        if self.guest(spec.vmid) is not None:
            raise StateError(f"guest {spec.vmid} is there twice")
        if spec.node not in self.nodes:
            raise StateError(f"guest {spec.vmid}: no node {spec.node!r}")
        config = {"memory": spec.maxmem_bytes // 1024**2, "cores": int(spec.maxcpu)} | spec.config
        if spec.tags:
            config["tags"] = spec.tags
        if spec.lock:
            config["lock"] = spec.lock
        running = spec.status != "stopped"
        status = "running" if running else "stopped"
        if spec.type == "qemu":
            guest = self.add_vm(
                spec.vmid,
                spec.name,
                node=spec.node,
                status=status,
                qmpstatus=spec.status,
                config=config,
                template=spec.template,
                lock=spec.lock,
            )
        else:
            storage = max(self.spec.storages, key=lambda name: self.spec.storages[name].shared, default="local-lvm")
            config = {"rootfs": f"{storage}:vm-{spec.vmid}-disk-0,size=8G"} | config
            guest = self.add_ct(spec.vmid, spec.name, node=spec.node, status=status, config=config, template=spec.template)
        guest.ha_state = spec.ha
        guest.started_at = time.time() - spec.uptime_s if running else None
        if spec.pool:
            self.pools.setdefault(spec.pool, set()).add(spec.vmid)
            self._pool_meta(spec.pool)
            guest.pool = spec.pool
        self.guest_specs[spec.vmid] = spec
        return guest

    def remove_guest(self, vmid: int) -> None:
        """Take a guest out of the cluster, at once and without a task."""
        guest = self.need_guest(vmid)
        (self.vms if self.vm(vmid) is not None else self.cts).remove(guest)
        self._pool_leave(vmid)
        self.guest_specs.pop(vmid, None)

    async def end_running(self) -> None:
        """Cancel everything that runs in the background, and wait until it has ended."""
        ending = list(self.running)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run a coroutine in the background until it ends or the state is replaced."""
        task = asyncio.ensure_future(coroutine)
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return task

    # ---- look-ups

    def vm(self, vmid: int) -> Any:
        return self.vms.by_vmid.get(vmid)

    def ct(self, vmid: int) -> Any:
        return self.cts.by_vmid.get(vmid)

    def guests(self) -> list[Any]:
        """Every VM and container."""
        return [*self.vms, *self.cts]

    def need_guest(self, vmid: int) -> Any:
        guest = self.guest(vmid)
        if guest is None:
            raise StateError(f"no guest {vmid}")
        return guest

    def need_node(self, name: str) -> NodeSpec:
        if name not in self.spec.nodes:
            raise StateError(f"no node {name!r}")
        return self.spec.nodes[name]

    def spec_of(self, guest: Any) -> GuestSpec:
        """The guest's spec; one made from its configuration if it was created through the API."""
        found = self.guest_specs.get(guest.vmid)
        if found is None:
            memory = int(str(guest.config.get("memory", 512)).split("=")[-1]) * 1024**2
            cores = int(guest.config.get("cores") or 1) * int(guest.config.get("sockets") or 1)
            kind = "qemu" if isinstance(guest, FakeVm) else "lxc"
            found = GuestSpec(guest.vmid, guest.node, type=kind, name=guest.name, maxcpu=cores, maxmem_bytes=memory)
            self.guest_specs[guest.vmid] = found
        return found

    def is_online(self, node: str) -> bool:
        return bool(self.nodes.get(node, {}).get("online", True))

    def major(self, node: str) -> int:
        """The PVE release a node runs: 8 or 9."""
        return version_key(self.spec.nodes[node].version or "9")[0]

    def node_ip(self, node: str) -> str:
        """The node's address in the cluster."""
        return self.spec.nodes[node].ip or f"192.0.2.{11 + list(self.spec.nodes).index(node)}"

    def local_node(self, request: web.Request) -> str:
        """The node whose API server answers this request."""
        transport = request.transport
        address = transport.get_extra_info("sockname") if transport is not None else None
        return self.listener_nodes.get(tuple(address[:2]) if address else ("", 0), next(iter(self.nodes)))

    def allowed(self, user: str, path: str, priv: str) -> bool:
        if self.hidden and path.startswith("/vms/") and user in self.hidden.get(int(path.split("/")[2]), ()):
            return False
        if user not in self.spec.privsep or self.acl is None:
            return bool(super().allowed(user, path, priv))
        owner = user.partition("!")[0]
        return self._granted(user, path, priv) and (owner == "root@pam" or self._granted(owner, path, priv))

    def _granted(self, name: str, path: str, priv: str) -> bool:
        """One line of the ACL gives it to exactly this user or token, on the path or above it."""
        lines = [at for at, privs in (self.acl or {}).get(name, []) if priv in privs]
        if not lines or "/" in lines:
            return bool(lines)
        paths = [path]
        if path.startswith("/vms/"):
            paths += [f"/pool/{pool}" for pool, vmids in self.pools.items() if int(path.split("/")[2]) in vmids]
        return any(here == at or here.startswith(f"{at}/") for at in lines for here in paths)

    async def _permissions(self, v: dict[str, Any], user: str) -> dict[str, dict[str, int]]:
        who = v.get("userid") or user
        held: dict[str, dict[str, int]] = await super()._permissions(v, user)
        if who not in self.spec.privsep or self.acl is None:
            return held
        kept = {path: {priv: 1 for priv in privs if self.allowed(who, path, priv)} for path, privs in held.items()}
        return {path: privs for path, privs in kept.items() if privs}

    def check_node(self, target: str) -> None:
        """PVE::Cluster::check_node_exists."""
        if target not in self.nodes:
            raise PveError(500, f"no such cluster node '{target}'")

    # ---- events

    def event(self, kind: str, **details: Any) -> None:
        """Add to the list that tests can poll."""
        self.events.append({"seq": self.first_event + len(self.events), "time": time.time(), "kind": kind, **details})
        excess = len(self.events) - MAX_EVENTS
        if excess > 0:
            del self.events[:excess]
            self.first_event += excess
        self.event_came.set()
        self.event_came = asyncio.Event()

    def events_after(self, seq: int) -> list[dict[str, Any]]:
        return self.events[max(seq + 1 - self.first_event, 0) :]


@functools.cache
def version_key(version: str) -> tuple[int, ...]:
    """A PVE version as numbers, to compare: 8.4.1 -> (8, 4, 1)."""
    return tuple(int(part) for part in version.split("-", maxsplit=1)[0].split(".") if part.isdigit())

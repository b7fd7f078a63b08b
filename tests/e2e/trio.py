# SPDX-License-Identifier: GPL-3.0-or-later
"""Several booted nodes of one played cluster: one stand-in for /etc/pve, one API, a Debian for each node."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.installed import Agent
from tests.e2e.machine import Machine
from tests.e2e.mirror import Mirror
from tests.e2e.network import Door, Network
from tests.e2e.played import Played
from tests.pmxcfs.client import Pmxcfs
from tests.pve_server.client import PveServer

SHARED = "/opt/pve"
# A container has a boot id of its own, but in Debian 12 a unit with these protections sees past it that of this machine, which stays.
OWN_BOOT_ID = "[Service]\nProtectKernelTunables=no\nProtectControlGroups=no\n"
PVE_CLUSTER = f"""
[Unit]
Description=The stand-in for the Proxmox VE cluster filesystem
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount --bind {SHARED} /etc/pve
ExecStop=/bin/umount -l /etc/pve
[Install]
WantedBy=multi-user.target
"""
SHUTDOWN_LIMIT_S = 120.0


class Member(Agent):
    """A booted node of the cluster."""

    def __init__(self, machine: Machine, door: Door) -> None:
        self.name = machine.hostname
        self.machine = machine
        self.door = door

    def prepare(self) -> None:
        """Have /etc/pve mounted, now and at every boot, and a boot that the agent's units know from the one before."""
        self.machine.put("/etc/systemd/system/pve-cluster.service", PVE_CLUSTER)
        for unit in ("proxlb-agent", "proxlb-agent-drain"):
            self.machine.put(f"/etc/systemd/system/{unit}.service.d/boot-id.conf", OWN_BOOT_ID)
        self.machine.run("mkdir -p /etc/pve; systemctl daemon-reload; systemctl enable --now pve-cluster.service")


class Trio(Played):
    """`with Trio({"pve1": bookworm, "pve2": trixie}, cluster(["pve1", "pve2", "pve3"], guests)) as trio: trio.install(deb)`.

    roots:    the nodes that boot, and each one's Debian; the other nodes of the state are played.
    pmxcfs, api, mirror: as in `Played`; both go on when a node dies or reboots.
    """

    def __init__(self, roots: Mapping[str, Path], state: Mapping[str, Any]) -> None:
        self.state = dict(state)
        self.names = list(self.state["nodes"])
        self.nodes: dict[str, Member] = {}
        self._roots = dict(roots)
        self._leave = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            booted = list(self._roots)
            self.pmxcfs = stack.enter_context(Pmxcfs(*booted, unmounted=[name for name in self.names if name not in booted]))
            self.api = stack.enter_context(PveServer(self.state, [f"{name}=127.0.0.1:0" for name in booted]))
            self.lay_out()
            for name, endpoint in zip(booted, self.api.endpoints, strict=True):
                network = stack.enter_context(Network())
                door = stack.enter_context(Door(network, endpoint.port))
                machine = Machine(self._roots[name], name, shared={self.pmxcfs.at(name): SHARED}, network=network.path)
                stack.push(machine.__exit__)
                machine.begin()
                self.nodes[name] = Member(machine, door)
            for node in self.nodes.values():
                node.machine.wait_booted()
                node.prepare()
            self.mirror = Mirror(self.api, self.pmxcfs, release=int(self.state.get("pve", "9")))
            stack.callback(self.mirror.stop)
            self.mirror.start({guest["vmid"]: guest.get("config", {}) for guest in self.state["guests"]})
            self._leave = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave.__exit__(kind, error, trace)

    def __getitem__(self, name: str) -> Member:
        return self.nodes[name]

    # -- the agents --------------------------------------------------------------------------------------------------------------

    def install(self, deb: Path, leader: str, **cluster_wide: Any) -> None:
        """Install the package on all of them, `leader` first; returns when that one has looked and the others follow.

        cluster_wide:  /etc/pve/proxlb/config.yaml.
        """
        self.settings(**cluster_wide)
        for name in self.names:
            if name not in self.nodes:
                self.report(name)
        self.release_lead()
        self[leader].machine.install(deb)
        self[leader].wait_said("took the lead: ")
        for name, node in self.nodes.items():
            if name != leader:
                node.machine.install(deb)
                node.wait_said(f"follows {leader}")

    def wait_leader(self, *names: str, within_s: float = 60.0) -> str:
        """Wait until one of these leads, and return its name."""
        until = time.monotonic() + within_s
        while (found := self.leader())["state"] != "leading" or found["node"] not in names:
            assert time.monotonic() < until, f"none of {', '.join(names)} leads after {within_s:.0f} s: {found}\n" + self.journals()
            time.sleep(0.2)
        return str(found["node"])

    def journals(self) -> str:
        """What the agents that can be asked have said."""
        return "\n".join(f"{name}: {line}" for name, node in self.nodes.items() if node.machine.pid for line in node.said())

    # -- life and death ----------------------------------------------------------------------------------------------------------

    def reboot(self, name: str) -> float:
        """`systemctl reboot` on a node; returns when it is up again, with the time that the shutdown took."""
        began = time.monotonic()
        self[name].machine.run("systemctl reboot", check=False)
        self[name].machine.wait_ended(SHUTDOWN_LIMIT_S)
        took_s = time.monotonic() - began
        self._gone(name)
        self.start(name)
        return took_s

    def kill(self, name: str) -> None:
        """End a node as a power cut does."""
        self[name].machine.crash()
        self._gone(name)

    def start(self, name: str) -> None:
        """Boot a node that had ended; whatever ran on it is stopped."""
        self.pmxcfs.mount(name)
        self.api.node_online(name, True, rebooted=True)
        self.mirror.look(numbers=True)
        self[name].machine.boot()

    def _gone(self, name: str) -> None:
        self.pmxcfs.unmount(name)
        self.api.node_online(name, False)
        self.mirror.look(numbers=True)

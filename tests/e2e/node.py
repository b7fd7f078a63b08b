# SPDX-License-Identifier: GPL-3.0-or-later
"""A node of a played cluster: a booted Debian with /etc/pve mounted and PVE's API on localhost:8006."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.machine import Done, Machine
from tests.e2e.mirror import Mirror
from tests.e2e.roots import PROJECT
from tests.pmxcfs.client import Control
from tests.pve_server.client import PYTHON, TOKEN_SECRET, Answer, PveServer

CLONE_NEWNET = 0x40000000
API_PORT = 8006
STANDIN = "/opt/standin"
SOCKET = "/run/pve-standin/control"
HOOK = "/usr/share/proxlb-agent/hookscripts/proxlb-hook"
PVE_CLUSTER = """
[Unit]
Description=The stand-in for the Proxmox VE cluster filesystem
[Service]
Type=notify
RuntimeDirectory=pve-standin
StateDirectory=pve-cluster
Environment=PYTHONDONTWRITEBYTECODE=1
ExecStart=/usr/bin/python3 {standin}/tests/pmxcfs/__main__.py --control {socket} --keep /var/lib/pve-cluster/files {nodes}
Restart=on-failure
[Install]
WantedBy=multi-user.target
"""
libc = ctypes.CDLL(None, use_errno=True)


class Api(PveServer):
    """The played API, in a machine's network: localhost:8006 there. It runs on this machine's files, in the venv made for it."""

    def __init__(self, machine: Machine, state: Mapping[str, Any], folder: Path) -> None:
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec nsenter --net=/proc/{machine.pid}/ns/net -- {PYTHON} "$@"\n')
        python.chmod(0o755)
        super().__init__(state, [f"{machine.hostname}=127.0.0.1:{API_PORT}"], folder / "pve", python)
        # A thread may be in another network than its process; what this one connects to, the machine does.
        self._inside = concurrent.futures.ThreadPoolExecutor(1, "api", _enter_network, (machine.pid,))

    def stop(self) -> None:
        super().stop()
        self._inside.shutdown()

    def api(self, *arguments: Any, **named: Any) -> Answer:
        return self._inside.submit(super().api, *arguments, **named).result()

    def events(self, since: int = 0, wait_s: float = 0.0, **details: Any) -> list[dict[str, Any]]:
        """As there; but without one long question that would keep everybody else waiting for the thread."""
        until = time.monotonic() + wait_s
        while not (found := super().events(since, **details)) and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def _call(self, method: str, path: str, document: Mapping[str, Any] | None) -> dict[str, Any]:
        return self._inside.submit(super()._call, method, path, document).result()


class Node:
    """A node that is up on entering and gone on leaving: `with Node(root("bookworm"), cluster(["pve1", "pve2"], [vm(101, "pve1")]))`.

    machine:  the booted node, the first one of the state unless `name` says another; the others are played.
    pmxcfs:   what stands in /etc/pve, steered; the service is pve-cluster.service, as in PVE.
    api:      the API as `tests.pve_server.client.PveServer`, steered.
    mirror:   what keeps the two in step.
    """

    def __init__(self, root: Path, state: Mapping[str, Any], *, name: str | None = None, lock_life_s: float = 120.0) -> None:
        self.state = dict(state)
        self.names = list(self.state["nodes"])
        self.machine = Machine(root, name or self.names[0])
        self.folder = Path()
        self.pmxcfs = Control(Path())
        self.ready_s = 0.0
        self._lock_life_s = lock_life_s
        self._leave = contextlib.ExitStack()

    def __enter__(self) -> Self:
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix="proxlb-node-"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            stack.enter_context(self.machine)
            self._mount()
            self.api = stack.enter_context(Api(self.machine, self.state, self.folder))
            self._lay_out()
            release = int(self.state.get("pve", "9"))
            self.mirror = Mirror(self.api, self.pmxcfs, release=release)
            stack.callback(self.mirror.stop)
            self.mirror.start({guest["vmid"]: guest.get("config", {}) for guest in self.state["guests"]})
            self._leave = stack.pop_all()
        self.ready_s = time.monotonic() - began
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave.__exit__(kind, error, trace)

    @property
    def name(self) -> str:
        return self.machine.hostname

    # -- what a test does --------------------------------------------------------------------------------------------------------

    def install(self, deb: Path) -> Done:
        """Install a package as a user does, with `apt-get install ./it.deb`; there is no network, so what it needs must be there."""
        self.machine.copy_in(deb, "/root")
        return self.machine.run(
            ["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", "install", f"/root/{deb.name}"], env={"DEBIAN_FRONTEND": "noninteractive"}
        )

    def settings(self, **cluster_wide: Any) -> None:
        """Write /etc/pve/proxlb/config.yaml (JSON is YAML)."""
        self.pmxcfs.put("proxlb/config.yaml", json.dumps(cluster_wide))

    def report(self, node: str, *events: Mapping[str, Any], seq: int = 0, version: str = "0.1.0") -> None:
        """Report what the agent of another node would; without, that node is no target."""
        document = {
            "schema": "proxlb-agent/inbox/1", "node": node, "incarnation": "other", "boot_id": "boot", "seq": seq,
            "written_at": time.time(), "events": list(events), "flag": None,
            "facts": {"agent_version": version, "node": {"bridges": ["vmbr0"]}},
        }  # fmt: skip
        self.pmxcfs.put(f"proxlb/inbox/{node}.json", json.dumps(document))

    def release_lead(self, epoch: int = 6) -> None:
        """Leave /etc/pve/proxlb/leader.json as a leader that stopped cleanly does, so that the next one need not wait 90 s."""
        document = {
            "schema": "proxlb-agent/leader/1", "node": self.names[-1], "incarnation": "before", "epoch": epoch, "state": "released",
            "since": time.time(), "version": "0.1.0",
        }  # fmt: skip
        self.pmxcfs.put("proxlb/leader.json", json.dumps(document))

    def set_load(self, vmid: int, cpu_cores: float | None = None, mem_bytes: int | None = None, memhost_bytes: int | None = None) -> None:
        """Let a guest use that much from now on; API and `.rrd` say so when this returns. None: unchanged."""
        self.api.set_load(vmid, cpu_cores, mem_bytes, memhost_bytes)
        self.mirror.look(numbers=True)

    def set_node_load(self, node: str, cpu_fraction: float | None = None, mem_bytes: int | None = None) -> None:
        """Let a node report that whatever its guests use; None: what they use. In API and `.rrd`."""
        self.api.node_load(node, cpu_fraction, mem_bytes)
        self.mirror.look(numbers=True)

    def log(self, node: str, msg: str, *, user: str = "root@pam", pri: int = 6, tag: str = "pvedaemon") -> None:
        """Add a line to the cluster log, in API and `.clusterlog`."""
        self.api.log(node, msg, user=user, pri=pri, tag=tag)
        self.pmxcfs.log(node, msg, user=user, pri=pri, tag=tag)

    def flag(self, node: str, reason: str = "") -> None:
        """Put a node into maintenance by the cluster's flag file."""
        self.pmxcfs.put(f"proxlb/maintenance/{node}", reason)

    def unflag(self, node: str) -> None:
        self.pmxcfs.remove(f"proxlb/maintenance/{node}")

    def start_guest(self, vmid: int, *, silent: bool = False) -> None:
        """Start a guest of this node as PVE does: hookscript, the guest itself, hookscript, and only then the task's last line."""
        with self.mirror.held():
            self.hook(vmid, "pre-start")
            self.api.start_guest(vmid, silent=silent)
            self.hook(vmid, "post-start")

    def hook(self, vmid: int, phase: str, *, check: bool = True, **env: str) -> Done:
        """Run the installed hookscript as PVE does: by its path, with pipes for output, read to their end."""
        return self.machine.run([HOOK, str(vmid), phase], env={"LC_ALL": "C"} | env, check=check)

    # -- inside ------------------------------------------------------------------------------------------------------------------

    def _mount(self) -> None:
        """Mount /etc/pve by a service of PVE's name. The stand-in's code is laid into the container, and runs by itself there."""
        self.machine.copy_in(PROJECT / "tests/pmxcfs", f"{STANDIN}/tests")
        places = [f"--node {name}" + ("=/etc/pve" if name == self.name else "") for name in self.names]
        nodes = " ".join([*places, f"--lock-life-s {self._lock_life_s}"])
        self.machine.put("/etc/systemd/system/pve-cluster.service", PVE_CLUSTER.format(standin=STANDIN, socket=SOCKET, nodes=nodes))
        self.machine.run("mkdir -p /etc/pve; systemctl daemon-reload; systemctl enable --now pve-cluster.service")
        self.pmxcfs = Control(self.machine.outside(SOCKET))

    def _lay_out(self) -> None:
        """Put into /etc/pve what a cluster has there before any agent: certificates, and the token that `setup` would make."""
        certificates = Path(self.api.ca_file).parent
        for file in [certificates / "pve-root-ca.pem", *sorted(certificates.glob("nodes/*/*"))]:
            self.pmxcfs.put(str(file.relative_to(certificates)), file.read_text())
        self.pmxcfs.put("priv/proxlb/token", TOKEN_SECRET + "\n")
        self.pmxcfs.put("storage.cfg", "dir: local\n\tpath /var/lib/vz\n\tcontent snippets,iso\n")
        self.pmxcfs.put("corosync.conf", f"totem {{\n  cluster_name: standin\n}}\n# {' '.join(self.names)}\n")


def _enter_network(pid: int) -> None:
    with open(f"/proc/{pid}/ns/net", "rb") as network:
        if libc.setns(network.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

# SPDX-License-Identifier: GPL-3.0-or-later
"""A node of a played cluster: a booted Debian with /etc/pve mounted and PVE's API on localhost:8006."""

from __future__ import annotations

import concurrent.futures
import contextlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.machine import Done, Machine
from tests.e2e.mirror import Mirror
from tests.e2e.network import API_PORT, enter_network
from tests.e2e.played import Played
from tests.e2e.roots import PROJECT
from tests.pmxcfs.client import Control
from tests.pve_server.client import PYTHON, Answer, PveServer

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


class Api(PveServer):
    """The played API, in a machine's network: localhost:8006 there. It runs on this machine's files, in the venv made for it."""

    def __init__(self, machine: Machine, state: Mapping[str, Any], folder: Path) -> None:
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec nsenter --net=/proc/{machine.pid}/ns/net -- {PYTHON} "$@"\n')
        python.chmod(0o755)
        super().__init__(state, [f"{machine.hostname}=127.0.0.1:{API_PORT}"], folder / "pve", python)
        # A thread may be in another network than its process; what this one connects to, the machine does.
        self._inside = concurrent.futures.ThreadPoolExecutor(1, "api", enter_network, (Path(f"/proc/{machine.pid}/ns/net"),))

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


class Node(Played):
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
            self.lay_out()
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

# SPDX-License-Identifier: GPL-3.0-or-later
"""Three booted nodes of one cluster: each its own Debian with the agent, one stand-in for /etc/pve with a mount each, one played API."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.installed import CLUSTER_UNIT, Agent
from tests.e2e.machine import Machine
from tests.e2e.mirror import Mirror
from tests.e2e.node import API_PORT, enter_network
from tests.e2e.played import Played
from tests.pmxcfs.client import Pmxcfs
from tests.pve_server.client import PveServer

LOCK = "proxlb-agent"
SHARED = "/mnt/pmxcfs"
PVE_CLUSTER = f"""
[Unit]
Description=The Proxmox VE cluster filesystem, mounted by the machine outside
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount --bind {SHARED} /etc/pve
ExecStop=/bin/umount --lazy /etc/pve
[Install]
WantedBy=multi-user.target
"""


class Door:
    """localhost:8006 in a machine, which leads to a port of this machine's loopback device."""

    def __init__(self, machine: Machine, port: int) -> None:
        class Passage(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as beyond:
                    other = {self.request: beyond, beyond: self.request}
                    while all(pass_on(one, other[one]) for one in select.select([*other], [], [])[0]):
                        pass

        # Where a socket is made, there it stays; the threads that serve it are this machine's.
        with ThreadPoolExecutor(1, initializer=enter_network, initargs=(machine.pid,)) as inside:
            self._server = inside.submit(_Server, ("127.0.0.1", API_PORT), Passage).result()
        threading.Thread(target=self._server.serve_forever, name=f"api-of-{machine.hostname}", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False


def pass_on(one: socket.socket, other: socket.socket) -> bool:
    """Pass on what has come; False at the end."""
    came = one.recv(65536)
    other.sendall(came)
    return bool(came)


class Member(Agent):
    """One of the nodes. It can be cut off, killed, and come back."""

    def __init__(self, name: str, root: Path, trio: Trio) -> None:
        self.name = name
        self._trio = trio
        self._door: Door | None = None
        self.machine = Machine(root, name, shared={trio.pmxcfs.at(name): SHARED})

    def lay_out(self) -> None:
        """Let /etc/pve be there from the next boot on, too, and the journal outlive it."""
        self.machine.put(CLUSTER_UNIT, PVE_CLUSTER)
        self.machine.run("mkdir -p /etc/pve /var/log/journal; journalctl --flush; systemctl enable --now pve-cluster")

    def open_door(self) -> None:
        """Let localhost:8006 be the node's API server, which it is from the boot to the end."""
        port = next(endpoint.port for endpoint in self._trio.api.endpoints if endpoint.node == self.name)
        self._door = Door(self.machine, port)

    def close_door(self) -> None:
        if self._door is not None:
            self._door.close()
            self._door = None

    def kill(self) -> None:
        """Cut its power: the machine, its part of /etc/pve, its API server and what it carries out are gone at once."""
        self.machine.crash()
        self._trio.pmxcfs.unmount(self.name)
        self.close_door()
        self._trio.api.node_online(self.name, False)

    def come_back(self) -> None:
        """Boot again from its disk; its guests stay stopped."""
        self._trio.api.node_online(self.name, True, rebooted=True)
        self._trio.pmxcfs.mount(self.name)
        self.machine.begin()
        self.machine.wait_booted()
        self.open_door()


class Trio(Played):
    """Three nodes that are up on entering and gone on leaving: `with Trio({"pve1": root("bookworm"), ...}, cluster(...)) as trio`.

    members:  by name.
    """

    pmxcfs: Pmxcfs

    def __init__(self, roots: Mapping[str, Path], state: Mapping[str, Any]) -> None:
        self.names = list(roots)
        self.members: dict[str, Member] = {}
        self._roots = roots
        self._state = dict(state)
        self._leave = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            certificates = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proxlb-trio-")))
            self.pmxcfs = stack.enter_context(Pmxcfs(*self.names))
            self.api = stack.enter_context(PveServer(self._state, [f"{name}=127.0.0.1:0" for name in self.names], certificates / "pve"))
            self.lay_out()
            self.members = {name: Member(name, root, self) for name, root in self._roots.items()}
            for member in self.members.values():
                stack.callback(member.machine.destroy)
                member.machine.begin()
            for member in self.members.values():
                member.machine.wait_booted()
                stack.callback(member.close_door)
                member.open_door()
                member.lay_out()
            self.mirror = Mirror(self.api, self.pmxcfs, membership=False)
            stack.callback(self.mirror.stop)
            self.mirror.start({guest["vmid"]: guest.get("config", {}) for guest in self._state["guests"]})
            self._leave = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave.__exit__(kind, error, trace)

    def install(self, deb: Path, *names: str) -> None:
        """Install the package on these nodes at the same time."""
        with ThreadPoolExecutor(len(names)) as at_once:
            list(at_once.map(lambda name: self.members[name].machine.install(deb), names))

    @staticmethod
    @contextlib.contextmanager
    def while_(act: Callable[[], object]) -> Iterator[None]:
        """Do it while the block runs, and wait for its end; what it raises is raised."""
        with ThreadPoolExecutor(1) as beside:
            done = beside.submit(act)
            yield
            done.result()

    def holder_at(self, at: float) -> str | None:
        """Return who held the lock then."""
        return [None, *(holder for since, holder in self.pmxcfs.lock_holders(LOCK) if since <= at)][-1]

    def wait_leader(self, *names: str, within_s: float) -> Member:
        """Wait until leader.json says that one of these leads."""
        self.api.wait_until(lambda: self.leader()["state"] == "leading" and self.leader()["node"] in names, within_s)
        return self.members[self.leader()["node"]]

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Print what the agents said if the block fails."""
        try:
            yield
        except BaseException:
            print(*self.journals(), sep="\n")
            raise

    def journals(self) -> Iterator[str]:
        """Yield what the agents said, each line with its node, by time."""
        said = [
            (int(entry["__REALTIME_TIMESTAMP"]), name, entry)
            for name, one in self.members.items()
            if one.machine.pid
            for entry in one.entries()
        ]
        for at_us, name, entry in sorted(said, key=lambda line: line[:2]):
            yield f"{at_us / 1e6 % 1000:7.3f} {name} {entry['MESSAGE']}"


def newer(deb: Path, version: str, folder: Path) -> Path:
    """Return the same package as another version, which says so of itself, too."""
    run: Sequence[Sequence[str | Path]] = [
        ["dpkg-deb", "-R", deb, folder / "unpacked"],
        ["sed", "-i", f"s/^Version: .*/Version: {version}/", folder / "unpacked/DEBIAN/control"],
        ["sed", "-i", f's/^__version__ = .*/__version__ = "{version}"/', folder / "unpacked/usr/share/proxlb-agent/agent/__init__.py"],
        ["dpkg-deb", "--root-owner-group", "-b", folder / "unpacked", folder / f"proxlb-agent_{version}_all.deb"],
    ]
    for command in run:
        subprocess.run(command, check=True, capture_output=True)
    return folder / f"proxlb-agent_{version}_all.deb"

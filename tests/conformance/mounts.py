# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster as its mounts show it, the commands that play with it, and the single system calls that tests are made of."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMANDS = ("CUT", "HEAL", "STOP", "KILL", "START", "SUSPEND", "RESUME", "CLOCK", "LOG", "STATUS")
COMMAND_WAIT_S = 120.0
ATTRIBUTES_CACHED_S = 1.1  # FUSE's default: the kernel keeps names and attributes for 1 s
AT_ONCE_S = 30.0  # what is told to all nodes in one message: milliseconds, on an idle machine
CLOCKS_APART_S = 2.0  # times are whole seconds, and those of a node may be another clock's
GUESTS = range(999999100, 999999200)
READ_BYTES = 4 << 20


@dataclass(frozen=True)
class Node:
    """A node of the cluster: its name and its number in corosync, and where this machine sees its /etc/pve."""

    name: str
    id: int
    mount: Path


@dataclass
class Cluster:
    """The nodes in the order of their numbers; decisions that one node makes for all are made by the first of those there."""

    nodes: list[Node]
    commands: Mapping[str, str]
    lock_life_s: float
    change_s: float
    _cut: set[str] = field(default_factory=set)
    _down: set[str] = field(default_factory=set)
    _suspended: set[str] = field(default_factory=set)
    _clocks: dict[str, float] = field(default_factory=dict)

    @property
    def mounts(self) -> list[Path]:
        return [node.mount for node in self.nodes]

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Cluster:
        """The cluster that `run` was told of."""
        mounts = [Path(line) for line in environment["CONFORMANCE_MOUNTS"].splitlines()]
        names = [os.path.basename(os.readlink(mount / "local")) for mount in mounts]
        assert len(set(names)) == len(names), f"these are not mounts of different nodes: {names}"
        ids = {name: member["id"] for name, member in members(mounts[0])["nodelist"].items()}
        nodes = [Node(name, ids[name], mount) for name, mount in zip(names, mounts, strict=True)]
        return cls(
            sorted(nodes, key=lambda node: node.id),
            {name: environment[f"CONFORMANCE_{name}"] for name in COMMANDS if environment.get(f"CONFORMANCE_{name}")},
            float(environment.get("CONFORMANCE_LOCK_LIFE_S", "120")),
            float(environment.get("CONFORMANCE_CHANGE_S", "60")),
        )

    # -- commands ----------------------------------------------------------------------------------------------------------------

    def cut(self, node: Node) -> None:
        self._cut.add(node.name)
        self._do("CUT", node=node.name)

    def heal(self) -> None:
        """Join all again and wait until every node takes writes."""
        self._do("HEAL")
        self._cut.clear()
        self.wait_whole()

    def stop(self, node: Node) -> None:
        self._down.add(node.name)
        self._do("STOP", node=node.name)

    def kill(self, node: Node) -> None:
        self._down.add(node.name)
        self._do("KILL", node=node.name)

    def start(self, node: Node) -> None:
        """Start it and wait until it takes writes."""
        self.try_start(node)
        self._down.discard(node.name)
        self.wait_whole()

    def try_start(self, node: Node) -> None:
        """Start it, not knowing whether it comes up."""
        self._do("START", check=False, node=node.name)

    def suspend(self, node: Node) -> None:
        self._suspended.add(node.name)
        self._do("SUSPEND", node=node.name)

    def resume(self, node: Node) -> None:
        self._do("RESUME", node=node.name)
        self._suspended.discard(node.name)

    def clock(self, node: Node, offset_s: float) -> None:
        """Set what a node's pmxcfs takes for the time, as difference to this machine's."""
        self._clocks[node.name] = offset_s
        self._do("CLOCK", node=node.name, offset_s=f"{offset_s:g}")

    def log(self, node: Node, text: str) -> None:
        """Add an entry for each line."""
        self._do("LOG", node=node.name, text=text)

    def status(self, node: Node, key: str, value: str) -> None:
        self._do("STATUS", node=node.name, key=key, value=value)

    def _do(self, command: str, *, check: bool = True, **words: str) -> None:
        line = self.commands[command]
        for word, value in words.items():
            line = line.replace(f"{{{word}}}", shlex.quote(value))
        done = subprocess.run(["/bin/sh", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_WAIT_S)
        assert not check or done.returncode == 0, f"CONFORMANCE_{command}: {line}\n{done.stdout}{done.stderr}"

    def repair(self) -> None:
        """Take back what a test did to nodes, as far as it did not itself."""
        for node in self.nodes:
            if node.name in self._suspended:
                self.resume(node)
            if self._clocks.get(node.name):
                self.clock(node, 0)
        if self._cut:
            self.heal()
        for node in self.nodes:
            if node.name in self._down:
                self.start(node)

    # -- what holds of all -------------------------------------------------------------------------------------------------------

    def others(self, node: Node) -> list[Node]:
        return [other for other in self.nodes if other is not node]

    def wait_whole(self) -> None:
        """Wait until every node sees every node and takes writes."""
        eventually(lambda: all(self.is_whole_for(node) for node in self.nodes), "all nodes there", self.change_s)

    def is_whole_for(self, node: Node) -> bool:
        """Has it remove a folder that is not empty, a message to all that changes nothing and that a node without quorum does not send."""
        try:
            found = members(node.mount)
            said = outcome(lambda: os.rmdir(node.mount / "conformance/full"))
        except (OSError, ValueError):
            return False
        return (
            said in {"ENOTEMPTY", "ENOENT"}
            and bool(found["cluster"]["quorate"])
            and all(member["online"] for member in found["nodelist"].values())
        )

    def wait_members(self, seen_by: Node, there: Iterable[Node]) -> None:
        """Wait until a node sees exactly these."""
        wanted = {node.name for node in there}
        eventually(lambda: online(seen_by.mount) == wanted, f"{seen_by.name} sees {sorted(wanted)} alone", self.change_s)

    def lay_ground(self) -> None:
        """Make what PVE has made on every cluster that ever ran, and the folder that all tests work in."""
        places = ["conformance", "conformance/full", "priv", "priv/lock", "nodes"]
        for node in self.nodes:
            places += [f"nodes/{node.name}", *(f"nodes/{node.name}/{place}" for place in ("priv", "qemu-server", "lxc"))]
        for place in places:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.nodes[0].mount / place)
        write(self.nodes[0].mount / "conformance/full/file")

    def clear(self) -> None:
        """Remove everything that tests made."""
        root = self.nodes[0].mount
        for path, folders, files in os.walk(root / "conformance", topdown=False):
            for name in files:
                os.unlink(Path(path) / name)
            for name in folders:
                os.rmdir(Path(path) / name)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(root / "conformance")
        for name in os.listdir(root / "priv/lock"):
            if name.startswith("conformance-"):
                for inside in os.listdir(root / "priv/lock" / name):
                    os.unlink(root / "priv/lock" / name / inside)
                os.rmdir(root / "priv/lock" / name)
        for node in self.nodes:
            for place in ("qemu-server", "lxc"):
                for name in os.listdir(root / "nodes" / node.name / place):
                    if name.partition(".")[0] in map(str, GUESTS):
                        os.unlink(root / "nodes" / node.name / place / name)


# -- single calls -------------------------------------------------------------------------------------------------------------------


def write(path: Path, text: str | bytes = "x") -> None:
    """Make or replace a file, in place."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    try:
        write_all(fd, text.encode() if isinstance(text, str) else text)
    finally:
        os.close(fd)


def write_all(fd: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def read(path: Path) -> str:
    """The text that one read gives, so that nobody's look in between can change it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, READ_BYTES).decode()
    finally:
        os.close(fd)


def outcome(act: Callable[[], object]) -> str:
    """The name of the errno that the act ends with, "" when it succeeds."""
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def members(mount: Path) -> Any:
    """`.members` as that node has it."""
    return json.loads(read(mount / ".members"))


def online(mount: Path) -> set[str]:
    """The nodes that a node says are there; empty when that cannot be read."""
    try:
        return {name for name, member in members(mount)["nodelist"].items() if member["online"]}
    except (OSError, ValueError):
        return set()


def eventually(check: Callable[[], object], what: str, within_s: float) -> None:
    """Wait until it is so; fail with what it was to be. What raises is not so yet.

    Also for what one node did and another one is to see: a call returns when its own node has the message, the others may need
    some milliseconds more.
    """
    until = time.monotonic() + within_s
    error: Exception | None = None
    while True:
        try:
            if check():
                return
        except Exception as raised:  # noqa: BLE001  # shown if it stays so
            error = raised
        assert time.monotonic() < until, f"not within {within_s:.0f} s: {what}{f' ({error!r})' if error else ''}"
        time.sleep(0.05)


def reads(mounts: Iterable[Path], path: str, text: str) -> None:
    """Wait until the file says that on all these mounts, which takes a message to the nodes; fail with what it says instead."""
    for mount in mounts:
        found: list[str] = []

        def says(mount: Path = mount, found: list[str] = found) -> bool:
            found[:] = [read(mount / path)]
            return found == [text]

        eventually(says, f"{mount / path} says {text[:40]!r}", AT_ONCE_S)


def lists(mounts: Iterable[Path], path: str, names: Iterable[str]) -> None:
    """Wait until the folder has these names in it on all these mounts."""
    wanted = sorted(names)
    for mount in mounts:
        place = mount / path
        eventually(lambda place=place: sorted(os.listdir(place)) == wanted, f"{place} has {wanted}", AT_ONCE_S)  # type: ignore[misc]


class UnderWay:
    """A call in a thread of its own, as it may hang."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.outcome: str | None = None
        self.took_s = 0.0
        self._act = act
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        begun = time.monotonic()
        result = outcome(self._act)
        self.took_s = time.monotonic() - begun
        self.outcome = result

    def ended(self, within_s: float) -> bool:
        self._thread.join(within_s)
        return not self._thread.is_alive()

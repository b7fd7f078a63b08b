# SPDX-License-Identifier: GPL-3.0-or-later
"""The socket that steers the stand-in: one JSON object a line, one JSON line back."""

from __future__ import annotations

import json
import socketserver
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.pmxcfs import dotfiles
from tests.pmxcfs.cluster import Cluster, conf_path, lock_path
from tests.pmxcfs.mount import Mount
from tests.pmxcfs.node import Node


class Control:
    """Each public method is a command: `{"do": "put", "path": "storage.cfg", "text": "..."}` calls `put`. Answers are JSON or None."""

    def __init__(self, cluster: Cluster, mounts: Mapping[str, Mount]) -> None:
        self._cluster = cluster
        self._mounts = mounts
        self.over = threading.Event()

    def answer(self, line: bytes) -> dict[str, Any]:
        """Carry out one line; what goes wrong comes back as `error`."""
        try:
            told = json.loads(line)
            command = self._command(told.pop("do"))
            return {"ok": True, "answer": command(**told)}
        except Exception as error:  # noqa: BLE001  # the other side is to see it, whatever it is
            traceback.print_exc()
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}

    def _command(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name in {"answer", "over"}:
            raise ValueError(f"no such command: {name}")
        return getattr(self, name)  # type: ignore[no-any-return]

    def put(self, path: str, text: str, node: str | None = None) -> None:
        """Write a file as that node (the first one)."""
        with self._cluster.changed:
            self._cluster.put(self._node(node), path, text.encode())

    def remove(self, path: str, node: str | None = None) -> None:
        with self._cluster.changed:
            self._cluster.remove(self._node(node), path)

    def read(self, path: str, node: str | None = None) -> str:
        """Return the text of a file as that node has it, dot files included."""
        with self._cluster.changed:
            if path == ".rrd" and path not in self._cluster.told:
                return self._node(node).numbers(fresh=True)
            if path in dotfiles.WRITERS:
                return dotfiles.text(self._cluster, self._node(node), path)
            return self._cluster.find(self._node(node), path).data.decode()

    def listing(self, path: str = "", node: str | None = None) -> list[str]:
        with self._cluster.changed:
            return sorted(self._cluster.find(self._node(node), path).children or {})

    def guest(self, vmid: int, node: str, type: str = "qemu", conf: str | None = None) -> None:  # PVE's word
        """Write a guest's configuration; one that is on another node is handed over, by one rename, as a migration does."""
        with self._cluster.changed:
            self._cluster.place_guest(self._node(node), vmid, type, None if conf is None else conf.encode())

    def remove_guest(self, vmid: int) -> None:
        with self._cluster.changed:
            at, kind, _ = self._node(None).guests[vmid]
            self._cluster.remove(self._node(None), conf_path(vmid, at, kind))

    def rrd(
        self,
        nodes: dict[str, dict[str, dotfiles.Value]] | None = None,
        guests: dict[str, dict[str, dotfiles.Value]] | None = None,
        storages: dict[str, dict[str, dotfiles.Value]] | None = None,
        release: int = 9,
    ) -> None:
        """Set all of `.rrd`."""
        tables = {"nodes": nodes, "guests": guests, "storages": storages}
        lines = [line for table, rows in tables.items() for line in dotfiles.rrd_lines(table, rows or {}, release=release).items()]
        with self._cluster.changed:
            self._cluster.forget_numbers(self._node(None))
            for key, line in lines:
                self._cluster.set_numbers(self._node(None), key, line)

    def status(self, node: str, key: str, value: str) -> None:
        """Set a key of that node's status, as a program there does: `rrd/...` is a line of `.rrd`, everything else is only counted."""
        with self._cluster.changed:
            if key.startswith("rrd/"):
                self._cluster.set_numbers(self._node(node), key.removeprefix("rrd/"), f"{key.removeprefix('rrd/')}:{value}")
            else:
                self._cluster.set_status(self._node(node), key)

    def log(
        self, node: str, msg: str, tag: str = "pvedaemon", user: str = "root@pam", pri: int = 6, pid: int = 1000, time: int | None = None
    ) -> int:
        """Add an entry to the cluster log, at the node's time or the one that is told, and return its uid."""
        with self._cluster.changed:
            return self._cluster.say(self._node(node), msg, tag=tag, user=user, pri=pri, pid=pid, at=time).uid

    def log_lines(self, node: str, text: str) -> None:
        """Add an entry for each line, as `log` does."""
        for line in text.splitlines():
            self.log(node, line)

    def show(self, file: str, text: str | None) -> None:
        """Show that text in a dot file, whatever it should be; None: the generated one again."""
        if file not in dotfiles.WRITERS:
            raise ValueError(f"no dot file: {file}")
        with self._cluster.changed:
            if text is None:
                self._cluster.told.pop(file, None)
            else:
                self._cluster.told[file] = text

    def quorum(self, on: bool, nodes: list[str] | None = None, cut_s: float = 0.0) -> None:
        """Take quorum from the nodes (all), each then alone, or give it back to them, together. Votes are not counted.

        `cut_s`: how long nothing is decided and what is written meanwhile hangs; real: 6 to 8.
        """
        with self._cluster.changed:
            self._cluster.set_quorum(nodes or list(self._cluster.nodes), on=on, cut_s=cut_s)

    def cut(self, node: str, cut_s: float = 0.0) -> None:
        """Let that node reach no other any more. Who then has quorum, half of the nodes and one, is counted."""
        with self._cluster.changed:
            self._cluster.cut([node], cut_s=cut_s)

    def heal(self) -> None:
        """Let every node reach every other again."""
        with self._cluster.changed:
            self._cluster.heal()

    def waiting(self) -> int:
        """Return how many writes wait for a change of membership that is being agreed on."""
        with self._cluster.changed:
            return self._cluster.waiting

    def online(self, node: str, on: bool) -> None:
        """Have that node's pmxcfs be there or not, as `.members` of the others says. For nodes without a mount."""
        with self._cluster.changed:
            if self._node(node).there != on:
                (self._cluster.join if on else self._cluster.leave)(self._node(node))

    def clock(self, node: str, offset_s: float) -> None:
        """Set what that node's pmxcfs takes for the time, as difference to this machine's."""
        with self._cluster.changed:
            self._node(node).clock_ahead_s = offset_s

    def hang(self, for_s: float, nodes: list[str] | None = None, calls: list[str] | None = None) -> None:
        """Let calls of the nodes (all) hang that long, those of that name only (all); 0 ends a hang that is under way.

        Calls are named as FUSE does: getattr readdir open read create write truncate mkdir rmdir unlink rename utimens.
        """
        with self._cluster.changed:
            for name in nodes or self._cluster.nodes:
                node = self._cluster.nodes[name]
                node.hang_until = time.monotonic() + for_s
                node.hang_calls = frozenset(calls or ())
            self._cluster.changed.notify_all()

    def tasklist(self, node: str) -> None:
        """Count that node's task list up in `.version`, as each of its tasks and each round of its pvestatd does."""
        with self._cluster.changed:
            self._cluster.set_status(self._node(node), "tasklist")

    def age_lock(self, name: str, by_s: float) -> None:
        """Make a lock older than it is, instead of waiting."""
        with self._cluster.changed:
            self._cluster.age_lock(lock_path(name), by_s)

    def lock_holder(self, name: str) -> str | None:
        """Return the node that holds the lock, None when nobody does."""
        with self._cluster.changed:
            return self._cluster.holder(self._node(None), lock_path(name))

    def lock_holders(self, name: str) -> list[tuple[float, str | None]]:
        """Return when the lock was taken, renewed or removed, by this machine's clock, and whose it was from then on."""
        with self._cluster.changed:
            return [(at, holder) for path, at, holder in self._cluster.holders if path == lock_path(name)]

    def unmount(self, node: str, dead: bool = False) -> None:
        """End that node's pmxcfs: leave the bare directory, or, as after a kill -9, a mount where nobody answers (ENOTCONN)."""
        self.online(node, on=False)
        if dead:
            self._mounts[node].die()
        else:
            self._mounts[node].unmount()

    def mount(self, node: str) -> None:
        """Start that node's pmxcfs: with its files as they were, nothing else, and then with those of the others."""
        self.online(node, on=False)
        self._mounts[node].mount()
        self.online(node, on=True)

    def calls(self) -> list[dict[str, Any]]:
        """Return how often which node made which call on which path, and how many of these were refused."""
        with self._cluster.changed:
            counted = dict(self._cluster.calls)
        keys = sorted({key[:3] for key in counted})
        ends = [{"done": counted.get((*key, True), 0), "refused": counted.get((*key, False), 0)} for key in keys]
        return [{"node": node, "call": call, "path": path, **end} for (node, call, path), end in zip(keys, ends, strict=True)]

    def forget_calls(self) -> None:
        with self._cluster.changed:
            self._cluster.calls.clear()

    def shutdown(self) -> None:
        self.over.set()

    def _node(self, name: str | None) -> Node:
        """Return that node, or the first one with quorum."""
        self._cluster.settle()
        nodes = self._cluster.nodes
        if name is not None:
            return nodes[name]
        return next((node for node in nodes.values() if node.quorate and node.there), next(iter(nodes.values())))


class _Lines(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(json.dumps(self.server.control.answer(line)).encode() + b"\n")  # type: ignore[attr-defined]


class Server(socketserver.ThreadingUnixStreamServer):
    """Takes commands at a socket, each connection in a thread of its own. The socket is there once it listens, not before."""

    daemon_threads = True

    def __init__(self, path: str, control: Control) -> None:
        self.control = control
        self._path = Path(path)
        deaf = Path(f"{path}.new")
        deaf.unlink(missing_ok=True)
        super().__init__(str(deaf), _Lines)

    def server_activate(self) -> None:
        super().server_activate()
        Path(self.server_address).rename(self._path)

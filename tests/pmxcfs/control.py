# SPDX-License-Identifier: GPL-3.0-or-later
"""The socket that steers the stand-in: one JSON object a line, one JSON line back."""

from __future__ import annotations

import json
import socketserver
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from tests.pmxcfs import dotfiles
from tests.pmxcfs.cluster import LOCK_DIR, Cluster
from tests.pmxcfs.mount import Mount


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
            if path in dotfiles.WRITERS:
                return dotfiles.text(self._cluster, self._node(node), path)
            return self._cluster.find(self._node(node), path).data.decode()

    def listing(self, path: str = "", node: str | None = None) -> list[str]:
        with self._cluster.changed:
            return sorted(self._cluster.find(self._node(node), path).children or {})

    def guest(self, vmid: int, node: str, type: str = "qemu", conf: str | None = None) -> None:  # PVE's word
        """Write a guest's configuration; one that is on another node is handed over, by one rename, as a migration does."""
        with self._cluster.changed:
            self._cluster.place_guest(vmid, type, node, None if conf is None else conf.encode())

    def remove_guest(self, vmid: int) -> None:
        with self._cluster.changed:
            at, kind, _ = self._node(None).view.guests[vmid]
            self._cluster.remove(self._node(None), f"nodes/{at}/{'lxc' if kind == 'lxc' else 'qemu-server'}/{vmid}.conf")

    def rrd(
        self,
        nodes: dict[str, dict[str, dotfiles.Value]] | None = None,
        guests: dict[str, dict[str, dotfiles.Value]] | None = None,
        storages: dict[str, dict[str, dotfiles.Value]] | None = None,
        release: int = 9,
    ) -> None:
        """Set all of `.rrd`."""
        tables = {"nodes": nodes, "guests": guests, "storages": storages}
        lines = [line for table, rows in tables.items() for line in dotfiles.rrd_lines(table, rows or {}, release=release)]
        with self._cluster.changed:
            self._cluster.rrd = lines

    def log(
        self, node: str, msg: str, tag: str = "pvedaemon", user: str = "root@pam", pri: int = 6, pid: int = 1000, time: int | None = None
    ) -> int:
        """Add an entry to the cluster log, and return its uid."""
        with self._cluster.changed:
            return self._cluster.say(node, msg, tag=tag, user=user, pri=pri, pid=pid, at=time).uid

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
        """Take quorum from the nodes (all), or give it back. `cut_s`: how long writes that are made meanwhile hang; real: 6."""
        with self._cluster.changed:
            self._cluster.set_quorum(nodes or list(self._cluster.nodes), on=on, cut_s=cut_s)

    def online(self, node: str, on: bool) -> None:
        """Say in `.members` whether that node is there. Its own mount goes on."""
        with self._cluster.changed:
            self._cluster.nodes[node].online = on
            for one in self._cluster.nodes.values():
                one.member_changes += 1
            self._cluster.restart_lock_ages()

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
            self._cluster.nodes[node].tasklist += 1

    def age_lock(self, name: str, by_s: float) -> None:
        """Make a lock older than it is, instead of waiting."""
        with self._cluster.changed:
            self._cluster.find(self._node(None), f"{LOCK_DIR}/{name}").touched -= by_s

    def lock_holder(self, name: str) -> str | None:
        """Return the node that holds the lock, None when nobody does."""
        with self._cluster.changed:
            lock = (self._cluster.find(self._node(None), LOCK_DIR).children or {}).get(name)
            return None if lock is None else next(node.name for node in self._cluster.nodes.values() if node.id == lock.writer)

    def unmount(self, node: str, dead: bool = False) -> None:
        """Leave the bare directory, or a mount where nobody answers (ENOTCONN)."""
        if dead:
            self._mounts[node].die()
        else:
            self._mounts[node].unmount()

    def mount(self, node: str) -> None:
        """Mount again, as a pmxcfs that just started: counters, log uids and the ages of locks begin anew."""
        with self._cluster.changed:
            self._cluster.restart(self._cluster.nodes[node])
        self._mounts[node].mount()

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

    def _node(self, name: str | None) -> Any:
        """Return that node, or the first one with quorum."""
        nodes = self._cluster.nodes
        if name is not None:
            return nodes[name]
        return next((node for node in nodes.values() if node.quorate), next(iter(nodes.values())))


class _Lines(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(json.dumps(self.server.control.answer(line)).encode() + b"\n")  # type: ignore[attr-defined]


class Server(socketserver.ThreadingUnixStreamServer):
    """Takes commands at a socket, each connection in a thread of its own."""

    daemon_threads = True

    def __init__(self, path: str, control: Control) -> None:
        super().__init__(path, _Lines)
        self.control = control

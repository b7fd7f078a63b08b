# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks that machines boot into, and localhost:8006 in them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

CLONE_NEWNET = 0x40000000
API_PORT = 8006
CHUNK = 1 << 16
libc = ctypes.CDLL(None, use_errno=True)


def enter_network(path: Path) -> None:
    """Put this thread, and what it starts, into that network; sockets stay in the one that they were made in."""
    with path.open("rb") as network:
        if libc.setns(network.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Network:
    """A network namespace with a loopback device that lasts while the block runs, whoever is in it.

    path:  where it can be entered, as long as this process lives.
    """

    def __init__(self) -> None:
        self._file = -1

    def __enter__(self) -> Self:
        _in_a_thread(self._make)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)
        self._file = -1

    @property
    def path(self) -> Path:
        return Path(f"/proc/{os.getpid()}/fd/{self._file}")

    def listen(self, host: str, port: int) -> socket.socket:
        """Return a socket that listens there in this network."""
        sockets: list[socket.socket] = []

        def make() -> None:
            enter_network(self.path)
            sockets.append(socket.create_server((host, port)))

        _in_a_thread(make)
        return sockets[0]

    def _make(self) -> None:
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._file = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


class Door:
    """What connects to localhost:8006 in a network talks to a port of this machine; `shut` refuses all until `open`."""

    def __init__(self, network: Network, port: int) -> None:
        self._network = network
        self._to = ("127.0.0.1", port)
        self._at: socket.socket | None = None
        self._through: list[socket.socket] = []

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shut()

    def open(self) -> None:
        self._at = self._network.listen("127.0.0.1", API_PORT)
        threading.Thread(target=self._serve, args=(self._at,), name="door", daemon=True).start()

    def shut(self) -> None:
        """Refuse new connections and end those that are open."""
        at, self._at = self._at, None
        for one in ([at] if at else []) + self._through:
            _end(one)
        self._through.clear()

    def _serve(self, at: socket.socket) -> None:
        while True:
            try:
                inside, _ = at.accept()
            except OSError:
                return
            try:
                outside = socket.create_connection(self._to)
            except OSError:
                inside.close()
                continue
            self._through += [inside, outside]
            threading.Thread(target=self._pass_on, args=(inside, outside), name="door", daemon=True).start()

    def _pass_on(self, inside: socket.socket, outside: socket.socket) -> None:
        with contextlib.suppress(OSError), selectors.DefaultSelector() as ready:
            ready.register(inside, selectors.EVENT_READ, outside)
            ready.register(outside, selectors.EVENT_READ, inside)
            while all(_passed_on(key.fileobj, key.data) for key, _ in ready.select()):
                pass
        for one in (inside, outside):
            one.close()
            with contextlib.suppress(ValueError):
                self._through.remove(one)


def _passed_on(come: object, to: socket.socket) -> bool:
    assert isinstance(come, socket.socket)
    data = come.recv(CHUNK)
    to.sendall(data)
    return bool(data)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


def _in_a_thread(work: Callable[[], None]) -> None:
    """A thread that changes its network ends afterwards; the others stay where they are."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # raised below, where it is waited for
            errors.append(error)

    thread = threading.Thread(target=run, name="network")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]

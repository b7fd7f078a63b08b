# SPDX-License-Identifier: GPL-3.0-or-later
"""inotify: a node hears of what is done through its own mount, and of nothing else."""

from __future__ import annotations

import ctypes
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import AT_ONCE_S, Cluster, eventually, write

IN_CREATE = 0x100
IN_NONBLOCK = os.O_NONBLOCK
HEAD = struct.Struct("iIII")
libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Names made in a folder, as the kernel tells them."""

    def __init__(self, folder: Path) -> None:
        self.fd = libc.inotify_init1(IN_NONBLOCK)
        assert libc.inotify_add_watch(self.fd, os.fsencode(folder), IN_CREATE) >= 0

    def heard(self, wait_s: float) -> list[str]:
        """What was told since the last time; waits so long for a first one."""
        if not select.select([self.fd], [], [], wait_s)[0]:
            return []
        told, names = os.read(self.fd, 65536), []
        while told:
            length = HEAD.unpack_from(told)[3]
            names.append(told[HEAD.size : HEAD.size + length].rstrip(b"\0").decode())
            told = told[HEAD.size + length :]
        return names


@pytest.fixture
def watch(pve: Cluster, folder: str) -> Iterator[Watch]:
    watching = Watch(pve.nodes[0].mount / folder)
    yield watching
    os.close(watching.fd)


def test_what_a_node_makes_itself_is_heard(pve: Cluster, folder: str, watch: Watch) -> None:
    write(pve.nodes[0].mount / folder / "own")
    assert watch.heard(AT_ONCE_S) == ["own"]


def test_what_another_node_makes_is_not_heard(pve: Cluster, folder: str, watch: Watch) -> None:
    write(pve.nodes[1].mount / folder / "foreign")
    eventually(lambda: os.listdir(pve.nodes[0].mount / folder) == ["foreign"], "the file", AT_ONCE_S)
    assert watch.heard(1.0) == []

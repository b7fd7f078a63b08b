# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that nodes have in common, and what can be done to them."""

from __future__ import annotations

import errno
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

LOCK_DIR = "priv/lock"
MAX_FILE_BYTES = 1 << 20
GUEST_CONF = re.compile(r"nodes/([^/]+)/(qemu-server|lxc)/([1-9]\d*)\.conf")
FIRST_FOLDERS = ("nodes", "priv", LOCK_DIR, "ha", "firewall", "mapping", "virtual-guest")
_stamps = itertools.count(1)


@dataclass
class Entry:
    """A file or directory; `change` is the number of the change to the tree that made it what it is."""

    mtime: int
    writer: int
    change: int
    data: bytes = b""
    children: dict[str, Entry] | None = None

    @property
    def is_dir(self) -> bool:
        return self.children is not None


@dataclass
class Tree:
    """The files as one part of the cluster has them.

    `changes` and `mtime` of the last one tell which of two trees is the newer one; `stamp`, given once in this process, whether two
    are the same.
    """

    mtime: int
    changes: int = 0
    stamp: int = 0
    root: Entry = field(default_factory=lambda: Entry(mtime=0, writer=0, change=0, children={}))

    def look(self, path: str) -> Entry | None:
        entry: Entry | None = self.root
        for name in path.split("/") if path else ():
            entry = (entry.children or {}).get(name) if entry else None
        return entry

    def find(self, path: str) -> Entry:
        """Return the entry at the path; ENOENT when there is none."""
        entry = self.look(path)
        if entry is None:
            raise refusal(errno.ENOENT, path)
        return entry

    def locks(self) -> dict[str, Entry]:
        """Return the locks by their paths."""
        folder = self.look(LOCK_DIR)
        return {f"{LOCK_DIR}/{name}": lock for name, lock in ((folder and folder.children) or {}).items() if lock.is_dir}

    def guests(self) -> Iterator[tuple[int, str, str]]:
        """Yield number, node and type of each guest."""
        for path, entry in self.walk():
            if not entry.is_dir and (guest := guest_of(path)):
                yield guest

    def walk(self) -> Iterator[tuple[str, Entry]]:
        """Yield every path and entry, each directory before what is in it."""
        heap = [("", self.root)]
        while heap:
            above, directory = heap.pop()
            for name, entry in sorted((directory.children or {}).items()):
                path = f"{above}/{name}".lstrip("/")
                yield path, entry
                if entry.is_dir:
                    heap.append((path, entry))

    # -- changes: `writer` is the number of the node that makes them, `at` its clock ---------------------------------------------

    def mkdir(self, path: str, *, writer: int, at: int) -> None:
        """Make a directory; EEXIST when there is anything."""
        around = self._around(path)
        if split(path)[1] in around:
            raise refusal(errno.EEXIST, path)
        around[split(path)[1]] = Entry(at, writer, self._changed(at), children={})

    def create(self, path: str, *, writer: int, at: int) -> None:
        """Make an empty file; EEXIST when there is one."""
        around = self._around(path)
        if split(path)[1] in around:
            raise refusal(errno.EEXIST, path)
        around[split(path)[1]] = Entry(at, writer, self._changed(at))

    def write(self, path: str, data: bytes, offset: int, *, truncate: bool = False, writer: int, at: int) -> None:
        """Put the data at the offset; EFBIG past 1 MiB."""
        if offset + len(data) > MAX_FILE_BYTES:
            raise refusal(errno.EFBIG, path)
        entry = self.find(path)
        if entry.is_dir:
            raise refusal(errno.ENOTDIR, path)
        head = entry.data[:offset].ljust(offset, b"\0")
        tail = b"" if truncate else entry.data[offset + len(data) :]
        entry.data = head + data + tail
        entry.mtime, entry.writer, entry.change = at, writer, self._changed(at)

    def touch(self, path: str, mtime: int, *, writer: int) -> None:
        """Set the time. Of a lock only forward, and only by the node that changed it last."""
        entry = self.find(path)
        if entry.is_dir and split(path)[0] == LOCK_DIR and (mtime < entry.mtime or entry.writer != writer):
            raise refusal(errno.EACCES, path)
        entry.mtime, entry.writer, entry.change = mtime, writer, self._changed(mtime)

    def remove(self, path: str, *, at: int) -> None:
        """Remove a file or an empty directory. Nobody asks whose lock it is."""
        if self.find(path).children:
            raise refusal(errno.ENOTEMPTY, path)
        del self._around(path)[split(path)[1]]
        self._changed(at)

    def rename(self, old: str, new: str, *, writer: int, at: int) -> None:
        """Put the entry in the place of what is at the new path, in one step; not for locks nor directories with something in them."""
        entry = self.find(old)
        if entry.is_dir and split(old)[0] == LOCK_DIR:
            raise refusal(errno.EACCES, old)
        around = self._around(new)
        replaced = around.get(split(new)[1])
        if entry.children or (replaced is not None and replaced.children):
            raise refusal(errno.ENOTEMPTY, old)
        del self._around(old)[split(old)[1]]
        entry.mtime, entry.writer, entry.change = at, writer, self._changed(at)
        around[split(new)[1]] = entry

    def put_back(self, path: str, entry: Entry) -> None:
        """Lay an entry of an earlier process at the path, over what is there; a directory keeps what is in it."""
        there = self.look(path)
        if entry.is_dir and there is not None and there.children:
            entry.children = there.children
        self._around(path)[split(path)[1]] = entry
        entry.change = self._changed(entry.mtime)

    def _around(self, path: str) -> dict[str, Entry]:
        above = self.find(split(path)[0])
        if above.children is None:
            raise refusal(errno.ENOTDIR, path)
        return above.children

    def _changed(self, at: int) -> int:
        self.changes += 1
        self.mtime, self.stamp = at, next(_stamps)
        return self.changes


def split(path: str) -> tuple[str, str]:
    """Return the directory and the last name of a path below the mount, both without a leading slash."""
    directory, _, name = path.rpartition("/")
    return directory, name


def guest_of(path: str) -> tuple[int, str, str] | None:
    """Return number, node and type of the guest whose configuration has that path."""
    conf = GUEST_CONF.fullmatch(path)
    return conf and (int(conf[3]), conf[1], "lxc" if conf[2] == "lxc" else "qemu")  # type: ignore[return-value]


def refusal(number: int, path: str) -> OSError:
    """Return the OSError of that errno, ready to raise."""
    return OSError(number, errno.errorcode[number], path)

# SPDX-License-Identifier: GPL-3.0-or-later
"""One node's view of the cluster as a FUSE mount."""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fusepy

from tests.pmxcfs import dotfiles
from tests.pmxcfs.cluster import Cluster
from tests.pmxcfs.node import Node
from tests.pmxcfs.tree import MAX_FILE_BYTES, refusal

NS = 10**9
MNT_FORCE, MNT_DETACH = 1, 2
MOUNT_WAIT_S = 60.0
UNMOUNT_WAIT_S = 5.0
DEBUG = ".debug"  # pmxcfs writes more to its log when this says 1
LINKS = {"local": "nodes/{}", "qemu-server": "nodes/{}/qemu-server", "lxc": "nodes/{}/lxc", "openvz": "nodes/{}/openvz"}
MADE_UP = (*dotfiles.WRITERS, DEBUG, *LINKS)
libc = ctypes.CDLL(None, use_errno=True)


def www_data() -> int:
    """Return the group that everything in /etc/pve belongs to."""
    try:
        return grp.getgrnam("www-data").gr_gid
    except KeyError:
        return 0


def is_private(path: str) -> bool:
    """Tell whether a path (without leading slash) is shown to root alone."""
    steps = path.split("/")
    return steps[0] == "priv" or (steps[0] == "nodes" and len(steps) > 2 and steps[2] == "priv")


def is_mounted(mountpoint: Path) -> bool:
    """Tell whether something of type fuse is mounted there, also when nobody answers behind it any more."""
    with Path("/proc/self/mountinfo").open() as lines:
        return any(f" {mountpoint} " in line and " - fuse" in line for line in lines)


class NodeFiles:
    """What FUSE asks, answered for one node. Names and arguments are those of fusepy."""

    use_ns = True

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self._cluster = cluster
        self._node = node
        self._texts: dict[str, bytes] = {}  # as pmxcfs has it: made when somebody looks, shown to whoever reads until the next look
        self._gid = www_data()

    def __call__(self, call: str, path: str, *args: Any) -> Any:
        try:
            return getattr(self, call)(path.lstrip("/"), *args)
        except OSError:
            raise
        except Exception:  # noqa: BLE001  # the caller gets EIO, the log the traceback
            traceback.print_exc()
            raise refusal(errno.EIO, path) from None

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        with self._cluster.call(self._node, "getattr", path):
            mode, size, links, mtime = self._what(path)
        mode &= 0o777700 if is_private(path) else 0o777750 if stat.S_ISREG(mode) else 0o777755
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), mtime * NS)
        return {"st_mode": mode, "st_size": size, "st_nlink": links, "st_uid": 0, "st_gid": self._gid, **times}

    def _what(self, path: str) -> tuple[int, int, int, int]:
        if not path:
            return stat.S_IFDIR | 0o777, 0, 2, 0
        if path in LINKS:
            return stat.S_IFLNK | (0o777 if self._node.quorate else 0o555), len(LINKS[path].format(self._node.name)), 1, 0
        if path == DEBUG:
            self._texts[path] = f"{int(self._node.debug)}\n".encode()
            return stat.S_IFREG | 0o640, len(self._texts[path]), 1, 0
        if path in dotfiles.WRITERS:
            self._texts[path] = dotfiles.text(self._cluster, self._node, path).encode()
            return stat.S_IFREG | 0o444, len(self._texts[path]), 1, 0
        entry = self._cluster.find(self._node, path)
        if entry.is_dir:
            return stat.S_IFDIR | (0o777 if self._node.quorate else 0o555), 0, 2, entry.mtime
        return stat.S_IFREG | (0o666 if self._node.quorate else 0o444), len(entry.data), 1, entry.mtime

    def readlink(self, path: str) -> str:
        with self._cluster.call(self._node, "readlink", path):
            return LINKS[path].format(self._node.name)

    def readdir(self, path: str, fh: int) -> list[str]:
        with self._cluster.call(self._node, "readdir", path):
            names = list(self._cluster.find(self._node, path).children or {})
        return [".", "..", *names, *(() if path else MADE_UP)]

    def open(self, path: str, flags: int) -> int:
        with self._cluster.call(self._node, "open", path):
            if path not in MADE_UP:
                self._cluster.find(self._node, path)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self._cluster.call(self._node, "read", path):
            whole = self._texts.get(path, b"") if path in MADE_UP else self._cluster.find(self._node, path).data
        return whole[offset : offset + size]

    def create(self, path: str, mode: int) -> int:
        with self._change("create", path):
            self._cluster.create(self._node, path)
        return 0

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if path == DEBUG:
            return self._switch_debug(data, offset)
        with self._change("write", path, made_up=errno.EIO):
            self._cluster.write(self._node, path, data, offset)
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        if path == DEBUG:
            return
        with self._change("truncate", path, made_up=errno.EIO):
            self._cluster.write(self._node, path, b"", length, truncate=True)

    def mkdir(self, path: str, mode: int) -> None:
        with self._change("mkdir", path):
            self._cluster.mkdir(self._node, path)

    def rmdir(self, path: str) -> None:
        with self._change("rmdir", path):
            self._cluster.remove(self._node, path)

    def unlink(self, path: str) -> None:
        with self._change("unlink", path):
            self._cluster.remove(self._node, path)

    def rename(self, old: str, new: str) -> None:
        new = new.lstrip("/")
        with self._change("rename", new, old):
            self._cluster.rename(self._node, old, new)

    def utimens(self, path: str, times: tuple[int, int] | None) -> None:
        with self._change("utimens", path):
            self._cluster.touch(self._node, path, int(time.time()) if times is None else times[1] // NS)

    @contextmanager
    def _change(self, call: str, *paths: str, made_up: int = errno.EACCES) -> Iterator[None]:
        """Hold the lock for a message to all nodes. What pmxcfs makes up, the root among it, is refused without one."""
        for path in paths:
            if not path or path in MADE_UP:
                raise refusal(made_up, path)
        with self._cluster.call(self._node, call, paths[0], writes=True):
            yield

    def _switch_debug(self, data: bytes, offset: int) -> int:
        if offset or data[:2] not in {b"0\n", b"1\n"}:
            raise refusal(errno.EIO, DEBUG)
        self._node.debug = data[:1] == b"1"
        return 2

    def chmod(self, path: str, mode: int) -> None:
        if stat.S_IMODE(mode) != (0o600 if is_private(path) else 0o640):
            raise refusal(errno.EPERM, path)

    def chown(self, path: str, uid: int, gid: int) -> None:
        if uid not in {0, -1} or gid not in {self._gid, -1}:
            raise refusal(errno.EPERM, path)

    def link(self, path: str, source: str) -> None:
        raise refusal(errno.EPERM, path)

    def statfs(self, path: str) -> dict[str, int]:
        blocks = 128 * MAX_FILE_BYTES // 4096
        return {"f_bsize": 4096, "f_frsize": 4096, **dict.fromkeys(("f_blocks", "f_bfree", "f_bavail"), blocks), "f_files": 262144}

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        """Nothing waits to be written."""


class Mount:
    """A node's mount point, mounted and unmounted at will.

    `mount` wants an empty directory, as pmxcfs does. `unmount` leaves the bare directory behind; `die` leaves the mount, which answers
    ENOTCONN from then on, as after a kill -9.
    """

    def __init__(self, cluster: Cluster, node: Node, mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        self._cluster = cluster
        self._node = node
        self._thread: threading.Thread | None = None
        self._failures: list[BaseException] = []

    def mount(self) -> None:
        """Mount, and return when it answers. RuntimeError when it does not come to that."""
        self.unmount()
        self._failures.clear()
        self._thread = threading.Thread(target=self._serve, name=f"fuse-{self._node.name}", daemon=True)
        self._thread.start()
        until = time.monotonic() + MOUNT_WAIT_S
        while not (is_mounted(self.mountpoint) and (self.mountpoint / "local").is_symlink()):
            if self._failures or not self._thread.is_alive() or time.monotonic() > until:
                raise RuntimeError(f"cannot mount at {self.mountpoint}: {self._failures or 'no answer'}")
            time.sleep(0.01)

    def unmount(self) -> None:
        """Take the mount away, whoever still uses it: calls under way end with ECONNABORTED, files that are open with ENOTCONN."""
        self.die()
        while is_mounted(self.mountpoint):
            if libc.umount2(os.fsencode(self.mountpoint), MNT_DETACH) != 0:
                subprocess.run(["fusermount", "-u", "-z", self.mountpoint], check=True)
        if self._thread:
            self._thread.join(UNMOUNT_WAIT_S)
            self._thread = None

    def die(self) -> None:
        """Break the connection and leave the mount: umount with force does both while somebody holds the directory."""
        if not is_mounted(self.mountpoint):
            return
        held = os.open(self.mountpoint, os.O_PATH | os.O_DIRECTORY)
        try:
            libc.umount2(os.fsencode(self.mountpoint), MNT_FORCE)
        finally:
            os.close(held)

    def _serve(self) -> None:
        try:
            fusepy.FUSE(
                NodeFiles(self._cluster, self._node),
                str(self.mountpoint),
                foreground=True,
                fsname="/dev/fuse",
                default_permissions=True,
                allow_other=True,
                big_writes=True,
                direct_io=True,
            )
        except BaseException as error:  # noqa: BLE001  # told to whoever waits in mount()
            self._failures.append(error)
            print(f"mount of {self._node.name} ended: {error!r}", file=sys.stderr)

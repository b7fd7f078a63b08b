# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's cluster filesystem: files below /etc/pve, and the directory there that is the leader lock.

When pmxcfs is not mounted, /etc/pve is an ordinary directory that takes writes, and one stray file in it keeps pmxcfs from ever
mounting again. A check before a write is a race. So every call first walks to `<root>/priv/..`, which only the mounted filesystem
has, and does its work relative to what it found there: that can be the filesystem of before the restart, never the bare directory.
Nothing is kept open between calls. Any call may hang, for minutes while nodes join or leave.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterator

from agent.core.statistics import parse_members
from agent.ports import (
    Clock,
    FilesystemState,
    LockSight,
    NoQuorumError,
    NotHolderError,
    NotMountedError,
    PermanentError,
    TemporaryError,
)

ROOT = "/etc/pve"
LOCK_FOLDER = "priv/lock"
LOCK = f"{LOCK_FOLDER}/proxlb-agent"
MAX_WRITE_BYTES = 100 * 1024  # pmxcfs hands over 128 KiB at a time: what is larger can be read half old, half new
READ_BYTES = 16 << 20  # in one read; files end at 1 MiB, but `.rrd` has 200 bytes for each guest and may be larger
SMALL_BYTES = 64 << 10  # tried first: into a larger buffer the kernel maps and clears 33 pages at each call, which takes most of its time
WRITABLE = ("proxlb", "priv/proxlb")
REMOVABLE = ("proxlb",)
ATTRIBUTES_LAST_S = 1.1  # the kernel answers stat from memory for 1 s
MAX_NAME_BYTES = 255
NS = 10**9

_GONE = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.ESTALE})
_REFUSED = frozenset({errno.EACCES, errno.EPERM})
_HIDDEN_NAME = re.compile(r"\.fuse_hidden[0-9a-f]+")  # what was removed or replaced while open on its node, until it is closed
_TEMPORARY_NAME = re.compile(r"\..+\.tmp\.(?P<node>[^.]+)\.(?P<pid>\d+)", re.DOTALL)


class PmxcfsFiles:
    """The real `ClusterFiles`."""

    def __init__(self, root: str = ROOT) -> None:
        self._root = root
        self._node = os.uname().nodename.partition(".")[0]  # as pmxcfs finds its own name
        self._swept: set[str] = set()

    def state(self) -> FilesystemState:
        """What can be done now; never raises. Up to a second old."""
        return _state(self._root)

    def read(self, path: str) -> str | None:
        """The whole text in one read, None when there is no such file, or a folder.

        Raises:  NotMountedError, TemporaryError; PermanentError for a path that leads elsewhere, or one only root may read.
        """
        _check_path(path)
        with _errors_told(path, writes=False), _mounted(self._root) as root:
            return _read(root, path)

    def list(self, path: str) -> tuple[str, ...]:
        """Names in a folder, sorted, without what is just being written or already removed; empty when there is none. Raises as `read`."""
        _check_path(path)
        with _errors_told(path, writes=False), _mounted(self._root) as root:
            try:
                names = _names(root, path)
            except (FileNotFoundError, NotADirectoryError):
                return ()
        return tuple(sorted(name for name in names if not (_TEMPORARY_NAME.fullmatch(name) or _HIDDEN_NAME.fullmatch(name))))

    def write(self, path: str, text: str) -> None:
        """Replace the file as a whole for all nodes, making its folder where it is missing.

        Raises:  NotMountedError, NoQuorumError, TemporaryError; PermanentError over 100 KiB, or outside `proxlb/` and `priv/proxlb/`.
        """
        folder, name = _place(path, WRITABLE)
        content = text.encode()
        if len(content) > MAX_WRITE_BYTES:
            raise PermanentError(f"{path}: {len(content)} bytes are more than the {MAX_WRITE_BYTES} that other nodes read in one piece")
        temporary = f"{folder}/.{name}.tmp.{self._node}.{os.getpid()}"
        with _errors_told(path, writes=True), _mounted(self._root) as root:
            fd = _create(root, folder, temporary)
            try:
                try:
                    _write_all(fd, content)
                finally:
                    os.close(fd)
                os.rename(temporary, f"{folder}/{name}", src_dir_fd=root, dst_dir_fd=root)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=root)
                raise
            self._sweep(root, folder)

    def remove(self, path: str) -> None:
        """Remove a file below `proxlb/`; one that is gone already is fine. Raises as `write`."""
        folder, name = _place(path, REMOVABLE)
        with _errors_told(path, writes=True), _mounted(self._root) as root, contextlib.suppress(FileNotFoundError):
            os.unlink(f"{folder}/{name}", dir_fd=root)

    def make_folder(self, path: str) -> None:
        """Make a folder below `proxlb/` where it is missing; one that is there costs no write. Raises as `write`."""
        _place(path, REMOVABLE)
        with _errors_told(path, writes=True), _mounted(self._root) as root:
            try:
                os.stat(path, dir_fd=root)
            except FileNotFoundError:
                _make_folders(root, path)

    def _sweep(self, root: int, folder: str) -> None:
        """Once a folder, remove what processes of this node left there when they were killed between write and rename."""
        if folder in self._swept:
            return
        self._swept.add(folder)
        with contextlib.suppress(OSError):
            for name in _names(root, folder):
                found = _TEMPORARY_NAME.fullmatch(name)
                if found is not None and found["node"] == self._node and not _is_alive(int(found["pid"])):
                    os.unlink(f"{folder}/{name}", dir_fd=root)


class PmxcfsLock:
    """The real `LeaderLock`: a directory below priv/lock, of which pmxcfs keeps which node made or renewed it, never which process.

    A call that raised may still have been carried out: a `take` that failed is found out about with `renew`.
    """

    def __init__(self, clock: Clock, root: str = ROOT) -> None:
        self._clock = clock
        self._root = root

    def sight(self) -> LockSight:
        """Look without writing. Up to a second old."""
        with _errors_told(LOCK, writes=False), _mounted(self._root) as root:
            try:
                return LockSight(_mtime_s(root))
            except FileNotFoundError:
                return LockSight(None)

    def take(self) -> bool:
        """mkdir: True when this node has it now, False when somebody holds it (this node, too). Atomic in the cluster."""
        with _errors_told(LOCK, writes=True), _mounted(self._root) as root:
            try:
                _mkdir_lock(root)
            except FileExistsError:
                pass
            else:
                return True
        if _state(self._root) is FilesystemState.NO_QUORUM:  # it was the kernel, not pmxcfs, that said there is one
            raise _no_quorum()
        return False

    def renew(self) -> None:
        """Set its time to now, or past the stored time when the clock stepped back. Raises NotHolderError when it is not this node's."""
        if self._utime(expire=False):
            return
        # pmxcfs says the same for want of quorum and for another node's lock, and what tells them apart may be a second old.
        if _state(self._root) is not FilesystemState.NO_QUORUM:
            time.sleep(ATTRIBUTES_LAST_S)
        state = _state(self._root)
        if state is FilesystemState.NO_QUORUM:
            raise _no_quorum()
        if state is FilesystemState.NOT_MOUNTED:
            raise _not_mounted()
        raise NotHolderError("the leader lock is another node's")

    def ask_expiry(self) -> None:
        """utime(0, 0): ask pmxcfs to drop the lock if nobody renewed it for 120 s. Never tells whether it will."""
        with contextlib.suppress(NotHolderError):  # gone already
            if not self._utime(expire=True) and _state(self._root) is FilesystemState.NO_QUORUM:  # it refuses even when it obeys
                raise _no_quorum()

    def release(self) -> None:
        """rmdir. Call only right after a renewal that succeeded: pmxcfs does not ask who removes it."""
        with _errors_told(LOCK, writes=True), _mounted(self._root) as root, contextlib.suppress(FileNotFoundError):
            os.rmdir(LOCK, dir_fd=root)

    def _utime(self, *, expire: bool) -> bool:
        """Return False when pmxcfs refuses (EACCES). Raises NotHolderError when there is no lock."""
        with _errors_told(LOCK, writes=True), _mounted(self._root) as root:
            try:
                at_s = 0 if expire else max(int(self._clock.wall_s()), _mtime_s(root) + 1)
                os.utime(LOCK, ns=(at_s * NS, at_s * NS), dir_fd=root)
            except FileNotFoundError:
                raise NotHolderError("the leader lock is gone") from None
            except PermissionError as error:
                if error.errno == errno.EACCES:
                    return False
                raise  # EPERM: quorum went while this was under way
        return True


def _state(root_path: str) -> FilesystemState:
    try:
        mode = os.lstat(f"{root_path}/local").st_mode
        if not stat.S_ISLNK(mode):
            return FilesystemState.NOT_MOUNTED
        with _mounted(root_path) as root:
            members = parse_members(_read(root, ".members") or "")
    except (OSError, TemporaryError):
        return FilesystemState.NOT_MOUNTED
    if not mode & stat.S_IWUSR or (members is not None and members.quorate is False):
        return FilesystemState.NO_QUORUM
    # Cut-off text tells nothing; the link's mode alone has said that writes are taken.
    return FilesystemState.STANDALONE if members is not None and members.quorate is None else FilesystemState.QUORATE


@contextlib.contextmanager
def _mounted(root_path: str) -> Iterator[int]:
    """Give the root of the mounted filesystem to work relative to. Raises NotMountedError on the bare directory."""
    try:
        fd = os.open(f"{root_path}/priv/..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise _not_mounted() from None
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _errors_told(path: str, *, writes: bool) -> Iterator[None]:
    """Turn what the kernel says into the errors of the ports."""
    try:
        yield
    except OSError as error:
        if error.errno in _GONE:
            raise _not_mounted() from None
        if error.errno in _REFUSED and os.geteuid() != 0:
            raise PermanentError(f"{path} in the cluster filesystem: {error.strerror}", "run this as root") from None
        if error.errno in _REFUSED and writes:
            raise _no_quorum() from None
        raise TemporaryError(f"{path} in the cluster filesystem: {error.strerror}") from None


def _not_mounted() -> NotMountedError:
    return NotMountedError("the cluster filesystem is not mounted: does pve-cluster run?", retry_after_s=2.0)


def _no_quorum() -> NoQuorumError:
    return NoQuorumError("the cluster filesystem takes no writes: this node is not in the quorate part of the cluster")


def _check_path(path: str) -> None:
    """Refuse what would lead out of the filesystem. Names come from other nodes' files and from people."""
    for name in path.split("/"):
        if name in {"", ".", ".."} or "\0" in name or len(os.fsencode(name)) > MAX_NAME_BYTES:
            raise PermanentError(f"{path!r} is no path below /etc/pve")


def _place(path: str, below: tuple[str, ...]) -> tuple[str, str]:
    """Return folder and name of a file that the agent may change there."""
    _check_path(path)
    folder, _, name = path.rpartition("/")
    if not any(folder == top or folder.startswith(f"{top}/") for top in below):
        raise PermanentError(f"{path}: the agent changes files only below {' and '.join(below)}")
    return folder, name


def _read(root: int, path: str) -> str | None:
    content = _read_once(root, path, SMALL_BYTES)
    if content is None:
        # FUSE says the same of a file that is replaced on this node between being found and being opened: it is there the next time
        content = _read_once(root, path, SMALL_BYTES)
    if content is not None and len(content) == SMALL_BYTES:  # there may be more: never the rest alone, it could be of another version
        content = _read_once(root, path, READ_BYTES)
    if content is None:
        return None
    if len(content) == READ_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return content.decode("utf-8", "replace")


def _read_once(root: int, path: str, most: int) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.read(fd, most)
    except IsADirectoryError:  # somebody's, among the flags or the relay files: it must not hide the others
        return None
    finally:
        os.close(fd)


def _names(root: int, path: str) -> list[str]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _create(root: int, folder: str, path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o640, dir_fd=root)
    except FileNotFoundError:
        _make_folders(root, folder)
        return os.open(path, flags, 0o640, dir_fd=root)


def _make_folders(root: int, folder: str) -> None:
    steps = folder.split("/")
    for depth in range(1, len(steps) + 1):
        with contextlib.suppress(FileExistsError):
            os.mkdir("/".join(steps[:depth]), dir_fd=root)


def _write_all(fd: int, content: bytes) -> None:
    """One write, and so one message to the cluster, as long as the kernel takes all at once, which it does below 128 KiB."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _mkdir_lock(root: int) -> None:
    try:
        os.mkdir(LOCK, dir_fd=root)
    except FileNotFoundError:  # a cluster that never locked anything
        with contextlib.suppress(FileExistsError):
            os.mkdir(LOCK_FOLDER, dir_fd=root)
        os.mkdir(LOCK, dir_fd=root)


def _mtime_s(root: int) -> int:
    return int(os.stat(LOCK, dir_fd=root, follow_symlinks=False).st_mtime)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True

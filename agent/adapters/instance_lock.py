# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock that keeps a second agent off this node.

The leader lock in /etc/pve belongs to a node: two processes of one node would both take it for theirs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from agent.ports import PermanentError, TemporaryError

TRIES = 10  # each means that somebody removed the file in the very instant it was locked


class InstanceLock:
    """A flock on a file, held until the process ends. The kernel lets go of it however the process dies.

    Neither a program that is started nor a fork of this process keeps it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None
        os.register_at_fork(after_in_child=self._close)  # closing a copy unlocks nothing, keeping one would outlive us

    def take(self) -> bool:
        """Return whether this process has the lock, now and until its end; False when another process has it.

        Raises:  PermanentError for anybody but root; TemporaryError when the file cannot be made.
        """
        if self._fd is not None:
            return True
        try:
            for _ in range(TRIES):
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                if not self._lock(fd):
                    os.close(fd)
                    return False
                if self._is_still_there(fd):
                    self._fd = fd
                    self._sign(fd)
                    return True
                os.close(fd)  # locked a file that is gone: the next process would make and lock a new one
        except PermissionError as error:
            raise PermanentError(f"{self._path}: cannot lock it: {error.strerror}", "run this as root") from None
        except OSError as error:
            raise TemporaryError(f"{self._path}: cannot lock it: {error.strerror}") from None
        raise TemporaryError(f"{self._path}: it is removed again and again")

    def holder(self) -> int | None:
        """Return the PID that the holder wrote down, for a message to people; None when there is none."""
        with contextlib.suppress(OSError, ValueError), open(self._path, encoding="ascii") as file:
            return int(file.read(20))
        return None

    def _lock(self, fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                return False
            raise
        return True

    def _is_still_there(self, fd: int) -> bool:
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(fd))

    def _sign(self, fd: int) -> None:
        with contextlib.suppress(OSError):  # a full disk takes no PID, but the lock holds
            os.truncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

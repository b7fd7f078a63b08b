# SPDX-License-Identifier: GPL-3.0-or-later
"""A fence that shows when code which must be pure is not."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

# Python reports each of these before it does it, whoever asks and by whatever name the function was imported.
FORBIDDEN = frozenset({
    "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn", "subprocess.Popen",
    "socket.__new__", "socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostname", "socket.sendto",
})  # fmt: skip
FORBIDDEN_BELOW_ETC_PVE = frozenset({
    "open", "os.chmod", "os.chown", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir", "os.symlink",
    "os.truncate", "os.utime",
})  # fmt: skip


class OutsideWorldError(BaseException):
    """Code that must be pure reached for the world. Not an Exception: it must not pass for a network that is down."""


_fences: list[list[str]] = []  # what was tried inside each, the innermost last


@contextlib.contextmanager
def no_outside_world() -> Iterator[None]:
    """Make sockets, other processes, sleeping and everything below /etc/pve raise OutsideWorldError, in all threads.

    It is raised once more at the end, in case the code inside swallowed it. Two things go unseen: os.stat, which Python does not
    report, and a `sleep` imported by name before the fence stood.
    """
    tried: list[str] = []
    _fences.append(tried)
    real_sleep, time.sleep = time.sleep, _no_sleep
    try:
        yield
    finally:
        time.sleep = real_sleep
        _fences.pop()
    if tried:
        raise OutsideWorldError(f"this was tried: {', '.join(tried)}")


def _is_below_etc_pve(argument: object) -> bool:
    if not isinstance(argument, str | bytes | os.PathLike):
        return False
    path = os.path.abspath(os.fsdecode(argument))
    return path == "/etc/pve" or path.startswith("/etc/pve/")


def _why_not(event: str, args: tuple[Any, ...]) -> str | None:
    if event in FORBIDDEN:
        return event
    if event in FORBIDDEN_BELOW_ETC_PVE:
        for argument in args[:2]:  # two, as a rename or a link has
            if _is_below_etc_pve(argument):
                return f"{event} of {argument!r}"
    return None


def _refuse(reason: str) -> NoReturn:
    _fences[-1].append(reason)
    raise OutsideWorldError(f"this is outside: {reason}")


def _no_sleep(seconds: float) -> None:
    if seconds > 0:
        _refuse(f"time.sleep({seconds})")


def _on_audit(event: str, args: tuple[Any, ...]) -> None:
    if not _fences:
        return
    reason = _why_not(event, args)
    if reason is not None:
        _refuse(reason)


sys.addaudithook(_on_audit)  # for good: Python cannot take one off again

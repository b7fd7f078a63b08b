# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd gets to know of the agent, and how often it wants to hear."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping

from systemd import daemon

NS_PER_US = 1000
US_PER_S = 1_000_000
SYSTEMCTL = "/usr/bin/systemctl"
SYSTEMCTL_S = 10.0


class SystemdNotifier:
    """The real `ServiceNotifier`, by sd_notify. Without NOTIFY_SOCKET, or when nobody listens there, nothing happens."""

    def ready(self) -> None:
        """All is set up, or set up again."""
        self._tell("READY=1")

    def alive(self) -> None:
        """The watchdog need not bite yet."""
        self._tell("WATCHDOG=1")

    def status(self, text: str) -> None:
        """What `systemctl status` shows, in one line."""
        self._tell("STATUS=" + " ".join(text.split()))

    def reloading(self) -> None:
        """Settings are being read again; `ready` ends that."""
        # Type=notify-reload wants to know which reload this answers; Debian 12's systemd has no such type, and passes over it.
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // NS_PER_US}")

    def stopping(self) -> None:
        """The end has begun."""
        self._tell("STOPPING=1")

    def _tell(self, state: str) -> None:
        # Being not heard is no reason to fail: without READY or WATCHDOG systemd does what it has to.
        with contextlib.suppress(OSError, ValueError):
            daemon.notify(state.encode("utf-8", "replace").decode().replace("\0", " "))


def watchdog_s(environment: Mapping[str, str], pid: int | None = None) -> float | None:
    """Return after how many seconds of silence systemd takes the agent for dead, None when it does not watch this process.

    Say `alive` at least twice as often.
    """
    period, watched = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not (period.isascii() and period.isdigit()) or int(period) == 0:
        return None
    if watched and watched != str(os.getpid() if pid is None else pid):
        return None
    return int(period) / US_PER_S


def is_shutting_down() -> bool:
    """True when systemd is on its way down: reboot, power-off, halt or kexec has been asked for."""
    return _systemctl("is-system-running") == "stopping"


def is_enabled(unit: str) -> bool:
    """True when the unit has been enabled, for good or until the next boot."""
    return _systemctl("is-enabled", unit) in {"enabled", "enabled-runtime"}


def _systemctl(*words: str) -> str:
    """What systemctl says; its status is not 0 for what is no good news. "" when it cannot be asked."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        asked = subprocess.run([SYSTEMCTL, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SYSTEMCTL_S)
        return asked.stdout.strip()
    return ""

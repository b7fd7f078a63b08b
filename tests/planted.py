# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules of the protocol switched off on purpose: what judges of simulated clusters must find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agent.core.leadership import LockAct
from agent.daemon import outputs
from agent.daemon.inputs import LockAnswer
from agent.daemon.perform import Performer

Put = Callable[[Any, str, Any], None]  # replaces an attribute of something by a value, and puts it back later


def no_renewal(put: Put) -> None:
    """A request goes out without a renewal of the lock before it."""

    def why_not(self: Performer, leader: Any, lease_until_s: float, called_s: float) -> str | None:
        return None if called_s < lease_until_s else "the lease ran out"

    put(Performer, "_why_not_leading", why_not)


def late_rmdir(put: Put) -> None:
    """The lock is removed also when the lease has run out."""
    lock = Performer._lock

    def without_end(self: Performer, asked: outputs.DoLock) -> LockAnswer:
        return lock(self, replace(asked, until_s=float("inf")) if asked.act is LockAct.RELEASE else asked)

    put(Performer, "_lock", without_end)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine's two clocks."""

from __future__ import annotations

import time


class SystemClock:
    """The real `Clock`."""

    def boottime_s(self) -> float:
        """Seconds since boot, suspended time included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_s(self) -> float:
        """Unix seconds; may step either way."""
        return time.time()

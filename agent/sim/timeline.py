# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated time: a number that only the simulation moves, and what is due when."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(order=True, slots=True)
class Due:
    """Something that happens at a time; of two at the same time the one put in first goes first."""

    at_s: float
    serial: int
    act: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)


class Timeline:
    """The current second, counted from the start of the simulation, and a queue of what is due."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[Due] = []
        self._serial = 0

    def at(self, at_s: float, act: Callable[[], None]) -> Due:
        """Have `act` called at that time, or at the next advance when it is past. `cancelled` of the answer stops it."""
        self._serial += 1
        due = Due(max(at_s, self.now_s), self._serial, act)
        heapq.heappush(self._queue, due)
        return due

    def after(self, delay_s: float, act: Callable[[], None]) -> Due:
        """Have `act` called that many seconds from now."""
        return self.at(self.now_s + delay_s, act)

    def next_s(self) -> float | None:
        """When the next thing happens by itself, None when nothing is due."""
        while self._queue and self._queue[0].cancelled:
            heapq.heappop(self._queue)
        return self._queue[0].at_s if self._queue else None

    def advance(self, to_s: float) -> None:
        """Let time pass until `to_s`, with all that is due up to and including it. Costs nothing where nothing is due."""
        if to_s < self.now_s:
            raise ValueError(f"time goes forward only: it is {self.now_s}, not before {to_s}")
        while (at_s := self.next_s()) is not None and at_s <= to_s:
            due = heapq.heappop(self._queue)
            self.now_s = due.at_s
            due.act()
        self.now_s = to_s

# SPDX-License-Identifier: GPL-3.0-or-later
"""The units that may leave one node for load, in an order in which few of them have to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from agent.core.placement import Burden


class Mover(NamedTuple):
    """Guests that move as one, named by the first of them; moved back to `origin`, a refund of so much is their cost."""

    vmid: int
    unit: tuple[int, ...]
    burden: Burden
    origin: int | None
    refund: float


class Row(NamedTuple):
    """What a unit takes along from where it is in the sketch, what moving it costs, and who it is: five fields, to be unpacked in loops."""

    cpu: float
    memory: float
    pressure: float
    cost: float
    who: Mover

    def cost_to(self, node: int) -> float:
        """What going there costs."""
        return -self.who.refund if node == self.who.origin else self.cost


def by_memory(row: Row) -> tuple[float, int]:
    """The order of a line: by counted memory, then by VMID."""
    return row.memory, row.who.vmid


class Line:
    """The rows of a node in order of their memory, with what bounds on all of them need.

    Shape:   `cpu` and `memory` row by row; `least_*` and `most_*` of all rows, 0.0 where there are none; `cheapest` is the least that
             moving any of them costs.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        columns: tuple[tuple[float, ...], ...] = tuple(zip(*rows, strict=True))[:4] if rows else ((0.0,),) * 4
        self.cpu, self.memory = columns[:2] if rows else ((), ())
        self.least_cpu, self.most_cpu = min(columns[0]), max(columns[0])
        self.least_memory, self.most_memory = columns[1][0], columns[1][-1]
        self.most_pressure, self.cheapest = max(columns[2]), min(columns[3])
        self._fronts: dict[tuple[bool, bool], list[tuple[float, float]]] = {}

    @cached_property
    def rising(self) -> list[int]:
        """The places of the rows in order of their cpu."""
        return sorted(range(len(self.cpu)), key=self.cpu.__getitem__)

    @cached_property
    def cores(self) -> list[float]:
        """The cpu of the rows in that order."""
        return [self.cpu[place] for place in self.rising]

    @cached_property
    def origins(self) -> frozenset[int]:
        """The nodes to which some of the rows would go back for a refund."""
        return frozenset([row[4][3] for row in self.rows if row[4][3] is not None])

    def worth(self, by_cpu: float, by_memory: float) -> float:
        """The most that cpu and memory of one row are worth at these prices, below 0.0 where none is worth anything.

        Whoever is worth most is in front: nobody has as much or more of what is dear and as little or less of what is a burden. Of
        a hundred units these are about five.
        """
        side = (by_cpu > 0, by_memory > 0)
        front = self._fronts.get(side)
        if front is None:
            front = self._fronts[side] = self._front(*side)
        return max([cpu * by_cpu + memory * by_memory for cpu, memory in front]) if front else 0.0

    def _front(self, is_cpu_dear: bool, is_memory_dear: bool) -> list[tuple[float, float]]:
        front: list[tuple[float, float]] = []
        for cpu, memory, _, _, _ in reversed(self.rows) if is_memory_dear else self.rows:
            if not front or (cpu > front[-1][0] if is_cpu_dear else cpu < front[-1][0]):
                front.append((cpu, memory))
        return front

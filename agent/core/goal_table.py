# SPDX-License-Identifier: GPL-3.0-or-later
"""The goal function as a table: each statistic with its weight, in words, and its value before and after.

The values are those of `goal.Goal`: weight times value, summed over the rows, is the goal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from agent.core.imbalance import OVERLOAD_WEIGHT, Weights
from agent.core.node_load import NodeLoad


@dataclass(frozen=True, slots=True)
class GoalRow:
    """One statistic. Values and weight have no unit; 0.0 is even, or nothing over a threshold."""

    name: str
    weight: float
    meaning: str
    before: float
    after: float


_Loads = list[NodeLoad]


def goal_table(
    before: Mapping[str, NodeLoad], after: Mapping[str, NodeLoad], usable: Collection[str], weights: Weights
) -> tuple[GoalRow, ...]:
    """Return the rows: the parts of the imbalance, then the overload.

    Shape:   `usable` are the nodes over which statistics are taken; both mappings hold them all.
    """
    then, now = [[loads[name] for name in sorted(usable)] for loads in (after, before)]
    return tuple(GoalRow(name, weight, meaning, value(now), value(then)) for name, weight, meaning, value in _statistics(weights))


OVERLOAD = "overload"  # the one row that is no part of the imbalance
_DEVIATION = "standard deviation of the nodes' used share"


def _statistics(weights: Weights) -> list[tuple[str, float, str, Callable[[_Loads], float]]]:
    total = weights.cpu + weights.memory + weights.pressure
    cpu, memory, pressure = (weight / total if total > 0 else 0.0 for weight in (weights.cpu, weights.memory, weights.pressure))

    def overload(loads: _Loads) -> float:
        return _mean(
            [
                cpu * _above(load.cpu_fraction, weights.cpu_threshold)
                + memory * _above(load.memory_fraction, weights.memory_threshold)
                + pressure * _above(load.pressure_fraction, weights.pressure_threshold)
                for load in loads
            ]
        )

    under_pressure = (
        "pressure",
        pressure,
        "standard deviation of the nodes' pressure",
        lambda loads: _deviation([load.pressure_fraction for load in loads]),
    )
    return [
        ("cpu", cpu, f"{_DEVIATION} of cpu", lambda loads: _deviation([load.cpu_fraction for load in loads])),
        ("memory", memory, f"{_DEVIATION} of memory", lambda loads: _deviation([load.memory_fraction for load in loads])),
        *([under_pressure] if weights.pressure > 0 else []),
        (OVERLOAD, OVERLOAD_WEIGHT, "mean over the nodes of what stands above a threshold, weighted as above", overload),
    ]


def _above(fraction: float, threshold: float | None) -> float:
    return 0.0 if threshold is None else max(0.0, fraction - threshold)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _deviation(values: list[float]) -> float:
    mean = _mean(values)
    return math.sqrt(_mean([(value - mean) ** 2 for value in values]))

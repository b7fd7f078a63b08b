# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes compared by their loads: weights, thresholds, imbalance and spread.

Imbalance: the weighted mean, over cpu, memory and pressure, of the population standard deviation of the fraction over the
nodes. Zero is even, one point of a fraction more on each of half the nodes is half a point; fractions of nodes of any size
weigh the same, so nodes are evened out in proportion to their size. Unlike the variance it has the unit of the fractions and
unlike the span from highest to lowest every node counts in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter

from agent.core.node_load import NodeLoad
from agent.core.plan_types import Balance, NodeFractions
from agent.core.settings import Measure, MeasureSettings, Settings


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each resource counts: weights of the goal function, and the thresholds as fractions (None: off)."""

    cpu: float
    memory: float
    cpu_threshold: float | None
    memory_threshold: float | None
    pressure: float = 0.0
    pressure_threshold: float | None = None

    @classmethod
    def of(cls, settings: Settings, loads: Iterable[NodeLoad] | None = None) -> Weights:
        """The weights that the settings state; where the loads are given and none of them has a pressure, without it."""
        cpu, memory, pressure = settings.balance.cpu, settings.balance.memory, settings.balance.pressure
        counts = loads is None or any(load.has_pressure for load in loads)
        return cls(
            cpu.weight,
            memory.weight,
            _measure_threshold(cpu),
            _measure_threshold(memory),
            pressure.weight if counts else 0.0,
            _threshold(pressure.threshold_percent) if counts else None,
        )

    @property
    def total(self) -> float:
        """All weights together."""
        return self.cpu + self.memory + self.pressure


def _threshold(percent: float) -> float | None:
    return percent / 100 if 0 < percent < 100 else None


def _measure_threshold(measure: MeasureSettings) -> float | None:
    """All of a node can be assigned and more, but not used: there 100 is no threshold."""
    percent = measure.threshold_percent
    return percent / 100 if percent > 0 and measure.measure is Measure.ASSIGNED else _threshold(percent)


OVERLOAD_WEIGHT = 1.0  # one point over a threshold on one of n nodes counts as one point of 1/n imbalance


_FRACTIONS: tuple[tuple[str, Callable[[Weights], float], Callable[[Weights], float | None], Callable[[NodeLoad], float]], ...] = (
    ("cpu", attrgetter("cpu"), attrgetter("cpu_threshold"), attrgetter("cpu_fraction")),
    ("memory", attrgetter("memory"), attrgetter("memory_threshold"), attrgetter("memory_fraction")),
    ("pressure", attrgetter("pressure"), attrgetter("pressure_threshold"), attrgetter("pressure_fraction")),
)  # what counts: its name for people, its weight, its threshold, and a node's fraction of it


def imbalance(loads: Iterable[NodeLoad], weights: Weights) -> float:
    """The weighted mean, over cpu, memory and pressure, of the population standard deviation of the fraction over the nodes.

    Units:   none; 0.0 is even. No nodes, or no weights, give 0.0.
    """
    nodes = list(loads)
    if not nodes or weights.total <= 0:
        return 0.0
    weighted = 0.0
    for _, weight, _, fraction in _FRACTIONS:
        if weight(weights) > 0:
            weighted += weight(weights) * _deviation([fraction(node) for node in nodes])
    return weighted / weights.total


def _deviation(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def over_threshold(load: NodeLoad, weights: Weights) -> str | None:
    """Which resource of the node is over its threshold, for people; None when none is."""
    found = []
    for name, _, threshold, fraction in _FRACTIONS:
        top = threshold(weights)
        if top is not None and fraction(load) > top and (name != "pressure" or load.has_pressure):
            found.append(f"{name} {100 * fraction(load):.0f} % over {100 * top:.0f} %")
    return ", ".join(found) or None


def spread(loads: Iterable[NodeLoad], weights: Weights) -> tuple[float, str, str]:
    """The larger, over the resources that have a weight, of highest less lowest node, and those two nodes' names.

    Units:   a fraction, 0.0 even.
    """
    nodes = sorted(loads, key=lambda node: node.name)
    best = (0.0, "", "")
    if not nodes:
        return best
    for _, weight, _, fraction in _FRACTIONS:
        if weight(weights) > 0:
            high, low = max(nodes, key=fraction), min(nodes, key=fraction)
            best = max(best, (fraction(high) - fraction(low), high.name, low.name), key=lambda found: found[0])
    return best


def balance_of(loads: Mapping[str, NodeLoad], usable: Iterable[str], weights: Weights) -> Balance:
    """The imbalance of the usable nodes, and the fractions of all nodes whose load is known."""
    return Balance(
        imbalance=imbalance((loads[name] for name in sorted(usable)), weights),
        nodes=tuple((name, NodeFractions(load.cpu_fraction, load.memory_fraction)) for name, load in sorted(loads.items())),
    )

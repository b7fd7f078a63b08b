# SPDX-License-Identifier: GPL-3.0-or-later
"""The goal function: what a move must lower, evaluated in constant time for one move.

goal = imbalance + overload
  imbalance  weighted mean over cpu and memory of the population standard deviation of the used fraction over usable nodes
  overload   OVERLOAD_WEIGHT times the mean over usable nodes of the weighted mean of what stands above a threshold
A move costs COST_OF_ALL_MEMORY times the share of the usable nodes' memory that is copied, and CONTAINER_RESTART_COST
for each container that restarts. It is made only when the goal falls by more.
"""

from __future__ import annotations

import math

from agent.core.load import OVERLOAD_WEIGHT, GuestLoad, Weights
from agent.core.placement import NodeState, Placement

COST_OF_ALL_MEMORY = 0.02  # moving 1 % of all memory must take 0.0002 off the goal
CONTAINER_RESTART_COST = 0.002  # a restart is felt: ten times what copying 1 % of all memory must bring
LEAST_GAIN = 1e-4  # below a hundredth of a point a difference is rounding and noise


class Goal:
    """Sums over the usable nodes from which the goal of the sketch, and of the sketch after one move, follow.

    Mutable as the sketch is: call `changed` after each change of the sketch.
    """

    def __init__(self, placement: Placement) -> None:
        self._states = [placement.states[name] for name in placement.usable]
        self._weights: Weights = placement.weights
        self._counts = {state.name for state in self._states}
        total = self._weights.cpu + self._weights.memory
        self._cpu_weight = self._weights.cpu / total if total > 0 else 0.0
        self._memory_weight = self._weights.memory / total if total > 0 else 0.0
        self._cpu_top = math.inf if self._weights.cpu_threshold is None else self._weights.cpu_threshold
        self._memory_top = math.inf if self._weights.memory_threshold is None else self._weights.memory_threshold
        self.total_memory = math.fsum(state.memory for state in self._states) or 1.0
        self.changed()

    def changed(self) -> None:
        """Read the sketch again."""
        cpu = [state.cpu_used / state.cpu_cores for state in self._states]
        memory = [state.memory_used / state.memory for state in self._states]
        self._n = len(cpu) or 1
        self._cpu_mean = math.fsum(cpu) / self._n
        self._memory_mean = math.fsum(memory) / self._n
        # around the mean of now, so that the subtraction below loses no digits
        self._cpu_squares = math.fsum((f - self._cpu_mean) ** 2 for f in cpu)
        self._memory_squares = math.fsum((f - self._memory_mean) ** 2 for f in memory)
        self._over = math.fsum(self._excess(c, m) for c, m in zip(cpu, memory, strict=True))
        self.imbalance = self._cpu_weight * math.sqrt(self._cpu_squares / self._n) + self._memory_weight * math.sqrt(
            self._memory_squares / self._n
        )
        self.value = self.imbalance + OVERLOAD_WEIGHT * self._over / self._n

    def _excess(self, cpu: float, memory: float) -> float:
        excess = 0.0
        if cpu > self._cpu_top:
            excess += self._cpu_weight * (cpu - self._cpu_top)
        if memory > self._memory_top:
            excess += self._memory_weight * (memory - self._memory_top)
        return excess

    def after(self, load: GuestLoad, source: str, source_state: NodeState | None, target: NodeState) -> float:
        """The goal after the load went from source to target; a source that is not usable counts for nothing."""
        n = self._n
        cpu_sum = memory_sum = 0.0
        cpu_squares, memory_squares, over = self._cpu_squares, self._memory_squares, self._over
        if source_state is not None and source in self._counts:
            old = source_state.cpu_used / source_state.cpu_cores - self._cpu_mean
            new = old - load.cpu_cores / source_state.cpu_cores
            old_memory = source_state.memory_used / source_state.memory - self._memory_mean
            new_memory = old_memory - load.memory_bytes / source_state.memory
            cpu_sum += new - old
            memory_sum += new_memory - old_memory
            cpu_squares += new * new - old * old
            memory_squares += new_memory * new_memory - old_memory * old_memory
            over += self._excess(new + self._cpu_mean, new_memory + self._memory_mean) - self._excess(
                old + self._cpu_mean, old_memory + self._memory_mean
            )
        old = target.cpu_used / target.cpu_cores - self._cpu_mean
        new = old + load.cpu_cores / target.cpu_cores
        old_memory = target.memory_used / target.memory - self._memory_mean
        new_memory = old_memory + load.memory_bytes / target.memory
        cpu_sum += new - old
        memory_sum += new_memory - old_memory
        cpu_squares += new * new - old * old
        memory_squares += new_memory * new_memory - old_memory * old_memory
        over += self._excess(new + self._cpu_mean, new_memory + self._memory_mean) - self._excess(
            old + self._cpu_mean, old_memory + self._memory_mean
        )
        cpu_variance = max(0.0, cpu_squares / n - (cpu_sum / n) ** 2)
        memory_variance = max(0.0, memory_squares / n - (memory_sum / n) ** 2)
        return self._cpu_weight * math.sqrt(cpu_variance) + self._memory_weight * math.sqrt(memory_variance) + OVERLOAD_WEIGHT * over / n

    def slope(self, state: NodeState) -> float:
        """How fast the goal rises when load is added to the node: the hint by which good targets are tried first."""
        cpu = state.cpu_used / state.cpu_cores - self._cpu_mean
        memory = state.memory_used / state.memory - self._memory_mean
        return self._slope(self._cpu_weight, self._cpu_squares, cpu, self._cpu_top - self._cpu_mean) + self._slope(
            self._memory_weight, self._memory_squares, memory, self._memory_top - self._memory_mean
        )

    def _slope(self, weight: float, squares: float, distance: float, top: float) -> float:
        deviation = math.sqrt(squares / self._n)
        if weight <= 0 or deviation <= 0:
            return 0.0
        return weight * distance / deviation + (weight * self._n if distance > top else 0.0)


def move_cost(memory_bytes: float, containers: int, total_memory_bytes: float) -> float:
    """What moving that much memory, and restarting that many containers, must bring at the least."""
    return LEAST_GAIN + COST_OF_ALL_MEMORY * memory_bytes / total_memory_bytes + CONTAINER_RESTART_COST * containers

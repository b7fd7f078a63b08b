# SPDX-License-Identifier: GPL-3.0-or-later
"""The goal function: what moves must lower, and how much one transfer between two nodes would, in constant time.

goal = imbalance + overload
  imbalance  weighted mean over the measures (cpu, memory, pressure) of the population standard deviation D of the counted
             fraction f over the n usable nodes
  overload   OVERLOAD_WEIGHT times the mean over usable nodes of the weighted mean of what stands above a threshold T
cost         of a move: the least gain, plus COST_OF_A_NODE times the share of an average node's memory that is copied, plus
             RESTART_COST for a container that restarts; all divided by n, as the goal is a mean over nodes, too
least gain   LEAST_GAIN, or LEAST_OF_A_GUEST times the fraction of a node that an average guest takes, if that is less: where
             guests are small each move brings little, and a hot node has to lose many

A move is made only when the goal falls by more than the move costs.

With S the sum of (f - mean)^2, a transfer of load from node s to node t changes S and the excess over T by terms of s and t
alone (`Transfer`), so its gain follows from S, n and the two nodes. Bounds make most of the work unnecessary:
  the goal is convex in the fractions (a norm, and sums of max(0, .)), so a gain is at most what the gradient promises:
  x (price(s) - price(t)), where price(i) = (w (f_i - mean) / (n D) + [f_i > T] w / n) / capacity(i);
  S falls at most to the vertex of its parabola in x; so no load whatever gains more between s and t than `ideal` says.

Source:  Ganeti hbal for the table of statistics; the bounds are elementary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.core.imbalance import OVERLOAD_WEIGHT, Weights
from agent.core.placement import Burden, NodeState, Placement

LEAST_GAIN = 0.006  # of one node's fraction: what brings less than half a point on one node is not worth a migration
LEAST_OF_A_GUEST = 0.6  # moving x from d above to d below the mean brings 2 x d / D: a bar of d = 0.3 D
COST_OF_A_NODE = (
    0.15  # copying as much as an average node has must bring fifteen points on one node: of guests that help alike, the lighter
)
RESTART_COST = 0.01  # a restart is felt: it must bring a point on one node, besides
Load = tuple[float, float, float, float, object]  # cpu, memory, pressure, the cost of moving it, and what it is
_CPU, _MEMORY, _PRESSURE = 2, 3, 4  # where a `Burden` holds what counts


class _Measure:
    """One statistic over the usable nodes.

    Shape:   node by node: `capacity`, and `share`, what one unit of load is of it; `bend[source][target]`, which Transfer calls k2, one
             row for all nodes of one size; of now: `fraction`, how far it is `away` from the mean, and `pull`, that times the share.
    """

    __slots__ = ("away", "bend", "capacity", "deviation", "field", "fraction", "mean", "pull", "share", "squares", "top", "weight")

    def __init__(self, field: int, weight: float, top: float | None, capacity: list[float]) -> None:
        self.field, self.weight, self.capacity = field, weight, capacity
        self.top = math.inf if top is None else top
        self.share = [1 / size for size in capacity]
        n = len(capacity)
        bends = {here: [here * here + there * there - (there - here) ** 2 / n for there in self.share] for here in set(self.share)}
        self.bend = [bends[here] for here in self.share]
        self.fraction: list[float] = []
        self.away: list[float] = []
        self.pull: list[float] = []
        self.mean = self.squares = self.deviation = 0.0


class Transfer:
    """From one node to another: what any load gains by going there, until the sketch changes.

    With d = f - mean and capacities c, moving x changes S by x (k1 + x k2): k1 = 2 (d_t/c_t - d_s/c_s) and
    k2 = 1/c_s^2 + 1/c_t^2 - (1/c_t - 1/c_s)^2 / n, the last term for the mean, which moves where the nodes differ in size.
    """

    __slots__ = ("_n", "_terms")

    def __init__(self, goal: Goal, source: int | None, target: int) -> None:
        n = self._n = goal.n
        terms: list[tuple[float, ...] | None] = [None, None, None]
        for measure in goal.measures:
            top, there = measure.top, measure.share[target]
            if source is None:
                here, over, k1, k2 = 0.0, -math.inf, 2 * measure.pull[target], there * there - there**2 / n
            else:
                here, over = measure.share[source], measure.fraction[source] - top
                k1, k2 = 2 * (measure.pull[target] - measure.pull[source]), measure.bend[source][target]
            terms[measure.field - _CPU] = (
                measure.weight,
                measure.deviation,
                measure.squares,
                k1,
                k2,
                over,
                measure.fraction[target] - top,
                here,
                there,
            )
        self._terms = terms

    def gain(self, cpu: float, memory: float, pressure: float) -> float:
        """What that load takes off the goal, below 0 when it adds to it."""
        n, amounts = self._n, (cpu, memory, pressure)
        total = 0.0
        for number, term in enumerate(self._terms):
            amount = amounts[number]
            if term is None or not amount:
                continue
            weight, deviation, squares, k1, k2, over, other_over, here, there = term
            variance = (squares + amount * (k1 + amount * k2)) / n
            saved = deviation - math.sqrt(variance) if variance > 0 else deviation
            if over > 0 or over > amount * here:  # the second: an exchange brings it more than it takes
                left = over - amount * here
                saved += OVERLOAD_WEIGHT * ((over if over > 0 else 0.0) - (left if left > 0 else 0.0)) / n
            left = other_over + amount * there
            if left > 0 or other_over > 0:
                saved += OVERLOAD_WEIGHT * ((other_over if other_over > 0 else 0.0) - (left if left > 0 else 0.0)) / n
            total += weight * saved
        return total

    def promises(self, line: Sequence[Load]) -> list[float]:
        """Of each of these loads what `gain` says less its cost, or more where a node stands above a threshold: for thousands of them."""
        n = self._n
        of: list[tuple[float, ...]] = []  # saved is c - sqrt(s + x (k + x b)), and of what is above a threshold x e, at most m
        for term in self._terms:
            if term is None:
                of.append((0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
                continue
            weight, deviation, squares, k1, k2, over, _, here, _ = term
            square = weight * weight / n
            excess = OVERLOAD_WEIGHT * weight / n if over > 0 else 0.0
            of.append((weight * deviation, square * squares, square * k1, square * k2, excess * here, excess * over))
        (c1, s1, k1, b1, e1, m1), (c2, s2, k2, b2, e2, m2), (c3, s3, k3, b3, e3, m3) = of
        c, root = c1 + c2, math.sqrt
        if e1 or e2:
            found = [
                c - root(abs(s1 + x * (k1 + x * b1))) - root(abs(s2 + y * (k2 + y * b2))) + min(x * e1, m1) + min(y * e2, m2) - cost
                for x, y, _, cost, _ in line
            ]
        else:
            found = [c - root(abs(s1 + x * (k1 + x * b1))) - root(abs(s2 + y * (k2 + y * b2))) - cost for x, y, _, cost, _ in line]
        if self._terms[_PRESSURE - _CPU] is None:
            return found
        return [
            promise + c3 - root(abs(s3 + entry[2] * (k3 + entry[2] * b3))) + min(entry[2] * e3, m3)
            for promise, entry in zip(found, line, strict=True)
        ]

    def ideal(self) -> tuple[float, float, float]:
        """Of cpu, memory and pressure, more than any amount takes off the goal by going from the one node to the other, or back."""
        return tuple(0.0 if term is None else self._ideal(term) for term in self._terms)  # type: ignore[return-value]

    def _ideal(self, term: tuple[float, ...]) -> float:
        weight, deviation, squares, k1, k2, over, other_over, _, _ = term
        lowest = (squares - k1 * k1 / (4 * k2)) / self._n if k2 > 0 else 0.0
        saved = deviation - math.sqrt(lowest) if lowest > 0 else deviation
        return weight * (saved + OVERLOAD_WEIGHT * (max(0.0, over) + max(0.0, other_over)) / self._n)

    def most(self, number: int, low: float, high: float) -> float:
        """No less than what any amount of cpu (0), memory (1) or pressure (2) in this range, not below 0, gains by going there."""
        term = self._terms[number]
        if term is None:
            return 0.0
        weight, deviation, squares, k1, k2, over = term[:6]
        best = -k1 / (2 * k2) if k2 > 0 else high
        amount = low if best < low else min(best, high)
        variance = (squares + amount * (k1 + amount * k2)) / self._n
        saved = deviation - math.sqrt(variance) if variance > 0 else deviation
        return weight * (saved + OVERLOAD_WEIGHT * over / self._n if over > 0 else saved)

    def chord(self, number: int) -> tuple[float, float, float]:
        """Three numbers a, b, c: no x of cpu (0), memory (1) or pressure (2), there or back, gains more than max(0, x (a + x b)) + c.

        With q what x changes the variance by, that is D - sqrt(D^2 + q) = -q / (D + sqrt(D^2 + q)), and no root is less than the one at
        the vertex. It is nearly the truth, as two nodes of many change little of D, and it needs no root for each x.
        """
        term = self._terms[number]
        if term is None:
            return 0.0, 0.0, 0.0
        weight, deviation, squares, k1, k2, over, other_over, _, _ = term
        excess = weight * OVERLOAD_WEIGHT * (max(0.0, over) + max(0.0, other_over)) / self._n
        lowest = (squares - k1 * k1 / (4 * k2)) / self._n if k2 > 0 else 0.0
        sum_of_roots = deviation + (math.sqrt(lowest) if lowest > 0 else 0.0)
        if sum_of_roots <= 0:
            return 0.0, 0.0, excess
        scale = -weight / (self._n * sum_of_roots)
        return scale * k1, scale * k2, excess

    def window(self, number: int, least: float) -> tuple[float, float]:
        """Between which amounts of cpu (0) or memory (1) the transfer may take at least so much off the goal.

        From the roots of x (k1 + x k2) = n (D - least / w)^2 - S; all amounts where the measure does not count, or a node is over
        its threshold; none as an interval that is empty.
        """
        term = self._terms[number]
        if term is None or term[5] > 0 or term[6] > 0 or term[4] <= 0:
            return -math.inf, math.inf
        weight, deviation, squares, k1, k2 = term[:5]
        reach = deviation - least / weight
        bend = k1 * k1 + 4 * k2 * (self._n * reach * reach - squares)
        if reach < 0 or bend < 0:
            return math.inf, -math.inf
        root = math.sqrt(bend)
        return (-k1 - root) / (2 * k2), (root - k1) / (2 * k2)


class Goal:
    """The goal of the sketch, and what a transfer would take off it.

    Shape:   `value` is the goal, `imbalance` its first part, `excess` the sum over nodes of what stands above thresholds;
             nodes are known by their place in `names`, the usable nodes sorted by name; `prices[i]` is the gradient at node i,
             for one core, one byte and one unit of pressure, `heat[i]` the same for the whole node's size. `thrift`: what a move must
             bring, as a share of what it must as a rule.
    Mutable as the sketch is: call `changed` after each change of the sketch; it is read again when next something is asked.
    """

    def __init__(self, placement: Placement) -> None:
        self.names = placement.usable
        self.index = {name: i for i, name in enumerate(self.names)}
        self._states: list[NodeState] = [placement.states[name] for name in self.names]
        weights: Weights = placement.weights
        total = weights.cpu + weights.memory + weights.pressure
        cores, memory = [state.cpu_cores for state in self._states], [state.memory for state in self._states]
        table = (
            (_CPU, weights.cpu, weights.cpu_threshold, cores),
            (_MEMORY, weights.memory, weights.memory_threshold, memory),
            (_PRESSURE, weights.pressure, weights.pressure_threshold, [1.0] * len(self.names)),
        )
        self._measures = [_Measure(field, weight / total, top, size) for field, weight, top, size in table if weight > 0]
        self.n = len(self.names) or 1
        self.node_memory = (math.fsum(memory) / self.n) or 1.0
        self._least = LEAST_GAIN
        self.thrift = 1.0
        self._prices: list[tuple[float, float, float]] = []
        self._heat: list[float] = []
        self._imbalance = self._excess = 0.0
        self._is_known = self._has_gradient = False
        everywhere = placement.states.values()  # so that no move changes it, be it out of a node that is to be emptied
        if guests := sum(len(state.present) for state in everywhere):
            loaded = 0.0
            for measure in self._measures:
                amount = math.fsum(state.sums[measure.field] for state in everywhere)
                loaded += measure.weight * amount / (math.fsum(measure.capacity) or 1.0)
            self._least = min(LEAST_GAIN, LEAST_OF_A_GUEST * loaded * self.n / guests)

    def changed(self) -> None:
        """What was read of the sketch is no longer true."""
        self._is_known = self._has_gradient = False

    @property
    def measures(self) -> list[_Measure]:
        """The statistics, of now."""
        if not self._has_gradient:
            self._read_gradient()
        return self._measures

    @property
    def prices(self) -> list[tuple[float, float, float]]:
        """The gradient, node by node."""
        if not self._has_gradient:
            self._read_gradient()
        return self._prices

    @property
    def heat(self) -> list[float]:
        """The gradient for the whole size of each node."""
        if not self._has_gradient:
            self._read_gradient()
        return self._heat

    @property
    def imbalance(self) -> float:
        """The first part of the goal."""
        if not self._is_known:
            self._read()
        return self._imbalance

    @property
    def excess(self) -> float:
        """What stands above thresholds."""
        if not self._is_known:
            self._read()
        return self._excess

    @property
    def value(self) -> float:
        """The goal."""
        return self.imbalance + OVERLOAD_WEIGHT * self.excess / self.n

    def _read(self) -> None:
        n = self.n
        self._imbalance = self._excess = 0.0
        for measure in self._measures:
            field, weight, top = measure.field, measure.weight, measure.top
            fraction = [state.sums[field] / size for state, size in zip(self._states, measure.capacity, strict=True)]
            mean = math.fsum(fraction) / n
            measure.fraction, measure.mean = fraction, mean
            measure.away = [f - mean for f in fraction]  # so that the subtractions in `gain` lose no digits
            measure.squares = math.fsum([distance**2 for distance in measure.away])
            measure.deviation = math.sqrt(measure.squares / n)
            self._imbalance += weight * measure.deviation
            for f in fraction:
                if f > top:
                    self._excess += weight * (f - top)
        self._is_known = True

    def _read_gradient(self) -> None:
        if not self._is_known:
            self._read()
        n = self.n
        prices = [[0.0] * len(self.names) for _ in range(3)]
        self._heat = [0.0] * len(self.names)
        for measure in self._measures:
            weight, top = measure.weight, measure.top
            measure.pull = [distance * share for distance, share in zip(measure.away, measure.share, strict=True)]
            slope = weight / (n * measure.deviation) if measure.deviation > 0 else 0.0
            steepness = [slope * distance for distance in measure.away]
            for i, f in enumerate(measure.fraction):
                if f > top:
                    steepness[i] += OVERLOAD_WEIGHT * weight / n
            self._heat = [heat + steep for heat, steep in zip(self._heat, steepness, strict=True)]
            prices[measure.field - _CPU] = [steep / size for steep, size in zip(steepness, measure.capacity, strict=True)]
        self._prices = list(zip(*prices, strict=True))
        self._has_gradient = True

    def gain(self, burden: Burden, source: int | None, target: int) -> float:
        """What the transfer takes off the goal, its cost left aside; a source that is not usable (None) counts for nothing."""
        return Transfer(self, source, target).gain(burden[_CPU], burden[_MEMORY], burden[_PRESSURE])

    def ideal(self, source: int, target: int) -> float:
        """More than any load, however divided, can gain by going from the one node to the other."""
        n, root = self.n, math.sqrt
        total = 0.0
        for measure in self.measures:
            pull = measure.pull
            lever = pull[source] - pull[target]
            if lever > 0:
                bend = measure.bend[source][target]
                variance = (measure.squares - lever * lever / bend) / n if bend > 0 else 0.0
                total += measure.weight * (measure.deviation - root(variance) if variance > 0 else measure.deviation)
            if measure.fraction[source] > measure.top:
                total += OVERLOAD_WEIGHT * measure.weight * (measure.fraction[source] - measure.top) / n
        return total

    def cost(self, memory_bytes: float, containers: int) -> float:
        """What moving that much memory, and restarting that many containers, must bring at the least."""
        return self.thrift * (self._least + COST_OF_A_NODE * memory_bytes / self.node_memory + RESTART_COST * containers) / self.n

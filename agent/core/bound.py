# SPDX-License-Identifier: GPL-3.0-or-later
"""What no set of allowed moves can do better: a lower bound of the imbalance, and of the moves that end all overload.

The imbalance is a weighted sum of standard deviations of the usable nodes' used fractions, one for each resource; each is bounded
by itself. For one resource, node i of size c_i has the fraction f_i = (b_i + x_i) / c_i: b_i is what cannot leave it (the system,
and guests that stay whatever the target), x_i >= 0 the load of movable guests on it after the moves. Movable guests of usable
nodes stay on usable nodes, and those of other nodes may come: so the sum of all x_i lies between L, what is movable on usable
nodes now, and H, that and what may come. Whatever the moves are, their x is one of these. So the least variance over all such x,
with guests cut into pieces as fine as one likes and rules among them and limits of nodes left aside, is not above that of any
plan. The biggest guest is not cut: it is on one node as a whole, so for each node it counts as a part of b_i there once, and the
least of these is taken.

Proof that the number found is not above that least variance: V(f) = sum of (f_i - mean f)**2 is convex, so for every point f* and
every allowed f, V(f) >= V(f*) + g.(f - f*) with g = 2 (f* - mean f*) the gradient there. The right side is linear in x, and x in a
simplex, so its least value is at a corner: all movable load on the one node where g_i / c_i is least, L or H of it. That value is
the bound; it holds for every f*, and a good f* only makes it a sharp one. f* is found as follows: V(f) is the least, over m, of the
sum of (f_i - m)**2, and for a fixed m the best fractions are max(b_i / c_i, m + t * c_i), with one t for all nodes that makes the sum
right. (Filling all nodes to one level is best only among nodes of one size: the mean counts nodes, not cores, so below nodes
that cannot go down, small ones are better filled higher than large ones.)

The moves: a node over a threshold is under it only when guests with at least the excess have left, so at least as many as it
takes of its largest movable ones; each move takes one guest off one node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent.core.conditions import Purpose
from agent.core.imbalance import Weights
from agent.core.node_load import Counted, NodeLoad, counted
from agent.core.placement import Placement

ROUNDING = 1e-12  # far above what sums of a hundred floats lose, far below what anybody would see
_HALVINGS = 60  # of an interval, until it is a float wide


@dataclass(frozen=True, slots=True)
class Bound:
    """What no set of allowed moves can do better.

    Units:   `imbalance` as that of a plan.
    Shape:   `moves` is the least number of moves after which no node would be over a threshold; None when no set of moves does
             that, and then `hopeless` names the nodes that stay over one, sorted.
    """

    imbalance: float
    moves: int | None
    hopeless: tuple[str, ...] = ()


class _Measure(NamedTuple):
    """One resource that counts: its weight and threshold, the size of a node, its used fraction, and what a guest counts for."""

    weight: float
    threshold: float | None
    size: Callable[[NodeLoad], float]
    fraction: Callable[[NodeLoad], float]
    counted: Callable[[Counted], float]


def _measures(weights: Weights) -> tuple[_Measure, ...]:
    return (
        _Measure(weights.cpu, weights.cpu_threshold, lambda n: n.cpu_cores, lambda n: n.cpu_fraction, lambda c: c.cpu_cores),
        _Measure(weights.memory, weights.memory_threshold, lambda n: n.memory_bytes, lambda n: n.memory_fraction, lambda c: c.memory_bytes),
        _Measure(weights.pressure, weights.pressure_threshold, lambda n: 1.0, lambda n: n.pressure_fraction, lambda c: c.pressure_fraction),
    )


def bound(sketch: Placement) -> Bound:
    """Return the bound for the sketch as it stands, before any move. Changes nothing in it."""
    loads = sketch.loads()
    usable = [loads[name] for name in sketch.usable]
    on: dict[str, list[Counted]] = {name: [] for name in sketch.usable}
    coming: list[Counted] = []
    for vmid in _movable(sketch):
        name = sketch.at[vmid]
        on.get(name, coming).append(counted(sketch.guest_of[vmid], sketch.load_of[vmid], loads.get(name), sketch.settings))
    measures = _measures(sketch.weights)
    total = sum(measure.weight for measure in measures) or 1.0
    imbalance = 0.0
    needed, hopeless = dict.fromkeys(sketch.usable, 0), set[str]()
    for measure in measures:
        amounts = [[measure.counted(guest) for guest in on[load.name]] for load in usable]
        sizes = [measure.size(load) for load in usable]
        here = [math.fsum(guests) for guests in amounts]
        floors = [measure.fraction(load) - amount / size for load, amount, size in zip(usable, here, sizes, strict=True)]
        if measure.weight > 0:
            biggest = max((amount for guests in amounts for amount in guests), default=0.0)
            may_come = math.fsum(measure.counted(guest) for guest in coming)
            imbalance += measure.weight / total * _with_the_biggest_whole(floors, sizes, math.fsum(here), may_come, biggest)
        if measure.threshold is None:
            continue
        for load, guests, size in zip(usable, amounts, sizes, strict=True):
            count = _who_must_leave((measure.fraction(load) - measure.threshold) * size, guests)
            if count is None:
                hopeless.add(load.name)
            else:
                needed[load.name] = max(needed[load.name], count)
    return Bound(imbalance, None if hopeless else sum(needed.values()), tuple(sorted(hopeless)))


def _movable(sketch: Placement) -> list[int]:
    """The guests that any move of a plan could be about: what keeps all others keeps them whatever the target.

    Load moves who may move for load; besides, who has rules may move for them, and a node in maintenance or the way home moves who
    may leave at all. Of guests that must be together and are, nobody moves when one stays.
    """
    rules, homes = sketch.rules, sketch.question.homes

    def may_move(vmid: int) -> bool:
        purposes = [Purpose.LOAD]
        if vmid in rules.pins or vmid in rules.apart or len(rules.unit(vmid)) > 1:
            purposes.append(Purpose.RULE)
        if sketch.at[vmid] in sketch.draining or vmid in homes:
            purposes.append(Purpose.DRAIN)
        return any(sketch.conditions.why_guest_stays(sketch.guest_of[vmid], purpose) is None for purpose in purposes)

    free = {vmid for vmid in sketch.at if may_move(vmid)}
    stuck = {vmid for vmid in free if sketch.unit_here(vmid) == rules.unit(vmid) and not free.issuperset(rules.unit(vmid))}
    return sorted(free - stuck)


def _who_must_leave(excess: float, sizes: Iterable[float]) -> int | None:
    """How many guests must leave at the least so that the excess is gone, None when all of them are not enough."""
    left, count = excess * (1 - ROUNDING), 0
    if left <= 0:
        return 0
    for size in sorted(sizes, reverse=True):
        left, count = left - size, count + 1
        if left <= 0:
            return count
    return None


def _with_the_biggest_whole(floors: Sequence[float], sizes: Sequence[float], here: float, may_come: float, biggest: float) -> float:
    """The least deviation, with the biggest of the guests that are here, and stay on these nodes, in one piece."""
    divided = least_deviation(floors, sizes, here, here + may_come)
    found = math.inf
    for number in sorted(range(len(floors)), key=lambda number: floors[number]):
        raised = [*floors[:number], floors[number] + biggest / sizes[number], *floors[number + 1 :]]
        rest = max(0.0, here - biggest)
        found = min(found, least_deviation(raised, sizes, rest, rest + may_come))
        if found <= divided:
            break  # in pieces it is no better
    return max(divided, found) if floors else 0.0


def least_deviation(floors: Sequence[float], sizes: Sequence[float], least: float, most: float) -> float:
    """Return what the population standard deviation of the fractions cannot go below.

    Shape:   a floor and a size for each node; `least` and `most` are how much load, in the unit of the sizes, stands on the floors.
    """
    count = len(floors)
    if count < 2:
        return 0.0
    top = max(floors)
    if math.fsum(size * (top - floor) for floor, size in zip(floors, sizes, strict=True)) <= most:
        return 0.0  # all can be filled to the highest floor
    scale = math.fsum(sizes)
    shares = [size / scale for size in sizes]
    least, most = least / scale, most / scale
    found = _near_best(floors, shares, least, most)
    mean = math.fsum(found) / count
    gradient = [2 * (fraction - mean) for fraction in found]
    there = math.fsum(slope * (fraction - floor) for slope, fraction, floor in zip(gradient, found, floors, strict=True))
    steepest = min(slope / share for slope, share in zip(gradient, shares, strict=True))
    corner = steepest * (least if steepest > 0 else most)
    variance = math.fsum((fraction - mean) ** 2 for fraction in found) + corner - there - ROUNDING
    return math.sqrt(max(0.0, variance) / count)


def _near_best(floors: Sequence[float], shares: Sequence[float], least: float, most: float) -> list[float]:
    """Fractions with next to the least variance; that the bound holds does not rest on how near they are."""
    low, high = min(floors), max(floors) + most / min(shares)
    found = list(floors)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = _around(middle, floors, shares, least, most)
        if math.fsum(found) > middle * len(found):
            low = middle
        else:
            high = middle
    return found


def _around(middle: float, floors: Sequence[float], shares: Sequence[float], least: float, most: float) -> list[float]:
    """The fractions nearest to `middle` that stand on the floors and hold no less than `least` and no more than `most`."""
    free = math.fsum(share * max(0.0, middle - floor) for floor, share in zip(floors, shares, strict=True))
    if least <= free <= most:
        return [max(floor, middle) for floor in floors]
    held = least if free < least else most
    # every node is filled to middle + tilt * share, if that is above its floor: the more of them are, the smaller the tilt
    tilts = sorted(((floor - middle) / share, floor, share) for floor, share in zip(floors, shares, strict=True))
    tilt, level, squares = tilts[0][0], 0.0, 0.0
    for number, (_, floor, share) in enumerate(tilts):
        level += share * (middle - floor)
        squares += share * share
        tilt = (held - level) / squares
        if number + 1 == len(tilts) or tilt <= tilts[number + 1][0]:
            break
    return [max(floor, middle + tilt * share) for floor, share in zip(floors, shares, strict=True)]

# SPDX-License-Identifier: GPL-3.0-or-later
"""Two or three faults at once, on several nodes and while agents stop: drawn once for each number, the same each time."""

from __future__ import annotations

import random

import pytest

from tests.fire.blaze import WIRE, Blaze, Fault, Point
from tests.fire.clusters import drain
from tests.fire.test_points import DEAD, FAULTS, STOP_S, is_beyond_all, leaderless, points

RUNS = 40
UNTIL_S = 900.0
OF_OTHERS = tuple(fault for fault in FAULTS if fault is not DEAD)  # of three nodes one at the most dies, else nobody is quorate
MOST = {"take": 3, "write leader.json": 3, "start": 4, "check": 4, "post": 4, WIRE: 4}  # such calls a node makes in the time that matters


@pytest.fixture(scope="module")
def of_a_drain() -> tuple[Point, ...]:
    blaze = drain()
    blaze.run(STOP_S)
    return points(blaze, from_s=0, to_s=STOP_S)


def drawn(number: int, of_a_drain: tuple[Point, ...]) -> Blaze:
    """One fault on the leader, one or two more on it or on the one that is to follow it, at any call."""
    draw = random.Random(number)
    faults: dict[Point, Fault] = {draw.choice(of_a_drain): draw.choice(FAULTS)}
    calls = sorted({point.call for point in of_a_drain})
    for _ in range(draw.choice((1, 2))):
        call = draw.choice(calls)
        point = Point(draw.choice(("pve1", "pve2", "pve2")), call, draw.randint(1, MOST.get(call, 4)), draw.random() < 0.5)
        faults[point] = draw.choice(OF_OTHERS)
    blaze = drain(faults.items(), stop_s=draw.choice((None, None, 21.0, STOP_S)))
    blaze.run(UNTIL_S)
    return blaze


def is_acted_on_late(point: Point, fault: Fault) -> bool:
    """True for a request that PVE takes and acts on only minutes later."""
    return point.call == WIRE and not point.is_after and fault.lasts_s >= 200


@pytest.mark.parametrize("number", range(RUNS))
def test_faults_together(number: int, of_a_drain: tuple[Point, ...]) -> None:
    """Must: somebody lead in the end. Must not: what the judge looks for; whether all are moved by then is not asked."""
    blaze = drawn(number, of_a_drain)
    found = [*blaze.judge.moved_twice(), *blaze.witness.bugs(), *leaderless(blaze)]
    if not any(is_beyond_all(point, fault) or is_acted_on_late(point, fault) for _, point, fault in blaze.struck):
        found += [*blaze.judge.problems(), *blaze.witness.problems]
    assert not found, [(at_s, str(point), str(fault)) for at_s, point, fault in blaze.struck]


def test_the_faults_do_meet(of_a_drain: tuple[Point, ...]) -> None:
    """Enough of what is drawn strikes, and on more nodes than one."""
    struck = [drawn(number, of_a_drain).struck for number in range(RUNS // 4)]
    assert sum(len(each) >= 2 for each in struck) >= 3
    assert sum(len({point.node for _, point, _ in each}) >= 2 for each in struck) >= 2

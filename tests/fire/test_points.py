# SPDX-License-Identifier: GPL-3.0-or-later
"""Every fault at every point: around each call by which the leader changes something, from taking the lock to giving it back.

Some of the points have names of their own: between renewal and POST is `after check` and `before post`, between POST and answer `after
wire`, between intent and POST `after write history.json`, between check and rmdir `before release` and `before rmdir`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.sim.inventory import AgentWish
from tests.fire.blaze import (
    CHECK,
    DEAD,
    KILLED,
    LOCK_REMOVED,
    POST,
    RELEASE,
    START,
    WIRE,
    Blaze,
    Fault,
    Point,
    clock_steps,
    cut_off,
    frozen,
    hangs,
    leader_file,
    mount_hangs,
    restarts,
    write_fails,
)
from tests.fire.clusters import DRAINED, drain, leader_text

UNTIL_S = 600.0  # a fault of 200 s, then 121 s until the lock is dropped, 90 s of caution, and the drain
CALM_S = 40.0  # a drain that is done so long after the fault, longer than a request may take, stays so
BATCH_S = 21.0  # the first batch is under way
STOP_S = 40.0  # in the middle of the second batch
STOPPED = "stopped for 200 s"
FAULTS: tuple[Fault, ...] = (
    KILLED,
    DEAD,
    frozen(20),
    frozen(70),
    frozen(200),
    hangs(20),
    hangs(70),
    hangs(200),
    mount_hangs(90),
    cut_off(40),
    cut_off(200),
    restarts(5),
    LOCK_REMOVED,
    write_fails(applied=False),
    write_fails(applied=True),
    clock_steps(3600),
    clock_steps(-3600),
    leader_file("leader.json deleted", lambda text: None),
    leader_file("leader.json torn", lambda text: text[: len(text) // 2]),
    leader_file("leader.json from the future", lambda text: leader_text("pve2", 1000, "leading", 2e9)),
)


def points(blaze: Blaze, *, from_s: float, to_s: float) -> tuple[Point, ...]:
    """Before and after each change that pve1's agent makes in that time. `after wire` is `after post`, too."""
    mine = [point for at_s, point in blaze.calls if point.node == "pve1" and from_s <= at_s <= to_s]
    return tuple(point._replace(is_after=after) for point in mine for after in (False, True) if not (after and point.call == POST))


def run(fault: Fault, point: Point, stop_s: float | None = None) -> Blaze:
    """The drain with that fault at that point, until it is done and the fault is long over."""
    blaze = drain([(point, fault)], stop_s=stop_s)
    while blaze.world.now_s < UNTIL_S:
        blaze.run(blaze.world.now_s + 10)
        if blaze.struck and blaze.world.now_s >= blaze.struck[0][0] + fault.lasts_s + CALM_S and not any(undone(blaze)):
            break
    return blaze


def undone(blaze: Blaze) -> Iterator[str]:
    """What is not as it should be in the end."""
    places = blaze.world.placements()
    if left := [vmid for vmid in DRAINED if places[vmid] == "pve3"]:
        yield f"{left} are still on pve3"
    yield from leaderless(blaze)


def leaderless(blaze: Blaze) -> Iterator[str]:
    """Why nobody leads."""
    world = blaze.world
    holder = world.lock_holder()
    if holder is None or world.nodes[holder].agent is not AgentWish.RUN or not world.nodes[holder].online:
        yield f"{holder or 'nobody'} has the lock"
    elif (agent := blaze.agent(holder)) is None or agent.work is None:
        yield f"{holder} does not lead"


def is_beyond_all(point: Point, fault: Fault) -> bool:
    """True for minutes between the last look at the clock and the act itself; test_judge.py says what comes of it."""
    return fault.lasts_s >= 200 and not point.is_after and (point.call == "rmdir" or (point.call == WIRE and fault.words == STOPPED))


def problems(blaze: Blaze) -> Iterator[str]:
    """What must not have been, and what is not as it should be in the end."""
    if any(is_beyond_all(point, fault) for _, point, fault in blaze.struck):
        yield from blaze.judge.moved_twice()
    else:
        yield from blaze.judge.problems()
        yield from blaze.witness.problems
    yield from blaze.witness.bugs()
    yield from undone(blaze)
    if not blaze.struck:
        yield "the fault never struck"


def judged(fault: Fault, point: Point, stop_s: float | None = None) -> list[str]:
    """What is wrong with the drain with that fault at that point, and its journal."""
    blaze = run(fault, point, stop_s)
    found = [f"{fault} {point}: {problem}" for problem in problems(blaze)]
    return found and found + [f"    {line.at_s:8.1f} {line.node} {line.record.text}" for line in blaze.world.journal]


@pytest.fixture(scope="module")
def of_a_drain() -> tuple[Point, ...]:
    """From taking the lock until the first batch is under way."""
    blaze = drain()
    blaze.run(BATCH_S)
    return points(blaze, from_s=0, to_s=BATCH_S)


@pytest.fixture(scope="module")
def of_a_stop() -> tuple[Point, ...]:
    """From the request to stop until the lock is given back, migrations under way."""
    blaze = drain(stop_s=STOP_S)
    blaze.run(STOP_S + 5)
    return points(blaze, from_s=STOP_S, to_s=STOP_S + 5)


def test_the_points_are_those_that_matter(of_a_drain: tuple[Point, ...], of_a_stop: tuple[Point, ...]) -> None:
    """Between renewal and POST, POST and answer, intent and POST, check and rmdir: each is there."""
    assert {point.call for point in of_a_drain} == {
        "take", "renew", "write leader.json", "write history.json", "write pve1.json", "look", START, CHECK, POST, WIRE,
    }  # fmt: skip
    assert {point.call for point in of_a_stop} == {"write leader.json", "renew", RELEASE, "rmdir"}
    assert len(of_a_drain) >= 30


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_drain(fault: Fault, of_a_drain: tuple[Point, ...]) -> None:
    wrong = [line for point in of_a_drain for line in judged(fault, point)]
    assert not wrong, "\n".join(wrong[:200])


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_clean_stop(fault: Fault, of_a_stop: tuple[Point, ...]) -> None:
    wrong = [line for point in of_a_stop for line in judged(fault, point, STOP_S)]
    assert not wrong, "\n".join(wrong[:200])

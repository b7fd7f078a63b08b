# SPDX-License-Identifier: GPL-3.0-or-later
"""Maintenance flags that come and go faster than guests move, and for nodes that are not there: nobody leaves for one that is withdrawn."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from agent.core.cluster import GIB
from agent.core.documents import render
from agent.core.journal import Level, MessageId
from agent.core.settings import Settings
from agent.core.settings_check import check
from agent.daemon.perform import LEADER_PATH
from agent.sim.inventory import SimGuest, SimNode
from agent.sim.world import World
from agent.simulation import Simulation
from tests.chaos.machine import Machine, Point, Slowness, Trap
from tests.daemon.test_what_must_not_happen import RELEASED
from tests.scenarios.witness import Witness

GUESTS = range(201, 207)


def settings() -> Settings:
    found = check({"triggers": {"warmup_s": 0, "first_observe_s": 0}, "balance": {"spread_percent": 0}})
    assert isinstance(found, Settings), found
    return found


def cluster() -> World:
    """pve1 leads; six guests on pve2, each of which takes some 14 s to leave."""
    guests = [SimGuest(vmid, "pve2", cores=1, memory_bytes=6 * GIB, used_cores=0.2, used_memory_bytes=5 * GIB) for vmid in GUESTS]
    world = World([SimNode(name, 16, 64 * GIB) for name in ("pve1", "pve2", "pve3")], guests)
    world.put_file(LEADER_PATH, render(RELEASED))
    return world


def lived(until_s: float, *acts: tuple[float, Callable[[World], None]]) -> tuple[World, Witness]:
    world = cluster()
    made, witness = Simulation(world, settings()), Witness(world, settings())
    for at_s, act in acts:
        made.at(at_s, lambda act=act: act(world))  # type: ignore[misc]
    made.run(until_s, witness.look)
    return world, witness


def flag(world: World) -> None:
    world.set_flag("pve2", "bios")


def unflag(world: World) -> None:
    world.clear_flag("pve2")


def lines(world: World) -> list[str]:
    return [line.record.text for line in world.journal if line.record.level <= Level.INFO]


def are_home(world: World) -> bool:
    return {world.placements()[vmid] for vmid in GUESTS} == {"pve2"}


def test_a_flag_that_is_gone_before_anybody_looks_is_none() -> None:
    """The leader reads flags every two seconds."""
    world, witness = lived(200, (60.5, flag), (61.5, unflag))
    assert not world.post_record
    assert not any("maintenance" in text for text in lines(world))
    assert witness.all_problems() == []


@pytest.mark.parametrize("for_s", [2.0, 3.0, 5.0, 13.0, 15.0, 40.0])
def test_whatever_has_left_when_the_flag_goes_comes_home_and_nobody_else_leaves(for_s: float) -> None:
    world, witness = lived(400, (60.5, flag), (60.5 + for_s, unflag))
    gone_s = 60.5 + for_s + 2.0  # when the leader has read that
    away = [post for post in world.post_record if post.order.source == "pve2"]
    home = [post for post in world.post_record if post.order.target == "pve2"]
    assert all(post.at_s <= gone_s for post in away)
    assert sorted(post.order.vmid for post in away) == sorted(post.order.vmid for post in home)
    assert len({post.order.vmid for post in away}) == len(away)
    assert are_home(world)
    assert witness.all_problems() == []


@pytest.mark.parametrize("every_s", [1.0, 3.0, 7.0])
def test_a_flag_that_flutters_for_minutes_ends_with_everybody_home_and_few_lines(every_s: float) -> None:
    times = [60.5 + number * every_s for number in range(int(120 / every_s) // 2 * 2)]
    world, witness = lived(700, *((at_s, unflag if number % 2 else flag) for number, at_s in enumerate(times)))
    assert are_home(world)
    assert world.lock_holder() == "pve1"
    assert witness.all_problems() == []
    assert len(world.post_record) <= 2 * 120 / 14 * 4, "slots alone bound them: four at a time"
    assert len(lines(world)) < 4 * len(times) + 4 * len(world.post_record) + 30


def test_a_flag_for_a_dead_node_moves_nobody_and_is_said_once() -> None:
    world, witness = lived(900, (50, lambda world: world.power_off_node("pve3")), (60, lambda world: world.set_flag("pve3", "it is dead")))
    assert not world.post_record
    assert sum("maintenance of pve3 began" in text for text in lines(world)) <= 2, "seen, and answered"
    assert witness.all_problems() == []


def test_a_flag_for_a_node_that_dies_is_withdrawn_while_it_is_down_and_nobody_is_fetched() -> None:
    world, _ = lived(
        1200,
        (60, flag),
        (64, lambda world: world.power_off_node("pve2")),
        (200, unflag),
        (400, lambda world: world.power_on_node("pve2")),
    )
    late = [post for post in world.post_record if post.at_s > 66 and post.order.source == "pve2"]
    assert late == []


@pytest.mark.parametrize(("hangs_s", "leaves"), [(20.0, False), (5.0, True)])
def test_a_flag_withdrawn_while_the_intents_are_written_moves_nobody(hangs_s: float, leaves: bool) -> None:
    """/etc/pve hangs just when the moves are to be written down. After seconds, flags are read first; of a short hang, in the next look."""
    world = cluster()
    made = Machine(world, settings(), rng=random.Random(1))
    made.at(59, lambda: made.traps.append(Trap(Point.LOOKING, 100.0, lambda node: world.hang_pmxcfs(node, hangs_s))))
    made.at(60, lambda: flag(world))
    if not leaves:
        made.at(65, lambda: unflag(world))
    made.run(300)
    assert any("would" not in text and "moves" in text for text in lines(world)), "a plan was made"
    assert bool(world.post_record) == leaves
    assert are_home(world) != leaves
    assert not [line for line in world.journal if line.record.message_id is MessageId.BUG]


def test_a_flag_withdrawn_while_pve_is_asked_about_the_guests_moves_nobody() -> None:
    world = cluster()
    made = Machine(world, settings(), rng=random.Random(1))
    made.at(59, lambda: made.slow.__setitem__("pve1", Slowness(90.0, 4.0, 4.0)))
    made.at(60, lambda: flag(world))
    made.at(64, lambda: unflag(world))
    made.run(300)
    assert not world.post_record
    assert are_home(world)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated cluster does what is known of real ones, also where that is unpleasant."""

from __future__ import annotations

import contextlib

from agent.core.cluster import GIB
from agent.core.statistics import parse_rrd
from agent.ports import OutsideError
from agent.sim.inventory import START_WALL_S, SimGuest
from agent.sim.world import World
from tests.sim.made import VM, made_world, on, seen

WEEK_S = 7 * 86_400.0


def test_what_is_seen_is_as_old_as_the_last_round_of_pvestatd() -> None:
    world = made_world()
    world.advance(15.0)
    world.set_load(100, cores=3.0, memory_bytes=6 * GIB)
    world.advance(19.9)
    assert (seen(world, 100).cpu_used_cores, seen(world, 100).memory_used_bytes) == (2.0, 4 * GIB)
    world.advance(20.0)
    assert (seen(world, 100).cpu_used_cores, seen(world, 100).memory_used_bytes) == (3.0, 6 * GIB)
    node = on(world, "pve2").api.look().node("pve1")
    assert node is not None
    assert (node.cpu_used_cores, node.memory_used_bytes) == (5.0, 9 * GIB)
    sample = parse_rrd(on(world, "pve3").files.read(".rrd") or "").nodes[0]
    assert (sample.at_s, sample.cpu_used_cores) == (START_WALL_S + 20, 5.0)


def test_noise_comes_out_the_same_again_and_stays_within_bounds() -> None:
    def samples() -> list[float]:
        world = made_world(SimGuest(101, "pve2", used_cores=1.0, noise_fraction=0.2))
        found = []
        for round_number in range(1, 50):
            world.advance(round_number * 10.0)
            found.append(seen(world, 101).cpu_used_cores or 0.0)
        return found

    first = samples()
    assert first == samples()
    assert 0.8 <= min(first) < 0.9 < 1.1 < max(first) <= 1.2


def test_pve_8_tells_less() -> None:
    world = made_world(pve_version="8.4.1")
    text = on(world, "pve1").files.read(".rrd") or ""
    assert text.startswith("pve2-node/pve1:")
    found = parse_rrd(text)
    assert [(guest.vmid, guest.cpu_used_cores, guest.memory_host_bytes) for guest in found.guests] == [(100, 2.0, None), (200, 1.0, None)]
    assert seen(world, 100).memory_host_bytes is None


def test_an_idle_week_has_nothing_in_it() -> None:
    world = made_world()
    assert world.next_change_s() is None
    world.advance(WEEK_S)
    assert seen(world, 100).uptime_s == WEEK_S + 86_400.0
    assert not world.pmxcfs.writes


def test_two_equal_worlds_give_equal_bytes() -> None:
    def life() -> str:
        world = made_world()
        on(world, "pve2").lock.take()
        on(world, "pve2").api.migrate(VM)
        world.migrate_by_person(200, "pve3")
        world.advance(12.0)
        world.power_off_node("pve3")
        world.advance(50.0)
        files = on(world, "pve2").files
        return "".join(files.read(name) or "" for name in (".rrd", ".vmlist", ".members", ".clusterlog", ".version"))

    assert life() == life()


def test_the_record_of_requests_says_whether_the_senders_node_had_the_lock() -> None:
    """Had it in the quorate part, whatever the sender's own copy says; also for requests that come to nothing."""

    def held(made: World) -> bool:
        with contextlib.suppress(OutsideError):
            on(made, "pve2").api.migrate(VM)
        return made.post_record[-1].held_lock

    world = made_world()
    assert not held(world), "nobody has it"
    assert on(world, "pve2").lock.take()
    assert held(world)
    world.cut_node("pve2")
    assert not held(world), "cut off, with its own copy of the lock"
    world.heal()
    assert held(world)
    world.remove_lock()
    assert on(world, "pve3").lock.take()
    assert not held(world), "another's"
    assert len(world.post_record) == 5

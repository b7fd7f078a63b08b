# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes of the simulated cluster die, boot, part and hang as those of real ones."""

from __future__ import annotations

import pytest

from agent.core.statistics import parse_rrd
from agent.ports import FilesystemState, NotMountedError, RefusedError, TemporaryError
from agent.sim.inventory import START_WALL_S
from tests.sim.made import CT, VM, log_of, made_world, on, seen


def test_a_dead_source_takes_its_guest_along_and_leaves_the_lock() -> None:
    world = made_world()
    upid = on(world, "pve3").api.migrate(VM)
    world.advance(10.0)
    world.power_off_node("pve1")
    assert world.in_flight() == ()
    assert (world.placements()[100], world.guests[100].lock) == ("pve1", "migrate")
    with pytest.raises(TemporaryError):
        on(world, "pve3").api.task(upid)
    world.power_on_node("pve1")
    assert on(world, "pve3").api.task(upid).exit_status == "unexpected status"


def test_a_dead_target_leaves_the_guest_where_it_was() -> None:
    world = made_world()
    upid = on(world, "pve3").api.migrate(CT)
    world.advance(15.0)
    world.power_off_node("pve2")
    assert world.running()[200] == "pve1"
    assert on(world, "pve3").api.task(upid).exit_status == "migration aborted"


def test_guests_of_a_dead_node_look_as_if_they_ran_for_five_minutes() -> None:
    world = made_world()
    world.advance(1000.0)
    world.power_off_node("pve1")
    world.advance(1295.0)
    look = on(world, "pve2").api.look()
    assert [node.online for node in look.nodes] == [False, True, True]
    assert (seen(world, 100, "pve2").status, seen(world, 100, "pve2").cpu_used_cores) == ("running", 2.0)
    world.advance(1301.0)
    assert (seen(world, 100, "pve2").status, seen(world, 100, "pve2").cpu_used_cores) == ("unknown", None)
    assert {guest.vmid for guest in parse_rrd(on(world, "pve2").files.read(".rrd") or "").guests} == set()


def test_a_node_that_boots_starts_its_guests_one_by_one() -> None:
    world = made_world()
    world.power_off_node("pve1")
    world.advance(100.0)
    before = on(world, "pve3").files.read(".clusterlog") or ""
    world.power_on_node("pve1")
    assert on(world, "pve1").clock.boottime_s() == 0.0
    world.advance(110.0)
    assert world.running() == {100: "pve1", 200: "pve1"}
    assert [line for line in log_of(world, before) if line.startswith("starting")] == [
        "starting task startall",
        "starting task qmstart",
        "starting task vzstart",
    ]
    assert world.nodes["pve1"].boots == 2


def test_nodes_that_want_more_than_they_have_share_it() -> None:
    world = made_world()
    world.set_load(100, cores=31.0)
    world.advance(10.0)
    node = on(world, "pve1").api.look().nodes[0]
    assert node.cpu_used_cores == 16.0
    assert seen(world, 200).cpu_used_cores == pytest.approx(16 / 33)


def test_a_cut_node_stands_still_and_forgets_what_it_thought_when_it_is_back() -> None:
    world = made_world()
    world.advance(100.0)
    world.cut_node("pve1")
    assert on(world, "pve1").files.state() is FilesystemState.NO_QUORUM
    world.set_flag("pve2", "disks")
    world.append_log("pve2", "unheard of")
    world.advance(500.0)
    assert on(world, "pve1").files.list("proxlb/maintenance") == ()
    assert "unheard of" not in (on(world, "pve1").files.read(".clusterlog") or "")
    assert [node.name for node in parse_rrd(on(world, "pve1").files.read(".rrd") or "").nodes] == ["pve1"]
    assert [node.name for node in parse_rrd(on(world, "pve2").files.read(".rrd") or "").nodes] == ["pve2", "pve3"]
    with pytest.raises(RefusedError, match="no quorum"):
        on(world, "pve1").api.migrate(VM)
    with pytest.raises(TemporaryError):
        on(world, "pve2").api.migrate(VM)
    world.heal()
    assert on(world, "pve1").files.list("proxlb/maintenance") == ("pve2",)
    assert "unheard of" in (on(world, "pve1").files.read(".clusterlog") or "")
    assert len(parse_rrd(on(world, "pve2").files.read(".rrd") or "").nodes) == 3


def test_the_larger_part_of_a_split_cluster_goes_on() -> None:
    world = made_world()
    world.split(["pve1", "pve2"])
    assert [on(world, name).files.state().value for name in world.nodes] == ["quorate", "quorate", "no quorum"]
    assert on(world, "pve2").lock.take()
    assert world.lock_holder() == "pve2"
    world.heal()
    assert world.lock_holder() == "pve2"


def test_a_clock_step_of_the_lowest_node_drops_a_lock_early() -> None:
    world = made_world()
    assert on(world, "pve2").lock.take()
    world.advance(10.0)
    world.step_wall_clock("pve1", 3600.0)
    on(world, "pve3").lock.ask_expiry()
    world.advance(12.0)
    assert world.lock_holder() is None


def test_a_renewal_between_the_request_and_the_end_saves_the_lock() -> None:
    world = made_world()
    assert on(world, "pve2").lock.take()
    world.advance(130.0)
    on(world, "pve3").lock.ask_expiry()
    on(world, "pve2").lock.renew()
    world.advance(140.0)
    assert world.lock_holder() == "pve2"


@pytest.mark.parametrize("applied", [False, True])
def test_a_write_may_fail_and_have_been_carried_out(applied: bool) -> None:
    world = made_world()
    world.fail_next_write("pve1", applied=applied)
    with pytest.raises(TemporaryError):
        on(world, "pve1").lock.take()
    assert (world.lock_holder() == "pve1") is applied


def test_pmxcfs_may_restart_and_hang() -> None:
    world = made_world()
    world.restart_pmxcfs("pve1", 2.0)
    with pytest.raises(NotMountedError):
        on(world, "pve1").lock.take()
    world.advance(2.0)
    world.append_log("pve1", "anew")
    assert '"uid": 1, ' in (on(world, "pve2").files.read(".clusterlog") or "")
    world.hang_pmxcfs("pve1", 5.0)
    with pytest.raises(TemporaryError):
        on(world, "pve1").files.read("proxlb/leader.json")
    world.advance(7.0)
    assert on(world, "pve1").files.read("proxlb/leader.json") is None


def test_log_lines_after_a_clock_step_back_are_lost() -> None:
    world = made_world()
    world.advance(100.0)
    world.append_log("pve1", "before")
    world.step_wall_clock("pve1", -60.0)
    world.append_log("pve1", "lost")
    world.advance(161.0)
    world.append_log("pve1", "after")
    text = on(world, "pve2").files.read(".clusterlog") or ""
    assert ("before" in text, "lost" in text, "after" in text) == (True, False, True)


def test_numbers_age_where_pvestatd_hangs() -> None:
    world = made_world()
    world.advance(100.0)
    world.stop_statistics("pve1")
    world.set_load(100, cores=4.0)
    world.advance(200.0)
    assert parse_rrd(on(world, "pve2").files.read(".rrd") or "").nodes[0].at_s == START_WALL_S + 100
    world.stop_statistics("pve1", stopped=False)
    assert seen(world, 100).cpu_used_cores == 4.0

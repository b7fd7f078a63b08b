# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent drain`: what the unit runs as its node shuts down, on a simulated cluster with real agents."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest
from pytest_mock import MockerFixture

from agent import wiring
from agent.commands import drain
from agent.core.cluster import Task
from agent.core.settings import Settings
from agent.core.shutdown import ShutdownFlag, parse_flag
from agent.ports import TemporaryError
from agent.sim.migrations import FailureKind
from tests.commands.rig import Run, Stage, entry
from tests.core.clusters import cluster, node, vm

FLAG = "proxlb/maintenance/pve1"
BOOT = "pve1-boot-1"
SMALL = [
    {"vmid": 101, "node": "pve1", "name": "web1", "memory_gib": 8, "used_memory_gib": 6, "used_cores": 1},
    {"vmid": 102, "node": "pve1", "name": "db1", "memory_gib": 8, "used_memory_gib": 6, "used_cores": 1},
]
LOCAL = {"vmid": 103, "node": "pve1", "name": "scratch", "memory_gib": 4, "used_memory_gib": 3, "local_disks": ["local-zfs:vm-103-disk-0"]}
CALM = {"balance": {"spread_percent": 0}}

Shutdown = Callable[[], tuple[int, list[str]]]


@pytest.fixture
def shutdown(run: Run, mocker: MockerFixture) -> Shutdown:
    """Shut pve1 down: what came of it, and what was said."""
    mocker.patch.object(wiring, "is_shutting_down", return_value=True)
    mocker.patch.object(wiring, "is_enabled", return_value=True)
    mocker.patch.object(wiring, "boot_id", return_value=BOOT)
    mocker.patch.object(drain, "watched", lambda work: work(lambda: None))  # the simulation is in this process

    def go() -> tuple[int, list[str]]:
        ran = run("drain")
        assert ran.err == ""
        return ran.status, ran.out.splitlines()

    return go


def flag_of(on: Stage) -> ShutdownFlag | None:
    return parse_flag(on.world.main.files[FLAG])


def test_its_guests_leave_and_the_lead_before_them(stage: Callable[..., Stage], shutdown: Shutdown) -> None:
    on = stage(entry(guests=SMALL), CALM)
    assert on.world.lock_holder() == "pve1"
    status, said = shutdown()
    assert status == 0
    assert said[0] == "pve1 shuts down: its guests leave first, for at most 600 s"
    assert said[-1] == "pve1 is empty: the shutdown goes on"
    assert {guest.node for guest in on.world.guests.values()} <= {"pve2", "pve3"}
    assert {post.sender for post in on.world.post_record} <= {"pve2", "pve3"}, "the lead was handed over first"
    assert flag_of(on) == ShutdownFlag(BOOT, "all have left")


def test_who_cannot_leave_is_named_and_nobody_waits_for_it(stage: Callable[..., Stage], shutdown: Shutdown) -> None:
    on = stage(entry(guests=[*SMALL, LOCAL]), CALM)
    status, said = shutdown()
    assert status == 1
    assert said[-1].startswith(
        "pve1 shuts down with 1 guest: nobody is left who can leave; vm:103 scratch stays: the guest has disks on local"
    )
    assert on.world.guests[103].node == "pve1"
    assert sum(on.slept_s) < 200


def test_guests_of_the_ha_manager_are_not_waited_for(stage: Callable[..., Stage], shutdown: Shutdown) -> None:
    on = stage(entry(guests=[SMALL[0], SMALL[1] | {"ha": "started"}]), CALM)
    assert shutdown()[1][-1] == "pve1 is empty but for 1 of the HA manager: the shutdown goes on"
    assert on.world.guests[102].node == "pve1"


def test_an_empty_node_waits_for_nothing(stage: Callable[..., Stage], shutdown: Shutdown) -> None:
    on = stage(entry(guests=[{"vmid": 201, "node": "pve2"}]), CALM)
    slept = len(on.slept_s)
    assert shutdown()[0] == 0
    assert len(on.slept_s) == slept
    assert flag_of(on) == ShutdownFlag(BOOT, "all have left"), "so that it is no target any more"


def test_the_limit_ends_the_wait_and_the_moves(stage: Callable[..., Stage], shutdown: Shutdown) -> None:
    big = [guest | {"memory_gib": 30, "used_memory_gib": 28} for guest in SMALL]
    on = stage(entry(guests=big), CALM | {"drain": {"shutdown_limit_s": 30, "parallel_per_node": 1}})
    status, said = shutdown()
    assert status == 1
    assert said[-1].startswith("pve1 shuts down with 2 guests: the limit of 30 s is reached; ")
    assert "vm:101 web1 did not leave in time" in said[-1] or "vm:102 db1" in said[-1]
    assert flag_of(on) == ShutdownFlag(BOOT, "the limit of 30 s is reached")
    on.live(300)
    assert len(on.world.post_record) == 1, "what was under way has ended, and nothing more was begun"


def test_two_that_go_wait_for_nothing(stage: Callable[..., Stage], shutdown: Shutdown) -> None:
    on = stage(entry(guests=SMALL), CALM)
    on.world.set_flag("pve3", ShutdownFlag("pve3-boot-1").text)
    status, said = shutdown()
    assert status == 1
    assert "pve3 shuts down, too" in said[-1]
    assert sum(on.slept_s[1:]) <= drain.SEEN_S
    on.live(60)
    assert on.world.post_record == []


def test_a_second_one_that_goes_ends_the_wait(stage: Callable[..., Stage], shutdown: Shutdown) -> None:
    on = stage(entry(guests=SMALL), CALM | {"drain": {"parallel_per_node": 1}})
    on.simulation.at(on.world.now_s + 12, lambda: on.world.set_flag("pve3", ShutdownFlag("pve3-boot-1").text))
    assert "pve3 shuts down, too" in shutdown()[1][-1]
    on.live(120)
    assert len(on.world.post_record) == 1


def test_a_flag_that_another_node_left_behind_is_no_second_one(stage: Callable[..., Stage], shutdown: Shutdown) -> None:
    on = stage(entry(guests=SMALL), CALM)
    on.world.set_flag("pve3", ShutdownFlag("pve3-boot-0").text)
    assert shutdown()[0] == 0
    assert {guest.node for guest in on.world.guests.values()} == {"pve2"}


@pytest.mark.parametrize(
    ("settings", "happens", "why"),
    [
        ({"mode": "observe"}, None, "mode is observe"),
        ({"mode": "off"}, None, "mode is off"),
        ({}, lambda world: world.power_off_node("pve3"), "the other nodes would not be quorate without it"),
        ({}, lambda world: world.cut_node("pve1"), "it is not in the quorate part of the cluster"),
        ({}, lambda world: world.restart_pmxcfs("pve1", 3600), "/etc/pve is not mounted"),
    ],
)
def test_it_is_not_emptied(
    stage: Callable[..., Stage], shutdown: Shutdown, settings: dict[str, object], happens: Callable[..., None] | None, why: str
) -> None:
    on = stage(entry(guests=SMALL), CALM | settings)
    if happens is not None:
        happens(on.world)
        on.live(5)
    slept = sum(on.slept_s)
    status, said = shutdown()
    assert (status, said) == (1, [f"pve1 is not emptied before it shuts down: {why}"])
    assert sum(on.slept_s) == slept, "the shutdown goes on at once"
    assert on.world.post_record == []


def test_quorum_that_goes_ends_the_wait(stage: Callable[..., Stage], shutdown: Shutdown) -> None:
    on = stage(entry(guests=SMALL), CALM)
    on.simulation.at(on.world.now_s + 5, lambda: on.world.cut_node("pve1"))
    began = on.world.now_s
    assert shutdown()[0] == 1
    assert on.world.now_s - began < 30


def test_without_an_agent_elsewhere_nobody_waits_long(stage: Callable[..., Stage], shutdown: Shutdown) -> None:
    on = stage(entry(guests=SMALL), CALM)
    for name in ("pve2", "pve3"):
        on.world.kill_agent(name)
    began = on.world.now_s
    assert "no agent on another node leads" in shutdown()[1][-1]
    assert on.world.now_s - began < 60
    assert on.world.post_record == []


def test_moves_that_fail_are_not_waited_for_for_ever(stage: Callable[..., Stage], shutdown: Shutdown) -> None:
    on = stage(entry(guests=SMALL), CALM)
    on.world.fail_next_migration(FailureKind.ABORTED, times=20)
    began = on.world.now_s
    assert shutdown()[0] == 1
    assert on.world.now_s - began < 600
    assert {guest.node for guest in on.world.guests.values()} == {"pve1"}


def test_an_api_that_does_not_answer_is_not_waited_for_longer_than_anything(
    stage: Callable[..., Stage], shutdown: Shutdown, mocker: MockerFixture
) -> None:
    on = stage(entry(guests=SMALL), CALM)
    on.world.cut_api("pve1")
    mocker.patch.object(wiring, "look", side_effect=TemporaryError("the API cannot be reached"))
    began = on.world.now_s
    status, said = shutdown()
    assert status == 1
    assert said.count("cannot look now: the API cannot be reached") == 1
    assert "nothing moves any more" in said[-1]
    assert on.world.now_s - began < drain.STALL_S + 30


def test_a_persons_flag_is_left_as_it_is(stage: Callable[..., Stage], shutdown: Shutdown) -> None:
    """The node leads, and goes on leading: a person who wants it empty does not want it without a leader."""
    on = stage(entry(guests=SMALL), CALM)
    on.world.set_flag("pve1", "a new kernel")
    on.live(2)
    assert shutdown()[0] == 0
    assert on.world.main.files[FLAG].strip() == "a new kernel"


def test_nothing_happens_unless_the_system_shuts_down_and_the_unit_is_enabled(
    stage: Callable[..., Stage], shutdown: Shutdown, mocker: MockerFixture
) -> None:
    on = stage(entry(guests=SMALL), CALM)
    mocker.patch.object(wiring, "is_enabled", return_value=False)
    assert shutdown() == (0, [])
    mocker.patch.object(wiring, "is_enabled", return_value=True)
    mocker.patch.object(wiring, "is_shutting_down", return_value=False)
    assert shutdown() == (0, ["this system does not shut down, so there is nothing to do"])
    assert FLAG not in on.world.main.files


# -- a process of its own ------------------------------------------------------------------------------------------------------------


def test_the_works_status_is_the_status() -> None:
    def work(beat: drain.Beat) -> int:
        beat()
        return 7

    assert drain.watched(work) == 7


def test_work_that_hangs_is_left_behind(capfd: pytest.CaptureFixture[str]) -> None:
    def work(beat: drain.Beat) -> int:
        beat()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        while True:
            signal.pause()

    assert drain.watched(work, silent_s=0.05) == 1
    os.wait()
    assert "nothing answers" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("error", "said"), [(TemporaryError("no API"), "the guests go with the node: no API"), (ZeroDivisionError(), "a bug in the agent")]
)
def test_what_goes_wrong_is_said_and_the_shutdown_goes_on(error: Exception, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    def work(_: drain.Beat) -> int:
        raise error

    assert drain.watched(work) == 1
    assert said in capfd.readouterr().out


def test_a_guest_whose_migration_is_not_over_has_not_left(stage: Callable[..., Stage]) -> None:
    """Its configuration is on the target already; a container is started there only at the task's end."""
    stage(entry(guests=[]), CALM)
    settings = Settings()
    emptying = drain._Emptying(settings, wiring.make_files(settings), "pve1", is_own=True)
    running = Task("UPID:pve1:1", "pve1", "vzmigrate", "101", "root@pam", 1.0)
    nobody = cluster(node("pve1"), node("pve2"))
    assert emptying._judge(replace(nobody, tasks=(running,))) is None
    elsewhere = replace(running, node="pve2")
    assert emptying._judge(replace(nobody, tasks=(replace(running, ended_at=2.0, status="OK"), elsewhere))) == "all have left"


def test_a_node_that_a_guest_is_on_its_way_to_is_not_empty(stage: Callable[..., Stage]) -> None:
    """PVE has started its process here already, to take its memory in."""
    stage(entry(guests=[]), CALM)
    settings = Settings()
    emptying = drain._Emptying(settings, wiring.make_files(settings), "pve1", is_own=True)
    runs = Task("UPID:pve2:1", "pve2", "qmigrate", "101", "root@pam", 10.0)
    started = Task("UPID:pve1:2", "pve1", "qmstart", "101", "root@pam", 12.0, 13.0, "OK")
    there = cluster(node("pve1"), node("pve2"), vm(101, "pve2"))
    assert emptying._judge(replace(there, tasks=(runs, started))) is None
    assert emptying._judge(replace(there, tasks=(replace(runs, ended_at=20.0, status="OK"), started))) == "all have left"

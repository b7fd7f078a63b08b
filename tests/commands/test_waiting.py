# SPDX-License-Identifier: GPL-3.0-or-later
"""`maintenance enter --wait`: what it waits for, when it ends, and how it is told."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from agent import wiring
from agent.cli import main
from agent.commands.draining import will_pass
from agent.core.cluster import HaResource, HighAvailability, Snapshot
from agent.core.plan_types import Refusal
from agent.core.reasons import RefusalReason
from agent.core.settings import Settings
from agent.ports import TemporaryError
from agent.sim.migrations import FailureKind
from tests.commands.rig import Run, Stage, entry

HA = {"vmid": 101, "node": "pve1", "name": "web1", "used_memory_gib": 3, "ha": "started"}
ONE = {"vmid": 101, "node": "pve1", "name": "web1", "used_memory_gib": 3}
CALM = {"balance": {"spread_percent": 0}}


class TestWhatPasses:
    def test_a_node_that_the_ha_manager_empties_is_waited_for(self, stage: Callable[..., Stage], run: Run) -> None:
        """It takes the request for the node up, and then its master is away for a minute before anybody leaves."""
        on = stage(entry(guests=[HA, HA | {"vmid": 102}]), CALM)
        on.world.request_ha_maintenance("pve1")
        on.world.ha.hang()
        on.simulation.at(on.world.now_s + 60, lambda: on.world.ha.hang(False))
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert (ran.status, ran.out.splitlines()[-1]) == (0, "pve1 is empty"), ran.err
        assert {guest.node for guest in on.world.guests.values()} <= {"pve2", "pve3"}

    def test_a_node_that_has_just_booted_is_waited_for(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(entry(guests=[ONE | {"node": "pve2"}]), CALM)
        on.world.power_off_node("pve2")
        on.live(60)
        on.world.power_on_node("pve2")
        on.live(30)
        assert on.world.guests[101].status == "running"
        ran = run("maintenance", "enter", "pve2", "--wait")
        assert (ran.status, ran.out.splitlines()[-1]) == (0, "pve2 is empty"), ran.err

    @pytest.mark.parametrize(
        ("refusal", "passes"),
        [
            (Refusal(101, RefusalReason.HA_EMPTIES), True),
            (Refusal(101, RefusalReason.NODE_STARTING, "up for 12 s"), True),
            (Refusal(101, RefusalReason.UNANSWERED, "timed out"), True),
            (Refusal(101, RefusalReason.BUSY, "qmclone is running"), True),
            (Refusal(101, RefusalReason.LOCKED, "migrate"), True),
            (Refusal(101, RefusalReason.LOCKED, "snapshot"), False),
            (Refusal(101, RefusalReason.HA_BUSY, "on its way to pve2"), True),
            (Refusal(102, RefusalReason.HA_BUSY, "error"), False),
            (Refusal(101, RefusalReason.IGNORED), False),
        ],
        ids=lambda value: f"{value.reason.value} {value.detail}".strip() if isinstance(value, Refusal) else "",
    )
    def test_what_ends_by_itself_is_no_reason_to_end_the_wait(self, refusal: Refusal, passes: bool) -> None:
        resources = (HaResource(101, state="migrate", target="pve2"), HaResource(102, state="error"))
        snapshot = Snapshot(0.0, (), (), ha=HighAvailability(resources=resources))
        assert will_pass(refusal, snapshot) is passes

    def test_who_is_on_the_way_to_the_node_is_waited_for(self, stage: Callable[..., Stage], run: Run) -> None:
        """A person brings a guest there: a reboot in that moment would end the migration, and perhaps the guest."""
        on = stage(entry(guests=[ONE | {"node": "pve2", "migration_s": 40}]), CALM)
        on.world.migrate_by_person(101, "pve1")
        on.live(5)
        assert on.world.guests[101].node == "pve2"
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert (ran.status, ran.out.splitlines()[-1]) == (0, "pve1 is empty"), ran.err
        assert "on the way to pve1: 1 guest: 101" in ran.err
        assert on.world.guests[101].node != "pve1"
        assert not on.world.in_flight()

    def test_whom_the_ha_manager_brings_home_is_waited_for(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(entry(guests=[HA, ONE | {"vmid": 102}]), CALM)
        assert run("maintenance", "enter", "pve1", "--wait").status == 0
        on.live(60)
        ran = run("maintenance", "leave", "pve1", "--wait")
        assert (ran.status, ran.out.splitlines()[-1]) == (0, "both guests that left pve1 are home again"), ran.err
        assert {guest.node for guest in on.world.guests.values()} == {"pve1"}

    def test_who_will_not_come_home_is_named_at_the_end_of_the_wait(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(entry(guests=[ONE | {"migration_s": 40}, ONE | {"vmid": 102}]), CALM)
        assert run("maintenance", "enter", "pve1", "--wait").status == 0
        to = "pve3" if on.world.guests[102].node == "pve2" else "pve2"
        on.simulation.at(on.world.now_s + 3, lambda: on.world.migrate_by_person(102, to))
        ran = run("maintenance", "leave", "pve1", "--wait")
        assert ran.status == 0, ran.err
        assert (
            ran.out.splitlines()[-1] == f"nobody is waited for any more of 2 guests that left pve1: 1 is home again, guest 102 is on {to}"
        )

    def test_where_nobody_left_nobody_is_waited_for(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(entry(guests=[ONE]), CALM)
        assert run("maintenance", "leave", "pve1", "--wait").out.splitlines()[-1] == "no guest of pve1 is away"


class TestWhoStays:
    def test_an_api_that_is_away_for_a_while_is_told_once_and_waited_for(
        self, stage: Callable[..., Stage], run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        on = stage(entry(guests=[ONE]), CALM)
        look, back_s = wiring.look, on.world.now_s + 60

        def away(settings: Settings) -> Snapshot:
            if on.world.now_s < back_s:
                raise TemporaryError("no answer")
            return look(settings)

        monkeypatch.setattr(wiring, "look", away)
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert (ran.status, ran.out.splitlines()[-1]) == (0, "pve1 is empty"), ran.err
        assert ran.err.count("cannot look now: no answer") == 1

    def test_each_is_named_with_why_and_what_helps(self, stage: Callable[..., Stage], run: Run) -> None:
        guests = [
            ONE,
            ONE | {"vmid": 102, "name": "db1", "tags": ["plb_pin_pve1"]},
            ONE | {"vmid": 103, "name": "gpu", "local_devices": ["hostpci0"]},
            ONE | {"vmid": 104, "name": "old", "lock": "snapshot"},
        ]
        on = stage(entry(guests=guests), CALM)
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert ran.status == 1
        told = ran.out.partition("\n")[2]
        assert re.fullmatch(
            "vm:102 db1 stays: no node can take the guest .*\n  what helps: .*proxlb-agent explain 102\n"
            "vm:103 gpu stays: the guest uses devices of its node .hostpci0.\n  what helps: stop it; or take the device .*\n"
            "vm:104 old stays: PVE holds a lock on the guest .snapshot.\n  what helps: .* on pve1: qm unlock 104\n",
            told,
        ), told
        assert ran.err.splitlines()[-1] == (
            "proxlb-agent: pve1 is not empty: 3 guests still there; "
            "the node stays in maintenance; to end that: proxlb-agent maintenance leave pve1"
        )
        assert on.world.guests[101].node != "pve1"
        assert sum(on.slept_s[1:]) < 60, "nobody waits for who cannot leave"

    def test_a_lock_that_is_gone_in_a_minute_is_waited_for(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(entry(guests=[ONE]), CALM)
        on.world.fail_next_migration(FailureKind.REFUSED, 101, "VM is locked (snapshot)", 1)
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert (ran.status, ran.out.splitlines()[-1]) == (0, "pve1 is empty"), ran.err

    def test_who_waits_for_an_ha_manager_that_does_nothing_is_told_so_in_the_end(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(entry(guests=[HA]), CALM)
        on.world.request_ha_maintenance("pve1")
        on.world.ha.hang()
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert ran.status == 1
        assert ran.out.splitlines()[-2:] == [
            "vm:101 web1 stays: the HA manager empties the node, and takes the guest along by itself",
            "  what helps: nothing but to wait for the HA manager; `ha-manager status` tells how it stands",
        ]

    def test_a_mode_in_which_nobody_is_moved_ends_it_at_once(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(entry(guests=[ONE]), CALM | {"mode": "observe"})
        slept = len(on.slept_s)
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert ran.status == 1
        assert "vm:101 web1 has not left yet; nothing is known to keep it" in ran.out
        assert "mode is observe, so nobody moves its guests" in ran.err.splitlines()[-1]
        assert len(on.slept_s) == slept

    def test_a_pause_with_an_end_is_waited_for_and_told(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(entry(guests=[ONE]), CALM)
        run("pause", "--for", "20m", "--reason", "network work")
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert (ran.status, ran.out.splitlines()[-1]) == (0, "pve1 is empty"), ran.err
        assert ran.err.count("nobody is moved at present: paused (network work, until") == 1
        assert on.world.now_s > 1200

    def test_a_pause_without_an_end_is_not(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(entry(guests=[ONE]), CALM)
        run("pause")
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert ran.status == 1
        assert "nothing has moved for 5 minutes" in ran.err.splitlines()[-1]


class TestHowItIsTold:
    def test_lines_say_how_far_it_has_come_and_how_long_it_takes_as_soon_as_that_was_measured(
        self, stage: Callable[..., Stage], run: Run
    ) -> None:
        big = {"used_memory_gib": 20, "memory_gib": 24}
        stage(entry(guests=[ONE | big, ONE | big | {"vmid": 102}, ONE | big | {"vmid": 103}]), CALM | {"drain": {"parallel_per_node": 1}})
        lines = run("maintenance", "enter", "pve1", "--wait").err.splitlines()
        assert lines[0] == "3 guests on pve1: vm:101, vm:102, vm:103 (0 of 3 guests, 0.0 of 60.0 GiB)"
        assert re.fullmatch(r"1 guest on pve1: vm:10. \(2 of 3 guests, 40.0 of 60.0 GiB, about \d+ s left\)", lines[-1])

    def test_on_a_terminal_a_bar_says_it_and_goes_when_it_is_over(
        self, stage: Callable[..., Stage], run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage(entry(guests=[ONE, ONE | {"vmid": 102, "name": "mail", "tags": ["plb_ignore"]}]), CALM)
        terminal = Terminal()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "stderr", terminal)
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert ran.status == 1
        drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
        assert re.search(r"emptying pve1 \S+ +0 of 2 guests, 0.0 of 6.0 GiB", drawn)
        assert re.search(r"emptying pve1 \S+ +1 of 2 guests, 3.0 of 6.0 GiB", drawn)
        assert terminal.getvalue().endswith("maintenance leave pve1\n"), "what went wrong stays below"
        assert "vm:102 mail stays: " in ran.out

    def test_without_the_package_for_the_bar_there_are_lines(
        self, stage: Callable[..., Stage], run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage(entry(guests=[ONE]), CALM)
        terminal = Terminal()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stderr", terminal)
        for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "rich", None)
        assert run("maintenance", "enter", "pve1", "--wait").status == 0
        assert terminal.getvalue() == "1 guest on pve1: vm:101 (0 of 1 guest, 0.0 of 3.0 GiB)\n"

    def test_ctrl_c_ends_the_wait_and_not_the_maintenance(self, stage: Callable[..., Stage], run: Run, mocker: MockerFixture) -> None:
        on = stage(entry(guests=[ONE]), CALM)
        mocker.patch("time.sleep", side_effect=KeyboardInterrupt)
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert ran.status == 130
        assert ran.err.splitlines()[-1] == (
            "proxlb-agent: not waited for any longer; pve1 stays in maintenance and is emptied further; "
            "to end that: proxlb-agent maintenance leave pve1"
        )
        assert "proxlb/maintenance/pve1" in on.world.main.files

    def test_ctrl_c_while_guests_come_home(self, stage: Callable[..., Stage], run: Run, mocker: MockerFixture) -> None:
        stage(entry(guests=[ONE]), CALM)
        run("maintenance", "enter", "pve1", "--wait")
        mocker.patch("time.sleep", side_effect=KeyboardInterrupt)
        ran = run("maintenance", "leave", "pve1", "--wait")
        assert ran.status == 130
        assert ran.err.splitlines()[-1] == "proxlb-agent: not waited for any longer; what left still comes home"

    def test_in_a_pipe_its_lines_stand_in_the_order_in_which_they_were_said(
        self, stage: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage(entry(guests=[ONE]), CALM)
        both = tmp_path / "both"
        with both.open("a") as out, both.open("a", buffering=1) as err:
            monkeypatch.setattr(sys, "stdout", out)
            monkeypatch.setattr(sys, "stderr", err)
            assert main(["maintenance", "enter", "pve1", "--wait"]) == 0
            monkeypatch.undo()
        lines = both.read_text().splitlines()
        assert lines[0].startswith("pve1 is in maintenance now")
        assert lines[1].startswith("1 guest on pve1")
        assert lines[-1] == "pve1 is empty"


class Terminal(io.StringIO):
    """Standard error with somebody at it."""

    def isatty(self) -> bool:
        return True

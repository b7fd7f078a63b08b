# SPDX-License-Identifier: GPL-3.0-or-later
"""`maintenance enter --wait`: what it waits for, when it ends, and how it is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from agent.cli import main
from agent.commands.draining import will_pass
from agent.core.cluster import HaResource, HighAvailability, Snapshot
from agent.core.plan_types import Refusal
from agent.core.reasons import RefusalReason
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


class TestHowItIsTold:
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

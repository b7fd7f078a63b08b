# SPDX-License-Identifier: GPL-3.0-or-later
"""Quiet hours, as commands tell of them and go past them."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.commands.rig import Run, Stage
from tests.commands.test_schemas import must_keep

QUIET = {"quiet_hours": [{"from": "00:00", "to": "06:00"}]}


def test_plan_explain_and_status_tell_until_when(stage: Callable[..., Stage], run: Run) -> None:
    on = stage(settings=QUIET)
    note = "quiet hours until 06:00: the agent does not balance load, unless asked by balance --force"
    assert note in run("plan").err
    assert note in run("explain", 101).out
    on.live(120)
    assert on.world.post_record == []
    assert must_keep("status", run("status", "--json").out)["quiet_hours"] == {"until": 1767225600 + 6 * 3600}
    assert "quiet hours    no load is balanced until 2026-01-01 " in run("status").out
    assert "; quiet hours until 06:00" in run("status").out, "of the last decision"


def test_outside_of_them_nothing_is_told(stage: Callable[..., Stage], run: Run) -> None:
    on = stage(settings={"quiet_hours": [{"days": ["fri"], "from": "00:00", "to": "06:00"}]})
    on.live(10)
    assert "quiet" not in run("plan").err + run("explain", 101).out + run("status").out
    assert json.loads(run("status", "--json").out)["quiet_hours"] is None


def test_a_person_is_told_and_goes_past_them_only_by_force(stage: Callable[..., Stage], run: Run) -> None:
    on = stage(settings=QUIET)
    ran = run("balance", "--yes")
    assert "note: quiet hours until 06:00" in ran.err
    assert ran.out.splitlines()[-1].endswith("; quiet hours until 06:00")
    assert on.world.post_record == []
    ran = run("balance", "--yes", "--force")
    assert ran.status == 0
    assert "quiet" not in ran.err
    assert len(on.world.post_record) >= 1

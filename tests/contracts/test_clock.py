# SPDX-License-Identifier: GPL-3.0-or-later
"""What every `Clock` promises."""

from __future__ import annotations

from tests.contracts.stages import ClockStage


def test_both_clocks_go_on(clocks: ClockStage) -> None:
    clock = clocks.clock()
    boot_s, wall_s = clock.boottime_s(), clock.wall_s()
    clocks.pass_s(0.02)
    assert 0.019 < clock.boottime_s() - boot_s < 60.0
    assert 0.0 < clock.wall_s() - wall_s < 60.0


def test_the_wall_clock_is_unix_time_and_the_other_one_is_not(clocks: ClockStage) -> None:
    clock = clocks.clock()
    assert clock.wall_s() > 1_700_000_000 > clock.boottime_s() > 0

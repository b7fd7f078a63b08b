# SPDX-License-Identifier: GPL-3.0-or-later
"""What past migrations foretell, against what the simulated cluster then takes."""

from __future__ import annotations

from pathlib import Path

from agent.core.durations import Pace
from tests.scenarios.scenario import read_checks, run

FOLDER = Path(__file__).parent / "sixth-migration-takes-what-five-before-it-foretold"


def test_after_five_migrations_the_sixth_is_foretold_within_a_quarter() -> None:
    done = run(FOLDER, read_checks(FOLDER))
    assert done.history is not None
    timings = sorted(done.history.timings, key=lambda one: one.at)
    assert len(timings) == 6, "each that was done once, none that failed"
    *before, sixth = timings
    expected = Pace(before, done.settings).expected(sixth.way, sixth.memory_bytes)
    assert expected.rests_on == 5
    assert abs(expected.seconds - sixth.took_s) <= 0.25 * sixth.took_s
    assumed = Pace((), done.settings).expected(sixth.way, sixth.memory_bytes)
    assert assumed.rests_on == 0
    assert abs(assumed.seconds - sixth.took_s) > 0.25 * sixth.took_s, "what is assumed is not what this network does: the five say it"

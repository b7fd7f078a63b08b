# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated days with faults; more of them: `python3 -m tests.chaos --seeds N`."""

from __future__ import annotations

import pytest

from tests.chaos.__main__ import replay
from tests.chaos.day import Day
from tests.chaos.plants import PLANTS, Plant

SEEDS = (1, 2, 3, 7)
LEAST_HITS = 60  # of all kinds together, on each day; the fewest seen is four times that
JUDGED = ("guest that may move", "room on the target", "rules", "echoes", "inbox")


@pytest.mark.parametrize("seed", SEEDS)
def test_day(seed: int) -> None:
    day = Day(seed)
    day.run()
    assert not list(day.problems()), f"again with: {replay(seed)}"
    assert day.hits.total() >= LEAST_HITS
    assert all(day.witness.judged[what] for what in JUDGED), day.witness.judged


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_planted_bug_is_found(plant: Plant) -> None:
    with plant.planted():
        day = Day(plant.seed)
        day.run(plant.until_s)
        found = [problem for problem in day.problems() if plant.says in problem]
    assert found

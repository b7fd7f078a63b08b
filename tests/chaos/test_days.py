# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated days with faults, and bugs that they must find; more of them: `python3 -m tests.chaos --seeds N`."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos.faults import FAULTS, LOADS
from tests.chaos.lived import JUDGED, LEAST_HITS, too_few
from tests.chaos.plants import PLANTS, Plant

MOST_SEEDS = 200


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_planted_bug_is_found(plant: Plant) -> None:
    """The agents' days go other ways with each change, so a later seed may be the first that finds it soon."""
    assert plant.found_by(plant.seed, plant.until_s) or any(plant.found_by(seed, plant.until_s) for seed in range(1, MOST_SEEDS + 1))


def test_what_hardly_ever_happens_is_named() -> None:
    hits, judged = Counter(dict.fromkeys((*FAULTS, *LOADS), LEAST_HITS)), Counter(dict.fromkeys(JUDGED, LEAST_HITS))
    assert too_few(hits, judged) == []
    assert too_few(hits - Counter(["backup"]), judged - Counter(["rules"])) == ["backup", "rules"]
    assert len(too_few(Counter(), Counter())) == len(FAULTS) + len(LOADS) + len(JUDGED)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated days with faults, and bugs that they must find; more of them: `python3 -m tests.chaos --seeds N`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from tests.chaos.__main__ import main
from tests.chaos.faults import FAULTS, LOADS
from tests.chaos.lived import FAIR_DAYS, JUDGED, LEAST_HITS, too_few
from tests.chaos.plants import PLANTS, Plant

ROOT = Path(__file__).resolve().parents[2]
LEAST_A_DAY = 250  # faults and events on each day; 289 are the fewest that were seen
MOST_SEEDS = 200


def test_forty_days() -> None:
    """In two processes of their own. What fails is printed with the command that lives the day again."""
    command = [sys.executable, "-m", "tests.chaos", "--seeds", str(FAIR_DAYS), "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    a_day = [int(number) for number in re.findall(r"^seed \d+: \d+ requests, (\d+) faults and events", done.stdout, re.MULTILINE)]
    assert len(a_day) == FAIR_DAYS
    assert min(a_day) >= LEAST_A_DAY


@pytest.mark.parametrize("wanted", [["--seeds", "1", "--first", "7"], ["--seeds", "1", "--first", "7", "--days", "0.05", "--nodes", "5"]])
def test_the_command_that_lives_it_again_has_its_length_and_size(
    wanted: list[str], mocker: MockerFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    mocker.patch("tests.chaos.lived.Day.problems", return_value=["it rained"])
    mocker.patch("tests.chaos.lived.Day.run")
    assert main(wanted) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"python3 -m tests.chaos {' '.join(wanted)} --journal"


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_planted_bug_is_found(plant: Plant) -> None:
    """The agents' days go other ways with each change, so a later seed may be the first that finds it soon."""
    assert plant.found_by(plant.seed, plant.until_s) or any(plant.found_by(seed, plant.until_s) for seed in range(1, MOST_SEEDS + 1))


def test_what_hardly_ever_happens_is_named() -> None:
    hits, judged = Counter(dict.fromkeys((*FAULTS, *LOADS), LEAST_HITS)), Counter(dict.fromkeys(JUDGED, LEAST_HITS))
    assert too_few(hits, judged) == []
    assert too_few(hits - Counter(["backup"]), judged - Counter(["rules"])) == ["backup", "rules"]
    assert len(too_few(Counter(), Counter())) == len(FAULTS) + len(LOADS) + len(JUDGED)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Equal input gives equal bytes in every process: Python orders sets of text anew in each, and no plan may depend on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ("0", "1", "4711")

# Plans of random clusters and of whatever leaders remember. With an argument the planner takes nodes in the order of a set.
PROGRAM = """
import json, sys
from agent.core import planner
from agent.core.codec import to_json
from agent.core.conditions import Conditions
from tests.core.clusters import Draw, random_cluster
from tests.core.random_clusters import HOW, remembered

if len(sys.argv) > 1:
    real = Conditions.__init__

    def unsorted(self, *arguments):
        real(self, *arguments)
        self.open_nodes = tuple(set(self.open_nodes))

    Conditions.__init__ = unsorted
for seed in range(25):
    snapshot = random_cluster(Draw(seed, 4 + seed % 6, 20 + seed, (0.0, 1.0, 2.0)[seed % 3], 0.6, 0.4, 0.2))
    plan = planner.plan(snapshot, HOW[seed % len(HOW)], remembered(snapshot, seed))
    print(json.dumps(to_json(plan), sort_keys=True))
"""


def said_by(hash_seed: str, *arguments: str) -> bytes:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, env=environment, cwd=ROOT, timeout=600, check=True
    )
    return ran.stdout


def test_every_process_plans_the_same() -> None:
    said = {said_by(seed) for seed in SEEDS}
    assert len(said) == 1
    assert said.pop().count(b'"vmid"') > 100


def test_a_planner_that_takes_nodes_as_a_set_has_them_is_found_out() -> None:
    assert len({said_by(seed, "unsorted") for seed in SEEDS}) > 1

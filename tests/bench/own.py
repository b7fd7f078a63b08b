# SPDX-License-Identifier: GPL-3.0-or-later
"""This planner on one cluster of the benchmark, in a process of its own, so that its memory is its own.

python -m tests.bench.own NODES GUESTS SHAPE SEED VARIANT SCOPE     prints one line of JSON; SCOPE is `whole` or a VMID
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent.core.cluster import Snapshot
from agent.core.plan_types import Plan
from agent.core.planner import plan
from agent.core.question import EVERYWHERE, Question, Scope
from agent.core.settings import Settings
from agent.core.settings_check import check
from tests.bench.clusters import Case, as_state
from tests.bench.results import Batches
from tests.pve_server.client import TOKEN_SECRET, PveServer, cluster

ROOT = Path(__file__).resolve().parents[2]
AGAIN_BELOW_S = 1.0  # what is over sooner is timed three times, and the middle one counts


class Variant(StrEnum):
    """What the planner evens out."""

    BOTH = "proxlb-agent"
    MEMORY = "proxlb-agent, memory alone"


def document(variant: Variant) -> dict[str, Any]:
    """The settings: defaults but for containers, which every rival here restarts for load, too."""
    changed: dict[str, Any] = {"guests": {"containers": "always"}}
    return changed if variant is Variant.BOTH else changed | {"balance": {"cpu": {"weight": 0}}}


def settings(variant: Variant) -> Settings:
    """As the planner takes them."""
    checked = check(document(variant))
    assert isinstance(checked, Settings), checked
    return checked


def question(snapshot: Snapshot, vmid: int | None = None) -> Question:
    """Everything, gates open; with a VMID what the start of that guest makes the agent look at, gates open as well."""
    if vmid is None:
        return Question(force=True, scope=EVERYWHERE)
    guest = snapshot.guest(vmid)
    assert guest is not None
    return Question(force=True, scope=Scope(frozenset({guest.node}), frozenset({vmid})))


def batches_of(made: Plan) -> Batches:
    """The plan's moves as results keep them."""
    numbers = sorted({move.batch for move in made.moves})
    return tuple(tuple((move.vmid, move.target) for move in made.moves if move.batch == number) for number in numbers)


def measure(case: Case, variant: Variant, vmid: int | None = None) -> dict[str, Any]:
    """Plan in a fresh interpreter; the fields of a `results.Run`."""
    command = [str(case.nodes), str(case.guests), case.shape, str(case.seed), variant.name, "whole" if vmid is None else str(vmid)]
    done = subprocess.run([sys.executable, "-m", "tests.bench.own", *command], cwd=ROOT, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    answer["batches"] = tuple(tuple((vmid, target) for vmid, target in batch) for batch in answer["batches"])
    return answer


def dry_run(case: Case, variant: Variant) -> tuple[float, int, int]:
    """`proxlb-agent plan --json` against the played API: its seconds, requests, and most resident memory."""
    nodes, guests = as_state(case.snapshot())
    with tempfile.TemporaryDirectory(prefix="own-") as name, PveServer(cluster(nodes, guests)) as pve:
        folder = Path(name)
        (folder / "token").write_text(TOKEN_SECRET + "\n", encoding="utf-8")
        api = {"hosts": [f"localhost:{pve.port}"], "token_file": str(folder / "token"), "ca_file": pve.ca_file}
        paths = {"pmxcfs": str(folder / "pve"), "run": str(folder / "run"), "state": str(folder / "state")}
        config = document(variant) | {"api": api, "paths": paths}
        (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        command = ["/usr/bin/python3", "-c", _WITH_MEMORY, "--config", str(folder / "config.yaml"), "plan", "--json"]
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        wall_s = time.monotonic() - began
        json.loads(done.stdout)
        return wall_s, sum(pve.counters().values()), int(done.stderr.splitlines()[-1]) * 1024


_WITH_MEMORY = """
import runpy, sys
sys.argv[0] = "agent"
try:
    runpy.run_module("agent", run_name="__main__", alter_sys=True)
finally:
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
"""


def peak_bytes() -> int:
    """The most memory that was resident in this process since it began to run this program."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main(arguments: list[str]) -> None:
    """Plan and print."""
    nodes, guests, shape, seed, variant, scope = arguments
    snapshot = Case(int(nodes), int(guests), shape, int(seed)).snapshot()
    used, asked = settings(Variant[variant]), question(snapshot, None if scope == "whole" else int(scope))
    took: list[float] = []
    while not took or (took[0] < AGAIN_BELOW_S and len(took) < 3):
        began = time.process_time()
        made = plan(snapshot, used, asked)
        took.append(time.process_time() - began)
    assert "numpy" not in sys.modules
    peak = peak_bytes()
    from tests.bench.judge import FACTS  # only now: what the checker takes is not the planner's
    from tests.core.checker import wrong_in

    answer = {
        "batches": batches_of(made),
        "plan_s": sorted(took)[len(took) // 2],
        "evaluations": made.evaluations,
        "peak_bytes": peak,
        "facts": {"wrong": wrong_in(snapshot, made, replace(FACTS, cpu_weight=used.balance.cpu.weight))[:3]},
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])

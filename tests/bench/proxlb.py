# SPDX-License-Identifier: GPL-3.0-or-later
"""ProxLB 2.3.0 and its CP-SAT solver 0.1.1, unmodified and in a venv of their own, on a cluster played over HTTPS.

Every run is one dry run of one process with its own server: nothing moves. The greedy's moves are read from its --json, in
the order in which it would ask for them, one after the other; the solver's from the run file it writes, step by step.
Balanciness is 5: points of spread for the greedy, and the level at which the solver moves "for even the slightest improvement".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from agent.core.cluster import Snapshot
from tests.bench.clusters import as_state
from tests.pve_server.client import TOKEN_ID, TOKEN_SECRET, PveServer, cluster

ROOT = Path(__file__).resolve().parents[2]
NO_SLEEP = Path(__file__).resolve().parent / "no_sleep"
REQUIREMENTS = ROOT / "tests" / "requirements" / "rivals.txt"
SOLVER_S = 30.0  # its own default


class Rival(StrEnum):
    """A way to balance."""

    DEFAULT = "ProxLB"
    LARGER_FIRST = "ProxLB, larger first"
    SOLVER = "ProxLB's solver"


@dataclass(frozen=True)
class RivalRun:
    """What a rival wants to do, and what finding it took.

    Units:   seconds, bytes; `plan_s` is the solver's own figure, None for the greedy, whose part cannot be told from its reading.
    Shape:   `batches` are its moves (VMID to target) in its order, each inner list at once; `said` is what it said of itself.
    """

    batches: tuple[tuple[tuple[int, str], ...], ...]
    wall_s: float
    cpu_s: float
    requests: int
    peak_bytes: int
    plan_s: float | None = None
    said: str = ""


class RivalError(Exception):
    """The rival ended without a plan."""


def python(prepare: bool = True) -> Path:
    """The rivals' interpreter, in a venv made from PyPI when it is missing or made from something else."""
    home = Path(os.environ.get("PROXLB_RIVALS", ROOT / ".cache" / "rivals"))
    made_from = home / "made-from"
    wanted = f"{ROOT}\n{REQUIREMENTS.read_text(encoding='utf-8')}"
    if prepare and "PROXLB_RIVALS" not in os.environ and (not made_from.exists() or made_from.read_text(encoding="utf-8") != wanted):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-qq", "--no-input", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--only-binary", ":all:", "-r", str(REQUIREMENTS)], check=True)
        made_from.write_text(wanted, encoding="utf-8")
    return home / "bin" / "python"


def run(snapshot: Snapshot, rival: Rival, *, sleeps: bool, certs: Path | None = None) -> RivalRun:
    """Let the rival plan for the snapshot.

    `sleeps`: with its pauses between requests; without them only its wall time differs. `certs`: a folder for certificates that
    runs may share.

    Raises:  RivalError with its last words.
    """
    nodes, guests = as_state(snapshot)
    with tempfile.TemporaryDirectory(prefix="rival-") as name, PveServer(cluster(nodes, guests), certs=certs) as pve:
        folder = Path(name)
        (folder / "proxlb.yaml").write_text(json.dumps(_settings(rival, pve, folder)), encoding="utf-8")
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "REQUESTS_CA_BUNDLE": pve.ca_file}
        if not sleeps:
            environment["PYTHONPATH"] = str(NO_SLEEP)
        with (folder / "out").open("w", encoding="utf-8") as out:
            began = time.monotonic()
            process = subprocess.Popen(
                [str(python()), "-m", "proxlb", "--dry-run", "--json", "--config", str(folder / "proxlb.yaml")],
                cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            wall_s = time.monotonic() - began
        text = (folder / "out").read_text(encoding="utf-8")
        if process.returncode != 0:
            raise RivalError(f"{rival} ended with {process.returncode}: {text[-2000:]}")
        plan_s, said = None, ""
        if rival is Rival.SOLVER:
            batches, plan_s, said = _solver_moves(folder / "solver", {guest.name: guest.vmid for guest in snapshot.guests})
        else:
            batches = _greedy_moves(text)
        return RivalRun(
            batches=batches,
            wall_s=wall_s,
            cpu_s=usage.ru_utime + usage.ru_stime,
            requests=sum(pve.counters().values()),
            peak_bytes=usage.ru_maxrss * 1024,
            plan_s=plan_s,
            said=said,
        )


def _settings(rival: Rival, pve: PveServer, folder: Path) -> dict[str, Any]:
    user, _, token = TOKEN_ID.partition("!")
    return {
        "proxmox_api": {
            "hosts": [f"{pve.host}:{pve.port}"], "user": user, "token_id": token, "token_secret": TOKEN_SECRET,
            "ssl_verification": True, "timeout": 60,
        },
        "balancing": {
            "enable": True, "enforce_affinity": True, "enforce_pinning": True, "balance_types": ["vm", "ct"], "method": "memory",
            "mode": "used", "balanciness": 5, "balance_larger_guests_first": rival is Rival.LARGER_FIRST,
        },
        "service": {"daemon": False, "log_level": "WARNING"},
        "solver": {"enable": rival is Rival.SOLVER, "mode": "active", "timeout_seconds": SOLVER_S, "log_dir": str(folder / "solver")},
    }  # fmt: skip


def _greedy_moves(text: str) -> tuple[tuple[tuple[int, str], ...], ...]:
    lines = text.splitlines()
    document = json.loads("\n".join(lines[lines.index("{") : len(lines) - lines[::-1].index("}")]))
    movers = [
        (guest["id"], guest["node_target"])
        for guest in document["guests"].values()
        if guest["node_target"] != guest["node_current"] and not guest["ignore"]
    ]
    return tuple((mover,) for mover in movers)


def _solver_moves(folder: Path, vmids: Mapping[str, int]) -> tuple[tuple[tuple[tuple[int, str], ...], ...], float | None, str]:
    steps: dict[int, list[tuple[int, str]]] = {}
    plan_s, said = None, []
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event["event"] == "plan_step":
                steps.setdefault(event["step"], []).append((vmids[event["vm"]], event["target"]))
            elif event["event"] == "solver_run":
                plan_s = event["wall_time_ms"] / 1000
                said.append(event["status"])
            elif event["event"] in ("infeasible", "unbreakable_cycle", "error"):
                said.append(f"{event['event']} {event.get('message', '')}".strip())
    return tuple(tuple(moves) for _, moves in sorted(steps.items())), plan_s, ", ".join(said)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of commands share: how a command ended, a simulated cluster that lives while one waits, a machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.sim.world import World
from agent.simulation import Simulation

NODES = ("pve1", "pve2", "pve3")
RELEASED = {
    "schema": "proxlb-agent/leader/1",
    "node": "pve3",
    "incarnation": "x",
    "epoch": 1,
    "state": "released",
    "since": 0,
    "version": "0",
}


@dataclass
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("proxlb-agent: ")
        return lines[0].removeprefix("proxlb-agent: ")


Run = Callable[..., Ran]


@dataclass
class Stage:
    """A simulated cluster on whose node pve1 commands run; while one sleeps, the cluster lives on."""

    simulation: Simulation
    folder: Path
    slept_s: list[float] = field(default_factory=list)

    @property
    def world(self) -> World:
        return self.simulation.world

    def live(self, seconds: float) -> None:
        """Let time pass; what pve1's agent says of itself is in its file then."""
        self.slept_s.append(seconds)
        self.simulation.run(self.world.now_s + seconds)
        text = self.world.nodes["pve1"].status_text
        if text is not None:
            (self.folder / "status.json").write_text(text)


def entry(**more: Any) -> dict[str, Any]:
    """A cluster.yaml: pve1 full, pve2 and pve3 with room."""
    document: dict[str, Any] = {
        "nodes": {name: {"cores": 16, "memory_gib": 64} for name in NODES},
        "guests": [
            {"vmid": 101, "node": "pve1", "name": "web1", "memory_gib": 16, "used_memory_gib": 15, "used_cores": 1},
            {"vmid": 102, "node": "pve1", "name": "db1", "memory_gib": 16, "used_memory_gib": 15, "used_cores": 1},
            {"vmid": 103, "node": "pve1", "name": "mail", "memory_gib": 16, "used_memory_gib": 15, "used_cores": 1},
            {"vmid": 104, "node": "pve1", "name": "wiki", "memory_gib": 12, "used_memory_gib": 11, "used_cores": 1},
            {"vmid": 201, "node": "pve2", "name": "web2", "memory_gib": 8, "used_memory_gib": 7, "used_cores": 1},
        ],
        "files": {"proxlb/leader.json": json.dumps(RELEASED)},
    }
    return document | more


@dataclass
class Place:
    """A machine with a configuration: on a node when `pmxcfs` looks mounted, away from one otherwise."""

    config: Path
    pmxcfs: Path
    run_folder: Path

    def files(self) -> dict[str, str]:
        """All that stands below /etc/pve and /run, to see that nothing changed."""
        found = {}
        for root in (self.pmxcfs, self.run_folder):
            for path in sorted(root.rglob("*")) if root.exists() else ():
                if path.is_file() and path.name != "pve-ssl.key":
                    found[str(path)] = path.read_text(errors="replace")
        return found


def members(state: str) -> str:
    """`.members` as pmxcfs shows it: of a quorate or inquorate cluster, or of a single node."""
    document: dict[str, Any] = {"nodename": "pve1", "version": 4}
    if state != "standalone":
        document["cluster"] = {"name": "c", "version": 3, "nodes": 3, "quorate": int(state == "quorate")}
        document["nodelist"] = {name: {"id": number, "online": 1, "ip": f"192.0.2.{number}"} for number, name in enumerate(NODES, 1)}
    return json.dumps(document)

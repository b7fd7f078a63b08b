# SPDX-License-Identifier: GPL-3.0-or-later
"""Where commands are tried: on a simulated cluster whose agents run while a command waits, and against the played API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytest_mock import MockerFixture

from agent import wiring
from agent.cli import main
from agent.core.settings import Settings, check
from agent.sim.cluster_file import read_cluster
from agent.sim.driver import Simulation
from agent.sim.ports import ports_of
from agent.sim.world import World
from tests.pve_server.client import TOKEN_SECRET, PveServer, cluster

NODES = ("pve1", "pve2", "pve3")
RELEASED = {"schema": "proxlb-agent/leader/1", "node": "pve3", "incarnation": "x", "epoch": 1, "state": "released", "since": 0, "version": "0"}


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


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line."""

    def go(*arguments: object) -> Ran:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Ran(status, said.out, said.err)

    return go


# --- a simulated cluster


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


@pytest.fixture
def stage(tmp_path: Path, mocker: MockerFixture) -> Callable[..., Stage]:
    """Make the cluster, and have commands run on its node pve1."""

    def make(document: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, live_s: float = 30.0) -> Stage:
        wanted: dict[str, Any] = {"triggers": {"warmup_s": 0, "first_observe_s": 0}} | (settings or {})
        checked = check(wanted | {"paths": {"run": str(tmp_path), "pmxcfs": "/etc/pve", "state": str(tmp_path)}})
        assert isinstance(checked, Settings), checked
        made = Stage(Simulation(read_cluster(document or entry()), checked), tmp_path)
        world, ports = made.world, ports_of(made.world, "pve1")
        mocker.patch.object(wiring, "load_settings", lambda config=None: checked)
        mocker.patch.object(wiring, "make_files", lambda settings: ports.files)
        mocker.patch.object(wiring, "make_api", lambda settings: ports.api)
        mocker.patch.object(wiring, "host_name", lambda: "pve1")
        mocker.patch.object(wiring, "SystemClock", lambda: ports.clock)
        mocker.patch.object(wiring, "leave_request", lambda settings, request, text: world.request("pve1", request, text))
        mocker.patch("time.sleep", made.live)
        mocker.patch("time.monotonic", lambda: world.now_s)
        made.live(live_s)
        return made

    return make


# --- the played API


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
                if path.is_file() and path.name not in {"pve-ssl.key"}:
                    found[str(path)] = path.read_text(errors="replace")
        return found


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/etc/pve as far as certificates go."""
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="session")
def server(certificates: Path) -> Iterator[PveServer]:
    with PveServer(cluster(NODES), listen=["pve1=127.0.0.1:0"], certs=certificates) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificates: Path) -> Callable[..., Place]:
    """Make a machine: `mounted` None is away from a node."""

    def make(port: int, *, mounted: str | None = None, token: str | None = TOKEN_SECRET, **settings: Any) -> Place:
        root, run_folder = tmp_path / "pve", tmp_path / "run"
        run_folder.mkdir()
        if mounted is not None:
            (root / "priv").mkdir(parents=True)
            for name in NODES:
                (root / "nodes" / name).mkdir(parents=True)
            (root / "local").symlink_to("nodes/pve1")
            (root / "local" / "pve-ssl.pem").write_bytes((certificates / "nodes/pve1/pve-ssl.pem").read_bytes())
            (root / ".members").write_text(members(mounted))
        (tmp_path / "token").write_text("" if token is None else token + "\n")
        document: dict[str, Any] = {
            "api": {
                "hosts": [f"localhost:{port}"],
                "token_file": str(tmp_path / "token"),
                "ca_file": str(certificates / "pve-root-ca.pem"),
                "timeout_s": 5,
            },
            "paths": {"pmxcfs": str(root), "run": str(run_folder), "state": str(tmp_path / "state")},
        }
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(document | settings))
        monkeypatch.delenv("PROXLB_AGENT_TOKEN", raising=False)
        monkeypatch.delenv("PROXLB_AGENT_CONFIG", raising=False)
        monkeypatch.setattr(wiring, "host_name", lambda: "pve1")
        return Place(config, root, run_folder)

    return make


def members(state: str) -> str:
    """`.members` as pmxcfs shows it: of a quorate or inquorate cluster, or of a single node."""
    document: dict[str, Any] = {"nodename": "pve1", "version": 4}
    if state != "standalone":
        document["cluster"] = {"name": "c", "version": 3, "nodes": 3, "quorate": int(state == "quorate")}
        document["nodelist"] = {name: {"id": number, "online": 1, "ip": f"192.0.2.{number}"} for number, name in enumerate(NODES, 1)}
    return json.dumps(document)

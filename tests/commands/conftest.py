# SPDX-License-Identifier: GPL-3.0-or-later
"""Where commands are tried: on a simulated cluster whose agents run while a command waits, and against the played API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytest_mock import MockerFixture

from agent import config_files, wiring
from agent.cli import main
from agent.core.settings import Settings
from agent.core.settings_check import check
from agent.sim.cluster_file import read_cluster
from agent.sim.ports import ports_of
from agent.simulation import Simulation
from tests.commands.rig import NODES, Place, Ran, Run, Stage, entry, members
from tests.pve_server.client import TOKEN_SECRET, PveServer, cluster


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


@pytest.fixture
def stage(tmp_path: Path, mocker: MockerFixture) -> Callable[..., Stage]:
    """Make the cluster, and have commands run on its node pve1."""

    def make(document: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, live_s: float = 30.0) -> Stage:
        wanted: dict[str, Any] = {"triggers": {"warmup_s": 0, "first_observe_s": 0}} | (settings or {})
        checked = check(wanted | {"paths": {"run": str(tmp_path), "pmxcfs": "/etc/pve", "state": str(tmp_path)}})
        assert isinstance(checked, Settings), checked
        made = Stage(Simulation(read_cluster(document or entry()), checked), tmp_path)
        world, ports = made.world, ports_of(made.world, "pve1")
        mocker.patch.object(config_files, "load_settings", return_value=checked)
        mocker.patch.object(wiring, "make_files", return_value=ports.files)
        mocker.patch.object(wiring, "make_api", return_value=ports.api)
        mocker.patch.object(wiring, "host_name", return_value="pve1")
        mocker.patch.object(wiring, "SystemClock", return_value=ports.clock)
        mocker.patch.object(wiring, "leave_request", lambda settings, request, text: world.request("pve1", request, text))
        mocker.patch("time.sleep", made.live)
        mocker.patch("time.monotonic", side_effect=lambda: world.now_s)
        made.live(live_s)
        return made

    return make


# --- the played API


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/etc/pve as far as certificates go."""
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="session")
def server(certificates: Path) -> Iterator[PveServer]:
    with PveServer(cluster(NODES), listen=["pve1=127.0.0.1:0"], certs=certificates) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificates: Path, server: PveServer) -> Iterator[Callable[..., Place]]:
    """Make a machine: `mounted` None is away from a node. Its certificate is one that `server` has made."""
    opened: list[Any] = []
    make_api = wiring.make_api

    def kept(settings: Settings) -> Any:
        opened.append(make_api(settings))
        return opened[-1]

    monkeypatch.setattr(wiring, "make_api", kept)

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
                "timeout_s": 30,
            },
            "paths": {"pmxcfs": str(root), "run": str(run_folder), "state": str(tmp_path / "state")},
        }
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(document | settings))
        monkeypatch.delenv("PROXLB_AGENT_TOKEN", raising=False)
        monkeypatch.delenv("PROXLB_AGENT_CONFIG", raising=False)
        monkeypatch.setattr(wiring, "host_name", lambda: "pve1")
        return Place(config, root, run_folder)

    yield make
    for api in opened:  # a command's process ends, and its connections with it
        api.close()

# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong outside: for each one clear line, an exit status, no traceback, and nothing changed."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytest_mock import MockerFixture

from agent import config_files, wiring
from tests.commands.rig import NODES, Place, Run
from tests.pve_server.client import GIB, TOKEN_SECRET, PveServer, cluster, vm

PLACE = ["place", "--memory-gib", "1", "--cores", "1"]
READING = (["cluster"], ["guests"], ["plan"], ["explain", "100"], PLACE, ["snapshot", "-"])


def well(command: list[str]) -> int:
    """How the command ends when nothing is wrong: here no agent runs, so no node has reported itself, and none takes a new guest."""
    return 1 if command is PLACE else 0


@pytest.fixture
def pve(server: PveServer) -> Iterator[PveServer]:
    """Three nodes, all guests on the first."""
    server.load(cluster(NODES, [vm(vmid, "pve1", mem_bytes=6 * GIB, maxmem_bytes=8 * GIB) for vmid in range(100, 104)]))
    yield server
    assert server.requests(method="POST") == []


@pytest.mark.parametrize("command", READING, ids=lambda command: command[0])
class TestReadingCommands:
    def test_an_api_that_cannot_be_reached(self, place: Callable[..., Place], run: Run, command: list[str]) -> None:
        with socket.socket() as taken:  # so that nobody else gets the port; nobody listens there
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            ran = run("--config", place(port).config, *command)
        assert (ran.status, ran.out) == (1, "")
        assert f"localhost:{port}" in ran.complaint

    def test_a_token_that_pve_refuses(
        self, place: Callable[..., Place], run: Run, pve: PveServer, command: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        where = place(pve.port)
        monkeypatch.setenv("PROXLB_AGENT_TOKEN", "00000000-0000-0000-0000-00000000bad0")
        ran = run(*command, "--config", where.config)
        assert (ran.status, ran.out) == (1, "")
        assert "token" in ran.complaint
        assert "setup" in ran.complaint

    def test_no_token_yet(self, place: Callable[..., Place], run: Run, pve: PveServer, command: list[str]) -> None:
        ran = run("--config", place(pve.port, token=None).config, *command)
        assert (ran.status, ran.out) == (1, "")
        assert "on a node run proxlb-agent setup; elsewhere set api.hosts, and PROXLB_AGENT_TOKEN" in ran.complaint

    def test_without_quorum_reading_goes_on(self, place: Callable[..., Place], run: Run, pve: PveServer, command: list[str]) -> None:
        where = place(pve.port, mounted="no quorum")
        before = where.files()
        assert run("--config", where.config, *command).status == well(command)
        assert where.files() == before


@pytest.mark.parametrize("state", ["quorate", "standalone"])
def test_reading_changes_nothing_on_a_node(place: Callable[..., Place], run: Run, pve: PveServer, state: str) -> None:
    where = place(pve.port, mounted=state)
    before = where.files()
    for command in READING:
        assert run("--config", where.config, *command).status == well(command)
    assert where.files() == before


def test_a_single_node_has_nothing_to_balance(place: Callable[..., Place], run: Run, pve: PveServer) -> None:
    pve.load(cluster(["pve1"], [vm(100, "pve1")]))
    where = place(pve.port, mounted="standalone")
    assert "nothing to balance" in run("--config", where.config, "cluster").out
    ran = run("--config", where.config, "balance", "--yes")
    assert (ran.status, ran.out) == (0, "this node is in no cluster: there is nothing to balance\n")
    ran = run("--config", where.config, "maintenance", "enter", "pve1")
    assert ran.status == 1
    assert "last usable node" in ran.complaint


@pytest.mark.parametrize("arguments", [["explain", "999"], ["plan", "--guest", "999"]])
def test_an_unknown_guest(place: Callable[..., Place], run: Run, pve: PveServer, arguments: list[str]) -> None:
    ran = run("--config", place(pve.port).config, *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.complaint == "there is no guest 999 in the cluster; proxlb-agent guests lists them"


@pytest.mark.parametrize("arguments", [["guests", "--node", "pve9"], ["plan", "--node", "pve9"]])
def test_an_unknown_node(place: Callable[..., Place], run: Run, pve: PveServer, arguments: list[str]) -> None:
    ran = run("--config", place(pve.port).config, *arguments)
    assert (ran.status, ran.complaint) == (2, "there is no node pve9; the nodes are: pve1, pve2, pve3")


@pytest.mark.parametrize(
    "words",
    ["balance --yes", "maintenance enter pve1", "maintenance leave pve1", "maintenance list", "pause", "resume", "history", "setup"],
)
def test_away_from_a_node(place: Callable[..., Place], run: Run, pve: PveServer, words: str) -> None:
    where = place(pve.port)
    ran = run("--config", where.config, *words.split())
    assert (ran.status, ran.out) == (2, "")
    assert "works on a node of the cluster only" in ran.complaint
    assert where.files() == {}
    assert pve.requests() == []


@pytest.mark.parametrize("words", ["balance --yes", "maintenance enter pve2", "maintenance leave pve2", "pause --for 2h", "resume"])
def test_without_quorum_nothing_is_changed(place: Callable[..., Place], run: Run, pve: PveServer, words: str) -> None:
    where = place(pve.port, mounted="no quorum")
    before = where.files()
    ran = run("--config", where.config, *words.split())
    assert (ran.status, ran.out) == (1, "")
    assert "quorate" in ran.complaint
    assert where.files() == before


def test_balance_where_no_agent_runs(place: Callable[..., Place], run: Run, pve: PveServer, mocker: MockerFixture) -> None:
    where = place(pve.port, mounted="quorate", balance={"spread_percent": 1, "min_gain_percent": 0, "node_reserve": {"memory_gib": 0}})
    (where.pmxcfs / "nodes/pve1/qemu-server").mkdir()
    for vmid in range(100, 104):
        (where.pmxcfs / f"nodes/pve1/qemu-server/{vmid}.conf").write_text("memory: 8192\n")
    before = where.files()
    mocker.patch.object(wiring, "read_senses", return_value=None)  # nobody has reported, so nobody would be a target
    ran = run("--config", where.config, "balance", "--yes", "--force")
    assert ran.status == 1
    assert "the agent does not run on this machine" in ran.complaint
    assert where.files() == before


class TestStatus:
    def test_no_agent(self, place: Callable[..., Place], run: Run) -> None:
        ran = run("--config", place(1).config, "status")
        assert (ran.status, ran.out) == (1, "")
        assert "the agent does not run on this machine" in ran.complaint
        assert "systemctl status proxlb-agent" in ran.complaint

    def test_an_agent_that_has_not_been_heard_of_for_a_minute(self, place: Callable[..., Place], run: Run, mocker: MockerFixture) -> None:
        where = place(1)
        path = where.run_folder / "status.json"
        path.write_text('{"schema": "proxlb-agent/status/1"}')
        mocker.patch("time.time", return_value=path.stat().st_mtime + 61)
        ran = run("--config", where.config, "status")
        assert (ran.status, ran.out) == (1, "")
        assert "61 s ago" in ran.complaint

    def test_an_agent_that_has_just_ended_is_not_shown_as_it_was(self, place: Callable[..., Place], run: Run) -> None:
        where = place(1)
        (where.run_folder / "status.json").write_text('{"schema": "proxlb-agent/status/1"}')
        with subprocess.Popen(["true"]) as ended:
            ended.wait()
        (where.run_folder / "agent.lock").write_text(f"{ended.pid}\n")
        ran = run("--config", where.config, "status")
        assert (ran.status, ran.out) == (1, "")
        assert "the agent does not run: it has ended" in ran.complaint
        assert "systemctl status proxlb-agent" in ran.complaint

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "proxlb-agent/status/2"}'])
    def test_a_damaged_file(self, place: Callable[..., Place], run: Run, text: str) -> None:
        where = place(1)
        (where.run_folder / "status.json").write_text(text)
        ran = run("--config", where.config, "status")
        assert (ran.status, ran.out) == (1, "")
        assert "status.json" in ran.complaint


class TestSettings:
    @pytest.mark.parametrize(
        "command", [*READING, ["status"], ["balance"], ["maintenance", "list"], ["pause"], ["history"], ["setup"], ["run"]]
    )
    def test_misspelt_settings_stop_every_command(self, place: Callable[..., Place], run: Run, pve: PveServer, command: list[str]) -> None:
        where = place(pve.port, mounted="quorate", balanc={"spread_percent": 1}, mode="ful")
        before = where.files()
        ran = run("--config", where.config, *command)
        assert ran.status == 2
        assert "did you mean balance?" in ran.complaint
        assert "did you mean full?" in ran.complaint
        assert where.files() == before
        assert pve.requests() == []

    def test_the_environment_names_the_file(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PROXLB_AGENT_CONFIG", str(tmp_path / "none.yaml"))
        ran = run("plan")
        assert ran.status == 2
        assert "none.yaml: there is no such file" in ran.complaint

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("mode: [", "line 1, column"),
            ("- mode", "must be a mapping of settings, not a list"),
            ("mode: full\nmode: off", 'the key "mode" stands in line 1 already'),
            ("balance: {spred_percent: 1}", "balance.spred_percent: unknown, did you mean balance.spread_percent?"),
            ("balance: {spread_percent: 1000}", "balance.spread_percent: must be a number from 0 to 100 percent, not 1000"),
        ],
    )
    def test_check_config_names_the_place(self, run: Run, tmp_path: Path, text: str, says: str) -> None:
        file = tmp_path / "config.yaml"
        file.write_text(text)
        for arguments in (["check-config", file], ["--config", file, "check-config"]):
            ran = run(*arguments)
            assert (ran.status, ran.out) == (2, "")
            assert ran.complaint.startswith(f"{file}: ")
            assert says in ran.complaint

    def test_other_commands_name_the_first_problems_and_how_many_there_are(self, run: Run, tmp_path: Path) -> None:
        file = tmp_path / "config.yaml"
        file.write_text("mode: ful\nguest: {}\nlog: {level: loud}\ndrain: 3\nnodes: 4\n")
        ran = run("--config", file, "plan")
        assert ran.status == 2
        assert "; and 2 more; mend the file, and check it with: proxlb-agent check-config" in ran.complaint
        assert "log.level" in ran.complaint
        assert "drain" not in ran.complaint

    def test_check_config_says_which_files_are_not_there(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        node = tmp_path / "node.yaml"
        monkeypatch.setattr(config_files, "NODE_CONFIG", str(node))
        monkeypatch.delenv("PROXLB_AGENT_CONFIG", raising=False)
        node.write_text(f"paths: {{pmxcfs: {tmp_path}}}\n")
        assert run("check-config").out == f"no problems found ({tmp_path}/proxlb/config.yaml not there: defaults)\n"
        (tmp_path / "proxlb").mkdir()
        (tmp_path / "proxlb/config.yaml").write_text("")
        assert run("check-config").out == "no problems found\n"

    def test_check_config_names_every_problem_of_every_file(self, run: Run, tmp_path: Path) -> None:
        one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
        one.write_text("mode: ful\nguest: {}\n")
        other.write_text("log: {level: loud}\n")
        ran = run("check-config", one, other, tmp_path / "none.yaml")
        assert ran.status == 2
        assert [line.split(": ")[1:3] for line in ran.err.splitlines()] == [
            [str(one), "mode"],
            [str(one), "guest"],
            [str(other), "log.level"],
            [str(tmp_path / "none.yaml"), "there is no such file"],
        ]

    def test_check_config_shows_what_is_in_effect(self, run: Run, tmp_path: Path) -> None:
        file = tmp_path / "config.yaml"
        file.write_text("mode: rules\n")
        assert run("check-config", file).out == "no problems found\n"
        lines = run("check-config", "--show", file).out.splitlines()
        assert lines[0].split(maxsplit=1) == ["mode", '"rules"   (default: "full")']
        assert yaml.safe_load(run("check-config", "--json", file).out)["mode"] == "rules"


class TestTheTokenThatIsStored:
    """`setup` is what the agent says helps when the API refuses the token: it must not find all in order then."""

    @pytest.fixture
    def stored(self, place: Callable[..., Place], pve: PveServer, mocker: MockerFixture) -> Callable[[str], bool]:
        where = place(pve.port, mounted="quorate")
        secret = where.pmxcfs / "priv/proxlb/token"
        secret.parent.mkdir()
        given = yaml.safe_load(where.config.read_text())
        given["api"]["token_file"] = str(secret)
        where.config.write_text(yaml.safe_dump(given))
        settings = config_files.load_settings(str(where.config))

        def is_refused(text: str) -> bool:
            secret.write_bytes(text.encode("latin-1"))
            return wiring.refuses_the_token(settings)

        return is_refused

    def test_a_good_one_is_not_refused(self, stored: Callable[[str], bool]) -> None:
        assert not stored(TOKEN_SECRET + "\n")

    @pytest.mark.parametrize("text", ["another", "two words", "\xff\xfe"])
    def test_others_are(self, stored: Callable[[str], bool], text: str) -> None:
        assert stored(text)

    def test_where_the_api_does_not_answer_nobody_can_tell(self, stored: Callable[[str], bool], pve: PveServer) -> None:
        pve.endpoint(0, False)
        try:
            assert not stored("another")
        finally:
            pve.endpoint(0, True)


class TestSnapshotFiles:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (None, "No such file"),
            (b"{", "this is no JSON"),
            (b"\xff", "not UTF-8"),
            (b'{"schema": "proxlb-agent/plan/1"}', "this is no snapshot"),
        ],
    )
    def test_what_is_no_snapshot(self, place: Callable[..., Place], run: Run, tmp_path: Path, content: bytes | None, says: str) -> None:
        file = tmp_path / "snapshot.json"
        if content is not None:
            file.write_bytes(content)
        ran = run("--config", place(1).config, "plan", "--snapshot", file)
        assert (ran.status, ran.out) == (2, "")
        assert str(file) in ran.complaint
        assert says in ran.complaint

    def test_a_folder_that_is_not_there(self, place: Callable[..., Place], run: Run, pve: PveServer, tmp_path: Path) -> None:
        ran = run("--config", place(pve.port).config, "snapshot", tmp_path / "none" / "x.json")
        assert ran.status == 2
        assert "cannot be written" in ran.complaint


class TestSetup:
    def test_only_root_may(self, place: Callable[..., Place], run: Run, mocker: MockerFixture) -> None:
        where = place(1, mounted="quorate")
        mocker.patch("os.geteuid", return_value=1000)
        access = mocker.patch.object(wiring, "set_up_access")
        ran = run("--config", where.config, "setup")
        assert ran.status == 2
        assert "run this as root" in ran.complaint
        assert not access.called

    def test_it_says_what_it_did(self, place: Callable[..., Place], run: Run, mocker: MockerFixture) -> None:
        where = place(1, mounted="quorate")
        mocker.patch("os.geteuid", return_value=0)
        mocker.patch.object(wiring, "set_up_access", return_value=(("made the role", True), ("the user is there", False)))
        assert run("--config", where.config, "setup").out.splitlines() == [
            "done: made the role",
            "fine: the user is there",
            "the agent may ask the API now",
        ]
        mocker.patch.object(wiring, "set_up_access", return_value=(("the role has all privileges", False),))
        assert run("--config", where.config, "setup").out.splitlines()[-1] == "nothing had to be changed"


def test_guests_that_the_token_does_not_see(place: Callable[..., Place], run: Run, pve: PveServer, mocker: MockerFixture) -> None:
    where = place(pve.port, mounted="quorate")
    real: Any = wiring.look
    mocker.patch.object(wiring, "look", side_effect=lambda settings: _with_unseen(real(settings)))
    assert "105" in run("--config", where.config, "cluster").out
    ran = run("--config", where.config, "plan")
    assert "no plan is made: the token does not see all guests" in ran.out
    assert "the agent only observes" in ran.err


def test_nodes_whose_agents_have_not_reported_are_named(place: Callable[..., Place], run: Run, pve: PveServer) -> None:
    where = place(pve.port, mounted="quorate")
    ran = run("--config", where.config, "plan")
    assert "fewer than two nodes can take part (pve1: node-silent, pve2: node-silent, pve3: node-silent)" in ran.out


def _with_unseen(snapshot: Any) -> Any:
    return replace(snapshot, unseen=(105,))

# SPDX-License-Identifier: GPL-3.0-or-later
"""`simulate` and `demo`: what the packaged shows must and must not show, and what is said of a scenario with mistakes."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from agent.commands.picture import Canvas, picture
from agent.commands.scenario import read_scenario
from tests.commands.rig import Run

ROOT = Path(__file__).resolve().parents[2]
DEMO, README = ROOT / "agent/sim/demo", ROOT / "README.md"
START = re.compile(r"  proxlb-agent \S+ runs on |  pve[2-4]  follows pve1$")
CLUSTER = "nodes: {pve1: {cores: 8, memory_gib: 32}, pve2: {cores: 8, memory_gib: 32}}\nguests: [{vmid: 101, node: pve1}]\n"
EVENT = "[{{at_s: 1, do: {}, vmid: {}}}]"


class TestDemo:
    def test_the_right_guest_moves_and_the_node_is_emptied_and_filled_again(self, run: Run) -> None:
        ran = run("demo", "--no-wait")
        assert (ran.status, ran.err) == (0, "")
        moves = re.findall(r"moving vm:(\d+) \S+ from (\S+) to (\S+) \(([a-z-]+),", ran.out)
        assert moves[0][0] != "105"
        assert moves[0][1] == "pve1"
        assert moves[0][3] == "overload"
        assert "105" not in {vmid for vmid, *_ in moves}
        assert {(source, why) for _, source, _, why in moves if why == "maintenance"} == {("pve3", "maintenance")}
        assert {target for _, _, target, why in moves if why == "return-home"} == {"pve3"}
        assert "warning" not in ran.out
        assert "error" not in ran.out

    def test_nobody_moves_before_the_start(self, run: Run) -> None:
        before = run("demo", "--no-wait").out.partition("guest 105 started")[0]
        assert "moving" not in before

    def test_no_node_is_ever_over_its_limit(self) -> None:
        scenario = read_scenario(DEMO)
        worst = 0.0

        def watch() -> None:
            nonlocal worst
            worst = max(worst, *(use.used_memory_bytes / (use.memory_bytes - (4 << 30)) for use in scenario.world.use().values()))

        scenario.simulation.run(292, watch)
        assert worst <= 1.0

    def test_without_overload_nobody_moves(self, run: Run) -> None:
        ran = run("demo", "--no-wait", "--without-overload")
        assert ran.status == 0
        assert "moving" not in ran.out
        assert "Guests that moved: none." in ran.out
        assert "guest 105 started on pve1: nothing to do" in ran.out

    def test_the_readme_shows_what_it_prints(self, run: Run, accept: bool) -> None:
        said = run("demo", "--no-wait").out
        shown = "".join(line for line in said.splitlines(keepends=True) if not START.search(line))
        readme = README.read_text(encoding="utf-8")
        before, there, rest = readme.partition("## What the demo shows\n")
        assert there
        told, fence, after = rest.partition("\n```\n")
        block, _, after = after.partition("```\n")
        if accept:
            README.write_text(f"{before}{there}{told}{fence}{shown}```\n{after}", encoding="utf-8")
            return
        assert block == shown, "to take it over: tests/run tests/commands/test_simulated.py -k readme --accept"

    def test_it_comes_out_the_same_each_time(self, run: Run) -> None:
        assert run("demo", "--no-wait").out == run("demo", "--no-wait").out

    def test_it_is_paced(self, run: Run, mocker: MockerFixture) -> None:
        naps, begun_s = mocker.spy(time, "sleep"), time.monotonic()
        assert run("demo", "--without-overload", "--speed", "90").status == 0
        assert time.monotonic() - begun_s > 0.9
        assert sum(nap.args[0] for nap in naps.call_args_list) < 5, "what it takes besides is the machine's"

    @pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf", "fast"])
    def test_a_speed_that_is_none(self, run: Run, speed: str) -> None:
        assert run("demo", f"--speed={speed}").status == 2

    def test_the_picture_on_a_terminal(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")
        out = run("demo", "--without-overload", "--speed", "90").out
        assert out.count("\x1b[?1049h") == out.count("\x1b[?1049l") == 1
        assert "What the agent says:" in out
        assert "Guests that moved: none." in out.rpartition("\x1b[?1049l")[2]

    def test_the_picture_shows_nodes_guests_and_flights(self) -> None:
        scenario = read_scenario(DEMO)
        scenario.simulation.run(105)
        text = picture(scenario.world, "What happens.", ["one", "two"], 0.85, Canvas(100, 40, is_plain=True), 6.5)
        assert text.isascii()
        assert "What happens." in text
        assert "on its way: 302 files from pve3 to pve2" in text
        assert re.search(r"pve3  memory #+\.+ +\d+ %  cpu #+\.+ +\d+ %  maintenance", text)
        assert all(len(line) <= 100 for line in text.splitlines())


class TestSimulate:
    def test_journal_and_places(self, run: Run) -> None:
        ran = run("simulate", DEMO)
        assert (ran.status, ran.err) == (0, "")
        assert "leads the cluster, epoch 2" in ran.out
        assert ran.out.rstrip().endswith("401 web4, 402 chat, 403 proxy")
        journal = run("simulate", DEMO, "--journal").out
        assert journal in ran.out
        assert "RUNNING GUESTS" not in journal

    def test_it_says_what_the_scenario_shows_in_whole_sentences(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "cluster.yaml").write_text(CLUSTER)
        (tmp_path / "README").write_text("Two nodes and\na guest.\n\nMust not happen: anything.\n")
        assert run("simulate", tmp_path).out.startswith("Two nodes and\na guest.\n\n      0.0 s")

    def test_until(self, run: Run) -> None:
        ran = run("simulate", DEMO, "--until", "10")
        assert "after 10 simulated seconds" in ran.out
        assert "guest 105 started" not in ran.out

    @pytest.mark.parametrize(
        ("files", "says"),
        [
            ({}, "cluster.yaml: there is no such file"),
            ({"cluster.yaml": "nodes: ["}, "cluster.yaml: line 1"),
            ({"cluster.yaml": "nodes: {pve1: {cores: 8, memory_gb: 32}}"}, "nodes.pve1.memory_gb"),
            ({"cluster.yaml": CLUSTER, "events.yaml": EVENT.format("start-gest", 101)}, "start-guest is meant?"),
            (
                {"cluster.yaml": CLUSTER, "events.yaml": EVENT.format("start-guest", 999)},
                "start-guest vmid=999 at 1 s cannot be done",
            ),
            (
                {"cluster.yaml": CLUSTER, "events.yaml": EVENT.format("end-migration", 101)},
                "end-migration vmid=101 at 1 s cannot be done",
            ),
            ({"cluster.yaml": CLUSTER, "settings.yaml": "mode: ful"}, "settings.yaml: mode: must be one of"),
        ],
    )
    def test_mistakes_are_named(self, run: Run, tmp_path: Path, files: dict[str, str], says: str) -> None:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        ran = run("simulate", tmp_path)
        assert ran.status == 2
        assert says in ran.complaint

    def test_a_folder_that_is_none(self, run: Run, tmp_path: Path) -> None:
        assert run("simulate", tmp_path / "none").complaint.endswith("none: there is no such folder")

    @pytest.mark.parametrize("until", ["-1", "nan", "inf"])
    def test_a_time_that_is_none(self, run: Run, until: str) -> None:
        assert run("simulate", DEMO, f"--until={until}").status == 2

# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line itself: words, options, exit statuses, and how it ends when somebody stops it or stops reading."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from agent import __version__
from agent.cli import COMMANDS
from agent.commands import run as run_command
from tests.commands.rig import Run

ROOT = Path(__file__).resolve().parents[2]


def test_help_names_every_command(run: Run) -> None:
    ran = run("--help")
    assert ran.status == 0
    for name, text in COMMANDS.items():
        assert f"  {name}" in ran.out
        assert text in ran.out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_and_takes_config(run: Run, name: str) -> None:
    ran = run(name, "--help")
    assert ran.status == 0
    assert f"proxlb-agent {name}" in ran.out
    assert "--config FILE" in ran.out


def test_the_version(run: Run) -> None:
    assert run("--version").out == f"proxlb-agent {__version__}\n"


def test_a_command_that_is_none_is_answered_with_the_nearest(run: Run) -> None:
    assert run("statsu").complaint == "there is no command statsu; did you mean status? proxlb-agent --help lists them"
    assert run("drian", "pve1").complaint.startswith("there is no command drian; did you mean drain?")
    assert run("xyzzy").complaint == "there is no command xyzzy; proxlb-agent --help lists them"


@pytest.mark.parametrize("word", ["web1", "5", "-1", "vm:web1", "1000000000"])
def test_a_word_that_is_no_vmid_is_answered_with_where_they_are(run: Run, word: str) -> None:
    ran = run("plan", f"--guest={word}")
    assert ran.status == 2
    assert f"'{word}' is no VMID; proxlb-agent guests lists them" in ran.err


def test_each_action_of_maintenance_tells_what_it_does(run: Run) -> None:
    for action, told in (("enter", "have the node emptied"), ("leave", "end the maintenance"), ("list", "the nodes in maintenance")):
        assert told in run("maintenance", action, "--help").out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["plan", "--no-such-option"],
        ["explain"],
        ["explain", "web1"],
        ["plan", "extra"],
        ["stat"],
        ["maintenance"],
        ["pause", "--for", "2"],
        ["resume", "pve1"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_two(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err


def test_a_command_that_is_stopped_is_130(run: Run, mocker: MockerFixture) -> None:
    mocker.patch.object(run_command, "execute", side_effect=KeyboardInterrupt)
    ran = run("run")
    assert (ran.status, ran.out, ran.err) == (130, "", "")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    shell = f"{sys.executable} -m agent simulate agent/sim/demo | head -n 1"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.stderr, len(done.stdout.splitlines())) == ("", 1)


def test_control_c_ends_a_command_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "agent", "demo", "--speed", "1"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert (process.returncode, said) == (130, "")


def test_the_agent_itself_imports_neither_simulation_nor_planning_commands() -> None:
    look = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import agent.cli, agent.commands.run\n"
        "print(*sorted(name for name in sys.modules if name.startswith(('agent.sim', 'agent.commands', 'proxmoxer', 'requests'))))"
    )
    done = subprocess.run(["/usr/bin/python3", "-I", "-B", "-c", look, str(ROOT)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "agent.commands agent.commands.run agent.commands.wrong_use\n")

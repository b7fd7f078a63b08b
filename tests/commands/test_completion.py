# SPDX-License-Identifier: GPL-3.0-or-later
"""What bash offers for `proxlb-agent` and a Tab."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from agent.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
COMPLETION = ROOT / "packaging/completion/proxlb-agent"


def offered(*words: str) -> list[str]:
    """The words for the last one, which may be begun."""
    script = f"""
proxlb-agent() {{ /usr/bin/python3 -m agent "$@"; }}
source {shlex.quote(str(COMPLETION))}
COMP_WORDS=(proxlb-agent {shlex.join(words)}) COMP_CWORD={len(words)}
_proxlb_agent
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "--norc", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return [line for line in done.stdout.splitlines() if line]


def test_commands() -> None:
    assert offered("") == sorted({*COMMANDS, "--help", "--version"})
    assert offered("sn") == ["snapshot"]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("plan", "--"), ["--config", "--guest", "--help", "--json", "--node", "--snapshot"]),
        (("maintenance", "enter", "pve1", "--"), ["--for", "--help", "--reason", "--wait"]),
        (("balance", "--f"), ["--force"]),
        (("maintenance", ""), ["--help", "enter", "leave", "list"]),
        (("no-such-command", "--"), []),
    ],
)
def test_options_are_those_of_the_command(words: tuple[str, ...], options: list[str]) -> None:
    assert offered(*words) == options


def test_files_and_folders() -> None:
    assert offered("plan", "--snapshot", "READ") == ["README.md"]
    assert offered("check-config", "LIC") == ["LICENSE"]
    assert offered("simulate", "agent/sim/de") == ["agent/sim/demo"]

# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in behaves as pmxcfs does: tests/conformance, started as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.pmxcfs import client
from tests.pmxcfs.client import Pmxcfs, why_not_possible

pytestmark = pytest.mark.skipif(why_not_possible() is not None, reason=str(why_not_possible()))
SUITE = Path(__file__).resolve().parents[1] / "conformance"
NODES = ("pve1", "pve2", "pve3")
LOCK_LIFE_S = 5.0  # pmxcfs: 120
CUT_S = 1.5  # pmxcfs: 6 to 8
LIMIT_S = 300.0


def environment(pve: Pmxcfs) -> dict[str, str]:
    """What the suite is told: how to play with the stand-in, and what goes faster there."""
    ask = f"/usr/bin/python3 -B {client.__file__} {pve.control}"
    commands = {
        "CUT": f"{ask} cut node={{node}} cut_s:={CUT_S}",
        "HEAL": f"{ask} heal",
        "STOP": f"{ask} unmount node={{node}}",
        "KILL": f"{ask} unmount node={{node}} dead:=true",
        "START": f"{ask} mount node={{node}}",
        "SUSPEND": f"{ask} hang for_s:=3600 nodes:='[\"'{{node}}'\"]'",
        "RESUME": f"{ask} hang for_s:=0",
        "CLOCK": f"{ask} clock node={{node}} offset_s:={{offset_s}}",
        "LOG": f"{ask} log node={{node}} msg={{text}}",
        "STATUS": f"{ask} status node={{node}} key={{key}} value={{value}}",
    }
    told = {f"CONFORMANCE_{name}": command for name, command in commands.items()}
    return {**os.environ, **told, "CONFORMANCE_LOCK_LIFE_S": str(LOCK_LIFE_S), "CONFORMANCE_PYTHON": sys.executable}


def test_the_stand_in_does_what_pmxcfs_does(tmp_path: Path) -> None:
    with Pmxcfs(*NODES, lock_life_s=LOCK_LIFE_S) as pve:
        mounts = [str(pve.at(node)) for node in NODES]
        command = [str(SUITE / "run"), *mounts, "-q", f"--junitxml={tmp_path}/result.xml"]
        done = subprocess.run(command, env=environment(pve), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stdout
        assert all(pve.listing("priv/lock", node=node) == [] for node in NODES), "it left nothing"
        assert "conformance" not in pve.listing()
    cases = list(ET.parse(tmp_path / "result.xml").iter("testcase"))
    assert [case.get("name") for case in cases if case.find("skipped") is not None] == []
    assert len(cases) > 80


def test_without_commands_the_suite_names_what_it_could_not_show() -> None:
    with Pmxcfs(*NODES) as pve:
        mounts = [str(pve.at(node)) for node in NODES]
        told = {
            name: value for name, value in environment(pve).items() if not name.startswith("CONFORMANCE_") or name == "CONFORMANCE_PYTHON"
        }
        command = [str(SUITE / "run"), *mounts, "-q", "-k", "hang or renewed_by_the_node"]
        done = subprocess.run(command, env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout
    assert (
        "test_hang.py::test_calls_wait_without_an_error_and_are_carried_out: Skipped: no command for it: CONFORMANCE_SUSPEND" in done.stdout
    )
    assert "1 passed, 1 skipped" in done.stdout


@pytest.mark.parametrize("mounts", [[], ["/", "/tmp"], ["/nowhere", "/nowhere", "/nowhere"]])
def test_the_suite_wants_three_mounts(mounts: list[str]) -> None:
    done = subprocess.run([SUITE / "run", *mounts], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: tests/conformance/run MOUNT MOUNT MOUNT")

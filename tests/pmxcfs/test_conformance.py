# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in behaves as pmxcfs does: tests/conformance, started as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pmxcfs import ask
from tests.pmxcfs.client import Pmxcfs, why_not_possible

pytestmark = pytest.mark.skipif(why_not_possible() is not None, reason=str(why_not_possible()))
SUITE = Path(__file__).resolve().parents[1] / "conformance"
NODES = ("pve1", "pve2", "pve3")
LOCK_LIFE_S = 120.0  # as pmxcfs: what is to be younger is that on a busy machine, too
SHORT_LIFE_S = 5.0  # for those tests that wait until a lock is old
CUT_S = 2.0  # pmxcfs: 6 to 8
LIMIT_S = 900.0


def environment(pve: Pmxcfs, lock_life_s: float) -> dict[str, str]:
    """What the suite is told: how to play with the stand-in, and what goes faster there."""
    do = f"/usr/bin/python3 -I -S -B {ask.__file__} {pve.control}"
    commands = {
        "CUT": f"{do} cut node={{node}} cut_s:={CUT_S}",
        "HEAL": f"{do} heal",
        "STOP": f"{do} unmount node={{node}}",
        "KILL": f"{do} unmount node={{node}} dead:=true",
        "START": f"{do} mount node={{node}}",
        "SUSPEND": f"{do} hang for_s:=3600 nodes:='[\"'{{node}}'\"]'",
        "RESUME": f"{do} hang for_s:=0",
        "CLOCK": f"{do} clock node={{node}} offset_s:={{offset_s}}",
        "LOG": f"{do} log_lines node={{node}} text={{text}}",
        "STATUS": f"{do} status node={{node}} key={{key}} value={{value}}",
    }
    told = {f"CONFORMANCE_{name}": command for name, command in commands.items()}
    return {**os.environ, **told, "CONFORMANCE_LOCK_LIFE_S": str(lock_life_s), "CONFORMANCE_PYTHON": sys.executable}


@dataclass
class Run:
    """The suite, or those of its tests that are selected, on a stand-in of its own; most of the time it waits."""

    pve: Pmxcfs
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, stack: ExitStack, told: bool, *words: str, lock_life_s: float = LOCK_LIFE_S) -> Run:
        pve = stack.enter_context(Pmxcfs(*NODES, lock_life_s=lock_life_s))
        mounts = [str(pve.at(node)) for node in NODES]
        here = environment(pve, lock_life_s) if told else {**os.environ, "CONFORMANCE_PYTHON": sys.executable}
        process = subprocess.Popen([SUITE / "run", *mounts, "-q", *words], env=here, stdout=-1, stderr=subprocess.STDOUT, text=True)
        stack.callback(cls._end, process)
        return cls(pve, process)

    @staticmethod
    def _end(process: subprocess.Popen[str]) -> None:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()

    def said(self) -> str:
        """What it said when it has ended, which it must with success."""
        said, _ = self.process.communicate(timeout=LIMIT_S)
        assert self.process.returncode == 0, said
        return said


def test_the_stand_in_does_what_pmxcfs_does(tmp_path: Path) -> None:
    first = "test_guests.py or test_hang.py or test_locks.py or test_watching.py"
    second = "test_quorum.py or test_restart.py"
    parts = {first: LOCK_LIFE_S, second: LOCK_LIFE_S, f"not ({first} or {second})": SHORT_LIFE_S}
    cases: list[ET.Element] = []
    with ExitStack() as stack:
        runs = [
            Run.start(stack, True, "-k", part, f"--junitxml={tmp_path}/{number}", lock_life_s=life_s)
            for number, (part, life_s) in enumerate(parts.items())
        ]
        for number, run in enumerate(runs):
            run.said()
            assert all(run.pve.listing("priv/lock", node=node) == [] for node in NODES), "it left nothing"
            assert "conformance" not in run.pve.listing()
            cases += ET.parse(tmp_path / str(number)).iter("testcase")
    assert [case.get("name") for case in cases if case.find("skipped") is not None] == []
    modules = {(case.get("classname") or "").split(".")[-1] for case in cases}
    assert modules == {path.stem for path in SUITE.glob("test_*.py")}


def test_without_commands_the_suite_names_what_it_could_not_show() -> None:
    with ExitStack() as stack:
        said = Run.start(stack, False, "-k", "test_hang.py or renewed_by_the_node").said()
    assert "test_calls_wait_without_an_error_and_are_carried_out: Skipped: no command for it: CONFORMANCE_SUSPEND" in said
    assert "1 passed, 1 skipped" in said


@pytest.mark.parametrize("mounts", [[], ["/", "/tmp"], ["/nowhere", "/nowhere", "/nowhere"]])
def test_the_suite_wants_three_mounts(mounts: list[str]) -> None:
    done = subprocess.run([SUITE / "run", *mounts], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: tests/conformance/run MOUNT MOUNT MOUNT")

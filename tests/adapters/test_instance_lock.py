# SPDX-License-Identifier: GPL-3.0-or-later
"""One agent a node: the lock keeps the second one out, and outlives nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.adapters.instance_lock import InstanceLock
from agent.ports import TemporaryError

ROOT = Path(__file__).resolve().parents[2]
HOLD = (
    "import sys; from agent.adapters.instance_lock import InstanceLock\nlock = InstanceLock(sys.argv[1])\nprint(lock.take(), flush=True)\n"
)


@contextmanager
def another(path: Path, then: str = "sys.stdin.read()") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that takes the lock and says whether it got it."""
    command = [sys.executable, "-c", HOLD + then, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_the_second_process_does_not_get_it(path: Path) -> None:
    mine = InstanceLock(str(path))
    assert mine.take()
    assert mine.take()
    with another(path) as (_, answer):
        assert answer == "False"
    assert not InstanceLock(str(path)).take()
    assert mine.holder() == os.getpid()


def test_it_is_free_when_its_process_was_killed(path: Path) -> None:
    with another(path) as (process, answer):
        assert answer == "True"
        assert not InstanceLock(str(path)).take()
        assert InstanceLock(str(path)).holder() == process.pid
        process.kill()
        process.wait()
        assert InstanceLock(str(path)).take()


@pytest.mark.parametrize(
    "leave_a_child",
    [
        "import subprocess; child = subprocess.Popen(['sleep', '60'], close_fds=False).pid",
        (
            "import os, time\nruns, tells = os.pipe()\nchild = os.fork()\nif child == 0:\n    os.write(tells, b'.')\n    time.sleep(60)\n"
            "os.read(runs, 1)"
        ),
    ],
)
def test_children_do_not_keep_it(path: Path, leave_a_child: str) -> None:
    with another(path, f"{leave_a_child}\nprint(child, flush=True)\nsys.stdin.read()") as (process, answer):
        assert answer == "True"
        assert process.stdout
        child = int(process.stdout.readline())
        try:
            process.kill()
            process.wait()
            os.kill(child, 0)
            assert InstanceLock(str(path)).take()
        finally:
            os.kill(child, 9)


def test_a_removed_file_is_noticed_by_the_next_who_locks(path: Path) -> None:
    first = InstanceLock(str(path))
    assert first.take()
    path.unlink()
    second = InstanceLock(str(path))
    assert second.take()
    assert not InstanceLock(str(path)).take()


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TemporaryError):
        InstanceLock(str(path)).take()
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match="No such file"):
        InstanceLock(str(tmp_path / "missing" / "lock")).take()
    assert InstanceLock(str(tmp_path / "missing" / "lock")).holder() is None

# SPDX-License-Identifier: GPL-3.0-or-later
"""status.json is always whole; the decision journal keeps what fits, line by line, whatever happened before."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from agent.adapters.local_files import DECISIONS, DECISIONS_BEFORE, STATUS, NodeFiles
from agent.ports import PermanentError, TemporaryError

FILE_BYTES = 1000


@pytest.fixture
def files(tmp_path: Path) -> NodeFiles:
    return NodeFiles(str(tmp_path / "run"), str(tmp_path / "state"), decisions_bytes=2 * FILE_BYTES)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]).returncode != 0:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_status_is_replaced(files: NodeFiles, tmp_path: Path) -> None:
    files.write_status("{}")
    files.write_status('{"ü": 1}')
    assert (tmp_path / "run" / STATUS).read_text() == '{"ü": 1}'
    assert os.listdir(tmp_path / "run") == [STATUS]


def test_a_reader_sees_the_old_or_the_new_status(files: NodeFiles, tmp_path: Path) -> None:
    texts = {letter * 100_000 for letter in "ab"}
    files.write_status("a" * 100_000)
    seen, stop = set(), threading.Event()

    def read_on() -> None:
        while not stop.is_set():
            seen.add((tmp_path / "run" / STATUS).read_text())

    reader = threading.Thread(target=read_on)
    reader.start()
    for number in range(100):
        files.write_status("ab"[number % 2] * 100_000)
    stop.set()
    reader.join()
    assert seen <= texts


def test_a_full_disk_keeps_the_old_status(full_disk: Path) -> None:
    files = NodeFiles(str(full_disk), str(full_disk))
    files.write_status("old")
    with pytest.raises(TemporaryError, match="No space left"):
        files.write_status("x" * 100_000)
    assert (full_disk / STATUS).read_text() == "old"
    assert os.listdir(full_disk) == [STATUS]


def test_decisions_come_back_in_their_order(files: NodeFiles) -> None:
    assert files.read_decisions() == ()
    for number in range(3):
        files.append_decision(json.dumps({"n": number, "t": "ü"}))
    assert files.read_decisions() == tuple(json.dumps({"n": number, "t": "ü"}) for number in range(3))


def test_a_line_is_one_line(files: NodeFiles) -> None:
    files.append_decision("a\nb\n")
    assert files.read_decisions() == ("a b ",)


def test_the_journal_is_bounded_and_drops_the_oldest(files: NodeFiles, tmp_path: Path) -> None:
    lines = [f"{number:0{99}}" for number in range(95)]
    for line in lines:
        files.append_decision(line)
        assert all(file.stat().st_size <= FILE_BYTES for file in (tmp_path / "state").iterdir())
    assert sorted(os.listdir(tmp_path / "state")) == [DECISIONS, DECISIONS_BEFORE]
    kept = files.read_decisions()
    assert kept == tuple(lines[-len(kept) :])
    assert len(kept) == 15


def test_what_was_kept_is_there_after_a_restart(files: NodeFiles, tmp_path: Path) -> None:
    files.append_decision("a")
    again = NodeFiles(str(tmp_path / "run"), str(tmp_path / "state"), decisions_bytes=2 * FILE_BYTES)
    again.append_decision("b")
    assert again.read_decisions() == ("a", "b")


def test_a_decision_that_fits_into_no_file_is_refused(files: NodeFiles) -> None:
    files.append_decision("a")
    with pytest.raises(PermanentError, match="more than the file may have"):
        files.append_decision("x" * FILE_BYTES)
    assert files.read_decisions() == ("a",)


@pytest.mark.parametrize("left", ['{"n": 1}\n{"n": 2', '{"n": 1}\n{"n": 2, "long": "' + "x" * 300])
def test_a_line_that_a_crash_cut_off_is_written_over(files: NodeFiles, tmp_path: Path, left: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / DECISIONS).write_text(left)
    assert files.read_decisions() == ('{"n": 1}',)
    files.append_decision('{"n": 3}')
    assert files.read_decisions() == ('{"n": 1}', '{"n": 3}')
    assert (tmp_path / "state" / DECISIONS).read_text() == '{"n": 1}\n{"n": 3}\n'


def test_on_a_full_disk_a_decision_is_written_whole_or_not_at_all(full_disk: Path) -> None:
    files = NodeFiles(str(full_disk), str(full_disk))
    lines = [letter * 30_000 for letter in "abc"]
    files.append_decision(lines[0])
    files.append_decision(lines[1])
    with pytest.raises(TemporaryError, match="No space left"):
        files.append_decision(lines[2])
    assert files.read_decisions() == tuple(lines[:2])
    files.append_decision("short")
    assert files.read_decisions() == (*lines[:2], "short")


def test_a_write_that_is_cut_short_is_taken_back(files: NodeFiles, tmp_path: Path) -> None:
    """RLIMIT_FSIZE lets the first half of a line through, as a disk does that fills up in the middle."""
    files.append_decision("a" * 100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
    try:
        with pytest.raises(TemporaryError, match="too large"):
            files.append_decision("b" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / "state" / DECISIONS).read_text() == "a" * 100 + "\n"


def test_a_link_is_not_written_through(files: NodeFiles, tmp_path: Path) -> None:
    for folder, name in (("state", DECISIONS), ("run", f".{STATUS}.tmp")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TemporaryError):
        files.append_decision("a")
    with pytest.raises(TemporaryError):
        files.write_status("{}")
    assert not (tmp_path / "elsewhere").exists()


def test_what_cannot_be_written_says_where(tmp_path: Path, mocker: MockerFixture) -> None:
    (tmp_path / "state").write_text("a file in the way")
    files = NodeFiles(str(tmp_path / "run" / "deeper"), str(tmp_path / "state"))
    for call in (files.read_decisions, lambda: files.append_decision("a")):
        with pytest.raises(TemporaryError, match=DECISIONS):
            call()
    with pytest.raises(TemporaryError, match=STATUS):
        files.write_status("{}")


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    files = NodeFiles(str(tmp_path / "run"), str(tmp_path / "state"))
    threads = [threading.Thread(target=lambda letter=letter: [files.append_decision(letter * 50) for _ in range(100)]) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = files.read_decisions()
    assert len(lines) == 400
    assert set(lines) == {letter * 50 for letter in "abcd"}


def test_others_read_neither_status_nor_decisions(files: NodeFiles, tmp_path: Path) -> None:
    files.write_status("{}")
    files.append_decision("a")
    for file in (tmp_path / "run" / STATUS, tmp_path / "state" / DECISIONS):
        assert file.stat().st_mode & 0o077 == 0

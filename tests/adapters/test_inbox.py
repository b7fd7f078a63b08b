# SPDX-License-Identifier: GPL-3.0-or-later
"""The inbox: nothing is lost, nothing foreign is followed, and the bell rings."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from agent.adapters.inbox import MAX_REQUEST_BYTES, InboxBell, InboxFolder, leave_request
from agent.ports import InboxSight, PermanentError, TemporaryError

ROOT = Path(__file__).resolve().parents[2]
NOTHING = InboxSight((), (), None)
AT_ONCE_S = 0.4  # the library that watches holds events back for half a second
TRIES = 20


def put(folder: Path, name: str, text: str = "", *, age_s: float = 0.0) -> Path:
    file = folder / name
    file.write_text(text)
    os.utime(file, (time.time() - age_s,) * 2)
    return file


def test_events_are_claimed_oldest_first_and_once(inbox: InboxFolder, folder: Path) -> None:
    put(folder, "101.post-start", age_s=1)
    put(folder, "100.post-stop", age_s=3)
    put(folder, "102.pre-start.pve2", age_s=2)
    assert inbox.claim() == InboxSight(("100.post-stop", "102.pre-start.pve2", "101.post-start"), (), None)
    assert os.listdir(folder) == []
    assert inbox.claim() == NOTHING


def test_an_event_that_comes_again_is_told_again(inbox: InboxFolder, folder: Path) -> None:
    for _ in range(3):
        put(folder, "101.post-start")
        assert inbox.claim().names == ("101.post-start",)


def test_an_event_is_claimed_while_its_maker_still_has_it_open(inbox: InboxFolder, folder: Path) -> None:
    with (folder / "101.post-start").open("x"):
        assert inbox.claim().names == ("101.post-start",)
    assert inbox.claim() == NOTHING


def test_what_a_killed_process_had_claimed_comes_first_to_the_next(inbox: InboxFolder, folder: Path, flag: Path) -> None:
    put(folder, "101.post-start", age_s=5)
    put(folder, "request.ab-1.json", "{}", age_s=4)
    inbox.claim()
    put(folder, "100.post-stop")
    next_one = InboxFolder(str(folder), str(flag))
    assert next_one.claim() == InboxSight(("101.post-start", "100.post-stop"), (("ab-1", "{}"),), None)
    assert next_one.claim() == NOTHING


def test_nothing_is_lost_wherever_the_process_is_killed(folder: Path, flag: Path) -> None:
    """A real process, killed with -9 again and again while it claims as fast as it can."""
    code = (
        "import sys; from agent.adapters.inbox import InboxFolder; inbox = InboxFolder(sys.argv[1], sys.argv[2])\n"
        "while True:\n    for name in inbox.claim().names: print(name, flush=True)"
    )
    wanted: set[str] = set()
    told: set[str] = set()
    for round_ in range(6):
        with subprocess.Popen([sys.executable, "-c", code, folder, flag], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            try:
                assert process.stdout
                put(folder, "99.post-start")
                told.add(process.stdout.readline().strip())
                for number in range(60):
                    name = f"{100 + round_ * 60 + number}.post-start"
                    (folder / name).touch(exist_ok=False)
                    wanted.add(name)
                    time.sleep(0.005)
            finally:
                process.kill()
            told |= set(process.stdout.read().split("\n")[:-1])
    told |= set(InboxFolder(str(folder), str(flag)).claim().names)
    assert told - {"99.post-start"} == wanted


def test_a_failure_in_between_loses_nothing(inbox: InboxFolder, folder: Path, mocker: MockerFixture) -> None:
    put(folder, "100.post-start", age_s=2)
    put(folder, "101.post-start", age_s=1)
    unlink, calls = os.unlink, []

    def fail_once(name: str, dir_fd: int) -> None:
        calls.append(name)
        if len(calls) == 1:
            raise OSError("not now")
        unlink(name, dir_fd=dir_fd)

    mocker.patch("agent.adapters.inbox.os.unlink", side_effect=fail_once)
    first, second = inbox.claim().names, inbox.claim().names
    assert first == ("100.post-start", "101.post-start")
    assert second == ("100.post-start",), "still in the inbox, so it is told again, which does no harm"
    assert inbox.claim() == NOTHING


def test_what_is_not_the_agents_is_neither_followed_nor_told(
    inbox: InboxFolder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = put(tmp_path, "secret", "shadow")
    (folder / "100.post-start").symlink_to(secret)
    (folder / "request.link.json").symlink_to(secret)
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "101.post-start")
    os.mkfifo(folder / "request.fifo.json")
    (folder / "102.post-start").mkdir()
    (folder / "102.post-start" / "inside").write_text("x")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(folder)  # a socket's path has to be short
        listening.bind("103.post-start")
    os.chown(put(folder, "104.post-start"), 65534, 65534)
    put(folder, "strange name")
    put(folder, "-rf")
    put(folder, "request.")
    put(folder, "request.a b.json")
    put(folder, "request.x.txt")
    (folder / os.fsdecode(b"\xff\xfe")).write_text("")
    put(folder, "105.post-start")
    assert inbox.claim() == InboxSight(("105.post-start",), (), None)
    assert os.listdir(folder) == ["102.post-start"]
    assert secret.read_text() == "shadow"
    assert inbox.claim() == NOTHING


@pytest.mark.parametrize("text", ["", "x" * MAX_REQUEST_BYTES])
def test_requests_come_with_their_text(inbox: InboxFolder, folder: Path, text: str) -> None:
    put(folder, "request.0b5e-1.json", text)
    assert inbox.claim() == InboxSight((), (("0b5e-1", text),), None)


def test_a_request_that_is_too_large_is_dropped(inbox: InboxFolder, folder: Path) -> None:
    put(folder, "request.big.json", "x" * (MAX_REQUEST_BYTES + 1))
    put(folder, "request.good.json", "{}")
    assert inbox.claim().requests == (("good", "{}"),)
    assert inbox.claim() == NOTHING


def test_a_request_that_is_no_text_is_told_all_the_same(inbox: InboxFolder, folder: Path) -> None:
    (folder / "request.x.json").write_bytes(b"\xff{}")
    assert inbox.claim().requests == (("x", "\ufffd{}"),)


def test_requests_and_events_do_not_mix(inbox: InboxFolder, folder: Path) -> None:
    leave_request("id-1", '{"do": "balance"}', str(folder))
    put(folder, "101.post-start")
    assert inbox.claim() == InboxSight(("101.post-start",), (("id-1", '{"do": "balance"}'),), None)


def test_a_request_is_left_whole_or_not_at_all(folder: Path, inbox: InboxFolder, mocker: MockerFixture) -> None:
    mocker.patch("agent.adapters.inbox.os.rename", side_effect=OSError(28, "No space left on device"))
    with pytest.raises(TemporaryError, match="No space left"):
        leave_request("id-1", "{}", str(folder))
    assert inbox.claim() == NOTHING
    (unfinished,) = os.listdir(folder)
    os.utime(folder / unfinished, (0, 0))
    assert inbox.claim() == NOTHING
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("request_id", "text"), [("", "{}"), ("../x", "{}"), ("a b", "{}"), ("x" * 65, "{}"), ("ok", "x" * (MAX_REQUEST_BYTES + 1))]
)
def test_a_request_that_the_agent_would_not_take_is_not_left(folder: Path, request_id: str, text: str) -> None:
    with pytest.raises(PermanentError):
        leave_request(request_id, text, str(folder))
    assert os.listdir(folder) == []


def test_without_an_inbox_a_request_says_what_may_be_wrong(tmp_path: Path) -> None:
    with pytest.raises(TemporaryError, match="does proxlb-agent run"):
        leave_request("id-1", "{}", str(tmp_path / "missing"))


def test_a_missing_inbox_is_said_and_found_again(inbox: InboxFolder, folder: Path) -> None:
    folder.rmdir()
    with pytest.raises(TemporaryError, match="missing"):
        inbox.claim()
    folder.mkdir(mode=0o700)
    put(folder, "101.post-start")
    assert inbox.claim().names == ("101.post-start",)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_an_inbox_where_others_may_write_is_not_believed(inbox: InboxFolder, folder: Path, mode: int) -> None:
    put(folder, "101.post-start")
    folder.chmod(mode)
    with pytest.raises(TemporaryError, match="others may write"):
        inbox.claim()
    with pytest.raises(PermanentError):
        leave_request("id-1", "{}", str(folder))


def test_an_inbox_of_somebody_else_is_not_believed(inbox: InboxFolder, folder: Path) -> None:
    os.chown(folder, 65534, 65534)
    with pytest.raises(TemporaryError, match="others may write"):
        inbox.claim()


def test_a_link_or_a_file_is_no_inbox(inbox: InboxFolder, folder: Path, tmp_path: Path) -> None:
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TemporaryError):
        inbox.claim()
    folder.unlink()
    folder.write_text("")
    with pytest.raises(TemporaryError):
        inbox.claim()


# --- the flag ----------------------------------------------------------------------------------------------------------------------


def test_the_flag_is_its_text(inbox: InboxFolder, flag: Path) -> None:
    assert inbox.claim().flag is None
    flag.write_text("new disks\n")
    assert inbox.claim().flag == "new disks"
    flag.write_text("")
    assert inbox.claim().flag == ""
    flag.unlink()
    assert inbox.claim().flag is None


def test_a_flag_that_is_no_text_file_is_a_flag(inbox: InboxFolder, flag: Path) -> None:
    flag.mkdir()
    assert inbox.claim().flag == ""
    flag.rmdir()
    os.mkfifo(flag)
    assert inbox.claim().flag == ""
    flag.unlink()
    flag.write_bytes(b"\xff" + b"x" * 100_000)
    assert len(inbox.claim().flag or "") == 4096


def test_reading_flags_leaves_no_file_open(inbox: InboxFolder, flag: Path, folder: Path) -> None:
    flag.mkdir()
    put(folder, "request.x.json", "{}")
    before = sorted(os.listdir("/proc/self/fd"))
    inbox.claim()
    folder.rmdir()
    with pytest.raises(TemporaryError):
        inbox.claim()
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- the bell ----------------------------------------------------------------------------------------------------------------------


class Ear:
    """Counts rings, and waits for one."""

    def __init__(self) -> None:
        self.rings = 0
        self._rang = threading.Event()

    def ring(self) -> None:
        self.rings += 1
        self._rang.set()

    def hears(self, within_s: float = 60.0) -> bool:
        heard = self._rang.wait(within_s)
        self._rang.clear()
        return heard

    def quiet(self) -> None:
        """Wait until nothing rings any more."""
        while self.hears(0.3):
            pass


@pytest.fixture
def ear() -> Ear:
    return Ear()


def quickest_s(ear: Ear, folder: Path) -> float:
    """How long it takes from an event to the bell, in the best of several tries: a busy machine may hold up one of them, not all."""
    took_s = []
    for number in range(TRIES):
        began = time.monotonic()
        (folder / f"{90_000 + number}.post-start").touch()
        assert ear.hears()
        took_s.append(time.monotonic() - began)
        if took_s[-1] < AT_ONCE_S:
            break
        ear.quiet()
    return min(took_s)


@pytest.fixture
def bell(folder: Path, ear: Ear) -> Iterator[InboxBell]:
    made = InboxBell(ear.ring, str(folder))
    yield made
    made.stop()


def test_it_rings_once_for_what_came_before_it_hung(bell: InboxBell, ear: Ear) -> None:
    assert bell.mend()
    assert ear.hears()
    ear.quiet()
    rings = ear.rings
    assert bell.mend()
    assert ear.rings == rings


def test_it_rings_for_an_event_at_once(bell: InboxBell, ear: Ear, folder: Path) -> None:
    bell.mend()
    ear.quiet()
    assert quickest_s(ear, folder) < AT_ONCE_S


def test_it_rings_for_a_request_that_is_renamed_into_place(bell: InboxBell, ear: Ear, folder: Path) -> None:
    bell.mend()
    ear.quiet()
    leave_request("id-1", "{}", str(folder))
    assert ear.hears()


def test_claiming_rings_no_bell_and_delays_none(bell: InboxBell, ear: Ear, folder: Path, inbox: InboxFolder) -> None:
    bell.mend()
    for number in range(20):
        (folder / f"{100 + number}.post-start").touch()
    ear.quiet()
    assert len(inbox.claim().names) == 20
    assert quickest_s(ear, folder) < AT_ONCE_S
    ear.quiet()
    inbox.claim()
    inbox.claim()
    assert not ear.hears(0.8)


def test_it_takes_a_burst(bell: InboxBell, ear: Ear, folder: Path, inbox: InboxFolder) -> None:
    bell.mend()
    ear.quiet()
    told: set[str] = set()
    for number in range(3000):
        (folder / f"{100 + number}.post-start").touch()
    while len(told) < 3000:
        assert ear.hears(), len(told)
        told |= set(inbox.claim().names)


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_a_folder_that_is_made_again_is_watched_again(bell: InboxBell, ear: Ear, folder: Path, tmp_path: Path, how: str) -> None:
    bell.mend()
    ear.quiet()
    if how == "removed":
        shutil.rmtree(folder)
        assert not bell.mend()
        assert not bell.mend()
    else:
        folder.rename(tmp_path / "old")
        if how == "renamed":
            assert not bell.mend()
    folder.mkdir(mode=0o700)
    assert bell.mend()
    assert ear.hears(), "something may have come in between"
    ear.quiet()
    (folder / "101.post-start").touch()
    assert ear.hears()


def test_it_hangs_itself_when_the_folder_comes_later(tmp_path: Path, ear: Ear) -> None:
    bell = InboxBell(ear.ring, str(tmp_path / "later"))
    try:
        assert not bell.mend()
        (tmp_path / "later").mkdir()
        assert bell.mend()
        ear.quiet()
        (tmp_path / "later" / "101.post-start").touch()
        assert ear.hears()
    finally:
        bell.stop()


def test_a_machine_without_inotify_watches_is_borne(bell: InboxBell, ear: Ear, folder: Path, mocker: MockerFixture) -> None:
    patched = mocker.patch("watchdog.observers.inotify_c.inotify_add_watch", return_value=-1)
    assert not bell.mend()
    assert not bell.mend()
    mocker.stop(patched)
    assert bell.mend()
    ear.quiet()
    (folder / "101.post-start").touch()
    assert ear.hears()


def test_after_stop_no_thread_is_left(folder: Path, ear: Ear) -> None:
    before = threading.active_count()
    bell = InboxBell(ear.ring, str(folder))
    bell.mend()
    bell.stop()
    bell.stop()
    assert not bell.mend()
    until = time.monotonic() + 60
    while threading.active_count() > before:
        assert time.monotonic() < until, threading.enumerate()
        time.sleep(0.05)

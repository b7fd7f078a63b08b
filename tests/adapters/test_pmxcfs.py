# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and lock below a mount that behaves as pmxcfs does, and below a bare directory, where nothing may be left."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from agent.adapters.pmxcfs import LOCK, MAX_WRITE_BYTES, PmxcfsFiles, PmxcfsLock
from agent.adapters.system_clock import SystemClock
from agent.ports import (
    FilesystemState,
    LockSight,
    NoQuorumError,
    NotHolderError,
    NotMountedError,
    PermanentError,
    TemporaryError,
)
from tests.pmxcfs.client import Pmxcfs

NODE = os.uname().nodename.partition(".")[0]
NAMES_THAT_LEAD_AWAY = [
    "",
    "/etc/passwd",
    "..",
    "proxlb/../x",
    "proxlb//x",
    "proxlb/./x",
    "proxlb/",
    "/proxlb/x",
    "proxlb/a\0b",
    "proxlb/" + "x" * 256,
]


class SteppingClock:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.wall = time.time()

    def boottime_s(self) -> float:
        return 0.0

    def wall_s(self) -> float:
        return self.wall


@pytest.fixture(scope="module")
def shared() -> Iterator[Pmxcfs]:
    with Pmxcfs("pve1", "pve2") as pve:
        yield pve


@pytest.fixture
def pve(shared: Pmxcfs) -> Pmxcfs:
    """A cluster of two nodes, empty but for what pmxcfs itself has, mounted anew: the kernel remembers names and times for a second."""
    shared.hang(0)
    shared.quorum(True)
    for node in shared.nodes:
        shared.unmount(node)
    for folder in (
        "proxlb/inbox",
        "proxlb/maintenance",
        "proxlb/deep/deeper",
        "proxlb/deep",
        "proxlb",
        "priv/proxlb",
        f"{LOCK}",
        "priv/lock",
    ):
        for name in listing(shared, folder):
            shared.remove(f"{folder}/{name}")
    for folder in ("proxlb", "priv/proxlb"):
        if folder.rpartition("/")[2] in listing(shared, folder.rpartition("/")[0]):
            shared.remove(folder)
    for node in shared.nodes:
        shared.mount(node)
    shared.forget_calls()
    return shared


def listing(pve: Pmxcfs, folder: str) -> list[str]:
    try:
        return pve.listing(folder)
    except RuntimeError:
        return []


def files(pve: Pmxcfs, node: str = "pve1") -> PmxcfsFiles:
    return PmxcfsFiles(str(pve.at(node)))


def lock(pve: Pmxcfs, node: str = "pve1", clock: Any = None) -> PmxcfsLock:
    return PmxcfsLock(clock or SystemClock(), str(pve.at(node)))


def wait_for(state: FilesystemState, of: PmxcfsFiles) -> None:
    """The kernel keeps what it knows of a file for a second."""
    until = time.monotonic() + 60
    while of.state() is not state:
        assert time.monotonic() < until, of.state()
        time.sleep(0.05)


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# --- files -------------------------------------------------------------------------------------------------------------------------


def test_what_is_written_on_one_node_is_read_on_the_other(pve: Pmxcfs) -> None:
    files(pve).write("proxlb/leader.json", '{"ü": 1}\n')
    assert files(pve, "pve2").read("proxlb/leader.json") == '{"ü": 1}\n'
    assert everything(pve.at() / "proxlb") == ["leader.json"]


def test_folders_are_made_one_level_at_a_time(pve: Pmxcfs) -> None:
    files(pve).write("proxlb/deep/deeper/file", "1")
    files(pve).write("priv/proxlb/token", "secret")
    assert files(pve).read("proxlb/deep/deeper/file") == "1"
    assert files(pve).list("priv/proxlb") == ("token",)


def test_a_file_is_replaced_as_a_whole_by_one_write_and_one_rename(pve: Pmxcfs) -> None:
    files(pve).write("proxlb/history.json", "a" * 5000)
    pve.forget_calls()
    files(pve).write("proxlb/history.json", "b" * MAX_WRITE_BYTES)
    done = {row.call: row.done for row in pve.calls() if row.call in {"create", "truncate", "write", "rename", "mkdir", "unlink"}}
    assert done == {"create": 1, "write": 1, "rename": 1}
    assert files(pve).read("proxlb/history.json") == "b" * MAX_WRITE_BYTES


def test_an_empty_file_can_be_written(pve: Pmxcfs) -> None:
    files(pve).write("proxlb/maintenance/pve2", "")
    assert files(pve).read("proxlb/maintenance/pve2") == ""


def test_a_missing_file_is_none_and_a_missing_folder_empty(pve: Pmxcfs) -> None:
    assert files(pve).read("proxlb/leader.json") is None
    assert files(pve).read(".members/x") is None
    assert files(pve).list("proxlb/inbox") == ()
    assert files(pve).list(".members") == ()


def test_listing_is_sorted_and_leaves_out_what_is_being_written(pve: Pmxcfs) -> None:
    for name in ("pve2", "pve1", ".pve1.tmp.othernode.77", ".hidden"):
        pve.put(f"proxlb/maintenance/{name}", "x")
    assert files(pve).list("proxlb/maintenance") == (".hidden", "pve1", "pve2")


def test_a_file_removed_or_replaced_while_somebody_has_it_open_is_not_listed_under_its_hidden_name(pve: Pmxcfs) -> None:
    for name in ("pve1", "pve2"):
        files(pve).write(f"proxlb/maintenance/{name}", "old")
    opened = [os.open(pve.at() / f"proxlb/maintenance/{name}", os.O_RDONLY) for name in ("pve1", "pve2")]
    try:
        files(pve).remove("proxlb/maintenance/pve1")
        files(pve).write("proxlb/maintenance/pve2", "new")
        assert len([name for name in pve.listing("proxlb/maintenance") if name.startswith(".fuse_hidden")]) == 2
        assert files(pve).list("proxlb/maintenance") == files(pve, "pve2").list("proxlb/maintenance") == ("pve2",)
    finally:
        for fd in opened:
            os.close(fd)
    assert files(pve, "pve2").read("proxlb/maintenance/pve2") == "new"


def test_dot_files_are_read_whole(pve: Pmxcfs) -> None:
    text = "".join(f"pve-vm-9.0/{vmid}:{'x' * 180}\n" for vmid in range(100, 8000))  # larger than a megabyte
    pve.show(".rrd", text)
    try:
        assert files(pve).read(".rrd") == text
    finally:
        pve.show(".rrd", None)


def test_removing_is_fine_twice(pve: Pmxcfs) -> None:
    files(pve).write("proxlb/maintenance/pve2", "x")
    files(pve).remove("proxlb/maintenance/pve2")
    files(pve).remove("proxlb/maintenance/pve2")
    assert files(pve).list("proxlb/maintenance") == ()


def test_what_is_too_large_is_not_written(pve: Pmxcfs) -> None:
    with pytest.raises(PermanentError, match="more than"):
        files(pve).write("proxlb/history.json", "ü" * (MAX_WRITE_BYTES // 2 + 1))
    assert pve.writes() == 0


@pytest.mark.parametrize("path", NAMES_THAT_LEAD_AWAY)
def test_a_name_that_leads_away_is_refused(pve: Pmxcfs, path: str) -> None:
    for call in (files(pve).read, files(pve).list, files(pve).remove, lambda name: files(pve).write(name, "x")):
        with pytest.raises(PermanentError):
            call(path)
    assert pve.writes() == 0


@pytest.mark.parametrize(
    "path", ["storage.cfg", "priv/token.cfg", "proxlb", "priv/proxlb", "proxlbx/file", "nodes/pve1/qemu-server/100.conf", LOCK]
)
def test_files_of_others_are_not_touched(pve: Pmxcfs, path: str) -> None:
    for call in (files(pve).remove, lambda name: files(pve).write(name, "x")):
        with pytest.raises(PermanentError, match="only below"):
            call(path)
    assert pve.writes() == 0


def test_the_secret_is_not_removed(pve: Pmxcfs) -> None:
    files(pve).write("priv/proxlb/token", "secret")
    with pytest.raises(PermanentError):
        files(pve).remove("priv/proxlb/token")
    assert files(pve).read("priv/proxlb/token") == "secret"


def test_what_killed_processes_of_this_node_left_is_swept(pve: Pmxcfs) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine, alive, others = f".leader.json.tmp.{NODE}.{dead.pid}", f".leader.json.tmp.{NODE}.1", f".leader.json.tmp.elsewhere.{dead.pid}"
    for name in (mine, alive, others, ".hidden"):
        pve.put(f"proxlb/{name}", "half")
    files(pve).write("proxlb/leader.json", "{}")
    assert sorted(pve.listing("proxlb")) == sorted([alive, others, ".hidden", "leader.json"])


def test_a_write_that_fails_leaves_neither_half_a_file_nor_the_old_one_changed(pve: Pmxcfs, mocker: MockerFixture) -> None:
    files(pve).write("proxlb/leader.json", "old")
    mocker.patch("agent.adapters.pmxcfs.os.rename", side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(TemporaryError, match="No space left"):
        files(pve).write("proxlb/leader.json", "new")
    assert pve.listing("proxlb") == ["leader.json"]
    assert files(pve).read("proxlb/leader.json") == "old"


def test_readers_never_see_half_a_file(pve: Pmxcfs) -> None:
    texts = {letter * 90_000 for letter in "ab"}
    files(pve).write("proxlb/history.json", "a" * 90_000)
    stop, seen = threading.Event(), set()

    def read_on() -> None:
        while not stop.is_set():
            seen.add(files(pve, "pve2").read("proxlb/history.json"))

    reader = threading.Thread(target=read_on)
    reader.start()
    for number in range(40):
        files(pve).write("proxlb/history.json", "ab"[number % 2] * 90_000)
    stop.set()
    reader.join()
    assert seen <= texts


def test_a_file_that_is_replaced_between_being_found_and_being_opened_is_read_all_the_same(pve: Pmxcfs, mocker: MockerFixture) -> None:
    """FUSE then says that there is none, on the node that replaces it: a fifth of all reads while another process wrote on and on."""
    files(pve).write("proxlb/history.json", "new")
    really, refused = os.open, [FileNotFoundError(errno.ENOENT, "No such file or directory")]

    def replaced_once(path: str, *how: Any, **where: Any) -> int:
        if path == "proxlb/history.json" and refused:
            raise refused.pop()
        return really(path, *how, **where)

    mocker.patch("agent.adapters.pmxcfs.os.open", side_effect=replaced_once)
    assert files(pve).read("proxlb/history.json") == "new"
    assert not refused


def test_no_file_stays_open(pve: Pmxcfs) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    files(pve).write("proxlb/leader.json", "x")
    files(pve).list("proxlb")
    files(pve).state()
    lock(pve).take()
    lock(pve).renew()
    for call in (lambda: files(pve).list("nothing/there"), lock(pve, "pve2").ask_expiry, lambda: files(pve).read("proxlb/none")):
        call()
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- state and what goes wrong -----------------------------------------------------------------------------------------------------


def test_state_follows_quorum(pve: Pmxcfs) -> None:
    assert files(pve).state() is FilesystemState.QUORATE
    pve.quorum(False, ["pve2"])
    wait_for(FilesystemState.NO_QUORUM, files(pve, "pve2"))
    pve.quorum(True)
    wait_for(FilesystemState.QUORATE, files(pve, "pve2"))


def test_state_of_a_single_node_and_of_a_text_cut_off(pve: Pmxcfs) -> None:
    try:
        pve.show(".members", '{\n"nodename": "pve1",\n"version": 2\n}\n')
        wait_for(FilesystemState.STANDALONE, files(pve))
        pve.show(".members", '{\n"nodename": "pv')
        wait_for(FilesystemState.QUORATE, files(pve))
    finally:
        pve.show(".members", None)


@pytest.mark.parametrize("cut_s", [0.0, 0.5])
def test_without_quorum_everything_is_read_and_nothing_written(pve: Pmxcfs, cut_s: float) -> None:
    here = files(pve, "pve2")
    here.write("proxlb/leader.json", "old")
    pve.quorum(False, ["pve2"], cut_s=cut_s)
    for call in (
        lambda: here.write("proxlb/leader.json", "new"),
        lambda: here.write("proxlb/new/file", "x"),
        lambda: here.remove("proxlb/leader.json"),
    ):
        with pytest.raises(TemporaryError):
            call()
    with pytest.raises(NoQuorumError):
        here.write("proxlb/leader.json", "new")
    assert here.read("proxlb/leader.json") == "old"
    assert here.list("proxlb") == ("leader.json",)
    pve.quorum(True)
    here.write("proxlb/leader.json", "new")
    assert files(pve).read("proxlb/leader.json") == "new"


def test_a_call_that_hangs_ends_when_the_filesystem_answers_again(pve: Pmxcfs) -> None:
    began = time.monotonic()
    pve.hang(0.4, calls=["rename", "getattr"])
    files(pve).write("proxlb/leader.json", "x")
    assert time.monotonic() - began >= 0.4
    assert files(pve).read("proxlb/leader.json") == "x"


def every_call(root: Path) -> list[Callable[[], object]]:
    here, held = PmxcfsFiles(str(root)), PmxcfsLock(SystemClock(), str(root))
    return [
        lambda: here.read("proxlb/leader.json"),
        lambda: here.read(".members"),
        lambda: here.list("proxlb"),
        lambda: here.write("proxlb/leader.json", "x"),
        lambda: here.write("proxlb/inbox/pve1.json", "x"),
        lambda: here.write("priv/proxlb/token", "x"),
        lambda: here.remove("proxlb/leader.json"),
        held.sight,
        held.take,
        held.renew,
        held.ask_expiry,
        held.release,
    ]


@pytest.mark.parametrize("number", range(12))
def test_on_the_bare_directory_every_call_fails_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    with pytest.raises(NotMountedError):
        every_call(tmp_path)[number]()
    assert everything(tmp_path) == []
    assert PmxcfsFiles(str(tmp_path)).state() is FilesystemState.NOT_MOUNTED


@pytest.mark.parametrize("number", range(12))
def test_where_there_is_no_directory_at_all_every_call_fails(tmp_path: Path, number: int) -> None:
    with pytest.raises(NotMountedError):
        every_call(tmp_path / "missing")[number]()
    assert everything(tmp_path) == []


@pytest.mark.parametrize("dead", [False, True])
def test_while_pmxcfs_restarts_every_call_fails_and_afterwards_all_is_well(pve: Pmxcfs, dead: bool) -> None:
    here = files(pve)
    here.write("proxlb/leader.json", "old")
    pve.unmount("pve1", dead=dead)
    for call in every_call(pve.at()):
        with pytest.raises(NotMountedError):
            call()
    assert here.state() is FilesystemState.NOT_MOUNTED
    if not dead:
        assert everything(pve.at()) == []
    pve.mount("pve1")
    assert here.state() is FilesystemState.QUORATE
    assert here.read("proxlb/leader.json") == "old"
    here.write("proxlb/leader.json", "new")
    assert files(pve, "pve2").read("proxlb/leader.json") == "new"


def test_nothing_is_ever_left_on_the_bare_directory_however_the_mount_comes_and_goes(pve: Pmxcfs) -> None:
    stop = threading.Event()
    surprises: list[BaseException] = []

    def write_on() -> None:
        while not stop.is_set():
            for call in every_call(pve.at()):
                try:
                    call()
                except (TemporaryError, NotHolderError):
                    pass
                except BaseException as error:  # noqa: BLE001  # shown below
                    surprises.append(error)

    writers = [threading.Thread(target=write_on) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(6):
            time.sleep(0.1)
            pve.unmount("pve1")
            time.sleep(0.1)
            assert everything(pve.at()) == []
            pve.mount("pve1")  # refuses a directory with anything in it, as pmxcfs does
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert surprises == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, NoQuorumError),
        (errno.EPERM, NoQuorumError),
        (errno.EBUSY, TemporaryError),
        (errno.EIO, TemporaryError),
        (errno.EROFS, TemporaryError),
        (errno.ENOSPC, TemporaryError),
        (errno.EFBIG, TemporaryError),
        (errno.ENOTCONN, NotMountedError),
        (errno.ECONNABORTED, NotMountedError),
    ],
)
def test_each_error_of_a_write_becomes_the_ports_error(pve: Pmxcfs, mocker: MockerFixture, number: int, kind: type[Exception]) -> None:
    mocker.patch("agent.adapters.pmxcfs.os.rename", side_effect=OSError(number, os.strerror(number)))
    mocker.patch("agent.adapters.pmxcfs.os.mkdir", side_effect=OSError(number, os.strerror(number)))
    for call in (lambda: files(pve).write("proxlb/leader.json", "x"), lock(pve).take):
        with pytest.raises(kind) as caught:
            call()
        assert type(caught.value) is kind


def test_who_is_not_root_is_told_so(pve: Pmxcfs, mocker: MockerFixture) -> None:
    mocker.patch("agent.adapters.pmxcfs.os.geteuid", return_value=1000)
    mocker.patch("agent.adapters.pmxcfs.os.open", side_effect=PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermanentError) as caught:
        files(pve).read("proxlb/leader.json")
    assert caught.value.hint == "run this as root"


# --- the lock ----------------------------------------------------------------------------------------------------------------------


def test_one_node_takes_the_lock_and_the_other_does_not(pve: Pmxcfs) -> None:
    assert lock(pve).sight() == LockSight(None)
    before_s = time.time()
    assert lock(pve).take()
    assert not lock(pve, "pve2").take()
    assert not lock(pve).take()
    assert pve.lock_holder("proxlb-agent") == "pve1"
    assert int(before_s) <= (lock(pve, "pve2").sight().mtime_s or 0) <= time.time()


def test_the_folder_of_locks_is_made_where_there_is_none(pve: Pmxcfs) -> None:
    pve.remove("priv/lock")
    assert lock(pve).take()


def test_only_the_holder_renews(pve: Pmxcfs) -> None:
    lock(pve).take()
    lock(pve).renew()
    with pytest.raises(NotHolderError, match="another node"):
        lock(pve, "pve2").renew()


def test_a_lock_that_is_gone_cannot_be_renewed(pve: Pmxcfs) -> None:
    with pytest.raises(NotHolderError, match="gone"):
        lock(pve).renew()


def test_each_renewal_moves_the_time_also_when_the_clock_stepped_back(pve: Pmxcfs) -> None:
    clock = SteppingClock()
    holder = lock(pve, clock=clock)
    holder.take()
    for step in (0.0, 0.0, -3600.0, 0.0):
        clock.wall += step
        before = holder.sight().mtime_s
        holder.renew()
        after = holder.sight().mtime_s
        assert before is not None
        assert after is not None
        assert after > before


def test_a_clock_that_caught_up_is_followed_again(pve: Pmxcfs) -> None:
    clock = SteppingClock()
    holder = lock(pve, clock=clock)
    holder.take()
    clock.wall += 100
    holder.renew()
    assert holder.sight().mtime_s == int(clock.wall)


def test_without_quorum_the_lock_is_neither_taken_nor_renewed_nor_asked_for_nor_given_up(pve: Pmxcfs) -> None:
    lock(pve).take()
    pve.quorum(False)
    for call in (lock(pve).renew, lock(pve).release, lock(pve, "pve2").renew):
        with pytest.raises(NoQuorumError):
            call()
    wait_for(FilesystemState.NO_QUORUM, files(pve))
    for call in (lock(pve).take, lock(pve).ask_expiry):
        with pytest.raises(NoQuorumError):
            call()
    pve.quorum(True)
    lock(pve).renew()


def test_want_of_quorum_is_not_taken_for_a_lost_lock_while_the_kernel_still_tells_of_before(pve: Pmxcfs) -> None:
    lock(pve).take()
    assert files(pve).state() is FilesystemState.QUORATE
    pve.quorum(False)
    with pytest.raises(NoQuorumError):
        lock(pve).renew()


def test_a_renewal_under_way_when_quorum_goes_fails_for_that(pve: Pmxcfs) -> None:
    lock(pve).take()
    pve.quorum(False, cut_s=0.3)
    with pytest.raises(NoQuorumError):
        lock(pve).renew()


def test_a_fresh_lock_stays_and_an_old_one_goes_when_asked(pve: Pmxcfs) -> None:
    lock(pve).take()
    other = lock(pve, "pve2")
    other.ask_expiry()
    assert pve.lock_holder("proxlb-agent") == "pve1"
    pve.age_lock("proxlb-agent", 121)
    other.ask_expiry()
    assert pve.lock_holder("proxlb-agent") is None
    other.ask_expiry()  # there is nothing to ask for
    until = time.monotonic() + 60
    while not other.take():  # the kernel remembers the directory for a second
        assert time.monotonic() < until
        time.sleep(0.05)
    with pytest.raises(NotHolderError):
        lock(pve).renew()


def test_after_release_it_is_free_and_releasing_again_is_fine(pve: Pmxcfs) -> None:
    lock(pve).take()
    lock(pve).release()
    lock(pve).release()
    assert pve.lock_holder("proxlb-agent") is None


def test_a_lock_with_something_in_it_cannot_be_released_and_says_so(pve: Pmxcfs) -> None:
    lock(pve).take()
    pve.put(f"{LOCK}/stray", "x")
    with pytest.raises(TemporaryError, match="not empty"):
        lock(pve).release()


def test_looking_writes_nothing(pve: Pmxcfs) -> None:
    lock(pve).take()
    pve.forget_calls()
    lock(pve, "pve2").sight()
    files(pve, "pve2").state()
    lock(pve, "pve2").take()
    assert pve.writes() == 0

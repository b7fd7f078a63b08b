# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in as tests steer it: what its commands do beyond what pmxcfs does by itself, which tests/conformance states."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from tests.pmxcfs.client import Control, Pmxcfs, Rows, mounted_below, why_not_possible
from tests.pmxcfs.cluster import Cluster
from tests.pmxcfs.control import Control as Commands
from tests.pmxcfs.control import Server

pytestmark = pytest.mark.skipif(why_not_possible() is not None, reason=str(why_not_possible()))
HANGS_AFTER_S = 60.0
ATTRIBUTES_CACHED_S = 1.1  # the kernel keeps attributes, and with them the text of a dot file, for 1 s


@pytest.fixture
def pve() -> Iterator[Pmxcfs]:
    with Pmxcfs("pve1", "pve2", lock_life_s=120) as running:
        yield running


def errno_of(act: Callable[[], object]) -> str:
    """Return the name of the errno that the act ends with, "" when it succeeds."""
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + HANGS_AFTER_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def lock(pve: Pmxcfs, node: str) -> Path:
    return pve.at(node) / "priv/lock/proxlb-agent"


def one_read(path: Path) -> str:
    """Read as the agent does: one read, so that nobody's look in between changes the text."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1 << 20).decode()
    finally:
        os.close(fd)


def test_a_lock_grows_as_old_as_it_is_told_to(pve: Pmxcfs) -> None:
    mine, theirs = lock(pve, "pve1"), lock(pve, "pve2")
    mine.mkdir()
    pve.age_lock("proxlb-agent", 125)
    assert errno_of(theirs.mkdir) == "EEXIST"
    assert errno_of(lambda: os.utime(theirs, (0, 0))) == "EACCES"
    assert errno_of(theirs.mkdir) == ""
    assert pve.lock_holder("proxlb-agent") == "pve2"
    assert errno_of(lambda: os.utime(mine)) == "EACCES"


def test_it_tells_who_held_a_lock_and_when(pve: Pmxcfs) -> None:
    mine, theirs, began = lock(pve, "pve1"), lock(pve, "pve2"), time.time()
    mine.mkdir()
    os.utime(mine)
    assert errno_of(lambda: os.utime(theirs)) == "EACCES"
    theirs.rmdir()
    (pve.at("pve2") / "priv/lock/another").mkdir()
    theirs.mkdir()
    at, holders = zip(*pve.lock_holders("proxlb-agent"), strict=True)
    assert holders == ("pve1", "pve1", None, "pve2")
    assert began <= at[0] <= at[1] <= at[2] <= at[3] <= time.time()


def test_a_stray_file_keeps_pmxcfs_from_mounting(pve: Pmxcfs) -> None:
    pve.unmount("pve1")
    (pve.at("pve1") / "stray").write_text("")
    with pytest.raises(RuntimeError, match="cannot mount"):
        pve.mount("pve1")
    (pve.at("pve1") / "stray").unlink()
    pve.mount("pve1")


def test_a_dead_mount_gives_enotconn_until_mounted_again(pve: Pmxcfs) -> None:
    pve.unmount("pve1", dead=True)
    assert errno_of(lambda: os.listdir(pve.at("pve1"))) == "ENOTCONN"
    pve.mount("pve1")
    assert (pve.at("pve1") / "local").readlink() == Path("nodes/pve1")


def test_writes_under_way_when_quorum_goes_hang_and_fail_one_with_eperm_and_others_with_ebusy(pve: Pmxcfs) -> None:
    lock(pve, "pve1").mkdir()
    pve.quorum(False, ["pve1"], cut_s=600)
    outcomes: list[str] = []
    acts = (lambda: os.utime(lock(pve, "pve1")), (pve.at("pve1") / "dir").mkdir)
    threads = [threading.Thread(target=lambda act=act: outcomes.append(errno_of(act))) for act in acts]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    wait_until(lambda: pve.waiting() == 2)
    assert outcomes == []
    pve.quorum(False, ["pve1"])
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["EBUSY", "EPERM"]
    assert errno_of((pve.at("pve1") / "dir").mkdir) == "EACCES"
    pve.quorum(True, ["pve1"])
    pve.quorum(False, ["pve1"], cut_s=0.5)
    assert errno_of((pve.at("pve2") / "dir").mkdir) == "", "who keeps quorum waits, then succeeds"


def test_quorum_for_all_gives_a_node_that_was_cut_off_what_the_others_wrote(pve: Pmxcfs) -> None:
    (pve.at("pve1") / "file").write_text("before")
    pve.quorum(False, ["pve1"])
    (pve.at("pve2") / "file").write_text("after")
    assert pve.read("file", node="pve1") == "before"
    pve.quorum(True)
    assert pve.read("file", node="pve1") == "after"
    (pve.at("pve1") / "file").write_text("of both")
    assert pve.read("file", node="pve2") == "of both"


def test_quorum_is_counted_when_nodes_are_cut_and_told_when_it_is_told() -> None:
    with Pmxcfs("pve1", unmounted=["pve2", "pve3"]) as pve:

        def has_quorum(node: str) -> bool:
            return bool(json.loads(pve.read(".members", node=node))["cluster"]["quorate"])

        pve.cut("pve3")
        assert [has_quorum(node) for node in ("pve1", "pve2", "pve3")] == [True, True, False]
        pve.cut("pve2")
        assert [has_quorum(node) for node in ("pve1", "pve2", "pve3")] == [False, False, False]
        pve.heal()
        pve.quorum(False, ["pve2", "pve3"])
        assert [has_quorum(node) for node in ("pve1", "pve2", "pve3")] == [True, False, False]


def test_a_node_without_a_mount_comes_and_goes() -> None:
    with Pmxcfs("pve1", unmounted=["pve2"]) as one:
        for on in (False, True):
            one.online("pve2", on)
            assert json.loads(one.read(".members"))["nodelist"]["pve2"]["online"] == int(on)


def test_calls_hang_as_long_as_told(pve: Pmxcfs) -> None:
    mine = lock(pve, "pve1")
    mine.mkdir()
    pve.hang(60, ["pve1"], ["rmdir"])
    thread = threading.Thread(target=mine.rmdir)
    thread.start()
    time.sleep(0.2)
    assert one_read(pve.at() / ".version"), "look-ups in another directory go on"
    assert thread.is_alive()
    pve.hang(0)
    thread.join(HANGS_AFTER_S)
    assert not thread.is_alive()


def test_guests_are_where_their_configuration_is(pve: Pmxcfs) -> None:
    pve.guest(100, "pve1", conf="memory: 512\n")
    pve.guest(101, "pve2", "lxc", conf="memory: 256\n")
    before = json.loads(pve.read(".vmlist"))
    assert {vmid: (row["node"], row["type"]) for vmid, row in before["ids"].items()} == {"100": ("pve1", "qemu"), "101": ("pve2", "lxc")}
    (pve.at("pve1") / "nodes/pve1/qemu-server/100.conf").rename(pve.at("pve1") / "nodes/pve2/qemu-server/100.conf")
    after = json.loads(pve.read(".vmlist"))
    assert after["ids"]["100"]["node"] == "pve2"
    assert after["version"] > before["version"]
    assert (pve.at("pve2") / "qemu-server/100.conf").read_text() == "memory: 512\n"
    assert errno_of(lambda: (pve.at("pve1") / "nodes/pve1/lxc/100.conf").write_text("")) == "EEXIST"


def test_the_cluster_log_shows_the_newest_50_and_may_be_no_json(pve: Pmxcfs) -> None:
    for number in range(60):
        pve.log("pve1", f'end task "{number}"', time=1000 + number)
    pve.log("pve2", "first of its node", pri=3, tag="pve-ha-lrm")
    shown = json.loads(one_read(pve.at("pve2") / ".clusterlog"))["data"]
    assert len(shown) == 50
    assert (shown[0]["uid"], shown[0]["node"], shown[0]["pri"], shown[0]["tag"]) == (2, "pve2", 3, "pve-ha-lrm"), (
        "1 says that the log starts"
    )
    assert (shown[1]["uid"], shown[1]["msg"], shown[1]["time"]) == (61, 'end task "59"', 1059)
    pve.log("pve1", r"no such file C:\qemu")
    with pytest.raises(json.JSONDecodeError):
        json.loads(pve.read(".clusterlog"))
    pve.show(".clusterlog", '{"data": [')
    time.sleep(ATTRIBUTES_CACHED_S)
    assert one_read(pve.at() / ".clusterlog") == '{"data": ['


def test_the_numbers_come_in_the_columns_of_either_release(pve: Pmxcfs) -> None:
    nodes: Rows = {"pve1": {"cpu": 0.25, "maxcpu": 8, "memtotal": 100, "memused": 50, "ctime": 1000}}
    guests: Rows = {"101": {"name": "web1", "cpu": 0.5, "maxcpu": 2, "mem": 10, "maxmem": 20, "memhost": 15, "ctime": 1001}}
    pve.rrd(nodes, guests)
    node, guest = pve.read(".rrd").splitlines()
    assert node.split(":")[:10] == ["pve-node-9.0/pve1", "86400", "", "1000", "0", "8", "0.25", "U", "100", "50"]
    assert guest.split(":")[:10] == ["pve-vm-9.0/101", "86400", "web1", "running", "0", "1001", "2", "0.5", "20", "10"]
    assert guest.split(":")[16] == "15"
    pve.rrd(nodes, guests, release=8)
    node, guest = pve.read(".rrd").splitlines()
    assert (node.split(":")[0], guest.split(":")[0]) == ("pve2-node/pve1", "pve2.3-vm/101")
    assert (len(node.split(":")), len(guest.split(":"))) == (16, 16)
    with pytest.raises(RuntimeError, match="no such column of nodes: mem"):
        pve.rrd({"pve1": {"mem": 1}}, {})


def test_writes_are_counted_by_path(pve: Pmxcfs) -> None:
    lock(pve, "pve1").mkdir()
    pve.forget_calls()
    os.utime(lock(pve, "pve1"))
    errno_of(lambda: os.utime(lock(pve, "pve2")))
    one_read(pve.at() / ".version")
    assert pve.writes() == pve.writes("priv/lock") == 1
    assert [(row.node, row.done, row.refused) for row in pve.calls() if row.call == "utimens"] == [("pve1", 1, 0), ("pve2", 0, 1)]


def test_files_and_locks_outlive_a_restart_and_the_log_does_not(tmp_path: Path) -> None:
    with Pmxcfs("pve1", keep=tmp_path / "kept") as pve:
        lock(pve, "pve1").mkdir()
        pve.guest(100, "pve1", conf="memory: 512\n")
        pve.log("pve1", "x")
        pve.stop()
        assert not mounted_below(pve.root)
        pve.start()
        assert lock(pve, "pve1").is_dir()
        assert "100" in json.loads(pve.read(".vmlist"))["ids"]
        assert [entry["msg"] for entry in json.loads(pve.read(".clusterlog"))["data"]] == ["starting cluster log"]


def test_a_start_after_a_kill_waits_until_the_new_one_answers(tmp_path: Path) -> None:
    with Pmxcfs("pve1", keep=tmp_path / "kept") as pve:
        os.kill(pve.pid, signal.SIGKILL)
        pve.stop()
        pve.start()
        assert pve.read(".version")


def test_one_that_is_gone_before_it_has_answered_is_gone_and_has_refused_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "control"))
        listening.listen()

        def hang_up() -> None:
            line, _ = listening.accept()
            line.recv(1024)
            line.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ConnectionResetError):
            Control(tmp_path / "control").calls()
        thread.join()


def test_its_socket_is_there_only_when_it_listens(tmp_path: Path, mocker: MockerFixture) -> None:
    where = tmp_path / "control"
    there = []
    activate = mocker.patch("socketserver.TCPServer.server_activate", autospec=True)
    activate.side_effect = lambda server: (there.append(where.exists()), server.socket.listen())
    with Server(str(where), Commands(Cluster({"pve1": ""}), {})):
        assert there == [False]
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(where))


def test_nothing_is_left_when_the_test_is_killed() -> None:
    code = "from tests.pmxcfs.client import Pmxcfs\nimport time\nwith Pmxcfs('a') as p: print(p.pid, p.root, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout
        pid, root = process.stdout.readline().split()
        process.kill()
    wait_until(lambda: not (Path("/proc") / pid).exists())
    assert not mounted_below(Path(root))
    subprocess.run(["rm", "-rf", "--one-file-system", root])

# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in does what was measured on real clusters of pmxcfs."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pmxcfs.client import Pmxcfs, Rows, mounted_below, why_not_possible

pytestmark = pytest.mark.skipif(why_not_possible() is not None, reason=str(why_not_possible()))
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


def lock(pve: Pmxcfs, node: str) -> Path:
    return pve.at(node) / "priv/lock/proxlb-agent"


def one_read(path: Path) -> str:
    """Read as the agent does: one read, so that nobody's look in between changes the text."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1 << 20).decode()
    finally:
        os.close(fd)


def test_a_lock_is_taken_once_and_renewed_by_its_node_alone(pve: Pmxcfs) -> None:
    mine, theirs = lock(pve, "pve1"), lock(pve, "pve2")
    mine.mkdir()
    assert errno_of(mine.mkdir) == "EEXIST"
    assert errno_of(theirs.mkdir) == "EEXIST"
    assert errno_of(lambda: os.utime(mine)) == ""
    assert errno_of(lambda: os.utime(theirs)) == "EACCES"
    assert errno_of(lambda: os.utime(mine, (0, 0))) == "EACCES"
    assert mine.is_dir(), "a request for expiry before its time does nothing"
    assert pve.lock_holder("proxlb-agent") == "pve1"


def test_a_lock_whose_holders_clock_stepped_back_is_renewed_with_the_stored_time(pve: Pmxcfs) -> None:
    mine = lock(pve, "pve1")
    mine.mkdir()
    stored = int(mine.stat().st_mtime)
    assert errno_of(lambda: os.utime(mine, (0, stored - 100))) == "EACCES"
    assert errno_of(lambda: os.utime(mine, (0, stored + 1))) == ""


def test_a_silent_lock_expires_only_when_somebody_asks(pve: Pmxcfs) -> None:
    mine, theirs = lock(pve, "pve1"), lock(pve, "pve2")
    mine.mkdir()
    pve.age_lock("proxlb-agent", 125)
    assert errno_of(theirs.mkdir) == "EEXIST"
    assert errno_of(lambda: os.utime(theirs, (0, 0))) == "EACCES"
    assert errno_of(theirs.mkdir) == ""
    assert pve.lock_holder("proxlb-agent") == "pve2"
    assert errno_of(lambda: os.utime(mine)) == "EACCES"


def test_a_lock_with_a_file_in_it_neither_expires_nor_goes(pve: Pmxcfs) -> None:
    mine = lock(pve, "pve1")
    mine.mkdir()
    (mine / "file").write_text("")
    pve.age_lock("proxlb-agent", 125)
    errno_of(lambda: os.utime(mine, (0, 0)))
    assert errno_of(mine.rmdir) == "ENOTEMPTY"
    (mine / "file").unlink()
    assert errno_of(lock(pve, "pve2").rmdir) == "", "nobody asks whose lock it is"


def test_a_change_of_membership_starts_the_age_of_locks_anew(pve: Pmxcfs) -> None:
    mine = lock(pve, "pve1")
    mine.mkdir()
    pve.age_lock("proxlb-agent", 125)
    pve.online("pve2", False)
    errno_of(lambda: os.utime(mine, (0, 0)))
    assert mine.is_dir()


def test_what_pmxcfs_cannot_do(pve: Pmxcfs) -> None:
    at = pve.at()
    file = at / "storage.cfg"
    file.write_text("x")
    assert errno_of(lambda: file.open("x")) == "EEXIST"
    assert errno_of(lambda: (at / "s").symlink_to("x")) == "ENOSYS"
    assert errno_of(lambda: os.mkfifo(at / "f")) == "ENOSYS"
    assert errno_of(lambda: (at / "h").hardlink_to(file)) == "EPERM"
    assert errno_of(lambda: file.chmod(0o600)) == "EPERM"
    assert errno_of(lambda: file.chmod(0o640)) == ""
    assert errno_of(lambda: (at / "a:b c").write_text("")) == ""
    assert errno_of(lambda: (at / "big").write_bytes(b"x" * (2 << 20))) == "EFBIG"
    assert (at / "big").stat().st_size > (1 << 20) - 4096, "the first MiB stays"
    assert errno_of(lambda: (at / "nodes").rename(at / "knots")) == "ENOTEMPTY"


def test_modes_are_those_of_pmxcfs_whatever_was_asked_for(pve: Pmxcfs) -> None:
    at = pve.at()
    (at / "proxlb").mkdir(0o700)
    (at / "proxlb/config.yaml").write_text("")
    (at / "priv/proxlb").mkdir()
    (at / "priv/proxlb/token").write_text("")
    names = ["proxlb", "proxlb/config.yaml", "priv/proxlb", "priv/proxlb/token", "nodes/pve1/priv", "local", ".version"]
    modes = {name: stat.S_IMODE((at / name).lstat().st_mode) for name in names}
    assert modes == dict(zip(names, [0o755, 0o640, 0o700, 0o600, 0o700, 0o755, 0o440], strict=True))


def test_a_file_is_on_the_other_node_at_once_and_changes_no_directory(pve: Pmxcfs) -> None:
    (pve.at("pve1") / "proxlb").mkdir()
    os.utime(pve.at("pve1") / "proxlb", (0, 1000))
    (pve.at("pve1") / "proxlb/flag").write_text("reason")
    assert (pve.at("pve2") / "proxlb/flag").read_text() == "reason"
    assert os.listdir(pve.at("pve2") / "proxlb") == ["flag"]
    assert (pve.at("pve2") / "proxlb").stat().st_mtime == 1000


def test_rename_replaces(pve: Pmxcfs) -> None:
    at = pve.at("pve1")
    (at / "old").write_text("old")
    (at / ".new").write_text("new")
    (at / ".new").rename(at / "old")
    assert (pve.at("pve2") / "old").read_text() == "new"
    assert not (at / ".new").exists()


def test_the_walk_through_priv_fails_on_the_bare_directory(pve: Pmxcfs) -> None:
    flag = f"{pve.at('pve1')}/priv/../flag"
    assert errno_of(lambda: open(flag, "w").close()) == ""
    pve.unmount("pve1")
    assert os.listdir(pve.at("pve1")) == []
    assert errno_of(lambda: open(flag, "w").close()) == "ENOENT"
    pve.mount("pve1")
    assert (pve.at("pve1") / "flag").exists()


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


def test_a_node_cut_off_reads_its_old_copy_and_writes_nothing(pve: Pmxcfs) -> None:
    lone, others = pve.at("pve1"), pve.at("pve2")
    (lone / "file").write_text("before")
    pve.quorum(False, ["pve1"])
    time.sleep(ATTRIBUTES_CACHED_S)
    assert oct((lone / "local").lstat().st_mode) == "0o120555"
    assert oct((others / "local").lstat().st_mode) == "0o120755"
    assert json.loads(one_read(lone / ".members"))["cluster"]["quorate"] == 0
    assert json.loads(one_read(others / ".members"))["nodelist"]["pve1"]["online"] == 0
    (others / "file").write_text("after")
    assert errno_of(lambda: (lone / "file").write_text("lone")) == "EACCES"
    assert errno_of((lone / "dir").mkdir) == "EACCES"
    assert (lone / "file").read_text() == "before"
    pve.quorum(True, ["pve1"])
    assert (lone / "file").read_text() == "after"
    assert errno_of(lambda: (lone / "file").write_text("again")) == ""


def test_a_write_under_way_at_the_cut_hangs_and_fails(pve: Pmxcfs) -> None:
    lock(pve, "pve1").mkdir()
    pve.quorum(False, ["pve1"], cut_s=0.5)
    begun = time.monotonic()
    assert errno_of(lambda: os.utime(lock(pve, "pve1"))) == "EPERM"
    assert time.monotonic() - begun > 0.4
    pve.quorum(True, ["pve1"])
    pve.quorum(False, ["pve1"], cut_s=0.5)
    assert errno_of((pve.at("pve1") / "dir").mkdir) == "EBUSY"
    pve.quorum(True, ["pve1"])
    pve.quorum(False, ["pve1"], cut_s=0.5)
    assert errno_of((pve.at("pve2") / "dir").mkdir) == "", "the majority's write waits, then succeeds"


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
    thread.join(10)
    assert not thread.is_alive()


def test_no_inotify_but_for_what_the_node_does_itself(pve: Pmxcfs) -> None:
    watch = (
        "import sys, time; from watchdog.observers import Observer; from watchdog.events import FileSystemEventHandler as H\n"
        "class P(H):\n    def on_created(self, event): print(event.src_path, flush=True)\n"
        "o = Observer(); o.schedule(P(), sys.argv[1]); o.start(); print('ready', flush=True); sys.stdin.read(); time.sleep(0.3)\n"
    )
    if subprocess.run(["/usr/bin/python3", "-c", "import watchdog"], capture_output=True).returncode != 0:
        pytest.skip("Debian's python3-watchdog is missing")
    with subprocess.Popen(["/usr/bin/python3", "-c", watch, pve.at("pve1")], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout
        assert process.stdin
        process.stdout.readline()
        (pve.at("pve2") / "there").write_text("")
        (pve.at("pve1") / "here").write_text("")
        process.stdin.close()
        seen = process.stdout.read()
        process.wait(10)
    assert "here" in seen
    assert "there" not in seen


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


def test_the_version_counts_listed_files_and_not_the_log_nor_others(pve: Pmxcfs) -> None:
    before = json.loads(pve.read(".version"))
    pve.log("pve1", "x")
    (pve.at() / "other").write_text("")
    assert json.loads(pve.read(".version")) == before
    (pve.at() / "datacenter.cfg").write_text("crs: ha=static\n")
    pve.tasklist("pve2")
    after = json.loads(pve.read(".version"))
    assert after["datacenter.cfg"] > before["datacenter.cfg"]
    assert after["kvstore"]["pve2"]["tasklist"] == before["kvstore"]["pve2"]["tasklist"] + 1


def test_the_cluster_log_shows_the_newest_50_and_may_be_no_json(pve: Pmxcfs) -> None:
    for number in range(60):
        pve.log("pve1", f'end task "{number}"', time=1000 + number)
    pve.log("pve2", "first of its node", pri=3, tag="pve-ha-lrm")
    shown = json.loads(one_read(pve.at("pve2") / ".clusterlog"))["data"]
    assert len(shown) == 50
    assert (shown[0]["uid"], shown[0]["node"], shown[0]["pri"], shown[0]["tag"]) == (1, "pve2", 3, "pve-ha-lrm")
    assert (shown[1]["uid"], shown[1]["msg"], shown[1]["time"]) == (60, 'end task "59"', 1059)
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


def test_a_dot_file_is_old_until_somebody_looks_again(pve: Pmxcfs) -> None:
    one_read(pve.at() / ".clusterlog")
    pve.log("pve1", "new")
    assert "new" not in one_read(pve.at() / ".clusterlog")
    time.sleep(ATTRIBUTES_CACHED_S)
    assert "new" in one_read(pve.at() / ".clusterlog")


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
        assert json.loads(pve.read(".clusterlog"))["data"] == []


def test_nothing_is_left_when_the_test_is_killed() -> None:
    code = "from tests.pmxcfs.client import Pmxcfs\nimport time\nwith Pmxcfs('a') as p: print(p.pid, p.root, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout
        pid, root = process.stdout.readline().split()
        process.kill()
    until = time.monotonic() + 20
    while (Path("/proc") / pid).exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not (Path("/proc") / pid).exists()
    assert not mounted_below(Path(root))
    subprocess.run(["rm", "-rf", "--one-file-system", root])

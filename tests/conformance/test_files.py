# SPDX-License-Identifier: GPL-3.0-or-later
"""Files and folders: what all nodes see, what can be done to them and what cannot."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import threading
import time

import pytest
from mounts import AT_ONCE_S, ATTRIBUTES_CACHED_S, CLOCKS_APART_S, Cluster, eventually, lists, outcome, read, reads, write, write_all

MIB = 1 << 20
MAX_NAME_BYTES = 1024  # of FUSE


# --- seen by all -------------------------------------------------------------------------------------------------------------------


def test_a_file_is_on_every_node_at_once(pve: Cluster, folder: str) -> None:
    for node in pve.nodes:
        write(node.mount / folder / node.name, f"of {node.name}")
        reads(pve.mounts, f"{folder}/{node.name}", f"of {node.name}")
    lists(pve.mounts, folder, (node.name for node in pve.nodes))


def test_what_one_node_removes_is_gone_on_every_node(pve: Cluster, folder: str) -> None:
    first, second, third = pve.nodes[:3]
    write(first.mount / folder / "file")
    os.mkdir(second.mount / folder / "folder")
    lists([third.mount], folder, ["file", "folder"])
    os.unlink(third.mount / folder / "file")
    os.rmdir(third.mount / folder / "folder")
    lists(pve.mounts, folder, [])


def test_a_folders_time_does_not_tell_that_something_in_it_changed(pve: Cluster, folder: str) -> None:
    first, second = pve.nodes[:2]
    os.utime(first.mount / folder, (0, 1000))
    write(first.mount / folder / "file")
    os.mkdir(second.mount / folder / "folder")
    lists([second.mount], folder, ["file", "folder"])
    os.unlink(second.mount / folder / "file")
    time.sleep(ATTRIBUTES_CACHED_S)
    assert [os.stat(node.mount / folder).st_mtime for node in pve.nodes] == [1000.0] * len(pve.nodes)


def test_a_file_replaced_by_rename_is_whole_for_whoever_reads_it_in_one_piece(pve: Cluster, folder: str) -> None:
    writer, reader = pve.nodes[:2]
    texts = {letter * 90_000 for letter in "ab"}
    write(writer.mount / folder / "file", "a" * 90_000)
    reads([reader.mount], f"{folder}/file", "a" * 90_000)  # made and written are two messages
    over, seen = threading.Event(), set()

    def read_on() -> None:
        while not over.is_set():
            seen.add(read(reader.mount / folder / "file"))

    thread = threading.Thread(target=read_on)
    thread.start()
    try:
        for turn in range(20):
            write(writer.mount / folder / ".file.new", "ba"[turn % 2] * 90_000)
            os.rename(writer.mount / folder / ".file.new", writer.mount / folder / "file")
    finally:
        over.set()
        thread.join()
    assert seen <= texts
    lists([reader.mount], folder, ["file"])


def test_a_file_read_in_two_pieces_can_be_old_and_new_at_once(pve: Cluster, folder: str) -> None:
    writer, reader = pve.nodes[:2]
    write(writer.mount / folder / "file", "old " * 10)
    reads([reader.mount], f"{folder}/file", "old " * 10)
    fd = os.open(reader.mount / folder / "file", os.O_RDONLY)
    try:
        begin = os.read(fd, 8)
        write(writer.mount / folder / ".file.new", "new " * 10)
        os.rename(writer.mount / folder / ".file.new", writer.mount / folder / "file")
        reads([reader.mount], f"{folder}/file", "new " * 10)
        assert begin + os.read(fd, 100) == b"old old " + b"new " * 8
    finally:
        os.close(fd)


def test_a_file_written_in_place_is_seen_empty_in_between(pve: Cluster, folder: str) -> None:
    writer, reader = pve.nodes[:2]
    write(writer.mount / folder / "file", "old")
    fd = os.open(writer.mount / folder / "file", os.O_WRONLY | os.O_TRUNC)
    try:
        reads([reader.mount], f"{folder}/file", "")
        os.write(fd, b"new")
        reads([reader.mount], f"{folder}/file", "new")
    finally:
        os.close(fd)


def test_an_open_file_that_another_node_removes_cannot_be_read_any_more(pve: Cluster, folder: str) -> None:
    reader, remover = pve.nodes[:2]
    write(reader.mount / folder / "file")
    lists([remover.mount], folder, ["file"])
    fd = os.open(reader.mount / folder / "file", os.O_RDONLY)
    try:
        os.unlink(remover.mount / folder / "file")
        eventually(lambda: outcome(lambda: os.pread(fd, 10, 0)) == "ENOENT", "gone under the open file", AT_ONCE_S)
    finally:
        os.close(fd)


@pytest.mark.parametrize("by", ["unlink", "rename"])
def test_an_open_file_that_its_own_node_removes_stays_under_a_hidden_name_until_it_is_closed(pve: Cluster, folder: str, by: str) -> None:
    here, other = pve.nodes[:2]
    left = ["file"] if by == "rename" else []
    write(here.mount / folder / "file", "text")
    fd = os.open(here.mount / folder / "file", os.O_RDONLY)
    try:
        if by == "unlink":
            os.unlink(here.mount / folder / "file")
        else:
            write(here.mount / folder / "new", "new")
            os.rename(here.mount / folder / "new", here.mount / folder / "file")
        hidden = [".fuse_hidden", *left]
        eventually(lambda: sorted(name[:12] for name in os.listdir(other.mount / folder)) == hidden, "the hidden name", AT_ONCE_S)
        assert os.pread(fd, 10, 0) == b"text"
    finally:
        os.close(fd)
    lists(pve.mounts, folder, left)


def test_a_second_after_another_node_removed_it_a_name_is_forgotten(pve: Cluster, folder: str) -> None:
    here, remover = pve.nodes[:2]
    write(here.mount / folder / "file")
    lists([remover.mount], folder, ["file"])
    os.stat(here.mount / folder / "file")
    os.unlink(remover.mount / folder / "file")
    time.sleep(ATTRIBUTES_CACHED_S)
    assert outcome(lambda: os.stat(here.mount / folder / "file")) == "ENOENT"


def test_the_walk_through_priv_leads_back_to_the_root(pve: Cluster, folder: str) -> None:
    here = pve.nodes[0].mount
    write(here / "priv" / ".." / folder / "file", "by way of priv")
    assert read(here / folder / "file") == "by way of priv"


# --- modes, owners and times -------------------------------------------------------------------------------------------------------


def test_modes_are_fixed_whatever_was_asked_for(pve: Cluster, name: str, folder: str) -> None:
    here = pve.nodes[0].mount
    os.mkdir(here / folder / "folder", 0o700)
    os.close(os.open(here / folder / "file", os.O_CREAT | os.O_WRONLY, 0o777))
    os.mkdir(here / "priv" / name, 0o777)
    write(here / "priv" / name / "file")
    try:
        modes = {
            path: oct(os.lstat(here / path).st_mode)
            for path in ("", "local", "priv", "priv/lock", f"priv/{name}/file", f"{folder}/folder", f"{folder}/file", "local/priv")
        }
    finally:
        os.unlink(here / "priv" / name / "file")
        os.rmdir(here / "priv" / name)
    assert modes == {
        "": "0o40755",
        "local": "0o120755",
        "priv": "0o40700",
        "priv/lock": "0o40700",
        f"priv/{name}/file": "0o100600",
        f"{folder}/folder": "0o40755",
        f"{folder}/file": "0o100640",
        "local/priv": "0o40700",
    }


def test_everything_belongs_to_root_and_one_group(pve: Cluster, folder: str) -> None:
    here = pve.nodes[0].mount
    write(here / folder / "file")
    owners = {(found.st_uid, found.st_gid) for found in (os.lstat(here / path) for path in ("", "local", "priv", f"{folder}/file"))}
    assert owners == {(0, os.stat(here).st_gid)}


def test_chmod_and_chown_succeed_only_where_they_change_nothing(pve: Cluster, name: str, folder: str) -> None:
    here, file = pve.nodes[0].mount, pve.nodes[0].mount / folder / "file"
    write(file)
    assert outcome(lambda: os.chmod(file, 0o640)) == ""
    assert {outcome(lambda: os.chmod(file, mode)) for mode in (0o600, 0o644, 0o660, 0o4640)} == {"EPERM"}  # noqa: B023  # called here
    assert outcome(lambda: os.chmod(here / folder, 0o755)) == "EPERM", "not even the mode that it has"
    group = os.stat(here).st_gid
    assert outcome(lambda: os.chown(file, 0, group)) == ""
    assert outcome(lambda: os.chown(file, -1, -1)) == ""
    assert outcome(lambda: os.chown(file, 0, group + 1)) == "EPERM"
    assert outcome(lambda: os.chown(file, 1, -1)) == "EPERM"
    os.mkdir(here / "priv" / name)
    write(here / "priv" / name / "file")
    try:
        assert outcome(lambda: os.chmod(here / "priv" / name / "file", 0o600)) == ""
        assert outcome(lambda: os.chmod(here / "priv" / name / "file", 0o640)) == "EPERM"
    finally:
        os.unlink(here / "priv" / name / "file")
        os.rmdir(here / "priv" / name)


def test_times_are_whole_seconds_and_any_node_sets_them(pve: Cluster, folder: str) -> None:
    first, second = pve.nodes[:2]
    before_s = time.time()
    write(first.mount / folder / "file")
    assert before_s - CLOCKS_APART_S < os.stat(first.mount / folder / "file").st_mtime < time.time() + CLOCKS_APART_S
    lists([second.mount], folder, ["file"])
    os.utime(second.mount / folder / "file", (7, 1234.9))
    os.utime(second.mount / folder, (7, 4321.9))
    time.sleep(ATTRIBUTES_CACHED_S)
    found = os.stat(first.mount / folder / "file")
    assert (found.st_mtime, found.st_atime, found.st_ctime) == (1234.0, 1234.0, 1234.0)
    assert os.stat(first.mount / folder).st_mtime == 4321.0


# --- what cannot be done -----------------------------------------------------------------------------------------------------------


def test_there_are_files_and_folders_and_nothing_else(pve: Cluster, folder: str) -> None:
    here = pve.nodes[0].mount / folder
    write(here / "file")
    assert outcome(lambda: os.symlink("file", here / "link")) == "ENOSYS"
    assert outcome(lambda: os.mkfifo(here / "fifo")) == "ENOSYS"
    assert outcome(lambda: os.link(here / "file", here / "hard")) == "EPERM"
    assert outcome(lambda: os.setxattr(here / "file", "user.x", b"1")) == "ENOTSUP"
    fd = os.open(here / "file", os.O_RDWR)
    try:
        assert outcome(lambda: mmap.mmap(fd, 1)) == "ENODEV"
        assert outcome(lambda: os.fsync(fd)) == ""
    finally:
        os.close(fd)
    assert os.listdir(here) == ["file"]


def test_a_file_ends_at_one_mebibyte(pve: Cluster, folder: str) -> None:
    first, second = pve.nodes[:2]
    file = first.mount / folder / "file"
    content = os.urandom(MIB)
    write(file, content)
    eventually(lambda: (second.mount / folder / "file").read_bytes() == content, "all of it", AT_ONCE_S)
    fd = os.open(file, os.O_WRONLY)
    try:
        assert outcome(lambda: os.pwrite(fd, b"x", MIB)) == "EFBIG"
        assert outcome(lambda: os.ftruncate(fd, MIB + 1)) == "EFBIG"
    finally:
        os.close(fd)
    fd = os.open(file, os.O_WRONLY | os.O_TRUNC)
    try:
        assert outcome(lambda: write_all(fd, content + content)) == "EFBIG"
    finally:
        os.close(fd)
    left = file.read_bytes()
    assert MIB - 128 * 1024 <= len(left) <= MIB, "what was written before stays"
    assert content.startswith(left)


def test_a_file_grows_with_zeros_and_shrinks(pve: Cluster, folder: str) -> None:
    first, second = pve.nodes[:2]
    write(first.mount / folder / "file", "abcdef")
    os.truncate(first.mount / folder / "file", 3)
    reads([second.mount], f"{folder}/file", "abc")
    os.truncate(first.mount / folder / "file", 6)
    fd = os.open(first.mount / folder / "file", os.O_WRONLY)
    os.pwrite(fd, b"xy", 8)
    os.pwrite(fd, b"B", 1)
    os.close(fd)
    reads([second.mount], f"{folder}/file", "aBc\0\0\0\0\0xy")


def test_a_file_is_made_anew_only_once(pve: Cluster, folder: str) -> None:
    first, second = pve.nodes[:2]
    os.close(os.open(first.mount / folder / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    assert outcome(lambda: os.open(first.mount / folder / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)) == "EEXIST"
    lists([second.mount], folder, ["file"])
    assert outcome(lambda: os.open(second.mount / folder / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)) == "EEXIST"


def test_names_may_be_anything_up_to_1024_bytes(pve: Cluster, folder: str) -> None:
    first, second = pve.nodes[:2]
    names = sorted(["a:b c", "ü\n", ".hidden", "n" * MAX_NAME_BYTES])
    for name in names:
        write(first.mount / folder / name, name)
    lists([second.mount], folder, names)
    for name in names:
        reads([second.mount], f"{folder}/{name}", name)
    assert outcome(lambda: write(first.mount / folder / ("n" * (MAX_NAME_BYTES + 1)))) == "ENAMETOOLONG"


def test_an_flock_holds_on_its_own_node_alone(pve: Cluster, folder: str) -> None:
    first, second = pve.nodes[:2]
    write(first.mount / folder / "file")
    lists([second.mount], folder, ["file"])
    fds = [os.open(node.mount / folder / "file", os.O_RDWR) for node in (first, first, second)]
    try:
        assert [outcome(lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)) for fd in fds] == ["", "EAGAIN", ""]  # noqa: B023  # called here
    finally:
        for fd in fds:
            os.close(fd)


# --- moving and removing -----------------------------------------------------------------------------------------------------------


def test_rename_replaces_a_file_and_an_empty_folder(pve: Cluster, folder: str) -> None:
    first, second = pve.nodes[:2]
    here = first.mount / folder
    write(here / "old", "old")
    write(here / "new", "new")
    os.rename(here / "new", here / "old")
    reads([second.mount], f"{folder}/old", "new")
    os.mkdir(here / "one")
    os.mkdir(here / "two")
    os.rename(here / "one", here / "two")
    lists([second.mount], folder, ["old", "two"])


def test_a_folder_with_something_in_it_is_neither_moved_nor_replaced_nor_removed(pve: Cluster, folder: str) -> None:
    here = pve.nodes[0].mount / folder
    os.mkdir(here / "full")
    write(here / "full/file")
    os.mkdir(here / "empty")
    assert outcome(lambda: os.rename(here / "full", here / "elsewhere")) == "ENOTEMPTY"
    assert outcome(lambda: os.rename(here / "empty", here / "full")) == "ENOTEMPTY"
    assert outcome(lambda: os.rmdir(here / "full")) == "ENOTEMPTY"


def test_a_file_does_not_take_the_place_of_a_folder_nor_the_other_way_round(pve: Cluster, folder: str) -> None:
    here = pve.nodes[0].mount / folder
    os.mkdir(here / "folder")
    write(here / "file")
    assert outcome(lambda: os.rename(here / "file", here / "folder")) == "EISDIR"
    assert outcome(lambda: os.rename(here / "folder", here / "file")) == "ENOTDIR"
    assert outcome(lambda: os.unlink(here / "folder")) == "EISDIR"
    assert outcome(lambda: os.rmdir(here / "file")) == "ENOTDIR"
    assert outcome(lambda: write(here / "file/file")) == "ENOTDIR"
    assert outcome(lambda: write(here / "nowhere/file")) == "ENOENT"


@pytest.mark.parametrize("name", [".version", "local"])
def test_what_pmxcfs_makes_up_stays_as_it_is(pve: Cluster, folder: str, name: str) -> None:
    here = pve.nodes[0].mount
    write(here / folder / "file")
    assert outcome(lambda: os.unlink(here / name)) == "EACCES"
    assert outcome(lambda: os.rename(here / name, here / folder / "moved")) == "EACCES"
    assert outcome(lambda: os.rename(here / folder / "file", here / name)) == "EACCES"
    assert outcome(lambda: os.mkdir(here / name)) == "EEXIST"
    assert outcome(lambda: os.utime(here / name, follow_symlinks=False)) == "EACCES"
    assert outcome(lambda: os.utime(here)) == "EACCES", "nor has the root a time"


def test_links_lead_to_the_own_nodes_folder(pve: Cluster) -> None:
    for node in pve.nodes:
        targets = {name: os.readlink(node.mount / name) for name in ("local", "qemu-server", "lxc")}
        assert targets == {"local": f"nodes/{node.name}", **{name: f"nodes/{node.name}/{name}" for name in ("qemu-server", "lxc")}}
        found = os.lstat(node.mount / "local")
        assert (stat.S_ISLNK(found.st_mode), found.st_size, found.st_mtime) == (True, len(targets["local"]), 0.0)


def test_free_space_is_told_in_blocks_of_4_kib(pve: Cluster) -> None:
    found = os.statvfs(pve.nodes[0].mount)
    assert (found.f_bsize, found.f_blocks * found.f_bsize, found.f_files) == (4096, 128 * MIB, 256 * 1024)
    assert 0 < found.f_bavail <= found.f_blocks

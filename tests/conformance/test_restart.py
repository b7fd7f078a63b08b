# SPDX-License-Identifier: GPL-3.0-or-later
"""pmxcfs ends and starts: what calls say meanwhile, what the bare directory is, what the node knows afterwards."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from mounts import ATTRIBUTES_CACHED_S, Cluster, eventually, outcome, read, write

NOBODY_ANSWERS = {"ENOTCONN", "ECONNABORTED"}
NO_START_S = 5.0


def is_bare(mount: Path) -> bool:
    """Nothing is mounted there any more."""
    try:
        return not os.path.lexists(mount / "local") and os.listdir(mount) == []
    except OSError:
        return False


@pytest.mark.needs("STOP", "START")
def test_a_stopped_pmxcfs_leaves_an_empty_folder_that_takes_writes(pve: Cluster, folder: str) -> None:
    first, _, leaver = pve.nodes[:3]
    write(leaver.mount / folder / "file", "before")
    seen: set[str] = set()
    over = threading.Event()

    def look_on() -> None:
        while not over.is_set():
            seen.add(outcome(lambda: os.listdir(leaver.mount / folder)))

    looker = threading.Thread(target=look_on)
    looker.start()
    try:
        pve.stop(leaver)
        eventually(lambda: is_bare(leaver.mount), "the bare folder", pve.change_s)
    finally:
        over.set()
        looker.join()
    assert seen <= NOBODY_ANSWERS | {"", "ENOENT"}
    pve.wait_members(first, pve.others(leaver))
    os.mkdir(leaver.mount / "stray")
    os.rmdir(leaver.mount / "stray")
    assert outcome(lambda: os.mkdir(leaver.mount / "priv/../stray")) == "ENOENT", "a walk that only the mounted one allows"
    write(first.mount / folder / "file", "after")
    pve.start(leaver)
    assert read(leaver.mount / folder / "file") == "after"


@pytest.mark.needs("STOP", "START")
def test_pmxcfs_does_not_mount_over_a_file(pve: Cluster) -> None:
    leaver = pve.nodes[2]
    pve.stop(leaver)
    eventually(lambda: is_bare(leaver.mount), "the bare folder", pve.change_s)
    stray = leaver.mount / "stray"
    stray.write_text("x")
    try:
        pve.try_start(leaver)
        time.sleep(NO_START_S if pve.lock_life_s >= NO_START_S else 1.0)
        assert os.listdir(leaver.mount) == ["stray"]
    finally:
        stray.unlink()
    pve.start(leaver)


@pytest.mark.needs("KILL", "START")
def test_a_killed_pmxcfs_leaves_a_mount_where_nobody_answers(pve: Cluster, folder: str) -> None:
    victim = pve.nodes[2]
    write(victim.mount / folder / "file", "before")
    pve.kill(victim)
    time.sleep(ATTRIBUTES_CACHED_S)
    calls = {
        "list": outcome(lambda: os.listdir(victim.mount)),
        "look": outcome(lambda: os.lstat(victim.mount / "local")),
        "read": outcome(lambda: read(victim.mount / folder / "file")),
        "write": outcome(lambda: write(victim.mount / folder / "file")),
        "mkdir": outcome(lambda: os.mkdir(victim.mount / "stray")),
    }
    assert set(calls.values()) <= NOBODY_ANSWERS
    pve.start(victim)
    assert read(victim.mount / folder / "file") == "before"


@pytest.mark.needs("STOP", "START")
def test_a_file_that_was_open_over_a_restart_is_of_no_use_and_its_path_is(pve: Cluster, folder: str) -> None:
    node = pve.nodes[2]
    write(node.mount / folder / "file", "text")
    fd = os.open(node.mount / folder / "file", os.O_RDONLY)
    try:
        pve.stop(node)
        pve.start(node)
        assert outcome(lambda: os.pread(fd, 10, 0)) in NOBODY_ANSWERS
    finally:
        os.close(fd)
    assert read(node.mount / folder / "file") == "text"


@pytest.mark.needs("STOP", "START")
def test_a_start_counts_anew_on_that_node_alone(pve: Cluster) -> None:
    node, other = pve.nodes[2], pve.nodes[0]
    for _ in range(3):
        write(other.mount / "corosync.conf.new")
    os.unlink(other.mount / "corosync.conf.new")
    time.sleep(ATTRIBUTES_CACHED_S)
    before, others_before = (json.loads(read(one.mount / ".version")) for one in (node, other))
    pve.stop(node)
    pve.start(node)
    time.sleep(ATTRIBUTES_CACHED_S)
    after, others_after = (json.loads(read(one.mount / ".version")) for one in (node, other))
    assert after["starttime"] > before["starttime"]
    assert after["corosync.conf.new"] < before["corosync.conf.new"]
    assert others_after["starttime"] == others_before["starttime"]
    assert others_after["clinfo"] > others_before["clinfo"]


@pytest.mark.needs("STOP", "START", "LOG")
def test_the_log_comes_back_from_the_others_and_numbers_start_anew(pve: Cluster, name: str) -> None:
    node, other = pve.nodes[2], pve.nodes[0]
    pve.log(node, f"{name}-1")
    pve.log(other, f"{name}-2")
    pve.stop(node)
    time.sleep(ATTRIBUTES_CACHED_S)
    pve.start(node)
    pve.log(node, f"{name}-3")
    time.sleep(ATTRIBUTES_CACHED_S)
    for one in (node, other):
        lines = [line for line in read(one.mount / ".clusterlog").splitlines() if f'"msg": "{name}-' in line]
        entries = [json.loads(line.rstrip(",")) for line in lines]
        assert [entry["msg"] for entry in entries if entry["msg"] != f"{name}-2"] == [f"{name}-3", f"{name}-1"]
        assert len(entries) == 3
        assert entries[0]["uid"] == 2, "1 is that the log starts"

# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that pmxcfs makes up: what they say, when they change, and how they are read without getting two texts in one."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from typing import Any

import pytest
from mounts import AT_ONCE_S, ATTRIBUTES_CACHED_S, Cluster, Node, eventually, members, outcome, read, write

DOT_FILES = (".version", ".members", ".vmlist", ".clusterlog", ".rrd")
SHOWN_LOG_ENTRIES = 50
ATTRIBUTES_KEPT_S = 1.0
MOST_TRIES = 20  # to add an entry in that time, which a busy machine may not make at first
RRD_LIFE_S = 300
RRD_CACHED_S = 2.1  # the text of .rrd is made anew when it is 2 s old


def version(node: Node) -> Any:
    return json.loads(read(node.mount / ".version"))


def log_of(node: Node) -> list[Any]:
    """The entries that are JSON: those of before may not be."""
    entries = []
    for line in read(node.mount / ".clusterlog").splitlines():
        if line.startswith('{"uid"'):
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line.rstrip(",")))
    return entries


def messages(node: Node) -> list[str]:
    return [entry["msg"] for entry in log_of(node)]


# --- all of them -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOT_FILES)
def test_a_dot_file_is_listed_and_cannot_be_written(pve: Cluster, name: str) -> None:
    here = pve.nodes[0].mount
    assert name in os.listdir(here)
    found = os.stat(here / name)
    assert (oct(found.st_mode), found.st_mtime, found.st_gid) == (oct(stat.S_IFREG | 0o440), 0.0, os.stat(here).st_gid)
    assert outcome(lambda: write(here / name)) == "EIO", "root may open it, and that is all"
    fd = os.open(here / name, os.O_WRONLY)
    try:
        assert outcome(lambda: os.write(fd, b"x")) == "EIO"
    finally:
        os.close(fd)


def test_the_switch_for_more_log_takes_one_digit_on_a_line(pve: Cluster) -> None:
    switch = pve.nodes[0].mount / ".debug"
    assert oct(os.stat(switch).st_mode) == oct(stat.S_IFREG | 0o640)
    assert outcome(lambda: write(switch, "maybe\n")) == "EIO"
    assert outcome(lambda: write(switch, "0\n")) == ""
    assert read(switch) == "0\n"


@pytest.mark.needs("LOG")
def test_a_dot_file_is_old_for_a_second(pve: Cluster, name: str) -> None:
    here = pve.nodes[0]
    for number in range(MOST_TRIES):
        time.sleep(ATTRIBUTES_CACHED_S)
        looked_s = time.monotonic()
        messages(here)
        pve.log(here, f"{name}-{number}")
        told = messages(here)
        if time.monotonic() - looked_s < ATTRIBUTES_KEPT_S:
            break
    else:
        pytest.fail(f"in {MOST_TRIES} tries no entry was added within a second")
    assert f"{name}-{number}" not in told, "told fast enough, what is read is the text of before"
    time.sleep(ATTRIBUTES_CACHED_S)
    assert messages(here)[0] == f"{name}-{number}"


@pytest.mark.needs("LOG")
def test_a_dot_file_read_in_two_pieces_has_two_texts_when_somebody_looked_in_between(pve: Cluster, name: str) -> None:
    here = pve.nodes[0]
    pve.log(here, f"{name}-old")
    time.sleep(ATTRIBUTES_CACHED_S)
    before = read(here.mount / ".clusterlog")
    fd = os.open(here.mount / ".clusterlog", os.O_RDONLY)
    try:
        begin = os.read(fd, 30).decode()
        pve.log(here, f"{name}-new")
        time.sleep(ATTRIBUTES_CACHED_S)
        after = read(here.mount / ".clusterlog")
        assert begin + os.read(fd, 1 << 20).decode() == before[:30] + after[30:]
    finally:
        os.close(fd)
    assert before != after


# --- .members and .version ---------------------------------------------------------------------------------------------------------


def test_the_members_are_told_with_number_and_address(pve: Cluster) -> None:
    for node in pve.nodes:
        found = members(node.mount)
        assert found["nodename"] == node.name
        assert found["version"] > 0
        assert (found["cluster"]["nodes"], found["cluster"]["quorate"]) == (len(pve.nodes), 1)
        assert {name: member["id"] for name, member in found["nodelist"].items()} == {one.name: one.id for one in pve.nodes}
        assert all(member["online"] == 1 and member["ip"] for member in found["nodelist"].values())


def test_the_version_counts_from_this_nodes_start(pve: Cluster) -> None:
    for node in pve.nodes:
        found = version(node)
        assert 0 < found["starttime"] <= time.time() + 1
        assert next(iter(found["kvstore"])) == node.name, "its own first"
        assert {"clinfo", "vmlist", "storage.cfg", "user.cfg", "datacenter.cfg", "ha/manager_status", "ha/rules.cfg"} <= found.keys()


def test_the_version_counts_changes_of_the_files_it_names_and_of_no_others(pve: Cluster, name: str, folder: str) -> None:
    first, second = pve.nodes[:2]
    os.mkdir(first.mount / "priv/lock" / name)
    time.sleep(ATTRIBUTES_CACHED_S)
    before = version(second)
    write(first.mount / folder / "file")
    os.utime(first.mount / "priv/lock" / name)
    time.sleep(ATTRIBUTES_CACHED_S)
    files = {key: count for key, count in version(second).items() if key != "kvstore"}
    assert files == {key: count for key, count in before.items() if key != "kvstore"}
    write(first.mount / "corosync.conf.new", "x")
    os.utime(first.mount / "corosync.conf.new", (0, 0))
    os.unlink(first.mount / "corosync.conf.new")
    time.sleep(ATTRIBUTES_CACHED_S)
    assert version(second)["corosync.conf.new"] == before["corosync.conf.new"] + 4, "made, written, touched, removed"


@pytest.mark.needs("LOG")
def test_the_version_does_not_count_the_cluster_log(pve: Cluster, name: str) -> None:
    time.sleep(ATTRIBUTES_CACHED_S)
    before = version(pve.nodes[1])
    pve.log(pve.nodes[0], name)
    time.sleep(ATTRIBUTES_CACHED_S)
    assert messages(pve.nodes[1])[0] == name
    after = version(pve.nodes[1])
    assert {**after, "kvstore": 0} == {**before, "kvstore": 0}


@pytest.mark.needs("STATUS")
def test_the_version_counts_each_status_that_a_node_sets(pve: Cluster, name: str) -> None:
    first, second = pve.nodes[:2]
    for _ in range(2):
        pve.status(first, name, "x")
    eventually(lambda: name in version(second)["kvstore"][first.name], "the status", AT_ONCE_S)
    time.sleep(ATTRIBUTES_CACHED_S)
    assert [version(node)["kvstore"][first.name][name] for node in (first, second)] == [1, 1], "counted from 0"


# --- .clusterlog -------------------------------------------------------------------------------------------------------------------


@pytest.mark.needs("LOG")
def test_an_entry_of_the_log_is_on_every_node_newest_first(pve: Cluster, name: str) -> None:
    first, second = pve.nodes[:2]
    pve.log(first, f"{name}-1")
    pve.log(second, f"{name}-2")
    time.sleep(ATTRIBUTES_CACHED_S)
    for node in pve.nodes:
        found = log_of(node)[:2]
        assert [(entry["node"], entry["msg"]) for entry in found] == [(second.name, f"{name}-2"), (first.name, f"{name}-1")]
        assert found[0].keys() == {"uid", "time", "pri", "tag", "pid", "node", "user", "msg"}
        assert abs(found[0]["time"] - time.time()) < 10


@pytest.mark.needs("LOG")
def test_entries_are_numbered_by_the_node_that_adds_them(pve: Cluster, name: str) -> None:
    first, second = pve.nodes[:2]
    for node in (first, second, first):
        pve.log(node, name)
    time.sleep(ATTRIBUTES_CACHED_S)
    newest, _, oldest = log_of(second)[:3]
    assert newest["uid"] == oldest["uid"] + 1


@pytest.mark.needs("LOG")
def test_the_log_shows_fifty_entries(pve: Cluster, name: str) -> None:
    pve.log(pve.nodes[0], "".join(f"{name}-{number}\n" for number in range(SHOWN_LOG_ENTRIES + 2)))
    time.sleep(ATTRIBUTES_CACHED_S)
    assert messages(pve.nodes[1]) == [f"{name}-{number}" for number in range(SHOWN_LOG_ENTRIES + 1, 1, -1)]


@pytest.mark.needs("LOG")
def test_the_text_of_an_entry_is_made_ascii_and_a_backslash_makes_it_no_json(pve: Cluster) -> None:
    here = pve.nodes[0]
    pve.log(here, 'say "ä" \t €')
    time.sleep(ATTRIBUTES_CACHED_S)
    assert '"msg": "say \\"\\u00e4\\" #009 \\u20ac"}' in read(here.mount / ".clusterlog")
    pve.log(here, r"C:\qemu")
    time.sleep(ATTRIBUTES_CACHED_S)
    assert r'"msg": "C:\qemu"}' in read(here.mount / ".clusterlog")
    with pytest.raises(json.JSONDecodeError):
        json.loads(read(here.mount / ".clusterlog"))


@pytest.mark.needs("LOG", "CLOCK")
def test_what_a_node_says_after_its_clock_went_back_is_lost(pve: Cluster, name: str) -> None:
    first, second = pve.nodes[:2]
    pve.log(second, f"{name}-before")
    pve.clock(second, -1000)
    pve.log(second, f"{name}-lost")
    pve.log(first, f"{name}-of-another")
    time.sleep(ATTRIBUTES_CACHED_S)
    for node in pve.nodes:
        assert [text for text in messages(node) if text.startswith(name)] == [f"{name}-of-another", f"{name}-before"]


# --- .rrd --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.needs("STATUS")
def test_numbers_that_a_node_reports_are_a_line_on_every_node(pve: Cluster) -> None:
    first = pve.nodes[0]
    key, values = "pve-vm-9.0/999999199", f"10:name:running:0:{int(time.time())}:2:0.5:20:10:0:0:1:2:3:4:U:0:0:0:0:0:0"
    pve.status(first, f"rrd/{key}", values)
    for node in pve.nodes:
        eventually(lambda: f"{key}:{values}\n" in read(node.mount / ".rrd"), "the line", AT_ONCE_S + RRD_CACHED_S)  # noqa: B023  # called here
    newer = values.replace("running", "stopped")
    pve.status(first, f"rrd/{key}", newer)
    time.sleep(RRD_CACHED_S + ATTRIBUTES_CACHED_S)
    lines = [line for line in read(pve.nodes[1].mount / ".rrd").splitlines() if line.startswith(key)]
    assert lines == [f"{key}:{newer}"]


@pytest.mark.needs("STATUS", "CLOCK")
def test_numbers_that_nobody_repeats_for_five_minutes_are_dropped(pve: Cluster) -> None:
    first, second = pve.nodes[:2]
    key = "pve-vm-9.0/999999198"
    pve.status(first, f"rrd/{key}", f"10:name:running:0:{int(time.time())}:2:0.5:20:10:0:0:1:2:3:4:U:0:0:0:0:0:0")
    eventually(lambda: key in read(second.mount / ".rrd"), "the line", AT_ONCE_S + RRD_CACHED_S)
    pve.clock(second, RRD_LIFE_S - 20)
    time.sleep(RRD_CACHED_S + ATTRIBUTES_CACHED_S)
    assert key in read(second.mount / ".rrd")
    pve.clock(second, RRD_LIFE_S + 20)
    eventually(lambda: key not in read(second.mount / ".rrd"), "the line gone", RRD_CACHED_S + AT_ONCE_S)
    assert key in read(first.mount / ".rrd"), "each node by its own clock"

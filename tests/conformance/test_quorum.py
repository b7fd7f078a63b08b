# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that reach each other no more: who can still write, what each of them sees, and what holds when they are together again."""

from __future__ import annotations

import json
import os
import time

import pytest
from mounts import ATTRIBUTES_CACHED_S, Cluster, Node, UnderWay, members, outcome, read, reads, write

REFUSED_UNDER_WAY = {"EPERM", "EBUSY", "EACCES"}
REFUSED_AT_ONCE_S = 10.0  # all of them; a call that waits for quorum takes as long as there is none

pytestmark = pytest.mark.needs("CUT", "HEAL")


def cut(pve: Cluster, *nodes: Node) -> list[Node]:
    """Cut nodes off, wait until it is known everywhere, and return the others."""
    rest = [node for node in pve.nodes if node not in nodes]
    for node in nodes:
        pve.cut(node)
    for node in nodes:
        pve.wait_members(node, [node])
    for node in rest:
        pve.wait_members(node, rest)
    time.sleep(ATTRIBUTES_CACHED_S)
    return rest


def test_calls_under_way_hang_and_then_fail_on_the_lone_node_and_succeed_on_the_others(pve: Cluster, name: str, folder: str) -> None:
    first, second, lone = pve.nodes[:3]
    for place in ("a", "b", "c"):
        os.mkdir(first.mount / folder / place)
    os.mkdir(lone.mount / "priv/lock" / name)
    write(first.mount / folder / "c/file", "before")
    reads([lone.mount], f"{folder}/c/file", "before")
    fd = os.open(lone.mount / folder / "c/file", os.O_WRONLY)
    pve.cut(lone)
    theirs = [
        UnderWay(lambda: os.mkdir(lone.mount / folder / "a/theirs")),
        UnderWay(lambda: os.utime(lone.mount / "priv/lock" / name)),
        UnderWay(lambda: os.write(fd, b"theirs")),
    ]
    ours = [UnderWay(lambda: os.mkdir(first.mount / folder / "b/ours")), UnderWay(lambda: write(second.mount / folder / "c/ours"))]
    assert all(call.ended(pve.change_s) for call in theirs + ours)
    os.close(fd)
    assert {call.outcome for call in theirs} <= REFUSED_UNDER_WAY
    assert "EPERM" in {call.outcome for call in theirs}, "one of them, the first that was on its way"
    assert max(call.took_s for call in theirs) > 0.2, "they hung"
    assert [call.outcome for call in ours] == ["", ""]
    pve.heal()
    assert os.listdir(first.mount / folder / "a") == [], "what failed was not done"
    assert read(first.mount / folder / "c/file") == "before"


def test_a_lone_node_reads_what_was_and_writes_nothing(pve: Cluster, name: str, folder: str) -> None:
    lone = pve.nodes[2]
    write(lone.mount / folder / "file", "before")
    os.mkdir(lone.mount / "priv/lock" / name)
    first, *_ = cut(pve, lone)
    write(first.mount / folder / "file", "after")
    write(first.mount / folder / "new")
    begun = time.monotonic()
    here = lone.mount / folder
    acts = {
        "write": outcome(lambda: write(here / "file", "mine")),
        "make": outcome(lambda: write(here / "mine")),
        "mkdir": outcome(lambda: os.mkdir(here / "folder")),
        "unlink": outcome(lambda: os.unlink(here / "file")),
        "rename": outcome(lambda: os.rename(here / "file", here / "moved")),
        "truncate": outcome(lambda: os.truncate(here / "file", 0)),
        "utime": outcome(lambda: os.utime(here / "file")),
        "take a lock": outcome(lambda: os.mkdir(lone.mount / "priv/lock" / f"{name}-other")),
        "renew its lock": outcome(lambda: os.utime(lone.mount / "priv/lock" / name)),
        "ask to drop it": outcome(lambda: os.utime(lone.mount / "priv/lock" / name, (0, 0))),
        "release it": outcome(lambda: os.rmdir(lone.mount / "priv/lock" / name)),
    }
    assert acts == dict.fromkeys(acts, "EACCES")
    assert time.monotonic() - begun < REFUSED_AT_ONCE_S
    assert outcome(lambda: os.mkdir(lone.mount / "priv/lock" / name)) == "EEXIST", "the kernel says that, without asking"
    assert read(here / "file") == "before"
    assert os.listdir(here) == ["file"]
    pve.heal()
    assert read(here / "file") == "after"
    assert sorted(os.listdir(here)) == ["file", "new"]
    assert outcome(lambda: os.utime(lone.mount / "priv/lock" / name, (0, time.time() + 5))) == "", "it has its lock as before"


def test_a_lone_node_says_so_in_modes_and_members(pve: Cluster, folder: str) -> None:
    lone = pve.nodes[2]
    write(lone.mount / folder / "file")
    others = cut(pve, lone)
    paths = ("", "local", "priv", folder, f"{folder}/file", ".version")
    assert [oct(os.lstat(lone.mount / path).st_mode) for path in paths] == [
        "0o40755", "0o120555", "0o40500", "0o40555", "0o100440", "0o100440",
    ]  # fmt: skip
    assert oct(os.lstat(others[0].mount / "local").st_mode) == "0o120755"
    assert members(lone.mount)["cluster"]["quorate"] == 0
    for node in others:
        found = members(node.mount)
        assert found["cluster"]["quorate"] == 1
        assert {name: member["online"] for name, member in found["nodelist"].items()} == {
            one.name: int(one is not lone) for one in pve.nodes
        }


def test_a_change_of_membership_counts(pve: Cluster) -> None:
    before = members(pve.nodes[0].mount)["version"]
    cut(pve, pve.nodes[2])
    assert members(pve.nodes[0].mount)["version"] > before


def test_all_alone_nobody_writes_and_together_again_everybody_does(pve: Cluster, folder: str) -> None:
    write(pve.nodes[0].mount / folder / "file", "before")
    reads(pve.mounts, f"{folder}/file", "before")
    cut(pve, *pve.nodes)
    for node in pve.nodes:
        assert outcome(lambda: write(node.mount / folder / "file")) == "EACCES"  # noqa: B023  # called here
        assert read(node.mount / folder / "file") == "before"
    pve.heal()
    for node in pve.nodes:
        write(node.mount / folder / "file", node.name)
        reads(pve.mounts, f"{folder}/file", node.name)


def test_a_node_cut_off_before_the_others_part_takes_their_state_when_all_join(pve: Cluster, folder: str) -> None:
    first, second, lone = pve.nodes[:3]
    write(first.mount / folder / "file", "old")
    reads([lone.mount], f"{folder}/file", "old")
    cut(pve, lone)
    write(first.mount / folder / "file", "new")
    reads([second.mount], f"{folder}/file", "new")
    cut(pve, first, second, lone)
    assert [read(node.mount / folder / "file") for node in (first, second, lone)] == ["new", "new", "old"]
    pve.heal()
    reads(pve.mounts, f"{folder}/file", "new")
    write(lone.mount / folder / "file", "of all")
    reads(pve.mounts, f"{folder}/file", "of all")


@pytest.mark.needs("CUT", "HEAL", "LOG")
def test_the_cluster_log_is_each_sides_own_and_merged_by_time(pve: Cluster, name: str) -> None:
    first, _, lone = pve.nodes[:3]
    cut(pve, lone)
    for node in (lone, first, lone):
        pve.log(node, f"{name}-{node.name}")
        time.sleep(ATTRIBUTES_CACHED_S)

    def said(node: Node) -> list[str]:
        lines = [line for line in read(node.mount / ".clusterlog").splitlines() if f'"msg": "{name}-' in line]
        return [json.loads(line.rstrip(","))["node"] for line in lines]

    assert (said(first), said(lone)) == ([first.name], [lone.name, lone.name])
    pve.heal()
    time.sleep(ATTRIBUTES_CACHED_S)
    assert {tuple(said(node)) for node in pve.nodes} == {(lone.name, first.name, lone.name)}

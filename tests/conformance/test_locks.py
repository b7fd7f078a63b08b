# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders in priv/lock: a lock is there or not, belongs to the node that changed it last, and is dropped at an age when somebody asks."""

from __future__ import annotations

import os
import time

import pytest
from locks import ask, is_dropped, lock, take
from mounts import AT_ONCE_S, ATTRIBUTES_CACHED_S, CLOCKS_APART_S, Cluster, eventually, outcome, write

# --- taking, keeping, releasing ----------------------------------------------------------------------------------------------------


def test_a_lock_is_made_once(pve: Cluster, name: str) -> None:
    holder = pve.nodes[1]
    take(pve, holder, name)
    assert [outcome(lambda: os.mkdir(lock(node, name))) for node in pve.nodes] == ["EEXIST"] * len(pve.nodes)  # noqa: B023  # called here


def test_a_lock_is_renewed_by_the_node_that_made_it_alone(pve: Cluster, name: str) -> None:
    holder, *others = pve.nodes
    take(pve, holder, name)
    assert outcome(lambda: os.utime(lock(holder, name))) == ""
    assert [outcome(lambda: os.utime(lock(node, name), (0, time.time() + 5))) for node in others] == ["EACCES"] * len(others)  # noqa: B023  # called here


def test_a_renewal_never_goes_back(pve: Cluster, name: str) -> None:
    holder = pve.nodes[0]
    take(pve, holder, name)
    stored = int(os.stat(lock(holder, name)).st_mtime)
    assert outcome(lambda: os.utime(lock(holder, name), (0, stored - 1))) == "EACCES"
    assert outcome(lambda: os.utime(lock(holder, name), (0, stored))) == ""
    assert outcome(lambda: os.utime(lock(holder, name), (0, stored + 100))) == ""
    assert outcome(lambda: os.utime(lock(holder, name))) == "EACCES", "now is before what is stored"
    assert outcome(lambda: os.utime(lock(holder, name), (0, stored + 101))) == ""
    time.sleep(ATTRIBUTES_CACHED_S)
    assert [os.stat(lock(node, name)).st_mtime for node in pve.nodes] == [stored + 101.0] * len(pve.nodes)


def test_any_node_removes_any_lock(pve: Cluster, name: str) -> None:
    holder, other = pve.nodes[:2]
    take(pve, holder, name)
    assert outcome(lambda: os.rmdir(lock(other, name))) == ""
    eventually(lambda: name not in os.listdir(holder.mount / "priv/lock"), "gone", AT_ONCE_S)
    assert outcome(lambda: os.utime(lock(holder, name))) == "ENOENT"


def test_a_lock_is_not_moved(pve: Cluster, name: str) -> None:
    holder = pve.nodes[0]
    take(pve, holder, name)
    assert outcome(lambda: os.rename(lock(holder, name), lock(holder, f"{name}-moved"))) == "EACCES"


def test_an_empty_folder_moved_onto_a_lock_takes_it_from_its_node(pve: Cluster, name: str, folder: str) -> None:
    holder, thief = pve.nodes[:2]
    take(pve, holder, name)
    os.mkdir(thief.mount / folder / "new")
    assert outcome(lambda: os.rename(thief.mount / folder / "new", lock(thief, name))) == ""
    assert outcome(lambda: os.utime(lock(holder, name), (0, time.time() + 5))) == "EACCES"
    assert outcome(lambda: os.utime(lock(thief, name), (0, time.time() + 5))) == ""


def test_a_lock_with_something_in_it_is_not_removed(pve: Cluster, name: str) -> None:
    holder = pve.nodes[0]
    take(pve, holder, name)
    write(lock(holder, name) / "file")
    assert outcome(lambda: os.rmdir(lock(holder, name))) == "ENOTEMPTY"
    os.unlink(lock(holder, name) / "file")
    assert outcome(lambda: os.rmdir(lock(holder, name))) == ""


# --- asking ------------------------------------------------------------------------------------------------------------------------


def test_a_young_lock_is_not_dropped_whoever_asks(pve: Cluster, name: str) -> None:
    take(pve, pve.nodes[1], name)
    assert [ask(node, name) for node in pve.nodes] == ["EACCES"] * len(pve.nodes), "the answer is no, obeyed or not"
    time.sleep(0.5)
    assert all(name in os.listdir(node.mount / "priv/lock") for node in pve.nodes)


def test_asking_for_no_lock_says_so(pve: Cluster, name: str) -> None:
    assert ask(pve.nodes[0], name) == "ENOENT"


# --- clocks ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.needs("CLOCK")
def test_the_clock_of_the_lowest_node_decides_how_old_a_lock_is(pve: Cluster, name: str) -> None:
    lowest, holder, asker = pve.nodes[:3]
    take(pve, holder, name)
    time.sleep(ATTRIBUTES_CACHED_S)
    for other in pve.others(lowest):
        pve.clock(other, pve.lock_life_s + 10)
    assert not is_dropped(asker, name), "what the others think is nothing"
    pve.clock(lowest, pve.lock_life_s + 10)
    assert is_dropped(asker, name)


@pytest.mark.needs("CLOCK")
def test_a_lock_gets_the_time_of_the_node_that_makes_it(pve: Cluster, name: str) -> None:
    _, holder, other = pve.nodes[:3]
    pve.clock(holder, 1000)
    before_s = time.time()
    take(pve, holder, name)
    ahead = os.stat(lock(other, name)).st_mtime - 1000
    assert before_s - CLOCKS_APART_S < ahead < time.time() + CLOCKS_APART_S
    assert outcome(lambda: os.utime(lock(holder, name))) == "EACCES", "this machine's now is before that"
    assert outcome(lambda: os.utime(lock(holder, name), (0, os.stat(lock(holder, name)).st_mtime + 1))) == ""


# --- membership --------------------------------------------------------------------------------------------------------------------


@pytest.mark.needs("CLOCK", "STOP", "START")
def test_ages_go_on_when_another_node_leaves_and_comes_back(pve: Cluster, name: str) -> None:
    lowest, holder, leaver = pve.nodes[:3]
    take(pve, holder, name)
    time.sleep(ATTRIBUTES_CACHED_S)
    pve.clock(lowest, pve.lock_life_s + 10)
    pve.stop(leaver)
    pve.wait_members(lowest, pve.others(leaver))
    pve.start(leaver)
    assert is_dropped(holder, name)


@pytest.mark.needs("CLOCK", "STOP", "START")
def test_ages_start_anew_when_the_lowest_node_starts(pve: Cluster, name: str) -> None:
    lowest, holder, asker = pve.nodes[:3]
    take(pve, holder, name)
    time.sleep(ATTRIBUTES_CACHED_S)
    pve.clock(lowest, pve.lock_life_s + 10)
    pve.stop(lowest)
    pve.wait_members(holder, pve.others(lowest))
    pve.start(lowest)
    assert not is_dropped(asker, name)
    pve.clock(lowest, 2 * pve.lock_life_s + 30)
    assert is_dropped(asker, name)


@pytest.mark.needs("CLOCK", "STOP", "START")
def test_without_the_lowest_node_the_next_one_decides_by_the_ages_that_it_knows(pve: Cluster, name: str) -> None:
    lowest, holder, asker = pve.nodes[:3]
    take(pve, holder, name)
    time.sleep(ATTRIBUTES_CACHED_S)
    pve.stop(lowest)
    pve.wait_members(holder, pve.others(lowest))
    assert not is_dropped(asker, name)
    pve.clock(holder, pve.lock_life_s + 10)
    assert is_dropped(asker, name)


@pytest.mark.needs("STOP", "START")
def test_a_lock_stays_and_stays_its_nodes_over_a_restart(pve: Cluster, name: str) -> None:
    holder, other = pve.nodes[1:3]
    take(pve, holder, name)
    pve.stop(holder)
    assert outcome(lambda: os.mkdir(lock(other, name))) == "EEXIST"
    pve.start(holder)
    assert outcome(lambda: os.utime(lock(other, name), (0, time.time() + 5))) == "EACCES"
    assert outcome(lambda: os.utime(lock(holder, name), (0, time.time() + 5))) == ""


@pytest.mark.needs("CLOCK", "CUT", "HEAL")
def test_the_majority_drops_the_lock_of_a_node_cut_off_and_the_node_learns_of_it(pve: Cluster, name: str) -> None:
    lowest, asker, holder = pve.nodes[:3]
    take(pve, holder, name)
    time.sleep(ATTRIBUTES_CACHED_S)
    pve.cut(holder)
    pve.wait_members(lowest, pve.others(holder))
    assert not is_dropped(asker, name)
    pve.clock(lowest, pve.lock_life_s + 10)
    assert is_dropped(asker, name)
    os.mkdir(lock(asker, name))
    assert name in os.listdir(holder.mount / "priv/lock"), "as it was before"
    pve.heal()
    assert outcome(lambda: os.utime(lock(holder, name), (0, time.time() + 2 * pve.lock_life_s))) == "EACCES"
    assert outcome(lambda: os.utime(lock(asker, name), (0, time.time() + 2 * pve.lock_life_s))) == ""


@pytest.mark.needs("CLOCK", "CUT", "HEAL")
def test_ages_start_anew_when_the_lowest_node_missed_something(pve: Cluster, name: str, folder: str) -> None:
    lowest, holder, asker = pve.nodes[:3]
    take(pve, holder, name)
    pve.cut(lowest)
    pve.wait_members(holder, pve.others(lowest))
    write(holder.mount / folder / "missed")
    pve.clock(lowest, pve.lock_life_s + 10)
    pve.heal()
    assert not is_dropped(asker, name)


@pytest.mark.needs("CLOCK", "CUT", "HEAL")
def test_ages_go_on_when_the_lowest_node_was_away_and_missed_nothing(pve: Cluster, name: str) -> None:
    lowest, holder, asker = pve.nodes[:3]
    take(pve, holder, name)
    pve.cut(lowest)
    pve.wait_members(holder, pve.others(lowest))
    pve.clock(lowest, pve.lock_life_s + 10)
    pve.heal()
    assert is_dropped(asker, name)

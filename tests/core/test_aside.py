# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is left alone after a failure: how long, from which node, and what ends it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core import aside, homes
from agent.core import history as memory
from agent.core.cluster import GuestType, Snapshot
from agent.core.documents import HistoryFile
from agent.core.failures import FailureClass
from tests.core.clusters import NOW, cluster, node, vm
from tests.core.records import record

F = FailureClass
EMPTY = memory.empty(NOW)
DAY_S = 86400.0
THREE = cluster(node("pve1"), node("pve2"), node("pve3"), vm(101, "pve1"), vm(102, "pve1"))


def failed(history: HistoryFile = EMPTY, vmid: int = 101, failure: FailureClass = F.UNKNOWN, target: str = "pve2") -> HistoryFile:
    return aside.with_failure(history, vmid, failure, "it broke", NOW, node="pve1", target=target)


def with_guest(**fields: str) -> Snapshot:
    """The cluster with guest 101 changed."""
    return replace(THREE, guests=tuple(replace(one, **fields) if one.vmid == 101 else one for one in THREE.guests))  # type: ignore[arg-type]


def waits(history: HistoryFile) -> list[float | None]:
    return [None if entry.until is None else entry.until - NOW for entry in history.set_aside]


def test_a_guest_that_failed_is_left_alone_twice_as_long_each_time_and_a_day_at_most() -> None:
    history, times = EMPTY, []
    for _ in range(12):
        history = failed(history)
        times += waits(history)
    assert times[:4] == [600, 1200, 2400, 4800]
    assert times[-1] == DAY_S
    assert len(history.set_aside) == 1


def test_who_is_set_aside_is_told_with_why_and_for_how_long() -> None:
    assert aside.set_aside(failed(), NOW) == {101: "it broke; next try in 10 minutes"}
    assert aside.set_aside(failed(failure=F.PERMISSION), NOW) == {101: "permission: it broke; next try in 24 hours"}
    assert aside.set_aside(failed(failure=F.CANCELLED), NOW) == {101: "cancelled: it broke; not tried again until somebody acts"}
    assert aside.set_aside(failed(failure=F.LOCKED), NOW) == {101: "locked: it broke; next try in 60 s"}
    assert aside.set_aside(failed(), NOW + 600) == {}


def test_a_lock_is_waited_for_and_does_not_let_the_time_grow() -> None:
    history = failed(failed(failure=F.BACKUP), failure=F.LOCKED)
    assert waits(history) == [60]
    assert waits(failed(history)) == [600]


def test_who_was_not_as_it_seemed_is_looked_at_anew_and_nothing_counts_against_it() -> None:
    once = failed(failure=F.CHANGED)
    assert (waits(once), once.set_aside[0].failures) == ([15], 0)
    assert aside.set_aside(once, NOW + 15) == {}
    soon = aside.with_failure(once, 101, F.CHANGED, "again", NOW + 40)
    assert [entry.until for entry in soon.set_aside] == [NOW + 40 + 60], "so that it is not asked for again and again"
    late = aside.with_failure(once, 101, F.CHANGED, "again", NOW + 3600)
    assert [entry.until for entry in late.set_aside] == [NOW + 3600 + 15]
    assert waits(failed(once)) == [600], "a failure after it is the first"
    assert aside.next_try_s(once, 101, NOW + 5) == 10
    assert aside.next_try_s(once, 102, NOW) == 0


@pytest.mark.parametrize("failure", [F.STORAGE, F.NETWORK, F.MEMORY, F.VERSION])
def test_where_the_target_is_to_blame_only_that_is_avoided_and_after_two_the_guest_stays(failure: FailureClass) -> None:
    once = failed(failure=failure)
    assert aside.set_aside(once, NOW) == {}
    assert sorted(aside.avoided(once, NOW)[101]) == ["pve2"]
    again = failed(once, failure=failure)
    assert (aside.set_aside(again, NOW), waits(again)) == ({}, [1200])
    twice = failed(once, failure=failure, target="pve3")
    assert sorted(aside.avoided(twice, NOW)[101]) == ["pve2", "pve3"]
    assert sorted(aside.set_aside(twice, NOW)) == [101]


def test_who_cannot_be_helped_by_time_waits_a_day_or_for_a_person() -> None:
    assert waits(failed(failure=F.LOCAL_DEVICE)) == [DAY_S]
    assert waits(failed(failure=F.CANCELLED)) == [None]
    forever = failed(failure=F.CANCELLED)
    assert 101 in aside.set_aside(memory.bounded(forever, NOW + 400 * DAY_S), NOW + 400 * DAY_S)


def test_asking_anew_ends_what_a_person_cancelled_and_nothing_else() -> None:
    history = failed(failed(failure=F.CANCELLED), 102, F.HA_REJECTED)
    assert sorted(aside.set_aside(aside.asked_again(history), NOW)) == [102]
    assert sorted(aside.set_aside(aside.asked_again(history, frozenset({102})), NOW)) == [101, 102]
    assert sorted(aside.set_aside(aside.asked_again(history, frozenset({101})), NOW)) == [102]


def test_asking_a_second_time_ends_whatever_else_failed_but_for_a_lock() -> None:
    history = aside.with_left_lock(failed(failed(failure=F.UNKNOWN), 102, F.LOCAL_DEVICE), vm(103, "pve1"))
    assert sorted(aside.set_aside(aside.asked_again(history, frozenset({101, 102, 103}), wholly=True), NOW)) == [103]
    assert sorted(aside.set_aside(aside.asked_again(history, frozenset({101}), wholly=True), NOW)) == [102, 103]


def test_a_changed_configuration_ends_it_and_the_first_one_seen_is_what_counts() -> None:
    history, released = aside.reconsidered(failed(), THREE, {101: "a"})
    assert (released, history.set_aside[0].config) == ({}, "a")
    same, released = aside.reconsidered(history, THREE, {101: "a"})
    assert (same is history, released) == (True, {})
    unread, released = aside.reconsidered(history, THREE, {})
    assert (unread is history, released) == (True, {})
    changed_one, released = aside.reconsidered(history, THREE, {101: "b"})
    assert (changed_one.set_aside, released) == ((), {101: "its configuration was changed"})
    assert waits(failed(changed_one)) == [600], "and the time begins anew"


def test_who_is_elsewhere_or_gone_is_forgotten() -> None:
    moved, released = aside.reconsidered(failed(), with_guest(node="pve3"), {})
    assert (moved.set_aside, released) == ((), {101: "it is on pve3 now"})
    gone, released = aside.reconsidered(failed(vmid=109), THREE, {})
    assert (gone.set_aside, released) == ((), {})


def test_a_success_ends_it_with_all_nodes() -> None:
    history = failed(failed(failed(failure=F.STORAGE)), 102)
    assert [entry.vmid for entry in homes.with_success(history, record(101)).set_aside] == [102]


def test_a_lock_that_was_left_behind_is_known_until_it_is_gone() -> None:
    locked = with_guest(lock="migrate")
    guest = locked.guest(101)
    assert guest is not None
    history = aside.with_left_lock(failed(), guest)
    assert aside.has_left_lock(history, 101)
    assert aside.reconsidered(history, locked, {101: "b"}) == (history, {})
    assert aside.reconsidered(history, THREE, {})[1] == {101: "its lock is gone"}


def test_the_lock_is_no_part_of_a_configurations_digest() -> None:
    plain = "cores: 2\nname: web\n"
    assert aside.digest_of_config(plain) == aside.digest_of_config("cores: 2\nlock: migrate\nname: web\n")
    assert aside.digest_of_config(plain) != aside.digest_of_config("cores: 4\nname: web\n")


def test_status_tells_reason_remedy_and_until_when() -> None:
    history = aside.with_failure(EMPTY, 200, F.LOCKED, "CT is locked (snapshot)", NOW)
    [row] = aside.rows(history, {200: GuestType.LXC}, NOW)
    assert (row["failure"], row["until"], row["text"]) == ("locked", NOW + 60, "CT is locked (snapshot)")
    assert "pct unlock 200" in str(row["remedy"])
    assert aside.rows(history, {}, NOW + 61) == []


def test_a_clock_that_was_ahead_sets_nobody_aside() -> None:
    far = aside.with_failure(EMPTY, 101, F.UNKNOWN, "failed", NOW + 365 * DAY_S)
    assert aside.set_aside(far, NOW) == {}
    assert memory.bounded(far, NOW).set_aside == ()


def test_the_text_of_a_failure_is_bounded() -> None:
    assert len(aside.with_failure(EMPTY, 101, F.UNKNOWN, "x" * 10_000, NOW).set_aside[0].text) == 200

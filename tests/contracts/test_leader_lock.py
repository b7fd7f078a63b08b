# SPDX-License-Identifier: GPL-3.0-or-later
"""What every `LeaderLock` promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agent.ports import LeaderLock, NoQuorumError, NotHolderError, NotMountedError
from tests.contracts.stages import PmxcfsStage, eventually

JUST_RIPE_S = 121.0  # pmxcfs drops a lock that did not change for more than 120 s


def mtime_s(lock: LeaderLock) -> int:
    found = lock.sight().mtime_s
    assert found is not None
    return found


def test_there_is_no_lock_at_first(pmxcfs: PmxcfsStage) -> None:
    assert pmxcfs.lock("pve1").sight().mtime_s is None


def test_one_node_takes_it_and_no_other_nor_itself_again(pmxcfs: PmxcfsStage) -> None:
    mine, theirs = pmxcfs.lock("pve1"), pmxcfs.lock("pve2")
    assert mine.take()
    assert not theirs.take()
    assert not mine.take()
    assert eventually(pmxcfs, lambda: theirs.sight().mtime_s is not None)


def test_each_renewal_moves_its_time_on(pmxcfs: PmxcfsStage) -> None:
    lock, other = pmxcfs.lock("pve1"), pmxcfs.lock("pve2")
    assert lock.take()
    seen = mtime_s(lock)
    for _ in range(3):
        lock.renew()
        before, seen = seen, mtime_s(lock)
        assert seen > before
    assert eventually(pmxcfs, lambda: other.sight().mtime_s == seen)


def test_a_renewal_succeeds_after_the_clock_stepped_back(pmxcfs: PmxcfsStage) -> None:
    lock = pmxcfs.lock("pve1")
    assert lock.take()
    before = mtime_s(lock)
    pmxcfs.step_clock("pve1", -3600.0)
    lock.renew()
    assert mtime_s(lock) > before


def test_another_nodes_lock_cannot_be_renewed(pmxcfs: PmxcfsStage) -> None:
    mine, theirs = pmxcfs.lock("pve1"), pmxcfs.lock("pve2")
    assert mine.take()
    before = mtime_s(mine)
    with pytest.raises(NotHolderError):
        theirs.renew()
    assert mtime_s(mine) == before
    mine.renew()


def test_a_lock_that_is_gone_cannot_be_renewed(pmxcfs: PmxcfsStage) -> None:
    lock = pmxcfs.lock("pve1")
    with pytest.raises(NotHolderError):
        lock.renew()
    assert lock.take()
    pmxcfs.lock("pve2").release()
    with pytest.raises(NotHolderError):
        lock.renew()


def test_whoever_releases_it_it_is_gone(pmxcfs: PmxcfsStage) -> None:
    mine, theirs = pmxcfs.lock("pve1"), pmxcfs.lock("pve2")
    assert mine.take()
    theirs.release()
    assert eventually(pmxcfs, lambda: mine.sight().mtime_s is None)
    assert theirs.take()
    theirs.release()
    theirs.release()


def test_a_fresh_lock_does_not_expire(pmxcfs: PmxcfsStage) -> None:
    lock = pmxcfs.lock("pve1")
    assert lock.take()
    pmxcfs.lock("pve2").ask_expiry()
    pmxcfs.pass_s(1.5)
    lock.renew()


def test_asking_for_the_expiry_of_no_lock_is_fine(pmxcfs: PmxcfsStage) -> None:
    pmxcfs.lock("pve1").ask_expiry()


def test_a_silent_holders_lock_expires_only_when_somebody_asks(pmxcfs: PmxcfsStage) -> None:
    mine, theirs = pmxcfs.lock("pve1"), pmxcfs.lock("pve2")
    assert mine.take()
    pmxcfs.age_lock(JUST_RIPE_S)
    assert not theirs.take()
    theirs.ask_expiry()
    assert eventually(pmxcfs, theirs.take)
    with pytest.raises(NotHolderError):
        mine.renew()


def test_a_renewal_starts_the_age_anew(pmxcfs: PmxcfsStage) -> None:
    lock, other = pmxcfs.lock("pve1"), pmxcfs.lock("pve2")
    assert lock.take()
    pmxcfs.age_lock(100.0)
    lock.renew()
    pmxcfs.age_lock(100.0)
    other.ask_expiry()
    pmxcfs.pass_s(1.5)
    lock.renew()


def test_its_age_goes_on_when_another_node_is_cut_off_and_comes_back(pmxcfs: PmxcfsStage) -> None:
    lock, other = pmxcfs.lock("pve1"), pmxcfs.lock("pve2")
    assert lock.take()
    pmxcfs.age_lock(JUST_RIPE_S)
    pmxcfs.cut("pve3")
    pmxcfs.heal()
    other.ask_expiry()
    assert eventually(pmxcfs, other.take)


def test_its_age_starts_anew_when_pmxcfs_starts_on_the_lowest_node(pmxcfs: PmxcfsStage) -> None:
    lock, other = pmxcfs.lock("pve2"), pmxcfs.lock("pve3")
    assert lock.take()
    pmxcfs.age_lock(JUST_RIPE_S)
    pmxcfs.unmount("pve1")
    pmxcfs.mount("pve1")
    other.ask_expiry()
    pmxcfs.pass_s(1.5)
    lock.renew()


def test_without_quorum_it_can_be_seen_and_not_changed(pmxcfs: PmxcfsStage) -> None:
    lock = pmxcfs.lock("pve1")
    assert lock.take()
    pmxcfs.cut("pve1")
    assert lock.sight().mtime_s is not None
    for change in (lock.renew, lock.ask_expiry, lock.release):
        with pytest.raises(NoQuorumError):
            change()
    pmxcfs.heal()
    lock.renew()


def test_without_quorum_it_cannot_be_taken(pmxcfs: PmxcfsStage) -> None:
    pmxcfs.cut("pve1")
    with pytest.raises(NoQuorumError):
        pmxcfs.lock("pve1").take()
    assert pmxcfs.lock("pve2").take()


def test_what_the_others_did_meanwhile_holds_when_a_node_comes_back(pmxcfs: PmxcfsStage) -> None:
    mine, theirs = pmxcfs.lock("pve1"), pmxcfs.lock("pve2")
    assert mine.take()
    pmxcfs.cut("pve1")
    theirs.release()
    assert theirs.take()
    pmxcfs.heal()
    with pytest.raises(NotHolderError):
        mine.renew()
    theirs.renew()


def test_nothing_can_be_done_where_it_is_not_mounted(pmxcfs: PmxcfsStage) -> None:
    lock = pmxcfs.lock("pve1")
    pmxcfs.unmount("pve1")
    calls: tuple[Callable[[], object], ...] = (lock.sight, lock.take, lock.renew, lock.ask_expiry, lock.release)
    for call in calls:
        with pytest.raises(NotMountedError):
            call()
    assert pmxcfs.left_behind("pve1") == []
    pmxcfs.mount("pve1")
    assert lock.take()

# SPDX-License-Identifier: GPL-3.0-or-later
"""What a leader's agent looks at right before it changes something that another leader may have by then."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.cluster import GIB, GuestType
from agent.core.documents import LEADER_SCHEMA, LeaderFile, LeaderState, render
from agent.core.history import empty, with_migrations
from agent.core.leadership import LockAct, LockTimes
from agent.core.settings import Settings
from agent.daemon.inputs import LockAnswer, LockOutcome, MigrationAnswer, PostOutcome, StartAnswer
from agent.daemon.outputs import DoLock, StartGuest, StartMigration
from agent.daemon.outside import HISTORY_PATH, LEADER_PATH, Ports
from agent.daemon.perform import Performer
from agent.ports import ClusterApi, MigrationOrder
from agent.sim.inventory import SimGuest, SimNode
from agent.sim.ports import ports_of
from agent.sim.world import World
from agent.simulation import SimSettings
from tests.core.clusters import NOW
from tests.core.records import record

TIMES = LockTimes()
MINE = LeaderFile(LEADER_SCHEMA, "pve1", "first", 7, LeaderState.LEADING, 100.0, "0.1.0")
RELEASED = replace(MINE, state=LeaderState.RELEASED, since=200.0)
ORDER = MigrationOrder(101, GuestType.QEMU, "pve2", "pve3", online=True, restart=False)


def world() -> World:
    """pve1 leads."""
    made = World([SimNode(f"pve{number}", 16, 64 * GIB) for number in (1, 2, 3)], [SimGuest(101, "pve2", used_memory_bytes=GIB)])
    assert ports_of(made, "pve1").lock.take()
    made.put_file(LEADER_PATH, render(MINE))
    return made


def performer(made: World, api: ClusterApi | None = None) -> Performer:
    given = ports_of(made, "pve1")
    return Performer(
        Ports(
            given.clock, given.lock, given.files, lambda: api or given.api, given.inbox, given.facts, given.ha_nodes, given.local_files,
            SimSettings(Settings()), given.journal, given.notifier,
        ),
        TIMES,
    )  # fmt: skip


def outcome(made: World, asked: DoLock) -> LockOutcome:
    answer = performer(made).perform(asked)
    assert isinstance(answer, LockAnswer)
    return answer.outcome


def give_lock_to(made: World, node: str) -> None:
    made.remove_lock()
    assert ports_of(made, node).lock.take()


def test_released_is_written_over_its_own_file() -> None:
    made = world()
    assert outcome(made, DoLock(LockAct.WRITE_RELEASED, RELEASED)) is LockOutcome.DONE
    assert made.main.files[LEADER_PATH] == render(RELEASED)


@pytest.mark.parametrize("other", [
    replace(MINE, node="pve2", epoch=8),
    replace(MINE, incarnation="second"),
    replace(MINE, epoch=8),
    RELEASED,
], ids=["another node leads", "a later run on this node leads", "a later epoch", "released already"])  # fmt: skip
def test_released_is_not_written_over_another_lead(other: LeaderFile) -> None:
    made = world()
    made.put_file(LEADER_PATH, render(other))
    assert outcome(made, DoLock(LockAct.WRITE_RELEASED, RELEASED)) is LockOutcome.NOT_HOLDER
    assert made.main.files[LEADER_PATH] == render(other)


@pytest.mark.parametrize("text", [None, "", '{"schema": "prox'], ids=["missing", "empty", "torn"])
def test_released_is_not_written_where_nobody_can_tell_who_leads(text: str | None) -> None:
    made = world()
    made.drop_file(LEADER_PATH) if text is None else made.put_file(LEADER_PATH, text)
    assert outcome(made, DoLock(LockAct.WRITE_RELEASED, RELEASED)) is LockOutcome.NOT_HOLDER
    assert made.main.files.get(LEADER_PATH) == text


def test_leading_is_written_only_with_the_lock() -> None:
    made = world()
    give_lock_to(made, "pve2")
    other = render(replace(MINE, node="pve2", epoch=8))
    made.put_file(LEADER_PATH, other)
    assert outcome(made, DoLock(LockAct.WRITE_LEADING, replace(MINE, epoch=9))) is LockOutcome.NOT_HOLDER
    assert made.main.files[LEADER_PATH] == other
    assert outcome(world(), DoLock(LockAct.WRITE_LEADING, replace(MINE, epoch=9))) is LockOutcome.DONE


@pytest.mark.parametrize("text", ["leader.json is there", "leader.json is lost"])
def test_an_epoch_in_which_attempts_were_written_down_is_not_begun_again(text: str) -> None:
    """Attempts are named by their epoch: with the count begun anew, a new one would be written over an old one."""
    made = world()
    made.put_file(HISTORY_PATH, render(with_migrations(empty(NOW), [record(102, epoch=41), record(101, epoch=40)])))
    first = replace(MINE, epoch=1)
    if text.endswith("lost"):
        made.drop_file(LEADER_PATH)
    answer = performer(made).perform(DoLock(LockAct.WRITE_LEADING, first))
    assert isinstance(answer, LockAnswer)
    assert answer.leader_text == made.main.files[LEADER_PATH] == render(replace(first, epoch=42))
    outcome(made, DoLock(LockAct.WRITE_LEADING, replace(first, epoch=50)))
    assert made.main.files[LEADER_PATH] == render(replace(first, epoch=50))
    made.put_file(HISTORY_PATH, "{torn")
    assert outcome(made, DoLock(LockAct.WRITE_LEADING, first)) is LockOutcome.DONE
    assert made.main.files[LEADER_PATH] == render(first)


def test_a_lock_is_removed_within_the_lease_only() -> None:
    """A process that was stopped between renewal and rmdir would remove the next leader's: nobody asks whose it is."""
    made = world()
    until_s = ports_of(made, "pve1").clock.boottime_s() + 60
    made.advance(130.0)
    give_lock_to(made, "pve2")
    assert outcome(made, DoLock(LockAct.RELEASE, None, until_s)) is LockOutcome.NOT_HOLDER
    assert made.lock_holder() == "pve2"
    made = world()
    assert outcome(made, DoLock(LockAct.RELEASE, None, until_s)) is LockOutcome.DONE
    assert made.lock_holder() is None


class _StoppedBefore:
    """The API of a process that is stopped for some time right before it asks."""

    def __init__(self, made: World, for_s: float) -> None:
        self._made, self._for_s, self._api = made, for_s, ports_of(made, "pve1").api

    def migrate(self, order: MigrationOrder, send_until_s: float) -> str:
        self._made.advance(self._made.now_s + self._for_s)
        return self._api.migrate(order, send_until_s)


@pytest.mark.parametrize(("for_s", "expected"), [(0, PostOutcome.STARTED), (24.9, PostOutcome.STARTED), (25, PostOutcome.NOT_SENT)])
def test_a_request_whose_check_is_long_past_is_not_sent(for_s: float, expected: PostOutcome) -> None:
    """25 s: the lease of 60 s must hold for the 30 s that an answer may take, and 5 s more."""
    made = world()
    boot_s = ports_of(made, "pve1").clock.boottime_s()
    answer = performer(made, _StoppedBefore(made, for_s)).perform(StartMigration("1-1", ORDER, MINE, boot_s + 60))  # type: ignore[arg-type]
    assert isinstance(answer, MigrationAnswer)
    assert answer.outcome is expected
    assert len(made.post_record) == (expected is PostOutcome.STARTED)


def test_a_guest_is_started_only_as_leader_and_in_time() -> None:
    def started(made: World) -> str:
        boot_s = ports_of(made, "pve1").clock.boottime_s()
        answer = performer(made).perform(StartGuest(103, GuestType.LXC, "pve2", MINE, boot_s + 60))
        assert isinstance(answer, StartAnswer)
        return answer.error

    made = world()
    made.add_guest(SimGuest(103, "pve2", type=GuestType.LXC, status="stopped"))
    give_lock_to(made, "pve2")
    assert "lock could not be renewed" in started(made)
    made = world()
    made.add_guest(SimGuest(103, "pve2", type=GuestType.LXC, status="stopped"))
    made.put_file(LEADER_PATH, render(replace(MINE, epoch=8)))
    assert "no longer names this agent" in started(made)
    assert made.guests[103].status == "stopped"
    made.put_file(LEADER_PATH, render(MINE))
    assert started(made) == ""
    assert made.guests[103].status == "running"
    assert "already running" in started(made)
    assert "does not exist" in performer(made).perform(StartGuest(999, GuestType.LXC, "pve2", MINE, 1e9)).error  # type: ignore[union-attr]

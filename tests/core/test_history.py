# SPDX-License-Identifier: GPL-3.0-or-later
"""What leaders remember: cooldowns, brakes, alarms, who is set aside, who must come home, and that it stays small."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core import history as memory
from agent.core.cluster import GIB, HaResource, HighAvailability
from agent.core.documents import Answer, ForeignMove, HistoryFile, Home, parse, render
from agent.core.failures import FailureClass
from agent.core.guest_load import GuestLoad
from agent.core.migrations import MigrationState
from agent.core.reasons import MoveReason
from tests.core.clusters import NOW, cluster, task, vm
from tests.core.records import record

S = MigrationState
EMPTY = memory.empty(NOW)
DAY_S = 86400.0


def of(*records: object) -> HistoryFile:
    return memory.with_migrations(EMPTY, records)  # type: ignore[arg-type]


# --- Cooldown ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "cools"),
    [(S.DONE, True), (S.RUNNING, True), (S.ASKED, True), (S.LOST, True), (S.PLANNED, False), (S.FAILED, False), (S.SKIPPED, False)],
)
def test_a_guest_cools_after_a_move_that_came_to_pass(state: MigrationState, cools: bool) -> None:
    assert (101 in memory.cooling(of(record(state=state)), None, NOW, 3600)) == cools


def test_the_cooldown_ends_when_it_is_over() -> None:
    done = of(record(ago_s=3600 + 11))
    assert memory.cooling(done, None, NOW - 1, 3600) == {101: "moved 60 min ago, may move again in 0 min"}
    assert memory.cooling(done, None, NOW, 3600) == {}


def test_a_guest_that_was_seen_to_have_moved_cools_though_no_task_tells_of_it() -> None:
    seen = memory.with_foreign_moves(of(record(102, target="pve3"), record(103, S.RUNNING)), {101: "pve2", 102: "pve3", 103: "pve2"}, NOW)
    assert [(moved.vmid, moved.node) for moved in seen.foreign_moves] == [(101, "pve2")], "the others are the agent's own moves"
    assert memory.cooling(seen, None, NOW + 60, 3600) == {101: "moved 1 min ago, may move again in 59 min"} | memory.cooling(
        of(record(102), record(103, S.RUNNING)), None, NOW + 60, 3600
    )
    again = memory.with_foreign_moves(seen, {101: "pve3"}, NOW + 50)
    assert [(moved.node, moved.at) for moved in again.foreign_moves] == [("pve3", NOW + 50)], "one a guest, the last"


def test_own_move_that_failed_and_a_guest_that_went_elsewhere_are_foreign_moves() -> None:
    history = of(record(101, S.FAILED, ago_s=30), record(102, ago_s=30))
    seen = memory.with_foreign_moves(history, {101: "pve2", 102: "pve3"}, NOW)
    assert [moved.vmid for moved in seen.foreign_moves] == [101, 102]


def test_an_attempt_that_was_only_written_down_has_moved_nobody() -> None:
    history = of(record(101, S.PLANNED), record(102, S.ASKED))
    seen = memory.with_foreign_moves(history, {101: "pve2", 102: "pve2"}, NOW)
    assert [moved.vmid for moved in seen.foreign_moves] == [101], "the HA manager has recovered it there, of all nodes"


def test_a_new_leader_sees_who_was_recovered_while_nobody_led() -> None:
    managed = HighAvailability(resources=(HaResource(101, state="started", node="pve1"), HaResource(102, state="started", node="pve1")))
    then = replace(cluster(vm(101, "pve1"), vm(102, "pve1"), vm(103, "pve1")), ha=managed)
    left = memory.with_places(EMPTY, None, then, NOW)
    assert left.ha_places == ((101, "pve1"), (102, "pve1"))
    assert left.foreign_moves == ()
    moved = replace(cluster(vm(101, "pve2"), vm(102, "pve1"), vm(103, "pve2")), ha=managed)
    taken_over = memory.with_places(left, None, moved, NOW + 200)
    assert taken_over.foreign_moves == (ForeignMove(101, "pve2", NOW + 200),)
    assert taken_over.ha_places == ((101, "pve2"), (102, "pve1"))
    followed = memory.with_places(left, then, moved, NOW + 200)
    assert [one.vmid for one in followed.foreign_moves] == [101, 103], "of its own looks a leader knows all places"


def test_places_are_not_kept_of_more_guests_than_fit() -> None:
    vmids = range(100, 101 + memory.MOST_PLACES)
    managed = HighAvailability(resources=tuple(HaResource(vmid, state="started", node="pve1") for vmid in vmids))
    snapshot = replace(cluster(*[vm(vmid, "pve1") for vmid in vmids]), ha=managed)
    assert memory.with_places(EMPTY, None, snapshot, NOW) == EMPTY
    fits = replace(snapshot, ha=replace(managed, resources=managed.resources[1:]))
    assert len(memory.with_places(EMPTY, None, fits, NOW).ha_places) == memory.MOST_PLACES


def test_foreign_moves_are_bounded() -> None:
    many = memory.with_foreign_moves(EMPTY, dict.fromkeys(range(100, 1100), "pve2"), NOW)
    assert len(many.foreign_moves) == memory.KEPT_FOREIGN
    assert memory.bounded(many, NOW + memory.KEPT_S - 1).foreign_moves == many.foreign_moves
    assert memory.bounded(many, NOW + memory.KEPT_S).foreign_moves == ()


def test_moves_by_people_cool_too() -> None:
    snapshot = cluster(
        task("qmigrate", "pve1", 101, 60), task("vzmigrate", "pve1", 102, 60, "WARNINGS: 1"), task("qmigrate", "pve1", 103, 60, "no space")
    )
    assert sorted(memory.cooling(EMPTY, snapshot, NOW, 3600)) == [101, 102]


def test_a_guest_that_has_left_the_node_of_a_migration_cools_whatever_its_task_says() -> None:
    tasks = (task("qmigrate", "pve1", 101, 60, "migration problems"), task("qmigrate", "pve1", 102, 60, "migration problems"))
    snapshot = cluster(*tasks, vm(101, "pve2"), vm(102, "pve1"))
    assert sorted(memory.cooling(EMPTY, snapshot, NOW, 3600)) == [101]


def test_what_only_the_task_list_tells_of_moves_outlives_the_node_that_ran_them() -> None:
    told = (
        task("qmigrate", "pve1", 101, 60),
        task("qmigrate", "pve1", 102, 60, "migration problems"),
        task("vzmigrate", "pve1", 103, 60, "no space"),
    )
    seen = memory.with_places(EMPTY, None, cluster(*told, vm(101, "pve2"), vm(102, "pve2"), vm(103, "pve1")), NOW)
    assert [(moved.vmid, moved.node, moved.at) for moved in seen.foreign_moves] == [(101, "pve2", NOW - 60), (102, "pve2", NOW - 60)]
    assert sorted(memory.cooling(seen, None, NOW + 60, 3600)) == [101, 102]
    assert memory.with_places(seen, None, cluster(*told, vm(101, "pve2"), vm(102, "pve2")), NOW + 60) == seen, "written once"


def test_more_moves_than_are_kept_are_not_written_anew_at_each_look() -> None:
    vmids = range(100, 100 + memory.KEPT_FOREIGN + 50)
    snapshot = cluster(*(task("qmigrate", "pve1", vmid, vmid) for vmid in vmids), *(vm(vmid, "pve2") for vmid in vmids))
    seen = memory.with_places(EMPTY, None, snapshot, NOW)
    assert {moved.vmid for moved in seen.foreign_moves} == set(vmids[: memory.KEPT_FOREIGN]), "the latest"
    assert memory.with_places(seen, snapshot, snapshot, NOW + 10) is seen


def test_a_clock_that_was_ahead_blocks_nobody_for_longer_than_the_cooldown() -> None:
    ahead = of(*[record(101 + i, ago_s=-365 * DAY_S) for i in range(30)])
    assert memory.cooling(ahead, None, NOW, 3600) == {}
    assert memory.moves_left(ahead, NOW, 20) == 20
    assert memory.alarm(of(*[record(101 + i, S.FAILED, ago_s=-365 * DAY_S) for i in range(5)]), NOW) is None
    assert memory.bounded(ahead, NOW).migrations == ()
    assert 101 in memory.cooling(of(record(ago_s=-30)), None, NOW, 3600), "a few seconds ahead is another node's clock"


def test_a_move_dated_far_ahead_hides_no_other() -> None:
    """A node whose clock was a day ahead for a while has left such a date in its records and in its tasks."""
    assert 101 in memory.cooling(of(record(ago_s=-DAY_S), record(ago_s=100)), None, NOW, 3600)
    assert 101 in memory.cooling(of(record(ago_s=100), record(ago_s=-DAY_S)), None, NOW, 3600)


# --- Brakes ------------------------------------------------------------------------------------------------------------------------


def test_the_hourly_brake_counts_what_was_asked_for_in_the_last_hour_but_maintenance() -> None:
    history = of(
        record(101),
        record(102, S.RUNNING),
        record(103, ago_s=3601),
        record(104, S.SKIPPED),
        record(105, S.FAILED),
        record(106, reason=MoveReason.MAINTENANCE),
    )
    assert memory.moves_left(history, NOW, 20) == 18
    assert memory.moves_left(history, NOW, 1) == 0


def test_three_failures_in_ten_minutes_are_an_alarm() -> None:
    failed = [record(101 + i, S.FAILED, ago_s=100.0 * (i + 1), text="no space") for i in range(3)]
    assert memory.alarm(of(*failed[:2]), NOW) is None
    assert "3 migrations failed in 10 minutes" in (memory.alarm(of(*failed), NOW) or "")
    assert memory.alarm(of(*failed), NOW + 600) is None
    overtaken = [replace(one, failure=FailureClass.CHANGED) for one in failed]
    assert memory.alarm(of(*overtaken), NOW) is None, "what others did meanwhile is no failure"


def test_a_guest_moved_three_times_a_day_for_load_is_an_alarm() -> None:
    moves = [record(ago_s=7200.0 * (i + 1)) for i in range(3)]
    assert memory.alarm(of(*moves[:2]), NOW) is None
    assert memory.alarm(of(*moves), NOW) == "guest 101 was moved 3 times in a day"
    assert memory.alarm(of(*[replace(move, reason=MoveReason.MAINTENANCE) for move in moves]), NOW) is None
    assert memory.alarm(of(*moves), NOW + DAY_S) is None


# --- Loads that are known --------------------------------------------------------------------------------------------------------


def test_the_load_of_who_has_arrived_is_known_for_ten_minutes() -> None:
    done = of(record(ago_s=300), record(102, ago_s=700), record(103, S.FAILED, ago_s=300))
    assert memory.learned(done, NOW) == {101: GuestLoad(0.5, 4 * GIB)}


def test_who_has_just_arrived_has_no_two_samples() -> None:
    assert memory.landed(of(record(ago_s=20), record(102, ago_s=60)), NOW) == {101}


# --- It stays small ----------------------------------------------------------------------------------------------------------------


def test_the_history_stays_below_what_is_read_in_one_piece() -> None:
    history = EMPTY
    for i in range(700):
        history = memory.with_migrations(
            history, [record(100_000_000 + i, ago_s=float(700 - i), text="x" * 100, name="n" * 60, upid="UPID:" + "0" * 80)]
        )
        history = memory.with_answer(history, Answer(f"request-{i}", NOW, "x" * 200, final=True))
    history = memory.bounded(history, NOW)
    assert len(history.migrations) <= memory.KEPT_MIGRATIONS
    assert len(history.answers) == memory.KEPT_ANSWERS
    assert history.migrations[-1].vmid == 100_000_699
    assert len(render(history)) < 128 * 1024
    assert parse(HistoryFile, render(history)) == history


def test_open_attempts_and_homes_are_never_dropped() -> None:
    old = [record(101 + i, S.RUNNING, ago_s=30 * DAY_S) for i in range(3)]
    history = replace(of(*old, *[record(200 + i) for i in range(300)]), homes=(Home(101, "pve1", "pve2", NOW),))
    kept = memory.bounded(history, NOW)
    assert {101, 102, 103} <= {move.vmid for move in kept.migrations}
    assert len(kept.migrations) <= memory.KEPT_MIGRATIONS
    assert kept.homes == history.homes


def test_what_must_be_dropped_leaves_each_guest_its_last_move() -> None:
    """After a drain much fails for a while: whoever left must not be moved on for load, as nobody remembers."""
    drained = [record(101 + i, reason=MoveReason.MAINTENANCE, ago_s=1800.0 - i) for i in range(20)]
    failed = [record(300 + i % 5, S.FAILED, ago_s=1000.0 - i, text="x" * 300) for i in range(200)]
    kept = memory.bounded(of(*drained, *failed), NOW)
    assert len(kept.migrations) < 220
    assert set(memory.cooling(kept, None, NOW, 3600)) == set(range(101, 121))


def test_what_is_two_days_old_is_dropped() -> None:
    assert memory.bounded(of(record(ago_s=3 * DAY_S)), NOW).migrations == ()


def test_a_record_takes_the_place_of_the_one_with_its_intent() -> None:
    planned = record(state=S.PLANNED)
    done = replace(planned, state=S.DONE)
    assert memory.with_migrations(of(planned), [done]).migrations == (done,)
    assert memory.open_migrations(of(planned)) == (planned,)
    assert memory.open_migrations(of(done)) == ()


def test_a_later_answer_to_a_request_replaces_the_earlier_one() -> None:
    one = memory.with_answer(EMPTY, Answer("r", NOW, "3 moves", final=False))
    two = memory.with_answer(one, Answer("r", NOW, "done", final=True))
    assert [answer.text for answer in two.answers] == ["done"]


@pytest.mark.parametrize(
    ("status", "good"), [("OK", True), ("WARNINGS: 2", True), ("migration aborted", False), ("", False), (None, False)]
)
def test_what_pve_calls_a_success(status: str | None, good: bool) -> None:
    assert memory.is_success(status) == good

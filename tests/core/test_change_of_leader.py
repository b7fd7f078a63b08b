# SPDX-License-Identifier: GPL-3.0-or-later
"""Brakes, cooldowns and all else that leaders remember hold over a change of leader: what is in the history's file is enough."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from agent.core import aside
from agent.core import history as memory
from agent.core.cluster import GuestType, Snapshot
from agent.core.documents import HISTORY_SCHEMA, HistoryFile, Home, SetAside, parse, render
from agent.core.failures import FailureClass
from agent.core.migrations import Migration, MigrationState
from agent.core.reasons import LOAD_REASONS, MoveReason
from tests.core.clusters import NOW, cluster, node, random_cluster, settings, vm
from tests.core.leading import Leading, handed_over, remembered_by
from tests.core.random_clusters import draws, examples

PLAIN = settings()
NAMES = ("pve1", "pve2", "pve3")
THREE = cluster(*(node(name) for name in NAMES), *(vm(100 + i, NAMES[i % 3]) for i in range(9)))

vmids = st.integers(100, 110)
ago = st.one_of(st.floats(-7200, 2 * 86400), st.sampled_from((0.0, 14.0, 15.0, 25.0, 599.0, 600.0, 3599.0, 3600.0, 3601.0, 86400.0)))
times = ago.map(lambda seconds: NOW - seconds)
words = st.text(max_size=300).filter(lambda text: text.isascii() or text.isprintable())
migrations = st.builds(
    Migration,
    intent=st.from_regex(r"[0-9]{1,4}-[0-9]{1,4}", fullmatch=True),
    vmid=vmids,
    type=st.sampled_from(GuestType),
    name=words,
    source=st.sampled_from(NAMES),
    target=st.sampled_from(NAMES),
    reason=st.sampled_from(MoveReason),
    epoch=st.integers(1, 1 << 40),
    memory_bytes=st.integers(0, 1 << 45),
    cpu_cores=st.floats(0, 512),
    gain=st.floats(-1, 1),
    planned_at=times,
    state=st.sampled_from(MigrationState),
    asked_at=st.none() | times,
    ended_at=st.none() | times,
    upid=st.none() | words,
    text=words,
    request=st.none() | words,
    online=st.booleans(),
)
homes = st.builds(Home, vmids, st.sampled_from(NAMES), st.sampled_from(NAMES), times)
failures = st.builds(SetAside, vmids, times, st.integers(1, 5000), words)


def by_guest(entries: list[Home] | list[SetAside]) -> tuple[Home | SetAside, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.vmid))


def by_time(records: list[Migration]) -> tuple[Migration, ...]:
    return tuple(sorted(records, key=lambda record: (record.planned_at, record.intent)))


histories = st.builds(
    HistoryFile,
    schema=st.just(HISTORY_SCHEMA),
    first_seen_at=times,
    migrations=st.lists(migrations, max_size=30, unique_by=lambda record: record.intent).map(by_time),
    homes=st.lists(homes, max_size=5, unique_by=lambda home: home.vmid).map(by_guest),
    set_aside=st.lists(failures, max_size=5, unique_by=lambda entry: entry.vmid).map(by_guest),
)


@given(histories)
def test_a_new_leader_asks_the_same_question(history: HistoryFile) -> None:
    read = handed_over(history, NOW)
    assert remembered_by(read, THREE, PLAIN, NOW) == remembered_by(history, THREE, PLAIN, NOW)
    assert memory.alarm(read, NOW) == memory.alarm(history, NOW)
    assert memory.open_migrations(read) == memory.open_migrations(history)


@given(histories)
def test_handing_the_history_over_again_and_again_changes_no_byte(history: HistoryFile) -> None:
    once = handed_over(history, NOW)
    assert render(handed_over(once, NOW)) == render(once)
    assert parse(HistoryFile, render(once)) == once


@given(histories, vmids, st.floats(-86400, 86400))
def test_a_failure_sets_a_guest_aside_for_ten_minutes_at_least_and_a_day_at_most(history: HistoryFile, vmid: int, later: float) -> None:
    now = NOW + later
    read = handed_over(aside.with_failure(history, vmid, FailureClass.UNKNOWN, "it failed", now), now)
    assert vmid in aside.set_aside(read, now + 599)
    assert vmid not in aside.set_aside(read, now + 86401)


def test_a_drain_of_hundreds_of_guests_makes_no_leader_forget_the_hourly_brake() -> None:
    """The history has room for 150 attempts: of those that ended, those that a brake counts go last."""
    template = Migration("0-0", 100, GuestType.QEMU, "web", "pve1", "pve2", MoveReason.SPREAD, 1, 1 << 30, 1.0, 0.1, NOW)
    spread = [
        replace(template, intent=f"1-{i}", vmid=100 + i, planned_at=NOW - 1800 + i, ended_at=NOW - 1790 + i, state=MigrationState.DONE)
        for i in range(20)
    ]
    drained = [
        replace(
            template,
            intent=f"2-{i}",
            vmid=1000 + i,
            reason=MoveReason.MAINTENANCE,
            planned_at=NOW - 1500 + i,
            ended_at=NOW - 1490 + i,
            state=MigrationState.DONE,
        )
        for i in range(400)
    ]
    history = memory.with_migrations(memory.empty(NOW - 86400), [*spread, *drained])
    assert memory.moves_left(history, NOW, 20) == 0
    read = handed_over(history, NOW)
    assert memory.moves_left(read, NOW, 20) == 0
    assert set(range(100, 120)) <= memory.cooling(read, None, NOW, 3600.0).keys()
    assert len(read.migrations) == memory.KEPT_MIGRATIONS


@pytest.mark.parametrize("new_leader_each_look", [False, True], ids=["one leader", "a new leader each look"])
def test_with_a_static_load_leaders_come_to_rest_and_move_no_guest_twice_for_load(new_leader_each_look: bool) -> None:
    """Look by look, as the slots and brakes allow, with cooldowns; an hour's pause shows what only waited."""
    seen: Counter[str] = Counter()

    @profile(max_examples=examples(15))
    @given(draws(60))
    def each(draw: object) -> None:
        snapshot: Snapshot = replace(random_cluster(draw), tasks=())
        leading = Leading(snapshot, PLAIN, new_leader_each_look=new_leader_each_look)
        assert leading.until_quiet()
        for_load = [(at, move) for at, move in leading.made if move.reason in LOAD_REASONS]
        last: dict[int, float] = {}
        for at, move in for_load:
            assert at - last.get(move.vmid, -1e9) >= PLAIN.balance.guest_cooldown_s
            last[move.vmid] = at
        braked = [at for at, move in leading.made if move.reason is not MoveReason.MAINTENANCE]
        for at in braked:
            assert sum(at <= other < at + 3600 for other in braked) <= PLAIN.balance.max_moves_per_hour
            assert braked.count(at) <= PLAIN.balance.max_moves_per_pass
        seen["moves"] += bool(for_load)
        seen["waits for the hour"] += len(braked) > PLAIN.balance.max_moves_per_hour
        seen["twice"] += len(last) < len(for_load)

    each()
    print(seen)
    assert seen["moves"] > 7

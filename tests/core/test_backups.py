# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheduled backups: what PVE's files and its API say, and whom a backup that is about to begin keeps where they are."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.backups import BEGUN_S, SOON_S, due_backups, jobs_of, not_understood, read_cron, read_jobs
from agent.core.calendar_events import parse
from agent.core.cluster import BackupJob, Snapshot
from agent.core.plan_types import Plan
from agent.core.planner import plan
from agent.core.question import Question
from tests.core.clusters import cluster, node, settings, vm

WEDNESDAY = dt.datetime(2026, 1, 7, tzinfo=dt.UTC)


def at(text: str) -> float:
    """`wed 01:30` of a week in January as Unix seconds."""
    day, clock = text.split()
    hour, minute = clock.split(":")
    number = ("wed", "thu", "fri", "sat", "sun", "mon", "tue").index(day)
    return (WEDNESDAY + dt.timedelta(days=number, hours=int(hour), minutes=int(minute))).timestamp()


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("sun 01:00", ["sun 01:00"], ["sun 01:01", "mon 01:00", "sun 13:00"]),
        ("mon..fri 22:00", ["mon 22:00", "fri 22:00"], ["sat 22:00", "sun 22:00"]),
        ("mon,wed,fri..sun 3:5", ["mon 03:05", "sat 03:05"], ["tue 03:05", "thu 03:05"]),
        ("Sunday 1:30", ["sun 01:30"], ["sun 01:00"]),
        ("sun..tue 4:0", ["sun 04:00", "tue 04:00"], ["wed 04:00", "sat 04:00"]),
        ("*:0/15", ["wed 07:45", "wed 00:00"], ["wed 07:50"]),
        ("0/6:30", ["wed 12:30", "wed 00:30"], ["wed 13:30", "wed 12:00"]),
        ("8..17:*/20", ["wed 08:40", "wed 17:00"], ["wed 18:00", "wed 08:10"]),
        ("30", ["wed 00:30", "thu 23:30"], ["wed 00:31"]),
        ("1,4,6", ["wed 10:04"], ["wed 10:05"]),
        ("*", ["wed 10:04"], []),
        ("sat", ["sat 00:00"], ["sat 01:00", "sun 00:00"]),
        ("21:00:30", ["wed 21:00"], ["wed 21:01"]),
        ("*-*-8 02:00", ["thu 02:00"], ["wed 02:00", "fri 02:00"]),
        ("01-07 02:00", ["wed 02:00"], ["thu 02:00"]),
        ("2026-1-7..9/2 02:00", ["wed 02:00", "fri 02:00"], ["thu 02:00"]),
        ("2027-*-* 02:00", [], ["wed 02:00"]),
        ("wed *-*-1..7 02:00", ["wed 02:00"], ["tue 02:00", "thu 02:00"]),
        ("daily", ["tue 00:00"], ["tue 00:30"]),
        ("hourly", ["tue 05:00"], ["tue 05:30"]),
        ("weekly", ["mon 00:00"], ["tue 00:00"]),
        ("minutely", ["mon 07:07"], []),
        ("monthly", [], ["wed 00:00"]),
    ],
)
def test_calendar_events_as_pves_jobs_have_them(text: str, yes: list[str], no: list[str]) -> None:
    event = parse(text)
    assert event is not None
    assert [when for when in [*yes, *no] if event.begins_at(dt.datetime.fromtimestamp(at(when), dt.UTC))] == yes


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "never", "su 1:00", "fri..mon 1:00", "25:00", "1:60", "1:2:3:4", "mon 1:00 tue", "2026-13-1 1:00", "1-2-3-4"),
        *("*/0", "utc", "9..3:0", "x" * 300),
    ],
)
def test_what_is_no_calendar_event_is_not_guessed(text: str) -> None:
    assert parse(text) is None


@given(st.text(max_size=40) | st.text("monsuewd.,*/:- 0123456789utc", max_size=20), st.floats(-1e13, 1e13), st.floats(-1e5, 1e5))
def test_whatever_is_written_there_is_read_without_a_fault(text: str, wall_s: float, offset_s: float) -> None:
    event = parse(text)
    if event is not None:
        found = event.next_within(wall_s, offset_s, -90, 600)
        assert found is None or -90 <= found <= 600


def test_the_time_is_local_but_for_one_that_says_utc() -> None:
    local, utc = parse("sun 01:00"), parse("sun 01:00 UTC")
    assert local is not None
    assert utc is not None
    now = at("sat 23:55")  # UTC; one hour ahead it is 00:55 on Sunday
    assert local.next_within(now, 3600, -90, 600) == 300
    assert local.next_within(now, 0, -90, 600) is None
    assert utc.next_within(at("sun 00:55"), 3600, -90, 600) == 300
    assert utc.next_within(now, 3600, -90, 600) is None


JOBS = """\
vzdump: backup-4f2a
\tcomment every night
\tschedule 21:00
\tall 1
\texclude 105,106
\tstorage nfs
\tmode snapshot

realmsync: ad
\tschedule *:0/15

vzdump: backup-off
\tschedule 22:00
\tenabled 0
\tall 1

vzdump: backup-web
\tschedule sat 04:00
\tpool web
\tnode pve2

vzdump: backup-two
    schedule mon..fri 12:00
    vmid 101,102
# a remark
"""


def test_jobs_cfg() -> None:
    assert read_jobs(JOBS) == (
        BackupJob("backup-4f2a", "21:00", is_all=True, exclude=(105, 106)),
        BackupJob("backup-two", "mon..fri 12:00", vmids=(101, 102)),
        BackupJob("backup-web", "sat 04:00", pool="web", node="pve2"),
    )
    assert read_jobs("") == ()
    assert read_jobs("\tschedule 1:00\nnonsense\n\x00:\n") == ()


def test_jobs_with_properties_of_older_releases() -> None:
    rows: list[dict[str, object]] = [
        {"id": "b", "type": "vzdump", "schedule": "21:00", "all": 1, "enabled": True, "exclude": "105"},
        {"id": "a", "starttime": "02:30", "dow": "mon,sat", "vmid": "101, 102", "node": "pve1", "enabled": "1"},
        {"id": "off", "schedule": "1:00", "enabled": 0},
        {"id": "other", "type": "realmsync", "schedule": "1:00"},
        {"schedule": "1:00"},
    ]
    assert jobs_of(rows) == (
        BackupJob("a", "mon,sat 02:30", vmids=(101, 102), node="pve1"),
        BackupJob("b", "21:00", is_all=True, exclude=(105,)),
    )


def test_vzdump_cron() -> None:
    text = """\
# cluster wide vzdump cron schedule
PATH="/usr/sbin:/usr/bin:/sbin:/bin"

30 2 * * 6,0           root vzdump --quiet 1 --mode snapshot --all 1 --exclude=104 --storage local
0 23 * * mon-fri       root /usr/bin/vzdump 101 102 --node pve1
#15 1 * * *            root vzdump 103
15 1 * * 9             root vzdump 103
"""
    jobs = read_cron(text)
    assert jobs == (
        BackupJob("vzdump.cron:4", "sat,sun 2:30", is_all=True, exclude=(104,)),
        BackupJob("vzdump.cron:5", "mon..fri 23:0", vmids=(101, 102), node="pve1"),
        BackupJob("vzdump.cron:7", "9 1:15", vmids=(103,)),
    )
    assert not_understood(replace(cluster(), backup_jobs=jobs)) == ("vzdump.cron:7 (9 1:15)",)


THREE = (node("pve1"), node("pve2"), node("pve3"))
GUESTS = (vm(101, "pve1", pool="web"), vm(102, "pve1"), vm(103, "pve2"), vm(104, "pve3", pool="web/shop"))


@pytest.mark.parametrize(
    ("job", "guests", "nodes"),
    [
        (BackupJob("j", "01:00", is_all=True), {101, 102, 103, 104}, {"pve1", "pve2", "pve3"}),
        (BackupJob("j", "01:00", is_all=True, exclude=(101, 102)), {103, 104}, {"pve2", "pve3"}),
        (BackupJob("j", "01:00", is_all=True, node="pve2"), {103}, {"pve2"}),
        (BackupJob("j", "01:00", vmids=(102, 999)), {102}, {"pve1"}),
        (BackupJob("j", "01:00", vmids=(102,), node="pve3"), set(), set()),
        (BackupJob("j", "01:00", pool="web"), {101, 104}, {"pve1", "pve3"}),
        (BackupJob("j", "02:00", is_all=True), set(), set()),
        (BackupJob("j", "whenever", is_all=True), set(), set()),
    ],
)
def test_a_backup_keeps_its_own_guests_and_their_nodes(job: BackupJob, guests: set[int], nodes: set[str]) -> None:
    due = due_backups(replace(cluster(*THREE, *GUESTS), taken_at=at("wed 00:53"), backup_jobs=(job,)))
    assert (set(due.guests), set(due.nodes)) == (guests, nodes)
    assert {one.words for one in due.guests.values()} <= {"j begins in 7 minutes"}


@pytest.mark.parametrize(
    ("before_s", "is_due"), [(SOON_S + 1, False), (SOON_S, True), (1, True), (0, True), (-BEGUN_S, True), (-BEGUN_S - 1, False)]
)
def test_from_ten_minutes_before_it_begins_until_its_task_tells(before_s: float, is_due: bool) -> None:
    snapshot = cluster(*THREE, *GUESTS, backup_jobs=(BackupJob("j", "01:00", vmids=(101,)),))
    assert bool(due_backups(replace(snapshot, taken_at=at("wed 01:00") - before_s)).guests) is is_due


def forced(snapshot: Snapshot) -> Plan:
    return plan(replace(snapshot, taken_at=at("wed 00:53")), settings(), Question(force=True))


def test_no_load_move_of_a_guest_about_to_be_backed_up_nor_from_or_to_its_node() -> None:
    uneven = cluster(*THREE, *[vm(101 + n, "pve1", 20) for n in range(3)], vm(110, "pve2"), vm(111, "pve3"))
    free = forced(uneven)
    assert {move.target for move in free.moves} == {"pve2", "pve3"}
    source = forced(replace(uneven, backup_jobs=(BackupJob("j", "01:00", vmids=(101,)),)))
    assert source.moves == ()
    target = forced(replace(uneven, backup_jobs=(BackupJob("j", "01:00", vmids=(110,)),)))
    assert {move.target for move in target.moves} == {"pve3"}
    later = forced(replace(uneven, backup_jobs=(BackupJob("j", "01:30", is_all=True),)))
    assert later.moves == free.moves


def test_a_node_in_maintenance_is_emptied_all_the_same() -> None:
    draining = cluster(*THREE, vm(101, "pve1"), drain=["pve1"], backup_jobs=(BackupJob("j", "01:00", is_all=True),))
    assert [move.vmid for move in forced(draining).moves] == [101]

# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster log: read however broken it is, each entry told once, and a gap seen when there may be one."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.clusterlog import (
    REMEMBERED_ENTRIES,
    SHOWN_ENTRIES,
    ClusterLogCursor,
    LogEntry,
    LogTask,
    log_task,
    log_tasks,
    parse_cluster_log,
)

NOW = 1_767_000_000
UPID = "UPID:pve1:0002B8A4:00C1F3D2:6952A5C0:qmstart:100:root@pam:"


def entry(uid: int, message: str = "x", *, node: str = "pve1", at_s: int = NOW) -> LogEntry:
    return LogEntry(node, uid, at_s, "root@pam", "pvedaemon", message)


def shown(*newest_first: LogEntry) -> str:
    """Return the text as pmxcfs writes it: quotes of the message escaped, backslashes not."""
    rows = [
        f'{{"uid": {one.uid}, "time": {one.at_s}, "pri": 6, "tag": "{one.tag}", "pid": 1234, "node": "{one.node}", '
        f'"user": "{one.user}", "msg": "{escaped(one.message)}"}}'
        for one in newest_first
    ]
    return '{\n"data": [\n' + ",\n".join(rows) + ("\n" if rows else "") + "]\n}\n"


def escaped(message: str) -> str:
    return "".join('\\"' if letter == '"' else letter if ord(letter) < 127 else f"\\u{ord(letter):04x}" for letter in message)


def read(*texts: str) -> list[list[int]]:
    """Return the uids that each reading after the first brings."""
    cursor, found = ClusterLogCursor(), []
    for text in texts:
        cursor, entries, _ = cursor.advance(text)
        found.append([one.uid for one in entries])
    assert found[0] == []
    return found[1:]


def gaps(*texts: str) -> list[bool]:
    cursor, found = ClusterLogCursor(), []
    for text in texts:
        cursor, _, gap = cursor.advance(text)
        found.append(gap)
    return found


# --- reading -----------------------------------------------------------------------------------------------------------------------


def test_entries_come_as_they_are_shown() -> None:
    assert parse_cluster_log(shown(entry(2, "b"), entry(1, "a"))) == (entry(2, "b"), entry(1, "a"))


@pytest.mark.parametrize(
    "message",
    [
        'storage "local" is full',
        "error in C:\\new\\table",
        "ends with a backslash \\",
        '\\"quoted\\" twice',
        "Gerät fehlt",
        "{}, [] and ,",
        '"msg": "in the message"',
        "",
    ],
)
def test_what_is_no_json_is_read_all_the_same(message: str) -> None:
    assert parse_cluster_log(shown(entry(3), entry(2, message), entry(1))) == (entry(3), entry(2, message), entry(1))


def test_a_broken_line_costs_itself_alone() -> None:
    lines = shown(entry(3), entry(2), entry(1)).split("\n")
    lines[3] = lines[3][:40]
    assert parse_cluster_log("\n".join(lines)) == (entry(3), entry(1))


def test_json_in_another_layout_is_read_too() -> None:
    row = {"msg": "m", "user": "u@pve", "node": "n", "uid": 7, "time": NOW, "tag": "t", "n": 1}
    text = json.dumps({"data": [row, {"uid": 1}, None, {"uid": "1", "time": NOW, "node": "n", "msg": ""}]})
    assert parse_cluster_log(text) == (LogEntry("n", 7, NOW, "u@pve", "t", "m"),)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"data": 3}', "[" * 100_000, "\0\0"])
def test_what_is_no_log_has_no_entries(text: str) -> None:
    assert parse_cluster_log(text) == ()


@given(st.text())
def test_any_text_is_taken(text: str) -> None:
    ClusterLogCursor().advance(text)


# Without what pmxcfs itself makes ambiguous: letters it replaces or drops, and backslashes that it does not escape.
MESSAGES = st.text(st.characters(min_codepoint=32, max_codepoint=0xD7FF, blacklist_characters="\\\x7f"))


@given(st.lists(MESSAGES, max_size=10))
def test_a_message_comes_out_as_it_went_in(messages: list[str]) -> None:
    entries = tuple(entry(number, message) for number, message in enumerate(messages))
    assert parse_cluster_log(shown(*entries)) == entries


# --- what is new -------------------------------------------------------------------------------------------------------------------


def test_the_first_reading_is_history() -> None:
    cursor, entries, gap = ClusterLogCursor().advance(shown(entry(2), entry(1)))
    assert (entries, gap) == ((), False)
    assert cursor.has_begun


def test_new_entries_come_once_and_oldest_first() -> None:
    first = shown(entry(2), entry(1))
    second = shown(entry(4), entry(3), entry(2), entry(1))
    assert read(first, first, second, second) == [[], [3, 4], []]
    assert gaps(first, first, second, second) == [False] * 4


def test_an_entry_shown_twice_is_one() -> None:
    assert read(shown(entry(1)), shown(entry(2), entry(2), entry(1))) == [[2]]


def test_a_uid_that_starts_again_is_another_entry() -> None:
    later = entry(1, at_s=NOW + 60)
    assert read(shown(entry(1)), shown(later, entry(1))) == [[1]]


def test_the_same_uid_of_two_nodes_is_two_entries() -> None:
    assert read(shown(entry(1)), shown(entry(1, node="pve2"), entry(1))) == [[1]]


def test_reordered_entries_are_not_new() -> None:
    one, two, three = entry(1), entry(2), entry(1, node="pve2")
    assert read(shown(three, two, one), shown(two, three, one), shown(one, two, three)) == [[], []]


def test_an_older_entry_that_a_merge_brings_is_new() -> None:
    merged = entry(9, node="pve2", at_s=NOW - 600)
    assert read(shown(entry(2), entry(1)), shown(entry(2), entry(1), merged)) == [[9]]


def test_nothing_shared_with_the_reading_before_is_a_gap() -> None:
    assert gaps(shown(entry(1)), shown(entry(3))) == [False, True]
    assert read(shown(entry(1)), shown(entry(3))) == [[3]]


def test_known_entries_on_top_do_not_hide_that_more_came_than_are_shown() -> None:
    """After a merge a node whose clock is ahead has its entries on top, and so in every reading."""
    ahead = entry(1, node="pve9", at_s=NOW + 10**6)
    first = shown(ahead, *map(entry, range(40, 0, -1)))
    assert gaps(first, shown(ahead, *map(entry, range(89, 40, -1)))) == [False, True]
    assert gaps(first, shown(ahead, *map(entry, range(88, 39, -1)))) == [False, False]


def test_a_log_that_was_emptied_is_a_gap_once() -> None:
    assert gaps(shown(entry(1)), shown(), shown(), shown(entry(1, at_s=NOW + 9))) == [False, True, False, False]


def test_an_empty_log_that_fills_is_no_gap() -> None:
    assert gaps(shown(), shown(entry(2), entry(1))) == [False, False]
    assert read(shown(), shown(entry(2), entry(1))) == [[1, 2]]


def test_an_empty_log_that_overflows_is_a_gap() -> None:
    assert gaps(shown(), shown(*map(entry, range(SHOWN_ENTRIES, 0, -1)))) == [False, True]


@pytest.mark.parametrize("text", ["", '{\n"data": [\n', "garbage", '{"data": [\n{"uid": 7, "ti'])
def test_a_text_that_was_cut_off_changes_nothing(text: str) -> None:
    assert ClusterLogCursor().advance(text).cursor == ClusterLogCursor()
    assert gaps(shown(entry(1)), text, shown(entry(2), entry(1))) == [False] * 3
    assert read(shown(entry(1)), text, shown(entry(2), entry(1))) == [[], [2]]


def test_memory_is_bounded_and_keeps_what_is_shown() -> None:
    cursor = ClusterLogCursor()
    stays = entry(1, node="pve9", at_s=NOW + 10**6)  # of a node whose clock is ahead, so it stays on top after a merge
    for base in range(0, 5000, 40):
        cursor, _, _ = cursor.advance(shown(stays, *map(entry, range(base + 49, base, -1))))
        assert len(cursor.seen) <= REMEMBERED_ENTRIES
    assert cursor.advance(shown(stays)).entries == ()


@given(st.lists(st.integers(0, 60), max_size=12), st.integers(1, SHOWN_ENTRIES))
def test_without_a_gap_nothing_is_missed(bursts: list[int], history: int) -> None:
    """However many entries come between two readings: all are told in order, or a gap is."""
    ring = [entry(uid) for uid in range(history, 0, -1)]
    cursor = ClusterLogCursor().advance(shown(*ring)).cursor
    for burst in bursts:
        newest = ring[0].uid
        ring = [entry(uid) for uid in range(newest + burst, newest, -1)] + ring
        cursor, entries, gap = cursor.advance(shown(*ring[:SHOWN_ENTRIES]))
        told = [one.uid for one in entries]
        assert told == sorted(told)
        assert gap or told == list(range(newest + 1, newest + burst + 1))
        assert gap == (burst >= SHOWN_ENTRIES)


@given(st.lists(st.lists(st.integers(1, 30), max_size=20), max_size=8))
def test_no_entry_is_told_twice(readings: Sequence[list[int]]) -> None:
    cursor, told = ClusterLogCursor(), []
    for reading in readings:
        cursor, entries, _ = cursor.advance(shown(*map(entry, reading)))
        told += [one.key for one in entries]
    assert len(told) == len(set(told))


# --- tasks -------------------------------------------------------------------------------------------------------------------------


def test_the_start_of_a_task() -> None:
    task = log_task(entry(1, f"starting task {UPID}"))
    assert task == LogTask(UPID, "pve1", "qmstart", "100", "root@pam", 0x6952A5C0, None)
    assert (task.vmid, task.has_ended) == (100, False)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("OK", "OK"),
        ("WARNINGS: 2", "WARNINGS: 2"),
        ("command 'x' failed: exit code 1", "command 'x' failed: exit code 1"),
        ("", "unknown"),
    ],
)
def test_the_end_of_a_task(text: str, status: str) -> None:
    task = log_task(entry(1, f"end task {UPID} {text}"))
    assert task is not None
    assert (task.upid, task.status, task.has_ended) == (UPID, status, True)


def test_tasks_of_no_guest_of_tokens_and_of_long_uptime() -> None:
    upid = "UPID:pve-2:0002B8A4:1C1F3D2AB:6952A5C0:startall::root@pam!tok:"
    task = log_task(entry(1, f"starting task {upid}"))
    assert task is not None
    assert (task.node, task.kind, task.vmid, task.user) == ("pve-2", "startall", None, "root@pam!tok")


@pytest.mark.parametrize(
    "message",
    [
        "successful auth for user 'root@pam'",
        "starting task",
        "starting task UPID:pve1:qmstart:100:root@pam:",
        f"restarting task {UPID}",
        f"a user wrote: end task {UPID} OK",
        "",
    ],
)
def test_other_messages_are_no_tasks(message: str) -> None:
    assert log_task(entry(1, message)) is None


def test_tasks_keep_the_order_of_their_entries() -> None:
    entries = [entry(1, f"starting task {UPID}"), entry(2, "x"), entry(3, f"end task {UPID} OK")]
    assert [task.status for task in log_tasks(entries)] == [None, "OK"]

# SPDX-License-Identifier: GPL-3.0-or-later
"""Events that were on their way for long: judged by when they happened, and answered once, whoever told of it before."""

from __future__ import annotations

import pytest

from agent.core.documents import INBOX_SCHEMA, Facts, InboxEvent, InboxFile, render
from agent.core.events import Event, EventKind, EventSource
from agent.core.migrations import MigrationState
from agent.daemon.hearing import MOST_TOLD, Hearing
from agent.daemon.inputs import InboxSeen, Now, OwnInboxSeen, SignsSeen
from agent.daemon.mailbox import KEPT_S, Mailbox, request_text
from agent.daemon.outputs import Say
from agent.daemon.senses import Senses
from agent.ports import InboxSight
from tests.core.records import record
from tests.daemon.test_events_under_fire import NOW, settings


def start(at_s: float, source: EventSource = EventSource.INBOX, age_s: float = 0.0) -> Event:
    return Event(EventKind.GUEST_STARTED, source, at_s, node="pve2", vmid=101, age_s=age_s)


def now(at_s: float) -> Now:
    return Now(at_s, NOW.wall_s + at_s - NOW.boot_s)


def told(*events: Event) -> int:
    """How many of them the leader takes for news."""
    hearing = Hearing(now(1000.0))
    return sum(bool(hearing.on_event(event, (), {}, now(event.at_s)) and hearing.take(None, now(event.at_s))) for event in events)


@pytest.mark.parametrize(
    ("second", "count"),
    [
        (start(1020.0), 1),
        (start(1040.0), 2),
        (start(1040.0, age_s=20.0), 1),
        (start(1280.0, age_s=290.0), 1),
        (start(1280.0, age_s=100.0), 2),
        (start(1280.0, EventSource.CLUSTER_LOG, age_s=290.0), 2),
    ],
    ids=["at once", "another start", "a little late", "late by minutes", "late, and another start", "the same source tells another start"],
)
def test_a_start_that_another_source_has_told_is_no_news_however_late_it_comes(second: Event, count: int) -> None:
    assert told(start(1000.0, EventSource.CLUSTER_LOG), second) == count


def test_of_two_starts_told_by_the_log_the_late_one_repeats_the_first() -> None:
    log = EventSource.CLUSTER_LOG
    assert told(start(1000.0, log), start(1100.0, log), start(1110.0, age_s=110.0)) == 2
    assert told(start(1000.0, log), start(1100.0, log), start(1200.0)) == 3


@pytest.mark.parametrize(("age_s", "is_echo"), [(0.0, False), (80.0, True), (20.0, False)])
def test_what_happened_within_a_migration_is_its_echo_when_it_comes_two_minutes_later(age_s: float, is_echo: bool) -> None:
    ended_at = now(1000.0).wall_s
    ours = record(101, MigrationState.DONE, target="pve2", asked_at=ended_at - 20, ended_at=ended_at)
    event = start(1120.0, age_s=age_s)
    hearing = Hearing(now(1000.0))
    hearing.on_event(event, (ours,), {}, now(1120.0))
    assert (hearing.pending is None) == is_echo
    hearing = Hearing(now(1000.0))
    hearing.on_event(event, (), {101: ended_at}, now(1120.0))
    assert (hearing.pending is None) == is_echo


def test_an_end_that_lies_ahead_as_the_clock_was_set_back_hides_nothing() -> None:
    hearing = Hearing(now(1000.0))
    hearing.on_event(start(1000.0), (), {101: now(5000.0).wall_s}, now(1000.0))
    assert hearing.pending is not None


# how old an event is


def relay(seq: int, at: float, written_at: float) -> str:
    events = (InboxEvent(seq, at, EventKind.GUEST_STARTED, vmid=101),)
    return render(InboxFile(INBOX_SCHEMA, "pve2", "i", "b", seq, written_at, events, None, Facts("0.1.0")))


def ages(*files: tuple[float, str]) -> list[float]:
    """How old the events are taken to be, of files that the leader reads at these seconds."""
    senses, found = Senses("pve1"), []
    senses.on_signs(SignsSeen(inboxes=()), now(0.0), settings(), lambda _: False)
    for at_s, text in files:
        events = senses.on_signs(SignsSeen(inboxes=(("pve2", text),)), now(at_s), settings(), lambda _: False)
        found += [round(event.age_s, 3) for event in events if event.kind is EventKind.GUEST_STARTED]
    return found


def wall(at_s: float) -> float:
    return now(at_s).wall_s


def test_what_waited_on_its_node_is_as_old_as_that() -> None:
    assert ages((100.0, relay(1, wall(40.0), wall(99.0)))) == [59.0]


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0, -3600.0])
def test_a_file_that_was_held_up_is_late_by_what_others_of_its_node_were_not_whatever_its_clock_shows(ahead_s: float) -> None:
    quick = relay(1, wall(99.0) + ahead_s, wall(99.0) + ahead_s)
    held_up = relay(2, wall(200.0) + ahead_s, wall(200.0) + ahead_s)
    assert ages((100.0, quick), (321.0, held_up)) == [0.0, 120.0]


def test_a_clock_that_was_set_back_makes_nothing_late_for_ever() -> None:
    files = [(100.0 + n * 10, relay(1 + n, wall(99.0 + n * 10), wall(99.0 + n * 10))) for n in range(1)]
    files += [(200.0 + n * 10, relay(2 + n, wall(99.0 + n * 10), wall(99.0 + n * 10))) for n in range(12)]
    assert ages(*files)[-1] == 0.0


def test_an_event_is_never_taken_for_older_than_any_that_are_kept() -> None:
    assert ages((100.0, relay(1, -1e300, wall(99.0))), (101.0, relay(2, 1e300, -1e300)), (102.0, relay(3, 0.0, 1e300))) == [
        KEPT_S,
        KEPT_S,
        KEPT_S,
    ]


# in the inbox of a node


def claimed(*files: tuple[str, float]) -> tuple[list[Event], list[str], Mailbox]:
    box = Mailbox("pve3", "i", "b")
    box.on_own_file(OwnInboxSeen(None))
    requests = (("r1", request_text("a", force=False)),)
    sight = InboxSight(tuple(name for name, _ in files), requests, None, tuple(age_s for _, age_s in files))
    events, said = box.on_claimed(InboxSeen(sight), NOW)
    return events, [output.record.text for output in said if isinstance(output, Say)], box


def test_how_long_an_event_lay_in_the_inbox_goes_with_it() -> None:
    events, said, box = claimed(("101.post-start", 100.0), ("102.post-start", 0.0))
    assert [(event.vmid, event.age_s) for event in events] == [(101, 100.0), (102, 0.0), (None, 0.0)]
    assert [entry.at - NOW.wall_s for entry in box._file.events] == [-100.0, 0.0, 0.0]
    assert said == []


def test_what_lay_there_while_no_agent_ran_is_left_out_and_said_but_no_request_is() -> None:
    events, said, box = claimed(("101.post-start", KEPT_S), ("102.post-stop", 1e6), ("103.post-stop", KEPT_S - 1))
    assert [event.vmid for event in events] == [103, None]
    assert said == ["2 events have waited for more than 5 minutes: what they tell was seen since"]
    assert box._file.seq == 2


def test_numbers_of_before_a_start_do_not_tell_that_the_guest_has_stopped() -> None:
    def stop(age_s: float) -> Event:
        return Event(EventKind.GUEST_STOPPED, EventSource.STATISTICS, 1008.0, node="pve2", vmid=101, age_s=age_s)

    hook = EventSource.HOOK
    assert told(start(1004.0, hook), stop(6.0)) == 1
    assert told(start(1004.0, hook), stop(2.0)) == 2


def test_memory_of_what_was_told_is_bounded_and_keeps_the_latest() -> None:
    hearing = Hearing(now(1000.0))
    for number in range(MOST_TOLD + 10):
        hearing.on_event(Event(EventKind.GUEST_STARTED, EventSource.HOOK, 1000.0, node="pve2", vmid=1000 + number), (), {}, now(1000.0))
    assert MOST_TOLD // 2 <= len(hearing._told) <= MOST_TOLD
    again = Event(EventKind.GUEST_STARTED, EventSource.CLUSTER_LOG, 1001.0, node="pve2", vmid=1000 + MOST_TOLD + 9)
    assert hearing.on_event(again, (), {}, now(1001.0)) == []

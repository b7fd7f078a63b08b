# SPDX-License-Identifier: GPL-3.0-or-later
"""When it is quiet, until when, and how that is said."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.calendar_events import DAYS
from agent.core.quiet_hours import WEEK_S, Quiet, QuietSpan, quiet

NIGHT = QuietSpan("01:00", "05:00")
LATE = QuietSpan("22:00", "06:00", ("fri", "sat"))
DAY = QuietSpan("00:00", "24:00", ("sun",))


def at(day: str, time: str, *spans: QuietSpan, offset_h: float = 0.0) -> str | None:
    """What is said on that day of the week, by UTC."""
    hours, minutes = time.split(":")
    monday = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
    wall_s = (monday + dt.timedelta(days=DAYS.index(day), hours=int(hours), minutes=int(minutes))).timestamp()
    found = quiet(spans, wall_s, 3600 * offset_h)
    return None if found is None else found.words


@pytest.mark.parametrize(
    ("day", "time", "words"),
    [
        ("mon", "00:59", None),
        ("mon", "01:00", "quiet hours until 05:00"),
        ("sun", "04:59", "quiet hours until 05:00"),
        ("sun", "05:00", None),
    ],
)
def test_no_day_named_is_every_day_and_the_end_is_not_part_of_it(day: str, time: str, words: str | None) -> None:
    assert at(day, time, NIGHT) == words


@pytest.mark.parametrize(
    ("day", "time", "words"),
    [
        ("fri", "05:00", None),
        ("fri", "21:59", None),
        ("fri", "22:00", "quiet hours until 06:00"),
        ("sat", "05:59", "quiet hours until 06:00"),
        ("sat", "06:00", None),
        ("sun", "05:00", "quiet hours until 06:00"),
        ("mon", "05:00", None),
    ],
)
def test_over_midnight_the_days_name_when_it_begins(day: str, time: str, words: str | None) -> None:
    assert at(day, time, LATE) == words


def test_a_whole_day_and_the_week_goes_on_after_sunday() -> None:
    assert at("sun", "00:00", DAY) == "quiet hours until 00:00"
    assert at("sun", "23:59", DAY) == "quiet hours until 00:00"
    assert at("mon", "00:00", DAY) is None
    assert at("mon", "00:30", QuietSpan("23:00", "01:00", ("sun",))) == "quiet hours until 01:00"


def test_spans_that_meet_or_overlap_are_one() -> None:
    assert at("sat", "23:00", LATE, DAY) == "quiet hours until mon 00:00"
    assert at("mon", "02:00", NIGHT, QuietSpan("05:00", "06:30"), QuietSpan("04:00", "05:30")) == "quiet hours until 06:30"


def test_over_more_than_a_day_the_day_is_named() -> None:
    assert at("sat", "12:00", QuietSpan("00:00", "24:00", ("sat", "sun"))) == "quiet hours until mon 00:00"


def test_always() -> None:
    assert quiet([QuietSpan("00:00", "24:00")], 0.0, 0.0) == Quiet(None, "quiet hours at all times")
    assert quiet([], 0.0, 0.0) is None


def test_it_is_the_nodes_local_time_that_counts_and_a_change_of_it_is_seen() -> None:
    assert at("mon", "00:30", NIGHT) is None
    assert at("mon", "00:30", NIGHT, offset_h=1) == "quiet hours until 05:00"
    assert at("mon", "03:30", NIGHT, offset_h=1) == "quiet hours until 05:00"
    assert at("mon", "03:30", NIGHT, offset_h=2) is None, "clocks were set forward meanwhile"
    assert at("sun", "23:30", QuietSpan("01:00", "05:00", ("mon",)), offset_h=5.75) is None
    assert at("sun", "20:30", QuietSpan("01:00", "05:00", ("mon",)), offset_h=5.75) == "quiet hours until 05:00"


TIMES = st.builds(lambda hour, minute: f"{hour:02}:{minute:02}", st.integers(0, 23), st.integers(0, 59))
SPANS = st.lists(st.builds(QuietSpan, TIMES, TIMES | st.just("24:00"), st.lists(st.sampled_from(DAYS), max_size=3).map(tuple)), max_size=4)


@given(SPANS, st.integers(0, 2 * 10**9), st.integers(-12 * 4, 14 * 4))
def test_until_then_it_is_quiet_and_then_it_is_not(spans: list[QuietSpan], wall_s: int, quarters: int) -> None:
    """A reading of its own: minute by minute, by the calendar."""

    def is_quiet(unix_s: float) -> bool:
        local = dt.datetime.fromtimestamp(unix_s + offset_s, dt.UTC)
        for span in spans:
            for days_ago in (0, 1):
                begun = local - dt.timedelta(days=days_ago)
                if span.days and DAYS[begun.weekday()] not in span.days:
                    continue
                hours, minutes = map(int, span.begin.split(":"))
                begin = begun.replace(hour=hours, minute=minutes, second=0, microsecond=0)
                hours, minutes = map(int, span.end.split(":"))
                end = begin.replace(hour=0, minute=0) + dt.timedelta(hours=hours, minutes=minutes)
                end = end if end > begin else end + dt.timedelta(days=1)
                if begin <= local < end:
                    return True
        return False

    offset_s = 900.0 * quarters
    found = quiet(spans, float(wall_s), offset_s)
    assert (found is not None) == is_quiet(wall_s)
    if found is not None and found.until is not None:
        assert not is_quiet(found.until)
        assert all(is_quiet(second) for second in range(wall_s, int(found.until), 1800))
    if found is not None and found.until is None:
        assert all(is_quiet(wall_s + second) for second in range(0, int(WEEK_S), 1800))

# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's calendar events, as its jobs have them for a schedule: `sun 01:00`, `mon..fri *:0/15`, `*-*-1 03:30`, `daily`.

They look like systemd's: days of the week, then a date, then a time, each of which may be left out; at the end `UTC` for times that
are not local. A time of one part is minutes of every hour. Of seconds only the minute they are in is kept, as PVE's scheduler looks
once in a minute.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MOST_TEXT = 200

_KEYWORDS = {
    "minutely": "*:*",
    "hourly": "*:0",
    "daily": "0:0",
    "weekly": "mon 0:0",
    "monthly": "*-*-1 0:0",
    "quarterly": "*-1,4,7,10-1 0:0",
    "semiannually": "*-1,7-1 0:0",
    "semi-annually": "*-1,7-1 0:0",
    "yearly": "*-1-1 0:0",
    "annually": "*-1-1 0:0",
}
_Date = tuple[frozenset[int] | None, frozenset[int] | None, frozenset[int] | None]
_PART = re.compile(r"(?:(\*)|(\d{1,4})(?:\.\.(\d{1,4}))?)(?:/(\d{1,4}))?")
_LAST_DAY = dt.date(9990, 1, 1)


@dataclass(frozen=True, slots=True)
class CalendarEvent:
    """When something begins. None is every; `days` count from Monday, 0; `is_utc` when the time is not the node's own."""

    minutes: frozenset[int] | None
    hours: frozenset[int] | None
    days: frozenset[int] | None = None
    years: frozenset[int] | None = None
    months: frozenset[int] | None = None
    month_days: frozenset[int] | None = None
    is_utc: bool = False

    def begins_at(self, time: dt.datetime) -> bool:
        """True when it begins in that minute."""
        return (
            _holds(self.minutes, time.minute)
            and _holds(self.hours, time.hour)
            and _holds(self.days, time.weekday())
            and _holds(self.month_days, time.day)
            and _holds(self.months, time.month)
            and _holds(self.years, time.year)
        )

    def next_within(self, wall_s: float, utc_offset_s: float, from_s: float, to_s: float) -> float | None:
        """The first begin from `from_s` to `to_s` after now, in seconds after now (negative: before), None when there is none.

        Units:   `wall_s` in Unix seconds, `utc_offset_s` what local time is ahead of UTC now.
        """
        offset_s = 0.0 if self.is_utc else utc_offset_s
        try:
            local = dt.datetime.fromtimestamp(wall_s + offset_s, dt.UTC)
        except (OverflowError, OSError, ValueError):
            return None
        if local.date() >= _LAST_DAY:
            return None
        minute = local.replace(second=0, microsecond=0)
        into_s = (local - minute).total_seconds()
        for number in range(int(from_s // 60), int(to_s // 60) + 2):
            after_s = 60 * number - into_s
            if from_s <= after_s <= to_s and self.begins_at(minute + dt.timedelta(minutes=number)):
                return after_s
        return None


def _holds(allowed: Collection[int] | None, value: int) -> bool:
    return allowed is None or value in allowed


@lru_cache(maxsize=256)
def parse(text: str) -> CalendarEvent | None:
    """The event that the text describes, None when it is none that is understood.

    Source:  the grammar of proxmox-time, which PVE's jobs use; systemd.time(7).
    """
    words = text.strip().lower().split()
    if not words or len(text) > MOST_TEXT:
        return None
    is_utc = words[-1] == "utc"
    words = words[:-1] if is_utc else words
    if len(words) == 1 and words[0] in _KEYWORDS:
        words = _KEYWORDS[words[0]].split()
    days: frozenset[int] | None = None
    years, months, month_days = cast(_Date, (None, None, None))
    hours: frozenset[int] | None = frozenset({0})
    minutes: frozenset[int] | None = frozenset({0})
    try:
        if not words:
            return None
        if words[0][0].isalpha():
            days, words = _days(words[0]), words[1:]
        if words and "-" in words[0]:
            (years, months, month_days), words = _date(words[0]), words[1:]
        if words:
            (hours, minutes), words = _time(words[0]), words[1:]
        if words:
            return None
    except ValueError:
        return None
    return CalendarEvent(minutes, hours, days, years, months, month_days, is_utc)


def day_of(name: str) -> int:
    """The number of a day of the week by its name or the beginning of it, at least three letters.

    Raises:  ValueError for anything else.
    """
    for number, full in enumerate(DAY_NAMES):
        if len(name) >= 3 and full.startswith(name.lower()):
            return number
    raise ValueError(name)


def _days(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, is_range, last = part.partition("..")
        one, two = day_of(first), day_of(last if is_range else first)
        if first and is_range and one == 6 and two != 6:
            one = -1  # PVE's week may begin with a Sunday: sun..wed
        if one > two:
            raise ValueError(part)
        found |= {day % 7 for day in range(one, two + 1)}
    return frozenset(found)


def _date(text: str) -> _Date:
    """The years, months and days of the month."""
    parts = text.split("-")
    if len(parts) == 2:
        parts = ["*", *parts]
    if len(parts) != 3:
        raise ValueError(text)
    return _values(parts[0], 1970, 9999), _values(parts[1], 1, 12), _values(parts[2], 1, 31)


def _time(text: str) -> tuple[frozenset[int] | None, frozenset[int] | None]:
    """The hours and minutes."""
    parts = text.split(":")
    if len(parts) == 1:
        return None, _values(parts[0], 0, 59)
    if len(parts) == 3:
        _values(parts[2], 0, 59)
    elif len(parts) != 2:
        raise ValueError(text)
    return _values(parts[0], 0, 23), _values(parts[1], 0, 59)


def _values(text: str, low: int, high: int) -> frozenset[int] | None:
    """The values of `*`, `5`, `5..10`, `5/15`, `*/15` and lists of them; None for all."""
    if text == "*":
        return None
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(part)
        every, first, last, step = match.groups()
        one = low if every else int(first)
        two = int(last) if last else (high if every or step else one)
        if not low <= one <= two <= high or (step is not None and int(step) == 0):
            raise ValueError(part)
        found |= set(range(one, two + 1, int(step or 1)))
    return frozenset(found)

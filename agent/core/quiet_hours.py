# SPDX-License-Identifier: GPL-3.0-or-later
"""The hours in which no load is balanced: by the nodes' local time, from week to week."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.core.calendar_events import DAYS

DAY_S = 86400.0
WEEK_S = 7 * DAY_S
_MONDAY_S = 3 * DAY_S  # the Unix epoch was a Thursday


@dataclass(frozen=True, slots=True)
class QuietSpan:
    """Quiet from `begin` to `end`, `01:00` and the like, on the days on which it begins; none named is every day.

    An end that is not after the begin is on the next day; `24:00` is the end of the day itself.
    """

    begin: str
    end: str
    days: tuple[str, ...] = ()

    @property
    def lasts_s(self) -> float:
        """How long each time is."""
        return (seconds_of(self.end) - seconds_of(self.begin)) % DAY_S or DAY_S

    def begins_s(self) -> Iterable[float]:
        """When it begins, in seconds of the week, which begins on Monday at 00:00."""
        return (DAY_S * DAYS.index(day) + seconds_of(self.begin) for day in self.days or DAYS)


@dataclass(frozen=True, slots=True)
class Quiet:
    """It is quiet: until when, in Unix seconds (None: always), and in words."""

    until: float | None
    words: str


def seconds_of(time: str) -> float:
    """Seconds of the day of `05:30`; the shape was checked."""
    hours, minutes = time.split(":")
    return 3600.0 * int(hours) + 60.0 * int(minutes)


def quiet(spans: Iterable[QuietSpan], wall_s: float, utc_offset_s: float) -> Quiet | None:
    """Whether it is quiet now, and until when; spans that meet or overlap are one. None when it is not.

    Local time is told by the offset of now: where clocks are set back or forward before the end, the end moves with them, and the
    next look tells it right.

    Units:   `wall_s` in Unix seconds, `utc_offset_s` what local time is ahead of UTC.
    """
    known = [(begins_s, span.lasts_s) for span in spans for begins_s in span.begins_s()]
    now_s = (wall_s + utc_offset_s + _MONDAY_S) % WEEK_S
    lasts_s = 0.0
    while (more_s := _lasts_on_s(known, now_s + lasts_s)) > 0:
        lasts_s += more_s
        if lasts_s >= WEEK_S:
            return Quiet(None, "quiet hours at all times")
    if not lasts_s:
        return None
    end_s = (now_s + lasts_s) % WEEK_S
    minute = round(end_s % DAY_S / 60)
    day = f"{DAYS[int(end_s // DAY_S)]} " if lasts_s > DAY_S else ""
    return Quiet(wall_s + lasts_s, f"quiet hours until {day}{minute // 60:02}:{minute % 60:02}")


def _lasts_on_s(known: Iterable[tuple[float, float]], at_s: float) -> float:
    """For how long it stays quiet from that second of the week on, 0 when it is not quiet then."""
    return max((lasts_s - (at_s - begins_s) % WEEK_S for begins_s, lasts_s in known), default=0.0)

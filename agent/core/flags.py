# SPDX-License-Identifier: GPL-3.0-or-later
"""What a flag below /etc/pve says: why, until when, and when somebody asked again. Those of a maintenance and of a pause are written alike.

a new kernel
until 2026-01-01T12:00:00Z
again 2026-01-01T10:30:00Z
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

MOST_REASON = 200  # characters
ASKED_AGAIN = "asked for again"  # the detail of the event of a flag whose `again` is new
SHORTEST_S, LONGEST_S = 60.0, 30 * 86400.0
_TIME = re.compile(r"(until|again) ([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)", re.ASCII)
_PARTS = re.compile(r"(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s)?", re.ASCII)
_SHAPE = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag that is set. `until` in Unix seconds, None for one that stays until somebody removes it; `again` likewise, None: never."""

    reason: str = ""
    until: float | None = None
    again: float | None = None


def read_flag(text: str) -> Flag:
    """The flag with that text. A line that only looks like an end belongs to the reason: such a flag stays."""
    reason: list[str] = []
    times: dict[str, float] = {}
    for line in text.splitlines():
        time = _time(line.strip())
        if time is not None:
            times |= time
        elif line.strip():
            reason.append(line.strip())
    return Flag(" ".join(" ".join(reason).split())[:MOST_REASON], times.get("until"), times.get("again"))


def flag_text(flag: Flag) -> str:
    """The flag as a file's text."""
    reason = " ".join(flag.reason.split())[:MOST_REASON]
    times = {"until": flag.until, "again": flag.again}
    lines = [f"{word} {datetime.fromtimestamp(at, UTC).strftime(_SHAPE)}" for word, at in times.items() if at is not None]
    return "\n".join([reason, *lines, ""])


def until_words(until: float) -> str:
    """`until 2026-01-01 12:00 UTC`: everybody reads the same, whatever their time zone."""
    return f"until {datetime.fromtimestamp(until, UTC).strftime('%Y-%m-%d %H:%M UTC')}"


def flag_words(flag: Flag) -> str:
    """The reason and the end in one line."""
    end = None if flag.until is None else until_words(flag.until)
    return ", ".join(word for word in (flag.reason, end) if word)


def duration_s(text: str) -> float | None:
    """Seconds of `2h`, `90m`, `1d12h`, `1h30m`; None for anything else, and for what is no minute or over 30 days."""
    match = _PARTS.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = float(86400 * days + 3600 * hours + 60 * minutes + seconds)
    return total if SHORTEST_S <= total <= LONGEST_S else None


def _time(line: str) -> dict[str, float] | None:
    match = _TIME.fullmatch(line)
    if match is None:
        return None
    try:
        return {match[1]: datetime.strptime(match[2], _SHAPE).replace(tzinfo=UTC).timestamp()}
    except ValueError:  # the 31st of February
        return None

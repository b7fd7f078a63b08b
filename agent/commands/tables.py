# SPDX-License-Identifier: GPL-3.0-or-later
"""Text for people: aligned columns, and numbers as people read them."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence

from agent.core.cluster import GIB

GAP = "  "
MOST_NAMES = 8
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?( (GiB|%|s))?\*?|-")


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows below their header, columns as wide as their widest cell, numbers to the right.

    Shape:   every row as long as the header; the last column is not padded.
    """
    widths = [max(len(row[number]) for row in (header, *rows)) for number in range(len(header))]
    right = [bool(rows) and all(_NUMBER.fullmatch(row[number]) for row in rows) for number in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [cell.rjust(width) if is_right else cell.ljust(width) for cell, width, is_right in zip(row, widths, right, strict=True)]
        lines.append(GAP.join(cells).rstrip())
    return "\n".join(lines)


def percent(fraction: float | None) -> str:
    """`41 %`, or `-` for what is not known."""
    return "-" if fraction is None else f"{100 * fraction:.0f} %"


def gib(amount_bytes: float | None) -> str:
    """`4.0 GiB`, or `-` for what is not known."""
    return "-" if amount_bytes is None else f"{amount_bytes / GIB:.1f} GiB"


def points(gain: float | None, digits: int = 1) -> str:
    """A gain in points of imbalance, `3.1`."""
    return "-" if gain is None else f"{round(100 * gain, digits) + 0.0:.{digits}f}"  # never -0.0


def clock(wall_s: float) -> str:
    """Unix seconds as `2026-01-01 00:00:00` in the machine's time zone."""
    return dt.datetime.fromtimestamp(wall_s, dt.UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def iso(wall_s: float) -> str:
    """Unix seconds as JSON says them: `2026-01-01T00:00:00Z`."""
    return dt.datetime.fromtimestamp(wall_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def counted(number: int, what: str) -> str:
    """`1 guest`, `2 guests`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def few(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """`a, b, c`, of many only the first and how many more."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def label(type_word: str, vmid: int, name: str) -> str:
    """`vm:101 web1`."""
    return f"{'vm' if type_word == 'qemu' else 'ct'}:{vmid}{' ' + name if name else ''}"

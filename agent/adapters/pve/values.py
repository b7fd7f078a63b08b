# SPDX-License-Identifier: GPL-3.0-or-later
"""Values as PVE's JSON has them, made into what they mean, whatever is sent.

PVE leaves out what it does not know, says numbers as strings now and then, and its numbers may be broken. So every
function that reads PVE's rows takes any JSON: a row that makes no sense is left out, a number that cannot be one is None
and never zero. Only an answer that is not even a list of rows (or a table of fields) is an error, UnexpectedAnswerError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from urllib.parse import quote

Row = Mapping[str, object]
Parameter = str | int

LIMIT = 1e18  # no cluster has as many bytes, cores or seconds: beyond it a number is broken
TEXT_LENGTH = 300  # of an error's text: enough for PVE's own, and still one line of the journal


class UnexpectedAnswerError(ValueError):
    """PVE's answer has another shape than its schema says; the text is one line."""


def number(value: object) -> float | None:
    """The value as a number from 0 up, None when it is missing, no number, negative or absurd."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and 0 <= found <= LIMIT else None


def whole(value: object) -> int | None:
    """As `number`, without what is behind the point."""
    found = number(value)
    return None if found is None else int(found)


def flag(value: object) -> bool:
    """PVE's booleans: 1, "1", true."""
    return value is True or number(value) == 1


def text(value: object) -> str:
    """The value as text, "" when it is missing."""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def names(value: object) -> tuple[str, ...]:
    """The texts of a list, or the keys of a table, in their order; nothing when it is neither."""
    return tuple(name for name in map(text, value) if name) if isinstance(value, list | tuple | dict) else ()


def one_line(value: object) -> str:
    """The value as one line of printable text, not longer than TEXT_LENGTH."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in str(value)).split())
    return line if len(line) <= TEXT_LENGTH else line[: TEXT_LENGTH - 1] + "…"


def rows(answer: object, path: str) -> list[Row]:
    """The rows of an answer that is a list; what is no row in it is left out. Raises UnexpectedAnswerError."""
    if not isinstance(answer, list):
        raise UnexpectedAnswerError(f"PVE answered GET /{path} with {_kind(answer)}, not with a list")
    return [row for row in answer if isinstance(row, dict)]


def fields(answer: object, path: str) -> Row:
    """The answer that is a table of fields. Raises UnexpectedAnswerError."""
    if not isinstance(answer, dict):
        raise UnexpectedAnswerError(f"PVE answered GET /{path} with {_kind(answer)}, not with fields")
    return answer


def _kind(answer: object) -> str:
    if answer is None:
        return "nothing"
    if isinstance(answer, list | dict):
        return "a list" if isinstance(answer, list) else "fields"
    return "text" if isinstance(answer, str) else "a number"


def table(value: object) -> Row:
    """The value that is a table of fields, an empty one when it is none."""
    return value if isinstance(value, dict) else {}


def quoted(name: str) -> str:
    """The name as a part of a path."""
    return quote(name, safe="")

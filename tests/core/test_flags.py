# SPDX-License-Identifier: GPL-3.0-or-later
"""Flags: what people write into them, and what comes out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.flags import MOST_REASON, Flag, duration_s, flag_text, flag_words, read_flag, until_words

END = 1767268800.0  # 2026-01-01T12:00:00Z


def test_what_was_written_is_read_again() -> None:
    assert flag_text(Flag("a new kernel", END)) == "a new kernel\nuntil 2026-01-01T12:00:00Z\n"
    assert read_flag("a new kernel\nuntil 2026-01-01T12:00:00Z\n") == Flag("a new kernel", END)
    assert read_flag(flag_text(Flag("a new kernel"))) == Flag("a new kernel")
    again = Flag("a new kernel", END, END - 60)
    assert flag_text(again).splitlines() == ["a new kernel", "until 2026-01-01T12:00:00Z", "again 2026-01-01T11:59:00Z"]
    assert read_flag(flag_text(again)) == again


@given(st.text(), st.none() | st.integers(0, 4_000_000_000))
def test_any_reason_survives_but_for_its_white_space(reason: str, until: int | None) -> None:
    flag = read_flag(flag_text(Flag(reason, until)))
    words = " ".join(" ".join(reason.split())[:MOST_REASON].split())
    if not words.startswith(("until ", "again ")):  # who calls the reason an end gets an end
        assert flag == Flag(words, until)


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    flag = read_flag(text)
    assert "\n" not in flag.reason
    assert len(flag.reason) <= MOST_REASON


@pytest.mark.parametrize("line", ["until tomorrow", "until 2026-02-31T12:00:00Z", "until 2026-01-01", "UNTIL 2026-01-01T12:00:00Z"])
def test_what_only_looks_like_an_end_is_a_reason(line: str) -> None:
    """A flag whose end is not understood stays: nobody's node is filled again before its time."""
    assert read_flag(line) == Flag(line)


def test_the_end_may_stand_anywhere() -> None:
    assert read_flag("until 2026-01-01T12:00:00Z\nfans\n\nand disks") == Flag("fans and disks", END)
    assert read_flag("") == Flag()


def test_words() -> None:
    assert until_words(END) == "until 2026-01-01 12:00 UTC"
    assert flag_words(Flag("fans", END)) == "fans, until 2026-01-01 12:00 UTC"
    assert flag_words(Flag()) == ""


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1d12h", 129600), ("1h30m", 5400), (" 60s ", 60), ("30d", 2592000)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "2 h", "59s", "0m", "31d", "2h2h", "1m1h", "²h", "9999999d", "two hours"])
def test_what_is_no_duration(text: str) -> None:
    assert duration_s(text) is None

# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of what PVE raises, the texts that the test server plays and the classes of failures say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.core.failures import KNOWN, FailureClass, understood
from tests.pve_server.error_texts import EARLY, TASK
from tests.pve_server.raised import RAISED, WHOLE, Raised, Unclassed, unlike_in

TEXTS = [*((text, failure) for _, text, failure in EARLY), *TASK]
CLASSED = [row for row in RAISED if isinstance(row.meaning, FailureClass)]
_PLACE = re.compile(r"(?:pve|qemu)-[\w-]+ src/\S+?:\d+")


@pytest.mark.parametrize("row", CLASSED, ids=lambda row: row.place)
def test_each_place_that_has_a_class_is_played_and_understood_so(row: Raised) -> None:
    played = [text for text, _ in TEXTS if row.fragment in text and understood(text).failure is row.meaning]
    assert played, f"no text of the test server has {row.fragment!r} and is taken for {row.meaning}"


@pytest.mark.parametrize("row", [row for row in RAISED if row.meaning is Unclassed.GENERIC], ids=lambda row: row.place)
def test_what_says_nothing_decides_nothing(row: Raised) -> None:
    assert understood("migration aborted", [f"2026-11-28 15:00:00 ERROR: {row.fragment}"]).failure is FailureClass.UNKNOWN


def test_whatever_pve_raises_itself_is_known_by_its_place() -> None:
    places = {row.place for row in RAISED}
    missing = {place for row in KNOWN for place in _PLACE.findall(row.source)[:1] if place not in places}
    assert missing == set()


def test_no_place_is_there_twice_and_each_has_a_meaning() -> None:
    assert len({row.place for row in RAISED}) == len(RAISED)
    assert {row.meaning for row in RAISED} >= set(Unclassed)


def test_the_table_is_held_to_the_sources(tmp_path: Path) -> None:
    """To sources made up from it: the real ones are fetched by hand, see its docstring."""
    files: dict[str, dict[int, str]] = {}
    for row in RAISED:
        files.setdefault(row.source, {})[row.line] = f'die "{row.fragment}\\n";'
    for source, lines in files.items():
        package, _, path = source.partition(" ")
        (tmp_path / package / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / package / path).write_text("\n".join(lines.get(number, "") for number in range(1, max(lines) + 9)))
    assert unlike_in(tmp_path) == []
    package, _, path = WHOLE[0].partition(" ")
    file = tmp_path / package / path
    file.write_text(file.read_text() + '\n\n\n    die "a new way to fail\\n";\n')
    (problem,) = unlike_in(tmp_path)
    assert "a new way to fail" in problem
    file.write_text(file.read_text().replace("referenced by linked clone(s)", "linked").replace('    die "a new', 'x "a new'))
    (problem,) = unlike_in(tmp_path)
    assert problem == "qemu-server src/PVE/QemuMigrate.pm:516: 'referenced by linked clone(s)' is not there"

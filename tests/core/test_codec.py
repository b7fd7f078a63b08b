# SPDX-License-Identifier: GPL-3.0-or-later
"""The codec: all that goes out comes back the same, and what does not fit is refused with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum, StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.codec import CodecError, from_json, to_json
from agent.core.events import Event
from agent.core.journal import Level, MessageId, Record
from agent.core.json_types import Json, JsonObject
from agent.core.plan_types import Plan, Verdict
from agent.core.settings import Settings


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Rank(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True, slots=True)
class Inner:
    number: int
    name: str = "x"


@dataclass(frozen=True, slots=True)
class Everything:
    switch: bool
    whole: int
    number: float
    text: str
    colour: Colour
    rank: Rank
    inner: Inner
    maybe: Inner | None
    many: tuple[Inner, ...]
    pairs: tuple[tuple[str, Inner], ...]
    by_name: dict[str, int]
    by_vmid: Mapping[int, Inner]
    either: int | str
    loose: float | str | None
    free: Json
    details: JsonObject | None = None
    colours: tuple[Colour, ...] = ()
    made: tuple[int, ...] = field(default_factory=tuple)


def everything(**changes: Json) -> JsonObject:
    """A document that fits, but for the changes."""
    document: JsonObject = {
        "switch": True,
        "whole": 1,
        "number": 1.5,
        "text": "ä",
        "colour": "red",
        "rank": 2,
        "inner": {"number": 1, "name": "y"},
        "maybe": None,
        "many": [{"number": 1}, {"number": 2}],
        "pairs": [["a", {"number": 1}]],
        "by_name": {"a": 1},
        "by_vmid": {"101": {"number": 1}},
        "either": "x",
        "loose": None,
        "free": [None, {"a": 1.5}],
    }
    return document | changes


FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)
INNERS = st.builds(Inner, st.integers(), TEXT)
FREE: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXT, below, max_size=3),
    max_leaves=8,
)
EVERYTHING = st.builds(
    Everything,
    switch=st.booleans(),
    whole=st.integers(),
    number=FINITE,
    text=TEXT,
    colour=st.sampled_from(Colour),
    rank=st.sampled_from(Rank),
    inner=INNERS,
    maybe=st.none() | INNERS,
    many=st.lists(INNERS, max_size=3).map(tuple),
    pairs=st.lists(st.tuples(TEXT, INNERS), max_size=3).map(tuple),
    by_name=st.dictionaries(TEXT, st.integers(), max_size=3),
    by_vmid=st.dictionaries(st.integers(-(10**9), 10**9), INNERS, max_size=3),
    either=st.integers() | TEXT,
    loose=FINITE | TEXT | st.none(),
    free=FREE,
    details=st.none() | st.dictionaries(TEXT, FREE, max_size=3),
    colours=st.lists(st.sampled_from(Colour), max_size=3).map(tuple),
    made=st.lists(st.integers(), max_size=3).map(tuple),
)


@given(EVERYTHING)
def test_all_that_goes_out_comes_back_the_same(value: Everything) -> None:
    document = to_json(value)
    assert from_json(Everything, document) == value
    text = json.dumps(document, allow_nan=False)
    back = from_json(Everything, json.loads(text))
    assert back == value
    assert json.dumps(to_json(back)) == text
    assert isinstance(back.colour, Colour)
    assert isinstance(back.rank, Rank)


def test_what_stands_in_the_example_is_read() -> None:
    found = from_json(Everything, everything())
    assert found.many == (Inner(1), Inner(2))
    assert found.by_vmid == {101: Inner(1)}
    assert found.pairs == (("a", Inner(1)),)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"switch": 1}, "switch: must be true or false, not 1"),
        ({"whole": True}, "whole: must be a whole number, not true"),
        ({"whole": 1.0}, "whole: must be a whole number, not 1.0"),
        ({"whole": "1"}, 'whole: must be a whole number, not "1"'),
        ({"number": "1"}, 'number: must be a number, not "1"'),
        ({"number": False}, "number: must be a number, not false"),
        ({"number": math.nan}, "number: must be a number, not nan"),
        ({"number": -math.inf}, "number: must be a number, not -inf"),
        ({"number": 10**400}, "number: must be a number, not a huge number"),
        ({"text": None}, "text: must be a text, not null"),
        ({"text": "\ud800"}, "text: holds a character that UTF-8 cannot"),
        ({"text": 5}, "text: must be a text, not 5"),
        ({"colour": "green"}, 'colour: must be one of red, blue, not "green"'),
        ({"colour": ["red"]}, "colour: must be one of red, blue, not an array"),
        ({"rank": True}, "rank: must be one of 1, 2, not true"),
        ({"rank": 1.0}, "rank: must be one of 1, 2, not 1.0"),
        ({"inner": []}, "inner: must be an object, not an array"),
        ({"inner": {}}, "inner.number: is missing"),
        ({"inner": {"number": 1, "nmae": 2}}, "inner.nmae: is not a field of this version"),
        ({"maybe": {"number": "x" * 99}}, f'maybe.number: must be a whole number, not "{"x" * 40}..."'),
        ({"many": {}}, "many: must be an array, not an object"),
        ({"many": [{"number": 1}, {"number": None}]}, "many[1].number: must be a whole number, not null"),
        ({"pairs": [["a"]]}, "pairs[0]: must be an array of 2, not an array"),
        ({"pairs": [["a", {"number": 1}], ["b", {"number": 1, "name": 0}]]}, "pairs[1][1].name: must be a text, not 0"),
        ({"by_name": {"a": {}}}, "by_name.a: must be a whole number, not an object"),
        ({"by_vmid": {"0101": {"number": 1}}}, 'by_vmid.0101: must be a whole number, not "0101"'),
        ({"by_vmid": {"x": {"number": 1}}}, 'by_vmid.x: must be a whole number, not "x"'),
        ({"either": None}, "either: must be a whole number or a text, not null"),
        ({"either": True}, "either: must be a whole number or a text, not true"),
        ({"loose": []}, "loose: must be a number or a text or null, not an array"),
        ({"free": [0, {"a": math.inf}]}, "free[1].a: must be a number, not inf"),
        ({"details": [1]}, "details: must be an object, not an array"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(changes: JsonObject, error: str) -> None:
    with pytest.raises(CodecError) as raised:
        from_json(Everything, everything(**changes))
    assert str(raised.value) == error


def error_of(document: Json) -> CodecError | None:
    try:
        from_json(Everything, document)
    except CodecError as error:
        return error
    return None


@given(FREE)
def test_whatever_else_the_document_is_it_is_refused(document: Json) -> None:
    assert error_of(document)


@given(st.sampled_from(sorted(everything())), FREE)
def test_a_document_with_one_field_changed_is_read_or_refused_with_that_field(name: str, value: Json) -> None:
    error = error_of(everything(**{name: value}))
    assert error is None or error.path.startswith(name)


def test_a_missing_field_takes_its_default() -> None:
    found = from_json(Everything, everything())
    assert found.details is None
    assert found.colours == ()
    assert found.made == ()


def test_fields_of_a_newer_version_pass_where_that_is_asked_for() -> None:
    document = everything(newer=[1], many=[{"number": 1, "newer": {}}])
    with pytest.raises(CodecError):
        from_json(Everything, document)
    assert from_json(Everything, document, ignore_unknown=True).many == (Inner(1),)
    with pytest.raises(CodecError, match=r"^inner\.number: is missing$"):
        from_json(Everything, everything(inner={"newer": 1}), ignore_unknown=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_say_does_not_go_out(value: float) -> None:
    with pytest.raises(CodecError, match=r"^\[1\]\.a\[0\]: is .*, which JSON cannot say$"):
        to_json((1, {"a": (value,)}))


def test_text_that_utf8_cannot_hold_does_not_go_out() -> None:
    with pytest.raises(CodecError, match=r"^name: holds a character that UTF-8 cannot$"):
        to_json(Inner(1, "\udfff"))


def test_a_document_nested_without_end_is_refused() -> None:
    deep: Json = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(CodecError, match="nested too deep"):
        from_json(Everything, everything(free=deep))
    while isinstance(deep, list) and deep:  # taken apart by hand: Python frees it by recursion
        deep = deep.pop()


def test_types_that_are_not_in_the_table_are_a_bug_both_ways() -> None:
    class Plain(Enum):
        ONE = 1

    assert to_json(Plain.ONE) == 1
    with pytest.raises(TypeError):
        to_json({1, 2})
    with pytest.raises(TypeError):
        to_json({(1, 2): 3})
    with pytest.raises(TypeError):
        from_json(set, [1])


def test_the_types_of_the_core_go_out_and_come_back() -> None:
    record = Record(Level.INFO, MessageId.EVENT, "text", vmid=101)
    assert from_json(Record, to_json(record)) == record
    assert from_json(Settings, to_json(Settings())) == Settings()
    for kind in (Plan, Verdict, Event):
        with pytest.raises(CodecError, match="is missing"):
            from_json(kind, {})

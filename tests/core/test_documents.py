# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that agents share: what is written is read, what is torn or of another version is refused, and the schemas agree."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from agent.core.codec import CodecError, to_json
from agent.core.documents import (
    HISTORY_SCHEMA,
    INBOX_SCHEMA,
    LEADER_SCHEMA,
    REQUEST_SCHEMA,
    Answer,
    DocumentError,
    Facts,
    ForeignMove,
    HistoryFile,
    Home,
    InboxEvent,
    InboxFile,
    LeaderFile,
    LeaderState,
    RequestFile,
    SetAside,
    parse,
    render,
)
from agent.core.events import EventKind
from agent.core.migrations import MigrationState
from tests.core.clusters import NOW
from tests.core.records import record

SCHEMAS = Path(__file__).resolve().parents[2] / "agent/schemas"

FILES = [
    LeaderFile(LEADER_SCHEMA, "pve1", "abc", 7, LeaderState.LEADING, NOW, "1.0"),
    InboxFile(
        INBOX_SCHEMA, "pve1", "abc", "boot", 9, NOW,
        (InboxEvent(8, NOW, EventKind.GUEST_STARTED, 101, "pve2"), InboxEvent(9, NOW, EventKind.REQUEST, request="r1", force=True)),
        "kernel upgrade", Facts("1.0"),
    ),
    HistoryFile(
        HISTORY_SCHEMA, NOW, tuple(record(101 + i, state) for i, state in enumerate(MigrationState)), (Home(101, "pve1", "pve2", NOW),),
        (SetAside(102, NOW, 2, "no space"),), (Answer("r1", NOW, "done", final=True),),
        foreign_moves=(ForeignMove(103, "pve3", NOW),), ha_places=((101, "pve1"), (103, "pve3")),
    ),
    RequestFile(REQUEST_SCHEMA, "balance", True, "root"),
]  # fmt: skip
NAMES = {LeaderFile: "leader-1", InboxFile: "inbox-1", HistoryFile: "history-1", RequestFile: "request-1"}
File = LeaderFile | InboxFile | HistoryFile | RequestFile


@pytest.mark.parametrize("value", FILES, ids=lambda value: type(value).__name__)
def test_text_is_json_with_sorted_keys_and_no_spaces(value: File) -> None:
    for _ in range(2):  # again from what is kept of its entries
        assert render(value) == json.dumps(to_json(value), sort_keys=True, separators=(",", ":")) + "\n"


def test_number_that_json_cannot_say_is_refused_with_its_place() -> None:
    history = replace(FILES[2], homes=(Home(101, "pve1", "pve2", NOW), Home(102, "pve1", "pve2", float("nan"))))
    with pytest.raises(CodecError, match=r"^homes\[1\]\.since: is nan"):
        render(history)


@pytest.mark.parametrize("value", FILES, ids=lambda value: type(value).__name__)
def test_what_is_written_is_read(value: File) -> None:
    assert parse(type(value), render(value)) == value


@pytest.mark.parametrize("value", FILES, ids=lambda value: type(value).__name__)
def test_the_schema_says_the_same(value: File) -> None:
    schema = json.loads((SCHEMAS / f"{NAMES[type(value)]}.json").read_text())
    document = json.loads(render(value))
    jsonschema.Draft202012Validator(schema).validate(document)
    for key in document:
        less = {name: entry for name, entry in document.items() if name != key}
        if not jsonschema.Draft202012Validator(schema).is_valid(less):
            continue
        assert parse(type(value), json.dumps(less)), f"{key} may be left out"
    assert not jsonschema.Draft202012Validator(schema).is_valid(document | {"more": 1})


@pytest.mark.parametrize("value", FILES, ids=lambda value: type(value).__name__)
def test_a_torn_file_is_refused_wherever_it_was_cut(value: File) -> None:
    text = render(value)
    for length in range(0, len(text) - 1, max(1, len(text) // 60)):
        with pytest.raises(DocumentError):
            parse(type(value), text[:length])


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "7", '"text"', "{}", '{"schema": "proxlb-agent/leader/2"}', '{"schema": 1}',
        '{"schema": "proxlb-agent/leader/1"}', '{"schema": "proxlb-agent/leader/1", "epoch": NaN}', "\0" * 100, "\ud800",
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(DocumentError) as refused:
        parse(LeaderFile, text)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(("field", "value"), [("epoch", "7"), ("epoch", 7.5), ("epoch", None), ("state", "paused"), ("node", 1)])
def test_a_field_that_is_wrong_is_named(field: str, value: object) -> None:
    document = json.loads(render(FILES[0])) | {field: value}
    with pytest.raises(DocumentError, match=field):
        parse(LeaderFile, json.dumps(document))


@pytest.mark.parametrize("value", FILES, ids=lambda value: type(value).__name__)
def test_what_a_later_version_adds_is_passed_over(value: File) -> None:
    """In the middle of an upgrade agents of two versions read each other's files; later versions only add."""

    def with_more(document: object) -> object:
        if isinstance(document, dict):
            return {"of_a_later_version": {"x": [1]}} | {name: with_more(inner) for name, inner in document.items()}
        return [with_more(inner) for inner in document] if isinstance(document, list) else document

    assert parse(type(value), json.dumps(with_more(json.loads(render(value))))) == value


def test_equal_values_give_equal_bytes_and_one_line() -> None:
    for value in FILES:
        assert render(value) == render(replace(value))
        assert render(value).count("\n") == 1
        assert list(json.loads(render(value))) == sorted(json.loads(render(value)))


def test_a_file_that_is_nested_without_end_is_refused() -> None:
    with pytest.raises(DocumentError):
        parse(type(FILES[0]), "[" * 100_000)

# SPDX-License-Identifier: GPL-3.0-or-later
"""YAML files: plain values without surprises, and one line with the place for everything else."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.yaml_files import MAX_BYTES, YamlFile, parse, read
from agent.core.json_types import Json
from agent.core.settings import Mode, Settings, as_document
from agent.core.settings_check import check
from agent.ports import PermanentError


def error_of(text: str) -> str:
    with pytest.raises(PermanentError) as raised:
        parse(text, "f.yaml")
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing but a remark\n", None),
        ("---\n", None),
        ("\ufeffa: 1", {"a": 1}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("mode: off\n", {"mode": "off"}),
        ("[yes, no, on, Off, y, n]", ["yes", "no", "on", "Off", "y", "n"]),
        ("[true, False, TRUE]", [True, False, True]),
        ("[null, ~, Null]", [None, None, None]),
        ("a:\nb:\n", {"a": None, "b": None}),
        ("[0100, 0o17, 0x1F, +5, -7, 1_000]", [100, 15, 31, 5, -7, "1_000"]),
        ("[1.5, -.5, 2., 1e3, 1E-2]", [1.5, -0.5, 2.0, 1000.0, 0.01]),
        ("[.inf, -.inf, .nan]", [".inf", "-.inf", ".nan"]),
        ("[01:00, 2026-01-01, 200-299, '5', \"true\", 1.2.3]", ["01:00", "2026-01-01", "200-299", "5", "true", "1.2.3"]),
        ("101: x\ntrue: y\n~: z\n", {"101": "x", "true": "y", "~": "z"}),
        ("a: &x {b: 1}\nc: *x\n", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: !!str 5\nb: !!int 6\n", {"a": "5", "b": 6}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        ("ä: ö", {"ä": "ö"}),
    ],
)
def test_words_mean_what_a_reader_thinks_they_mean(text: str, value: Json) -> None:
    found = parse(text, "f.yaml")
    assert found == value
    assert repr(found) == repr(value)  # 1 and true and 1.0 are equal


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: 1\nb: 2\na: 3\n", 'line 3, column 1: the key "a" stands in line 1 already'),
        ("x:\n  'a': 1\n  a: 3\n", 'line 3, column 3: the key "a" stands in line 2 already'),
        ("a: [1", "line 1, column 6: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: *x", "line 1, column 4: found undefined alias 'x'"),
        ("a: 1\n---\nb: 2", "line 2, column 1: expected a single document in the stream, but found another document"),
        ("a: &x [*x]", "line 1, column 4: an alias stands within what it names"),
        ("a: !!python/name:os.system", "line 1, column 4: the tag !!python/name:os.system is not allowed"),
        ("a: !secret x", "line 1, column 4: the tag !secret is not allowed"),
        ("a: !!int x", "line 1, column 4: the tag !!int is not allowed"),
        ("a: !!set {x}", "line 1, column 4: the tag !!set is not allowed"),
        ("x: &x {a: 1}\n<<: *x", "line 2, column 1: only a text can be a key here"),
        ("? [a]\n: b", "line 1, column 3: only a text can be a key here"),
        ("a: 1e999", "line 1, column 4: a number too large"),
        ("a: " + "9" * 5000, "line 1, column 4: a number of too many digits"),
        ("a: b\nc: \x01", "line 2: a character that YAML does not allow"),
        ("[" * 5000, "nested too deep"),
    ],
)
def test_what_is_refused_is_named_with_line_and_column_on_one_line(text: str, error: str) -> None:
    assert error_of(text) == f"f.yaml: {error}"


def test_a_tab_gets_the_hint_that_helps() -> None:
    with pytest.raises(PermanentError) as raised:
        parse("a:\n\tb: 1", "f.yaml")
    assert str(raised.value).startswith("f.yaml: line 2, column 1: ")
    assert "tabs" in raised.value.hint


def test_aliases_do_not_make_a_small_file_large() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert error_of("\n".join(lines)) == "f.yaml: line 6, column 5: aliases make the file too large"


def test_an_absent_file_is_an_error_or_nothing_as_asked(tmp_path: Path) -> None:
    path = str(tmp_path / "absent.yaml")
    assert read(path, missing_ok=True) is None
    with pytest.raises(PermanentError) as raised:
        read(path)
    assert str(raised.value) == f"{path}: there is no such file"


def test_a_file_is_read_and_its_errors_name_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("mode: off\n")
    assert read(str(path)) == {"mode": "off"}
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(PermanentError, match=r"config\.yaml: line 2, column 1: the key"):
        read(str(path))
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(PermanentError, match=r"config\.yaml: line 2: not UTF-8$"):
        read(str(path))
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read(str(path)) == {"a": 1}


def test_a_folder_and_a_path_through_a_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(PermanentError, match="cannot be read"):
            read(str(path))


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(PermanentError, match="larger than 1 MiB"):
        read(str(path))
    path.write_text("#" * MAX_BYTES)
    assert read(str(path)) is None


def test_an_endless_file_is_refused_too() -> None:
    with pytest.raises(PermanentError, match="larger than 1 MiB"):
        read("/dev/zero")


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write() -> None:
        with path.open("w") as pipe:
            for part in ("mode: ", "off\n", "nodes: {}\n"):
                pipe.write(part)
                pipe.flush()

    writer = threading.Thread(target=write)
    writer.start()
    assert read(str(path)) == {"mode": "off", "nodes": {}}
    writer.join()


# PyYAML writes by YAML 1.1, which takes 1e3 and 0o7 for words, and so writes them without quotes.
WORDS = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=6).filter(
    lambda word: re.fullmatch("[-+.0-9]+[eE][-+0-9]+|0o[0-7]+", word) is None
) | st.sampled_from(["off", "yes", "1", "0x1", "010", "1_0", "1.5", "~", "null", "", "2026-01-01", "01:00"])
VALUES: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(WORDS, below, max_size=3),
    max_leaves=10,
)


@given(VALUES, st.booleans())
def test_what_pyyaml_writes_is_read_the_same(value: Json, flow: bool) -> None:
    assert parse(yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True), "f.yaml") == value


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_on_one_line(text: str) -> None:
    try:
        parse(text, "f.yaml")
    except PermanentError as error:
        line = str(error)
    else:
        line = ""
    assert line.isprintable()


def test_settings_survive_being_written_as_yaml() -> None:
    settings = check({"mode": "off", "rules": {"tags": "off"}, "guests": {"ignore": [101, "200-299"]}})
    assert isinstance(settings, Settings)
    assert settings.mode is Mode.OFF
    assert check(parse(yaml.safe_dump(as_document(settings)), "f.yaml")) == settings


def test_a_file_that_is_read_again_is_parsed_when_its_text_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    file = YamlFile(str(path), missing_ok=True)
    assert file.read() is None
    path.write_text("a: [1]\n")
    first = file.read()
    assert first == {"a": [1]} and file.read() is first
    path.write_text("a: [2]\n")
    assert file.read() == {"a": [2]}
    path.write_text("a: [\n")
    for _ in range(2):
        with pytest.raises(PermanentError, match="line"):
            file.read()
    path.unlink()
    assert file.read() is None

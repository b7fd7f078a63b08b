# SPDX-License-Identifier: GPL-3.0-or-later
"""YAML files as plain JSON values, or one line that says what is wrong, and where.

YAML 1.2's core schema: only true and false are switches, so `off`, `yes` and `no` are words and 0100 is a hundred. Keys
are always texts. What hides mistakes or costs without bound is refused: a key twice, tags, merge keys, an alias within
itself, a file that is large or that aliases make large.
"""

from __future__ import annotations

import math
import os
import re
import stat

import yaml

from agent.core.json_types import Json, JsonObject
from agent.ports import PermanentError, TemporaryError

MAX_BYTES = 1 << 20  # ten times what pmxcfs should hold in one file; the largest scenario of the simulation is far below
MAX_VALUES = MAX_BYTES  # a value takes a byte at least, so only aliases make more


def read(path: str, *, missing_ok: bool = False) -> Json:
    """Return what the file holds; None for an empty one, and for one that is not there if `missing_ok`.

    Raises:  PermanentError with path, line and column for a file that is not YAML, unreadable, or too large; TemporaryError
             when the filesystem fails.
    """
    text = _text(path, missing_ok=missing_ok)
    return None if text is None else parse(text, path)


class YamlFile:
    """A file that is read again and again. It is parsed when its text has changed: until then the same value is given."""

    def __init__(self, path: str, *, missing_ok: bool = False) -> None:
        self.path = path
        self._missing_ok = missing_ok
        self._parsed: tuple[str, Json] | None = None

    def read(self) -> Json:
        """As the function `read`."""
        text = _text(self.path, missing_ok=self._missing_ok)
        if text is None:
            return None
        if self._parsed is None or self._parsed[0] != text:
            self._parsed = (text, parse(text, self.path))
        return self._parsed[1]


def _text(path: str, *, missing_ok: bool) -> str | None:
    try:
        content = _content(path)
    except FileNotFoundError:
        if missing_ok:
            return None
        raise PermanentError(f"{path}: there is no such file") from None
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise PermanentError(f"{path}: cannot be read: {error.strerror}", "check the path and its permissions") from None
    except OSError as error:
        raise TemporaryError(f"{path}: cannot be read now: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PermanentError(f"{path}: line {line}: not UTF-8", "save the file with UTF-8 encoding") from None


def parse(text: str, name: str) -> Json:
    """Return what the text holds; None for an empty one. `name` is what errors call it.

    Raises:  PermanentError with name, line and column.
    """
    if len(text) > MAX_BYTES:
        raise PermanentError(f"{name}: larger than {MAX_BYTES >> 20} MiB", "is this the right file?")
    if (strange := yaml.reader.Reader.NON_PRINTABLE.search(text)) is not None:  # PyYAML refuses it, too, without saying the line
        raise _error(name, text.count("\n", 0, strange.start()), None, "a character that YAML does not allow")
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        return None if root is None else _Builder(name).build(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(filter(None, [error.context, error.problem]))
        raise _error(name, None if mark is None else mark.line, None if mark is None else mark.column, problem) from None
    except RecursionError:
        raise PermanentError(f"{name}: nested too deep", "is this the right file?") from None
    finally:
        loader.dispose()


def _content(path: str) -> bytes:
    """At most one byte more than allowed; of a regular file in a single read, so that it is one version of it."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.read(handle, MAX_BYTES + 1)
        if not stat.S_ISREG(os.fstat(handle).st_mode):  # a pipe gives what it has, not what was asked for
            while len(content) <= MAX_BYTES and (more := os.read(handle, MAX_BYTES)):
                content += more
        return content
    finally:
        os.close(handle)


def _error(name: str, line: int | None, column: int | None, problem: str) -> PermanentError:
    place = "" if line is None else f"line {line + 1}" + ("" if column is None else f", column {column + 1}") + ": "
    hint = "indent with spaces, not with tabs" if r"'\t'" in problem else "correct the file"
    return PermanentError(f"{name}: {place}{' '.join(problem.split())}", hint)


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the core schema's idea of what a bare word is."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  PyYAML's own way; none of YAML 1.1's


_TAG = "tag:yaml.org,2002:"
_NULL = re.compile("~|null|Null|NULL|")
_BOOL = re.compile("true|True|TRUE|false|False|FALSE")
_INT = re.compile("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_FORMS = {_TAG + "null": _NULL, _TAG + "bool": _BOOL, _TAG + "int": _INT, _TAG + "float": _FLOAT}
for _tag, _form in _FORMS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_form.pattern})\Z"), None)


class _Builder:
    """Values from PyYAML's nodes, each node once however many aliases it has."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._built: dict[int, tuple[Json, int]] = {}  # by the node's id: value, and how many values it is with all aliases
        self._open: set[int] = set()

    def build(self, node: yaml.Node) -> Json:
        """The value of the node."""
        return self._sized(node)[0]

    def _sized(self, node: yaml.Node) -> tuple[Json, int]:
        if (known := self._built.get(id(node))) is not None:
            return known
        if id(node) in self._open:
            raise self._refuse(node, "an alias stands within what it names")
        self._open.add(id(node))
        made = self._make(node)
        self._open.discard(id(node))
        if made[1] > MAX_VALUES:
            raise self._refuse(node, "aliases make the file too large")
        self._built[id(node)] = made
        return made

    def _make(self, node: yaml.Node) -> tuple[Json, int]:
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            entries = [self._sized(entry) for entry in node.value]
            return [value for value, _ in entries], 1 + sum(size for _, size in entries)
        if isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "str":
            return str(node.value), 1
        if isinstance(node, yaml.ScalarNode) and node.tag in _FORMS and _FORMS[node.tag].fullmatch(node.value):
            return self._scalar(node), 1
        raise self._refuse(node, f"the tag {node.tag.replace(_TAG, '!!')} is not allowed")

    def _mapping(self, node: yaml.MappingNode) -> tuple[Json, int]:
        found: JsonObject = {}
        lines: dict[str, int] = {}
        size = 1
        for key, entry in node.value:
            if not isinstance(key, yaml.ScalarNode) or (key.value == "<<" and key.style is None):
                raise self._refuse(key, "only a text can be a key here")
            if key.value in found:
                raise self._refuse(key, f'the key "{key.value[:60]}" stands in line {lines[key.value]} already')
            value, below = self._sized(entry)
            found[key.value] = value
            lines[key.value] = key.start_mark.line + 1
            size += below
        return found, size

    def _scalar(self, node: yaml.ScalarNode) -> Json:
        text: str = node.value
        match node.tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int":
                digits = text.lstrip("+-")
                if len(digits) > 40:  # Python itself refuses thousands, and nothing here has so many
                    raise self._refuse(node, "a number of too many digits")
                return int(text, 0) if digits[:2] in ("0o", "0x") else int(text)
            case _:
                number = float(text)
                if not math.isfinite(number):
                    raise self._refuse(node, "a number too large")
                return number

    def _refuse(self, node: yaml.Node, problem: str) -> PermanentError:
        mark = node.start_mark
        return _error(self._name, mark.line, mark.column, problem)

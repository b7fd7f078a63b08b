# SPDX-License-Identifier: GPL-3.0-or-later
"""The check of documents against the table of settings.

Nothing is guessed and nothing is ignored: a document with a problem gives no settings, and all its problems at once,
each in one line that says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, cast

from agent.core.calendar_events import DAYS
from agent.core.json_types import Json, JsonObject
from agent.core.quiet_hours import QuietSpan, seconds_of
from agent.core.setting_specs import PATTERNS, File, Kind, Spec, home_of
from agent.core.settings import (
    DEFAULTS,
    FIELDS,
    POOL_SPECS,
    VMID_MAX,
    VMID_MIN,
    Measure,
    PoolRule,
    PoolSettings,
    Settings,
    parts_of,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a document, in one line, and in which file.

    Shape:   `path` is dotted, with [n] for the entries of lists, and empty when it is the document as a whole.
    """

    path: str
    text: str
    file: File

    @property
    def line(self) -> str:
        """Path and text, `mode: must be one of ...`."""
        return f"{self.path}: {self.text}" if self.path else self.text


def check(document: Json, file: File = File.ONE) -> Settings | tuple[Problem, ...]:
    """Return the settings that a document states over the defaults, or every problem it has.

    None, an empty file, is the defaults; so is a section without content.

    Shape:   `file` says which sections may stand in it; ONE stands for both files and may hold all.
    Raises:  nothing.
    """
    return _combine([(file, document)])


def combine(node_document: Json, cluster_document: Json) -> Settings | tuple[Problem, ...]:
    """Return the settings that this node's file and the cluster's file state together, or every problem of both."""
    return _combine([(File.NODE, node_document), (File.CLUSTER, cluster_document)])


def _combine(documents: list[tuple[File, Json]]) -> Settings | tuple[Problem, ...]:
    values: dict[str, _Value] = {}
    problems: list[Problem] = []
    for file, document in documents:
        _Reader(file, values, problems).read_section(document, "")
    problems += _contradictions(values, documents[-1][0])
    return tuple(problems) if problems else cast(Settings, _filled(Settings(), "", values))


def _contradictions(values: Mapping[str, _Value], file: File) -> Iterator[Problem]:
    """What only several settings together can get wrong. None of it can come from a node's file."""

    def number(path: str) -> float:
        return cast(float, values.get(path, DEFAULTS[path]))

    first, last = number("triggers.settle_s"), number("triggers.settle_max_s")
    if first > last:
        yield Problem("triggers.settle_max_s", f"{last:.15g} is less than triggers.settle_s, {first:.15g}", file)
    for name in ("cpu", "memory"):
        percent, measure = number(f"balance.{name}.threshold_percent"), f"balance.{name}.measure"
        if percent > 100 and values.get(measure, DEFAULTS[measure]) != Measure.ASSIGNED:
            text = f"{percent:.15g} percent is reached by what is assigned alone; at most 100, or set measure: assigned"
            yield Problem(f"balance.{name}.threshold_percent", text, file)
    if number("balance.cpu.weight") == number("balance.memory.weight") == number("balance.pressure.weight") == 0:
        yield Problem("balance.memory.weight", "cpu, memory and pressure all have no weight; for no load balancing set mode: rules", file)


_Lists = tuple[int | str, ...] | tuple[PoolSettings, ...] | tuple[tuple[str, str], ...] | tuple[QuietSpan, ...]
_Value = bool | int | float | str | None | _Lists
_SPAN_KEYS = dict.fromkeys(("days", "from", "to"))  # in this order where they are named


class _Reader:
    """One document being read: adds what is right to `values` by dotted path, what is wrong to `problems`."""

    def __init__(self, file: File, values: dict[str, _Value], problems: list[Problem]) -> None:
        self._file = file
        self._values = values
        self._problems = problems

    def read_section(self, document: Json, path: str) -> None:
        if document is None:
            return
        if not isinstance(document, dict):
            self._say(path, f"must be a mapping of settings, not {_shown(document)}")
            return
        for key, value in document.items():
            below = f"{path}.{key}" if path else key
            spec = FIELDS.get(below)
            if below not in FIELDS or "." in key:
                self._say(f"{path}.{_short(key)}" if path else _short(key), _unknown(path, key))
            elif not path and (home := home_of(key)) is not self._file and self._file is not File.ONE:
                self._say(below, f"belongs in {home.value}, not in {self._file.value}")
            elif spec is None:
                self.read_section(value, below)
            else:
                self._read_value(spec, value, below)

    def _say(self, path: str, text: str) -> None:
        self._problems.append(Problem(path, text, self._file))

    def _read_value(self, spec: Spec, value: Json, path: str) -> None:
        if value is None and spec.optional:
            self._values[path] = None
        elif value is None and spec.kind in (Kind.POOLS, Kind.STORAGES, Kind.SPANS):
            pass  # a section without content
        elif value is None:
            self._say(path, f"has no value; must be {spec.allowed}, or leave the line out")
        elif spec.kind in _LISTS:
            self._read_list(spec, value, path)
        elif spec.kind is Kind.POOLS:
            self._read_pools(spec, value, path)
        elif spec.kind is Kind.STORAGES:
            self._read_storages(spec, value, path)
        elif spec.kind is Kind.SPANS:
            self._values[path] = self._read_spans(spec, value, path)
        else:
            if value is False and "off" in spec.choices:
                value = "off"  # YAML 1.1, and tools that speak it, take a bare off for false
            why_not = _why_not(spec, value)
            if why_not is None:
                self._values[path] = _plain(spec, value)
            else:
                self._say(path, why_not)

    def _read_list(self, spec: Spec, value: Json, path: str) -> None:
        if not isinstance(value, list):
            hint = "" if isinstance(value, dict) else f"; for a single one write [{_short(value)}]"
            self._say(path, f"must be {spec.kind}, not {_shown(value)}{hint}")
            return
        if spec.kind is Kind.HOSTS and not value:
            self._say(path, "must name at least one host")
        entries: list[int | str] = []
        for index, entry in enumerate(value):
            why_not = _LISTS[spec.kind](entry)
            if why_not is not None:
                self._say(f"{path}[{index}]", why_not)
            elif isinstance(entry, int | str):
                entries.append(entry)
        self._values[path] = tuple(entries)

    def _read_pools(self, spec: Spec, value: Json, path: str) -> None:
        """A mapping of names that nobody knows beforehand to sections that are all alike."""
        if not isinstance(value, dict):
            self._say(path, f"must be {spec.kind}, not {_shown(value)}")
            return
        pools: list[PoolSettings] = []
        for name, document in value.items():
            place = f"{path}.{_short(name)}"
            if not re.fullmatch(PATTERNS[Kind.POOLS], name):
                self._say(place, "is not the name of a pool (letters, digits, -, _, ., and / between a pool and one within it)")
            elif document is not None and not isinstance(document, dict):
                self._say(place, f"must be a mapping of settings, not {_shown(document)}")
            else:
                pools.append(self._read_pool(name, document or {}, place))
        self._values[path] = tuple(pools)

    def _read_storages(self, spec: Spec, value: Json, path: str) -> None:
        if not isinstance(value, dict):
            self._say(path, f"must be {spec.kind}, not {_shown(value)}")
            return
        for storage, taker in value.items():
            if not re.fullmatch(PATTERNS[Kind.STORAGES], storage) or _match(Kind.STORAGES, taker) is None:
                self._say(f"{path}.{_short(storage)}", f"must map a storage's name to a storage's name, not to {_shown(taker)}")
        self._values[path] = tuple((storage, taker) for storage, taker in value.items() if isinstance(taker, str))

    def _read_spans(self, spec: Spec, value: Json, path: str) -> tuple[QuietSpan, ...]:
        if not isinstance(value, list):
            hint = "; begin each with a dash" if isinstance(value, dict) else ""
            self._say(path, f"must be {spec.kind}, not {_shown(value)}{hint}")
            return ()
        return tuple(span for index, entry in enumerate(value) if (span := self._read_span(entry, f"{path}[{index}]")) is not None)

    def _read_span(self, entry: Json, place: str) -> QuietSpan | None:
        if not isinstance(entry, dict):
            self._say(place, f'must be as {{days: [sat, sun], from: "01:00", to: "05:00"}}, not {_shown(entry)}')
            return None
        before = len(self._problems)
        for key in entry.keys() - _SPAN_KEYS:
            self._say(f"{place}.{_short(key)}", _unknown_below(place, key, _SPAN_KEYS))
        for key in ("from", "to"):
            if key not in entry:
                self._say(f"{place}.{key}", 'is missing; must be a time of the day as "01:00"')
            elif (why_not := _why_no_time(entry[key], may_be_midnight=key == "to")) is not None:
                self._say(f"{place}.{key}", why_not)
        days = entry.get("days")
        if days is not None and not isinstance(days, list):
            self._say(f"{place}.days", f"must be a list of days, not {_shown(days)}; for a single one write [{_short(days)}]")
            days = None
        for index, day in enumerate(days or ()):
            if (why_not := _why_no_day(day)) is not None:
                self._say(f"{place}.days[{index}]", why_not)
        if len(self._problems) == before and seconds_of(cast(str, entry["from"])) == seconds_of(cast(str, entry["to"])):
            self._say(f"{place}.to", 'is the same as from; for whole days write from: "00:00", to: "24:00"')
        if len(self._problems) > before:
            return None
        return QuietSpan(cast(str, entry["from"]), cast(str, entry["to"]), tuple(cast(list[str], days or [])))

    def _read_pool(self, name: str, document: JsonObject, place: str) -> PoolSettings:
        values: dict[str, _Value] = {}
        reader = _Reader(self._file, values, self._problems)
        for key, value in document.items():
            if key in POOL_SPECS:
                reader._read_value(POOL_SPECS[key], value, f"{place}.{key}")
            else:
                self._say(f"{place}.{_short(key)}", _unknown_below(place, key, POOL_SPECS))
        given = {path.removeprefix(place + "."): value for path, value in values.items()}
        rule = cast(str | None, given.get("rule"))
        return PoolSettings(
            name,
            None if rule is None else PoolRule(rule),
            cast(tuple[str, ...], given.get("pin", ())),
            cast(bool, given.get("strict", True)),
        )


def _why_not(spec: Spec, value: Json) -> str | None:
    """Why the value is not allowed for a setting that is no list, None when it is."""
    must = f"must be {spec.allowed}"
    match spec.kind:
        case Kind.SWITCH:
            good = isinstance(value, bool)
        case Kind.WHOLE | Kind.NUMBER:
            if isinstance(value, str) and _is_number(value):
                return f"{must}; {_shown(value)} is a text, write it without quotes"
            if isinstance(value, bool) or not isinstance(value, int | float):
                return f"{must}, not {_shown(value)}"
            good = spec.low <= value <= spec.high and not (spec.kind is Kind.WHOLE and isinstance(value, float))
        case Kind.CHOICE:
            good = isinstance(value, str) and value in spec.choices
        case _:
            good = _match(spec.kind, value) is not None
    if good:
        return None
    near = _like(value.lower(), spec.choices, 1) if isinstance(value, str) else []
    return f"{must}, not {_shown(value)}" + (f"; did you mean {near[0]}?" if near else "")


def _plain(spec: Spec, value: Json) -> _Value:
    """The value as it stands in the dataclass, but for enums."""
    if spec.kind is Kind.NUMBER and isinstance(value, int):
        return float(value)
    return cast(_Value, value)


def _match(kind: Kind, value: Json) -> re.Match[str] | None:
    return re.fullmatch(PATTERNS[kind], value) if isinstance(value, str) else None


def _why_no_host(value: Json) -> str | None:
    if _match(Kind.HOSTS, value):
        return None
    hint = "; write the host alone, without https:// and path" if isinstance(value, str) and "/" in value else ""
    return f"must be a host's name or address, with :port if need be, not {_shown(value)}{hint}"


def _why_no_node(value: Json) -> str | None:
    if _match(Kind.NODES, value):
        return None
    if isinstance(value, int | float):
        return f"must be a node's name, not {_shown(value)}; if that is one, write it in quotes"
    return f"must be a node's name (letters, digits, -), not {_shown(value)}"


def _why_no_guests(value: Json) -> str | None:
    if isinstance(value, str):
        if (match := _match(Kind.GUESTS, value)) is not None:
            first, last = match.groups()
            return None if int(first) <= int(last) else f'the range {value} is upside down; write "{last}-{first}"'
        if _is_number(value):
            return f"must be a VMID; {_shown(value)} is a text, write it without quotes"
    elif isinstance(value, int) and not isinstance(value, bool) and VMID_MIN <= value <= VMID_MAX:
        return None
    return f'must be a VMID from {VMID_MIN} to {VMID_MAX} or a range of them as "200-299", not {_shown(value)}'


def _why_no_time(value: Json, *, may_be_midnight: bool) -> str | None:
    if _match(Kind.SPANS, value) or (may_be_midnight and value == "24:00"):
        return None
    must = 'must be a time of the day as "01:00"' + (', at most "24:00"' if may_be_midnight else "")
    if value == "24:00":
        return f'{must}; the day begins at "00:00"'
    is_hour = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 24
    return f"{must}, not {_shown(value)}" + (f'; did you mean "{value:02}:00"?' if is_hour else "")


def _why_no_day(value: Json) -> str | None:
    if value in DAYS:
        return None
    must = f"must be one of {', '.join(DAYS)}, not {_shown(value)}"
    if not isinstance(value, str):
        return must
    word = value.strip().lower()
    near = [word[:3]] if word[:3] in DAYS else _like(word, DAYS, 1)
    return must + (f"; did you mean {near[0]}?" if near else "")


_LISTS: dict[Kind, Callable[[Json], str | None]] = {Kind.HOSTS: _why_no_host, Kind.NODES: _why_no_node, Kind.GUESTS: _why_no_guests}


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?[0-9]+(?:\.[0-9]*)?\s*", text) is not None


SHOWN_CHARS = 60  # of a wrong value, so that a problem stays one line


def _shown(value: Json) -> str:
    """A wrong value for people, short and on one line whatever it is."""
    return f'"{_short(value)}"' if isinstance(value, str) else _short(value)


def _short(value: Json) -> str:
    """As `_shown`, a text without quotes."""
    match value:
        case None:
            text = "null"
        case bool():
            text = "true" if value else "false"
        case str():
            text = value if value.isprintable() else value.encode("unicode_escape").decode("ascii")
        case int():
            text = str(value) if value.bit_length() < 256 else "a huge number"
        case float():
            text = repr(value)
        case list():
            text = "a list"
        case _:
            text = "a mapping"
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."


def _unknown_below(place: str, key: str, known: Collection[str]) -> str:
    """As `_unknown`, of an entry in a list or a mapping whose entries are all alike."""
    near = _like(key, known, 1, cutoff=0.7)
    return f"unknown, did you mean {place}.{near[0]}?" if near else f"unknown; known here: {', '.join(known)}"


_OF_PROXLB = frozenset({"proxmox_api", "proxmox_cluster", "balancing", "service", "solver"})  # all keys at the top of its file


def _unknown(path: str, key: str) -> str:
    """What to say of a key that does not exist: the nearest one that does, if any is near."""
    if "." in key:
        return "unknown; write one key a level, each followed by a colon"
    if not path and key in _OF_PROXLB:
        return "unknown; it is one of ProxLB's, what stands for it here is told in /usr/share/doc/proxlb-agent/from-proxlb.md"
    here = [name for name in FIELDS if name.rpartition(".")[0] == path]
    near = _like(key, [name.rpartition(".")[2] for name in here], 1, cutoff=0.7)
    if near:
        return f"unknown, did you mean {path + '.' if path else ''}{near[0]}?"
    elsewhere = sorted(name for name in FIELDS if name.rpartition(".")[2] == key) or _like(f"{path}.{key}", FIELDS, 1, cutoff=0.85)
    if elsewhere:
        return f"unknown, did you mean {' or '.join(elsewhere)}?"
    return "unknown; known here: " + ", ".join(name.rpartition(".")[2] for name in here)


class _Maker(Protocol):
    """A dataclass seen as what makes its instances."""

    def __call__(self, **values: object) -> object: ...


def _filled(section: object, path: str, values: Mapping[str, _Value]) -> object:
    """The section with the values that were given for it, made anew."""
    new: dict[str, object] = {}
    for name, spec, value in parts_of(section):
        if spec is None:
            new[name] = _filled(value, path + name + ".", values)
        else:
            given = values.get(path + name, value)
            new[name] = type(value)(cast(str, given)) if isinstance(value, StrEnum) else given
    return cast(_Maker, type(section))(**new)


def _like(word: str, known: Iterable[str], most: int, cutoff: float = 0.6) -> list[str]:
    """The known words that look most like this one."""
    from difflib import get_close_matches  # settings are right nearly always, and then nobody needs it

    return get_close_matches(word, list(known), most, cutoff)

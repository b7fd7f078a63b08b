# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings: one strict table of what exists, its defaults, bounds and reasons, and the check of a document against it.

The dataclasses are nested as the YAML is; a setting exists when it is a field here. `rows()` is the table, for
`check-config`, the man page and the JSON schema. Nothing is guessed and nothing is ignored: a document with a problem
gives no settings, and all its problems at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol, cast

from agent.core.json_types import Json, JsonObject

DAY_S = 86400
VMID_MIN, VMID_MAX = 100, 999_999_999  # PVE's pve-vmid


class Mode(StrEnum):
    """How much the agent does on its own."""

    OFF = "off"
    OBSERVE = "observe"
    RULES = "rules"
    FULL = "full"


class TagTrust(StrEnum):
    """Whose tags are rules."""

    ALL = "all"
    REGISTERED = "registered"
    OFF = "off"


class Measure(StrEnum):
    """What of a guest counts when nodes are compared."""

    USED = "used"
    ASSIGNED = "assigned"


class PoolRule(StrEnum):
    """What being in one pool means for guests."""

    AFFINITY = "affinity"
    ANTI_AFFINITY = "anti-affinity"


class ContainerPolicy(StrEnum):
    """When a running container may be moved, which restarts it."""

    NEVER = "never"
    MAINTENANCE = "maintenance"
    ALWAYS = "always"


class LogLevel(StrEnum):
    """The least urgent messages that are written; the names are those of `journal.Level`."""

    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"
    INFO = "info"
    DEBUG = "debug"


class Kind(StrEnum):
    """What a setting's value is, in words for people."""

    SWITCH = "true or false"
    WHOLE = "a whole number"
    NUMBER = "a number"
    CHOICE = "one word"
    PATH = "an absolute path"
    TOKEN_ID = "a token's id, as user@realm!name"  # noqa: S105  an id, no secret
    HOSTS = "a list of hosts"
    NODES = "a list of node names"
    GUESTS = "a list of VMIDs and ranges of them"
    POOLS = "a mapping of pools to their rules"


class File(StrEnum):
    """Where a setting may stand."""

    NODE = "/etc/proxlb-agent/config.yaml"
    CLUSTER = "/etc/pve/proxlb/config.yaml"
    ONE = "--config"


NODE_SECTIONS = frozenset({"paths", "api", "log"})  # what differs between nodes, or is needed before /etc/pve is there


@dataclass(frozen=True, slots=True)
class Spec:
    """What is allowed for one setting, and why it exists.

    Units:   `low` and `high` are inclusive and in `unit`.
    """

    kind: Kind
    meaning: str
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    optional: bool = False

    @property
    def allowed(self) -> str:
        """The allowed values in words, `a number from 0 to 100 percent`."""
        if self.kind is Kind.CHOICE:
            return "one of " + ", ".join(self.choices) + (", or null" if self.optional else "")
        words = str(self.kind)
        if self.kind in (Kind.WHOLE, Kind.NUMBER):
            words += f" from {self.low:.15g}" + ("" if self.high == math.inf else f" to {self.high:.15g}")
        return words + (f" {self.unit}" if self.unit else "") + (", or null" if self.optional else "")


def _of(spec: Spec) -> Mapping[str, Spec]:
    return MappingProxyType({"spec": spec})


def _number(unit: str, low: float, high: float, meaning: str) -> Mapping[str, Spec]:
    return _of(Spec(Kind.NUMBER, meaning, unit, low, high))


def _whole(unit: str, low: int, high: float, meaning: str, *, optional: bool = False) -> Mapping[str, Spec]:
    return _of(Spec(Kind.WHOLE, meaning, unit, low, high, optional=optional))


def _one_of(choices: type[StrEnum], meaning: str) -> Mapping[str, Spec]:
    return _of(Spec(Kind.CHOICE, meaning, choices=tuple(choice.value for choice in choices)))


def _is(kind: Kind, meaning: str) -> Mapping[str, Spec]:
    return _of(Spec(kind, meaning))


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """How this node's agent reaches PVE's API."""

    hosts: tuple[str, ...] = field(
        default=("localhost",), metadata=_is(Kind.HOSTS, "where PVE's API is asked, in this order; on a node its own server is the nearest")
    )
    token_id: str = field(
        default="proxlb@pve!agent",
        metadata=_is(Kind.TOKEN_ID, "the API token the agent acts as; what it may see and do is what PVE grants it"),
    )
    token_file: str = field(
        default="/etc/pve/priv/proxlb/token",
        metadata=_is(Kind.PATH, "file with the token's secret alone; below /etc/pve/priv every node has it and only root reads it"),
    )
    ca_file: str = field(
        default="/etc/pve/pve-root-ca.pem",
        metadata=_is(Kind.PATH, "certificate authority that the API's certificate is checked against; PVE makes this one itself"),
    )
    verify_tls: bool = field(
        default=True, metadata=_is(Kind.SWITCH, "check the API's certificate; without it anybody on the way can read the token")
    )
    timeout_s: float = field(
        default=30.0,
        metadata=_number(
            "s", 1, 30, "how long one request may take; at most 30, as a new leader waits lease + 30 s for requests of the last one"
        ),
    )


@dataclass(frozen=True, slots=True)
class TriggerSettings:
    """When the leader looks and decides."""

    settle_s: float = field(
        default=5.0, metadata=_number("s", 0, 300, "quiet after an event before it is answered, so that a burst is answered once")
    )
    settle_max_s: float = field(
        default=60.0,
        metadata=_number("s", 0, 3600, "longest wait after the first event of a burst, so that events that never stop are answered, too"),
    )
    reconcile_s: float = field(
        default=300.0,
        metadata=_number("s", 30, DAY_S, "time between two looks at everything that nothing triggered; the net under missed events"),
    )
    warmup_s: float = field(
        default=300.0,
        metadata=_number(
            "s",
            0,
            DAY_S,
            "no load balancing for so long after the lead or the membership changed, as loads of nodes that just started mean little",
        ),
    )
    first_observe_s: float = field(
        default=600.0,
        metadata=_number(
            "s", 0, 30 * DAY_S, "a cluster is only observed for so long after the very first install, so that the plan can be read first"
        ),
    )


MOST_ASSIGNED_PERCENT = 1000  # ten vCPUs a core: no threshold for assigned cores lies beyond


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """How one resource of the nodes counts."""

    threshold_percent: float = field(
        metadata=_number(
            "percent",
            0,
            MOST_ASSIGNED_PERCENT,
            "share of the resource from which on a node is overloaded; 0 turns it off, 100 too unless what is assigned counts",
        )
    )
    weight: float = field(
        metadata=_number("", 0, 100, "how much the resource counts against the other one when nodes are compared; 0 leaves it out")
    )
    hold_s: float = field(
        metadata=_number("s", 0, DAY_S, "how long a measured load must stay over the threshold, so that a peak moves nobody")
    )
    measure: Measure = field(
        default=Measure.USED,
        metadata=_one_of(Measure, "what guests count with: what they use, or what they may use at most; room is always judged by use"),
    )


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """When a storage is reported."""

    threshold_percent: float = field(
        default=90.0,
        metadata=_number(
            "percent", 0, 100, "used share from which on a storage is reported, once, and nobody moved; 0 and 100 turn it off"
        ),
    )


@dataclass(frozen=True, slots=True)
class PressureSettings:
    """How pressure counts: the share of the time in which something on the node waits for cpu or memory."""

    threshold_percent: float = field(
        default=0.0,
        metadata=_number("percent", 0, 100, "share of the time with something waiting from which on a node is overloaded; 0 and 100: off"),
    )
    weight: float = field(
        default=0.0,
        metadata=_number("", 0, 100, "how much pressure counts against cpu and memory when nodes are compared; 0 leaves it out"),
    )


@dataclass(frozen=True, slots=True)
class ReserveSettings:
    """Memory of each node that no plan fills: the larger of the two."""

    memory_percent: float = field(
        default=5.0, metadata=_number("percent", 0, 90, "share of a node's memory that stays free for the system and for peaks")
    )
    memory_gib: float = field(
        default=4.0, metadata=_number("GiB", 0, 65536, "memory of a node that stays free, for small nodes, where a share is too little")
    )


@dataclass(frozen=True, slots=True)
class BalanceSettings:
    """When load is balanced, how far, and the brakes."""

    cpu: MeasureSettings = MeasureSettings(threshold_percent=80.0, weight=1.0, hold_s=180.0)
    memory: MeasureSettings = MeasureSettings(threshold_percent=85.0, weight=1.0, hold_s=60.0)
    storage: StorageSettings = StorageSettings()
    pressure: PressureSettings = PressureSettings()
    spread_percent: float = field(
        default=20.0,
        metadata=_number(
            "percent", 0, 100, "points between the fullest and the emptiest node from which on load is balanced; 0: only thresholds count"
        ),
    )
    min_gain_percent: float = field(
        default=1.0,
        metadata=_number(
            "percent", 0, 100, "points of imbalance that a whole plan must take off, so that nobody moves for next to nothing"
        ),
    )
    node_reserve: ReserveSettings = ReserveSettings()
    assigned_memory_cap_percent: float = field(
        default=0.0,
        metadata=_number(
            "percent",
            0,
            MOST_ASSIGNED_PERCENT,
            "most memory that guests may have configured on a target, of its own; 0: as much as they like",
        ),
    )
    guest_cooldown_s: float = field(
        default=3600.0,
        metadata=_number(
            "s", 0, 30 * DAY_S, "a guest that moved stays for so long before load moves it again, so that nobody is sent to and fro"
        ),
    )
    max_moves_per_pass: int = field(
        default=4,
        metadata=_whole(
            "moves", 1, 1000, "moves for load that are carried out before the cluster is looked at again, as loads change on the way"
        ),
    )
    max_moves_per_hour: int = field(
        default=20, metadata=_whole("moves", 1, 10000, "moves for load in any hour, the brake when all else is wrong")
    )


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """What counts as a rule."""

    tags: TagTrust = field(
        default=TagTrust.ALL,
        metadata=_one_of(
            TagTrust,
            "whether plb_ tags of guests are rules; whoever may edit a guest may set its tags, but those that PVE's option registered-tags"
            " keeps for admins",
        ),
    )


@lru_cache(maxsize=64)
def _spans(entries: tuple[int | str, ...]) -> tuple[frozenset[int], tuple[tuple[int, int], ...]]:
    """The single VMIDs and the (first, last) ranges of a list that was checked."""
    pairs = [entry.split("-") for entry in entries if isinstance(entry, str)]
    return frozenset(entry for entry in entries if isinstance(entry, int)), tuple((int(first), int(last)) for first, last in pairs)


@dataclass(frozen=True, slots=True)
class GuestSettings:
    """Which guests may be moved."""

    containers: ContainerPolicy = field(
        default=ContainerPolicy.MAINTENANCE,
        metadata=_one_of(ContainerPolicy, "when running containers may move, as PVE can only restart them elsewhere"),
    )
    ignore: tuple[int | str, ...] = field(
        default=(),
        metadata=_is(Kind.GUESTS, 'guests that stay where they are, as VMIDs and ranges of them ("200-299"); they count as load'),
    )

    def is_ignored(self, vmid: int) -> bool:
        """True when the list keeps the guest where it is."""
        single, ranges = _spans(self.ignore)
        return vmid in single or any(first <= vmid <= last for first, last in ranges)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Which nodes take part."""

    ignore: tuple[str, ...] = field(
        default=(), metadata=_is(Kind.NODES, "nodes that are neither source nor target, as if they were not there")
    )
    maintenance: tuple[str, ...] = field(
        default=(), metadata=_is(Kind.NODES, "nodes that are emptied and kept empty; a flag does the same for a while")
    )


@dataclass(frozen=True, slots=True)
class MigrationSettings:
    """How load and rules move guests."""

    parallel_per_node: int = field(
        default=1,
        metadata=_whole("migrations", 1, 64, "migrations at a time that a node takes part in, as source or target; they share its network"),
    )
    parallel_total: int = field(
        default=2, metadata=_whole("migrations", 1, 256, "migrations at a time in the cluster; they share the switch and the storage")
    )
    bandwidth_limit_kib_s: int | None = field(
        default=None, metadata=_whole("KiB/s", 1, 2**40, "limit of one migration; null leaves PVE's own limits alone", optional=True)
    )
    timeout_s: float = field(
        default=7200.0,
        metadata=_number(
            "s", 60, 30 * DAY_S, "a migration that runs for longer is reported and no longer waited for; it is never cancelled"
        ),
    )


@dataclass(frozen=True, slots=True)
class DrainSettings:
    """How a node in maintenance is emptied."""

    parallel_per_node: int = field(
        default=2,
        metadata=_whole(
            "migrations", 1, 64, "as migration.parallel_per_node, for maintenance: somebody waits for it, so more than for load"
        ),
    )
    parallel_total: int = field(default=4, metadata=_whole("migrations", 1, 256, "as migration.parallel_total, for maintenance"))
    return_home: bool = field(
        default=True, metadata=_is(Kind.SWITCH, "bring home what left when the maintenance ends; otherwise load alone decides")
    )
    shutdown_limit_s: float = field(
        default=600,
        metadata=_number(
            "s", 30, 1200, "for so long at most a shutdown waits for the node to be emptied, where proxlb-agent-drain is enabled"
        ),
    )


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The rules of one pool of PVE's."""

    name: str
    rule: PoolRule | None = field(
        default=None,
        metadata=_of(
            Spec(
                Kind.CHOICE,
                "affinity: the pool's guests share a node; anti-affinity: each has a node of its own; null: neither",
                choices=tuple(rule.value for rule in PoolRule),
                optional=True,
            )
        ),
    )
    pin: tuple[str, ...] = field(default=(), metadata=_is(Kind.NODES, "nodes that the pool's guests are kept to; none: all"))
    strict: bool = field(
        default=True,
        metadata=_is(Kind.SWITCH, "keep to pin even when none of its nodes is available; false: any other node will do until one is"),
    )


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is written to the journal."""

    level: LogLevel = field(
        default=LogLevel.INFO, metadata=_one_of(LogLevel, "the least urgent messages that are written; info says every decision")
    )


@dataclass(frozen=True, slots=True)
class PathSettings:
    """Where things are; other values are for trying the agent out."""

    pmxcfs: str = field(default="/etc/pve", metadata=_is(Kind.PATH, "where pmxcfs, the cluster's filesystem, is mounted"))
    run: str = field(
        default="/run/proxlb-agent", metadata=_is(Kind.PATH, "this node's inbox and status; gone after a reboot, as they should be")
    )
    state: str = field(default="/var/lib/proxlb-agent", metadata=_is(Kind.PATH, "this node's decision journal and learned loads"))


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings; `Settings()` are the defaults.

    Only `check` and `combine` hold values to the table: whoever makes one by hand answers for it.
    """

    mode: Mode = field(
        default=Mode.FULL,
        metadata=_one_of(Mode, "off: nothing; observe: plans and says; rules: maintenance and rules; full: load, too"),
    )
    api: ApiSettings = ApiSettings()
    triggers: TriggerSettings = TriggerSettings()
    balance: BalanceSettings = BalanceSettings()
    rules: RuleSettings = RuleSettings()
    guests: GuestSettings = GuestSettings()
    nodes: NodeSettings = NodeSettings()
    migration: MigrationSettings = MigrationSettings()
    drain: DrainSettings = DrainSettings()
    pools: tuple[PoolSettings, ...] = field(
        default=(),
        metadata=_is(Kind.POOLS, "rules for all guests of a pool, by its name; only who may administer a pool puts guests into it"),
    )
    log: LogSettings = LogSettings()
    paths: PathSettings = PathSettings()


@dataclass(frozen=True, slots=True)
class Row:
    """One setting of the table.

    Shape:   `path` is dotted, `default` as YAML writes it, `file` where it belongs.
    """

    path: str
    spec: Spec
    default: Json
    file: File


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


def rows() -> tuple[Row, ...]:
    """The table, in the order of the YAML."""
    return _ROWS


def as_document(settings: Settings) -> JsonObject:
    """The settings as YAML or JSON would hold them, every one of them, in the order of the table.

    `check` of the result gives the same settings.
    """
    return _section_document(settings)


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
        return cast(float, values.get(path, _DEFAULTS[path]))

    first, last = number("triggers.settle_s"), number("triggers.settle_max_s")
    if first > last:
        yield Problem("triggers.settle_max_s", f"{last:.15g} is less than triggers.settle_s, {first:.15g}", file)
    for name in ("cpu", "memory"):
        percent, measure = number(f"balance.{name}.threshold_percent"), f"balance.{name}.measure"
        if percent > 100 and values.get(measure, _DEFAULTS[measure]) != Measure.ASSIGNED:
            text = f"{percent:.15g} percent is reached by what is assigned alone; at most 100, or set measure: assigned"
            yield Problem(f"balance.{name}.threshold_percent", text, file)
    if number("balance.cpu.weight") == number("balance.memory.weight") == number("balance.pressure.weight") == 0:
        yield Problem("balance.memory.weight", "cpu, memory and pressure all have no weight; for no load balancing set mode: rules", file)


_Value = bool | int | float | str | None | tuple[int | str, ...] | tuple[PoolSettings, ...]


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
            spec = _FIELDS.get(below)
            if below not in _FIELDS or "." in key:
                self._say(f"{path}.{_short(key)}" if path else _short(key), _unknown(path, key))
            elif not path and (home := _home(key)) is not self._file and self._file is not File.ONE:
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
        elif value is None and spec.kind is Kind.POOLS:
            pass  # a section without content
        elif value is None:
            self._say(path, f"has no value; must be {spec.allowed}, or leave the line out")
        elif spec.kind in _LISTS:
            self._read_list(spec, value, path)
        elif spec.kind is Kind.POOLS:
            self._read_pools(spec, value, path)
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

    def _read_pool(self, name: str, document: JsonObject, place: str) -> PoolSettings:
        values: dict[str, _Value] = {}
        reader = _Reader(self._file, values, self._problems)
        for key, value in document.items():
            if key in POOL_SPECS:
                reader._read_value(POOL_SPECS[key], value, f"{place}.{key}")
            else:
                near = get_close_matches(key, POOL_SPECS, 1, cutoff=0.7)
                said = f"did you mean {place}.{near[0]}?" if near else "known here: " + ", ".join(POOL_SPECS)
                self._say(f"{place}.{_short(key)}", f"unknown{', ' if near else '; '}{said}")
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
    near = get_close_matches(value.lower(), spec.choices, 1) if isinstance(value, str) else []
    return f"{must}, not {_shown(value)}" + (f"; did you mean {near[0]}?" if near else "")


def _plain(spec: Spec, value: Json) -> _Value:
    """The value as it stands in the dataclass, but for enums."""
    if spec.kind is Kind.NUMBER and isinstance(value, int):
        return float(value)
    return cast(_Value, value)


_PORT = "(?::[0-9]{1,5})?"
PATTERNS = {  # full matches; plain enough that JSON schema reads them the same way
    Kind.PATH: r"/[^\x00-\x1f\x7f]*",
    Kind.TOKEN_ID: r"[^\s:/]{1,64}@[A-Za-z][A-Za-z0-9._-]+![A-Za-z][A-Za-z0-9._-]+",  # PVE's user, realm and token name
    Kind.HOSTS: (
        rf"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?{_PORT}|\[[0-9A-Fa-f:.]+\]{_PORT}"
        "|[0-9A-Fa-f:]*::[0-9A-Fa-f:.]*|(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}"
    ),
    Kind.NODES: "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?",  # PVE's pve-node, a host name's length
    Kind.GUESTS: "([1-9][0-9]{2,8})-([1-9][0-9]{2,8})",
    Kind.POOLS: "[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+){0,2}",  # PVE's pve-poolid: pools nest, three deep
}


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


def _unknown(path: str, key: str) -> str:
    """What to say of a key that does not exist: the nearest one that does, if any is near."""
    if "." in key:
        return "unknown; write one key a level, each followed by a colon"
    here = [name for name in _FIELDS if name.rpartition(".")[0] == path]
    near = get_close_matches(key, [name.rpartition(".")[2] for name in here], 1, cutoff=0.7)
    if near:
        return f"unknown, did you mean {path + '.' if path else ''}{near[0]}?"
    elsewhere = sorted(name for name in _FIELDS if name.rpartition(".")[2] == key) or get_close_matches(
        f"{path}.{key}", list(_FIELDS), 1, cutoff=0.85
    )
    if elsewhere:
        return f"unknown, did you mean {' or '.join(elsewhere)}?"
    return "unknown; known here: " + ", ".join(name.rpartition(".")[2] for name in here)


def _home(section: str) -> File:
    return File.NODE if section in NODE_SECTIONS else File.CLUSTER


def _parts(section: object) -> Iterator[tuple[str, Spec | None, object]]:
    """The fields of a section: name, what is allowed (None for a section), value."""
    for item in fields(section):  # type: ignore[arg-type]
        yield item.name, cast(Spec | None, item.metadata.get("spec")), getattr(section, item.name)


def _walk(section: object, path: str) -> Iterator[tuple[str, Spec | None, object]]:
    """As `_parts`, with all that is below, by dotted path."""
    for name, spec, value in _parts(section):
        yield path + name, spec, value
        if spec is None:
            yield from _walk(value, path + name + ".")


def _section_document(section: object, leave_out: str = "") -> JsonObject:
    parts = ((name, spec, value) for name, spec, value in _parts(section) if name != leave_out)
    return {name: _as_json(value, spec) if spec else _section_document(value) for name, spec, value in parts}


def _as_json(value: object, spec: Spec) -> Json:
    if isinstance(value, StrEnum):
        return value.value
    if spec.kind is Kind.POOLS:
        return {pool.name: _section_document(pool, leave_out="name") for pool in cast(tuple[PoolSettings, ...], value)}
    if isinstance(value, tuple):
        return list(cast(tuple[Json, ...], value))
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 180, not 180.0, as people write it
    return cast(Json, value)


class _Maker(Protocol):
    """A dataclass seen as what makes its instances."""

    def __call__(self, **values: object) -> object: ...


def _filled(section: object, path: str, values: Mapping[str, _Value]) -> object:
    """The section with the values that were given for it, made anew."""
    new: dict[str, object] = {}
    for name, spec, value in _parts(section):
        if spec is None:
            new[name] = _filled(value, path + name + ".", values)
        else:
            given = values.get(path + name, value)
            new[name] = type(value)(cast(str, given)) if isinstance(value, StrEnum) else given
    return cast(_Maker, type(section))(**new)


POOL_SPECS = {name: spec for name, spec, _ in _parts(PoolSettings("")) if spec is not None}
_FIELDS = {name: spec for name, spec, _ in _walk(Settings(), "")}
_DEFAULTS = {name: value for name, spec, value in _walk(Settings(), "") if spec is not None}
_ROWS = tuple(
    Row(name, spec, _as_json(_DEFAULTS[name], spec), _home(name.partition(".")[0])) for name, spec in _FIELDS.items() if spec is not None
)

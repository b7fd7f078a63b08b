# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings: one strict table of what exists, its defaults, bounds and reasons.

The dataclasses are nested as the YAML is; a setting exists when it is a field here. `rows()` is the table, for
`check-config`, the man page and the JSON schema; `settings_check` holds documents to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from typing import cast

from agent.core.json_types import Json, JsonObject
from agent.core.quiet_hours import QuietSpan
from agent.core.setting_specs import File, Kind, Spec, allows, home_of, number, of_kind, one_of, whole

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


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """How this node's agent reaches PVE's API."""

    hosts: tuple[str, ...] = field(
        default=("localhost",),
        metadata=of_kind(Kind.HOSTS, "where PVE's API is asked, in this order; on a node its own server is the nearest"),
    )
    token_id: str = field(
        default="proxlb@pve!agent",
        metadata=of_kind(Kind.TOKEN_ID, "the API token the agent acts as; what it may see and do is what PVE grants it"),
    )
    token_file: str = field(
        default="/etc/pve/priv/proxlb/token",
        metadata=of_kind(Kind.PATH, "file with the token's secret alone; below /etc/pve/priv every node has it and only root reads it"),
    )
    ca_file: str = field(
        default="/etc/pve/pve-root-ca.pem",
        metadata=of_kind(Kind.PATH, "certificate authority that the API's certificate is checked against; PVE makes this one itself"),
    )
    verify_tls: bool = field(
        default=True, metadata=of_kind(Kind.SWITCH, "check the API's certificate; without it anybody on the way can read the token")
    )
    timeout_s: float = field(
        default=30.0,
        metadata=number(
            "s", 1, 30, "how long one request may take; at most 30, as a new leader waits lease + 30 s for requests of the last one"
        ),
    )


@dataclass(frozen=True, slots=True)
class TriggerSettings:
    """When the leader looks and decides."""

    settle_s: float = field(
        default=5.0, metadata=number("s", 0, 300, "quiet after an event before it is answered, so that a burst is answered once")
    )
    settle_max_s: float = field(
        default=60.0,
        metadata=number("s", 0, 3600, "longest wait after the first event of a burst, so that events that never stop are answered, too"),
    )
    reconcile_s: float = field(
        default=300.0,
        metadata=number("s", 30, DAY_S, "time between two looks at everything that nothing triggered; the net under missed events"),
    )
    warmup_s: float = field(
        default=300.0,
        metadata=number(
            "s",
            0,
            DAY_S,
            "no load balancing for so long after the lead or the membership changed, as loads of nodes that just started mean little",
        ),
    )
    first_observe_s: float = field(
        default=600.0,
        metadata=number(
            "s", 0, 30 * DAY_S, "a cluster is only observed for so long after the very first install, so that the plan can be read first"
        ),
    )


MOST_ASSIGNED_PERCENT = 1000  # ten vCPUs a core: no threshold for assigned cores lies beyond


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """How one resource of the nodes counts."""

    threshold_percent: float = field(
        metadata=number(
            "percent",
            0,
            MOST_ASSIGNED_PERCENT,
            "share of the resource from which on a node is overloaded; 0 turns it off, 100 too unless what is assigned counts",
        )
    )
    weight: float = field(
        metadata=number("", 0, 100, "how much the resource counts against the other one when nodes are compared; 0 leaves it out")
    )
    hold_s: float = field(
        metadata=number("s", 0, DAY_S, "how long a measured load must stay over the threshold, so that a peak moves nobody")
    )
    measure: Measure = field(
        default=Measure.USED,
        metadata=one_of(Measure, "what guests count with: what they use, or what they may use at most; room is always judged by use"),
    )


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """When a storage is reported."""

    threshold_percent: float = field(
        default=90.0,
        metadata=number("percent", 0, 100, "used share from which on a storage is reported, once, and nobody moved; 0 and 100 turn it off"),
    )


@dataclass(frozen=True, slots=True)
class PressureSettings:
    """How pressure counts: the share of the time in which something on the node waits for cpu or memory."""

    threshold_percent: float = field(
        default=0.0,
        metadata=number("percent", 0, 100, "share of the time with something waiting from which on a node is overloaded; 0 and 100: off"),
    )
    weight: float = field(
        default=0.0,
        metadata=number("", 0, 100, "how much pressure counts against cpu and memory when nodes are compared; 0 leaves it out"),
    )


@dataclass(frozen=True, slots=True)
class ReserveSettings:
    """Memory of each node that no plan fills: the larger of the two."""

    memory_percent: float = field(
        default=5.0, metadata=number("percent", 0, 90, "share of a node's memory that stays free for the system and for peaks")
    )
    memory_gib: float = field(
        default=4.0, metadata=number("GiB", 0, 65536, "memory of a node that stays free, for small nodes, where a share is too little")
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
        metadata=number(
            "percent", 0, 100, "points between the fullest and the emptiest node from which on load is balanced; 0: only thresholds count"
        ),
    )
    min_gain_percent: float = field(
        default=1.0,
        metadata=number("percent", 0, 100, "points of imbalance that a whole plan must take off, so that nobody moves for next to nothing"),
    )
    node_reserve: ReserveSettings = ReserveSettings()
    assigned_memory_cap_percent: float = field(
        default=0.0,
        metadata=number(
            "percent",
            0,
            MOST_ASSIGNED_PERCENT,
            "most memory that guests may have configured on a target, of its own; 0: as much as they like",
        ),
    )
    guest_cooldown_s: float = field(
        default=3600.0,
        metadata=number(
            "s", 0, 30 * DAY_S, "a guest that moved stays for so long before load moves it again, so that nobody is sent to and fro"
        ),
    )
    max_moves_per_pass: int = field(
        default=4,
        metadata=whole(
            "moves", 1, 1000, "moves for load that are carried out before the cluster is looked at again, as loads change on the way"
        ),
    )
    max_moves_per_hour: int = field(
        default=20, metadata=whole("moves", 1, 10000, "moves for load in any hour, the brake when all else is wrong")
    )


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """What counts as a rule."""

    tags: TagTrust = field(
        default=TagTrust.ALL,
        metadata=one_of(
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
        metadata=one_of(ContainerPolicy, "when running containers may move, as PVE can only restart them elsewhere"),
    )
    local_disks: bool = field(
        default=False,
        metadata=of_kind(Kind.SWITCH, "let VMs take disks on storage of their node along; copying them takes as long as they are large"),
    )
    storage_map: tuple[tuple[str, str], ...] = field(
        default=(),
        metadata=of_kind(
            Kind.STORAGES,
            "the storage that takes such disks on the target, by the one they are on; without an entry the one of the same name",
        ),
    )
    ignore: tuple[int | str, ...] = field(
        default=(),
        metadata=of_kind(Kind.GUESTS, 'guests that stay where they are, as VMIDs and ranges of them ("200-299"); they count as load'),
    )

    def is_ignored(self, vmid: int) -> bool:
        """True when the list keeps the guest where it is."""
        single, ranges = _spans(self.ignore)
        return vmid in single or any(first <= vmid <= last for first, last in ranges)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Which nodes take part."""

    ignore: tuple[str, ...] = field(
        default=(), metadata=of_kind(Kind.NODES, "nodes that are neither source nor target, as if they were not there")
    )
    maintenance: tuple[str, ...] = field(
        default=(), metadata=of_kind(Kind.NODES, "nodes that are emptied and kept empty; a flag does the same for a while")
    )


@dataclass(frozen=True, slots=True)
class MigrationSettings:
    """How load and rules move guests."""

    parallel_per_node: int = field(
        default=1,
        metadata=whole("migrations", 1, 64, "migrations at a time that a node takes part in, as source or target; they share its network"),
    )
    parallel_total: int = field(
        default=2, metadata=whole("migrations", 1, 256, "migrations at a time in the cluster; they share the switch and the storage")
    )
    bandwidth_limit_kib_s: int | None = field(
        default=None, metadata=whole("KiB/s", 1, 2**40, "limit of one migration; null leaves PVE's own limits alone", optional=True)
    )
    parallel_on_corosync_link: bool = field(
        default=False,
        metadata=of_kind(
            Kind.SWITCH, "several at a time even where migrations share a link with corosync: on a network that has room for all of them"
        ),
    )
    timeout_s: float = field(
        default=7200.0,
        metadata=number(
            "s", 60, 30 * DAY_S, "a migration that runs for longer is reported; it goes on, keeps its slot, and is never cancelled"
        ),
    )


@dataclass(frozen=True, slots=True)
class DrainSettings:
    """How a node in maintenance is emptied."""

    parallel_per_node: int = field(
        default=2,
        metadata=whole(
            "migrations", 1, 64, "as migration.parallel_per_node, for maintenance: somebody waits for it, so more than for load"
        ),
    )
    parallel_total: int = field(default=4, metadata=whole("migrations", 1, 256, "as migration.parallel_total, for maintenance"))
    stopped: bool = field(
        default=False,
        metadata=of_kind(Kind.SWITCH, "move guests that do not run away, too, so that they can be started while the node is down"),
    )
    return_home: bool = field(
        default=True, metadata=of_kind(Kind.SWITCH, "bring home what left when the maintenance ends; otherwise load alone decides")
    )
    shutdown_limit_s: float = field(
        default=600,
        metadata=number(
            "s", 30, 1200, "for so long at most a shutdown waits for the node to be emptied, where proxlb-agent-drain is enabled"
        ),
    )


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """The rules of one pool of PVE's."""

    name: str
    rule: PoolRule | None = field(
        default=None,
        metadata=allows(
            Spec(
                Kind.CHOICE,
                "affinity: the pool's guests share a node; anti-affinity: each has a node of its own; null: neither",
                choices=tuple(rule.value for rule in PoolRule),
                optional=True,
            )
        ),
    )
    pin: tuple[str, ...] = field(default=(), metadata=of_kind(Kind.NODES, "nodes that the pool's guests are kept to; none: all"))
    strict: bool = field(
        default=True,
        metadata=of_kind(Kind.SWITCH, "keep to pin even when none of its nodes is available; false: any other node will do until one is"),
    )


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is written to the journal."""

    level: LogLevel = field(
        default=LogLevel.INFO, metadata=one_of(LogLevel, "the least urgent messages that are written; info says every decision")
    )


@dataclass(frozen=True, slots=True)
class PathSettings:
    """Where things are; other values are for trying the agent out."""

    pmxcfs: str = field(default="/etc/pve", metadata=of_kind(Kind.PATH, "where pmxcfs, the cluster's filesystem, is mounted"))
    run: str = field(
        default="/run/proxlb-agent", metadata=of_kind(Kind.PATH, "this node's inbox and status; gone after a reboot, as they should be")
    )
    state: str = field(default="/var/lib/proxlb-agent", metadata=of_kind(Kind.PATH, "this node's decision journal and learned loads"))


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings; `Settings()` are the defaults.

    Only `settings_check` holds values to the table: whoever makes one by hand answers for it.
    """

    mode: Mode = field(
        default=Mode.FULL,
        metadata=one_of(Mode, "off: nothing; observe: plans and says; rules: maintenance and rules; full: load, too"),
    )
    api: ApiSettings = ApiSettings()
    triggers: TriggerSettings = TriggerSettings()
    balance: BalanceSettings = BalanceSettings()
    rules: RuleSettings = RuleSettings()
    guests: GuestSettings = GuestSettings()
    nodes: NodeSettings = NodeSettings()
    migration: MigrationSettings = MigrationSettings()
    drain: DrainSettings = DrainSettings()
    quiet_hours: tuple[QuietSpan, ...] = field(
        default=(),
        metadata=of_kind(
            Kind.SPANS,
            "hours of the nodes' local time without load balancing, for backups and batch jobs; maintenance and rules go on",
        ),
    )
    pools: tuple[PoolSettings, ...] = field(
        default=(),
        metadata=of_kind(Kind.POOLS, "rules for all guests of a pool, by its name; only who may administer a pool puts guests into it"),
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


def rows() -> tuple[Row, ...]:
    """The table, in the order of the YAML."""
    return _ROWS


def as_document(settings: Settings) -> JsonObject:
    """The settings as YAML or JSON would hold them, every one of them, in the order of the table.

    `check` of the result gives the same settings.
    """
    return _section_document(settings)


def parts_of(section: object) -> Iterator[tuple[str, Spec | None, object]]:
    """The fields of a section: name, what is allowed (None for a section), value."""
    for item in fields(section):  # type: ignore[arg-type]
        yield item.name, cast(Spec | None, item.metadata.get("spec")), getattr(section, item.name)


def _walk(section: object, path: str) -> Iterator[tuple[str, Spec | None, object]]:
    """As `_parts`, with all that is below, by dotted path."""
    for name, spec, value in parts_of(section):
        yield path + name, spec, value
        if spec is None:
            yield from _walk(value, path + name + ".")


def _section_document(section: object, leave_out: str = "") -> JsonObject:
    parts = ((name, spec, value) for name, spec, value in parts_of(section) if name != leave_out)
    return {name: _as_json(value, spec) if spec else _section_document(value) for name, spec, value in parts}


def _as_json(value: object, spec: Spec) -> Json:
    if isinstance(value, StrEnum):
        return value.value
    if spec.kind is Kind.POOLS:
        return {pool.name: _section_document(pool, leave_out="name") for pool in cast(tuple[PoolSettings, ...], value)}
    if spec.kind is Kind.STORAGES:
        return dict(cast(tuple[tuple[str, Json], ...], value))
    if spec.kind is Kind.SPANS:
        spans = cast(tuple[QuietSpan, ...], value)
        return [{"days": [*span.days], "from": span.begin, "to": span.end} for span in spans]
    if isinstance(value, tuple):
        return list(cast(tuple[Json, ...], value))
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 180, not 180.0, as people write it
    return cast(Json, value)


POOL_SPECS = {name: spec for name, spec, _ in parts_of(PoolSettings("")) if spec is not None}
FIELDS = {name: spec for name, spec, _ in _walk(Settings(), "")}
DEFAULTS = {name: value for name, spec, value in _walk(Settings(), "") if spec is not None}
_ROWS = tuple(
    Row(name, spec, _as_json(DEFAULTS[name], spec), home_of(name.partition(".")[0])) for name, spec in FIELDS.items() if spec is not None
)

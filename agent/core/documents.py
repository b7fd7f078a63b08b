# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that agents share below /etc/pve/proxlb, and those they keep, as values. Schemas of the same names are in agent/schemas."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import lru_cache
from typing import TypeVar

from agent.core.cluster import NodeFacts
from agent.core.codec import CodecError, from_json, to_json
from agent.core.events import EventKind
from agent.core.failures import FailureClass
from agent.core.json_types import Json
from agent.core.migrations import Migration

LEADER_SCHEMA = "proxlb-agent/leader/1"
INBOX_SCHEMA = "proxlb-agent/inbox/1"
HISTORY_SCHEMA = "proxlb-agent/history/1"
REQUEST_SCHEMA = "proxlb-agent/request/1"
LOADS_SCHEMA = "proxlb-agent/loads/1"


class LeaderState(StrEnum):
    """What the leader says of itself."""

    LEADING = "leading"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class LeaderFile:
    """proxlb/leader.json: who leads, or has let go. `since` in Unix seconds; epochs only ever rise."""

    schema: str
    node: str
    incarnation: str
    epoch: int
    state: LeaderState
    since: float
    version: str


@dataclass(frozen=True, slots=True)
class InboxEvent:
    """One event that a node reports. `at` is when it happened, in Unix seconds of the reporting node."""

    seq: int
    at: float
    kind: EventKind
    vmid: int | None = None
    origin: str | None = None
    request: str | None = None
    detail: str = ""
    force: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What only the node itself can tell.

    Units:   `zfs_cache_bytes` is what the ZFS cache could give back, to a twentieth of the node's memory; None without ZFS.
    Shape:   `node` is None while it could not be read.
    """

    agent_version: str
    node: NodeFacts | None = None
    zfs_cache_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class InboxFile:
    """proxlb/inbox/<node>.json: what a node's agent reports, written by that agent alone.

    Shape:   events of the last 300 s, by `seq`, which rises through all incarnations as long as the file exists; `flag`
             is the text of the node's own maintenance flag, None when there is none.
    """

    schema: str
    node: str
    incarnation: str
    boot_id: str
    seq: int
    written_at: float
    events: tuple[InboxEvent, ...]
    flag: str | None
    facts: Facts


@dataclass(frozen=True, slots=True)
class Home:
    """A guest that left its node for a maintenance, and where it was put; `by_ha`: by the HA manager, which brings it home, too."""

    vmid: int
    home: str
    put_on: str
    since: float
    by_ha: bool = False


@dataclass(frozen=True, slots=True)
class Homecoming:
    """Those of the guests that left a node for a maintenance who are not waited for any more, as they are back or will not come."""

    home: str
    vmids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SetAside:
    """A guest that failed to migrate, left alone for a while.

    Units:   `until` in Unix seconds, None: until somebody acts.
    Shape:   `target` is the one node it does not go to, None: none at all; `node` is where it was, "" when nobody knows; `config` is
             the digest of its configuration since then, "" while that was not read.
    """

    vmid: int
    until: float | None
    failures: int
    text: str
    failure: FailureClass = FailureClass.UNKNOWN
    target: str | None = None
    node: str = ""
    config: str = ""


class Way(StrEnum):
    """How a guest gets to another node."""

    LIVE = "live"
    RESTART = "restart"
    OFFLINE = "offline"
    COPY = "copy"  # with disks


@dataclass(frozen=True, slots=True)
class Timing:
    """What one migration took. `at` in Unix seconds, `limit_kib_s` is the limit that was asked for, None without one; of one that copied
    disks `memory_bytes` is all that was copied."""

    at: float
    way: Way
    memory_bytes: int
    took_s: float
    limit_kib_s: int | None = None


class HaAskState(StrEnum):
    """How it stands with a node's maintenance that the HA manager was asked for."""

    ASKED = "asked"
    TAKEN = "taken"
    GIVEN_UP = "given-up"
    WITHDRAWN = "withdrawn"
    RETURNING = "returning"
    RECALLED = "recalled"


@dataclass(frozen=True, slots=True)
class HaAsk:
    """A node whose maintenance a leader asked of the HA manager, from before it asked until that has been taken back.

    Shape:   given up is what the HA manager did not take up, withdrawn what somebody else took back: neither is asked for again
             before the flag is gone. Both that are being taken back: returning what the HA manager had taken up, recalled what it
             was not seen to have.
    """

    node: str
    at: float
    state: HaAskState = HaAskState.ASKED


@dataclass(frozen=True, slots=True)
class ForeignMove:
    """A guest that somebody else has moved, a person or the HA manager: where it was seen then, and when (Unix seconds)."""

    vmid: int
    node: str
    at: float


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a guest takes, and what is used on the nodes it left and came to, in cores and bytes; None is unknown."""

    guest_cpu_cores: float
    guest_memory_bytes: float
    source_cpu_cores: float | None
    source_memory_bytes: float | None
    target_cpu_cores: float | None
    target_memory_bytes: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was expected of a guest when it arrived at `at` (Unix seconds), and what was measured some minutes later, None until then."""

    intent: str
    vmid: int
    source: str
    target: str
    at: float
    expected: Footprint
    measured: Footprint | None = None
    measured_at: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a command's request; `final` when nothing more follows."""

    request: str
    at: float
    text: str
    final: bool
    failed: bool = False


@dataclass(frozen=True, slots=True)
class HistoryFile:
    """proxlb/history.json: what leaders did and remember for each other, written by the leader alone.

    Shape:   migrations by time; bounded, homes are dropped last. `first_seen_at` is when the cluster first had a leader; `ha_places`
             are VMID and node of the guests under the HA manager at the last look; `homecomings` are by node.
    """

    schema: str
    first_seen_at: float
    migrations: tuple[Migration, ...] = ()
    homes: tuple[Home, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
    answers: tuple[Answer, ...] = ()
    timings: tuple[Timing, ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    ha_asks: tuple[HaAsk, ...] = ()
    foreign_moves: tuple[ForeignMove, ...] = ()
    ha_places: tuple[tuple[int, str], ...] = ()
    homecomings: tuple[Homecoming, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestFile:
    """A command's request in the node's inbox (`request.<id>.json`)."""

    schema: str
    kind: str
    force: bool
    user: str


@dataclass(frozen=True, slots=True)
class LearnedLoad:
    """What a guest took before it stopped at `at` (Unix seconds)."""

    vmid: int
    cpu_cores: float
    memory_bytes: float
    at: float


@dataclass(frozen=True, slots=True)
class LoadsFile:
    """/var/lib/proxlb-agent/loads.json: learned loads, by VMID."""

    schema: str
    loads: tuple[LearnedLoad, ...] = ()


File = TypeVar("File", LeaderFile, InboxFile, HistoryFile, RequestFile, LoadsFile)

_SCHEMAS: dict[type, str] = {
    LeaderFile: LEADER_SCHEMA,
    InboxFile: INBOX_SCHEMA,
    HistoryFile: HISTORY_SCHEMA,
    RequestFile: REQUEST_SCHEMA,
    LoadsFile: LOADS_SCHEMA,
}


class DocumentError(Exception):
    """A file that is not what its name says: torn, of another version, or edited by hand."""


def parse(kind: type[File], text: str) -> File:
    """Return the file's value, without fields that this version does not know: while a cluster is upgraded its agents differ, and
    later versions only add.

    Raises:  DocumentError in one line, for anything else that is not such a file.
    """
    try:
        document: Json = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"not JSON: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != _SCHEMAS[kind]:
        raise DocumentError(f"schema is {schema!r}, expected {_SCHEMAS[kind]!r}")
    try:
        return from_json(kind, document, ignore_unknown=True)
    except CodecError as error:
        raise DocumentError(str(error)) from error


def render(value: LeaderFile | InboxFile | HistoryFile | RequestFile | LoadsFile) -> str:
    """The file's text: JSON with sorted keys, so that equal values give equal bytes.

    Raises:  CodecError for NaN and infinity, with the place.
    """
    return (_history_text(value) if isinstance(value, HistoryFile) else _json_text(value)) + "\n"


def _json_text(value: object) -> str:
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _history_text(history: HistoryFile) -> str:
    """The same text entry by entry: of hundreds, a write changes one or two."""
    parts = []
    for name in sorted(item.name for item in fields(history)):
        value = getattr(history, name)
        parts.append(f'"{name}":{_array_text(name, value) if isinstance(value, tuple) else _json_text(value)}')
    return "{" + ",".join(parts) + "}"


def _array_text(name: str, entries: tuple[object, ...]) -> str:
    texts: list[str] = []
    try:
        for entry in entries:
            texts.append(_entry_text(entry))
    except CodecError as error:
        raise error.below(f"[{len(texts)}]").below(name) from None
    return "[" + ",".join(texts) + "]"


@lru_cache(maxsize=2048)  # what a full history has, and what has just been dropped from it
def _entry_text(entry: object) -> str:
    return _json_text(entry)

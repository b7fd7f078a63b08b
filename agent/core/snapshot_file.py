# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot as a file: to replay a decision, or to report one. `agent/schemas/snapshot-1.json` describes it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

from agent.core.cluster import Snapshot
from agent.core.codec import CodecError, from_json, to_json
from agent.core.json_types import Json, JsonObject

FAMILY = "proxlb-agent/"
SCHEMA = FAMILY + "snapshot/1"


class SnapshotFileError(ValueError):
    """The text is no snapshot that this version reads; `str()` is one line for the user."""


def to_document(snapshot: Snapshot) -> JsonObject:
    """Return the snapshot as JSON that names its schema. Raises CodecError when a number is NaN or infinite."""
    return {"schema": SCHEMA, **cast(JsonObject, to_json(snapshot))}


def from_document(document: Json) -> Snapshot:
    """Return the snapshot that a document states, sorted as snapshots are.

    Fields that this version does not know are refused: what is not understood must not be left out of a decision.

    Raises:  SnapshotFileError for another schema, a wrong field, and nodes or guests that stand there twice.
    """
    if not isinstance(document, dict):
        raise SnapshotFileError("this is no snapshot: it must be a JSON object")
    if (why_not := _why_not_schema(document.get("schema"))) is not None:
        raise SnapshotFileError(why_not)
    try:
        snapshot = from_json(Snapshot, {key: value for key, value in document.items() if key != "schema"})
    except CodecError as error:
        raise SnapshotFileError(f"the snapshot is damaged: {error}") from None
    _must_differ("nodes", (node.name for node in snapshot.nodes))
    _must_differ("storages", (storage.name for storage in snapshot.storages))
    _must_differ("guests", (str(guest.vmid) for guest in snapshot.guests))
    _must_differ("ha.resources", (str(resource.vmid) for resource in snapshot.ha.resources))
    return replace(
        snapshot,
        nodes=tuple(sorted(snapshot.nodes, key=lambda node: node.name)),
        guests=tuple(sorted(snapshot.guests, key=lambda guest: guest.vmid)),
        storages=tuple(sorted(snapshot.storages, key=lambda storage: storage.name)),
        tasks=tuple(sorted(snapshot.tasks, key=lambda task: (task.started_at, task.upid))),
        ha=replace(snapshot.ha, resources=tuple(sorted(snapshot.ha.resources, key=lambda resource: resource.vmid))),
    )


def to_text(snapshot: Snapshot) -> str:
    """Return the snapshot as the text of a file: one line for each node, guest, task and rule, so that two can be compared."""
    lines = [f"{json.dumps(key)}: {_laid_out(value)}" for key, value in to_document(snapshot).items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def from_text(text: str) -> Snapshot:
    """Return the snapshot of a file's text. Raises SnapshotFileError as `from_document`, and for what is no JSON."""
    try:
        document = cast(Json, json.loads(text, parse_constant=_refuse_constant))
    except RecursionError:
        raise SnapshotFileError("this is no snapshot: it is nested too deep") from None
    except json.JSONDecodeError as error:
        raise SnapshotFileError(f"this is no JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        raise SnapshotFileError(f"this is no JSON: {error}") from None
    return from_document(document)


def _why_not_schema(schema: Json) -> str | None:
    """Why a document of that schema cannot be read, None when it can."""
    if schema == SCHEMA:
        return None
    if not isinstance(schema, str) or not schema.startswith(FAMILY):
        return f'this is no snapshot: "schema" must be {SCHEMA}'
    kind, _, version = schema.removeprefix(FAMILY).partition("/")
    if kind == "snapshot" and version.isascii() and version.isdigit():
        return f"this is a snapshot of version {version[:10]}; this agent reads version 1"
    return f"this is no snapshot but {schema[:40]!r}; expected {SCHEMA}"


def _must_differ(what: str, names: Iterable[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise SnapshotFileError(f"the snapshot is damaged: {what}: {', '.join(twice[:5])} more than once")


def _laid_out(value: Json) -> str:
    if isinstance(value, dict) and value:
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {_laid_out(entry)}" for key, entry in value.items()) + "\n}"
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return "[\n" + ",\n".join(" " + json.dumps(entry, allow_nan=False) for entry in value) + "\n]"
    return json.dumps(value, allow_nan=False)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")

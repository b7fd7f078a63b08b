# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots as files: exactly what was seen comes back, anything else is refused with the reason."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.cluster import (
    BackupJob,
    Guest,
    GuestType,
    HaNodeAffinity,
    HaResource,
    HaResourceAffinity,
    HighAvailability,
    Maintenance,
    Node,
    NodeFacts,
    Snapshot,
    Storage,
    StorageUse,
    Task,
)
from agent.core.codec import CodecError
from agent.core.json_types import Json, JsonObject
from agent.core.snapshot_file import SCHEMA, SnapshotFileError, from_document, from_text, to_document, to_text

SCHEMA_FILE = Path(__file__).resolve().parents[2] / "agent/schemas/snapshot-1.json"
VALIDATOR = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))

FACTS = NodeFacts("9.1.1", "10.1.2-3", "10.0.2-4", 1767225000.5, "Xeon", "aes sse", ("vmbr0",))
SMALL = Snapshot(
    taken_at=1767225600.25,
    nodes=(
        Node("pve1", True, 16, 64 << 30, 3.5, 20 << 30, 86400, 4.5, True, 3 << 30, 0.25, FACTS),
        Node("pve2", False, 16, 64 << 30),
    ),
    guests=(
        Guest(101, GuestType.QEMU, "wéb", "pve1", "running", 4, 8 << 30, 0.5, 4 << 30, 5 << 30, 3600, ("plb_pin_pve1", "x"), "prod"),
        Guest(102, GuestType.LXC, "db", "pve2", "unknown", 2, 2 << 30, ha="started", lock="backup"),
    ),
    tasks=(Task("UPID:pve1:1", "pve1", "qmigrate", "101", "root@pam", 1767225599, None),),
    maintenance=(Maintenance("pve2", "flag"),),
    no_target=("pve2",),
    unseen=(103,),
    pve_version="9.1.1",
    storage_use=(StorageUse("ceph", ("pve1", "pve2"), 3 << 40, 4 << 40), StorageUse("local", ("pve1",), 0, 1)),
    ha=HighAvailability(
        resources=(HaResource(102, "started", "migrate", "pve2", "pve1", "pve1", failback=False),),
        node_affinity=(HaNodeAffinity("fast", (102,), (("pve1", 2), ("pve2", 0)), strict=True),),
        resource_affinity=(HaResourceAffinity("apart", (102, 103), together=False),),
        closed_nodes=("pve2",),
        balances=True,
    ),
    registered_tags=("plb_ignore",),
    storages=(Storage("ceph", True, ("pve1", "pve2")),),
    backup_jobs=(BackupJob("backup-1", "sun 01:00", vmids=(101,), node="pve1"),),
    utc_offset_s=3600.0,
)

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=6)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
T = typing.TypeVar("T")


def any_of(kind: type[T]) -> st.SearchStrategy[T]:
    """Instances of a dataclass with any values that JSON can say."""
    plain = {float: FINITE, str: TEXT, float | None: st.none() | FINITE, str | None: st.none() | TEXT}
    plain[tuple[str, ...]] = st.lists(TEXT, max_size=3).map(tuple)
    plain[tuple[tuple[str, int], ...]] = st.lists(st.tuples(TEXT, st.integers()), max_size=3).map(tuple)
    if kind is Node:
        plain[NodeFacts | None] = st.none() | any_of(NodeFacts)
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{name: plain.get(hint, st.from_type(hint)) for name, hint in hints.items()})


def some(kind: type[T], order: Callable[[T], object]) -> st.SearchStrategy[tuple[T, ...]]:
    """Instances that differ in what they are sorted by, sorted."""
    return st.lists(any_of(kind), max_size=4, unique_by=order).map(lambda found: tuple(sorted(found, key=order)))


SNAPSHOTS = st.builds(
    Snapshot,
    taken_at=FINITE,
    nodes=some(Node, lambda node: node.name),
    guests=some(Guest, lambda guest: guest.vmid),
    tasks=some(Task, lambda task: (task.started_at, task.upid)),
    maintenance=st.lists(any_of(Maintenance), max_size=2).map(tuple),
    no_target=st.lists(TEXT, max_size=2).map(tuple),
    unseen=st.lists(st.integers(), max_size=2).map(tuple),
    pve_version=TEXT,
    storage_use=some(StorageUse, lambda use: (use.name, use.nodes)),
    ha=st.builds(
        HighAvailability,
        resources=some(HaResource, lambda resource: resource.vmid),
        node_affinity=st.lists(any_of(HaNodeAffinity), max_size=2).map(tuple),
        resource_affinity=st.lists(any_of(HaResourceAffinity), max_size=2).map(tuple),
        closed_nodes=st.lists(TEXT, max_size=2).map(tuple),
        balances=st.booleans(),
        disarmed=st.booleans(),
    ),
    registered_tags=st.none() | st.lists(TEXT, max_size=2).map(tuple),
    storages=some(Storage, lambda storage: storage.name),
    backup_jobs=some(BackupJob, lambda job: job.id),
    utc_offset_s=FINITE,
)


@given(SNAPSHOTS)
def test_any_snapshot_comes_back_the_same_and_fits_the_schema(snapshot: Snapshot) -> None:
    text = to_text(snapshot)
    assert from_text(text) == snapshot
    assert to_text(from_text(text)) == text
    VALIDATOR.validate(json.loads(text))


def test_a_file_has_one_line_for_each_node_guest_and_task() -> None:
    text = to_text(SMALL)
    assert from_text(text) == SMALL
    assert text.isascii()
    lines = text.splitlines()
    assert [line for line in lines if line.startswith(' {"vmid": 101')]
    assert [line for line in lines if line.startswith(' {"vmid": 102, "requested"')]
    ha = 2 + 3 * (2 + 1) + 1 + 1 + 1
    assert len(lines) == 2 + 1 + 1 + (2 + 2) + (2 + 2) + (2 + 1) + (2 + 1) + 1 + 1 + 1 + (2 + 2) + ha + 1 + (2 + 1) + (2 + 1) + 1 + 1


def without(key: str) -> Callable[[JsonObject], None]:
    return lambda document: document.__delitem__(key)


def with_one(key: str, value: Json) -> Callable[[JsonObject], None]:
    return lambda document: document.__setitem__(key, value)


def with_entry(key: str, **changes: Json) -> Callable[[JsonObject], None]:
    def change(document: JsonObject) -> None:
        document[key][0].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (without("schema"), 'this is no snapshot: "schema" must be proxlb-agent/snapshot/1'),
        (with_one("schema", 1), 'this is no snapshot: "schema" must be proxlb-agent/snapshot/1'),
        (with_one("schema", "proxlb-agent/snapshot/2"), "this is a snapshot of version 2; this agent reads version 1"),
        (with_one("schema", "proxlb-agent/plan/1"), "this is no snapshot but 'proxlb-agent/plan/1'; expected proxlb-agent/snapshot/1"),
        (without("guests"), "the snapshot is damaged: guests: is missing"),
        (with_one("more", 1), "the snapshot is damaged: more: is not a field of this version"),
        (with_entry("nodes", more=1), "the snapshot is damaged: nodes[0].more: is not a field of this version"),
        (with_entry("nodes", online="yes"), 'the snapshot is damaged: nodes[0].online: must be true or false, not "yes"'),
        (with_entry("nodes", name="pve2"), "the snapshot is damaged: nodes: pve2 more than once"),
        (with_entry("guests", vmid=102), "the snapshot is damaged: guests: 102 more than once"),
        (with_entry("guests", type="vm"), 'the snapshot is damaged: guests[0].type: must be one of qemu, lxc, not "vm"'),
    ],
)
def test_a_file_that_is_no_sound_snapshot_is_refused_with_the_reason(change: Callable[[JsonObject], None], error: str) -> None:
    document = json.loads(to_text(SMALL))
    change(document)
    with pytest.raises(SnapshotFileError) as raised:
        from_document(document)
    assert str(raised.value) == error
    if "more than once" not in error:
        assert not VALIDATOR.is_valid(document)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "this is no JSON: Expecting value in line 1, column 1"),
        ("{\n x", "this is no JSON: Expecting property name enclosed in double quotes in line 2, column 2"),
        ("[]", "this is no snapshot: it must be a JSON object"),
        ("[" * 100_000, "this is no snapshot: it is nested too deep"),
        ('{"taken_at": NaN}', "this is no JSON: NaN is no number of JSON"),
    ],
)
def test_text_that_is_no_snapshot_is_refused_on_one_line(text: str, error: str) -> None:
    with pytest.raises(SnapshotFileError) as raised:
        from_text(text)
    assert str(raised.value) == error


def test_a_number_beyond_all_bounds_is_refused() -> None:
    for number in ("1e999", "9" * 5000):
        with pytest.raises(SnapshotFileError) as raised:
            from_text(to_text(SMALL).replace("1767225600.25", number))
        assert "\n" not in str(raised.value)


def test_a_snapshot_with_nan_is_not_written() -> None:
    with pytest.raises(CodecError, match="taken_at"):
        to_text(replace(SMALL, taken_at=float("nan")))


def test_a_file_edited_by_hand_may_be_in_any_order() -> None:
    document = to_document(SMALL)
    for key in ("nodes", "guests", "tasks"):
        typing.cast(list[Json], document[key]).reverse()
    assert from_document(document) == SMALL


def test_a_file_of_an_older_agent_may_lack_what_has_a_default() -> None:
    found = from_document({"schema": SCHEMA, "taken_at": 1, "nodes": [], "guests": []})
    assert found == Snapshot(1.0, (), ())


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Snapshot, None),
        (Node, "node"),
        (Guest, "guest"),
        (Task, "task"),
        (Maintenance, "maintenance"),
        (HighAvailability, "ha"),
        (HaResource, "ha_resource"),
        (HaNodeAffinity, "ha_node_affinity"),
        (HaResourceAffinity, "ha_resource_affinity"),
        (NodeFacts, "facts"),
        (Storage, "storage"),
        (BackupJob, "backup_job"),
        (StorageUse, "storage_use"),
    ],
)
def test_the_schema_has_the_fields_of_the_types_and_no_others(kind: type, name: str | None) -> None:
    words: dict[object, JsonObject] = {
        bool: {"type": "boolean"},
        int: {"type": "integer"},
        float: {"type": "number"},
        str: {"type": "string"},
        bool | None: {"type": ["boolean", "null"]},
        int | None: {"type": ["integer", "null"]},
        float | None: {"type": ["number", "null"]},
        str | None: {"type": ["string", "null"]},
        GuestType: {"enum": [one.value for one in GuestType]},
        tuple[str, ...]: {"type": "array", "items": {"type": "string"}},
        tuple[int, ...]: {"type": "array", "items": {"type": "integer"}},
        tuple[Node, ...]: {"type": "array", "items": {"$ref": "#/$defs/node"}},
        tuple[Guest, ...]: {"type": "array", "items": {"$ref": "#/$defs/guest"}},
        tuple[Task, ...]: {"type": "array", "items": {"$ref": "#/$defs/task"}},
        tuple[StorageUse, ...]: {"type": "array", "items": {"$ref": "#/$defs/storage_use"}},
        tuple[Maintenance, ...]: {"type": "array", "items": {"$ref": "#/$defs/maintenance"}},
        HighAvailability: {"$ref": "#/$defs/ha"},
        tuple[HaResource, ...]: {"type": "array", "items": {"$ref": "#/$defs/ha_resource"}},
        tuple[HaNodeAffinity, ...]: {"type": "array", "items": {"$ref": "#/$defs/ha_node_affinity"}},
        tuple[HaResourceAffinity, ...]: {"type": "array", "items": {"$ref": "#/$defs/ha_resource_affinity"}},
        tuple[str, ...] | None: {"type": ["array", "null"], "items": {"type": "string"}},
        tuple[tuple[str, int], ...]: {
            "type": "array",
            "items": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "minItems": 2, "maxItems": 2},
        },
        tuple[Storage, ...]: {"type": "array", "items": {"$ref": "#/$defs/storage"}},
        tuple[BackupJob, ...]: {"type": "array", "items": {"$ref": "#/$defs/backup_job"}},
        NodeFacts | None: {"anyOf": [{"$ref": "#/$defs/facts"}, {"type": "null"}]},
    }
    hints = typing.get_type_hints(kind)
    stated = VALIDATOR.schema if name is None else VALIDATOR.schema["$defs"][name]
    expected = {item.name: words[hints[item.name]] for item in fields(kind)}
    if name is None:
        expected = {"schema": {"const": SCHEMA}} | expected
    assert {key: {word: value[word] for word in value if word != "description"} for key, value in stated["properties"].items()} == expected
    assert stated["required"] == list(expected)
    assert stated["type"] == "object"
    assert stated["additionalProperties"] is False
    VALIDATOR.check_schema(VALIDATOR.schema)

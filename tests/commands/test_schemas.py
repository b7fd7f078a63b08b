# SPDX-License-Identifier: GPL-3.0-or-later
"""The schemas: strict, in agreement with the types they describe, and kept by what commands and agents really write."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from agent.core import documents, leadership
from agent.core.events import EventKind
from agent.core.history import empty
from agent.core.migrations import Migration, MigrationState
from agent.core.plan_types import Conflict, Gate, Move, NodeFractions, Refusal
from agent.core.reasons import MoveReason, RefusalReason
from agent.core.settings import Mode
from agent.daemon.mailbox import request_text
from agent.ports import FilesystemState
from agent.sim.migrations import FailureKind
from tests.commands.rig import Run, Stage, entry

SCHEMAS = Path(__file__).resolve().parents[2] / "agent/schemas"
NAMES = ("cluster", "explain", "guests", "history", "inbox", "leader", "loads", "place", "plan", "request", "status")


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / f"{name}-1.json").read_text(encoding="utf-8"))
    return found


def must_keep(name: str, text: str) -> Any:
    document = json.loads(text)
    jsonschema.Draft202012Validator(schema(name)).validate(document)
    return document


def objects_in(part: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object that a schema describes, and where."""
    if isinstance(part, dict):
        if part.get("type") == "object":
            yield path, part
        for key, value in part.items():
            yield from objects_in(value, f"{path}/{key}")
    elif isinstance(part, list):
        for number, value in enumerate(part):
            yield from objects_in(value, f"{path}/{number}")


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_strict(name: str) -> None:
    document = schema(name)
    jsonschema.Draft202012Validator.check_schema(document)
    assert document["$id"] == f"urn:proxlb-agent:{name}:1"
    assert document["properties"]["schema"] == {"const": f"proxlb-agent/{name}/1"}
    for path, part in objects_in(document):
        if "properties" in part:
            assert part["additionalProperties"] is False, path
            assert sorted(part["required"]) == sorted(part["properties"]), path
        else:
            assert isinstance(part["additionalProperties"], dict), path


@pytest.mark.parametrize(
    ("name", "part", "kind", "apart"),
    [
        ("leader", None, documents.LeaderFile, set()),
        ("request", None, documents.RequestFile, set()),
        ("inbox", None, documents.InboxFile, set()),
        ("inbox", "event", documents.InboxEvent, set()),
        ("inbox", "facts", documents.Facts, set()),
        ("history", None, documents.HistoryFile, set()),
        ("history", "migration", Migration, set()),
        ("history", "home", documents.Home, set()),
        ("history", "set_aside", documents.SetAside, set()),
        ("history", "answer", documents.Answer, set()),
        ("history", "timing", documents.Timing, set()),
        ("history", "calibration", documents.Calibration, set()),
        ("history", "footprint", documents.Footprint, set()),
        ("loads", None, documents.LoadsFile, set()),
        ("loads", "load", documents.LearnedLoad, set()),
        ("plan", "move", Move, {"cpu_cores", "is_running"}),  # not told: they serve the planner's own order
        ("plan", "refusal", Refusal, set()),
        ("plan", "conflict", Conflict, set()),
        ("plan", "load", NodeFractions, set()),
        ("explain", "refusal", Refusal, set()),
        ("status", "load", NodeFractions, set()),
    ],
)
def test_a_schema_has_the_fields_of_its_type(name: str, part: str | None, kind: Any, apart: set[str]) -> None:
    described = schema(name) if part is None else schema(name)["$defs"][part]
    beside = {"expected_s"} if (name, part) == ("plan", "move") else set()  # what the outlook knows of it
    assert set(described["properties"]) == ({item.name for item in dataclasses.fields(kind)} - apart) | beside


@pytest.mark.parametrize(
    ("name", "path", "words"),
    [
        ("plan", "$defs/refusal_reason", RefusalReason),
        ("plan", "$defs/move/properties/reason", MoveReason),
        ("plan", "properties/gate", Gate),
        ("explain", "$defs/refusal_reason", RefusalReason),
        ("explain", "$defs/move/properties/state", MigrationState),
        ("history", "$defs/migration/properties/state", MigrationState),
        ("history", "$defs/migration/properties/reason", MoveReason),
        ("inbox", "$defs/event/properties/kind", EventKind),
        ("leader", "properties/state", documents.LeaderState),
        ("history", "$defs/timing/properties/way", documents.Way),
        ("status", "properties/mode", Mode),
        ("status", "properties/stage", leadership.Stage),
    ],
)
def test_a_schema_knows_all_words(name: str, path: str, words: type[Enum]) -> None:
    part = schema(name)
    for key in path.split("/"):
        part = part[key]
    assert part["enum"] == [word.value for word in words]


def test_words_that_may_be_missing() -> None:
    reasons: list[str | None] = [*(reason.value for reason in RefusalReason), None]
    assert schema("cluster")["$defs"]["node"]["properties"]["no_target"]["enum"] == reasons
    assert schema("guests")["$defs"]["guest"]["properties"]["stays"]["enum"] == reasons
    assert schema("status")["properties"]["filesystem"]["enum"] == [*(state.value for state in FilesystemState), "unknown"]


@pytest.mark.parametrize("force", [True, False])
def test_a_request_keeps_its_schema(force: bool) -> None:
    must_keep("request", request_text("root", force=force))


def test_an_empty_history_keeps_its_schema() -> None:
    must_keep("history", documents.render(empty(1.5)))


class TestWhatCommandsAndAgentsWrite:
    @pytest.fixture
    def busy(self, stage: Callable[..., Stage]) -> Stage:
        """A cluster on which much has happened: rules, failures, a maintenance, an offline node, a container, a template."""
        document = entry()
        document["nodes"] |= {"pve4": {"cores": 16, "memory_gib": 64, "online": False}}
        document["guests"] += [
            {"vmid": 301, "node": "pve3", "type": "lxc", "tags": ["plb_anti_affinity_a"], "pool": "p"},
            {"vmid": 302, "node": "pve3", "tags": ["plb_anti_affinity_a", "plb_pin_pve3"], "ha": "started"},
            {"vmid": 303, "node": "pve2", "status": "stopped", "tags": ["plb_pin_nowhere"]},
            {"vmid": 304, "node": "pve2", "template": True},
            {"vmid": 305, "node": "pve4"},
        ]
        on = stage(document, live_s=1.0)
        on.world.fail_next_migration(FailureKind.ABORTED)
        on.live(40)
        return on

    def test_plans(self, busy: Stage, run: Run) -> None:
        for _ in range(6):
            planned = must_keep("plan", run("plan", "--json").out)
            busy.live(25)
        assert planned["before"]["nodes"].keys() == {"pve1", "pve2", "pve3"}
        assert [conflict["rule"] for conflict in planned["conflicts"]] == ["plb_pin_nowhere"]

    def test_clusters_and_guests(self, busy: Stage, run: Run) -> None:
        nodes = {node["name"]: node for node in must_keep("cluster", run("cluster", "--json").out)["nodes"]}
        assert nodes["pve4"]["no_target"] == "node-offline"
        assert nodes["pve4"]["cpu_fraction"] is None
        guests = {guest["vmid"]: guest for guest in must_keep("guests", run("guests", "--json").out)["guests"]}
        assert (guests[304]["stays"], guests[302]["rules"]) == ("template", ["plb_anti_affinity_a", "plb_pin_pve3"])

    def test_explanations(self, busy: Stage, run: Run) -> None:
        for vmid in busy.world.guests:
            told = must_keep("explain", run("explain", vmid, "--json").out)
            assert [target["node"] for target in told["targets"]] == ["pve1", "pve2", "pve3", "pve4"]

    def test_status_of_leader_and_followers(self, busy: Stage, run: Run) -> None:
        stages = set()
        for _ in range(5):
            stages.add(must_keep("status", run("status", "--json").out)["stage"])
            for node in busy.world.nodes.values():
                if node.status_text is not None:
                    stages.add(must_keep("status", node.status_text)["stage"])
            busy.live(20)
        assert stages == {"leading", "following"}

    def test_shared_files(self, busy: Stage, run: Run) -> None:
        run("maintenance", "enter", "pve3")
        busy.live(100)
        run("balance", "--yes", "--force")
        files = busy.world.main.files
        must_keep("leader", files["proxlb/leader.json"])
        history = must_keep("history", files["proxlb/history.json"])
        assert {record["state"] for record in history["migrations"]} >= {"done", "failed"}
        assert must_keep("history", run("history", "--json").out) == history
        for node in ("pve1", "pve2", "pve3"):
            must_keep("inbox", files[f"proxlb/inbox/{node}.json"])

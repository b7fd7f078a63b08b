# SPDX-License-Identifier: GPL-3.0-or-later
"""A scenario's `events.yaml`, parsed already: who does what to the cluster at which second.

Each entry is `{at_s: 30, do: start-guest, vmid: 105}`, with `times` and `every_s` for what happens again and again.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

from agent.core.cluster import GIB, HaNodeAffinity
from agent.core.codec import CodecError, from_json
from agent.core.json_types import Json
from agent.ports import InDoubtError, RefusedError
from agent.sim.cluster_file import GuestEntry, ScenarioError, StorageUseEntry
from agent.sim.migrations import FailureKind
from agent.sim.tasks import ROOT
from agent.sim.world import World

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Guest:
    vmid: int


@dataclass(frozen=True, slots=True)
class _GuestTo:
    vmid: int
    target: str


@dataclass(frozen=True, slots=True)
class _MigrateBy:
    vmid: int
    target: str
    user: str = ROOT


@dataclass(frozen=True, slots=True)
class _GuestFor:
    vmid: int
    for_s: float


@dataclass(frozen=True, slots=True)
class _Backup:
    vmid: int
    for_s: float
    stops: bool = False


@dataclass(frozen=True, slots=True)
class _GuestStatus:
    vmid: int
    status: str


@dataclass(frozen=True, slots=True)
class _GuestLock:
    vmid: int
    lock: str | None = None


@dataclass(frozen=True, slots=True)
class _GuestHa:
    vmid: int
    state: str | None = None


@dataclass(frozen=True, slots=True)
class _NodeAffinity:
    name: str
    vmids: tuple[int, ...]
    nodes: Mapping[str, int]
    strict: bool = False


@dataclass(frozen=True, slots=True)
class _Load:
    vmid: int
    used_cores: float | None = None
    used_memory_gib: float | None = None
    host_memory_gib: float | None = None


@dataclass(frozen=True, slots=True)
class _Size:
    vmid: int
    cores: float | None = None
    memory_gib: float | None = None


@dataclass(frozen=True, slots=True)
class _Tags:
    vmid: int
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _FailMigration:
    how: FailureKind
    vmid: int | None = None
    text: str | None = None
    migrations: int = 1


@dataclass(frozen=True, slots=True)
class _Node:
    node: str


@dataclass(frozen=True, slots=True)
class _Nodes:
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _NodeFor:
    node: str
    for_s: float


@dataclass(frozen=True, slots=True)
class _NodeCalls:
    node: str
    calls: int


@dataclass(frozen=True, slots=True)
class _NodeStep:
    node: str
    by_s: float


@dataclass(frozen=True, slots=True)
class _NodeLoad:
    node: str
    overhead_cores: float | None = None
    overhead_memory_gib: float | None = None


@dataclass(frozen=True, slots=True)
class _NodeState:
    node: str
    state: str | None = None


@dataclass(frozen=True, slots=True)
class _HaFailure:
    node: str
    text: str
    commands: int = 1
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class _NodeWrite:
    node: str
    applied: bool = False


@dataclass(frozen=True, slots=True)
class _Flag:
    node: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Request:
    node: str
    id: str
    text: str


@dataclass(frozen=True, slots=True)
class _InboxFile:
    node: str
    name: str


@dataclass(frozen=True, slots=True)
class _Log:
    node: str
    text: str
    lines: int = 1


@dataclass(frozen=True, slots=True)
class _Task:
    node: str
    kind: str
    for_s: float
    target_id: str = ""


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class _Offset:
    utc_offset_h: float


@dataclass(frozen=True, slots=True)
class _Nothing:
    pass


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * GIB)


Action = Callable[[World], None]
Binder = Callable[[Json], Action]


def _verb(arguments: type[T], act: Callable[[World, T], None]) -> Binder:
    """A row of the table: which arguments the verb takes, and what it does with them."""

    def bind(document: Json) -> Action:
        given = from_json(arguments, document)
        return lambda world: act(world, given)

    return bind


def _migrate(world: World, to: _MigrateBy) -> None:
    """PVE may refuse a person, too, and tells that person, not the cluster."""
    with contextlib.suppress(RefusedError, InDoubtError):
        world.migrate_by_person(to.vmid, to.target, to.user)


def _start(world: World, guest: _Guest) -> None:
    world.start_guest(guest.vmid)


VERBS: dict[str, Binder] = {
    # guests
    "start-guest": _verb(_Guest, _start),
    "stop-guest": _verb(_Guest, lambda world, a: world.stop_guest(a.vmid)),
    "crash-guest": _verb(_Guest, lambda world, a: world.stop_guest(a.vmid, inside=True)),
    "add-guest": _verb(GuestEntry, lambda world, a: world.add_guest(a.guest(world.now_s))),
    "remove-guest": _verb(_Guest, lambda world, a: world.remove_guest(a.vmid)),
    "set-load": _verb(_Load, lambda world, a: world.set_load(a.vmid, a.used_cores, _bytes(a.used_memory_gib), _bytes(a.host_memory_gib))),
    "resize-guest": _verb(_Size, lambda world, a: world.resize(a.vmid, a.cores, _bytes(a.memory_gib))),
    "set-tags": _verb(_Tags, lambda world, a: world.set_tags(a.vmid, a.tags)),
    "set-status": _verb(_GuestStatus, lambda world, a: world.set_status(a.vmid, a.status)),
    "edit-guest": _verb(_Guest, lambda world, a: world.edit_guest(a.vmid)),
    "set-lock": _verb(_GuestLock, lambda world, a: world.lock_guest(a.vmid, a.lock)),
    "set-ha": _verb(_GuestHa, lambda world, a: world.set_ha(a.vmid, a.state)),
    "hide-guest": _verb(_Guest, lambda world, a: world.hide_guest(a.vmid)),
    "show-guest": _verb(_Guest, lambda world, a: world.hide_guest(a.vmid, hidden=False)),
    "back-up": _verb(_Backup, lambda world, a: world.back_up(a.vmid, a.for_s, stops=a.stops)),
    "recover-guest": _verb(_GuestTo, lambda world, a: world.move_by_recovery(a.vmid, a.target)),
    # migrations
    "migrate-by-person": _verb(_MigrateBy, _migrate),
    "fail-next-migration": _verb(_FailMigration, lambda world, a: world.fail_next_migration(a.how, a.vmid, a.text, a.migrations)),
    "end-migration": _verb(_Guest, lambda world, a: world.end_migration(a.vmid)),
    # nodes
    "power-off-node": _verb(_Node, lambda world, a: world.power_off_node(a.node)),
    "power-on-node": _verb(_Node, lambda world, a: world.power_on_node(a.node)),
    "cut-node": _verb(_Node, lambda world, a: world.cut_node(a.node)),
    "split": _verb(_Nodes, lambda world, a: world.split(a.nodes)),
    "heal": _verb(_Nothing, lambda world, _: world.heal()),
    "step-wall-clock": _verb(_NodeStep, lambda world, a: world.step_wall_clock(a.node, a.by_s)),
    "set-node-load": _verb(_NodeLoad, lambda world, a: world.set_node_load(a.node, a.overhead_cores, _bytes(a.overhead_memory_gib))),
    "stop-statistics": _verb(_Node, lambda world, a: world.stop_statistics(a.node)),
    "resume-statistics": _verb(_Node, lambda world, a: world.stop_statistics(a.node, stopped=False)),
    "set-storage": _verb(StorageUseEntry, lambda world, a: world.set_storage_use(a.use())),
    "run-task": _verb(_Task, lambda world, a: world.run_task(a.node, a.kind, a.target_id, a.for_s)),
    # /etc/pve
    "set-utc-offset": _verb(_Offset, lambda world, a: world.set_utc_offset(a.utc_offset_h * 3600)),
    "restart-pmxcfs": _verb(_NodeFor, lambda world, a: world.restart_pmxcfs(a.node, a.for_s)),
    "hang-pmxcfs": _verb(_NodeFor, lambda world, a: world.hang_pmxcfs(a.node, a.for_s)),
    "fail-next-write": _verb(_NodeWrite, lambda world, a: world.fail_next_write(a.node, applied=a.applied)),
    "put-file": _verb(_File, lambda world, a: world.put_file(a.path, a.text)),
    "drop-file": _verb(_File, lambda world, a: world.drop_file(a.path)),
    "set-flag": _verb(_Flag, lambda world, a: world.set_flag(a.node, a.reason)),
    "clear-flag": _verb(_Node, lambda world, a: world.clear_flag(a.node)),
    "remove-lock": _verb(_Nothing, lambda world, _: world.remove_lock()),
    "append-log": _verb(_Log, lambda world, a: world.append_log(a.node, a.text, a.lines)),
    # the HA manager
    "request-ha-maintenance": _verb(_Node, lambda world, a: world.request_ha_maintenance(a.node)),
    "clear-ha-maintenance": _verb(_Node, lambda world, a: world.request_ha_maintenance(a.node, wanted=False)),
    "set-ha-node-state": _verb(_NodeState, lambda world, a: world.set_ha_state(a.node, a.state)),
    "make-ha-node-affinity": _verb(
        _NodeAffinity,
        lambda world, a: world.ha.add(HaNodeAffinity(a.name, tuple(sorted(a.vmids)), tuple(sorted(a.nodes.items())), a.strict)),
    ),
    "fail-ha-command": _verb(_HaFailure, lambda world, a: world.fail_ha_command(a.node, a.text, a.commands, lasting=a.lasting)),
    "hang-ha-manager": _verb(_Nothing, lambda world, _: world.hang_ha_manager()),
    "free-ha-manager": _verb(_Nothing, lambda world, _: world.hang_ha_manager(hanging=False)),
    # the API
    "cut-api": _verb(_Node, lambda world, a: world.cut_api(a.node)),
    "restore-api": _verb(_Node, lambda world, a: world.cut_api(a.node, cut=False)),
    "hang-api": _verb(_NodeFor, lambda world, a: world.hang_api(a.node, a.for_s)),
    "fail-api-calls": _verb(_NodeCalls, lambda world, a: world.fail_api_calls(a.node, a.calls)),
    # agents
    "stop-agent": _verb(_Node, lambda world, a: world.stop_agent(a.node)),
    "kill-agent": _verb(_Node, lambda world, a: world.kill_agent(a.node)),
    "start-agent": _verb(_Node, lambda world, a: world.start_agent(a.node)),
    "reload-agent": _verb(_Node, lambda world, a: world.reload_agent(a.node)),
    "freeze-agent": _verb(_NodeFor, lambda world, a: world.freeze_agent(a.node, a.for_s)),
    "set-local-flag": _verb(_Flag, lambda world, a: world.set_local_flag(a.node, a.reason)),
    "clear-local-flag": _verb(_Node, lambda world, a: world.clear_local_flag(a.node)),
    "request": _verb(_Request, lambda world, a: world.request(a.node, a.id, a.text)),
    "leave-event": _verb(_InboxFile, lambda world, a: world.leave_event(a.node, a.name)),
    "break-inbox": _verb(_Node, lambda world, a: world.break_inbox(a.node)),
    "repair-inbox": _verb(_Node, lambda world, a: world.break_inbox(a.node, broken=False)),
    "fill-disk": _verb(_Node, lambda world, a: world.fill_disk(a.node)),
    "free-disk": _verb(_Node, lambda world, a: world.fill_disk(a.node, full=False)),
}


@dataclass(frozen=True, slots=True)
class ScenarioEvent:
    """One thing that is done at one second. `words` is how the scenario says it."""

    at_s: float
    words: str
    act: Action


@dataclass(frozen=True, slots=True)
class _When:
    at_s: float
    do: str
    times: int = 1
    every_s: float = 0.0


_WHEN = frozenset(field.name for field in fields(_When))


def read_events(document: Json) -> tuple[ScenarioEvent, ...]:
    """Return what the document lists, by time; what happens at the same second, in the order of the document.

    Raises:  ScenarioError with the first entry that does not fit.
    """
    if document is None:
        return ()
    if not isinstance(document, list):
        raise ScenarioError("events: must be a list")
    found: list[ScenarioEvent] = []
    for number, entry in enumerate(document):
        try:
            found += _read(entry)
        except CodecError as error:
            raise ScenarioError(f"events[{number}]: {error}") from None
    return tuple(sorted(found, key=lambda event: event.at_s))


def _read(entry: Json) -> list[ScenarioEvent]:
    if not isinstance(entry, dict):
        raise CodecError("", "must be an object with at_s and do")
    when = from_json(_When, {key: value for key, value in entry.items() if key in _WHEN})
    if when.do not in VERBS:
        near = difflib.get_close_matches(when.do, VERBS, n=1)
        raise CodecError("do", f"there is no {when.do}" + (f"; {near[0]} is meant?" if near else ""))
    if when.times > 1 and when.every_s <= 0:
        raise CodecError("every_s", "must say how often, as it happens several times")
    arguments: Json = {key: value for key, value in entry.items() if key not in _WHEN}
    words = " ".join([when.do, *(f"{key}={value}" for key, value in entry.items() if key not in _WHEN)])
    return [ScenarioEvent(when.at_s + turn * when.every_s, words, VERBS[when.do](arguments)) for turn in range(when.times)]

# SPDX-License-Identifier: GPL-3.0-or-later
"""Small builders for clusters: what a test does not say is a healthy node, a running guest, the default settings."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from agent.core.cluster import GIB, Guest, GuestType, Maintenance, Node, Snapshot, Task
from agent.core.json_types import Json
from agent.core.plan_types import Move, Plan
from agent.core.question import Question
from agent.core.settings import Settings
from agent.core.settings_check import check
from tests.core import checker

NOW = 1_767_000_000.0
DAY_S = 86400.0


def settings(document: Json = None) -> Settings:
    """The settings that a document states over the defaults."""
    result = check(document)
    assert isinstance(result, Settings), result
    return result


def node(name: str, memory_gib: float = 128.0, cores: float = 32.0, **other: object) -> Node:
    """A node that is up for a day; `cluster` fills in its load unless one is given."""
    known: dict[str, object] = {"online": True, "uptime_s": DAY_S, "sample_age_s": 5.0, "reports": True}
    return Node(name=name, cpu_cores=cores, memory_bytes=int(memory_gib * GIB), **(known | other))  # type: ignore[arg-type]


def vm(vmid: int, node: str, gib: float = 4.0, cpu: float = 0.5, *tags: str, **other: object) -> Guest:
    """A running VM that uses so many GiB and cores; it may use a quarter more memory and twice the cores."""
    known: dict[str, object] = {
        "type": GuestType.QEMU,
        "name": f"guest{vmid}",
        "status": "running",
        "cpu_cores": float(max(1, math.ceil(2 * cpu))),
        "memory_bytes": int(1.25 * gib * GIB),
        "cpu_used_cores": cpu,
        "memory_used_bytes": int(gib * GIB),
        "uptime_s": DAY_S,
        "tags": tags,
    }
    return Guest(vmid=vmid, node=node, **(known | other))  # type: ignore[arg-type]


def ct(vmid: int, node: str, gib: float = 4.0, cpu: float = 0.5, *tags: str, **other: object) -> Guest:
    """A running container, as `vm`."""
    return vm(vmid, node, gib, cpu, *tags, **({"type": GuestType.LXC} | other))


def stopped(guest: Guest) -> Guest:
    """The guest as PVE shows it when it does not run."""
    return replace(guest, status="stopped", cpu_used_cores=0.0, memory_used_bytes=0, uptime_s=0.0)


def started(guest: Guest, ago_s: float = 3.0) -> Guest:
    """The guest as PVE shows it right after its start: hardly any load yet."""
    return replace(guest, cpu_used_cores=0.0, memory_used_bytes=GIB // 8, uptime_s=ago_s)


def cluster(
    *things: Node | Guest | Task, system_gib: float = 2.0, system_cpu: float = 0.5, drain: Iterable[str] = (), **other: object
) -> Snapshot:
    """The snapshot of these nodes, guests and tasks; a node's load is its guests' and a bit for the system."""
    guests = sorted((thing for thing in things if isinstance(thing, Guest)), key=lambda guest: guest.vmid)
    nodes = []
    for one in sorted((thing for thing in things if isinstance(thing, Node)), key=lambda node: node.name):
        running = [guest for guest in guests if guest.node == one.name and guest.is_running]
        if one.cpu_used_cores is None and one.memory_used_bytes is None:
            cpu = system_cpu + math.fsum(guest.cpu_used_cores or 0.0 for guest in running)
            memory = int(system_gib * GIB) + sum(max(guest.memory_used_bytes or 0, guest.memory_host_bytes or 0) for guest in running)
            nodes.append(replace(one, cpu_used_cores=cpu, memory_used_bytes=memory))
        else:
            nodes.append(one)
    return Snapshot(
        taken_at=NOW,
        nodes=tuple(nodes),
        guests=tuple(guests),
        tasks=tuple(sorted((thing for thing in things if isinstance(thing, Task)), key=lambda task: task.started_at)),
        maintenance=tuple(Maintenance(name, "a test") for name in drain),
        **other,  # type: ignore[arg-type]
    )


def changed(snapshot: Snapshot, name: str, **fields: object) -> Snapshot:
    """The snapshot with one node changed."""
    return replace(snapshot, nodes=tuple(replace(one, **fields) if one.name == name else one for one in snapshot.nodes))  # type: ignore[arg-type]


def task(kind: str, node: str, target_id: int | str = "", ended_s_ago: float | None = None, status: str = "OK") -> Task:
    """A task of PVE, running unless it ended."""
    ended = None if ended_s_ago is None else NOW - ended_s_ago
    upid = f"UPID:{node}:00000001:00000002:{int(NOW):08X}:{kind}:{target_id}:root@pam:"
    return Task(upid, node, kind, str(target_id), "root@pam", NOW - 600, ended, None if ended is None else status)


def after_moves(snapshot: Snapshot, moves: Iterable[Move]) -> Snapshot:
    """The cluster when these moves are over and every guest takes what it took before."""
    place = {move.vmid: move.target for move in moves}
    cpu = {one.name: one.cpu_used_cores for one in snapshot.nodes}
    memory = {one.name: one.memory_used_bytes for one in snapshot.nodes}
    for guest in snapshot.guests:
        load = checker.measured(guest)
        if guest.vmid in place and load is not None:
            for name, sign in ((guest.node, -1), (place[guest.vmid], 1)):
                if cpu.get(name) is not None:
                    cpu[name] += sign * load[0]  # type: ignore[operator]
                    memory[name] += int(sign * load[1])  # type: ignore[operator]
    return replace(
        snapshot,
        nodes=tuple(replace(one, cpu_used_cores=cpu[one.name], memory_used_bytes=memory[one.name]) for one in snapshot.nodes),
        guests=tuple(replace(guest, node=place.get(guest.vmid, guest.node)) for guest in snapshot.guests),
    )


def facts(settings: Settings, question: Question | None = None) -> checker.Facts:
    """What the checker must know of the settings and the question, in plain values."""
    question = question or Question()
    balance = settings.balance

    def threshold(percent: float) -> float | None:
        return percent / 100 if 0 < percent < 100 else None

    return checker.Facts(
        reserve_fraction=balance.node_reserve.memory_percent / 100,
        reserve_bytes=balance.node_reserve.memory_gib * GIB,
        cpu_threshold=threshold(balance.cpu.threshold_percent),
        memory_threshold=threshold(balance.memory.threshold_percent),
        assigned_cap=balance.assigned_memory_cap_percent / 100 if balance.assigned_memory_cap_percent > 0 else None,
        cpu_weight=balance.cpu.weight,
        memory_weight=balance.memory.weight,
        tags_are_rules=settings.rules.tags != "off",
        registered_tags_only=settings.rules.tags == "registered",
        pools=tuple(
            checker.Pool(pool.name, pool.rule and pool.rule.value, frozenset(name.lower() for name in pool.pin), pool.strict)
            for pool in settings.pools
        ),
        containers=settings.guests.containers.value,
        stopped_leave=settings.drain.stopped,
        takes_disks=settings.guests.local_disks,
        storage_map=dict(settings.guests.storage_map),
        storage_full=threshold(balance.storage.threshold_percent) or 1.0,
        ignored_guests=settings.guests.is_ignored,
        ignored_nodes=frozenset(name.lower() for name in settings.nodes.ignore),
        drained_nodes=frozenset(name.lower() for name in settings.nodes.maintenance),
        cooling=frozenset() if question.force else frozenset(question.cooling),
        stepped_back=frozenset() if question.force else frozenset(question.stepped_back),
        set_aside=frozenset(question.set_aside),
        learned={vmid: (load.cpu_cores, load.memory_bytes) for vmid, load in question.ledger.learned.items()},
        in_flight=tuple(
            checker.Flight(one.vmid, one.source, one.target, one.load.cpu_cores, one.load.memory_bytes) for one in question.ledger.in_flight
        ),
        landed=question.ledger.landed,
        unsampled=question.ledger.unsampled,
        refused_guests=frozenset(vmid for vmid, verdict in question.verdicts.items() if verdict.refusal is not None),
        refused_nodes=frozenset((vmid, name) for vmid, verdict in question.verdicts.items() for name, _ in verdict.refused_nodes),
        avoided=frozenset((vmid, name) for vmid, names in question.avoided.items() for name in names),
        needs={vmid: verdict.needs for vmid, verdict in question.verdicts.items() if verdict.needs is not None},
        per_pass=question.moves_per_pass,
        left=question.moves_left,
        homes=dict(question.homes),
        scope_nodes=question.scope.nodes,
        scope_guests=question.scope.vmids,
        held=question.held,
        repairs_rules=question.repair_rules,
        evens_out=question.balance_load,
        has_begun=question.opened_by is not None,
        is_forced=question.force,
        spread_limit=balance.spread_percent / 100 or None,
        least_gain=balance.min_gain_percent / 100,
    )


def wrong_in(snapshot: Snapshot, plan: Plan, settings: Settings, question: Question | None = None) -> list[str]:
    """What the checker finds wrong in a plan."""
    return checker.wrong_in(snapshot, plan, facts(settings, question))


def left_undone(snapshot: Snapshot, plan: Plan, settings: Settings, question: Question | None = None) -> list[str]:
    """Whom the checker misses in a plan."""
    return checker.left_undone(snapshot, plan, facts(settings, question))


@dataclass(frozen=True)
class Draw:
    """What a random cluster is made from; equal draws give equal clusters."""

    seed: int
    nodes: int
    guests: int
    skew: float
    fill: float
    rules: float
    oddities: float


def random_cluster(draw: Draw) -> Snapshot:
    """A cluster whose guests crowd on some nodes, with rules, and with guests and nodes that need care.

    `skew` 0 spreads the guests evenly; `fill` is about the share of all memory in use; `rules` and `oddities` the share of
    guests that have a rule, or a reason to stay.
    """
    dice = random.Random(repr(draw))
    sizes = (
        [(64, 16), (128, 32), (256, 32), (64, 32), (256, 64)] if dice.random() < 0.4 else [dice.choice([(64, 16), (128, 32), (256, 64)])]
    )
    nodes = [node(f"pve{i + 1}", *dice.choice(sizes)) for i in range(draw.nodes)]
    room = draw.fill * sum(one.memory_bytes for one in nodes) / GIB - 2.0 * len(nodes)
    shares = [dice.expovariate(1.0) + 0.05 for _ in range(draw.guests)]
    weights = [one.memory_bytes * (1 + i) ** -draw.skew for i, one in enumerate(dice.sample(nodes, len(nodes)))]
    names = [one.name for one in nodes]
    left = {one.name: 0.97 * one.memory_bytes / GIB - 2.0 for one in nodes}
    guests = []
    for i, share in enumerate(shares):
        gib = max(0.25, min(48.0, room * share / sum(shares)))
        name = dice.choices(names, weights)[0]
        if left[name] < gib:
            name = max(left, key=lambda other: (left[other], other))
        if left[name] < gib:
            continue
        left[name] -= gib
        guest = (ct if dice.random() < 0.2 else vm)(100 + i, name, round(gib, 3), round(gib * dice.choice((0.02, 0.1, 0.25)), 3))
        guests.append(_with_oddity(guest, dice) if dice.random() < draw.oddities else guest)
    guests = _with_rules(guests, names, draw.rules, dice)
    odd_nodes = dice.random() < draw.oddities
    return cluster(
        *nodes,
        *guests,
        *([task("vzdump", dice.choice(names))] if odd_nodes and dice.random() < 0.3 else []),
        drain=[dice.choice(names)] if odd_nodes and dice.random() < 0.5 else [],
        no_target=(dice.choice(names),) if odd_nodes and dice.random() < 0.3 else (),
    )


def _with_oddity(guest: Guest, dice: random.Random) -> Guest:
    match dice.randrange(9):
        case 0:
            return stopped(guest)
        case 1:
            return started(guest)
        case 2:
            return replace(guest, ha="started")
        case 3:
            return replace(guest, tags=("plb_ignore",))
        case 4:
            return replace(guest, lock="backup")
        case 5:
            return replace(guest, status="paused")
        case 6:
            return replace(stopped(guest), template=True)
        case 7:
            return replace(guest, memory_host_bytes=int((guest.memory_used_bytes or 0) * 1.1))
        case _:
            return replace(guest, cpu_used_cores=None)


def _with_rules(guests: list[Guest], names: list[str], share: float, dice: random.Random) -> list[Guest]:
    tags: dict[int, list[str]] = {guest.vmid: list(guest.tags) for guest in guests}
    waiting = [guest.vmid for guest in guests if dice.random() < share]
    group = 0
    while waiting:
        group += 1
        kind = dice.choice(("affinity", "anti_affinity", "anti_affinity", "pin"))
        if kind == "pin":
            tags[waiting.pop()] += [f"plb_pin_{name}" for name in dice.sample(names, min(dice.choice((1, 2, 2)), len(names)))]
            continue
        for _ in range(min(len(waiting), dice.choice((2, 2, 3)))):
            vmid = waiting.pop()
            tags[vmid].append(f"plb_{kind}_g{group}")
            if dice.random() < 0.1:
                waiting.insert(0, vmid)
    return [replace(guest, tags=tuple(tags[guest.vmid])) for guest in guests]

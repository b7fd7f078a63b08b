# SPDX-License-Identifier: GPL-3.0-or-later
"""Made-up clusters of any size, the same for the same seed: for benchmarks, property tests and long simulations."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from agent.core.cluster import GIB, Guest, GuestType, HaResource, HighAvailability, Node, Snapshot
from agent.sim.inventory import LONG_UP_S, START_WALL_S, SimGuest, SimNode
from agent.sim.world import World

SIZES = ((3, 12), (16, 500), (32, 1000), (32, 3000), (64, 20000))  # nodes and guests of the benchmarks
FIRST_VMID = 100
NODE_CORES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
NODE_MEMORY_GIB = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
GUEST_SIZES = ((1, 1), (1, 2), (2, 2), (2, 4), (4, 8), (4, 16), (8, 16), (8, 32), (16, 64))  # cores and GiB
GUEST_WEIGHTS = (12, 16, 18, 24, 14, 7, 5, 3, 1)
OVERHEAD_CORES, OVERHEAD_BYTES = 0.5, 3 * GIB
ROOM_FRACTION = 0.92  # no node is filled beyond at the start


class Shape(StrEnum):
    """What kind of cluster."""

    ZIPF = "zipf"  # a few guests take most of the load
    UNIFORM = "uniform"  # guests of one size
    HOT = "hot"  # even, but one node in eight is close to its limit
    MIXED = "mixed"  # VMs and containers of all sizes on nodes of two sizes, some stopped, templates, managed by HA
    RULES = "rules"  # as mixed, with tags
    FULL = "full"  # as mixed, and little room anywhere


FILLED = {Shape.ZIPF: 0.5, Shape.UNIFORM: 0.5, Shape.HOT: 0.45, Shape.MIXED: 0.5, Shape.RULES: 0.5, Shape.FULL: 0.82}
WITH_EVERYTHING = frozenset({Shape.MIXED, Shape.RULES, Shape.FULL})
EVENLY_PLACED = frozenset({Shape.HOT, Shape.FULL})


@dataclass(slots=True)
class _Guest:
    """A guest while it is made."""

    vmid: int
    type: GuestType
    cores: int
    memory_bytes: int
    used_cores: float
    used_bytes: int
    status: str = "running"
    template: bool = False
    ha: str | None = None
    tags: tuple[str, ...] = ()
    node: int = -1


@dataclass(slots=True)
class _Node:
    """A node while it is filled."""

    cores: int
    memory_bytes: int
    weight: float
    used_cores: float = OVERHEAD_CORES
    used_bytes: int = OVERHEAD_BYTES

    def room_for(self, cores: float, memory: int) -> bool:
        return self.used_cores + cores <= ROOM_FRACTION * self.cores and self.used_bytes + memory <= ROOM_FRACTION * self.memory_bytes

    def free_fraction(self) -> float:
        return min(1 - self.used_cores / self.cores, 1 - self.used_bytes / self.memory_bytes)


@dataclass(slots=True)
class _Unit:
    """Guests that are placed one after the other: on one node, on different ones, or on one of some."""

    guests: list[_Guest]
    together: bool = False
    apart: bool = False
    allowed: tuple[int, ...] = field(default=())


def generate(seed: int, nodes: int, guests: int, shape: Shape | str = Shape.MIXED, *, violated_fraction: float = 0.3) -> Snapshot:
    """Return a cluster of that shape, in which no node uses more than it has.

    With shape `rules` the tags never contradict each other, and there is a placement that keeps most of them;
    `violated_fraction` of them are not looked at when guests are placed, so most of these are broken.
    """
    shape = Shape(shape)
    rng = random.Random(f"{seed} {nodes} {guests} {shape.value}")
    made = [_guest(rng, FIRST_VMID + number, shape) for number in range(guests)]
    where = _nodes(rng, made, nodes, shape)
    units = _rules(rng, made, nodes, violated_fraction) if shape is Shape.RULES else [_Unit([guest]) for guest in made]
    for unit in units:
        _place(rng, unit, where)
    if shape is Shape.HOT:
        _heat(rng, made, where)
    return _snapshot(made, where)


def world_from(
    snapshot: Snapshot, *, pve_version: str = "9.0.10", bandwidth_bytes_s: float = float(500 << 20), hook: bool = False
) -> World:
    """Return a world that looks like the snapshot: what a node uses beside its guests is its overhead.

    `hook`: proxlb-hook is attached to every guest.
    """
    guests = [_sim_guest(guest, hook) for guest in snapshot.guests]
    cores, memory = dict.fromkeys((n.name for n in snapshot.nodes), 0.0), dict.fromkeys((n.name for n in snapshot.nodes), 0)
    for guest in guests:
        if guest.has_process:
            cores[guest.node] += guest.used_cores
            memory[guest.node] += guest.taken_memory_bytes
    nodes = [
        SimNode(
            name=node.name,
            cores=node.cpu_cores,
            memory_bytes=node.memory_bytes,
            overhead_cores=max(0.0, (node.cpu_used_cores or 0.0) - cores[node.name]),
            overhead_memory_bytes=max(0, (node.memory_used_bytes or 0) - memory[node.name]),
            online=node.online,
            booted_at_s=-(node.uptime_s or LONG_UP_S),
        )
        for node in snapshot.nodes
    ]
    return World(nodes, guests, pve_version=pve_version, bandwidth_bytes_s=bandwidth_bytes_s)


def _sim_guest(guest: Guest, hook: bool) -> SimGuest:
    is_up = guest.is_running
    return SimGuest(
        vmid=guest.vmid,
        node=guest.node,
        name=guest.name,
        type=guest.type,
        cores=guest.cpu_cores,
        memory_bytes=guest.memory_bytes,
        used_cores=guest.cpu_used_cores or 0.0 if is_up else 0.25 * guest.cpu_cores,
        used_memory_bytes=guest.memory_used_bytes or 0 if is_up else guest.memory_bytes * 7 // 10,
        host_memory_bytes=guest.memory_host_bytes if is_up else None,
        status=guest.status,
        tags=guest.tags,
        pool=guest.pool,
        lock=guest.lock,
        ha=guest.ha,
        template=guest.template,
        hook=hook,
        since_s=-(guest.uptime_s or LONG_UP_S),
    )


def _guest(rng: random.Random, vmid: int, shape: Shape) -> _Guest:
    cores, gib = (4, 8) if shape is Shape.UNIFORM else rng.choices(GUEST_SIZES, GUEST_WEIGHTS)[0]
    if shape is Shape.ZIPF:
        rank = rng.randrange(1, 200)
        cores, gib = next(size for size in reversed(GUEST_SIZES) if size == GUEST_SIZES[0] or size[1] <= 128 / rank)
    busy = min(1.0, rng.lognormvariate(-1.9, 0.8)) if shape is not Shape.UNIFORM else rng.uniform(0.05, 0.4)
    guest = _Guest(
        vmid=vmid,
        type=GuestType.QEMU,
        cores=cores,
        memory_bytes=gib * GIB,
        used_cores=round(cores * busy, 3),
        used_bytes=int(gib * GIB * rng.uniform(0.35, 0.95)),
    )
    if shape in WITH_EVERYTHING:
        luck = rng.random()
        guest.type = GuestType.LXC if rng.random() < 0.2 else GuestType.QEMU
        if luck < 0.08:
            guest.status = "stopped"
            guest.template = luck < 0.02
        elif luck < 0.13:
            guest.ha = "started"
    return guest


def _nodes(rng: random.Random, guests: Sequence[_Guest], count: int, shape: Shape) -> list[_Node]:
    """Nodes of which the guests take about the share that the shape asks for."""
    running = [guest for guest in guests if guest.status == "running"]
    units = [1] * count
    if shape in WITH_EVERYTHING and count > 2:
        units = [2 if number % 3 == 0 else 1 for number in range(count)]
    cores = math.fsum(guest.used_cores for guest in running) / sum(units) / FILLED[shape] + OVERHEAD_CORES
    memory = sum(guest.used_bytes for guest in running) / sum(units) / FILLED[shape] + OVERHEAD_BYTES
    biggest_cores = max((guest.used_cores for guest in running), default=1.0) / ROOM_FRACTION + 2 * OVERHEAD_CORES
    biggest_bytes = max((guest.used_bytes for guest in running), default=GIB) / ROOM_FRACTION + 2 * OVERHEAD_BYTES
    node_cores = _at_least(NODE_CORES, max(cores, biggest_cores))
    node_bytes = _at_least(NODE_MEMORY_GIB, max(memory, biggest_bytes) / GIB) * GIB
    if shape is Shape.FULL:  # sizes of the shops would leave too much room
        node_bytes = math.ceil(max(memory, biggest_bytes) / (8 * GIB)) * 8 * GIB
    weights = [1.0 if shape in EVENLY_PLACED else rng.uniform(0.4, 1.6) for _ in units]
    return [_Node(node_cores * unit, node_bytes * unit, weight * unit) for unit, weight in zip(units, weights, strict=True)]


def _at_least(sizes: Sequence[int], wanted: float) -> int:
    return next((size for size in sizes if size >= wanted), sizes[-1] * math.ceil(wanted / sizes[-1]))


def _rules(rng: random.Random, guests: Sequence[_Guest], nodes: int, violated_fraction: float) -> list[_Unit]:
    """Tag some guests: one in three belongs to a group, is pinned or ignored. Each guest has one rule, so none contradict."""
    free = [guest for guest in guests if not guest.template]
    rng.shuffle(free)
    units: list[_Unit] = []

    def take(count: int) -> list[_Guest]:
        return [free.pop() for _ in range(min(count, len(free)))]

    for number in range(1, 1 + max(4, len(free) // 8)):
        kind = rng.choices(("affinity", "anti", "pin", "ignore"), (3, 4, 2, 1))[0]
        if kind == "affinity":
            unit = _Unit(take(rng.randint(2, 3)), together=True)
            tag = f"plb_affinity_g{number}"
        elif kind == "anti":
            unit = _Unit(take(min(nodes, rng.randint(2, 5))), apart=True)
            tag = f"plb_anti_affinity_g{number}"
        elif kind == "pin":
            allowed = tuple(sorted(rng.sample(range(nodes), min(nodes, rng.randint(1, 3)))))
            unit = _Unit(take(1), allowed=allowed)
            tag = ";".join(f"plb_pin_{_name(index)}" for index in allowed)
        else:
            unit = _Unit(take(1))
            tag = "plb_ignore"
        for guest in unit.guests:
            guest.tags = tuple(tag.split(";"))
        if rng.random() < violated_fraction:
            units += [_Unit([guest]) for guest in unit.guests]
        elif unit.guests:
            units.append(unit)
    alone = free + [guest for guest in guests if guest.template]
    return units + [_Unit([guest]) for guest in sorted(alone, key=lambda guest: guest.vmid)]


def _place(rng: random.Random, unit: _Unit, nodes: list[_Node]) -> None:
    """Put each guest on a node that has room, by the nodes' weights; shrink its load if none has."""
    every = unit.allowed or tuple(range(len(nodes)))
    taken: set[int] = set()
    if unit.together:
        cores, memory = (math.fsum(_load(guest)[0] for guest in unit.guests), sum(_load(guest)[1] for guest in unit.guests))
        fitting = [index for index in every if nodes[index].room_for(cores, memory)]
        every = (_choose(rng, nodes, fitting or list(every)),)
    for guest in unit.guests:
        cores, memory = _load(guest)
        wanted = [index for index in every if index not in taken] or list(every)
        fitting = [index for index in wanted if nodes[index].room_for(cores, memory)]
        if not fitting:
            index = max(wanted, key=lambda index: (nodes[index].free_fraction(), -index))
            _shrink(guest, nodes[index])
            cores, memory = _load(guest)
        else:
            index = _choose(rng, nodes, fitting)
        guest.node = index
        nodes[index].used_cores += cores
        nodes[index].used_bytes += memory
        if unit.apart:
            taken.add(index)


def _choose(rng: random.Random, nodes: Sequence[_Node], among: Sequence[int]) -> int:
    one, other = rng.choices(among, [nodes[index].weight for index in among], k=2)
    if nodes[one].weight == nodes[other].weight == 1.0:  # evenly: of two, the one with more room
        return max(one, other, key=lambda index: nodes[index].free_fraction())
    return one


def _load(guest: _Guest) -> tuple[float, int]:
    return (guest.used_cores, guest.used_bytes) if guest.status == "running" else (0.0, 0)


def _shrink(guest: _Guest, node: _Node) -> None:
    guest.used_cores = round(max(0.0, min(guest.used_cores, ROOM_FRACTION * node.cores - node.used_cores)) * 0.99, 3)
    guest.used_bytes = int(max(0.0, min(float(guest.used_bytes), ROOM_FRACTION * node.memory_bytes - node.used_bytes)))


def _heat(rng: random.Random, guests: Sequence[_Guest], nodes: list[_Node]) -> None:
    """Let the guests of one node in eight work until it is close to its limit."""
    for index in sorted(rng.sample(range(len(nodes)), max(1, len(nodes) // 8))):
        node = nodes[index]
        for guest in [guest for guest in guests if guest.node == index and guest.status == "running"]:
            more = max(0.0, min(guest.cores * 0.95 - guest.used_cores, ROOM_FRACTION * node.cores - node.used_cores))
            guest.used_cores = round(guest.used_cores + more * 0.99, 3)
            node.used_cores += more
            grown = max(0, min(int(guest.memory_bytes * 0.97) - guest.used_bytes, int(ROOM_FRACTION * node.memory_bytes) - node.used_bytes))
            guest.used_bytes += grown
            node.used_bytes += grown


def _name(index: int) -> str:
    return f"pve{index + 1:02d}"


def _snapshot(guests: Sequence[_Guest], nodes: Sequence[_Node]) -> Snapshot:
    cores = [OVERHEAD_CORES] * len(nodes)
    memory = [OVERHEAD_BYTES] * len(nodes)
    for guest in guests:
        used_cores, used_bytes = _load(guest)
        cores[guest.node] += used_cores
        memory[guest.node] += used_bytes
    return Snapshot(
        taken_at=START_WALL_S,
        nodes=tuple(
            Node(
                name=_name(index),
                online=True,
                cpu_cores=float(node.cores),
                memory_bytes=node.memory_bytes,
                cpu_used_cores=round(cores[index], 3),
                memory_used_bytes=memory[index],
                uptime_s=LONG_UP_S,
                sample_age_s=5.0,
                reports=True,
            )
            for index, node in enumerate(nodes)
        ),
        guests=tuple(_finished(guest) for guest in sorted(guests, key=lambda guest: guest.vmid)),
        ha=HighAvailability(tuple(_managed(guest) for guest in sorted(guests, key=lambda guest: guest.vmid) if guest.ha is not None)),
        pve_version="9.0.10",
    )


def _managed(guest: _Guest) -> HaResource:
    """The HA manager has the guest where it is, and leaves it to others where it should be."""
    return HaResource(guest.vmid, str(guest.ha), str(guest.ha), _name(guest.node))


def _finished(guest: _Guest) -> Guest:
    is_up = guest.status == "running"
    return Guest(
        vmid=guest.vmid,
        type=guest.type,
        name=f"{'vm' if guest.type is GuestType.QEMU else 'ct'}{guest.vmid}",
        node=_name(guest.node),
        status=guest.status,
        cpu_cores=float(guest.cores),
        memory_bytes=guest.memory_bytes,
        cpu_used_cores=guest.used_cores if is_up else 0.0,
        memory_used_bytes=guest.used_bytes if is_up else 0,
        memory_host_bytes=None if guest.type is GuestType.LXC else guest.used_bytes if is_up else 0,
        uptime_s=LONG_UP_S if is_up else 0.0,
        tags=guest.tags,
        ha=guest.ha,
        template=guest.template,
    )

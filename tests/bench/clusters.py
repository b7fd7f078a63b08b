# SPDX-License-Identifier: GPL-3.0-or-later
"""The clusters of the planner's benchmark, and how the played API shows one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from agent.core.cluster import Guest, Snapshot
from agent.sim.generator import SIZES, Shape, generate

SHAPES = tuple(shape.value for shape in Shape)
SERVED_TO_RIVALS = (32, 1000)  # the largest cluster that is put behind HTTPS


@dataclass(frozen=True, order=True)
class Case:
    """One cluster; `str()` names it as results and reports do: 16/500 zipf, seed 3."""

    nodes: int
    guests: int
    shape: str
    seed: int

    def __str__(self) -> str:
        return f"{self.size} {self.shape}, seed {self.seed}"

    @property
    def size(self) -> str:
        """Nodes and guests, as `--sizes` takes them."""
        return f"{self.nodes}/{self.guests}"

    def snapshot(self) -> Snapshot:
        """The cluster itself, the same each time."""
        return generate(self.seed, self.nodes, self.guests, self.shape)


def cases(sizes: Iterable[str], shapes: Iterable[str], seeds: int) -> Iterator[Case]:
    """Every case of these sizes (NODES/GUESTS) and shapes, with seeds from 1."""
    shapes = tuple(shapes)
    for size in sizes:
        nodes, _, guests = size.partition("/")
        for shape in shapes:
            for seed in range(1, seeds + 1):
                yield Case(int(nodes), int(guests), shape, seed)


def all_sizes() -> tuple[str, ...]:
    """The sizes of the benchmark."""
    return tuple(f"{nodes}/{guests}" for nodes, guests in SIZES)


def as_state(snapshot: Snapshot) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The nodes and guests for `tests.pve_server.client.cluster`; what a node uses beside its guests is its overhead.

    A container's memory is the node's for it; PVE tells what the host spends for a VM, which the generator makes equal to its own.
    """
    cores = dict.fromkeys((node.name for node in snapshot.nodes), 0.0)
    memory = dict.fromkeys((node.name for node in snapshot.nodes), 0)
    for guest in snapshot.guests:
        cores[guest.node] += guest.cpu_used_cores or 0.0
        memory[guest.node] += guest.memory_used_bytes or 0
    nodes = {
        node.name: {
            "cores": int(node.cpu_cores),
            "memory_bytes": node.memory_bytes,
            "overhead_cores": max(0.0, (node.cpu_used_cores or 0.0) - cores[node.name]),
            "overhead_bytes": max(0, (node.memory_used_bytes or 0) - memory[node.name]),
        }
        for node in snapshot.nodes
    }
    return nodes, [_guest(guest) for guest in snapshot.guests]


def _guest(guest: Guest) -> dict[str, Any]:
    return {
        "vmid": guest.vmid,
        "node": guest.node,
        "type": guest.type.value,
        "name": guest.name,
        "status": guest.status,
        "template": guest.template,
        "maxcpu": guest.cpu_cores,
        "maxmem_bytes": guest.memory_bytes,
        "cpu_cores": guest.cpu_used_cores or 0.0,
        "mem_bytes": guest.memory_used_bytes or 0,
        "tags": ";".join(guest.tags) or None,
        "ha": guest.ha,
    }

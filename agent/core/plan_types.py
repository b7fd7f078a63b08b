# SPDX-License-Identifier: GPL-3.0-or-later
"""What should be: moves, refusals, conflicts, and the plan that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent.core.cluster import GuestType
from agent.core.needs import GuestNeeds
from agent.core.reasons import MoveReason, RefusalReason


class Gate(StrEnum):
    """Which gate let load balancing begin."""

    CLOSED = "closed"
    OVERLOAD = "overload"
    SPREAD = "spread"
    FORCED = "forced"


@dataclass(frozen=True, slots=True)
class Move:
    """One guest from one node to another.

    Units:   `memory_bytes` is what is expected to be copied, `cpu_cores` the load it takes along; `gain` is what the
             move takes off the imbalance (negative when a rule or a drain costs balance); `disk_bytes` are copied besides.
    Shape:   `batch` counts from 1; moves of one batch may run at the same time. `first_pass` marks what the brakes let start now.
    """

    vmid: int
    type: GuestType
    name: str
    source: str
    target: str
    reason: MoveReason
    batch: int
    first_pass: bool
    memory_bytes: int
    cpu_cores: float
    gain: float
    is_running: bool = True
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a guest stays where it is."""

    vmid: int
    reason: RefusalReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A rule that cannot be kept as it is written."""

    rule: str
    vmids: tuple[int, ...]
    detail: str


@dataclass(frozen=True, slots=True)
class NodeFractions:
    """Load of one node, 0.0 idle to 1.0 full."""

    cpu_fraction: float
    memory_fraction: float


@dataclass(frozen=True, slots=True)
class Balance:
    """How even the usable nodes are loaded; imbalance 0.0 is even."""

    imbalance: float
    nodes: tuple[tuple[str, NodeFractions], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which guests should move, in which order, who stays and why, and what it changes."""

    taken_at: float
    trigger: str
    gate: Gate
    moves: tuple[Move, ...]
    refused: tuple[Refusal, ...]
    conflicts: tuple[Conflict, ...]
    before: Balance
    after: Balance
    evaluations: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was learned about a guest about to move.

    Shape:   `refusal` is why PVE does not let it move at all, `refused_nodes` maps nodes to why not there, both by PVE's own
             check; `needs` is what its configuration asks of a node, None when it was not read. `asked_at` in Unix seconds.
    Source:  GET .../migrate where PVE has it, and the guest's configuration.
    """

    vmid: int
    asked_at: float
    refusal: Refusal | None = None
    refused_nodes: tuple[tuple[str, Refusal], ...] = ()
    needs: GuestNeeds | None = None

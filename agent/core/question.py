# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of the planner: where to look, how far it may go, and what it must remember."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.core.guest_load import Ledger
from agent.core.plan_types import Gate, Verdict

NO_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class Scope:
    """Where to look. `nodes` None is everywhere; `vmids` are guests whose rules are looked at besides."""

    nodes: frozenset[str] | None = None
    vmids: frozenset[int] = frozenset()

    def covers_node(self, name: str) -> bool:
        """True when load may be moved away from the node."""
        return self.nodes is None or name in self.nodes

    def covers_guests(self, vmids: tuple[int, ...]) -> bool:
        """True when a rule of these guests is looked at."""
        return self.nodes is None or bool(self.vmids.intersection(vmids))

    def union(self, other: Scope) -> Scope:
        """The scope that covers both."""
        nodes = None if self.nodes is None or other.nodes is None else self.nodes | other.nodes
        return Scope(nodes, self.vmids | other.vmids)


EVERYWHERE = Scope()


@dataclass(frozen=True, slots=True)
class Question:
    """One question to the planner; the default asks for a whole plan with nothing remembered.

    Shape:   `held` are nodes whose overload has lasted long enough to count (None: all); `opened_by` is the gate through
             which load balancing has begun, which it then goes on with (None: it has not); `force` ignores gates and
             cooldowns; `balance_load` and `repair_rules` switch those phases; `cooling`, `set_aside` map a VMID to the
             words that say until when, `avoided` to such words for single nodes, `stepped_back` those that another balancer moves
             to what it did; `homes` maps a VMID to the node it left for a maintenance; `moves_per_pass` and `moves_left` are the
             brakes (maintenance is exempt).
    """

    trigger: str = "manual"
    scope: Scope = EVERYWHERE
    held: frozenset[str] | None = None
    opened_by: Gate | None = None
    force: bool = False
    balance_load: bool = True
    repair_rules: bool = True
    ledger: Ledger = field(default_factory=Ledger)
    cooling: Mapping[int, str] = field(default_factory=dict)
    stepped_back: Mapping[int, str] = field(default_factory=dict)
    set_aside: Mapping[int, str] = field(default_factory=dict)
    avoided: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    homes: Mapping[int, str] = field(default_factory=dict)
    verdicts: Mapping[int, Verdict] = field(default_factory=dict)
    moves_per_pass: int = NO_LIMIT
    moves_left: int = NO_LIMIT

# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner's sketch of the cluster: where everybody would be after the moves so far, and who may go where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.core.cluster import Snapshot
from agent.core.conditions import Conditions, Purpose
from agent.core.load import GuestLoad, NodeLoad, Weights, assigned_memory_bytes, expected_load, node_loads, why_over_assigned
from agent.core.plan_types import Refusal
from agent.core.question import Question
from agent.core.reasons import RefusalReason
from agent.core.rules import Rules, read_rules
from agent.core.settings import Settings, TagTrust


class NodeState:
    """A node in the sketch. Mutable: it belongs to one planner run and never leaves it."""

    __slots__ = (
        "_before",
        "assigned",
        "assigned_limit",
        "cpu_cores",
        "cpu_used",
        "leaving_cpu",
        "leaving_memory",
        "memory",
        "memory_limit",
        "memory_used",
        "name",
        "present",
    )

    def __init__(self, load: NodeLoad) -> None:
        self._before = load
        self.name = load.name
        self.cpu_cores = load.cpu_cores
        self.memory = load.memory_bytes
        self.cpu_used = load.cpu_used_cores
        self.memory_used = load.memory_used_bytes
        self.leaving_cpu = load.leaving_cpu_cores
        self.leaving_memory = load.leaving_memory_bytes
        self.memory_limit = load.memory_limit_bytes
        self.assigned = load.assigned_memory_bytes
        self.assigned_limit = load.assigned_limit_bytes
        self.present: set[int] = set()

    def as_load(self) -> NodeLoad:
        """The state as a value."""
        return replace(
            self._before,
            cpu_used_cores=self.cpu_used,
            memory_used_bytes=self.memory_used,
            counted_cpu_cores=self.cpu_used,
            counted_memory_bytes=self.memory_used,
            assigned_memory_bytes=self.assigned,
        )


class Placement:
    """The sketch: built from a snapshot, changed by `move`, asked by the phases of the planner.

    Deterministic: every iteration over guests or nodes is in order of VMID or name.
    """

    def __init__(self, snapshot: Snapshot, settings: Settings, question: Question) -> None:
        self.snapshot = snapshot
        self.settings = settings
        self.question = question
        self.node_of = {node.name: node for node in snapshot.nodes}
        self.guest_of = {guest.vmid: guest for guest in snapshot.guests}
        self.rules: Rules = read_rules(snapshot.guests, self.node_of, use_tags=settings.rules.tags is TagTrust.ALL)
        loads = node_loads(snapshot, question.ledger, settings)
        self.weights = Weights.of(settings, loads.values())
        self.states = {name: NodeState(load) for name, load in sorted(loads.items())}
        self.at: dict[int, str] = {}
        self.load_of: dict[int, GuestLoad] = {}
        for guest in snapshot.guests:
            self.at[guest.vmid] = guest.node
            self.load_of[guest.vmid] = expected_load(guest, question.ledger)
            if not guest.template and guest.node in self.states:
                self.states[guest.node].present.add(guest.vmid)
        for flight in question.ledger.in_flight:
            if flight.vmid in self.guest_of:
                self.load_of[flight.vmid] = flight.load
                if self.at[flight.vmid] == flight.source:
                    self.at[flight.vmid] = flight.target  # who must be with it goes there, whom it leaves is apart from it
                for name in (flight.source, flight.target):
                    if name in self.states:
                        self.states[name].present.add(flight.vmid)
        self.conditions = Conditions(snapshot, settings, question, self.rules)
        self.draining = self.conditions.draining
        self.usable = self.conditions.open_nodes
        self.evaluations = 0

    def restarted(self) -> Placement:
        """A new sketch of the same snapshot, before any move."""
        return Placement(self.snapshot, self.settings, self.question)

    # guests

    def unit_here(self, vmid: int) -> tuple[int, ...]:
        """The guests that must be where this one is and are on its node now, itself included."""
        node = self.at[vmid]
        return tuple(other for other in self.rules.unit(vmid) if self.at.get(other) == node)

    def why_unit_stays(self, unit: tuple[int, ...], purpose: Purpose) -> Refusal | None:
        """Why the guests cannot leave together, None when they can."""
        for vmid in unit:
            refusal = self.conditions.why_guest_stays(self.guest_of[vmid], purpose)
            if refusal is not None:
                if len(unit) == 1:
                    return refusal
                return Refusal(unit[0], RefusalReason.AFFINITY, f"guest {vmid} stays: {refusal.reason} {refusal.detail}".rstrip())
        return None

    def load_of_unit(self, unit: Iterable[int]) -> GuestLoad:
        """What the guests take together."""
        cpu = memory = 0.0
        for vmid in unit:
            cpu += self.load_of[vmid].cpu_cores
            memory += self.load_of[vmid].memory_bytes
        return GuestLoad(cpu, memory)

    def assigned_of_unit(self, unit: Iterable[int]) -> float:
        """The memory that the guests are configured with, together."""
        return sum(assigned_memory_bytes(self.guest_of[vmid]) for vmid in unit)

    # nodes

    def why_not_target(self, unit: tuple[int, ...], target: str, purpose: Purpose) -> Refusal | None:
        """Why the guests cannot go to the node now, None when they can.

        Looks at everything but the gain: state of the node, PVE's verdicts, rules, room on top of all that is on its way.
        """
        vmid = unit[0]
        if self.conditions.why_closed(target) is None and any(self.at[member] == target for member in unit):
            return Refusal(vmid, RefusalReason.SAME_NODE)
        for member in unit:
            if (never := self.conditions.why_never(self.guest_of[member], target, purpose)) is not None:
                return never
        if (rule := self.why_rules_forbid(unit, target)) is not None:
            return rule
        return self.why_no_room(self.load_of_unit(unit), self.assigned_of_unit(unit), vmid, target, purpose)

    def why_rules_forbid(self, unit: tuple[int, ...], target: str) -> Refusal | None:
        """Which rule the guests would break on the node, None when none."""
        present = self.states[target].present
        for member in unit:
            enemies = self.rules.apart.get(member)
            if enemies and not present.isdisjoint(enemies):
                return Refusal(member, RefusalReason.ANTI_AFFINITY, f"guest {min(present & enemies)} is there")
            for other in self.rules.unit(member):
                if other not in unit and self.at.get(other) != target:
                    return Refusal(member, RefusalReason.AFFINITY, f"guest {other} is on {self.at.get(other)}")
        return None

    def why_no_room(self, load: GuestLoad, assigned_bytes: float, vmid: int, target: str, purpose: Purpose) -> Refusal | None:
        """Which limit of the node the load would break, None when it fits with everything that is on its way."""
        state, weights = self.states[target], self.weights
        memory = state.memory_used + state.leaving_memory + load.memory_bytes
        cpu = state.cpu_used + state.leaving_cpu + load.cpu_cores
        if memory > state.memory_limit:
            return Refusal(vmid, RefusalReason.NO_MEMORY, f"{_gib(memory)} of {_gib(state.memory_limit)} GiB")
        if cpu > state.cpu_cores:
            return Refusal(vmid, RefusalReason.NO_CPU, f"{cpu:.1f} of {state.cpu_cores:g} cores")
        if (over := why_over_assigned(assigned_bytes, state.assigned, state.assigned_limit)) is not None:
            return Refusal(vmid, RefusalReason.OVER_ASSIGNED, over)
        if purpose is Purpose.LOAD:
            if weights.memory_threshold is not None and memory > weights.memory_threshold * state.memory:
                return Refusal(vmid, RefusalReason.OVER_THRESHOLD, f"memory {100 * memory / state.memory:.0f} %")
            if weights.cpu_threshold is not None and cpu > weights.cpu_threshold * state.cpu_cores:
                return Refusal(vmid, RefusalReason.OVER_THRESHOLD, f"cpu {100 * cpu / state.cpu_cores:.0f} %")
        return None

    def move(self, unit: tuple[int, ...], target: str) -> None:
        """Put the guests on the node, as if the migrations were over."""
        for vmid in unit:
            load, source = self.load_of[vmid], self.states.get(self.at[vmid])
            assigned = assigned_memory_bytes(self.guest_of[vmid])
            if source is not None:
                source.cpu_used -= load.cpu_cores
                source.memory_used -= load.memory_bytes
                source.assigned -= assigned
                source.present.discard(vmid)
            state = self.states[target]
            state.cpu_used += load.cpu_cores
            state.memory_used += load.memory_bytes
            state.assigned += assigned
            state.present.add(vmid)
            self.at[vmid] = target

    def loads(self) -> dict[str, NodeLoad]:
        """The loads of all nodes in the sketch as values."""
        return {name: state.as_load() for name, state in self.states.items()}


def _gib(amount_bytes: float) -> str:
    return f"{amount_bytes / (1 << 30):.1f}"

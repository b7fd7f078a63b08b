# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner's sketch of the cluster: where everybody would be after the moves so far, and who may go where."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from agent.core.cluster import Snapshot
from agent.core.conditions import Conditions, Purpose
from agent.core.guest_load import NO_LOAD, NO_PROCESS, GuestLoad, load_to_expect, measured_loads
from agent.core.imbalance import Weights
from agent.core.node_load import NodeLoad, assigned_memory_bytes, counted, node_loads, why_over_assigned
from agent.core.plan_types import Refusal
from agent.core.question import Question
from agent.core.reasons import RefusalReason
from agent.core.rule_reading import read_rules
from agent.core.rules import Rules
from agent.core.settings import Settings


class Burden(NamedTuple):
    """What guests add to a node, or what a node may still take: all that moves change, and all that limits them.

    Units:   cores, bytes, a fraction. `cpu_cores`, `memory_bytes` and `assigned_bytes` must fit; `counted_*` and the pressure
             are compared.
    """

    cpu_cores: float
    memory_bytes: float
    counted_cpu_cores: float
    counted_memory_bytes: float
    pressure_fraction: float
    assigned_bytes: float

    def plus(self, other: Burden) -> Burden:
        """Both together."""
        return Burden(*[one + more for one, more in zip(self, other, strict=True)])

    def minus(self, other: Burden) -> Burden:
        """This without the other."""
        return Burden(*[one - less for one, less in zip(self, other, strict=True)])

    def fits_into(self, room: Burden) -> bool:
        """True when no part of it is more than there is room for."""
        # pressure limits nobody: it is measured where guests are, not where they go
        return self[1] <= room[1] and self[0] <= room[0] and self[3] <= room[3] and self[2] <= room[2] and self[5] <= room[5]


NOTHING = Burden(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class NodeState:
    """A node in the sketch. Mutable: it belongs to one planner run and never leaves it."""

    __slots__ = ("_load", "_rooms", "name", "present", "sums")

    def __init__(self, load: NodeLoad) -> None:
        self.name = load.name
        self._load = load
        self.sums = Burden(
            load.cpu_used_cores,
            load.memory_used_bytes,
            load.counted_cpu_cores,
            load.counted_memory_bytes,
            load.pressure_fraction,
            load.assigned_memory_bytes,
        )
        self.present: set[int] = set()
        self._rooms: dict[bool, tuple[Burden, Burden]] = {}  # with thresholds and without; beside the sums of which it is the room

    @property
    def cpu_cores(self) -> float:
        """The size of the node in cores."""
        return self._load.cpu_cores

    @property
    def memory(self) -> float:
        """The size of the node in bytes."""
        return self._load.memory_bytes

    @property
    def memory_limit(self) -> float:
        """What guests and system may use of it, in bytes."""
        return self._load.memory_limit_bytes

    @property
    def assigned_limit(self) -> float | None:
        """The most memory that its guests may have assigned, in bytes; None without a cap."""
        return self._load.assigned_limit_bytes

    def as_load(self) -> NodeLoad:
        """The state as a value."""
        sums = self.sums
        return replace(
            self._load,
            cpu_used_cores=sums.cpu_cores,
            memory_used_bytes=sums.memory_bytes,
            counted_cpu_cores=sums.counted_cpu_cores,
            counted_memory_bytes=sums.counted_memory_bytes,
            pressure_fraction=sums.pressure_fraction,
            assigned_memory_bytes=sums.assigned_bytes,
        )

    def room(self, weights: Weights | None) -> Burden:
        """What still fits on top of all that is on its way; with weights, without lifting the node over a threshold."""
        load, sums = self._load, self.sums
        known = self._rooms.get(weights is None)
        if known is not None and known[0] is sums:
            return known[1]
        counted_cpu = counted_memory = math.inf
        if weights is not None and weights.cpu_threshold is not None:
            counted_cpu = weights.cpu_threshold * load.cpu_cores - sums.counted_cpu_cores - load.leaving_cpu_cores
        if weights is not None and weights.memory_threshold is not None:
            counted_memory = weights.memory_threshold * load.memory_bytes - sums.counted_memory_bytes - load.leaving_memory_bytes
        room = Burden(
            load.cpu_cores - sums.cpu_cores - load.leaving_cpu_cores,
            load.memory_limit_bytes - sums.memory_bytes - load.leaving_memory_bytes,
            counted_cpu,
            counted_memory,
            math.inf,
            math.inf if load.assigned_limit_bytes is None else load.assigned_limit_bytes - sums.assigned_bytes,
        )
        self._rooms[weights is None] = sums, room
        return room


_Undo = tuple[int, str, str, Burden | None, Burden]


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
        self.rules: Rules = read_rules(snapshot, settings)
        measured = measured_loads(snapshot)
        loads = node_loads(snapshot, question.ledger, settings, measured)
        self.weights = Weights.of(settings, loads.values())
        self.states = {name: NodeState(load) for name, load in sorted(loads.items())}
        self.at: dict[int, str] = {}
        self.load_of: dict[int, GuestLoad] = {}
        self._burdens: dict[int, Burden] = {}
        self._loads = loads
        for guest in snapshot.guests:
            self.at[guest.vmid] = guest.node
            known = measured.get(guest.vmid)
            self.load_of[guest.vmid] = load_to_expect(guest, question.ledger, known) if guest.is_running else NO_LOAD
            if not guest.template and guest.node in self.states:
                self.states[guest.node].present.add(guest.vmid)
        online = {node.name for node in snapshot.nodes if node.online}
        for flight in question.ledger.in_flight:
            if flight.vmid in self.guest_of:
                self.load_of[flight.vmid] = flight.load
                if self.at[flight.vmid] == flight.source and flight.source in online:
                    self.at[flight.vmid] = flight.target  # who must be with it goes there, whom it leaves is apart from it
                for name in (flight.source, flight.target):
                    if name in self.states:
                        self.states[name].present.add(flight.vmid)
        self.conditions = Conditions(snapshot, settings, question, self.rules, measured)
        self.draining = self.conditions.draining
        self.usable = self.conditions.open_nodes
        self._undo: list[_Undo] = []

    # guests

    def burden_of(self, vmid: int) -> Burden:
        """What the guest adds to a node; what it counts for is judged by the node it was on in the snapshot."""
        found = self._burdens.get(vmid)
        if found is None:
            guest, load = self.guest_of[vmid], self.load_of[vmid]
            if guest.status in NO_PROCESS and load == NO_LOAD:
                return NOTHING  # nor does it count where it is
            counts = counted(guest, load, self._loads.get(guest.node), self.settings)
            spare = self.question.ledger.spare(vmid, load)
            found = self._burdens[vmid] = Burden(
                load.cpu_cores + spare.cpu_cores,
                load.memory_bytes + spare.memory_bytes,
                counts.cpu_cores,
                counts.memory_bytes,
                counts.pressure_fraction,
                assigned_memory_bytes(guest),
            )
        return found

    def unit_here(self, vmid: int) -> tuple[int, ...]:
        """The guests that must be where this one is and are on its node now, itself included."""
        unit = self.rules.units.get(vmid)
        if unit is None:
            return (vmid,)
        node = self.at[vmid]
        return tuple(other for other in unit if self.at.get(other) == node)

    def why_unit_stays(self, unit: tuple[int, ...], purpose: Purpose) -> Refusal | None:
        """Why the guests cannot leave together, None when they can."""
        for vmid in unit:
            refusal = self.conditions.why_guest_stays(self.guest_of[vmid], purpose)
            if refusal is not None:
                if len(unit) == 1:
                    return refusal
                if refusal.reason in (RefusalReason.HA_EMPTIES, RefusalReason.NODE_STARTING):
                    return Refusal(unit[0], refusal.reason, f"guest {vmid}")  # ends by itself
                return Refusal(unit[0], RefusalReason.AFFINITY, f"guest {vmid} stays: {refusal.reason} {refusal.detail}".rstrip())
        return None

    def load_of_unit(self, unit: Iterable[int]) -> GuestLoad:
        """What the guests take together."""
        cpu = memory = 0.0
        for vmid in unit:
            load = self.load_of[vmid]
            cpu += load.cpu_cores
            memory += load.memory_bytes
        return GuestLoad(cpu, memory)

    def copied_bytes(self, unit: Iterable[int]) -> float:
        """What moving the guests copies: their memory, and disks that they take along."""
        return sum([self.load_of[vmid].memory_bytes + self.conditions.disk_bytes(self.guest_of[vmid]) for vmid in unit])

    def burden_of_unit(self, unit: tuple[int, ...]) -> Burden:
        """What the guests add to a node together."""
        if len(unit) == 1:
            return self.burden_of(unit[0])
        total = NOTHING
        for vmid in unit:
            total = total.plus(self.burden_of(vmid))
        return total

    # nodes

    def why_not_target(self, unit: tuple[int, ...], target: str, purpose: Purpose) -> Refusal | None:
        """Why the guests cannot go to the node now, None when they can.

        Looks at everything but the gain: state of the node, PVE's verdicts, rules, room on top of all that is on its way.
        """
        return self.why_not_allowed(unit, target, purpose) or self.why_no_room(self.burden_of_unit(unit), unit[0], target, purpose)

    def why_not_allowed(self, unit: tuple[int, ...], target: str, purpose: Purpose) -> Refusal | None:
        """As `why_not_target`, room left aside."""
        if target in [self.at[member] for member in unit] and self.conditions.why_closed(target) is None:
            return Refusal(unit[0], RefusalReason.SAME_NODE)
        for member in unit:
            if (never := self.conditions.why_never(self.guest_of[member], target, purpose)) is not None:
                return never
        return self.why_rules_forbid(unit, target)

    def why_rules_forbid(self, unit: tuple[int, ...], target: str) -> Refusal | None:
        """Which rule the guests would break on the node, None when none."""
        present = self.states[target].present
        for member in unit:
            if (foe := self.rules.foe(member, present)) is not None:
                return Refusal(member, RefusalReason.ANTI_AFFINITY, f"guest {foe[0]} is there; {foe[1].rule}")
            for other in self.rules.units.get(member, ()):
                if other not in unit and self.at.get(other) != target:
                    rule = self.rules.why_together(member, other)
                    return Refusal(member, RefusalReason.AFFINITY, f"guest {other} is on {self.at.get(other)}; {rule}")
        return None

    def room(self, target: str, purpose: Purpose) -> Burden:
        """What the node may still take for that purpose."""
        return self.states[target].room(self.weights if purpose is Purpose.LOAD else None)

    def idle_fraction(self, name: str) -> float:
        """What the guests of the node that do not run would take of its memory if they did: they are spread by that."""
        state = self.states[name]
        idle = (self.guest_of[vmid] for vmid in state.present if self.load_of[vmid] == NO_LOAD)
        return sum(assigned_memory_bytes(guest) for guest in idle) / state.memory

    def limit_broken(self, burden: Burden, target: str, purpose: Purpose) -> RefusalReason | None:
        """Which limit of the node the guests would break, None when they fit with everything that is on its way."""
        room, state = self.room(target, purpose), self.states[target]
        if burden.fits_into(room):
            return None
        if burden.memory_bytes > room.memory_bytes:
            return RefusalReason.NO_MEMORY
        if burden.cpu_cores > room.cpu_cores:
            return RefusalReason.NO_CPU
        if why_over_assigned(burden.assigned_bytes, state.sums.assigned_bytes, state.assigned_limit) is not None:
            return RefusalReason.OVER_ASSIGNED
        return RefusalReason.OVER_THRESHOLD

    def why_no_room(self, burden: Burden, vmid: int, target: str, purpose: Purpose) -> Refusal | None:
        """As `limit_broken`, with how far."""
        reason = self.limit_broken(burden, target, purpose)
        return None if reason is None else Refusal(vmid, reason, self._how_far(burden, target, purpose, reason))

    def _how_far(self, burden: Burden, target: str, purpose: Purpose, reason: RefusalReason) -> str:
        room, state = self.room(target, purpose), self.states[target]
        memory_limit, cores = state.memory_limit, state.cpu_cores
        if reason is RefusalReason.NO_MEMORY:
            return f"{_gib(memory_limit + burden.memory_bytes - room.memory_bytes)} of {_gib(memory_limit)} GiB"
        if reason is RefusalReason.NO_CPU:
            return f"{cores + burden.cpu_cores - room.cpu_cores:.1f} of {cores:g} cores"
        if reason is RefusalReason.OVER_ASSIGNED:
            return why_over_assigned(burden.assigned_bytes, state.sums.assigned_bytes, state.assigned_limit) or ""
        if burden.counted_memory_bytes > room.counted_memory_bytes:
            over = (burden.counted_memory_bytes - room.counted_memory_bytes) / state.memory + (self.weights.memory_threshold or 0.0)
            return f"memory {100 * over:.0f} %"
        over = (burden.counted_cpu_cores - room.counted_cpu_cores) / cores + (self.weights.cpu_threshold or 0.0)
        return f"cpu {100 * over:.0f} %"

    # changing

    def move(self, unit: tuple[int, ...], target: str) -> None:
        """Put the guests on the node, as if the migrations were over."""
        state = self.states[target]
        for vmid in unit:
            was_on, burden = self.at[vmid], self.burden_of(vmid)
            source = self.states.get(was_on)
            self._undo.append((vmid, was_on, target, None if source is None else source.sums, state.sums))
            if source is not None:
                source.sums = source.sums.minus(burden)
                source.present.discard(vmid)
            state.sums = state.sums.plus(burden)
            state.present.add(vmid)
            self.at[vmid] = target

    def mark(self) -> int:
        """A point to which `rollback` goes back."""
        return len(self._undo)

    def rollback(self, mark: int = 0) -> None:
        """Undo all moves since the mark (0: all), to the last bit: subtracting what was added would not be."""
        while len(self._undo) > mark:
            vmid, was_on, target, source_sums, target_sums = self._undo.pop()
            state = self.states[target]
            state.sums = target_sums
            state.present.discard(vmid)
            if source_sums is not None:
                source = self.states[was_on]
                source.sums = source_sums
                source.present.add(vmid)
            self.at[vmid] = was_on

    def loads(self) -> dict[str, NodeLoad]:
        """The loads of all nodes in the sketch as values."""
        return {name: state.as_load() for name, state in self.states.items()}


def _gib(amount_bytes: float) -> str:
    return f"{amount_bytes / (1 << 30):.1f}"

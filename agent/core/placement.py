# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner's sketch of the cluster: where everybody would be after the moves so far, and who may go where."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

from agent.core.cluster import BULK_KINDS, MIGRATE_KINDS, Guest, Node, Snapshot
from agent.core.load import NODE_SETTLED_S, GuestLoad, NodeLoad, Weights, expected_load, measured_load, node_loads, why_not_measured
from agent.core.plan_types import Refusal
from agent.core.question import Question
from agent.core.reasons import RefusalReason
from agent.core.rules import Rules, read_rules
from agent.core.settings import ContainerPolicy, Settings, TagTrust

_STUCK_STATES = frozenset({"paused", "suspended", "prelaunch", "io-error", "postmigrate", "unknown"})
_BACKUP = "vzdump"


class Purpose(Enum):
    """What a move is for: it decides which conditions apply."""

    DRAIN = auto()
    RULE = auto()
    LOAD = auto()


class NodeState:
    """A node in the sketch. Mutable: it belongs to one planner run and never leaves it."""

    __slots__ = ("cpu_cores", "cpu_used", "leaving_cpu", "leaving_memory", "memory", "memory_limit", "memory_used", "name", "present")

    def __init__(self, load: NodeLoad) -> None:
        self.name = load.name
        self.cpu_cores = load.cpu_cores
        self.memory = load.memory_bytes
        self.cpu_used = load.cpu_used_cores
        self.memory_used = load.memory_used_bytes
        self.leaving_cpu = load.leaving_cpu_cores
        self.leaving_memory = load.leaving_memory_bytes
        self.memory_limit = load.memory_limit_bytes
        self.present: set[int] = set()

    def as_load(self) -> NodeLoad:
        """The state as a value."""
        return NodeLoad(
            self.name,
            self.cpu_cores,
            self.memory,
            self.cpu_used,
            self.memory_used,
            self.leaving_cpu,
            self.leaving_memory,
            self.memory_limit,
        )


class Placement:
    """The sketch: built from a snapshot, changed by `move`, asked by the phases of the planner.

    Deterministic: every iteration over guests or nodes is in order of VMID or name.
    """

    def __init__(self, snapshot: Snapshot, settings: Settings, question: Question) -> None:
        self.snapshot = snapshot
        self.settings = settings
        self.question = question
        self.weights = Weights.of(settings)
        self.node_of = {node.name: node for node in snapshot.nodes}
        self.guest_of = {guest.vmid: guest for guest in snapshot.guests}
        self.rules: Rules = read_rules(snapshot.guests, self.node_of, use_tags=settings.rules.tags is TagTrust.ALL)
        self.states = {name: NodeState(load) for name, load in sorted(node_loads(snapshot, question.ledger, settings).items())}
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
        self.draining = {maintenance.node for maintenance in snapshot.maintenance}
        self.draining |= {name for name in self.node_of if _named(name, settings.nodes.maintenance)}
        self.draining &= self.node_of.keys()  # a flag that is left of a node long gone empties nobody
        self._busy = self._busy_guests()
        self._backup_nodes = {task.node for task in snapshot.tasks if task.is_running and task.kind == _BACKUP}
        self._blocked = {name: self._why_node_takes_nobody(node) for name, node in sorted(self.node_of.items())}
        self.usable = tuple(name for name in self.states if self._blocked[name] is None)
        self.evaluations = 0

    def restarted(self) -> Placement:
        """A new sketch of the same snapshot, before any move."""
        return Placement(self.snapshot, self.settings, self.question)

    # guests

    def _busy_guests(self) -> dict[int, str]:
        busy = {
            task.vmid: f"{task.kind} is running"
            for task in self.snapshot.tasks
            if task.is_running and task.vmid is not None and (task.kind in MIGRATE_KINDS or task.kind not in BULK_KINDS)
        }
        return busy | {flight.vmid: "it is migrating" for flight in self.question.ledger.in_flight}

    def why_guest_stays(self, guest: Guest, purpose: Purpose) -> Refusal | None:  # noqa: C901  # one line a condition
        """Why the guest cannot be moved for that purpose by anybody's plan, None when it can."""
        settings, vmid = self.settings, guest.vmid

        def refuse(reason: RefusalReason, detail: str = "") -> Refusal:
            return Refusal(vmid, reason, detail)

        if guest.template:
            return refuse(RefusalReason.TEMPLATE)
        node = self.node_of.get(guest.node)
        if node is None or not node.online:
            return refuse(RefusalReason.NODE_OFFLINE, guest.node)
        if guest.node not in self.draining and _named(guest.node, settings.nodes.ignore):
            return refuse(RefusalReason.NODE_IGNORED, guest.node)
        if guest.ha is not None:
            return refuse(RefusalReason.HA_MANAGED, guest.ha)
        if vmid in self.rules.ignored:
            return refuse(RefusalReason.IGNORED, "plb_ignore")
        if settings.guests.is_ignored(vmid):
            return refuse(RefusalReason.IGNORED, "guests.ignore")
        if guest.status in _STUCK_STATES:
            return refuse(RefusalReason.STATE, guest.status)
        if not guest.is_running:
            return refuse(RefusalReason.NOT_RUNNING, guest.status)
        if guest.lock:
            return refuse(RefusalReason.LOCKED, guest.lock)
        if vmid in self._busy:
            return refuse(RefusalReason.BUSY, self._busy[vmid])
        if guest.type == "lxc" and not self._containers_may(purpose):
            return refuse(RefusalReason.CONTAINER, f"guests.containers is {settings.guests.containers.value}")
        if vmid in self.rules.contradicted:
            return refuse(RefusalReason.CONFLICT)
        if vmid in self.question.set_aside:
            return refuse(RefusalReason.SET_ASIDE, self.question.set_aside[vmid])
        verdict = self.question.verdicts.get(vmid)
        if verdict is not None and verdict.refusal is not None:
            return verdict.refusal
        if purpose is Purpose.LOAD:
            if vmid in self.question.cooling and not self.question.force:
                return refuse(RefusalReason.COOLDOWN, self.question.cooling[vmid])
            if measured_load(guest) is None:
                return refuse(RefusalReason.LOAD_UNKNOWN)
        return None

    def _containers_may(self, purpose: Purpose) -> bool:
        policy = self.settings.guests.containers
        return policy is ContainerPolicy.ALWAYS or (policy is ContainerPolicy.MAINTENANCE and purpose is Purpose.DRAIN)

    def unit_here(self, vmid: int) -> tuple[int, ...]:
        """The guests that must be where this one is and are on its node now, itself included."""
        node = self.at[vmid]
        return tuple(other for other in self.rules.unit(vmid) if self.at.get(other) == node)

    def why_unit_stays(self, unit: tuple[int, ...], purpose: Purpose) -> Refusal | None:
        """Why the guests cannot leave together, None when they can."""
        for vmid in unit:
            refusal = self.why_guest_stays(self.guest_of[vmid], purpose)
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

    # nodes

    def _why_node_takes_nobody(self, node: Node) -> Refusal | None:
        def refuse(reason: RefusalReason, detail: str = "") -> Refusal:
            return Refusal(0, reason, detail)

        if not node.online:
            return refuse(RefusalReason.NODE_OFFLINE)
        if node.name in self.draining or node.name in self.snapshot.no_target:
            return refuse(RefusalReason.NODE_MAINTENANCE)
        if _named(node.name, self.settings.nodes.ignore):
            return refuse(RefusalReason.NODE_IGNORED)
        if (why := why_not_measured(node)) is not None:
            return refuse(RefusalReason.NODE_STALE, why)
        if node.uptime_s is not None and node.uptime_s < NODE_SETTLED_S:
            return refuse(RefusalReason.NODE_STARTING, f"up for {node.uptime_s:.0f} s")
        if node.reports is False:
            return refuse(RefusalReason.NODE_SILENT)
        if self.states[node.name].memory_limit <= 0:
            return refuse(RefusalReason.NO_MEMORY, "the reserve is all it has")  # a witness: neither a target nor part of the spread
        return None

    def has_backup(self, name: str) -> bool:
        """True while a backup runs on the node."""
        return name in self._backup_nodes

    def why_not_target(self, unit: tuple[int, ...], target: str, purpose: Purpose) -> Refusal | None:
        """Why the guests cannot go to the node now, None when they can.

        Looks at everything but the gain: state of the node, PVE's verdicts, rules, room on top of all that is on its way.
        """
        vmid = unit[0]
        if (blocked := self._blocked.get(target, Refusal(0, RefusalReason.NODE_OFFLINE))) is not None:
            return Refusal(vmid, blocked.reason, blocked.detail)
        if any(self.at[member] == target for member in unit):
            return Refusal(vmid, RefusalReason.SAME_NODE)
        if purpose is Purpose.LOAD and target in self._backup_nodes:
            return Refusal(vmid, RefusalReason.NODE_BACKUP)
        for member in unit:
            verdict = self.question.verdicts.get(member)
            if verdict is not None and (why := dict(verdict.refused_nodes).get(target)) is not None:
                return Refusal(member, RefusalReason.NODE_REFUSED, why)
        if (rule := self.why_rules_forbid(unit, target)) is not None:
            return rule
        return self.why_no_room(self.load_of_unit(unit), vmid, target, purpose)

    def why_rules_forbid(self, unit: tuple[int, ...], target: str) -> Refusal | None:
        """Which rule the guests would break on the node, None when none."""
        present = self.states[target].present
        for member in unit:
            pins = self.rules.pins.get(member)
            if pins is not None and target not in pins:
                return Refusal(member, RefusalReason.PINNED, "pinned to " + ", ".join(sorted(pins)))
            enemies = self.rules.apart.get(member)
            if enemies and not present.isdisjoint(enemies):
                return Refusal(member, RefusalReason.ANTI_AFFINITY, f"guest {min(present & enemies)} is there")
            for other in self.rules.unit(member):
                if other not in unit and self.at.get(other) != target:
                    return Refusal(member, RefusalReason.AFFINITY, f"guest {other} is on {self.at.get(other)}")
        return None

    def why_no_room(self, load: GuestLoad, vmid: int, target: str, purpose: Purpose) -> Refusal | None:
        """Which limit of the node the load would break, None when it fits with everything that is on its way."""
        state, weights = self.states[target], self.weights
        memory = state.memory_used + state.leaving_memory + load.memory_bytes
        cpu = state.cpu_used + state.leaving_cpu + load.cpu_cores
        if memory > state.memory_limit:
            return Refusal(vmid, RefusalReason.NO_MEMORY, f"{_gib(memory)} of {_gib(state.memory_limit)} GiB")
        if cpu > state.cpu_cores:
            return Refusal(vmid, RefusalReason.NO_CPU, f"{cpu:.1f} of {state.cpu_cores:g} cores")
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
            if source is not None:
                source.cpu_used -= load.cpu_cores
                source.memory_used -= load.memory_bytes
                source.present.discard(vmid)
            state = self.states[target]
            state.cpu_used += load.cpu_cores
            state.memory_used += load.memory_bytes
            state.present.add(vmid)
            self.at[vmid] = target

    def loads(self) -> dict[str, NodeLoad]:
        """The loads of all nodes in the sketch as values."""
        return {name: state.as_load() for name, state in self.states.items()}


def _named(name: str, names: Iterable[str]) -> bool:
    return name.lower() in {other.lower() for other in names}


def _gib(amount_bytes: float) -> str:
    return f"{amount_bytes / (1 << 30):.1f}"

# SPDX-License-Identifier: GPL-3.0-or-later
"""Says what is wrong in a plan, by its own reading of tags and loads: it shares no line with the planner.

While a batch runs nobody knows what has started and what is over, so each guest counts on both of its nodes: what a
target holds then is what it held before the batch plus everything that comes. No order and no subset of the batch holds
more, and each instant holds a part of that.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations, groupby

from agent.core.cluster import Guest, Node, Snapshot
from agent.core.needs import GuestNeeds
from agent.core.plan_types import Balance, Move, Plan
from tests.core.unfit import unfit

LOAD = {"overload", "spread", "manual"}
RULE = {"pin", "affinity", "anti-affinity"}
DRAIN = {"maintenance"}
HOME = {"return-home"}
ROUNDING = 1e-9
Load = tuple[float, float]  # cores, bytes


@dataclass(frozen=True)
class Flight:
    """A migration under way."""

    vmid: int
    source: str
    target: str
    cpu_cores: float
    memory_bytes: float


@dataclass(frozen=True)
class Facts:
    """What must be known beside the snapshot, in plain values; node names in lower case."""

    reserve_fraction: float = 0.05
    reserve_bytes: float = 4 * 2**30
    cpu_threshold: float | None = 0.8
    memory_threshold: float | None = 0.85
    assigned_cap: float | None = None
    cpu_weight: float = 1.0
    memory_weight: float = 1.0
    tags_are_rules: bool = True
    containers: str = "maintenance"
    ignored_guests: Callable[[int], bool] = lambda vmid: False
    ignored_nodes: frozenset[str] = frozenset()
    drained_nodes: frozenset[str] = frozenset()
    cooling: frozenset[int] = frozenset()
    set_aside: frozenset[int] = frozenset()
    learned: Mapping[int, Load] = field(default_factory=dict)
    in_flight: tuple[Flight, ...] = ()
    landed: frozenset[int] = frozenset()
    refused_guests: frozenset[int] = frozenset()
    refused_nodes: frozenset[tuple[int, str]] = frozenset()
    needs: Mapping[int, GuestNeeds] = field(default_factory=dict)
    most_first: int = 1 << 30


# loads


def number(value: float | None, size: float) -> float | None:
    """The value if it can be a load of something of that size."""
    return value if value is not None and math.isfinite(value) and 0 <= value <= 4 * size else None


def measured(guest: Guest) -> Load | None:
    """What PVE measured of a running guest."""
    cpu = number(guest.cpu_used_cores, max(1.0, _size(guest.cpu_cores)))
    amounts = [number(value, guest.memory_bytes) for value in (guest.memory_used_bytes, guest.memory_host_bytes)]
    known = [amount for amount in amounts if amount is not None]
    return (cpu, float(max(known))) if guest.status == "running" and cpu is not None and known else None


def expected(guest: Guest, facts: Facts) -> Load:
    """What the guest takes, or will take in a minute."""
    if guest.status != "running":
        return 0.0, 0.0
    now = measured(guest)
    if now is not None and guest.uptime_s is not None and guest.uptime_s >= 25 and guest.vmid not in facts.landed:
        return now
    cpu, memory = facts.learned.get(guest.vmid, (_size(guest.cpu_cores) / 4, _size(guest.memory_bytes) * 7 / 10))
    return (cpu, memory) if now is None else (max(cpu, now[0]), max(memory, now[1]))


def _size(value: float) -> float:
    return float(value) if math.isfinite(value) and 0 < value <= 1e18 else 0.0


def reported_memory(node: Node, guests: Iterable[Guest]) -> float:
    """The node's used memory without the ZFS cache that it would give back, which is never what its guests have."""
    reported, cache = float(node.memory_used_bytes or 0), number(node.zfs_cache_bytes, node.memory_bytes) or 0.0
    of_guests = sum((measured(guest) or (0.0, 0.0))[1] for guest in guests if guest.node == node.name)
    return reported if of_guests >= reported else max(reported - cache, of_guests)


def why_no_load(node: Node) -> str | None:
    """Why a node's load is unknown."""
    if not node.online:
        return "it is offline"
    if _size(node.cpu_cores) == 0 or _size(node.memory_bytes) == 0:
        return "it has no size"
    if number(node.cpu_used_cores, node.cpu_cores) is None or number(node.memory_used_bytes, node.memory_bytes) is None:
        return "its load is unknown"
    return "its load is old" if node.sample_age_s is not None and node.sample_age_s > 60 else None


class State:
    """The cluster between two moves, as the checker keeps it: loads for balance, what is still to leave, who is where."""

    def __init__(self, snapshot: Snapshot, facts: Facts) -> None:
        self.nodes = {node.name: node for node in snapshot.nodes if why_no_load(node) is None}
        self.cpu = {name: node.cpu_used_cores or 0.0 for name, node in self.nodes.items()}
        self.memory = {name: reported_memory(node, snapshot.guests) for name, node in self.nodes.items()}
        self.leaving: dict[str, Load] = defaultdict(lambda: (0.0, 0.0))
        self.at = {guest.vmid: guest.node for guest in snapshot.guests}
        self.also_at: dict[int, set[str]] = defaultdict(set)
        self.load = {guest.vmid: expected(guest, facts) for guest in snapshot.guests}
        flights = {flight.vmid: flight for flight in facts.in_flight}
        for guest in snapshot.guests:
            now = measured(guest) or (0.0, 0.0)
            flight = flights.get(guest.vmid)
            if flight is not None and guest.node not in (flight.source, flight.target):
                flight = None
            if flight is None or (guest.node == flight.target and guest.status == "running"):
                if guest.status == "running":
                    self._add(guest.node, self.load[guest.vmid], now)
                if flight is not None:
                    self.load[guest.vmid] = (flight.cpu_cores, flight.memory_bytes)
                    self.also_at[guest.vmid] = {flight.source, flight.target}
                continue
            planned = (flight.cpu_cores, flight.memory_bytes)
            self._add(flight.target, planned, (0.0, 0.0))
            if guest.status == "running":
                self._add(guest.node, (0.0, 0.0), now)
            stays = now if guest.status == "running" else planned
            if guest.node == flight.source:
                before = self.leaving[guest.node]
                self.leaving[guest.node] = (before[0] + stays[0], before[1] + stays[1])
            self.load[guest.vmid] = planned
            self.also_at[guest.vmid] = {flight.source, flight.target}
            self.at[guest.vmid] = flight.target
        for name in self.nodes:
            self.cpu[name], self.memory[name] = max(0.0, self.cpu[name]), max(0.0, self.memory[name])

    def _add(self, node: str, plus: Load, minus: Load) -> None:
        if node in self.nodes:
            self.cpu[node] += plus[0] - minus[0]
            self.memory[node] += plus[1] - minus[1]

    def move(self, vmid: int, target: str) -> None:
        """The guest is on the target now."""
        self._add(self.at[vmid], (0.0, 0.0), self.load[vmid])
        self._add(target, self.load[vmid], (0.0, 0.0))
        self.at[vmid] = target

    def nodes_of(self, vmid: int) -> set[str]:
        """Where the guest is, both nodes of one that is under way."""
        return {self.at[vmid]} | self.also_at[vmid]

    def fractions(self) -> dict[str, tuple[float, float]]:
        """Used shares of cpu and memory."""
        return {name: (self.cpu[name] / node.cpu_cores, self.memory[name] / node.memory_bytes) for name, node in self.nodes.items()}

    def imbalance(self, usable: Iterable[str], facts: Facts) -> float:
        """The weighted mean of the two standard deviations."""
        shares = [share for name, share in self.fractions().items() if name in set(usable)]
        weights = facts.cpu_weight, facts.memory_weight
        if not shares or sum(weights) == 0:
            return 0.0
        return sum(weight * _deviation([share[i] for share in shares]) for i, weight in enumerate(weights)) / sum(weights)


def _deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


# rules


@dataclass(frozen=True)
class Tags:
    """What the guests' tags ask for: groups by tag, pins by guest, guests that stay."""

    together: Mapping[str, tuple[int, ...]]
    apart: Mapping[str, tuple[int, ...]]
    pins: Mapping[int, frozenset[str]]
    ignored: frozenset[int]


def read_tags(snapshot: Snapshot, facts: Facts) -> Tags:
    """Read them anew."""
    names = {node.name.lower(): node.name for node in snapshot.nodes}
    together: dict[str, list[int]] = defaultdict(list)
    apart: dict[str, list[int]] = defaultdict(list)
    pins: dict[int, set[str]] = defaultdict(set)
    ignored = set()
    for guest in snapshot.guests:
        if guest.template or not facts.tags_are_rules:
            continue
        for tag in re.split(r"[;,\s]", ";".join(guest.tags)):
            found = re.fullmatch(r"plb_(anti_affinity|affinity|pin)_(.+)|plb_ignore(_.*)?", tag, re.IGNORECASE | re.DOTALL)
            if found is None:
                continue
            kind = (found[1] or "ignore").lower()
            if kind == "ignore":
                ignored.add(guest.vmid)
            elif kind == "pin" and found[2].lower() in names:
                pins[guest.vmid].add(names[found[2].lower()])
            elif kind == "affinity" and guest.status == "running" and guest.vmid not in together[tag.lower()]:
                together[tag.lower()].append(guest.vmid)
            elif kind == "anti_affinity" and guest.vmid not in apart[tag.lower()]:
                apart[tag.lower()].append(guest.vmid)
    return Tags(
        {tag: tuple(vmids) for tag, vmids in together.items()},
        {tag: tuple(vmids) for tag, vmids in apart.items()},
        {vmid: frozenset(nodes) for vmid, nodes in pins.items()},
        frozenset(ignored),
    )


def broken_rules(snapshot: Snapshot, facts: Facts) -> set[str]:
    """Every broken rule of a cluster at rest, one entry for each guest or pair of guests."""
    tags, at = read_tags(snapshot, facts), {guest.vmid: guest.node for guest in snapshot.guests}
    found = {f"pin {vmid}" for vmid, allowed in tags.pins.items() if at[vmid] not in allowed}
    found |= {f"apart {a} {b}" for vmids in tags.apart.values() for a, b in combinations(sorted(vmids), 2) if at[a] == at[b]}
    return found | {f"together {a} {b}" for vmids in tags.together.values() for a, b in combinations(sorted(vmids), 2) if at[a] != at[b]}


def overfull_nodes(snapshot: Snapshot, facts: Facts) -> set[str]:
    """Nodes that hold more than their reserve allows, or need more cores than they have."""
    state = State(snapshot, facts)
    return {
        name
        for name, node in state.nodes.items()
        if state.memory[name] > _memory_limit(node, facts) + 1 or state.cpu[name] > node.cpu_cores * (1 + ROUNDING)
    }


# plans


def wrong_in(snapshot: Snapshot, plan: Plan, facts: Facts) -> list[str]:
    """Everything that is wrong in the plan, each as `what: where`; an empty list is a good plan."""
    return list(_Check(snapshot, plan, facts).findings())


def _memory_limit(node: Node, facts: Facts) -> float:
    return node.memory_bytes - max(facts.reserve_fraction * node.memory_bytes, facts.reserve_bytes)


class _Check:
    def __init__(self, snapshot: Snapshot, plan: Plan, facts: Facts) -> None:
        self.snapshot, self.plan, self.facts = snapshot, plan, facts
        self.guests = {guest.vmid: guest for guest in snapshot.guests}
        self.tags = read_tags(snapshot, facts)
        self.drained = {entry.node for entry in snapshot.maintenance} | {
            node.name for node in snapshot.nodes if node.name.lower() in facts.drained_nodes
        }
        self.usable = {node.name for node in snapshot.nodes if self._why_not_usable(node) is None}
        self.backups = {task.node for task in snapshot.tasks if task.ended_at is None and task.kind == "vzdump"}
        self.busy = {
            task.target_id for task in snapshot.tasks if task.ended_at is None and task.kind not in ("startall", "stopall", "migrateall")
        }

    def findings(self) -> Iterator[str]:
        yield from self._form()
        moves = [
            move for move in self.plan.moves if move.vmid in self.guests and any(node.name == move.target for node in self.snapshot.nodes)
        ]
        for move in moves:
            yield from self._guest(move)
            yield from self._ends(move)
        state = State(self.snapshot, self.facts)
        yield from self._balance("before", self.plan.before, state)
        for _, batch in groupby(moves, key=lambda move: move.batch):
            yield from self._batch(list(batch), state)
        yield from self._balance("after", self.plan.after, state)

    # the plan's form

    def _form(self) -> Iterator[str]:
        moves, guests = self.plan.moves, self.guests
        vmids = [move.vmid for move in moves]
        for vmid in sorted({vmid for vmid in vmids if vmids.count(vmid) > 1}):
            yield f"twice: guest {vmid}"
        for move in moves:
            guest = guests.get(move.vmid)
            if guest is None:
                yield f"unknown: guest {move.vmid}"
            elif (move.source, move.name, move.type) != (guest.node, guest.name, guest.type):
                yield f"source: guest {move.vmid} is not on {move.source}"
            if move.source == move.target:
                yield f"source: guest {move.vmid} goes nowhere"
            if all(node.name != move.target for node in self.snapshot.nodes):
                yield f"target: {move.target} does not exist"
        numbers = [move.batch for move in moves]
        if numbers != sorted(numbers) or set(numbers) != set(range(1, len(set(numbers)) + 1)):
            yield f"batches: numbered {numbers}"
        if sum(move.first_pass for move in moves if move.reason.value not in DRAIN) > max(0, self.facts.most_first):
            yield "brakes: too many moves in the first pass"
        refused = [refusal.vmid for refusal in self.plan.refused]
        if refused != sorted(set(refused)) or set(refused) & set(vmids) or not set(refused) <= guests.keys():
            yield f"refused: {refused}"
        if moves and self.snapshot.unseen:
            yield "unseen: nobody may move while guests are hidden"

    # guests and nodes

    def _guest(self, move: Move) -> Iterator[str]:
        guest, vmid, why = self.guests[move.vmid], move.vmid, move.reason.value
        must_stay = {
            "template": guest.template,
            "ha": guest.ha is not None,
            "ignored": vmid in self.tags.ignored or self.facts.ignored_guests(vmid),
            "state": guest.status in ("paused", "suspended", "prelaunch", "io-error", "postmigrate", "unknown"),
            "running": guest.status != "running",
            "lock": bool(guest.lock),
            "busy": str(vmid) in self.busy or any(flight.vmid == vmid for flight in self.facts.in_flight),
            "containers": guest.type.value == "lxc"
            and (self.facts.containers == "never" or (self.facts.containers == "maintenance" and why not in DRAIN | HOME)),
            "set-aside": vmid in self.facts.set_aside,
            "verdict": vmid in self.facts.refused_guests or (vmid, move.target) in self.facts.refused_nodes,
            "cooldown": why in LOAD and vmid in self.facts.cooling,
            "unmeasured": why in LOAD and measured(guest) is None,
        }
        yield from (f"{what}: guest {vmid} must stay, and goes to {move.target}" for what, stays in must_stay.items() if stays)
        if (needs := self.facts.needs.get(vmid)) is not None:
            yield from (f"{what}: guest {vmid} does not go with {move.target}" for what in unfit(self.snapshot, guest, needs, move.target))
        pins = self.tags.pins.get(vmid)
        if pins is not None and move.target not in pins:
            yield f"pin: guest {vmid} goes to {move.target}"
        load = expected(guest, self.facts)
        if abs(move.memory_bytes - load[1]) > 1 or not math.isclose(move.cpu_cores, load[0], rel_tol=1e-6, abs_tol=ROUNDING):
            yield f"load: guest {vmid} takes {load}, not {(move.cpu_cores, move.memory_bytes)}"

    def _why_not_usable(self, node: Node) -> str | None:
        if (unknown := why_no_load(node)) is not None:
            return "offline" if not node.online else f"stale ({unknown})"
        if node.name in self.drained or node.name in self.snapshot.no_target:
            return "maintenance"
        if node.name.lower() in self.facts.ignored_nodes:
            return "ignored-node"
        if node.uptime_s is not None and node.uptime_s < 120:
            return "starting"
        if node.reports is False:
            return "silent"
        return None if _memory_limit(node, self.facts) > 0 else "witness"

    def _ends(self, move: Move) -> Iterator[str]:
        nodes = {node.name: node for node in self.snapshot.nodes}
        why_not = self._why_not_usable(nodes[move.target])
        if why_not is not None:
            yield f"{why_not}: {move.target} takes guest {move.vmid}"
        source, reason = nodes.get(move.source), move.reason.value
        if source is None or not source.online:
            yield f"offline: guest {move.vmid} leaves {move.source}"
        elif source.name.lower() in self.facts.ignored_nodes and source.name not in self.drained:
            yield f"ignored-node: guest {move.vmid} leaves {move.source}"
        if (reason in DRAIN) != (move.source in self.drained) and (reason in DRAIN or reason in LOAD | HOME):
            yield f"reason: guest {move.vmid} leaves {move.source} for {reason}"
        if reason in LOAD and source is not None and (why_source := self._why_not_usable(source)) is not None:
            yield f"{why_source}: load leaves {move.source}"
        if (reason in LOAD and move.source in self.backups) or (reason in LOAD | HOME and move.target in self.backups):
            yield f"backup: guest {move.vmid} goes from {move.source} to {move.target}"

    # batches

    def _batch(self, batch: list[Move], state: State) -> Iterator[str]:
        number = batch[0].batch
        comes: dict[str, list[Move]] = defaultdict(list)
        for move in batch:
            comes[move.target].append(move)
        for target, arriving in comes.items():
            yield from (f"{what} in batch {number}" for what in self._room(target, arriving, state))
            yield from (f"{what} in batch {number}" for what in self._apart(target, arriving, state))
        before = dict(state.at)
        for move in batch:
            was = state.imbalance(self.usable, self.facts)
            state.move(move.vmid, move.target)
            gain = was - state.imbalance(self.usable, self.facts)
            if not math.isclose(gain, move.gain, rel_tol=1e-6, abs_tol=1e-7):
                yield f"gain: guest {move.vmid} gains {gain}, not {move.gain}"
        for tag, vmids in self.tags.together.items():
            for one, other in combinations(vmids, 2):
                if before[one] == before[other] and state.at[one] != state.at[other]:
                    yield f"affinity: {tag} keeps {one} and {other} together, batch {number} does not"

    def _room(self, target: str, arriving: list[Move], state: State) -> Iterator[str]:
        node = state.nodes.get(target)
        if node is None:
            return
        cpu = state.cpu[target] + state.leaving[target][0] + sum(state.load[move.vmid][0] for move in arriving)
        memory = state.memory[target] + state.leaving[target][1] + sum(state.load[move.vmid][1] for move in arriving)
        if memory > _memory_limit(node, self.facts) + 1:
            yield f"memory: {target} holds {memory / 2**30:.2f} GiB, {_memory_limit(node, self.facts) / 2**30:.2f} are allowed,"
        if cpu > node.cpu_cores * (1 + ROUNDING):
            yield f"cpu: {target} needs {cpu:.2f} of {node.cpu_cores:g} cores"
        if self.facts.assigned_cap is not None:
            there = [
                guest
                for guest in self.guests.values()
                if target in state.nodes_of(guest.vmid) and guest.status not in ("stopped", "unknown")
            ]
            assigned = sum(_size(guest.memory_bytes) for guest in there)
            assigned += sum(_size(self.guests[move.vmid].memory_bytes) for move in arriving)
            if assigned > self.facts.assigned_cap * node.memory_bytes + 1:
                yield f"assigned: {target} has {assigned / 2**30:.2f} GiB of its {node.memory_bytes / 2**30:.2f} GiB assigned"
        if any(move.reason.value in LOAD | HOME for move in arriving):
            if self.facts.memory_threshold is not None and memory > self.facts.memory_threshold * node.memory_bytes + 1:
                yield f"threshold: memory of {target} is at {memory / node.memory_bytes:.3f}"
            if self.facts.cpu_threshold is not None and cpu > self.facts.cpu_threshold * node.cpu_cores * (1 + ROUNDING):
                yield f"threshold: cpu of {target} is at {cpu / node.cpu_cores:.3f}"

    def _apart(self, target: str, arriving: list[Move], state: State) -> Iterator[str]:
        comes = {move.vmid for move in arriving}
        for tag, vmids in self.tags.apart.items():
            there = {vmid for vmid in vmids if target in state.nodes_of(vmid)} | (comes & set(vmids))
            if len(there) > 1 and there & comes:
                yield f"anti-affinity: {tag} keeps {sorted(there)} apart, {target} has them"

    def _balance(self, when: str, told: Balance, state: State) -> Iterator[str]:
        imbalance = state.imbalance(self.usable, self.facts)
        if not math.isclose(imbalance, told.imbalance, rel_tol=1e-6, abs_tol=1e-7):
            yield f"balance: imbalance {when} is {imbalance}, not {told.imbalance}"
        fractions = {name: (load.cpu_fraction, load.memory_fraction) for name, load in told.nodes}
        mine = state.fractions()
        if list(fractions) != sorted(mine) or any(
            not math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-7) for name in mine for a, b in zip(mine[name], fractions[name], strict=True)
        ):
            yield f"balance: loads {when} are {mine}, not {fractions}"

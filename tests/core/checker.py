# SPDX-License-Identifier: GPL-3.0-or-later
"""Says what is wrong in a plan, by its own reading of rules and loads: it shares no line with the agent, not even its types.

While a batch runs nobody knows what has started and what is over, so each guest counts on both of its nodes: what a
target holds then is what it held before the batch plus everything that comes. No order and no subset of the batch holds
more, and each instant holds a part of that (`test_checker.py` goes through all of them).

Thresholds may be passed in one case: guests of one step arrive alone, within the reserve and the cores, and when the next batch
has taken others away the node is under its threshold, or no higher above it than before both batches.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations, groupby
from typing import Any

from tests.core.unfit import unfit

Snapshot = Node = Guest = GuestNeeds = Any  # as a snapshot's file names their fields
Plan = Move = Refusal = Balance = Any  # as the schema of a plan names theirs

LOAD = {"overload", "spread", "manual"}
RULE = {"pin", "affinity", "anti-affinity", "pool-rule"}
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
class Pool:
    """What is asked of the guests of a pool."""

    name: str
    rule: str | None
    pin: frozenset[str]
    strict: bool


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
    registered_tags_only: bool = False
    pools: tuple[Pool, ...] = ()
    containers: str = "maintenance"
    stopped_leave: bool = False
    takes_disks: bool = False
    storage_map: Mapping[str, str] = field(default_factory=dict)
    storage_full: float = 1.0
    ignored_guests: Callable[[int], bool] = lambda vmid: False
    ignored_nodes: frozenset[str] = frozenset()
    drained_nodes: frozenset[str] = frozenset()
    cooling: frozenset[int] = frozenset()
    stepped_back: frozenset[int] = frozenset()
    set_aside: frozenset[int] = frozenset()
    learned: Mapping[int, Load] = field(default_factory=dict)
    in_flight: tuple[Flight, ...] = ()
    landed: frozenset[int] = frozenset()
    unsampled: frozenset[int] = frozenset()
    refused_guests: frozenset[int] = frozenset()
    refused_nodes: frozenset[tuple[int, str]] = frozenset()
    avoided: frozenset[tuple[int, str]] = frozenset()
    needs: Mapping[int, GuestNeeds] = field(default_factory=dict)
    per_pass: int = 1 << 30
    left: int = 1 << 30
    homes: Mapping[int, str] = field(default_factory=dict)
    scope_nodes: frozenset[str] | None = None
    scope_guests: frozenset[int] = frozenset()
    held: frozenset[str] | None = None
    repairs_rules: bool = True
    evens_out: bool = True
    has_begun: bool = False
    is_forced: bool = False
    spread_limit: float | None = 0.2
    least_gain: float = 0.01


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
    if now is not None and guest.uptime_s is not None and not guest.uptime_s < 25 and guest.vmid not in facts.landed:
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
    if not (0.01 <= node.cpu_cores <= 1e18 and 2**20 <= node.memory_bytes <= 1e18):
        return "it has no size"
    if number(node.cpu_used_cores, node.cpu_cores) is None or number(node.memory_used_bytes, node.memory_bytes) is None:
        return "its load is unknown"
    return "its load is old" if node.sample_age_s is not None and node.sample_age_s > 60 else None


class State:
    """The cluster between two moves, as the checker keeps it: loads for balance, what is still to leave, who is where."""

    def __init__(self, snapshot: Snapshot, facts: Facts) -> None:
        self.nodes = {node.name: node for node in snapshot.nodes if why_no_load(node) is None}
        self.cpu = {name: node.cpu_used_cores or 0.0 for name, node in self.nodes.items()}
        unsampled = facts.unsampled - {flight.vmid for flight in facts.in_flight}
        sampled = [guest for guest in snapshot.guests if guest.vmid not in unsampled]
        self.memory = {name: reported_memory(node, sampled) for name, node in self.nodes.items()}
        self.leaving: dict[str, Load] = defaultdict(lambda: (0.0, 0.0))
        self.at = {guest.vmid: guest.node for guest in snapshot.guests}
        self.also_at: dict[int, set[str]] = defaultdict(set)
        self.load = {guest.vmid: expected(guest, facts) for guest in snapshot.guests}
        flights = {flight.vmid: flight for flight in facts.in_flight}
        for guest in snapshot.guests:
            now = measured(guest) or (0.0, 0.0)
            flight = flights.get(guest.vmid)
            if flight is None and guest.vmid in facts.unsampled:
                self._add(guest.node, facts.learned.get(guest.vmid, self.load[guest.vmid]), (0.0, 0.0))
                continue
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
    """What tags, pools and HA rules ask for: groups by name, pins by guest, guests that stay."""

    together: Mapping[str, tuple[int, ...]]
    apart: Mapping[str, tuple[int, ...]]
    pins: Mapping[int, frozenset[str]]
    ignored: frozenset[int]


class _Wishes:
    """The rules while they are read; a pin that is not strict waits until all that are strict are known."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.guests = [guest for guest in snapshot.guests if not guest.template]
        self.names = {node.name.lower(): node.name for node in snapshot.nodes}
        self.together: dict[str, list[int]] = defaultdict(list)
        self.apart: dict[str, list[int]] = defaultdict(list)
        self.strict: dict[int, list[set[str]]] = defaultdict(list)
        self.loose: dict[int, list[set[str]]] = defaultdict(list)
        self.ignored: set[int] = set()

    def group(self, kind: str | None, name: str, guest: Guest) -> None:
        """Only running guests are kept together; a stopped one keeps its place among those apart."""
        members = self.together if kind == "affinity" else self.apart
        if (kind == "affinity" and guest.status == "running") or kind == "anti-affinity":
            members[name] += [guest.vmid] if guest.vmid not in members[name] else []

    def tags(self, registered: tuple[str, ...] | None) -> None:
        """`registered` None: all tags count."""
        for guest in self.guests:
            chosen: set[str] = set()
            for tag in re.split(r"[;,\s]", ";".join(guest.tags)):
                found = re.fullmatch(r"plb_(anti_affinity|affinity|pin)_(.+)|plb_ignore(_.*)?", tag, re.IGNORECASE | re.DOTALL)
                if found is None or (registered is not None and tag not in registered):
                    continue
                kind = (found[1] or "ignore").lower()
                if kind == "ignore":
                    self.ignored.add(guest.vmid)
                elif kind == "pin":
                    chosen |= {self.names[found[2].lower()]} if found[2].lower() in self.names else set()
                else:
                    self.group(kind.replace("_", "-"), tag.lower(), guest)
            self.strict[guest.vmid] += [chosen] if chosen else []

    def pools(self, pools: tuple[Pool, ...]) -> None:
        for pool in pools:
            for guest in self.guests:
                if guest.pool == pool.name:
                    self.group(pool.rule, f"pool {pool.name}", guest)
                    nodes = {self.names[name] for name in pool.pin if name in self.names}
                    if nodes:
                        (self.strict if pool.strict else self.loose)[guest.vmid].append(nodes)

    def ha(self, snapshot: Snapshot) -> None:
        """A guest that fails back is kept on its best nodes that are there, another on any of its nodes."""
        known = {resource.vmid: resource for resource in snapshot.ha.resources if resource.requested != "ignored"}
        there = {node.name for node in snapshot.nodes if node.online and node.name not in snapshot.ha.closed_nodes}
        for guest in self.guests:
            if guest.vmid not in known:
                continue
            for rule in snapshot.ha.resource_affinity:
                if guest.vmid in rule.vmids:
                    self.group("affinity" if rule.together else "anti-affinity", f"ha {rule.name}", guest)
            for where in snapshot.ha.node_affinity:
                if guest.vmid not in where.vmids:
                    continue
                all_of_them = {name for name, _ in where.nodes}
                present = [priority for name, priority in where.nodes if name in there]
                best = {name for name, priority in where.nodes if name in there and priority == max(present)}
                if not known[guest.vmid].failback:
                    (self.strict if where.strict else self.loose)[guest.vmid].append(all_of_them)
                elif best or where.strict:
                    self.strict[guest.vmid].append(best)


def read_tags(snapshot: Snapshot, facts: Facts) -> Tags:
    """Read them anew."""
    wishes = _Wishes(snapshot)
    if facts.tags_are_rules:
        wishes.tags((snapshot.registered_tags or ()) if facts.registered_tags_only else None)
    wishes.pools(facts.pools)
    wishes.ha(snapshot)
    away = {entry.node for entry in snapshot.maintenance} | set(snapshot.no_target)
    there = {node.name for node in snapshot.nodes if node.online and node.name not in away and node.name.lower() not in facts.drained_nodes}
    pins: dict[int, frozenset[str]] = {}
    for guest in wishes.guests:
        allowed: set[str] | None = None
        for nodes in wishes.strict[guest.vmid]:
            allowed = nodes if allowed is None else allowed & nodes
        for nodes in wishes.loose[guest.vmid]:
            if nodes & there and (allowed is None or allowed & nodes):
                allowed = nodes if allowed is None else allowed & nodes
        if allowed is not None:
            pins[guest.vmid] = frozenset(allowed)
    return Tags(
        {tag: tuple(vmids) for tag, vmids in wishes.together.items()},
        {tag: tuple(vmids) for tag, vmids in wishes.apart.items()},
        pins,
        frozenset(wishes.ignored),
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


def left_undone(snapshot: Snapshot, plan: Plan, facts: Facts) -> list[str]:
    """Guests that should move and neither do so nor are named, or are refused although they could; as `wrong_in` tells it."""
    return list(_Check(snapshot, plan, facts).undone())


def _memory_limit(node: Node, facts: Facts) -> float:
    return node.memory_bytes - max(facts.reserve_fraction * node.memory_bytes, facts.reserve_bytes)


class _Check:
    def __init__(self, snapshot: Snapshot, plan: Plan, facts: Facts) -> None:
        self.snapshot, self.plan, self.facts = snapshot, plan, facts
        self.guests = {guest.vmid: guest for guest in snapshot.guests}
        self.tags = read_tags(snapshot, facts)
        self.flying = {flight.vmid for flight in facts.in_flight}
        self.contradicted = self._contradicted()
        self.nodes = {node.name: node for node in snapshot.nodes}
        self.drained = {entry.node for entry in snapshot.maintenance} | {
            node.name for node in snapshot.nodes if node.name.lower() in facts.drained_nodes
        }
        self.usable = {node.name for node in snapshot.nodes if self._why_not_usable(node) is None}
        self.backups = {task.node for task in snapshot.tasks if task.ended_at is None and task.kind == "vzdump"}
        self.busy = {
            task.target_id
            for task in snapshot.tasks
            if task.ended_at is None and task.kind not in ("startall", "stopall", "suspendall", "migrateall")
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
        yield from self._gate(state)
        batches = [list(batch) for _, batch in groupby(moves, key=lambda move: move.batch)]
        for batch, following in zip(batches, [*batches[1:], []], strict=False):
            yield from self._batch(batch, following, state)
        yield from self._balance("after", self.plan.after, state)
        for refusal in self.plan.refused:
            if refusal.vmid in self.guests and not self._is_true(refusal):
                yield f"refusal: it is not true that guest {refusal.vmid} stays for {refusal.reason.value} ({refusal.detail})"

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
        yield from self._brakes()
        refused = [refusal.vmid for refusal in self.plan.refused]
        if refused != sorted(set(refused)) or set(refused) & set(vmids) or not set(refused) <= guests.keys():
            yield f"refused: {refused}"
        if moves and self.snapshot.unseen:
            yield "unseen: nobody may move while guests are hidden"

    def _brakes(self) -> Iterator[str]:
        braked = [move for move in self.plan.moves if move.reason.value not in DRAIN]
        first = [move for move in braked if move.first_pass]
        if len(first) > max(0, self.facts.left):
            yield f"brakes: {len(first)} moves in the first pass, {self.facts.left} are left for this hour"
        if len(first) > max(0, self.facts.per_pass) and not (self.facts.per_pass > 0 and self._go_together(first)):
            yield f"brakes: {len(first)} moves in the first pass"
        for move, other in combinations(braked, 2):
            is_step = (move.source, move.target, move.batch) == (other.source, other.target, other.batch)
            if is_step and other.vmid in self._partners(move.vmid) and move.first_pass != other.first_pass:
                yield f"brakes: guests {move.vmid} and {other.vmid} stay together, and one of them goes in the first pass"

    def _go_together(self, first: list[Move]) -> bool:
        """Whether a pass is one unit, or one unit that comes to a node and one that leaves it in the next batch."""
        one = [move for move in first if move.vmid in self._partners(first[0].vmid)]
        other = [move for move in first if move not in one]
        if not other:
            return True
        is_unit = {move.vmid for move in other} <= set(self._partners(other[0].vmid))
        return is_unit and {move.source for move in other} == {one[0].target} and other[0].batch == one[0].batch + 1

    def _partners(self, vmid: int) -> list[int]:
        """The guests that must be where this one is, itself included, through however many groups."""
        found, new = [vmid], [vmid]
        while new:
            one = new.pop()
            others = {other for vmids in self.tags.together.values() if one in vmids for other in vmids} - set(found)
            found += sorted(others)
            new += sorted(others)
        return sorted(found)

    # guests and nodes

    def _guest(self, move: Move) -> Iterator[str]:
        guest, vmid = self.guests[move.vmid], move.vmid
        yield from (f"{what}: guest {vmid} must stay, and goes to {move.target}" for what in self._why_stays(guest, move.reason.value))
        if (vmid, move.target) in self.facts.refused_nodes:
            yield f"verdict: PVE does not allow guest {vmid} on {move.target}"
        if (vmid, move.target) in self.facts.avoided:
            yield f"avoided: guest {vmid} failed to migrate to {move.target}"
        if (needs := self.facts.needs.get(vmid)) is not None:
            how = (self.facts.takes_disks, self.facts.storage_map, self.facts.storage_full)
            lacks = unfit(self.snapshot, guest, needs, move.target, *how, comes_home=self.facts.homes.get(vmid) == move.target)
            yield from (f"{what}: guest {vmid} does not go with {move.target}" for what in lacks)
        pins = self.tags.pins.get(vmid)
        if pins is not None and move.target not in pins:
            yield f"pin: guest {vmid} goes to {move.target}"
        load = expected(guest, self.facts)
        if abs(move.memory_bytes - load[1]) > 1 or not math.isclose(move.cpu_cores, load[0], rel_tol=1e-6, abs_tol=ROUNDING):
            yield f"load: guest {vmid} takes {load}, not {(move.cpu_cores, move.memory_bytes)}"

    def _why_stays(self, guest: Guest, reason: str) -> list[str]:
        """What keeps the guest where it is, whatever the nodes: every cause that applies to a move made for that reason."""
        vmid = guest.vmid
        causes = {
            "template": guest.template,
            "shuts-down": guest.node in self.snapshot.going_down,
            "ha": not self._ha_lets_go(guest),
            "ignored": vmid in self.tags.ignored or self.facts.ignored_guests(vmid),
            "state": guest.status in ("paused", "suspended", "prelaunch", "io-error", "postmigrate", "unknown"),
            "running": guest.status != "running"
            and not (self.facts.stopped_leave and guest.status == "stopped" and reason in DRAIN | HOME),
            "lock": bool(guest.lock),
            "busy": str(vmid) in self.busy or vmid in self.flying or self._is_part_of_bulk(guest, reason),
            "containers": guest.type.value == "lxc"
            and guest.status == "running"
            and (self.facts.containers == "never" or (self.facts.containers == "maintenance" and reason not in DRAIN | HOME)),
            "conflict": vmid in self.contradicted,
            "set-aside": vmid in self.facts.set_aside,
            "verdict": vmid in self.facts.refused_guests,
            "cooldown": reason in LOAD and vmid in self.facts.cooling,
            "other-balancer": reason in LOAD and vmid in self.facts.stepped_back,
            "unmeasured": reason in LOAD and measured(guest) is None,
        }
        return [cause for cause, applies in causes.items() if applies]

    def _contradicted(self) -> set[int]:
        """Guests that must be on one node and cannot: two of them are to be kept apart, or no node is allowed for all."""
        found = {vmid for vmid, nodes in self.tags.pins.items() if not nodes}
        for vmid in {vmid for vmids in self.tags.together.values() for vmid in vmids}:
            unit = self._partners(vmid)
            is_split = any(len(set(unit) & set(vmids)) > 1 for vmids in self.tags.apart.values())
            allowed = [self.tags.pins[member] for member in unit if member in self.tags.pins]
            if is_split or (allowed and not frozenset.intersection(*allowed)):
                found |= set(unit)
        return found

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

    def _is_part_of_bulk(self, guest: Guest, reason: str) -> bool:
        """Whether a bulk action runs on the guest's node, or, unless it leaves for a drain or comes home, one of the whole cluster."""
        kinds = [(task.kind, task.node) for task in self.snapshot.tasks if task.ended_at is None]
        of_node = any(kind in ("startall", "stopall", "suspendall", "migrateall") and node == guest.node for kind, node in kinds)
        return of_node or (reason not in DRAIN | HOME and any(kind.startswith("bulk-") for kind, _ in kinds))

    def _starts_its_guests(self, node: Node) -> bool:
        """Whether the node has just booted, or PVE still starts there what is to run."""
        is_new = node.uptime_s is not None and node.uptime_s < 120
        return is_new or any(task.kind == "startall" and task.ended_at is None and task.node == node.name for task in self.snapshot.tasks)

    def _ha_lets_go(self, guest: Guest) -> bool:
        """Whether the HA manager, if the guest is its, leaves it to others and is not at work on it."""
        ha = self.snapshot.ha
        resource = next((one for one in ha.resources if one.vmid == guest.vmid), None)
        if resource is None:
            return guest.ha is None
        at_rest = (resource.requested, resource.state, resource.target, resource.maintenance_node) == ("started", "started", None, None)
        is_there = resource.node in (None, guest.node) and guest.node not in ha.closed_nodes
        left_to_us = not ha.disarmed and not (ha.balances and resource.auto_rebalance)
        left_to_us = left_to_us and not any(entry.node == guest.node and entry.shuts_down for entry in self.snapshot.maintenance)
        return resource.requested == "ignored" or (at_rest and is_there and left_to_us)

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
        elif self._starts_its_guests(source):
            yield f"starting: guest {move.vmid} leaves {move.source}"
        if (reason in DRAIN) != (move.source in self.drained) and (reason in DRAIN or reason in LOAD | HOME):
            yield f"reason: guest {move.vmid} leaves {move.source} for {reason}"
        if reason in LOAD and source is not None and (why_source := self._why_not_usable(source)) is not None:
            yield f"{why_source}: load leaves {move.source}"
        if (reason in LOAD and move.source in self.backups) or (reason in LOAD | HOME and move.target in self.backups):
            yield f"backup: guest {move.vmid} goes from {move.source} to {move.target}"

    # batches

    def _batch(self, batch: list[Move], following: list[Move], state: State) -> Iterator[str]:
        number = batch[0].batch
        comes: dict[str, list[Move]] = defaultdict(list)
        for move in batch:
            comes[move.target].append(move)
        for target, arriving in comes.items():
            wrong = list(self._room(target, arriving, state))
            if wrong and self._is_for_a_moment(target, arriving, batch, following, state):
                wrong = [what for what in wrong if not what.startswith("threshold")]
            yield from (f"{what} in batch {number}" for what in wrong)
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
                if (state.at[guest.vmid] == target or (target in state.nodes_of(guest.vmid) and guest.node != state.at[guest.vmid]))
                and guest.status not in ("stopped", "unknown")  # who has arrived already is on its target alone
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

    def _is_for_a_moment(self, target: str, arriving: list[Move], batch: list[Move], following: list[Move], state: State) -> bool:
        """Whether the next batch takes so much away that no threshold is passed any further than before both batches."""
        is_one_step = {move.vmid for move in arriving} <= set(self._partners(arriving[0].vmid))
        leaving = [move for move in following if move.source == target and move.first_pass >= arriving[0].first_pass]
        coming = arriving + [move for move in following if move.target == target]
        leaving += [move for move in batch if move.source == target and move.first_pass >= arriving[0].first_pass]
        node = state.nodes[target]
        sizes, tops = (node.cpu_cores, node.memory_bytes), (self.facts.cpu_threshold, self.facts.memory_threshold)
        before = (state.cpu[target] + state.leaving[target][0], state.memory[target] + state.leaving[target][1])
        for i in (0, 1):
            after = before[i] + sum(state.load[move.vmid][i] for move in coming) - sum(state.load[move.vmid][i] for move in leaving)
            top = tops[i]
            if top is not None and after > max(top * sizes[i], before[i]) + ROUNDING * sizes[i] + i:
                return False
        return is_one_step and any(move.source == target for move in following)

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

    # gates

    def _gate(self, state: State) -> Iterator[str]:
        """Load balancing begins past a gate only, and does not move anybody for less than the whole plan must gain."""
        facts, shares = self.facts, state.fractions()
        for_load = [move for move in self.plan.moves if move.reason.value in LOAD]
        if for_load and not facts.evens_out:
            yield "gate: load is not to be evened out"
        for name in sorted({move.source for move in for_load}):
            if facts.scope_nodes is not None and name not in facts.scope_nodes:
                yield f"scope: load leaves {name}"
        if not for_load or facts.is_forced or len(for_load) < len(self.plan.moves) or self._has_stuck():
            return  # who moves for other reasons may open the gate, and what has no order leaves a part of the plan
        if not facts.has_begun and not self._is_open(shares):
            yield f"gate: closed, and {len(for_load)} guests move for load"
        after = State(self.snapshot, facts)
        for move in for_load:
            after.move(move.vmid, move.target)
        gain = self._goal(state) - self._goal(after)
        if gain < facts.least_gain * (0.25 if facts.has_begun else 1.0) - ROUNDING:
            yield f"gain: the whole plan gains {gain}"

    def _is_open(self, shares: Mapping[str, tuple[float, float]]) -> bool:
        facts = self.facts
        inside = {name: shares[name] for name in self.usable}
        sources = {name for name in self.usable if (facts.scope_nodes is None or name in facts.scope_nodes) and name not in self.backups}
        tops = (facts.cpu_threshold, facts.memory_threshold)
        for name in sources if facts.held is None else sources & facts.held:
            if any(top is not None and share > top for share, top in zip(inside[name], tops, strict=True)):
                return True
        if facts.spread_limit is None or len(inside) < 2:
            return False
        weights = (facts.cpu_weight, facts.memory_weight)
        return any(
            weight > 0
            and max(share[i] for share in inside.values()) - min(share[i] for share in inside.values()) > facts.spread_limit - ROUNDING
            for i, weight in enumerate(weights)
        )

    def _goal(self, state: State) -> float:
        """Imbalance, and the mean over the nodes of the weighted mean of what stands above a threshold."""
        facts, shares = self.facts, [share for name, share in state.fractions().items() if name in self.usable]
        weights = (facts.cpu_weight, facts.memory_weight)
        if not shares or sum(weights) == 0:
            return 0.0
        tops = [math.inf if top is None else top for top in (facts.cpu_threshold, facts.memory_threshold)]
        over = sum(weights[i] * max(0.0, share[i] - tops[i]) for share in shares for i in (0, 1)) / sum(weights)
        return state.imbalance(self.usable, facts) + over / len(shares)

    # refusals

    def _has_stuck(self) -> bool:
        return any(refusal.reason.value == "no-order" for refusal in self.plan.refused)

    def undone(self) -> Iterator[str]:
        if self.snapshot.unseen:
            return
        state = State(self.snapshot, self.facts)
        for move in self.plan.moves:
            state.move(move.vmid, move.target)
        moved, conflicts = {move.vmid for move in self.plan.moves}, [set(conflict.vmids) for conflict in self.plan.conflicts]
        excused = self.flying | self.contradicted
        named = moved | {refusal.vmid for refusal in self.plan.refused} | excused.union(*conflicts)
        for vmids, reason, targets in self._wanted(state):
            if not named & set(vmids):
                yield f"unnamed: of the guests {sorted(vmids)} somebody should move for {reason}, and nobody says why not"
            elif not self._has_stuck() and not (moved | excused) & set(vmids) and not any(set(vmids) <= conflict for conflict in conflicts):
                ways = (way for vmid in vmids for way in targets if self._may_go(vmid, way, reason, state))
                yield from (f"refusal: one of the guests {sorted(vmids)} could go to {way} for {reason}" for way in list(ways)[:1])

    def _wanted(self, state: State) -> Iterator[tuple[tuple[int, ...], str, list[str]]]:
        """Guests of which one at least should move after the plan: for what, and where to any of them might."""
        usable = sorted(self.usable)
        for vmid, guest in self.guests.items():
            if state.at[vmid] in self.drained and not guest.template:
                yield (vmid,), "maintenance", usable
        if self.facts.repairs_rules:
            yield from self._wanted_by_rules(state, usable)
        if self.drained & {node.name for node in self.snapshot.nodes}:
            return
        for vmid, home in self.facts.homes.items():
            if vmid in self.guests and state.at[vmid] != home:
                partners = [other for other in self._partners(vmid) if state.at[other] == state.at[vmid]]
                if all(self.facts.homes.get(other) == home for other in partners):
                    yield tuple(partners), "return-home", [home] if home in self.usable and not self._moved_with(partners) else []

    def _moved_with(self, vmids: Iterable[int]) -> bool:
        return any(move.vmid in set(vmids) for move in self.plan.moves)

    def _wanted_by_rules(self, state: State, usable: list[str]) -> Iterator[tuple[tuple[int, ...], str, list[str]]]:
        for vmid, allowed in self.tags.pins.items():
            if self._is_in_scope([vmid]) and self.guests[vmid].status == "running" and state.at[vmid] not in allowed | self.drained:
                unit = tuple(self._partners(vmid))
                yield unit, "pin", sorted(self.usable & allowed) if len(unit) == 1 else []
        for vmids in self.tags.apart.values():
            if not self._is_in_scope(vmids):
                continue
            for one, other in combinations(sorted(vmids), 2):
                if state.at[one] == state.at[other] and state.at[one] not in self.drained:
                    alone = len(self._partners(one)) == len(self._partners(other)) == 1
                    crowd = tuple(vmid for vmid in vmids if state.at[vmid] == state.at[one])
                    yield (*self._partners(one), *self._partners(other)), "anti-affinity", usable if alone and len(crowd) == 2 else []
        for vmids in self.tags.together.values():
            if len({state.at[vmid] for vmid in vmids}) > 1 and self._is_in_scope(self._partners(vmids[0])):
                yield tuple(self._partners(vmids[0])), "affinity", []

    def _is_in_scope(self, vmids: Iterable[int]) -> bool:
        return self.facts.scope_nodes is None or bool(self.facts.scope_guests & set(vmids))

    def _may_go(self, vmid: int, target: str, reason: str, state: State) -> bool:
        """Whether the guest, with those that must be with it and are, may go there after the plan."""
        source = state.at[vmid]
        unit = [other for other in self._partners(vmid) if state.at[other] == source]
        node = self.nodes.get(source)
        if target == source or target not in self.usable or node is None or not node.online:
            return False
        if node.name.lower() in self.facts.ignored_nodes and node.name not in self.drained:
            return False
        if reason in LOAD | HOME and target in self.backups:
            return False
        for member in unit:
            if self._why_stays(self.guests[member], reason) or (member, target) in self.facts.refused_nodes | self.facts.avoided:
                return False
            if target not in self.tags.pins.get(member, {target}):
                return False
        if any(state.at[other] != target for other in self._partners(vmid) if other not in unit):
            return False
        arriving = [_Arrival(member, reason, target) for member in unit]
        return not any(self._room(target, arriving, state)) and not any(self._apart(target, arriving, state))

    def _is_true(self, refusal: Refusal) -> bool:
        """Whether what a refusal says of the guest itself is so; of a node, whether there is a node of which it is."""
        guest, reason = self.guests[refusal.vmid], refusal.reason.value
        cause = _CAUSES.get(reason)
        if cause is not None:
            along = self._partners(refusal.vmid) if reason == "ha-empties" else [refusal.vmid]  # who must be with it waits along with it
            is_so = any(cause in self._why_stays(self.guests[vmid], "spread") for vmid in along)
            return is_so or (reason == "locked" and refusal.vmid in self.facts.refused_guests)
        if reason in ("local-disk", "local-device", "precondition", "unanswered"):
            return refusal.vmid in self.facts.refused_guests or refusal.vmid in self.facts.needs
        closed = {self._why_not_usable(node) for node in self.snapshot.nodes}
        return {
            "node-offline": lambda: "offline" in closed or guest.node not in self.nodes or refusal.vmid in self.facts.homes,
            "node-maintenance": lambda: bool(self.drained or self.snapshot.no_target),
            "node-ignored": lambda: bool(self.facts.ignored_nodes & {name.lower() for name in self.nodes}),
            "node-starting": lambda: "starting" in closed or any(self._starts_its_guests(node) for node in self.snapshot.nodes),
            "node-silent": lambda: "silent" in closed,
            "node-stale": lambda: any(why is not None and why.startswith("stale") for why in closed),
            "node-backup": lambda: bool(self.backups),
            "node-refused": lambda: any(vmid in self._partners(refusal.vmid) for vmid, _ in self.facts.refused_nodes),
            "node-failed": lambda: any(vmid in self._partners(refusal.vmid) for vmid, _ in self.facts.avoided),
            "pinned": lambda: any(vmid in self.tags.pins for vmid in self._partners(refusal.vmid)),
            "affinity": lambda: len(self._partners(refusal.vmid)) > 1,
            "anti-affinity": lambda: any(vmid in vmids for vmids in self.tags.apart.values() for vmid in self._partners(refusal.vmid)),
        }.get(reason, lambda: True)()  # what depends on room is judged by where the guest might go after all


@dataclass(frozen=True)
class _Reason:
    value: str


class _Arrival:
    """A move that is not in the plan, for what a node would hold with it."""

    def __init__(self, vmid: int, reason: str, target: str) -> None:
        self.vmid, self.reason, self.target = vmid, _Reason(reason), target


_CAUSES = {
    "ignored": "ignored",
    "ha-balanced": "ha",
    "ha-busy": "ha",
    "ha-empties": "ha",
    "template": "template",
    "node-shuts-down": "shuts-down",
    "not-running": "running",
    "state": "state",
    "locked": "lock",
    "busy": "busy",
    "container": "containers",
    "cooldown": "cooldown",
    "other-balancer": "other-balancer",
    "set-aside": "set-aside",
    "load-unknown": "unmeasured",
    "conflict": "conflict",
}

# SPDX-License-Identifier: GPL-3.0-or-later
"""Which guests should move: from a snapshot to a plan that gains, or to the reasons why nothing moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from agent.core.cluster import GuestType, Snapshot
from agent.core.conditions import Purpose
from agent.core.goal import Goal, move_cost
from agent.core.load import balance_of, over_threshold, spread
from agent.core.order import into_batches
from agent.core.placement import Placement
from agent.core.plan_types import Conflict, Gate, Move, Plan, Refusal
from agent.core.question import Question
from agent.core.reasons import LOAD_REASONS, MoveReason, RefusalReason
from agent.core.rules import crowded
from agent.core.settings import Settings
from agent.core.steps import Step

MOST_ROUNDS = 10  # of evening out and putting right; each repairs something that was broken, and one or two do nearly always
TRIED_FIRST = 6  # the fullest nodes as sources and the emptiest as targets hold a good step nearly always; all are tried when they do not

GO_ON_FRACTION = 0.25  # of min_gain: what a plan that has begun must still gain, so that its tail is carried out, and noise is not


def plan(snapshot: Snapshot, settings: Settings, question: Question | None = None) -> Plan:
    """Return the moves that put the cluster right: maintenance, then broken rules, return home, then load.

    Looks one step ahead: two moves that only help together are not found. The plan is whole: it goes on until no step
    lowers the goal by more than it costs. Ties go to the smallest VMID, then to the node's name.

    Shape:   every move's guest is in the snapshot and moves once; every refusal names a guest that was looked at.
    Raises:  nothing; a snapshot without usable nodes gives a plan without moves.
    Source:  Ganeti hbal, its steepest descent over a table of statistics.
    """
    question = question or Question()
    snapshot = replace(  # sums of floats depend on their order
        snapshot,
        nodes=tuple(sorted(snapshot.nodes, key=lambda node: node.name)),
        guests=tuple(sorted(snapshot.guests, key=lambda guest: guest.vmid)),
        tasks=tuple(sorted(snapshot.tasks, key=lambda task: (task.started_at, task.upid))),
    )
    planner = _Planner(snapshot, settings, question)
    result = planner.run()
    if planner.has_stuck_repair:  # going to better nodes for load made it stuck: what must be comes first
        result = _Planner(snapshot, settings, question, repairs_are_final=True).run()
    return result


class _Planner:
    def __init__(self, snapshot: Snapshot, settings: Settings, question: Question, *, repairs_are_final: bool = False) -> None:
        self.snapshot, self.settings, self.question = snapshot, settings, question
        self.repairs_are_final = repairs_are_final
        self.has_stuck_repair = False
        self.sketch = Placement(snapshot, settings, question)
        self.goal = Goal(self.sketch)
        self.weights = self.sketch.weights
        self.steps: list[Step] = []
        self.refused: dict[int, Refusal] = {}
        self.in_flight = {flight.vmid for flight in self.question.ledger.in_flight}
        self.evaluations = 0

    def run(self) -> Plan:
        sketch = self.sketch
        before = balance_of(sketch.loads(), sketch.usable, self.weights)
        conflicts = list(sketch.rules.conflicts)
        if sketch.rules.anti_affinity:
            conflicts += crowded(sketch.rules, len(sketch.usable))
        gate = Gate.CLOSED
        if not self.snapshot.unseen:
            hopeless = {conflict.rule for conflict in conflicts}
            self._put_right(hopeless)
            if self.question.balance_load:
                gate, sources = self._gate()
                for _ in range(MOST_ROUNDS if gate is not Gate.CLOSED else 0):
                    self._balance(gate, sources)
                    before_repairs = list(self.steps)
                    self._put_right(hopeless)  # evened out, the nodes may have room for what had none
                    if self.steps == before_repairs:
                        break
        moves = self._ordered()
        moved = {move.vmid for move in moves}
        return Plan(
            taken_at=self.snapshot.taken_at,
            trigger=self.question.trigger,
            gate=gate,
            moves=tuple(moves),
            refused=tuple(refusal for vmid, refusal in sorted(self.refused.items()) if vmid not in moved),
            conflicts=tuple(sorted(conflicts, key=lambda conflict: (conflict.rule, conflict.vmids))),
            before=before,
            after=self._after,
            evaluations=self.evaluations,
        )

    def _put_right(self, hopeless: set[str]) -> None:
        """What does not wait for a gate: maintenance, broken rules, the way home."""
        self._drain()
        if self.question.repair_rules:
            self._repair_pins()
            self._repair_affinity()
            self._repair_anti_affinity(hopeless)
        self._return_home()

    # steps

    def _take(self, unit: tuple[int, ...], target: str, reason: MoveReason) -> None:
        """Make the step in the sketch; a guest that moved before in this plan goes straight to its last target.

        Who moves anyway, for maintenance or a rule, and goes to a better node for load keeps the reason why it moves.
        """
        replaced = self._steps_of(unit)
        self.steps = [step for step in self.steps if step not in replaced]
        if reason in LOAD_REASONS and len(replaced) == 1 and set(replaced[0].vmids) == set(unit):
            reason = replaced[0].reason
        leaves = tuple((vmid, node) for vmid in unit if (node := self.sketch.guest_of[vmid].node) != target)
        self.sketch.move(unit, target)
        self.goal.changed()
        if leaves:
            self.steps.append(Step(leaves, target, reason))

    def _steps_of(self, unit: tuple[int, ...]) -> list[Step]:
        return [step for step in self.steps if not set(step.vmids).isdisjoint(unit)]

    def _refuse(self, refusal: Refusal) -> None:
        if refusal.vmid not in self.in_flight:
            self.refused.setdefault(refusal.vmid, refusal)

    def _best_target(self, unit: tuple[int, ...], targets: Iterable[str], purpose: Purpose) -> tuple[str | None, Refusal]:
        """The allowed target with the lowest goal, and, when there is none, why the nodes refuse."""
        load = self.sketch.load_of_unit(unit)
        source = self.sketch.at[unit[0]]
        found: tuple[float, str] | None = None
        reasons: Counter[str] = Counter()
        for name in targets:
            refusal = self.sketch.why_not_target(unit, name, purpose)
            if refusal is not None:
                if name != source:
                    reasons[f"{name}: {refusal.reason}" + (f" ({refusal.detail})" if refusal.detail else "")] += 1
                continue
            self.evaluations += 1
            value = self.goal.after(load, source, self.sketch.states.get(source), self.sketch.states[name])
            if found is None or (value, name) < found:
                found = (value, name)
        why = Refusal(unit[0], RefusalReason.NO_TARGET, "; ".join(sorted(reasons)) or "there is no other node")
        return (None if found is None else found[1]), why

    def _every_node(self) -> Iterator[str]:
        yield from sorted(self.sketch.node_of)

    def _by_size(self, vmids: Iterable[int]) -> list[int]:
        """The biggest problem first: what is hardest to place is placed while there is room."""
        return sorted(vmids, key=lambda vmid: (-self.sketch.load_of[vmid].memory_bytes, vmid))

    # maintenance

    def _drain(self) -> None:
        sketch = self.sketch
        here = [vmid for vmid, node in sketch.at.items() if node in sketch.draining and not sketch.guest_of[vmid].template]
        for vmid in self._by_size(here):
            if sketch.at[vmid] not in sketch.draining:
                continue  # left with its unit
            unit = sketch.unit_here(vmid)
            refusal = sketch.why_unit_stays(unit, Purpose.DRAIN)
            if refusal is None:
                target, why = self._best_target(unit, self._every_node(), Purpose.DRAIN)
                if target is not None:
                    self._take(unit, target, MoveReason.MAINTENANCE)
                    continue
                refusal = why
            self._refuse(Refusal(vmid, refusal.reason, refusal.detail))

    def _return_home(self) -> None:
        sketch = self.sketch
        if sketch.draining or not self.question.homes:
            return
        for vmid, home in sorted(self.question.homes.items()):
            guest = sketch.guest_of.get(vmid)
            if guest is None or sketch.at[vmid] == home or any(vmid in step.vmids for step in self.steps):
                continue
            unit = sketch.unit_here(vmid)
            if any(self.question.homes.get(other) != home for other in unit):
                continue  # its partners live elsewhere: together is worth more than at home
            refusal = sketch.why_unit_stays(unit, Purpose.DRAIN) or sketch.why_not_target(unit, home, Purpose.LOAD)
            if refusal is None:
                self._take(unit, home, MoveReason.RETURN_HOME)
            else:
                self._refuse(Refusal(vmid, refusal.reason, refusal.detail))

    # rules

    def _repair_pins(self) -> None:
        sketch = self.sketch
        for vmid, allowed in sorted(sketch.rules.pins.items()):
            if sketch.at[vmid] in allowed or not sketch.guest_of[vmid].is_running or sketch.at[vmid] in sketch.draining:
                continue
            unit = sketch.unit_here(vmid)
            if len(unit) < len(sketch.rules.unit(vmid)) or not self.question.scope.covers_guests(unit):
                continue  # a split unit is gathered below, on a node that all its pins allow
            self._repair(unit, sorted(allowed), MoveReason.PIN)

    def _repair(self, unit: tuple[int, ...], targets: Iterable[str], reason: MoveReason) -> None:
        refusal = self.sketch.why_unit_stays(unit, Purpose.RULE)
        if refusal is None:
            target, refusal = self._best_target(unit, targets, Purpose.RULE)
            if target is not None:
                self._take(unit, target, reason)
                return
        self._refuse(refusal)

    def _repair_affinity(self) -> None:
        sketch = self.sketch
        for unit in sorted(set(sketch.rules.units.values())):
            if len({sketch.at[vmid] for vmid in unit}) > 1 and self.question.scope.covers_guests(unit):
                self._gather(unit)

    def _gather(self, unit: tuple[int, ...]) -> None:
        """Bring a split unit together where the fewest guests, of these those that have not just moved, then bytes, have to move.

        Where the slots were too few to move a unit at once, part of it has arrived: the rest follows, however many they are.
        """
        sketch, homes = self.sketch, self.question.homes
        arrived = self.question.ledger.learned.keys()  # by a migration of ours, minutes ago
        best: tuple[int, int, int, int, float, float, str] | None = None
        why: Refusal | None = None
        for name in sketch.usable:
            movers = tuple(vmid for vmid in unit if sketch.at[vmid] != name)
            staying = next(
                (r for r in (sketch.conditions.why_guest_stays(sketch.guest_of[v], Purpose.RULE) for v in movers) if r is not None), None
            )
            if staying is not None:
                why = why or staying
                continue
            refusal = sketch.why_not_target(movers, name, Purpose.RULE)
            if refusal is None and any(name not in sketch.rules.pins.get(vmid, (name,)) for vmid in unit):
                refusal = Refusal(movers[0], RefusalReason.PINNED, name)
            if refusal is not None:
                why = why or refusal
                continue
            self.evaluations += 1
            moved = len(self.question.cooling.keys() & set(movers))  # who has just moved is followed rather than sent back
            rank = (
                len(arrived & set(movers)),
                len(movers),
                moved,
                -sum(homes.get(vmid) == name for vmid in movers),
                sketch.load_of_unit(movers).memory_bytes,
                self.goal.slope(sketch.states[name]),
                name,
            )
            best = rank if best is None else min(best, rank)
        if best is not None:
            self._take(tuple(vmid for vmid in unit if sketch.at[vmid] != best[-1]), best[-1], MoveReason.AFFINITY)
        elif why is not None:
            self._refuse(why)

    def _repair_anti_affinity(self, hopeless: set[str]) -> None:
        sketch = self.sketch
        for group in sketch.rules.anti_affinity:
            if group.rule in hopeless or not self.question.scope.covers_guests(group.vmids):
                continue
            for name in sorted({sketch.at[vmid] for vmid in group.vmids} - sketch.draining):
                members = [vmid for vmid in group.vmids if sketch.at[vmid] == name]
                for vmid in self._who_leaves(members):
                    self._repair(sketch.unit_here(vmid), self._every_node(), MoveReason.ANTI_AFFINITY)

    def _who_leaves(self, members: list[int]) -> list[int]:
        """All but one: who cannot move stays, of the others the largest stays."""
        if len(members) < 2:
            return []
        stuck = {v for v in members if self.sketch.why_unit_stays(self.sketch.unit_here(v), Purpose.RULE) is not None}
        stays = min(members, key=lambda v: (v not in stuck, -self.sketch.load_of[v].memory_bytes, v))
        leaving = [vmid for vmid in members if vmid != stays]
        return sorted(leaving, key=lambda vmid: (self.sketch.load_of[vmid].memory_bytes, vmid))

    # load

    def _balance(self, gate: Gate, sources: list[str]) -> None:
        """Go down the goal as far as it goes; the gate has been passed."""
        start, steps_before = self.goal.value, list(self.steps)
        refused_before = dict(self.refused)
        units = self._units_on(sources)
        while (found := self._best_step(units, set(sources))) is not None:
            self._take(found[0], found[1], _REASONS[gate])
        least = self._least_gain()
        if self.goal.value > start - least and self.steps != steps_before:
            lowered = start - self.goal.value
            movers = {vmid for step in self.steps for vmid in step.vmids} - {vmid for step in steps_before for vmid in step.vmids}
            self._undo(steps_before)
            self.refused = refused_before
            for vmid in sorted(movers):
                self._refuse(Refusal(vmid, RefusalReason.NO_GAIN, f"all moves together gain {100 * lowered:.2f} points"))
        self._explain_those_who_stay(sources)

    def _least_gain(self) -> float:
        """What all load moves together must take off the goal, for the plan to be worth beginning or going on with."""
        least = self.settings.balance.min_gain_percent / 100
        if self.question.force:
            return 0.0
        return least if self.question.opened_by is None else least * GO_ON_FRACTION

    def _undo(self, steps: list[Step]) -> None:
        self.sketch = self.sketch.restarted()
        for step in steps:
            self.sketch.move(step.vmids, step.target)
        self.steps = steps
        self.goal = Goal(self.sketch)

    def _gate(self) -> tuple[Gate, list[str]]:
        """Whether load balancing may begin, and the nodes it may take load from."""
        sketch, question = self.sketch, self.question
        loads = {name: load for name, load in sketch.loads().items() if name in sketch.usable}
        sources = [name for name in sketch.usable if question.scope.covers_node(name) and not sketch.conditions.has_backup(name)]
        if not sources or len(loads) < 2:
            return Gate.CLOSED, []
        if question.force:
            return Gate.FORCED, sources
        if question.opened_by is not None:
            return question.opened_by, sources
        for name in sources:
            if over_threshold(loads[name], self.weights) and (question.held is None or name in question.held):
                return Gate.OVERLOAD, sources
        width, high, _ = spread(loads.values(), self.weights)
        limit = self.settings.balance.spread_percent
        if limit > 0 and width > limit / 100 and high in sources:
            return Gate.SPREAD, sources
        return Gate.CLOSED, []

    def _units_on(self, sources: list[str]) -> list[tuple[int, ...]]:
        """The units that load balancing may move, once for the whole descent: a unit moves whole, so it stays one.

        Who moves in this plan for maintenance or a rule may do so to a better node; who comes home stays there.
        """
        found, here = [], set(sources)
        step_of = {vmid: step for step in self.steps for vmid in step.vmids}
        for vmid in sorted(vmid for vmid, node in self.sketch.at.items() if node in here):
            unit = self.sketch.unit_here(vmid)
            steps = [step_of[member] for member in unit if member in step_of]
            if vmid == unit[0] and not self._is_settled(unit, steps, here) and self.sketch.why_unit_stays(unit, Purpose.LOAD) is None:
                found.append(unit)
        return found

    def _is_settled(self, unit: tuple[int, ...], steps: list[Step], sources: set[str]) -> bool:
        """Whether the steps that brought the unit where it is stand, whatever the load."""
        for step in steps:
            if step.reason is MoveReason.RETURN_HOME or (self.repairs_are_final and step.purpose is not Purpose.LOAD):
                return True
            if set(step.vmids) != set(unit):  # moved on, all would move as one, for load: then all must be free to
                return step.reason is MoveReason.MAINTENANCE or any(self.sketch.guest_of[vmid].node not in sources for vmid in unit)
        return False

    def _best_step(self, units: list[tuple[int, ...]], sources: set[str]) -> tuple[tuple[int, ...], str] | None:
        """The best step from the fullest to the emptiest nodes; only when there is none, the best of all."""
        states, at = self.sketch.states, self.sketch.at
        rising = sorted(self.sketch.usable, key=lambda name: (self.goal.slope(states[name]), name))
        fullest = sources.intersection(rising[-TRIED_FIRST:])
        best = self._scan([unit for unit in units if at[unit[0]] in fullest], rising[:TRIED_FIRST])
        if best is None and len(rising) > TRIED_FIRST:
            best = self._scan([unit for unit in units if at[unit[0]] in sources], rising)
        return best

    def _scan(self, units: list[tuple[int, ...]], targets: list[str]) -> tuple[tuple[int, ...], str] | None:
        sketch, goal = self.sketch, self.goal
        best_gain = 0.0
        best: tuple[tuple[int, ...], str] | None = None
        for unit in units:
            load = sketch.load_of_unit(unit)
            source = sketch.at[unit[0]]
            containers = sum(sketch.guest_of[vmid].type is GuestType.LXC for vmid in unit)
            bar = goal.value - move_cost(load.memory_bytes, containers, goal.total_memory)
            for name in targets:
                if name == source:
                    continue
                self.evaluations += 1
                gain = bar - goal.after(load, source, sketch.states[source], sketch.states[name])
                if gain > best_gain and sketch.why_not_target(unit, name, Purpose.LOAD) is None:
                    best_gain, best = gain, (unit, name)
        return best

    def _explain_those_who_stay(self, sources: list[str]) -> None:
        """Give each guest of a node that is still over a threshold the reason why it stays."""
        loads = self.sketch.loads()
        over = {name for name in sources if over_threshold(loads[name], self.weights)}
        for vmid in sorted(vmid for vmid, node in self.sketch.at.items() if node in over):
            guest = self.sketch.guest_of[vmid]
            if guest.template or not guest.is_running:
                continue
            unit = self.sketch.unit_here(vmid)
            refusal = self.sketch.why_unit_stays(unit, Purpose.LOAD)
            if refusal is None:
                target, refusal = self._best_target(unit, self._every_node(), Purpose.LOAD)
                if target is not None:
                    refusal = Refusal(vmid, RefusalReason.NO_GAIN, f"best on {target}")
            self._refuse(Refusal(vmid, refusal.reason, refusal.detail))

    # order

    def _ordered(self) -> list[Move]:
        """The steps as moves in batches, with what each takes off the imbalance, and the first pass marked."""
        sketch = self.sketch.restarted()
        batches, stuck = into_batches(sketch, self.steps)
        for step in stuck:
            for vmid in step.vmids:
                self.refused[vmid] = Refusal(vmid, RefusalReason.NO_ORDER)  # whatever kept it before, this does now
            self.has_stuck_repair |= step.purpose is not Purpose.LOAD
        goal = Goal(sketch)
        moves: list[Move] = []
        per_pass, left = self.question.moves_per_pass, self.question.moves_left
        budget = min(per_pass, left)
        for number, batch in enumerate(batches, 1):
            for step in batch:
                is_free = step.reason is MoveReason.MAINTENANCE
                # guests that must stay together and are more than a pass has moves for are a pass of their own
                is_own_pass = budget == per_pass and 0 < per_pass < len(step.sources) <= left
                first_pass = is_free or len(step.sources) <= budget or is_own_pass
                budget = budget if is_free or not first_pass else max(0, budget - len(step.sources))
                for vmid, source in step.sources:
                    imbalance = goal.imbalance
                    sketch.move((vmid,), step.target)
                    goal.changed()
                    guest, load = sketch.guest_of[vmid], sketch.load_of[vmid]
                    moves.append(
                        Move(
                            vmid=vmid,
                            type=guest.type,
                            name=guest.name,
                            source=source,
                            target=step.target,
                            reason=step.reason,
                            batch=number,
                            first_pass=first_pass,
                            memory_bytes=int(load.memory_bytes),
                            cpu_cores=load.cpu_cores,
                            gain=imbalance - goal.imbalance,
                        )
                    )
        self._after = balance_of(sketch.loads(), sketch.usable, self.weights)
        return moves


_REASONS = {Gate.OVERLOAD: MoveReason.OVERLOAD, Gate.SPREAD: MoveReason.SPREAD, Gate.FORCED: MoveReason.MANUAL}


def conflicts_of(snapshot: Snapshot, settings: Settings) -> tuple[Conflict, ...]:
    """The rules of the cluster that contradict each other, without planning."""
    sketch = Placement(snapshot, settings, Question())
    return tuple(sorted((*sketch.rules.conflicts, *crowded(sketch.rules, len(sketch.usable))), key=lambda c: (c.rule, c.vmids)))

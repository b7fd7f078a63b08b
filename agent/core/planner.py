# SPDX-License-Identifier: GPL-3.0-or-later
"""Which guests should move: from a snapshot to a plan that gains, or to the reasons why nothing moves."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto
from typing import NamedTuple

from agent.core.cluster import Snapshot
from agent.core.conditions import Purpose
from agent.core.crowding import crowded
from agent.core.draft import Draft, Mark
from agent.core.evening_out import EveningOut
from agent.core.goal import Goal
from agent.core.guest_load import NO_PROCESS
from agent.core.imbalance import balance_of, over_threshold, spread
from agent.core.order import into_batches, most_first
from agent.core.placement import Placement
from agent.core.plan_types import Balance, Conflict, Gate, Move, Plan, Refusal
from agent.core.question import Question
from agent.core.reasons import LOAD_REASONS, MoveReason, RefusalReason
from agent.core.repairs import Repairs
from agent.core.settings import Settings
from agent.core.steps import Step

MOST_ROUNDS = 10  # of evening out and putting right; each repairs something that was broken, and one or two do nearly always

MARGIN_FRACTION = 0.1  # of the goal, that a plan must lower to be begun: the margin of PVE's own balancer (pve-ha-manager)
NOISE_FRACTION = 0.05  # of each load, by which it may be wrong: a plan that hangs on less is not begun
EASED_FRACTION = 0.25  # of what stands over thresholds, that is reason enough however uneven the rest is
GO_ON_FRACTION = 0.25  # of min_gain: what a plan that has begun must still gain, so that its tail is carried out, and noise is not


def plan(snapshot: Snapshot, settings: Settings, question: Question | None = None) -> Plan:
    """Return the moves that put the cluster right: maintenance, then broken rules, return home, then load.

    The plan is whole: it goes on until no step, and none of the pairs of steps that `agent.core.descent` looks at, lowers the
    goal by more than it costs. Ties go to the smallest VMID, then to the node's name.

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
    draft = Draft(Placement(snapshot, settings, question))
    blank = draft.mark()
    for freedom in (Freedom.MOVED_ON, Freedom.ONCE):
        planner = _Planner(draft, freedom)
        result = planner.run()
        if not planner.stuck:
            return result
        draft.back_to(blank)
    return _Planner(draft, Freedom.NONE).run()


class Freedom(Enum):
    """How freely load is evened out: less, when steps came out for which no moment is safe."""

    MOVED_ON = auto()  # who has moved in this plan may move on, which may leave its first target without the room it made elsewhere
    ONCE = auto()  # nobody moves on while steps are found, so they can be carried out one after the other
    NONE = auto()  # load stays as it is


class _Start(NamedTuple):
    """Where evening out began."""

    goal: float
    excess: float
    prices: tuple[tuple[float, float, float], ...]


class _Planner:
    """One attempt, on a draft without steps; in the end its sketch stands where all of them lead to."""

    def __init__(self, draft: Draft, freedom: Freedom) -> None:
        self.draft, self.freedom = draft, freedom
        self.sketch: Placement = draft.sketch
        self.snapshot, self.settings, self.question = self.sketch.snapshot, draft.settings, draft.question
        self.weights = self.sketch.weights
        self.stuck: list[Step] = []
        self._trial: Placement | None = None

    def run(self) -> Plan:
        sketch, draft = self.sketch, self.draft
        before = balance_of(sketch.loads(), sketch.usable, self.weights)
        hopeless = crowded(sketch.rules, sketch.at, sketch.usable, sketch.draining)
        conflicts = (*sketch.rules.conflicts, *hopeless)
        gate, sources = Gate.CLOSED, list[str]()
        if not self.snapshot.unseen:
            repairs = Repairs(draft, {conflict.rule for conflict in hopeless}, may_move_on=self.freedom is Freedom.MOVED_ON)
            repairs.run()
            gate, sources = self._gate()
            self._even_out(repairs, gate, sources)
        moves, after = self._ordered()
        if gate is not Gate.CLOSED and not (self.stuck and self.freedom is not Freedom.NONE):
            self._explain_those_who_stay(sources)
        moved = {move.vmid for move in moves}
        return Plan(
            taken_at=self.snapshot.taken_at,
            trigger=self.question.trigger,
            gate=gate,
            moves=tuple(moves),
            refused=tuple(refusal for vmid, refusal in sorted(draft.refused.items()) if vmid not in moved),
            conflicts=tuple(sorted(conflicts, key=lambda conflict: (conflict.rule, conflict.vmids))),
            before=before,
            after=after,
            evaluations=draft.evaluations,
        )

    def _even_out(self, repairs: Repairs, gate: Gate, sources: list[str]) -> None:
        """Even out the load if a gate is open; evened out, the nodes may have room for what had none."""
        if gate is Gate.CLOSED:
            return
        before, start = self.draft.mark(), self._start()
        evening_out = EveningOut(self.draft, sources, _REASONS[gate], self._can_be_ordered)
        for _ in range(MOST_ROUNDS):
            self._balance(gate, evening_out, before, start)
            steps = self.draft.steps
            repairs.run()
            if self.draft.steps == steps:
                break
            before, start = self.draft.mark(), self._start()
        for _ in range(MOST_ROUNDS if self.freedom is Freedom.ONCE else 0):
            evening_out.run_in_order()
            before = self.draft.mark()
            repairs.run()
            if self.draft.steps == before.steps:
                break
            if not self._can_be_ordered():
                late = [vmid for step in self.draft.steps if step not in before.steps for vmid in step.vmids]
                self.draft.back_to(before)
                self.draft.refused |= {vmid: Refusal(vmid, RefusalReason.NO_ORDER) for vmid in late}
                break

    def _can_be_ordered(self) -> bool:
        if self._trial is None:
            self._trial = Placement(self.snapshot, self.settings, self.question)
        return not into_batches(self._trial, self.draft.steps)[1]

    def _start(self) -> _Start:
        goal = self.draft.goal
        return _Start(goal.value, goal.excess, tuple(goal.prices))

    # load

    def _gate(self) -> tuple[Gate, list[str]]:
        """Whether load balancing may begin, and the nodes it may take load from."""
        sketch, question = self.sketch, self.question
        loads = {name: load for name, load in sketch.loads().items() if name in sketch.usable}
        sources = [name for name in sketch.usable if question.scope.covers_node(name) and not sketch.conditions.has_backup(name)]
        if not self.question.balance_load or self.freedom is Freedom.NONE or not sources or len(loads) < 2:
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

    def _balance(self, gate: Gate, evening_out: EveningOut, before: Mark, start: _Start) -> None:
        """Go down the goal as far as it goes; the gate has been passed. What gains too little since then is undone."""
        draft = self.draft
        evening_out.run(may_move_on=self.freedom is Freedom.MOVED_ON)
        if draft.steps != before.steps and not self._is_worth_it(gate, start):
            lowered = start.goal - draft.goal.value
            movers = {vmid for step in draft.steps for vmid in step.vmids} - {vmid for step in before.steps for vmid in step.vmids}
            draft.back_to(before)
            for vmid in sorted(movers):
                draft.refuse(Refusal(vmid, RefusalReason.NO_GAIN, f"all moves together gain {100 * lowered:.2f} points"))

    def _is_worth_it(self, gate: Gate, start: _Start) -> bool:
        """Whether all load moves together lower the goal, or what stands over thresholds, enough to begin or to go on with."""
        lowered, eased = start.goal - self.draft.goal.value, start.excess - self.draft.goal.excess
        noise = self._noise(start)
        least = self.settings.balance.min_gain_percent / 100
        if self.question.force:
            return True  # each of them gains; the goal may rise all the same, where guests go home because of what a repair has changed
        if self.question.opened_by is not None:
            return lowered >= least * GO_ON_FRACTION
        # where much of the imbalance cannot be helped, noise alone makes some moves look good: a share of it, too
        return lowered - noise >= max(least, MARGIN_FRACTION * start.goal) or (
            gate is Gate.OVERLOAD and lowered > noise and eased >= max(least, EASED_FRACTION * start.excess)
        )

    def _noise(self, start: _Start) -> float:
        """What the load moves would gain or lose if each guest took NOISE_FRACTION more or less than it seems, at the worst.

        To first order: the goal before falls with a guest's load at the source's price of before, the goal after at the target's
        price of after. An exchange counts for both its guests, however little it moves on balance.
        """
        goal, sketch = self.draft.goal, self.sketch
        total = 0.0
        for step in self.draft.steps:
            for vmid, source in step.sources if step.reason in LOAD_REASONS else ():
                if (left := goal.index.get(source)) is None:
                    continue
                burden, there = sketch.burden_of(vmid), goal.prices[goal.index[step.target]]
                parts = zip(burden[2:5], start.prices[left], there, strict=True)
                total += NOISE_FRACTION * sum(amount * abs(before - after) for amount, before, after in parts)
        return total

    def _explain_those_who_stay(self, sources: list[str]) -> None:
        """Give each guest of a node that is still over a threshold the reason why it stays."""
        sketch = self.sketch
        loads = sketch.loads()
        over = {name for name in sources if over_threshold(loads[name], self.weights)}
        rooms = [(name, sketch.room(name, Purpose.LOAD)) for name in sketch.usable]
        for vmid in sorted(vmid for name in over for vmid in sketch.states[name].present if sketch.at[vmid] == name):
            guest = sketch.guest_of[vmid]
            if guest.template or not guest.is_running or vmid in self.draft.refused:
                continue
            unit = sketch.unit_here(vmid)
            refusal = sketch.why_unit_stays(unit, Purpose.LOAD)
            if refusal is None:
                burden = sketch.burden_of_unit(unit)
                roomy = [name for name, room in rooms if burden.fits_into(room)]
                target, refusal = self.draft.best_target(unit, roomy, Purpose.LOAD)
                if target is None:  # only then what all the others have against it is put into words
                    _, refusal = self.draft.best_target(unit, sorted(sketch.node_of), Purpose.LOAD)
            self.draft.refuse(Refusal(vmid, refusal.reason, refusal.detail))

    # order

    def _ordered(self) -> tuple[list[Move], Balance]:
        """The steps as moves in batches, with what each takes off the imbalance, and the first pass marked."""
        sketch, steps = self.sketch, self.draft.steps
        batches, self.stuck = into_batches(sketch, steps)
        for step in self.stuck:
            for vmid in step.vmids:
                self.draft.refused[vmid] = Refusal(vmid, RefusalReason.NO_ORDER)  # whatever kept it before, this does now
        goal = Goal(sketch)
        moves: list[Move] = []
        passes = _Passes(self.question)
        for number in range(1, len(batches) + 1):
            following = {step.vmids: step for step in batches[number]} if number < len(batches) else {}
            for step in most_first(batches, number - 1, goal, sketch):
                first_pass = passes.may_start(step, following.get(step.until) if step.until else None)
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
                            is_running=guest.status not in NO_PROCESS,
                            disk_bytes=sketch.conditions.disk_bytes(guest),
                        )
                    )
        return moves, balance_of(sketch.loads(), sketch.usable, self.weights)


class _Passes:
    """What the brakes let start now, step by step in the order of the batches. Mutable: it lives as long as one ordering."""

    def __init__(self, question: Question) -> None:
        self._per_pass, self._left = question.moves_per_pass, question.moves_left
        self._budget = min(self._per_pass, self._left)
        self._decided: dict[Step, bool] = {}  # second halves of exchanges: as the first half, they start or wait together

    def may_start(self, step: Step, second: Step | None) -> bool:
        """Whether the step starts in the first pass; `second`: the other half of the exchange that it begins."""
        if (decided := self._decided.get(step)) is not None:
            return decided
        if step.reason is MoveReason.MAINTENANCE:
            return True
        count = len(step.sources) + (0 if second is None else len(second.sources))
        # what must go together and is more than a pass has moves for is a pass of its own
        is_own_pass = self._budget == self._per_pass and 0 < self._per_pass < count <= self._left
        may = count <= self._budget or is_own_pass
        if may:
            self._budget = max(0, self._budget - count)
        if second is not None:
            self._decided[second] = may
        return may


_REASONS = {Gate.OVERLOAD: MoveReason.OVERLOAD, Gate.SPREAD: MoveReason.SPREAD, Gate.FORCED: MoveReason.MANUAL}


def conflicts_of(snapshot: Snapshot, settings: Settings) -> tuple[Conflict, ...]:
    """The rules of the cluster that contradict each other, without planning."""
    sketch = Placement(snapshot, settings, Question())
    hopeless = crowded(sketch.rules, sketch.at, sketch.usable, sketch.draining)
    return tuple(sorted((*sketch.rules.conflicts, *hopeless), key=lambda c: (c.rule, c.vmids)))

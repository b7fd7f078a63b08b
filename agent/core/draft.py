# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan while it is made: the sketch, the steps that led to it, and who was looked at and stays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.core.cluster import GuestType
from agent.core.conditions import Purpose
from agent.core.goal import Goal
from agent.core.lines import Mover, Row
from agent.core.placement import NOTHING, Placement
from agent.core.plan_types import Refusal
from agent.core.reasons import LOAD_REASONS, MoveReason, RefusalReason
from agent.core.sentences import nodes_words
from agent.core.steps import Step


@dataclass(frozen=True, slots=True)
class Mark:
    """A state of the draft to go back to."""

    sketch: int
    costs: tuple[tuple[Step, float], ...]
    refused: tuple[tuple[int, Refusal], ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that had been taken."""
        return tuple([step for step, _ in self.costs])


class Draft:
    """Mutable: it belongs to one planner run and never leaves it.

    Shape:   `steps` in the order they were taken, each guest in one at the most; `evaluations` counts the work: units looked
             at, pairs of nodes bounded, transfers weighed.
    """

    def __init__(self, sketch: Placement) -> None:
        self.settings, self.question = sketch.settings, sketch.question
        self.sketch = sketch
        self.goal = Goal(sketch)
        self.refused: dict[int, Refusal] = {}
        self.evaluations = 0
        self._step_of: dict[int, Step] = {}
        self._steps: dict[Step, float] = {}  # and what moving its guests for load costs
        self._rows: dict[tuple[int, ...], Row | None] = {}  # at full price
        online = {node.name for node in self.sketch.snapshot.nodes if node.online}  # off a lost node nobody is under way
        self._in_flight = {flight.vmid for flight in self.question.ledger.in_flight if flight.source in online}

    @property
    def steps(self) -> tuple[Step, ...]:
        """What was taken so far, in that order."""
        return tuple(self._steps)

    def step_of(self, vmid: int) -> Step | None:
        """The step that brings the guest where it is in the sketch, None when it has not moved."""
        return self._step_of.get(vmid)

    def take(self, unit: tuple[int, ...], target: str, reason: MoveReason, until: tuple[int, ...] = ()) -> None:
        """Make the step; a guest that moved before in this plan goes straight to its last target.

        Who moves anyway, for maintenance or a rule, and goes to a better node for load keeps the reason why it moves.
        """
        replaced = {step: None for vmid in unit if (step := self._step_of.get(vmid)) is not None}
        for step in replaced:
            del self._steps[step]
            for vmid in step.vmids:
                del self._step_of[vmid]
        if reason in LOAD_REASONS and len(replaced) == 1:
            (step,) = replaced
            reason = step.reason if set(step.vmids) == set(unit) else reason
        leaves = tuple((vmid, node) for vmid in unit if (node := self.sketch.guest_of[vmid].node) != target)
        self.sketch.move(unit, target)
        self.goal.changed()
        if leaves:
            step = Step(leaves, target, reason, until)
            self._steps[step] = self.cost_of(step.vmids) if reason in LOAD_REASONS else 0.0
            self._step_of.update(dict.fromkeys(step.vmids, step))

    def mark(self) -> Mark:
        """The state of now."""
        return Mark(self.sketch.mark(), tuple(self._steps.items()), tuple(self.refused.items()))

    def back_to(self, mark: Mark) -> None:
        """Undo what was done since."""
        self.sketch.rollback(mark.sketch)
        self.goal.changed()
        self._steps = dict(mark.costs)
        self._step_of = {vmid: step for step in self._steps for vmid in step.vmids}
        self.refused = dict(mark.refused)

    def refuse(self, refusal: Refusal) -> None:
        """Say why a guest stays; the first reason stands, and who is under way already is not spoken of."""
        if refusal.vmid not in self._in_flight:
            self.refused.setdefault(refusal.vmid, refusal)

    def cost_of(self, unit: tuple[int, ...]) -> float:
        """What moving the guests must bring at the least."""
        containers = sum([self.sketch.guest_of[vmid].type is GuestType.LXC for vmid in unit])
        return self.goal.cost(self.sketch.copied_bytes(unit), containers)

    def row_of(self, unit: tuple[int, ...]) -> Row | None:
        """What the guests take along, and what moving them costs, wherever they are; None when they cannot leave together for load.

        Made once at the full price, for search after search.
        """
        if unit not in self._rows:
            row = self._row(unit) if self.sketch.why_unit_stays(unit, Purpose.LOAD) is None else None
            if row is not None and self.goal.thrift != 1.0:
                return row
            self._rows[unit] = row
        row = self._rows[unit]
        return row if row is None or self.goal.thrift == 1.0 else row._replace(cost=self.cost_of(unit))

    def _row(self, unit: tuple[int, ...]) -> Row:
        burden = self.sketch.burden_of_unit(unit)
        return Row(burden[2], burden[3], burden[4], self.cost_of(unit), Mover(unit[0], unit, burden, None, 0.0))

    def potential(self) -> float:
        """The goal, and what all load moves cost: what evening out lowers."""
        return self.goal.value + sum(self._steps.values())

    def best_target(self, unit: tuple[int, ...], targets: Iterable[str], purpose: Purpose) -> tuple[str | None, Refusal]:
        """The allowed target with the lowest goal, and, when there is none, why the nodes refuse."""
        sketch, goal = self.sketch, self.goal
        burden, here = sketch.burden_of_unit(unit), sketch.at[unit[0]]
        source = goal.index.get(here)
        found: tuple[float, float, str] | None = None
        reasons: dict[str, RefusalReason] = {}
        for name in targets:
            refusal = sketch.why_not_allowed(unit, name, purpose)
            reason = sketch.limit_broken(burden, name, purpose) if refusal is None else refusal.reason
            if reason is not None:
                if name != here:
                    reasons[name] = reason
                continue
            self.evaluations += 1
            loss = -goal.gain(burden, source, goal.index[name])
            idle = sketch.idle_fraction(name) if burden is NOTHING else 0.0
            if found is None or (loss, idle, name) < found:
                found = (loss, idle, name)
        if found is not None:
            return found[2], Refusal(unit[0], RefusalReason.NO_GAIN, f"best on {found[2]}")

        def detail(name: str) -> str:
            refusal = sketch.why_not_target(unit, name, purpose)
            return "" if refusal is None else refusal.detail

        return None, Refusal(unit[0], RefusalReason.NO_TARGET, nodes_words(reasons, detail) or "there is no other node")

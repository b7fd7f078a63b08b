# SPDX-License-Identifier: GPL-3.0-or-later
"""In what order steps run: batches that keep every limit and rule whatever finishes first.

Invariant, for every batch: at its start all earlier batches are done; while it runs, each of its guests counts on the
node it leaves and on the node it goes to; so every subset of its moves, in any order, stays within the limits and
keeps apart who must be apart.

One exception, for thresholds alone: the first half of an exchange may lift its target over one, within reserve and cores, when
the second half leaves that node in the very next batch and goes where it fits as any other step does, and the node then stands
under its thresholds or no higher above one than before. Who changes places with whom is what the plan found first; where that
leaves steps over, any two steps may, one of which leaves the node that the other goes to. Nothing else goes to the two nodes
while the first half is under way, nor to the lifted one before the second half is over.

As any order within a batch is safe, what evens out most comes first: a pass takes its moves from the head of the first batch, and
whoever stops a plan half-way has the better half.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from agent.core.conditions import Purpose
from agent.core.goal import Goal
from agent.core.placement import NOTHING, Burden, Placement
from agent.core.reasons import LOAD_REASONS
from agent.core.steps import Step

ROUNDING = 1e-9  # of a node's size: far above what sums of floats lose


def into_batches(sketch: Placement, steps: Sequence[Step]) -> tuple[list[list[Step]], list[Step]]:
    """Return the steps as batches, and those for which no safe moment exists.

    Steps that fit early run early, those of a higher rank first. Where running late steps early would block an earlier
    one for good, all run strictly in the given order instead, which the planner has shown to fit one at a time.

    Shape:   the sketch is rolled back to before any move, now and in the end. The second half of an exchange whose first half
             needs it is alone at the head of the batch after it.
    Raises:  nothing.
    """
    by_rank = sorted(steps, key=lambda step: step.purpose is Purpose.LOAD)
    batches, stuck = _greedy(sketch, by_rank, may_overtake=True)
    for order, may_overtake in ((steps, False), (by_rank, True)):
        if not stuck:
            break
        ordered, still_stuck = _greedy(sketch, order, may_overtake=may_overtake, any_pair=may_overtake)
        if len(still_stuck) < len(stuck):
            batches, stuck = ordered, still_stuck
    sketch.rollback()
    return batches, stuck


def most_first(batches: Sequence[Sequence[Step]], number: int, goal: Goal, sketch: Placement) -> Iterator[Step]:
    """The steps of that batch, repairs as they are, then load: each time the step that evens out most, as things stand by then.

    The first half of an exchange counts as both together; the second half, whose node waits for it, comes at once. Whoever asks for the
    next step has moved the last one in the sketch.
    """
    due = {step.until for step in batches[number - 1]} if number else set()
    seconds = {step.vmids: step for step in batches[number + 1]} if number + 1 < len(batches) else {}
    waiting: dict[int, Step] = {}
    for place, step in enumerate(batches[number]):
        if step.reason in LOAD_REASONS and step.vmids not in due:
            waiting[place] = step
        else:
            yield step
    flows = {place: _flows(sketch, goal, step, seconds.get(step.until)) for place, step in waiting.items()}
    touching: dict[int | None, set[int]] = defaultdict(set)
    for place, parts in flows.items():
        for _, source, target in parts:
            touching[source].add(place)
            touching[target].add(place)

    def eased(place: int) -> float:
        # what a step gains elsewhere grows as the whole evens out, by what this takes out again: so the others need not be asked anew
        return goal.imbalance * sum(goal.gain(burden, source, target) for burden, source, target in flows[place])

    gains = {place: eased(place) for place in waiting}
    while waiting:
        best = max(gains, key=gains.__getitem__)  # of equals the first
        yield waiting.pop(best)
        nodes = {node for _, source, target in flows[best] for node in (source, target)}
        del gains[best]
        gains |= {place: eased(place) for place in set().union(*(touching[node] for node in nodes)) & gains.keys()}


def _flows(sketch: Placement, goal: Goal, step: Step, second: Step | None) -> list[tuple[Burden, int | None, int]]:
    """What goes from which node to which; of a step that gathers guests from several nodes each for itself."""
    target = goal.index[step.target]
    by_source: dict[str, list[int]] = defaultdict(list)
    for vmid, source in step.sources:
        by_source[source].append(vmid)
    found = [(sketch.burden_of_unit(tuple(vmids)), goal.index.get(source), target) for source, vmids in by_source.items()]
    if second is not None:
        burden, came_from, _ = found[0]
        found[0] = burden.minus(sketch.burden_of_unit(second.vmids)), came_from, target
    return found


def _greedy(sketch: Placement, steps: Sequence[Step], *, may_overtake: bool, any_pair: bool = False) -> tuple[list[list[Step]], list[Step]]:
    """With `any_pair` two steps change places only where no other step of the batch can be made, whoever the plan meant for it."""
    sketch.rollback()
    batches: list[list[Step]] = []
    waiting = list(steps)
    due: list[Step] = []  # second halves of exchanges that have begun
    while waiting:
        batch: list[Step] = []
        later: list[Step] = []
        arriving = _Arrivals(sketch, {sketch.at[step.vmids[0]] for step in due})
        due = []
        for step in waiting:
            if later and not may_overtake:
                later.append(step)
            elif arriving.has_room_for(step):
                arriving.add(step)
                batch.append(step)
            elif (
                not any_pair
                and (second := _second_half(sketch, step, waiting)) is not None
                and second not in batch
                and arriving.may_begin(step, second)
            ):
                arriving.begin(step, second)
                batch.append(step)
                due.append(second)
            else:
                later.append(step)
        if not batch and any_pair and (pair := _any_exchange(sketch, arriving, later)) is not None:
            first, second = pair
            later = [step for step in later if step.vmids != first.vmids]
            batch, due = [first], [second]
        if not batch:
            return batches, later
        for step in batch:
            sketch.move(step.vmids, step.target)
        batches.append(batch)
        waiting = due + [step for step in later if step not in due]
    return batches, []


def _second_half(sketch: Placement, step: Step, waiting: Sequence[Step]) -> Step | None:
    """The step of those who must leave the target of this one right afterwards, None when they are not there, or nobody must."""
    for other in waiting if step.until else ():
        if other.vmids == step.until and all(sketch.at[vmid] == step.target for vmid in other.vmids):
            return other
    return None


def _any_exchange(sketch: Placement, arriving: _Arrivals, waiting: Sequence[Step]) -> tuple[Step, Step] | None:
    """The first two of these steps that can change places, the first naming the second; None when no two can."""
    for step in waiting:
        for second in waiting:
            if sketch.at[second.vmids[0]] == step.target and arriving.may_begin(step, second):
                return replace(step, until=second.vmids), second
    return None


class _Arrivals:
    """What a batch brings to each node while nothing of it has left anywhere yet."""

    def __init__(self, sketch: Placement, closed: set[str]) -> None:
        self._sketch = sketch
        self._burden: dict[str, Burden] = defaultdict(lambda: NOTHING)
        self._guests: dict[str, set[int]] = defaultdict(set)
        self._thresholds: set[str] = set()  # nodes to which a move for load is under way: while it is, nothing lifts them over a threshold
        self._closed = closed  # nodes of exchanges that are under way

    def has_room_for(self, step: Step) -> bool:
        sketch, target = self._sketch, step.target
        if target in self._closed or sketch.why_rules_forbid(step.vmids, target) is not None:
            return False
        for vmid in step.vmids:
            if not self._guests[target].isdisjoint(sketch.rules.apart.get(vmid, ())):
                return False
        purpose = Purpose.LOAD if target in self._thresholds else step.purpose
        return sketch.limit_broken(self._with(step), target, purpose) is None

    def add(self, step: Step) -> None:
        self._burden[step.target] = self._with(step)
        self._guests[step.target].update(step.vmids)
        if step.purpose is Purpose.LOAD:
            self._thresholds.add(step.target)

    def may_begin(self, first: Step, second: Step) -> bool:
        """Whether the exchange can begin with this batch, and end with the next one."""
        sketch = self._sketch
        if any(node in self._closed or self._guests[node] for node in (first.target, second.target)):
            return False
        if sketch.why_rules_forbid(first.vmids, first.target) is not None:
            return False
        if sketch.limit_broken(sketch.burden_of_unit(first.vmids), first.target, Purpose.RULE) is not None:
            return False
        before, mark = sketch.room(first.target, Purpose.LOAD), sketch.mark()
        sketch.move(first.vmids, first.target)
        can = sketch.why_rules_forbid(second.vmids, second.target) is None
        can = can and sketch.limit_broken(sketch.burden_of_unit(second.vmids), second.target, Purpose.LOAD) is None
        sketch.move(second.vmids, second.target)
        after = sketch.room(first.target, Purpose.LOAD)
        state = sketch.states[first.target]
        sketch.rollback(mark)
        no_higher = after.counted_cpu_cores >= min(0.0, before.counted_cpu_cores) - ROUNDING * state.cpu_cores
        return can and no_higher and after.counted_memory_bytes >= min(0.0, before.counted_memory_bytes) - ROUNDING * state.memory

    def begin(self, first: Step, second: Step) -> None:
        self.add(first)
        self._closed |= {first.target, second.target}

    def _with(self, step: Step) -> Burden:
        return self._burden[step.target].plus(self._sketch.burden_of_unit(step.vmids))

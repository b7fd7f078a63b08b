# SPDX-License-Identifier: GPL-3.0-or-later
"""Small clusters: many sequences of steps side by side, where the best step first may end in more moves than it takes.

A beam search. All sequences begin where evening out began; each step is one that fits at its moment, so what comes out can be
carried out in that order. Of all sequences of one length that put the guests on different nodes, the best few are made longer.
"""

from __future__ import annotations

from typing import NamedTuple

from agent.core.candidates import NOTHING_GAINED, Candidates
from agent.core.draft import Draft
from agent.core.goal import Transfer
from agent.core.placement import Placement
from agent.core.two_steps import Taken

MOST_WAYS = 120  # guests times nodes: up to about five nodes with twenty guests
KEPT = 40  # sequences of one length that are made longer
SHORTEST = 4  # steps: the best step first hardly ever takes more than it must before


class _Sequence(NamedTuple):
    """Steps, and the goal with what they cost; the steps in order of the guests tell sequences with one end apart."""

    potential: float
    end: tuple[tuple[int, int], ...]
    steps: tuple[Taken, ...]


def is_small(sketch: Placement) -> bool:
    """Whether there are few enough ways to go through many sequences of steps."""
    return len(sketch.at) * len(sketch.usable) <= MOST_WAYS


def best_sequence(draft: Draft, candidates: Candidates, longest: int, potential: float) -> tuple[Taken, ...]:
    """The steps from where the draft stands that lead to the lowest goal and costs, none when that is not below `potential`.

    Shape:   no more than `longest` steps, each unit in one; the draft is left as it is.
    """
    rows = [row for node in candidates.sources for row in candidates.rows_at(node).values()]
    sketch, goal = draft.sketch, draft.goal
    first = _Sequence(draft.potential(), (), ())
    kept, best = [first], first
    mark = sketch.mark()
    for _ in range(longest):
        longer: dict[tuple[tuple[int, int], ...], _Sequence] = {}
        for sequence in kept:
            for step in sequence.steps:
                sketch.move(step.unit, goal.names[step.target])
            goal.changed()
            moved = {step.unit for step in sequence.steps}
            transfers: dict[tuple[int, int], Transfer] = {}
            for row in rows:
                if row.who.unit in moved:
                    continue
                source = goal.index[sketch.at[row.who.vmid]]
                for target in range(len(goal.names)):
                    if (
                        target == source
                        or not row.who.burden.fits_into(candidates.room_now(target))
                        or not candidates.is_allowed(row.who.unit, target)
                    ):
                        continue
                    transfer = transfers.get((source, target)) or transfers.setdefault((source, target), Transfer(goal, source, target))
                    draft.evaluations += 1
                    value = sequence.potential - transfer.gain(row[0], row[1], row[2]) + row.cost
                    end = tuple(sorted((*sequence.end, (row.who.vmid, target))))
                    known = longer.get(end)
                    if known is None or value < known.potential:
                        longer[end] = _Sequence(value, end, (*sequence.steps, Taken(row.who.unit, target)))
            sketch.rollback(mark)
        kept = sorted(longer.values(), key=lambda sequence: (sequence.potential, sequence.end))[:KEPT]
        if not kept:
            break
        best = min(best, kept[0], key=lambda sequence: sequence.potential)
    goal.changed()
    return best.steps if best.potential < potential - NOTHING_GAINED else ()

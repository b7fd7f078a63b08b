# SPDX-License-Identifier: GPL-3.0-or-later
"""Detours: a large unit leaves a node that stands apart although that loses, and what its going makes worth while is weighed with it.

Where one guest takes much of its node, every single step and every exchange may lose while the node is still far from the others: the
guest itself belongs on a larger node, or the next largest beside it on one with less of the same, and several small ones in its stead.
A few such steps are tried, each with all those between its two nodes and any other that gain after it; the best way is taken if
it lowers the goal by more than all its steps cost. In between the goal never stands higher than where the plan began.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.core.candidates import NOTHING_GAINED, Candidates
from agent.core.descent import Descent
from agent.core.draft import Draft
from agent.core.evenness import apart
from agent.core.reasons import MoveReason

WIDTH = 2  # nodes, those furthest apart, and units, the largest on each, tried with the best target alone: a trial is as much as many steps
MOST_FOLLOWING = 60  # steps of one trial: what a unit that fills half a node leaves room for


def take_detour(draft: Draft, sources: Sequence[str], reason: MoveReason, highest: float, width: int = WIDTH) -> bool:
    """Take the best detour; False when none gains, or no node stands apart.

    Units:   the goal is never above `highest` in between.
    """
    before, best, least = draft.mark(), None, draft.potential() - NOTHING_GAINED
    for unit, target in _ways(draft, Candidates(draft, sources, reason, may_move_on=True), highest, width):
        _go(draft, sources, reason, unit, target)
        if draft.potential() < least:
            best, least = (unit, target), draft.potential()
        draft.back_to(before)
    if best is None:
        return False
    _go(draft, sources, reason, *best)
    return True


def _ways(draft: Draft, candidates: Candidates, highest: float, width: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """The units, and for each the target, with which a detour may begin."""
    goal = draft.goal
    measures = range(len(goal.measures))
    distance = [max(abs(measure.fraction[node] - measure.mean) for measure in goal.measures) for node in range(len(goal.names))]
    standing = frozenset[int]().union(*(apart(goal, number) for number in measures))
    nodes = sorted(standing.intersection(candidates.sources), key=lambda node: (-distance[node], node))
    found = []
    for node in nodes[:width]:
        state = draft.sketch.states[goal.names[node]]
        rows = sorted(
            candidates.rows_at(node).values(),
            key=lambda row: (-max(row.cpu / state.cpu_cores, row.memory / state.memory), row.who.vmid),
        )
        for row in rows[:width]:
            ways = (
                (-gain, target)
                for target in range(len(goal.names))
                if target != node
                and row.who.burden.fits_into(candidates.room(target))
                and candidates.is_allowed(row.who.unit, target)
                and goal.value - (gain := goal.gain(row.who.burden, node, target)) <= highest
            )
            draft.evaluations += len(goal.names)
            found += [(row.who.unit, best[1])] if (best := min(ways, default=None)) is not None else []
    yield from found  # all are known before the first is tried


def _go(draft: Draft, sources: Sequence[str], reason: MoveReason, unit: tuple[int, ...], target: int) -> None:
    nodes = {draft.goal.index[draft.sketch.at[unit[0]]], target}
    descent = Descent(draft, sources, reason, may_move_on=True)
    descent.begin_with(unit, target)
    for _ in range(MOST_FOLLOWING):
        if not descent.step_at(nodes):
            break

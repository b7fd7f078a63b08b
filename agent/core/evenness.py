# SPDX-License-Identifier: GPL-3.0-or-later
"""The last points of unevenness: where a few nodes stand apart from all others, steps that bring less count, until they do not.

Evening out ends when no step is worth its cost. What is left is seldom much, but where one guest takes a large part of its node: around
it only small guests can be exchanged, each for a little. Such steps, and none elsewhere, are taken for a half or a quarter of what
they must bring as a rule, if in the end all nodes are as near to each other as EVEN_FRACTION; else all of them are undone.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Protocol

from agent.core.draft import Draft
from agent.core.goal import Goal
from agent.core.sequences import is_small

EVEN_FRACTION = 0.05  # five points from the lowest node to the highest: what nobody looks at twice
THRIFT = (0.5, 0.25)
MOST_ROUNDS = 3


class Steps(Protocol):
    """Where the next step comes from: False when there is none."""

    def step(self) -> bool:
        """The best of all."""

    def step_at(self, nodes: AbstractSet[int]) -> bool:
        """The best in which one of these nodes has part."""


def even_out_the_rest(draft: Draft, descent: Callable[[], Steps]) -> None:
    """Bring nodes that stand apart to the others, measure by measure, as far as that succeeds.

    Shape:   each `descent` begins where the draft stands, and lets nobody move the cheaper for having moved: as the next plan would see it.
    """
    goal = draft.goal
    if is_small(draft.sketch):
        return  # of a few large guests, none is a small step
    for _ in range(MOST_ROUNDS):
        begun = draft.steps
        for number in range(len(goal.measures)):
            before = draft.mark()
            if apart(goal, number) and not _brought(goal, number, descent):
                draft.back_to(before)
        if draft.steps == begun:
            return
        made_worth_while = descent()  # by these steps, at the full price
        while made_worth_while.step():
            pass


def apart(goal: Goal, number: int) -> frozenset[int]:
    """The nodes that stand apart in a measure: all outside of the EVEN_FRACTION that holds most of them; none where all are inside."""
    fraction = goal.measures[number].fraction
    rising = sorted(range(len(fraction)), key=lambda node: (fraction[node], node))
    best: list[int] = []
    for first in range(len(rising)):
        inside = [node for node in rising[first:] if fraction[node] < fraction[rising[first]] + EVEN_FRACTION]
        if len(inside) > len(best):
            best = inside
    return frozenset(rising) - frozenset(best)


def _brought(goal: Goal, number: int, descent: Callable[[], Steps]) -> bool:
    try:
        for goal.thrift in THRIFT:
            small = descent()
            while nodes := apart(goal, number):
                if not small.step_at(nodes):
                    break
            else:
                return True
    finally:
        goal.thrift = 1.0
    return False

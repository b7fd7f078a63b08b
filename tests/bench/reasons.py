# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a plan leaves a cluster uneven: because it must, or because it does not look far enough."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from enum import StrEnum

from agent.core.cluster import Snapshot
from agent.core.descent import Descent
from agent.core.detours import take_detour
from agent.core.draft import Draft
from agent.core.evenness import even_out_the_rest
from agent.core.placement import Placement
from agent.core.planner import plan
from agent.core.reasons import MoveReason
from agent.core.repairs import Repairs
from agent.core.settings import Settings
from agent.core.settings_check import check
from tests.bench.judge import FACTS, Evenness, judge
from tests.bench.own import Variant, batches_of, document, question, settings
from tests.bench.results import Batches
from tests.core.checker import State

EVEN_POINTS = 5.0
WIDTH = 6  # nodes, and units on each, of a wider search; the planner looks at two
MOST_DETOURS = 12


class Why(StrEnum):
    """What keeps a spread at five points or more; the first that holds."""

    SIZE = "large guests alone make it"
    BESIDE = "beside large guests there is no room for what would even out the other resource (proven)"
    PROVEN = "no placement is more even (proven)"
    WORTH = "a more even placement is not worth its moves (proven)"
    STAYS = "rules, and guests that must stay"
    LIMITS = "no target may be filled so far"
    OVERLOOKED = "another placement would be worth its moves (proven), and is overlooked"
    NARROW = "a wider search finds a placement that is more even"
    UNKNOWN = "nor does a wider search find one; unknown whether there is any"


def why_uneven(snapshot: Snapshot, batches: Batches, most_even: Evenness | None, worthiest: Evenness | None) -> Why:
    """The reason; `most_even` is the most even placement of all, `worthiest` that with the lowest goal and cost, where they are known."""
    if _one_guest_is_as_much(snapshot, batches):
        return Why.SIZE
    if most_even is not None and not _is_even(most_even):
        return Why.PROVEN
    if worthiest is not None and not _is_even(worthiest):
        return Why.WORTH
    if worthiest is not None:
        return Why.OVERLOOKED
    if _no_room_beside(snapshot):
        return Why.BESIDE
    free = replace(snapshot, guests=tuple(replace(guest, tags=(), ha=None) for guest in snapshot.guests))
    if free != snapshot and _is_even(_after(free)):
        return Why.STAYS
    if _is_even(_after(free, balance={"cpu": {"threshold_percent": 100}, "memory": {"threshold_percent": 100}})):
        return Why.LIMITS
    return Why.NARROW if _is_even(searched_widely(snapshot)[1]) else Why.UNKNOWN


def _is_even(now: Evenness) -> bool:
    return max(now.cpu_spread, now.memory_spread) < EVEN_POINTS


def _after(snapshot: Snapshot, **changed: object) -> Evenness:
    used = check(document(Variant.BOTH) | changed)
    assert isinstance(used, Settings), used
    return judge(snapshot, batches_of(plan(snapshot, used, question(snapshot)))).after


@functools.lru_cache(maxsize=8)
def searched_widely(snapshot: Snapshot) -> tuple[int, Evenness]:
    """How many moves it takes, and how even it is, when load is evened out with detours of any loss, WIDTH squared at a time."""
    draft = Draft(Placement(snapshot, settings(Variant.BOTH), question(snapshot)))
    sources, reason = draft.sketch.usable, MoveReason.MANUAL
    Repairs(draft, set(), may_move_on=True).run()
    for _ in range(MOST_DETOURS):
        Descent(draft, sources, reason, may_move_on=True).run()
        even_out_the_rest(draft, lambda: Descent(draft, sources, reason, may_move_on=True, as_new=True))
        if not take_detour(draft, sources, reason, math.inf, WIDTH):
            break
    moves = tuple((vmid, step.target) for step in draft.steps for vmid in step.vmids)
    return len(moves), judge(snapshot, (moves,)).after


def _no_room_beside(snapshot: Snapshot) -> bool:
    """Whether not both spreads can be below EVEN_POINTS, as k guests that are large in one resource leave no room for enough of the other.

    Give each of them a node for itself: two on one would fill it beyond all others. With both spreads below five points each of the k
    nodes holds at least so much of the other resource, and the guests that bring it take at least so much of the first: as much as
    the densest of all guests would, cut into pieces. Where the k nodes together could not hold that below five points more than the
    mean, there is no such placement. For nodes of one size.
    """
    state = State(snapshot, FACTS)
    names = sorted(state.nodes)
    if len({(node.cpu_cores, node.memory_bytes) for node in state.nodes.values()}) > 1:
        return False
    size = (state.nodes[names[0]].cpu_cores, float(state.nodes[names[0]].memory_bytes))
    sums = [(state.cpu[name], state.memory[name]) for name in names]
    base = [
        [
            one[i] - math.fsum(load[i] for vmid, load in state.load.items() if state.at[vmid] == name)
            for one, name in zip(sums, names, strict=True)
        ]
        for i in (0, 1)
    ]
    points = EVEN_POINTS / 100
    for large, other in ((1, 0), (0, 1)):
        most, least = (math.fsum(one[i] for one in sums) / len(names) + sign * points * size[i] for i, sign in ((large, 1), (other, -1)))
        guests = sorted(state.load.values(), key=lambda load: -load[large])
        for k in range(1, len(names)):
            if k > 1 and min(base[large]) + guests[k - 1][large] + guests[k - 2][large] <= most:
                break
            taken = k * min(base[large]) + math.fsum(load[large] for load in guests[:k])
            lacking = math.fsum(max(0.0, least - max(base[other]) - load[other]) for load in guests[:k])
            for load in sorted(guests[k:], key=lambda load: -load[other] / max(load[large], 1e-9)):
                share = min(1.0, lacking / load[other]) if load[other] > 0 else 0.0
                taken, lacking = taken + share * load[large], lacking - share * load[other]
                if lacking <= 0:
                    break
            if taken > k * most or lacking > 1e-6:
                return True
    return False


def _one_guest_is_as_much(snapshot: Snapshot, batches: Batches) -> bool:
    """Whether, for each spread that is left, large guests alone account for five points of it.

    Give each of the k largest guests a node for itself: that node holds no less. The lowest of the other nodes holds no more
    than they do on average. Where two of the k shared a node it would be higher still, as only guests of half the largest
    one's size and more are looked at; nodes of several sizes allow this bound for k = 1 alone.
    """
    state = State(snapshot, FACTS)
    after = judge(snapshot, batches).after
    for which, spread in enumerate((after.cpu_spread, after.memory_spread)):
        if spread < EVEN_POINTS:
            continue
        size = {name: (node.cpu_cores, float(node.memory_bytes))[which] for name, node in state.nodes.items()}
        base = {name: (state.cpu, state.memory)[which][name] for name in size}
        total, sizes = math.fsum(base.values()), math.fsum(size.values())
        guests = sorted((load[which] for vmid, load in state.load.items() if state.at[vmid] in size), reverse=True)
        for vmid, load in state.load.items():
            base[state.at[vmid]] -= load[which]
        above = min((base[name] + guests[0]) / size[name] - (total - base[name] - guests[0]) / (sizes - size[name]) for name in size)
        if len(set(size.values())) == 1:
            one, lowest_base = next(iter(size.values())), min(base.values())
            alone = 0.0
            for k, load in enumerate(guests[: len(size) - 1], 1):
                if load < guests[0] / 2:
                    break
                alone += load + lowest_base
                above = max(above, (guests[0] + lowest_base) / one - (total - alone) / (sizes - k * one))
        if 100 * above < EVEN_POINTS:
            return False
    return True

# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a plan leaves a cluster uneven: because it must, or because it does not look far enough."""

from __future__ import annotations

import math
from dataclasses import replace
from enum import StrEnum

from agent.core.cluster import Snapshot
from agent.core.planner import plan
from agent.core.settings import Settings, check
from tests.bench.judge import FACTS, Evenness, judge
from tests.bench.own import Variant, batches_of, document, question
from tests.bench.results import Batches
from tests.core.checker import State

EVEN_POINTS = 5.0


class Why(StrEnum):
    """What keeps a spread at five points or more; the first that holds."""

    SIZE = "one guest alone is as much"
    PROVEN = "no placement is more even (proven)"
    WORTH = "a more even placement is not worth its moves (proven)"
    STAYS = "rules, and guests that must stay"
    LIMITS = "no target may be filled so far"
    UNKNOWN = "not looked far enough, or unknown"


def why_uneven(snapshot: Snapshot, batches: Batches, most_even: Evenness | None, worthiest: Evenness | None) -> Why:
    """The reason; the last two are the most even placement of all and the one with the lowest goal and cost, where they are known."""
    if _one_guest_is_as_much(snapshot, batches):
        return Why.SIZE
    if most_even is not None and not _is_even(most_even):
        return Why.PROVEN
    if worthiest is not None and not _is_even(worthiest):
        return Why.WORTH
    if worthiest is not None:
        return Why.UNKNOWN
    free = replace(snapshot, guests=tuple(replace(guest, tags=(), ha=None) for guest in snapshot.guests))
    if free != snapshot and _is_even(_after(free)):
        return Why.STAYS
    if _is_even(_after(free, balance={"cpu": {"threshold_percent": 100}, "memory": {"threshold_percent": 100}})):
        return Why.LIMITS
    return Why.UNKNOWN


def _is_even(now: Evenness) -> bool:
    return max(now.cpu_spread, now.memory_spread) < EVEN_POINTS


def _after(snapshot: Snapshot, **changed: object) -> Evenness:
    used = check(document(Variant.BOTH) | changed)
    assert isinstance(used, Settings), used
    return judge(snapshot, batches_of(plan(snapshot, used, question(snapshot)))).after


def _one_guest_is_as_much(snapshot: Snapshot, batches: Batches) -> bool:
    """Whether on every node some guest alone, with all others elsewhere, is five points above what the others hold on average."""
    state = State(snapshot, FACTS)
    after = judge(snapshot, batches).after
    for which, spread in enumerate((after.cpu_spread, after.memory_spread)):
        if spread < EVEN_POINTS:
            continue
        size = {name: (node.cpu_cores, float(node.memory_bytes))[which] for name, node in state.nodes.items()}
        used = {name: (state.cpu, state.memory)[which][name] for name in size}
        guests = {vmid: load[which] for vmid, load in state.load.items() if state.at[vmid] in size}
        base = dict(used)
        for vmid, load in guests.items():
            base[state.at[vmid]] -= load
        largest = max(guests.values(), default=0.0)
        total, sizes = math.fsum(used.values()), math.fsum(size.values())
        above = [
            (base[name] + largest) / size[name] - (total - base[name] - largest) / (sizes - size[name]) for name in size if len(size) > 1
        ]
        if 100 * min(above, default=0.0) < EVEN_POINTS:
            return False
    return True

# SPDX-License-Identifier: GPL-3.0-or-later
"""The lower bound: below what any set of moves reaches, sharp where guests are small, and never above a plan."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from agent.core.bound import bound, least_deviation
from agent.core.cluster import GIB, Snapshot
from agent.core.imbalance import over_threshold
from agent.core.placement import Placement
from agent.core.planner import plan
from agent.core.question import Question
from agent.core.settings import Settings
from tests.core import checker
from tests.core.clusters import Draw, after_moves, cluster, facts, node, random_cluster, settings, vm
from tests.core.test_planner_properties import HOW, draws

PLAIN = settings()


def deviation(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def tiny(seed: int) -> Snapshot:
    """Two or three nodes of different sizes, up to six guests of which some stay."""
    dice = random.Random(seed)
    names = [f"pve{i + 1}" for i in range(dice.choice((2, 3)))]
    guests = []
    for i in range(dice.randint(1, 6)):
        guest = vm(100 + i, dice.choice(names), dice.choice((1, 2, 5, 10, 20)), dice.choice((0.2, 1, 3)))
        guests.append(replace(guest, ha="started") if dice.random() < 0.25 else guest)
    return cluster(*(node(name, dice.choice((64, 128, 256)), dice.choice((8, 16, 64))) for name in names), *guests)


def every_placement(snapshot: Snapshot) -> Iterator[Snapshot]:
    """The cluster after each set of moves of guests that are free, whatever limits and rules say."""
    free = [guest for guest in snapshot.guests if guest.ha is None]
    for places in product([one.name for one in snapshot.nodes], repeat=len(free)):
        where = {guest.vmid: place for guest, place in zip(free, places, strict=True)}
        moves = [_Moved(guest.vmid, where[guest.vmid]) for guest in free if where[guest.vmid] != guest.node]
        yield after_moves(snapshot, moves)  # type: ignore[arg-type]


class _Moved:
    def __init__(self, vmid: int, target: str) -> None:
        self.vmid, self.target = vmid, target


def test_no_placement_of_tiny_clusters_is_below_the_bound() -> None:
    above_zero = 0
    for seed in range(40):
        snapshot = tiny(seed)
        least = bound(Placement(snapshot, PLAIN, Question())).imbalance
        names = [one.name for one in snapshot.nodes]
        best = min(checker.State(after, facts(PLAIN)).imbalance(names, facts(PLAIN)) for after in every_placement(snapshot))
        assert least <= best + 1e-9, seed
        above_zero += least > 0.001
    assert above_zero >= 10


def test_no_fewer_moves_end_the_overload_of_tiny_clusters() -> None:
    low = settings({"balance": {"cpu": {"threshold_percent": 30}, "memory": {"threshold_percent": 30}}})
    known = hopeless = 0
    for seed in range(40):
        snapshot = tiny(seed)
        found = bound(Placement(snapshot, low, Question()))
        reached = [_moved(snapshot, after) for after in every_placement(snapshot) if not _overloaded(after, low)]
        if found.moves is None:
            assert reached == [], seed
            assert found.hopeless
            hopeless += 1
        elif reached:
            assert found.moves <= min(reached), seed
            known += found.moves > 0
    assert known >= 5
    assert hopeless >= 5


def _overloaded(snapshot: Snapshot, how: Settings) -> bool:
    sketch = Placement(snapshot, how, Question())
    return any(over_threshold(load, sketch.weights) for load in sketch.loads().values())


def _moved(before: Snapshot, after: Snapshot) -> int:
    return sum(one.node != other.node for one, other in zip(before.guests, after.guests, strict=True))


@profile(max_examples=60)
@given(draws(80), st.sampled_from((0, 1, 2, 3, 4)), st.booleans())
def test_no_plan_is_below_the_bound(draw: Draw, which: int, force: bool) -> None:
    snapshot, how = random_cluster(draw), HOW[which]
    question = Question(force=force)
    made = plan(snapshot, how, question)
    assert bound(Placement(snapshot, how, question)).imbalance <= made.after.imbalance + 1e-9


class TestOneResource:
    def test_what_is_found_is_below_a_fine_grid_and_near_it(self) -> None:
        dice = random.Random(7)
        for _ in range(60):
            floors = [dice.random(), dice.random()]
            sizes = [float(dice.choice((1, 2, 8))) for _ in floors]
            least = dice.random()
            most = least + dice.choice((0.0, dice.random()))
            found = least_deviation(floors, sizes, least, most)
            best = min(
                deviation([floors[0] + load * part / sizes[0], floors[1] + load * (1 - part) / sizes[1]])
                for load in (least + (most - least) * step / 20 for step in range(21))
                for part in (step / 400 for step in range(401))
            )
            assert best - 0.01 <= found <= best + 1e-9

    def test_below_a_node_that_cannot_go_down_small_nodes_are_filled_higher(self) -> None:
        # the stuck node stands at 1.0. To fill the others to one level, as water would, gives 0.1 each
        floors, sizes, load = [1.0, 0.0, 0.0], [4.0, 1.0, 4.0], 0.5
        water = deviation([1.0, 0.1, 0.1])
        better = deviation([1.0, 0.5, 0.0])  # all on the small one
        assert better < water
        assert least_deviation(floors, sizes, load, load) <= better

    def test_it_is_sharp_where_one_node_is_stuck(self) -> None:
        # equal nodes: the free load spreads evenly over the two below
        assert least_deviation([0.9, 0.1, 0.1], [1.0, 1.0, 1.0], 0.4, 0.4) == pytest.approx(deviation([0.9, 0.3, 0.3]), abs=1e-6)

    @pytest.mark.parametrize(("floors", "load"), [([0.5], 1.0), ([], 0.0), ([0.2, 0.4], 0.2), ([0.3, 0.3], 0.0)])
    def test_where_all_can_be_even_it_is_zero(self, floors: list[float], load: float) -> None:
        assert least_deviation(floors, [1.0] * len(floors), load, load) == 0.0


def test_who_stays_whatever_the_target_holds_the_bound_up() -> None:
    stuck = [vm(100 + i, "pve1", 20, 1, "plb_ignore") for i in range(4)]
    snapshot = cluster(node("pve1"), node("pve2"), *stuck, vm(110, "pve1", 2, 0.1))
    sketch = Placement(snapshot, PLAIN, Question())
    found = bound(sketch)
    # pve1 keeps 82 of 128 GiB, pve2 has 2 and may get 2 more
    memory = deviation([82 / 128, 4 / 128])
    cpu = deviation([4.5 / 32, 0.6 / 32])
    assert found.imbalance == pytest.approx((memory + cpu) / 2, abs=1e-6)


def test_of_a_group_nobody_moves_when_one_stays() -> None:
    guests = [vm(101, "pve1", 20, 1, "plb_affinity_a"), vm(102, "pve1", 20, 1, "plb_affinity_a", ha="started")]
    together = bound(Placement(cluster(node("pve1"), node("pve2"), *guests), PLAIN, Question()))
    apart = bound(Placement(cluster(node("pve1"), node("pve2"), *(replace(guest, tags=()) for guest in guests)), PLAIN, Question()))
    assert together.imbalance > apart.imbalance + 0.05


def test_the_biggest_guest_is_in_one_piece() -> None:
    guests = [vm(101, "pve1", 60, 0.1), vm(102, "pve2", 10, 0.1)]
    found = bound(Placement(cluster(node("pve1"), node("pve2"), *guests), PLAIN, Question()))
    # 60 of 128 GiB are on one of the two nodes, and the other 10 are at best on the other
    assert found.imbalance == pytest.approx(deviation([62 / 128, 12 / 128]) / 2, abs=1e-6)


def test_how_many_must_leave_counts_the_biggest() -> None:
    guests = [vm(101, "pve1", 10, 0.1), vm(102, "pve1", 8, 0.1), *(vm(110 + i, "pve1", 2, 0.1) for i in range(50))]
    found = bound(Placement(cluster(node("pve1"), node("pve2"), *guests), PLAIN, Question()))
    # 120 of 128 GiB against 85 % of 128 = 108.8: 11.2 must leave
    assert (found.moves, found.hopeless) == (2, ())


def test_a_node_over_its_threshold_by_what_stays_is_hopeless() -> None:
    nodes = node("pve1", cpu_used_cores=1.0, memory_used_bytes=120 * GIB), node("pve2")
    found = bound(Placement(cluster(*nodes, vm(101, "pve1", 4)), PLAIN, Question()))
    assert (found.moves, found.hopeless) == (None, ("pve1",))

# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every plan, on random clusters; each test also counts that it had something to look at."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import settings as profile

from agent.core.cluster import HaNodeAffinity, HaResource, HaResourceAffinity, HighAvailability, Snapshot
from agent.core.codec import to_json
from agent.core.plan_types import Gate, Plan
from agent.core.planner import plan
from agent.core.question import Question, Scope
from agent.core.reasons import LOAD_REASONS, RefusalReason
from agent.core.settings import Settings
from agent.sim.generator import Shape, generate
from tests.core.checker import broken_rules, overfull_nodes
from tests.core.clusters import Draw, after_moves, facts, left_undone, random_cluster, settings, wrong_in
from tests.core.random_clusters import HOW, draws, examples, remembered

PLAIN = settings()
FORCE = Question(force=True)


def with_pools_and_ha(snapshot: Snapshot, seed: int) -> tuple[Snapshot, Settings]:
    """The cluster with a third of its guests in pools and a third under the HA manager, and with rules for both."""
    dice = random.Random(seed)
    names = [node.name for node in snapshot.nodes]
    guests = tuple(
        replace(
            guest, pool=dice.choice(("a", "b", "c", "d")) if dice.random() < 0.3 else None, ha="started" if dice.random() < 0.3 else None
        )
        for guest in snapshot.guests
    )
    managed = [guest for guest in guests if guest.ha]
    resources = tuple(
        HaResource(
            guest.vmid,
            requested=dice.choices(("started", "ignored", "stopped"), (8, 1, 1))[0],
            state=dice.choices(("started", "error", ""), (8, 1, 1))[0],
            node=guest.node,
            maintenance_node=dice.choices((None, names[0]), (9, 1))[0],
            failback=dice.random() < 0.5,
            auto_rebalance=dice.random() < 0.5,
        )
        for guest in managed
    )
    free = [guest.vmid for guest in managed]
    dice.shuffle(free)
    sets = [tuple(sorted(free[i : i + 3])) for i in range(0, len(free) - 2, 3)]
    ha = HighAvailability(
        resources,
        tuple(
            HaNodeAffinity(f"n{i}", vmids, tuple(sorted((name, dice.randrange(2)) for name in dice.sample(names, 3))), dice.random() < 0.5)
            for i, vmids in enumerate(sets[::2])
        ),
        tuple(HaResourceAffinity(f"r{i}", vmids, dice.random() < 0.3) for i, vmids in enumerate(sets[: len(sets) // 2])),
        tuple(dice.sample(names, dice.choice((0, 0, 1)))),
        balances=dice.random() < 0.2,
    )
    how = settings(
        {
            "pools": {
                "a": {"rule": "affinity", "strict": False},
                "b": {"rule": "anti-affinity"},
                "c": {"pin": dice.sample(names, 2)},
                "d": {"pin": dice.sample(names, 1), "strict": False},
            },
            "rules": {"tags": dice.choice(("all", "all", "registered", "off"))},
        }
    )
    return replace(snapshot, guests=guests, ha=ha, registered_tags=("plb_affinity_g1", "plb_anti_affinity_g2", "plb_ignore")), how


def on_clusters(usual: int, look: Callable[[Draw, Snapshot], Plan], *, guests: int = 200) -> None:
    """Look at so many random clusters; more than half of the plans must have moves, else the look showed nothing."""
    seen: Counter[bool] = Counter()

    @profile(max_examples=examples(usual))
    @given(draws(guests))
    def each(draw: Draw) -> None:
        seen[bool(look(draw, random_cluster(draw)).moves)] += 1

    each()
    print(f"{seen[True]} of {seen.total()} examples have moves")
    assert seen.total() >= examples(usual)
    assert seen[True] > seen.total() / 2


def as_bytes(result: Plan) -> str:
    return json.dumps(to_json(result), sort_keys=True)


def has_stuck(result: Plan) -> bool:
    return any(refusal.reason is RefusalReason.NO_ORDER for refusal in result.refused)


def test_no_plan_breaks_a_limit_or_a_rule_at_any_instant() -> None:
    def look(draw: Draw, snapshot: Snapshot) -> Plan:
        result = plan(snapshot, PLAIN)
        assert wrong_in(snapshot, result, PLAIN) == []
        return result

    on_clusters(60, look)


def test_no_plan_breaks_a_rule_of_pools_or_of_the_ha_manager() -> None:
    def look(draw: Draw, plain: Snapshot) -> Plan:
        snapshot, how = with_pools_and_ha(plain, draw.seed)
        result = plan(snapshot, how, FORCE)
        assert wrong_in(snapshot, result, how, FORCE) == []
        if not has_stuck(result):
            after = replace(after_moves(snapshot, result.moves), ha=arrived(snapshot.ha, result))
            assert broken_rules(after, facts(how)) <= broken_rules(snapshot, facts(how))
        return result

    on_clusters(60, look)


def arrived(ha: HighAvailability, result: Plan) -> HighAvailability:
    """The HA manager once it has brought everybody where the plan wants."""
    place = {move.vmid: move.target for move in result.moves}
    return replace(ha, resources=tuple(replace(one, node=place.get(one.vmid, one.node)) for one in ha.resources))


def test_no_plan_does_so_whatever_is_remembered_and_however_it_is_set() -> None:
    def look(draw: Draw, snapshot: Snapshot) -> Plan:
        how, question = HOW[draw.seed % len(HOW)], remembered(snapshot, draw.seed)
        result = plan(snapshot, how, question)
        assert wrong_in(snapshot, result, how, question) == []
        return result

    on_clusters(100, look)


def test_with_gates_open_a_plan_leaves_nothing_to_do() -> None:
    """Nothing but what begins with moving somebody once more, in one of a hundred clusters at the most; and that the cooldown prevents.

    There this plan had no order for going there at once, or put a group together that only then could move as one. Moves that no
    order allows are thought of anew.
    """
    twice = []

    def look(draw: Draw, snapshot: Snapshot) -> Plan:
        snapshot = replace(snapshot, tasks=())  # who leaves a node with a backup for a rule is not moved on for load
        result = plan(snapshot, PLAIN, FORCE)
        assert wrong_in(snapshot, result, PLAIN, FORCE) == []
        then, moved = after_moves(snapshot, result.moves), {move.vmid for move in result.moves}
        again = plan(then, PLAIN, FORCE).moves
        assert not again or has_stuck(result) or moved & {move.vmid for move in again}
        cooling = Question(opened_by=Gate.FORCED, cooling=dict.fromkeys(moved, "now"))  # so the leader goes on with what it has begun
        assert not again or has_stuck(result) or plan(then, PLAIN, cooling).moves == ()
        twice.append(bool(again))
        return result

    on_clusters(100, look)
    print(f"after {sum(twice)} of {len(twice)} somebody would move once more")
    assert sum(twice) <= examples(1)


def test_a_guest_that_no_order_lets_go_home_does_not_keep_others_from_moving() -> None:
    """Of many steps that are left here, the best one, a way home, has no order; each of the others then has."""
    draw = Draw(seed=2979760947, nodes=11, guests=89, skew=2.0, fill=0.8089699423081138, rules=0.2, oddities=0.1)
    snapshot = replace(random_cluster(draw), tasks=())
    result = plan(snapshot, PLAIN, FORCE)
    assert plan(after_moves(snapshot, result.moves), PLAIN, FORCE).moves == ()


def test_a_static_load_never_moves_a_guest_twice_for_load() -> None:
    """Where a plan had moves without an order the next one is another way, and the cooldown keeps who has moved."""

    def look(draw: Draw, snapshot: Snapshot) -> Plan:
        first = result = plan(snapshot, PLAIN)
        moved: set[int] = set()
        for _ in range(3):
            for_load = {move.vmid for move in result.moves if move.reason in LOAD_REASONS}
            assert not for_load & moved
            moved |= for_load
            snapshot = after_moves(snapshot, result.moves)
            result = plan(snapshot, PLAIN, Question(cooling=dict.fromkeys(moved, "now") if has_stuck(result) else {}))
        return first

    on_clusters(25, look, guests=120)


def test_five_percent_of_noise_moves_nobody_after_a_plan() -> None:
    """Where rules or sizes keep the cluster beyond its gates, the gates stay open, and other loads are another question.

    So they are in a cluster that the gates have just let pass as it is.
    """
    inside = []

    def look(draw: Draw, snapshot: Snapshot) -> Plan:
        result = plan(snapshot, PLAIN)
        calm = after_moves(snapshot, result.moves)
        inside.append(result.gate is not Gate.CLOSED and plan(calm, PLAIN).gate is Gate.CLOSED)
        for seed in (1, 2, 3) if inside[-1] else ():
            again = plan(_noisy(calm, seed), PLAIN)
            assert [move.vmid for move in again.moves if move.reason in LOAD_REASONS] == []
        return result

    on_clusters(60, look, guests=120)
    print(f"{sum(inside)} of {len(inside)} plans end inside the gates")
    assert sum(inside) > len(inside) / 4


def _noisy(snapshot: Snapshot, seed: int) -> Snapshot:
    dice = random.Random(seed)

    def shaken(value: float | None) -> float | None:
        return None if value is None else value * dice.uniform(0.95, 1.05)

    guests = tuple(
        replace(
            guest,
            cpu_used_cores=shaken(guest.cpu_used_cores),
            memory_used_bytes=None if guest.memory_used_bytes is None else int(shaken(guest.memory_used_bytes) or 0),
        )
        for guest in snapshot.guests
    )
    change = {node.name: [0.0, 0.0] for node in snapshot.nodes}
    for before, after in zip(snapshot.guests, guests, strict=True):
        change[before.node][0] += (after.cpu_used_cores or 0.0) - (before.cpu_used_cores or 0.0)
        change[before.node][1] += (after.memory_used_bytes or 0) - (before.memory_used_bytes or 0)
    nodes = tuple(
        replace(
            node,
            cpu_used_cores=max(0.0, (node.cpu_used_cores or 0.0) + change[node.name][0]),
            memory_used_bytes=max(0, int((node.memory_used_bytes or 0) + change[node.name][1])),
        )
        for node in snapshot.nodes
    )
    return replace(snapshot, nodes=nodes, guests=guests)


def test_equal_input_gives_equal_bytes() -> None:
    def look(draw: Draw, snapshot: Snapshot) -> Plan:
        result = plan(snapshot, PLAIN, remembered(snapshot, draw.seed))
        assert as_bytes(plan(random_cluster(draw), PLAIN, remembered(snapshot, draw.seed))) == as_bytes(result)
        return result

    on_clusters(20, look, guests=100)


def test_after_any_prefix_of_the_batches_no_rule_is_newly_broken_and_no_node_newly_full() -> None:
    def look(draw: Draw, snapshot: Snapshot) -> Plan:
        result = plan(snapshot, PLAIN, FORCE)
        known = facts(PLAIN, FORCE)
        rules, full = broken_rules(snapshot, known), overfull_nodes(snapshot, known)
        for batch in range(1, 1 + max((move.batch for move in result.moves), default=0)):
            then = after_moves(snapshot, [move for move in result.moves if move.batch <= batch])
            assert overfull_nodes(then, known) <= full
            now_broken = broken_rules(then, known)
            assert now_broken <= rules
            rules = now_broken
        return result

    on_clusters(30, look, guests=120)


def test_planning_anew_after_the_first_batch_is_safe_and_hardly_ever_worse() -> None:
    """As the leader does: it looks again when something has ended, and plans anew, from where a step ahead may look different."""
    worse = []

    def look(draw: Draw, snapshot: Snapshot) -> Plan:
        result = plan(snapshot, PLAIN, FORCE)
        then = after_moves(snapshot, [move for move in result.moves if move.batch == 1])
        again = plan(then, PLAIN, FORCE)
        assert wrong_in(then, again, PLAIN, FORCE) == []
        at_once, in_the_end = (
            broken_rules(one, facts(PLAIN)) for one in (after_moves(snapshot, result.moves), after_moves(then, again.moves))
        )
        assert in_the_end <= broken_rules(snapshot, facts(PLAIN))
        if len(in_the_end) > len(at_once) or again.after.imbalance > result.after.imbalance + 0.02:
            worse.append(draw)
        return result

    on_clusters(40, look, guests=120)
    print(f"{len(worse)} are worse")
    assert len(worse) <= examples(2)


def test_a_scoped_plan_takes_load_from_its_nodes_alone() -> None:
    def look(draw: Draw, snapshot: Snapshot) -> Plan:
        used = {node.name: (node.memory_used_bytes or 0) / node.memory_bytes for node in snapshot.nodes}
        fullest = max(used, key=lambda name: (used[name], name))
        how: Settings = replace(PLAIN, rules=settings({"rules": {"tags": "off"}}).rules)
        question = Question(scope=Scope(frozenset({fullest})))
        result = plan(replace(snapshot, maintenance=()), how, question)
        assert {move.source for move in result.moves} <= {fullest}
        return result

    on_clusters(20, look, guests=120)


@pytest.mark.parametrize("shape", Shape)
def test_a_scoped_plan_relieves_its_node_as_far_as_the_whole_plan_would(shape: Shape) -> None:
    """How far the node stands above the mean afterwards, of cpu and memory alike: within a point of what the whole plan leaves."""
    for seed in (1, 2, 3):
        snapshot = generate(seed, 8, 160, shape)
        hottest = max(snapshot.nodes, key=lambda node: ((node.memory_used_bytes or 0) / node.memory_bytes, node.name)).name
        scoped = plan(snapshot, PLAIN, replace(FORCE, scope=Scope(frozenset({hottest}))))
        assert _above_the_mean(scoped, hottest) <= _above_the_mean(plan(snapshot, PLAIN, FORCE), hottest) + 0.01
        assert {move.source for move in scoped.moves if move.reason in LOAD_REASONS} <= {hottest}


def _above_the_mean(result: Plan, name: str) -> float:
    nodes = dict(result.after.nodes)
    cpu = nodes[name].cpu_fraction - fmean(node.cpu_fraction for node in nodes.values())
    memory = nodes[name].memory_fraction - fmean(node.memory_fraction for node in nodes.values())
    return (max(0.0, cpu) + max(0.0, memory)) / 2


def test_whoever_should_move_moves_or_is_refused_for_a_reason_that_is_true() -> None:
    @profile(max_examples=examples(80))
    @given(draws(80, nodes=(2, 8)))
    def each(draw: Draw) -> None:
        snapshot, how = random_cluster(draw), HOW[draw.seed % len(HOW)]
        for settings_of, question in ((PLAIN, Question()), (how, FORCE), (how, remembered(snapshot, draw.seed))):
            result = plan(snapshot, settings_of, question)
            assert left_undone(snapshot, result, settings_of, question) == []
            assert wrong_in(snapshot, result, settings_of, question) == []

    each()

# SPDX-License-Identifier: GPL-3.0-or-later
"""The checker of plans stands alone, and its worst case is the worst of all cases: small plans are gone through instant by instant."""

from __future__ import annotations

import ast
import copy
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, groupby, product
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import settings as profile

from agent.core import planner
from agent.core.cluster import Snapshot
from agent.core.plan_types import Move, Plan
from agent.core.question import Question
from agent.core.reasons import MoveReason
from tests.core import checker, unfit
from tests.core.clusters import Draw, facts, random_cluster, settings
from tests.core.random_clusters import draws, examples

PLAIN = settings()
FORCE = Question(force=True)
LOAD_OR_HOME = {"overload", "spread", "manual", "return-home"}
STILL, ON_ITS_WAY, ARRIVED = "still", "on its way", "arrived"


@pytest.mark.parametrize("module", [checker, unfit])
def test_the_checker_imports_nothing_of_the_agent(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported - {"tests.core.unfit"} if name.partition(".")[0] in ("agent", "tests")], imported


def instants(batch: list[Move]) -> Iterator[dict[int, str]]:
    """Every state a batch can be in: each of its moves waits, runs or is over, whatever the others do."""
    for states in product((STILL, ON_ITS_WAY, ARRIVED), repeat=len(batch)):
        yield dict(zip((move.vmid for move in batch), states, strict=True))


class Cluster:
    """The cluster between two batches: what each node holds and who is where, all of it counted from nothing."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.facts = facts(PLAIN, FORCE)
        self.nodes = {node.name: node for node in snapshot.nodes}
        self.load = {guest.vmid: checker.expected(guest, self.facts) for guest in snapshot.guests}
        self.at = {guest.vmid: {guest.node} for guest in snapshot.guests}
        self.held = {node.name: [node.cpu_used_cores or 0.0, float(node.memory_used_bytes or 0)] for node in snapshot.nodes}
        tags = checker.read_tags(snapshot, self.facts)
        self.apart = tags.apart
        self.units: list[set[int]] = []  # who must be together, through however many groups
        for vmids in tags.together.values():
            joined = [unit for unit in self.units if unit & set(vmids)]
            self.units = [unit for unit in self.units if unit not in joined] + [set(vmids).union(*joined)]
        for guest in snapshot.guests:  # what a guest is expected to take beyond what was measured counts, too
            if guest.status == "running":
                now = checker.measured(guest) or (0.0, 0.0)
                self._add(guest.node, (self.load[guest.vmid][0] - now[0], self.load[guest.vmid][1] - now[1]), 1)

    def _add(self, node: str, load: tuple[float, float], sign: int) -> None:
        for i in (0, 1):
            self.held[node][i] += sign * load[i]

    def after(self, batch: list[Move], instant: dict[int, str]) -> Cluster:
        """The cluster at that instant of the batch."""
        result = copy.copy(self)
        result.held = {name: list(sums) for name, sums in self.held.items()}
        result.at = dict(self.at)
        for move in batch:
            if instant[move.vmid] == STILL:
                continue
            result._add(move.target, self.load[move.vmid], 1)
            result.at[move.vmid] = {move.source, move.target}
            if instant[move.vmid] == ARRIVED:
                result._add(move.source, self.load[move.vmid], -1)
                result.at[move.vmid] = {move.target}
        return result

    def given_back(self, batch: list[Move], following: list[Move]) -> set[str]:
        """Thresholds that may be passed while the batch runs: one step comes, and the next batch brings the node back to where it was."""
        then = self.after(batch, {move.vmid: ARRIVED for move in batch})
        then = then.after(following, {move.vmid: ARRIVED for move in following})
        allowed = set()
        for name in {move.target for move in batch} & {move.source for move in following}:
            coming = {move.vmid for move in batch if move.target == name}
            is_one_step = len(coming) == 1 or any(coming <= unit for unit in self.units)
            tops = (0.8 * self.nodes[name].cpu_cores, 0.85 * self.nodes[name].memory_bytes)
            if is_one_step and all(then.held[name][i] <= max(tops[i], self.held[name][i]) * (1 + 1e-9) + i for i in (0, 1)):
                allowed.add(f"threshold {name}")
        return allowed

    def broken_by(self, coming: list[Move]) -> Iterator[str]:
        """What the node that these guests come to, or have just come to, breaks."""
        name, known = coming[0].target, self.facts
        node, (cpu, memory) = self.nodes[name], self.held[name]
        if memory > node.memory_bytes - max(known.reserve_fraction * node.memory_bytes, known.reserve_bytes) + 1:
            yield f"memory {name}"
        if cpu > node.cpu_cores * (1 + 1e-9):
            yield f"cpu {name}"
        is_over = memory > 0.85 * node.memory_bytes + 1 or cpu > 0.8 * node.cpu_cores * (1 + 1e-9)
        if is_over and any(move.reason.value in LOAD_OR_HOME for move in coming):
            yield f"threshold {name}"
        for tag, vmids in self.apart.items():
            there = {vmid for vmid in vmids if name in self.at[vmid]}
            if len(there) > 1 and there & {move.vmid for move in coming}:
                yield f"anti-affinity {tag}"


def what_breaks(snapshot: Snapshot, plan: Plan) -> set[str]:
    """The limits, thresholds and groups kept apart that some instant of the plan breaks by one of its moves, by going through them all."""
    now, found = Cluster(snapshot), set()
    batches = [list(group) for _, group in groupby(plan.moves, key=lambda move: move.batch)]
    for batch, following in zip(batches, [*batches[1:], []], strict=False):
        given_back = now.given_back(batch, following)
        for instant in instants(batch):
            then = now.after(batch, instant)
            begun = [move for move in batch if instant[move.vmid] != STILL]
            for name in {move.target for move in begun}:
                found |= set(then.broken_by([move for move in begun if move.target == name])) - given_back
        now = now.after(batch, {move.vmid: ARRIVED for move in batch})
    return found


def as_told(snapshot: Snapshot, plan: Plan) -> set[str]:
    """The same from the checker's findings."""
    found = set()
    for finding in checker.wrong_in(snapshot, plan, facts(PLAIN, FORCE)):
        kind, _, rest = finding.partition(": ")
        if kind in ("memory", "cpu", "anti-affinity"):
            found.add(f"{kind} {rest.split()[0]}")
        elif kind == "threshold":
            found.add(f"threshold {rest.split()[2]}")
    return found


def reckless(snapshot: Snapshot, plan: Plan, dice: random.Random) -> Plan:
    """Guests sent to one or two nodes in batches at random, whatever that breaks."""
    running = [guest for guest in snapshot.guests if guest.is_running]
    targets = dice.sample([node.name for node in snapshot.nodes], 2)
    moves = [
        replace(
            plan.moves[0],
            vmid=guest.vmid,
            source=guest.node,
            target=target,
            reason=dice.choice((MoveReason.MAINTENANCE, MoveReason.SPREAD, MoveReason.RETURN_HOME, MoveReason.PIN)),
            batch=dice.choice((1, 1, 2)),
        )
        for guest in dice.sample(running, min(len(running), 6))
        if (target := dice.choice(targets)) != guest.node
    ]
    return replace(plan, moves=tuple(sorted(moves, key=lambda move: move.batch)))


def with_few_cores(snapshot: Snapshot) -> Snapshot:
    nodes = (replace(node, cpu_cores=max(1.0, 1.2 * (node.cpu_used_cores or 0.0))) for node in snapshot.nodes)
    return replace(snapshot, nodes=tuple(nodes))


def test_the_worst_case_of_a_batch_is_the_worst_of_all_its_instants() -> None:
    seen: Counter[str] = Counter()

    @profile(max_examples=examples(80))
    @given(draws(40, nodes=(3, 5)))
    def each(draw: Draw) -> None:
        snapshot = replace(random_cluster(draw), tasks=())
        snapshot = with_few_cores(snapshot) if draw.seed % 3 == 0 else snapshot
        whole = planner.plan(snapshot, PLAIN, FORCE)
        plan = replace(whole, moves=whole.moves[: 1 + draw.seed % 6])
        if not plan.moves:
            return
        assert as_told(snapshot, whole) == set()
        broken = what_breaks(snapshot, plan)
        assert broken == as_told(snapshot, plan)
        if len(plan.moves) == len(whole.moves):
            assert broken == set()
        else:  # the cut may fall between the two who change places
            assert broken <= {f"threshold {move.target}" for move in plan.moves if move.batch == plan.moves[-1].batch}
        bad = reckless(snapshot, plan, random.Random(draw.seed))
        broken = what_breaks(snapshot, bad)
        assert broken == as_told(snapshot, bad)
        seen.update({finding.split()[0] for finding in broken} or {"nothing"})

    each()
    print(seen)
    assert all(seen[kind] > 0 for kind in ("nothing", "memory", "cpu", "threshold", "anti-affinity")), seen


@pytest.mark.parametrize("seed", range(20))
def test_a_part_of_a_batch_breaks_nothing_in_any_order(seed: int) -> None:
    """The moves of a batch one after the other, in orders at random, each over before the next begins: all limits and rules hold."""
    dice = random.Random(seed)
    snapshot = replace(random_cluster(Draw(seed, 6, 60, 1.0, 0.7, 0.5, 0.1)), tasks=())
    plan = planner.plan(snapshot, PLAIN, FORCE)
    for number in {move.batch for move in plan.moves}:
        before = [move for move in plan.moves if move.batch < number]
        batch = [move for move in plan.moves if move.batch == number]
        one_by_one = [replace(move, batch=number + i) for i, move in enumerate(dice.sample(batch, dice.randrange(len(batch) + 1)))]
        found = what_breaks(snapshot, replace(plan, moves=(*in_single_steps(before), *one_by_one)))
        following = {move.source for move in plan.moves if move.batch == number + 1}
        assert found <= {f"threshold {move.target}" for move in batch if move.target in following}, "but for exchanges that have begun"


def in_single_steps(moves: list[Move]) -> list[Move]:
    """Moves that are over, so that nothing of them has to be gone through: one in each batch, far before the others."""
    return [replace(move, batch=move.batch - 1_000_000 + i) for i, move in enumerate(moves)]


def test_there_is_something_to_look_at() -> None:
    plans = [planner.plan(random_cluster(Draw(seed, 6, 60, 1.0, 0.7, 0.5, 0.1)), PLAIN, FORCE) for seed in range(20)]
    assert sum(len(plan.moves) for plan in plans) > 100
    assert sum(max((move.batch for move in plan.moves), default=0) > 1 for plan in plans) > 5
    pairs = [pair for plan in plans for pair in combinations(plan.moves, 2) if pair[0].batch == pair[1].batch]
    assert len(pairs) > 100
    assert all(math.isfinite(move.gain) for plan in plans for move in plan.moves)

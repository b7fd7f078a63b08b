# SPDX-License-Identifier: GPL-3.0-or-later
"""The known optimum of small clusters: the fewest moves to a balance as good as a plan's, and the best balance of all.

Found by CP-SAT and taken only with its proof. It may move whom the planner may move, breaks no rule that the plan keeps, and
fills no node that receives a guest beyond what the planner may fill; it need not care for an order, so it is a lower bound.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Self

from agent.core.cluster import GuestType, Snapshot
from agent.core.conditions import Purpose
from agent.core.goal import Goal
from agent.core.placement import Placement
from agent.core.question import Question
from tests.bench.judge import FACTS, evenness, judge
from tests.bench.own import Variant, settings
from tests.bench.proxlb import python
from tests.bench.results import Batches
from tests.core.checker import State, broken_rules, read_tags

SCALE = 100_000  # shares of a node in whole numbers: a thousandth of a point
SLACK = 20  # of these in the ceiling, as every load is rounded; it can only help the optimum
LIMIT_S = 30.0
MIB = 1 << 20


@dataclass(frozen=True)
class Optimum:
    """A proven answer.

    Units:   `imbalance` in points, bytes of guests that move.
    """

    moves: int
    moved_bytes: float
    imbalance: float
    batches: Batches
    solver_s: float


class Solver:
    """CP-SAT in a process of the rivals' venv, for many problems one after the other."""

    def __init__(self, workers: int = 2) -> None:
        self._workers = workers
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        script = __file__.replace("optimum.py", "cp_sat.py")
        self._process = subprocess.Popen([str(python()), script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def fewest_moves(self, snapshot: Snapshot, batches: Batches, variant: Variant) -> Optimum | None:
        """The fewest moves to an imbalance no worse than these moves reach, None when there was no proof in time."""
        state = State(snapshot, FACTS)
        for batch in batches:
            for vmid, target in batch:
                state.move(vmid, target)
        return self._solve(snapshot, batches, variant, _imbalance(state, variant))

    def most_even(self, snapshot: Snapshot, batches: Batches, variant: Variant) -> Optimum | None:
        """The lowest imbalance of all placements that break no rule which these moves keep, whatever it moves."""
        return self._solve(snapshot, batches, variant, None)

    def worthiest(self, snapshot: Snapshot, batches: Batches, variant: Variant) -> Optimum | None:
        """The lowest sum of imbalance and what the planner lets moves cost: what a planner that overlooks nothing would choose."""
        return self._solve(snapshot, batches, variant, None, moves_cost=True)

    def _solve(
        self, snapshot: Snapshot, batches: Batches, variant: Variant, ceiling: float | None, *, moves_cost: bool = False
    ) -> Optimum | None:
        problem, vmids, names = _problem(snapshot, batches, variant)
        weight = sum(resource["weight"] for resource in problem["resources"])
        problem["costs"] = [round(SCALE * weight * cost) if moves_cost else 0 for cost in costs(snapshot, vmids, variant)]
        problem["ceiling"] = None if ceiling is None else math.ceil(ceiling * SCALE * weight) + SLACK
        problem["workers"] = self._workers
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(problem) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if answer["status"] != "OPTIMAL":
            return None
        at = {guest.vmid: guest.node for guest in snapshot.guests}
        moves = tuple((vmid, names[to]) for vmid, to in zip(vmids, answer["to"], strict=True) if names[to] != at[vmid])
        judged = judge(snapshot, ((moves),) if moves else ())
        return Optimum(len(moves), judged.moved_bytes, judged.after.imbalance, (moves,), answer["wall_s"])


def costs(snapshot: Snapshot, vmids: Iterable[int], variant: Variant) -> list[float]:
    """What moving each of the guests must bring at the least, by the planner's own formula."""
    goal = Goal(Placement(snapshot, settings(variant), Question(force=True)))
    guests, state = {guest.vmid: guest for guest in snapshot.guests}, State(snapshot, FACTS)
    return [goal.cost(state.load[vmid][1], int(guests[vmid].type is GuestType.LXC)) for vmid in vmids]


def _imbalance(state: State, variant: Variant) -> float:
    if variant is Variant.BOTH:
        return evenness(state).imbalance / 100
    shares = [share[1] for share in state.fractions().values()]
    mean = math.fsum(shares) / len(shares)
    return math.sqrt(math.fsum((share - mean) ** 2 for share in shares) / len(shares))


def _problem(snapshot: Snapshot, batches: Batches, variant: Variant) -> tuple[dict, list[int], list[str]]:
    """In whole numbers: running guests, nodes, who may be where."""
    used = settings(variant)
    state = State(snapshot, FACTS)
    names = sorted(state.nodes)
    placement = Placement(snapshot, used, Question(force=True))
    last = {vmid: target for batch in batches for vmid, target in batch}
    ends = dict(state.at) | last
    guests = [guest for guest in snapshot.guests if not guest.template]
    vmids = [guest.vmid for guest in guests]
    index = {vmid: number for number, vmid in enumerate(vmids)}
    tags = read_tags(snapshot, FACTS)
    broken = broken_rules(_placed(snapshot, ends), FACTS)
    allowed = []
    for guest in guests:
        stays = placement.conditions.why_guest_stays(guest, Purpose.LOAD) is not None and guest.vmid not in last
        pins = tags.pins.get(guest.vmid, frozenset(names)) if f"pin {guest.vmid}" not in broken else frozenset(names)
        allowed.append([names.index(guest.node)] if stays else [number for number, name in enumerate(names) if name in pins])
    problem = {
        "nodes": len(names),
        "at": [names.index(guest.node) for guest in guests],
        "allowed": allowed,
        "together": [[index[a], index[b]] for a, b in _pairs(tags.together.values()) if f"together {a} {b}" not in broken],
        "apart": [
            [index[a], index[b]] for a, b in _pairs(tags.apart.values()) if f"apart {a} {b}" not in broken and a in index and b in index
        ],
        "mib": [math.ceil(state.load[vmid][1] / MIB) for vmid in vmids],
        "known": [names.index(ends[vmid]) for vmid in vmids],
        "limit_s": LIMIT_S,
        "resources": [],
    }
    tops = {"cpu": FACTS.cpu_threshold or 1.0, "memory": FACTS.memory_threshold or 1.0}
    for resource, which in (("cpu", 0), ("memory", 1)):
        size = [(state.nodes[name].cpu_cores, float(state.nodes[name].memory_bytes))[which] for name in names]
        at_start = [(state.cpu[name], state.memory[name])[which] for name in names]
        guests_here = [math.fsum(state.load[vmid][which] for vmid in vmids if state.at[vmid] == name) for name in names]
        problem["resources"].append(
            {
                "weight": 1 if which == 1 or variant is Variant.BOTH else 0,
                "loads": [[round(SCALE * state.load[vmid][which] / amount) for amount in size] for vmid in vmids],
                "base": [round(SCALE * (start - here) / amount) for start, here, amount in zip(at_start, guests_here, size, strict=True)],
                "top": [math.ceil(SCALE * tops[resource]) + SLACK] * len(names),
            }
        )
    return problem, vmids, names


def _pairs(groups: object) -> list[tuple[int, int]]:
    return [pair for group in groups for pair in combinations(sorted(group), 2)]  # type: ignore[attr-defined]


def _placed(snapshot: Snapshot, at: dict[int, str]) -> Snapshot:
    return replace(snapshot, guests=tuple(replace(guest, node=at[guest.vmid]) for guest in snapshot.guests))

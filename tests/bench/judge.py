# SPDX-License-Identifier: GPL-3.0-or-later
"""What a list of moves does to a cluster, whoever wants them: measured by the checker's model, not by any planner's (but for N+1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from agent.core.cluster import Snapshot
from agent.core.placement import Placement
from agent.core.question import Question
from agent.core.reasons import RefusalReason
from agent.core.settings import Settings
from agent.core.survival import survival
from tests.bench.results import Batches
from tests.core.checker import Facts, State, broken_rules, read_tags

FACTS = Facts(containers="always", is_forced=True)
SETTINGS = Settings()  # for N+1, which asks for room and rules alone


@dataclass(frozen=True)
class Evenness:
    """Units: percentage points and percent of the nodes' cores and memory; `imbalance` in points, as design defines it."""

    cpu_spread: float
    memory_spread: float
    cpu_highest: float
    memory_highest: float
    imbalance: float

    def is_as_even_as(self, other: Evenness, *, memory_alone: bool = False) -> bool:
        """True when no spread is larger than the other's, but for a hundredth of a point."""
        return self.memory_spread <= other.memory_spread + 0.01 and (memory_alone or self.cpu_spread <= other.cpu_spread + 0.01)


@dataclass(frozen=True)
class Judgement:
    """What the moves do.

    Units:   bytes of guests' memory that is copied.
    Shape:   `broken_*` count rules' guests and pairs; `newly_broken` are those that were whole at the start and broken at some
             instant; `overfilled` are nodes that at some instant held more than they have, when each batch's guests count on both
             their nodes; `lost_*` count the nodes whose guests would not all have a place elsewhere if the node were lost;
             `wrong` are moves of guests that cannot move (templates, ignored) or to nowhere.
    """

    before: Evenness
    after: Evenness
    moves: int
    moved_bytes: float
    broken_before: int
    broken_after: int
    newly_broken: frozenset[str]
    overfilled: frozenset[str]
    lost_before: int
    lost_after: int
    wrong: tuple[int, ...]


def evenness(state: State) -> Evenness:
    """How even the cluster is now. All nodes of the benchmark are online and usable."""
    shares = state.fractions()
    cpu = [100 * share[0] for share in shares.values()]
    memory = [100 * share[1] for share in shares.values()]
    return Evenness(max(cpu) - min(cpu), max(memory) - min(memory), max(cpu), max(memory), 100 * state.imbalance(shares, FACTS))


def judge(snapshot: Snapshot, batches: Batches) -> Judgement:
    """Carry the moves out, batch by batch, and say what happened."""
    state = State(snapshot, FACTS)
    before = evenness(state)
    broken_before = broken_rules(snapshot, FACTS)
    tags = read_tags(snapshot, FACTS)
    guests = {guest.vmid: guest for guest in snapshot.guests}
    broken, overfilled, wrong = set(broken_before), set[str](), []
    moved = 0.0
    for batch in batches:
        arriving: dict[str, list[int]] = defaultdict(list)
        for vmid, target in batch:
            guest = guests[vmid]
            if target == state.at[vmid] or target not in state.nodes or guest.template or vmid in tags.ignored:
                wrong.append(vmid)
            arriving[target].append(vmid)
            moved += state.load[vmid][1]
        for target, vmids in arriving.items():
            if _is_over(state, target, vmids):
                overfilled.add(target)
            for group in tags.apart.values():
                here = [vmid for vmid in group if state.at[vmid] == target or vmid in vmids]
                broken |= {f"apart {a} {b}" for a, b in combinations(sorted(here), 2) if a in vmids or b in vmids}
        for vmid, target in batch:
            state.move(vmid, target)
        touched = {vmid for vmid, _ in batch}
        for group in tags.together.values():
            if touched.intersection(group):
                broken |= {f"together {a} {b}" for a, b in combinations(sorted(group), 2) if state.at[a] != state.at[b]}
        broken |= {f"pin {vmid}" for vmid in touched if vmid in tags.pins and state.at[vmid] not in tags.pins[vmid]}
    at_rest = _at_rest(snapshot, state)
    broken_after = broken_rules(at_rest, FACTS)
    return Judgement(
        before=before,
        after=evenness(state),
        moves=sum(len(batch) for batch in batches),
        moved_bytes=moved,
        broken_before=len(broken_before),
        broken_after=len(broken_after),
        newly_broken=frozenset((broken | broken_after) - broken_before),
        overfilled=frozenset(overfilled),
        lost_before=_lost(snapshot),
        lost_after=_lost(at_rest),
        wrong=tuple(wrong),
    )


def _at_rest(snapshot: Snapshot, state: State) -> Snapshot:
    """The cluster as PVE would report it afterwards."""
    return replace(
        snapshot,
        nodes=tuple(
            replace(node, cpu_used_cores=max(0.0, state.cpu[node.name]), memory_used_bytes=max(0, round(state.memory[node.name])))
            for node in snapshot.nodes
        ),
        guests=tuple(replace(guest, node=state.at[guest.vmid]) for guest in snapshot.guests),
    )


def _lost(snapshot: Snapshot) -> int:
    """By the planner's own judgement of N+1, on the same terms for everybody; guests that rules keep from all others are left aside."""
    found = survival(Placement(snapshot, SETTINGS, Question()))
    pinned = RefusalReason.PINNED  # to the lost node: that a repair brings such a guest home says nothing about how room is left
    return sum(any(refusal.reason is not pinned for refusal in loss.without_place) for loss in found.losses)


def _is_over(state: State, target: str, vmids: list[int]) -> bool:
    node = state.nodes[target]
    cpu = state.cpu[target] + sum(state.load[vmid][0] for vmid in vmids)
    memory = state.memory[target] + sum(state.load[vmid][1] for vmid in vmids)
    return cpu > node.cpu_cores * (1 + 1e-9) or memory > node.memory_bytes + 1


def on_the_way(snapshot: Snapshot, batches: Batches) -> Iterator[tuple[int, float, Evenness]]:
    """After each move: how many and how many bytes so far, and how even it is then."""
    state = State(snapshot, FACTS)
    moves, moved = 0, 0.0
    yield 0, 0.0, evenness(state)
    for batch in batches:
        for vmid, target in batch:
            moved += state.load[vmid][1]
            state.move(vmid, target)
            moves += 1
            yield moves, moved, evenness(state)


def moves_until(snapshot: Snapshot, batches: Batches, goal: Evenness, *, memory_alone: bool = False) -> tuple[int, float] | None:
    """How many of the moves, and bytes, in their order it takes to be as even as the goal; None when all of them do not get there."""
    ways = on_the_way(snapshot, batches)
    return next(((moves, moved) for moves, moved, now in ways if now.is_as_even_as(goal, memory_alone=memory_alone)), None)


def least_bytes(snapshot: Snapshot, goal: Evenness) -> float:
    """What anybody must copy for that spread of memory, however fine the guests were: none can do with less.

    In the end all nodes stand between some level and that level plus the spread. What stands above has left its node, what stands below
    has come, and each byte that is copied leaves one node and comes to one: so it takes the larger of the two sums, for the best level.
    """
    state = State(snapshot, FACTS)
    nodes = [(state.memory[name], float(node.memory_bytes)) for name, node in state.nodes.items()]

    def leave_and_come(level: float) -> tuple[float, float]:
        top = level + goal.memory_spread / 100
        leaves = sum(max(0.0, used - top * size) for used, size in nodes)
        return leaves, sum(max(0.0, level * size - used) for used, size in nodes)

    low, high = (edge(used / size for used, size in nodes) for edge in (min, max))
    for _ in range(60):  # the higher the level, the less leaves and the more comes
        middle = (low + high) / 2
        leaves, comes = leave_and_come(middle)
        low, high = (middle, high) if leaves > comes else (low, middle)
    return min(max(leave_and_come(low)), max(leave_and_come(high)))

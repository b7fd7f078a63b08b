# SPDX-License-Identifier: GPL-3.0-or-later
"""The results as tables: the worst of all seeds in each cell, and what the planner promises beside what it does."""

from __future__ import annotations

import functools
import hashlib
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.bench.clusters import SHAPES, Case, all_sizes
from tests.bench.judge import Evenness, Judgement, judge, least_bytes, moves_until
from tests.bench.optimum import costs
from tests.bench.own import Variant
from tests.bench.proxlb import Rival
from tests.bench.reasons import EVEN_POINTS, Why, searched_widely, why_uneven
from tests.bench.results import Results, Run

GIB, MIB = 1 << 30, 1 << 20
START_SUFFIX = ", one start"
FEWEST, MOST_EVEN, WORTHIEST = "fewest moves", "most even", "worthiest"
OWN = tuple(variant.value for variant in Variant)
SHOWN = all_sizes()
GROWN = ("32/1500", "32/3000", "32/6000")
RIVALS = tuple(rival.value for rival in Rival)


@dataclass(frozen=True)
class Judged:
    """A run and what its moves do."""

    run: Run
    does: Judgement


def judged(results: Results, who: Iterable[str]) -> list[Judged]:
    """The runs of these planners without pauses, judged, by size and shape."""
    names = set(who)
    runs = [run for run in results if run.who in names and not run.sleeps]
    return [Judged(run, _judge(run.case, run.batches)) for run in sorted(runs, key=_in_order)]


@functools.cache
def _judge(case: Case, batches: object) -> Judgement:
    return judge(_snapshot(case), batches)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=8)
def _snapshot(case: Case):  # type: ignore[no-untyped-def]
    return case.snapshot()


def _in_order(run: Run) -> tuple[object, ...]:
    """By size and shape; this planner first."""
    return _order(run.case), ([*OWN, *RIVALS].index(run.who) if run.who in (*OWN, *RIVALS) else 9), run.who


def _order(case: Case) -> tuple[int, int, int, int]:
    return case.nodes * case.guests, case.nodes, SHAPES.index(case.shape), case.seed


# text


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [list(head), ["---"] * len(head), *[list(line) for line in lines]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def worst(found: Sequence[Judged], value: Callable[[Judged], float | None]) -> float | None:
    """The largest that is known."""
    known = [number for one in found if (number := value(one)) is not None]
    return max(known, default=None)


def number(value: float | None, digits: int = 0) -> str:
    """For people; a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}".replace(",", " ")


def seconds(value: float | None) -> str:
    """Two digits that say something."""
    return "-" if value is None else f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


HEAD = (
    "planner", "plan, s", "evaluations", "moves", "GiB", "cpu spread", "memory spread", "highest cpu", "highest memory",
    "rules broken", "broken by the moves", "overfilled", "N+1", "MiB",
)  # fmt: skip


def line(name: str, found: Sequence[Judged]) -> list[str]:
    """The worst of some clusters, in the columns of HEAD; before -> after where both count."""

    def both(before: Callable[[Judged], float], after: Callable[[Judged], float], digits: int) -> str:
        return f"{number(worst(found, before), digits)} -> {number(worst(found, after), digits)}"

    return [
        name,
        seconds(worst(found, lambda one: one.run.plan_s)),
        number(worst(found, lambda one: one.run.evaluations)),
        number(worst(found, lambda one: one.does.moves)),
        number(worst(found, lambda one: one.does.moved_bytes / GIB)),
        both(lambda one: one.does.before.cpu_spread, lambda one: one.does.after.cpu_spread, 1),
        both(lambda one: one.does.before.memory_spread, lambda one: one.does.after.memory_spread, 1),
        both(lambda one: one.does.before.cpu_highest, lambda one: one.does.after.cpu_highest, 0),
        both(lambda one: one.does.before.memory_highest, lambda one: one.does.after.memory_highest, 0),
        both(lambda one: one.does.broken_before, lambda one: one.does.broken_after, 0),
        number(worst(found, lambda one: len(one.does.newly_broken))),
        number(worst(found, lambda one: len(one.does.overfilled))),
        both(lambda one: one.does.lost_before, lambda one: one.does.lost_after, 0),
        number(worst(found, lambda one: None if one.run.peak_bytes is None else one.run.peak_bytes / MIB)),
    ]


def rows(results: Results) -> str:
    """Every size, shape and planner."""
    found: dict[tuple[str, str, str], list[Judged]] = defaultdict(list)
    for one in judged(results, (*OWN, *RIVALS)):
        found[one.run.case.size, one.run.case.shape, one.run.who].append(one)
    lines = [[size, shape, str(len(those)), *line(who, those)] for (size, shape, who), those in found.items()]
    return table(("nodes/guests", "shape", "clusters", *HEAD), lines)


# the document


def markdown(results: Results) -> str:
    """The condensed tables, each with its caption."""
    parts = {
        "Worst of all shapes and seeds, before -> after:": by_size(results),
        "": checked(results),
        "As even as a rival's plan: the sum of its moves, and of ours (in their order, until the same spread is reached), over the "
        "clusters for which it has a plan where ours gets there; the least is what anybody must copy for that spread of memory:": against(
            results
        ),
        "Spread of cpu and memory that is left, worst of all seeds:": evenness(results),
        "Why it is, where it is five points or more; counted in clusters:": uneven(results),
        "Beside the optimum, as CP-SAT proves it: the fewest moves to a balance no worse than ours; and the lowest sum of imbalance and "
        "what the planner lets moves cost, in points:": optimum(results),
        "A whole dry run over HTTPS, pauses included:": dry_runs(results),
        "What doubling the guests costs, and one guest's start:": scaling(results),
    }
    return "\n\n".join(f"{caption}\n\n{part}".strip() for caption, part in parts.items() if part)


def by_size(results: Results) -> str:
    """One line a size and planner, the worst of all shapes and seeds."""
    found: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    for one in judged(results, (*OWN, *RIVALS)):
        if one.run.case.size in SHOWN:
            found[one.run.case.size, one.run.who].append(one)
    plans = [[size, f"{_with_moves(those)} of {len(those)}", *line(who, those)] for (size, who), those in found.items()]
    return table(("nodes/guests", "plans", *HEAD), plans)


def checked(results: Results) -> str:
    """What tests/core/checker.py finds wrong in this planner's plans, by its own reading of limits and rules."""
    looked_at = [run for run in results if run.who in OWN and "wrong" in run.facts]
    wrong = [f"{run.case}, {run.who}: {what}" for run in looked_at for what in run.facts["wrong"]]
    found = "nothing" if not wrong else f"{len(wrong)} times something, first " + "; ".join(wrong[:3])
    return f"`tests/core/checker.py` looked at {len(looked_at)} plans of this planner and found wrong: {found}."


def _with_moves(found: Sequence[Judged]) -> int:
    return sum(one.does.moves > 0 for one in found)


def against(results: Results) -> str:
    """What each rival needs for what it reaches, and what this planner needs for the same."""
    lines = []
    for rival in RIVALS:
        for own, memory_alone in ((Variant.MEMORY.value, True), (Variant.BOTH.value, False)):
            by: dict[str, list[tuple[Judged, tuple[int, float] | None]]] = defaultdict(list)
            for one in judged(results, [rival]):
                ours = results.find(one.run.case, own)
                if ours is not None and one.does.moves:
                    goal = one.does.after
                    by[one.run.case.size].append((one, moves_until(_snapshot(one.run.case), ours.batches, goal, memory_alone=memory_alone)))
            for size, pairs in by.items():
                reached = [(one, until) for one, until in pairs if until is not None]
                lines.append(
                    [
                        rival,
                        size,
                        "memory" if memory_alone else "cpu and memory",
                        f"{len(reached)} of {len(pairs)}",
                        number(sum(one.does.moves for one, _ in reached)),
                        number(sum(until[0] for _, until in reached)),
                        number(sum(one.does.moved_bytes for one, _ in reached) / GIB),
                        number(sum(until[1] for _, until in reached) / GIB),
                        number(sum(least_bytes(_snapshot(one.run.case), one.does.after) for one, _ in reached) / GIB),
                        number(sum(until[0] > one.does.moves for one, until in reached)),
                    ]
                )
    head = (
        "against",
        "nodes/guests",
        "spread of",
        "as even in",
        "its moves",
        "ours",
        "its GiB",
        "ours",
        "the least",
        "ours takes more moves in",
    )
    return table(head, lines) if lines else ""


def evenness(results: Results) -> str:
    """Where a spread of five points or more is left, and where not."""
    found: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    for one in judged(results, [Variant.BOTH.value]):
        if one.run.case.size in SHOWN:
            found[one.run.case.size, one.run.case.shape].append(one)
    sizes = list(dict.fromkeys(size for size, _ in found))
    lines = []
    for shape in SHAPES:
        cells = [shape]
        for size in sizes:
            those = found.get((size, shape), [])
            cpu, memory = (worst(those, lambda one: one.does.after.cpu_spread), worst(those, lambda one: one.does.after.memory_spread))
            cells.append(f"{number(cpu, 1)} / {number(memory, 1)}")
        lines.append(cells)
    return table(("cpu / memory spread after, points", *sizes), lines) if lines else ""


def uneven(results: Results) -> str:
    """Why a spread of five points or more is left, counted, and the clusters where it need not be, or where nobody knows, each with what
    is known."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    unexplained = []
    for one in judged(results, [Variant.BOTH.value]):
        if one.run.case.size not in SHOWN or max(one.does.after.cpu_spread, one.does.after.memory_spread) < EVEN_POINTS:
            continue
        most_even, worthiest = (_proven(results, one.run.case, who) for who in (MOST_EVEN, WORTHIEST))
        why = why_uneven(_snapshot(one.run.case), one.run.batches, most_even and most_even.does.after, worthiest and worthiest.does.after)
        found[one.run.case.size][why] += 1
        if why in (Why.OVERLOOKED, Why.NARROW, Why.UNKNOWN):
            other = _overlooked(one, worthiest) if worthiest is not None else _found_widely(one)
            unexplained.append(f"- {one.run.case}: {one.does.moves} moves, {_spreads(one.does.after)}; {other}")
    head = ("spread of 5 points or more left", *(why.value for why in Why))
    lines = [[size, *(number(counts[why]) for why in Why)] for size, counts in found.items()]
    return "\n".join([table(head, lines), *(["", *unexplained] if unexplained else [])]) if lines else ""


def _overlooked(one: Judged, best: Judged) -> str:
    less = one.does.after.imbalance + _cost(one) - best.does.after.imbalance - _cost(best)
    return f"{best.does.moves} moves, {_spreads(best.does.after)}, would be {less:.2f} points better in the sum of imbalance and cost"


def _found_widely(one: Judged) -> str:
    moves, after = searched_widely(_snapshot(one.run.case))
    return f"a wider search ends with {moves} moves, {_spreads(after)}"


def _spreads(after: Evenness) -> str:
    return f"cpu {after.cpu_spread:.1f}, memory {after.memory_spread:.1f} points"


def _proven(results: Results, case: Case, who: str) -> Judged | None:
    """An optimum, if it was proven for the plan that the results hold."""
    run, ours = results.find(case, who), results.find(case, Variant.BOTH)
    if run is None or run.said or ours is None or run.facts["for"] != plan_digest(ours):
        return None
    return Judged(run, _judge(case, run.batches))


def plan_digest(run: Run) -> str:
    """By which an optimum says for which plan it was looked for; the order of its moves changes nothing of that."""
    return hashlib.sha256(repr(sorted(move for batch in run.batches for move in batch)).encode()).hexdigest()[:16]


def optimum(results: Results) -> str:
    """Moves beside the fewest that are as good, and imbalance and cost beside the lowest of all, both proven."""
    by: dict[str, list[Judged]] = defaultdict(list)
    for one in judged(results, [Variant.BOTH.value]):
        if results.find(one.run.case, FEWEST) is not None:
            by[one.run.case.size].append(one)
    lines = []
    for size, those in by.items():
        pairs = [(one.does, best.does) for one in those if (best := _proven(results, one.run.case, FEWEST)) is not None]
        worths = [(one, best) for one in those if (best := _proven(results, one.run.case, WORTHIEST)) is not None]
        gaps = [(ours.moves - best.moves) / best.moves for ours, best in pairs if best.moves]
        lines.append(
            [
                size,
                f"{len(pairs)} of {len(those)}",
                number(sum(ours.moves for ours, _ in pairs)),
                number(sum(best.moves for _, best in pairs)),
                f"{number(100 * statistics.fmean(gaps), 1)} %" if gaps else "-",
                number(sum(ours.moved_bytes for ours, _ in pairs) / GIB),
                number(sum(best.moved_bytes for _, best in pairs) / GIB),
                f"{len(worths)} of {len(those)}",
                *([_means(side) for side in zip(*worths, strict=True)] if worths else ["-", "-"]),
            ]
        )
    head = (
        "nodes/guests", "proven", "our moves", "fewest", "mean gap", "our GiB", "its GiB",
        "proven", "our imbalance, moves and cost, mean", "those of the lowest sum of imbalance and cost",
    )  # fmt: skip
    return table(head, lines) if lines else ""


def _means(those: Sequence[Judged]) -> str:
    imbalance = statistics.fmean(one.does.after.imbalance for one in those)
    moves = statistics.fmean(one.does.moves for one in those)
    return f"{imbalance:.2f}, {moves:.1f}, {statistics.fmean(_cost(one) for one in those):.2f}"


def _cost(one: Judged) -> float:
    """In points, as imbalance."""
    return 100 * math.fsum(costs(_snapshot(one.run.case), (vmid for batch in one.run.batches for vmid, _ in batch), Variant.BOTH))


def dry_runs(results: Results) -> str:
    """Wall time, requests and memory of a whole dry run over HTTPS, pauses included."""
    lines = []
    for run in sorted((run for run in results if run.wall_s is not None), key=_in_order):
        if run.who in OWN or run.sleeps:
            peak = run.facts.get("dry_run_peak_bytes", run.peak_bytes)
            lines.append([str(run.case), run.who, seconds(run.wall_s), number(run.requests), number(peak / MIB)])
    return table(("cluster", "planner", "wall, s", "requests", "MiB"), lines) if lines else ""


def scaling(results: Results) -> str:
    """How evaluations and time grow with the guests (seed 1), and what one guest's start costs (worst of all seeds)."""
    grown = {(run.case.shape, run.case.size): run for run in results if run.who == Variant.BOTH and run.case.seed == 1}
    starts = [run for run in results if run.who == Variant.BOTH + START_SUFFIX and run.case.size == "32/3000"]
    measured = [shape for shape in SHAPES if all((shape, size) in grown for size in GROWN)]
    if not measured:
        return ""
    lines = []
    for name, shapes in [*((shape, [shape]) for shape in measured), ("all", measured)]:
        evaluations = [float(sum(grown[shape, size].evaluations or 0 for shape in shapes)) for size in GROWN]
        plan_s = [math.fsum(grown[shape, size].plan_s or 0 for shape in shapes) for size in GROWN]
        here = [run for run in starts if run.case.shape in shapes]
        lines.append(
            [
                name,
                *(" ".join(f"{more / less:.2f}" for less, more in pairwise(values)) for values in (evaluations, plan_s)),
                number(max((run.evaluations or 0 for run in here), default=None)),
                number(max((1000 * (run.plan_s or 0) for run in here), default=None)),
            ]
        )
    head = (
        "32 nodes", "evaluations: 1500 to 3000 guests, 3000 to 6000", "time: the same", "one start at 3000 guests: evaluations", "ms",
    )  # fmt: skip
    return table(head, lines)

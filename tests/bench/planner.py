# SPDX-License-Identifier: GPL-3.0-or-later
"""How good the plans are, and what they take: this planner beside ProxLB, its solver, and the known optimum.

From the project's root, on a plain checkout after `tests/run --prepare`:

  python3 -m tests.bench.planner                            this planner on every cluster
  python3 -m tests.bench.planner --rivals --optimum         all of it; makes .cache/rivals from PyPI once; about two hours
  ... --json FILE                                           keep each run in FILE; what it holds already is not run again
  ... --json FILE --markdown                                print the tables of packaging/doc/plans.md; --write writes them there
  ... --json FILE --rows                                    print a line for each size, shape and planner

Clusters come from agent/sim/generator.py, the same each time. Rivals see them over HTTPS, as a played PVE API (tests/pve_server).
Every figure of quality is taken by tests/bench/judge.py, on the moves alone. Times are processor time where it is said so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.core.cluster import Snapshot
from tests.bench import own, proxlb, tables
from tests.bench.clusters import SHAPES, Case, all_sizes, cases
from tests.bench.optimum import Optimum, Solver
from tests.bench.own import Variant
from tests.bench.proxlb import Rival, RivalError
from tests.bench.results import Results, Run
from tests.bench.tables import FEWEST, MOST_EVEN, START_SUFFIX, WORTHIEST, plan_digest

RIVALS_UP_TO = {Rival.DEFAULT: 1000, Rival.LARGER_FIRST: 1000, Rival.SOLVER: 500}  # guests
OPTIMUM_SIZES = ("3/12", "4/16", "5/20")
DOCUMENT = Path(__file__).resolve().parents[2] / "packaging/doc/plans.md"
BEGIN, END = "<!-- tests/bench/planner.py --write -->", "<!-- end of tests/bench/planner.py -->"
PROVEN_AT = "3/12"  # above, the proof that no placement of all is better takes minutes a cluster
TIMED_SHAPE, TIMED_SEED = "zipf", 1  # of each size, for the wall time of a whole dry run


def main(arguments: list[str]) -> int:
    """Run what is asked for, and print."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.planner", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default=",".join(all_sizes()), metavar="NODES/GUESTS,...", help="(default: %(default)s)")
    parser.add_argument("--shapes", default=",".join(SHAPES), metavar="SHAPE,...", help="(default: %(default)s)")
    parser.add_argument("--seeds", default=5, type=int, metavar="N", help="clusters of each size and shape (default: %(default)s)")
    parser.add_argument("--rivals", action="store_true", help="run ProxLB and its solver, too")
    parser.add_argument("--optimum", action="store_true", help=f"find the optimum, too, at {', '.join(OPTIMUM_SIZES)}")
    parser.add_argument("--workers", default=1, type=int, metavar="N", help="how many rivals at a time (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the runs there, one a line, and do not repeat those it holds")
    parser.add_argument("--again", action="store_true", help="run this planner anew, whatever FILE holds of it")
    parser.add_argument("--markdown", action="store_true", help="print the tables, and run nothing")
    parser.add_argument("--write", action="store_true", help="write the tables into packaging/doc/plans.md, and run nothing")
    parser.add_argument("--rows", action="store_true", help="print every row, and run nothing")
    options = parser.parse_args(arguments)
    results = Results(options.json)
    wanted = list(cases(options.sizes.split(","), options.shapes.split(","), options.seeds))
    if not options.markdown and not options.write and not options.rows:
        if options.again:
            results.forget([*Variant, Variant.BOTH + START_SUFFIX])
        measure_own(wanted, results)
        if options.rivals:
            measure_rivals(wanted, results, options.workers)
        if options.optimum:
            measure_optimum(list(cases(OPTIMUM_SIZES, options.shapes.split(","), options.seeds)), results)
    text = tables.rows(results) if options.rows else tables.markdown(results)
    if options.write:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    else:
        print(text)
    return 0


def measure_own(wanted: Iterable[Case], results: Results) -> None:
    """This planner: whole plans of both variants, one guest's start, a dry run over HTTPS, and how it grows."""
    for case in wanted:
        for variant in Variant:
            _once(results, case, variant.value, lambda case=case, variant=variant: own.measure(case, variant))
        _once(results, case, Variant.BOTH + START_SUFFIX, lambda case=case: own.measure(case, Variant.BOTH, started(case.snapshot())))
    middle = {case.shape for case in wanted if case.size == tables.GROWN[1]}
    for case in cases(tables.GROWN, middle, 1):
        _once(results, case, Variant.BOTH, lambda case=case: own.measure(case, Variant.BOTH))
    for case in timed(wanted):
        run = results.find(case, Variant.BOTH)
        if run is not None and run.requests is None:
            wall_s, requests, peak_bytes = own.dry_run(case, Variant.BOTH)
            facts = run.facts | {"dry_run_peak_bytes": peak_bytes}
            results.add(Run(case, run.who, run.batches, run.plan_s, run.evaluations, wall_s, None, requests, run.peak_bytes, facts=facts))


def started(snapshot: Snapshot) -> int:
    """The guest whose start is looked at: the first running one of the node that is fullest by memory."""
    node = max(snapshot.nodes, key=lambda node: ((node.memory_used_bytes or 0) / node.memory_bytes, node.name))
    return next(guest.vmid for guest in snapshot.guests if guest.node == node.name and guest.is_running)


def timed(wanted: Iterable[Case]) -> list[Case]:
    """The clusters on which a whole dry run is timed."""
    limit = max(RIVALS_UP_TO.values())
    return [case for case in wanted if (case.shape, case.seed) == (TIMED_SHAPE, TIMED_SEED) and case.guests <= limit]


def measure_rivals(wanted: Iterable[Case], results: Results, workers: int) -> None:
    """ProxLB and its solver: all clusters without its pauses, and those whose wall time counts with them."""
    wanted = list(wanted)
    jobs = [(case, rival, False) for case in wanted for rival in Rival if case.guests <= RIVALS_UP_TO[rival]]
    jobs += [(case, rival, True) for case in timed(wanted) for rival in Rival if case.guests <= RIVALS_UP_TO[rival]]
    proxlb.python()

    def let_plan(job: tuple[Case, Rival, bool]) -> None:
        case, rival, sleeps = job
        if results.find(case, rival, sleeps=sleeps) is not None:
            return
        try:
            made = proxlb.run(case.snapshot(), rival, sleeps=sleeps)
        except RivalError as error:
            say(f"{case}: {error}")
            return
        results.add(
            Run(case, rival, made.batches, made.plan_s, None, made.wall_s, made.cpu_s, made.requests, made.peak_bytes, sleeps, made.said)
        )
        say(f"{case}: {rival}")

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(let_plan, jobs))


def measure_optimum(wanted: Iterable[Case], results: Results) -> None:
    """What the optimum is, for what this planner reaches."""
    with Solver() as solver:
        for case in wanted:
            _once(results, case, Variant.BOTH, lambda case=case: own.measure(case, Variant.BOTH))
            run = results.find(case, Variant.BOTH)
            assert run is not None
            snapshot = case.snapshot()
            finds = {FEWEST: solver.fewest_moves, MOST_EVEN: solver.most_even, WORTHIEST: solver.worthiest}
            for who, find in finds.items() if case.size == PROVEN_AT else [(FEWEST, solver.fewest_moves)]:
                known = results.find(case, who)
                if known is None or known.facts["for"] != plan_digest(run):
                    results.add(_optimum(case, who, run, find(snapshot, run.batches, Variant.BOTH)))
                    say(f"{case}: {who}")


def _optimum(case: Case, who: str, run: Run, found: Optimum | None) -> Run:
    if found is None:
        return Run(case, who, (), said="no proof in time", facts={"for": plan_digest(run)})
    return Run(case, who, found.batches, plan_s=found.solver_s, facts={"for": plan_digest(run)})


def _once(results: Results, case: Case, who: str, measure: Callable[[], dict[str, object]]) -> None:
    if results.find(case, who) is None:
        results.add(Run(case, who, **measure()))  # type: ignore[arg-type]
        say(f"{case}: {who}")


def say(text: str) -> None:
    """How far it is; standard output holds the tables alone."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

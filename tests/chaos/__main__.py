# SPDX-License-Identifier: GPL-3.0-or-later
"""`python3 -m tests.chaos --seeds N [--first S]`: so many simulated days, each with faults and loads from its seed."""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from tests.chaos.lived import FAIR_DAYS, Lived, live, too_few
from tests.chaos.plants import PLANTS


def _lived(seeds: Iterable[int], jobs: int, one: Callable[[int], Lived]) -> Iterator[Lived]:
    if jobs == 1:
        yield from map(one, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(one, seeds)


def finder(words: str, seeds: Iterable[int]) -> str | None:
    """What the first of these days says of the planted bug, None when none of them finds it."""
    plant = next(plant for plant in PLANTS if plant.words == words)
    for seed in seeds:
        if (found := plant.found_by(seed)) is not None:
            return f"seed {seed}: {found}"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Live the days; print what must not have been and how often each kind of thing happened."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, required=True, metavar="N", help="how many days")
    parser.add_argument("--first", type=int, default=1, metavar="S", help="the first day's seed")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many days at a time, each in a process")
    parser.add_argument("--days", type=float, default=1.0, metavar="D", help="how long each lasts, in days; the last hour is calm")
    parser.add_argument("--nodes", type=int, metavar="N", help="how many nodes there are (3 or 4)")
    parser.add_argument("--journal", action="store_true", help="print the story of each day")
    parser.add_argument("--plants", action="store_true", help="plant each known bug in turn, until a day finds it")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds)
    if options.plants:
        found = {plant.words: finder(plant.words, seeds) for plant in PLANTS}
        for words, by in found.items():
            print(f"{words}: {by or 'not found'}")
        return 0 if all(found.values()) else 1
    hits, judged = Counter[str](), Counter[str]()
    failed, took_s = [], 0.0
    one = functools.partial(live, days=options.days, nodes=options.nodes, with_story=options.journal)
    with contextlib.closing(_lived(seeds, options.jobs, one)) as days:
        for lived in days:
            print(lived.sentence, flush=True)
            hits += lived.hits
            judged += lived.judged
            took_s += lived.took_s
            failed += [lived.replay] if lived.problems else []
    for what, times in sorted(hits.items()):
        print(f"{times:7} {what}")
    print("judged:", ", ".join(f"{times} {what}" for what, times in sorted(judged.items())))
    rare = too_few(hits, judged) if options.seeds >= FAIR_DAYS else []
    if rare:
        print("too few hits:", ", ".join(rare))
    print(f"{options.seeds} seeds of {options.days:g} days each, {len(failed)} fail, {took_s:.0f} s of processor time")
    for again in failed:
        print(again)
    return 1 if failed or rare else 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: GPL-3.0-or-later
"""`python3 -m tests.chaos --seeds N [--first S]`: so many simulated days, each with faults and loads from its seed."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tests.chaos.day import Day

FAIR_DAYS = 40  # so many days are enough for each kind of thing to befall the cluster
LEAST_HITS = 1


def replay(seed: int) -> str:
    """The command that lives that day again and prints it."""
    return f"python3 -m tests.chaos --seeds 1 --first {seed} --journal"


def story(day: Day) -> Iterator[str]:
    """What went wrong, what the agents said and what they sent, in order."""
    lines = [(at_s, 0, f"-- {what}") for at_s, what in day.machine.strikes]
    lines += [(line.at_s, 1, f"{line.node} {line.record.text}") for line in day.world.journal]
    lines += [
        (sent.at_s, 2, f"{sent.sender} SENDS {sent.order.vmid} to {sent.order.target}: {sent.answer}")
        for sent in day.machine.judge.requests
    ]
    return (f"{at_s:9.1f} {text}" for at_s, _, text in sorted(lines))


def main(arguments: list[str] | None = None) -> int:
    """Live the days; print what must not have been and how often each kind of thing happened."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, required=True, metavar="N", help="how many days")
    parser.add_argument("--first", type=int, default=1, metavar="S", help="the first day's seed")
    parser.add_argument("--journal", action="store_true", help="print the story of each day")
    options = parser.parse_args(arguments)
    began_s, failed = time.process_time(), 0
    hits, judged = Counter[str](), Counter[str]()
    for seed in range(options.first, options.first + options.seeds):
        day = Day(seed)
        day.run()
        found = list(day.problems())
        hits += day.hits
        judged += day.witness.judged
        print(f"seed {seed}: {len(day.machine.judge.requests)} requests, {day.hits.total()} faults and events", flush=True)
        if options.journal:
            print(*story(day), sep="\n")
        if found:
            failed += 1
            print(f"seed {seed} fails; again with: {replay(seed)}", *found[:12], sep="\n    ", flush=True)
    for what, times in sorted(hits.items()):
        print(f"{times:7} {what}")
    print("judged:", ", ".join(f"{times} {what}" for what, times in sorted(judged.items())))
    rare = [what for what in kinds() if hits[what] < LEAST_HITS] if options.seeds >= FAIR_DAYS else []
    if rare:
        print("too few hits:", ", ".join(rare))
    print(f"{options.seeds} days, {failed} fail, {time.process_time() - began_s:.0f} s of processor time")
    return 1 if failed or rare else 0


def kinds() -> list[str]:
    """All that can befall the cluster."""
    from tests.chaos.faults import FAULTS, LOADS

    return [*FAULTS, *LOADS]


if __name__ == "__main__":
    sys.exit(main())

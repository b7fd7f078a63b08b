# SPDX-License-Identifier: GPL-3.0-or-later
"""`python3 -m tests.chaos --seeds N [--first S]`: so many simulated days, each with faults and loads from its seed."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.chaos.day import DAY_S, Day


def main(arguments: list[str] | None = None) -> int:
    """Live the days, print what must not have been and how often each kind of thing happened."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, required=True, metavar="N", help="how many days")
    parser.add_argument("--first", type=int, default=1, metavar="S", help="the first day's seed")
    parser.add_argument("--journal", action="store_true", help="print the journal, too")
    options = parser.parse_args(arguments)
    began, hits, failed = time.monotonic(), Counter[str](), 0
    judged = Counter[str]()
    for seed in range(options.first, options.first + options.seeds):
        day = Day(seed)
        t=time.monotonic()
        day.run(DAY_S)
        found = list(day.problems())
        hits += day.hits
        judged += day.witness.judged
        print(f"seed {seed}: {len(day.machine.judge.requests)} requests, {day.hits.total()} hits, {time.monotonic()-t:.1f} s", flush=True)
        if found:
            failed += 1
            print(f"seed {seed} fails; again with: python3 -m tests.chaos --seeds 1 --first {seed} --journal", *found[:12], sep="\n    ", flush=True)
        if options.journal:
            strikes = [(at_s, "", f"--- {what}") for at_s, what in day.machine.strikes]
            lines = [(line.at_s, line.node, line.record.text) for line in day.world.journal]
            posts = [(p.at_s, p.sender, f"=== POST {p.order.vmid} {p.order.source}>{p.order.target} {p.answer[:60]} {'' if p.held_lock else 'NO LOCK'}") for p in day.world.post_record]
            for at_s, node, text in sorted([*lines, *strikes, *posts], key=lambda x: x[0]):
                print(f"{at_s:9.1f} {node} {text}")
    for what in sorted({*hits}):
        print(f"{hits[what]:6} {what}")
    print(dict(judged))
    print(f"{options.seeds} days, {failed} fail, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

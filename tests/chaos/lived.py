# SPDX-License-Identifier: GPL-3.0-or-later
"""A day as it was lived: what must not have been, how often each kind of thing befell the cluster, and what was judged how often."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tests.chaos.day import Day
from tests.chaos.faults import FAULTS, LOADS

FAIR_DAYS = 40  # so many days are enough for each kind of thing to befall the cluster
LEAST_HITS = 10  # of each kind in so many days; 18 are the fewest that were seen
JUDGED = ("guest that may move", "room on the target", "processors of the target", "rules", "cooldown", "echoes", "inbox", "sent again")
MOST_TOLD = 12


@dataclass(frozen=True, slots=True)
class Lived:
    """What came of a day: what must not have been, how often each kind of thing befell it, what was judged how often, and how to
    live it again."""

    seed: int
    problems: tuple[str, ...]
    hits: Counter[str]
    judged: Counter[str]
    requests: int
    took_s: float
    replay: str
    story: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """One line about it, and more when it fails."""
        line = f"seed {self.seed}: {self.requests} requests, {self.hits.total()} faults and events, {self.took_s:.1f} s"
        lines = [*self.story, line]
        if self.problems:
            lines.append(f"seed {self.seed} fails; again with: {self.replay}")
            lines += [f"    {problem}" for problem in self.problems[:MOST_TOLD]]
        return "\n".join(lines)


def replay(seed: int, *, days: float = 1.0, nodes: int | None = None) -> str:
    """The command that lives that day again and prints it."""
    longer, larger = "" if days == 1 else f" --days {days:g}", "" if nodes is None else f" --nodes {nodes}"
    return f"python3 -m tests.chaos --seeds 1 --first {seed}{longer}{larger} --journal"


def live(seed: int, *, days: float = 1.0, nodes: int | None = None, with_story: bool = False) -> Lived:
    """Live one seed's day, or a longer time on a cluster of that many nodes."""
    began_s = time.process_time()
    day = Day(seed, days=days, nodes=nodes)
    day.run()
    problems = tuple(day.problems())
    took_s = time.process_time() - began_s
    requests = len(day.machine.judge.requests)
    told = tuple(story(day)) if with_story else ()
    return Lived(seed, problems, day.hits, day.witness.judged, requests, took_s, replay(seed, days=days, nodes=nodes), told)


def story(day: Day) -> Iterator[str]:
    """What went wrong, what the agents said and what they sent, in order."""
    lines = [(at_s, 0, f"-- {what}") for at_s, what in day.machine.strikes]
    lines += [(line.at_s, 1, f"{line.node} {line.record.text}") for line in day.world.journal]
    lines += [
        (sent.at_s, 2, f"{sent.sender} SENDS {sent.order.vmid} to {sent.order.target}: {sent.answer}")
        for sent in day.machine.judge.requests
    ]
    return (f"{at_s:9.1f} {text}" for at_s, _, text in sorted(lines))


def too_few(hits: Counter[str], judged: Counter[str]) -> list[str]:
    """The kinds of things that hardly ever befell the cluster, and what was hardly ever judged: such days show nothing of it."""
    return [*(what for what in (*FAULTS, *LOADS) if hits[what] < LEAST_HITS), *(what for what in JUDGED if judged[what] < LEAST_HITS)]

# SPDX-License-Identifier: GPL-3.0-or-later
"""What a leader's cycle costs as the cluster grows: the processor time of its steps, up to 64 nodes and 20,000 guests.

Run from the project's root:  .cache/tools/bin/python -m tests.bench.fleet [3/12 16/500 32/3000 64/20000] [--starts 10]
The real agents on every node, in simulated time and mode observe, so that a whole plan is made each time and nobody moves. Counted is
the leader's deciding: what it reads below /etc/pve is parsed in it, PVE's answers are not, as the simulated API gives values. Prints a
table; judges nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from unittest.mock import patch

from agent.core.settings import Settings
from agent.core.settings_check import check
from agent.daemon import inputs
from agent.daemon.agent import Agent
from agent.daemon.inputs import Now
from agent.daemon.outputs import Output
from agent.sim.generator import SIZES, generate, world_from
from agent.simulation import Simulation
from tests.fire.clusters import leader_text

CALM_S = 60.0  # the first look is over, and loads are known
BETWEEN_STARTS_S = 40.0  # longer than settle_s, and than a start is told again
NAMES = (
    "look at files, every 2 s, ms", "look at statistics, every 10 s, ms", "both, % of a core",
    "first look after the lead was taken, ms", "a guest's start: from the look to the sentence, ms",
)  # fmt: skip


class Steps:
    """The processor time of the leader's steps: those that took signs without and with statistics, and those of its cycles."""

    def __init__(self) -> None:
        self.files_s: list[float] = []
        self.statistics_s: list[float] = []
        self.cycles_s: list[float] = []
        self._cycle_s = 0.0

    def watched(self) -> AbstractContextManager[object]:
        """Take the time of each leader's steps while this lasts."""
        step = Agent.step

        def timed(agent: Agent, now: Now, arrived: Iterable[inputs.Input]) -> tuple[list[Output], float]:
            taken = tuple(arrived)
            began_s = time.process_time()
            result = step(agent, now, taken)
            if agent.work is not None:
                self._sort(agent, taken, time.process_time() - began_s)
            return result

        return patch.object(Agent, "step", timed)

    def _sort(self, agent: Agent, taken: tuple[inputs.Input, ...], took_s: float) -> None:
        signs = next((one for one in taken if isinstance(one, inputs.SignsSeen)), None)
        if signs is not None:
            (self.files_s if signs.rrd is None else self.statistics_s).append(took_s)
        elif any(isinstance(one, inputs.Observed | inputs.VerdictSeen) for one in taken):
            self._cycle_s += took_s
            if agent.work is not None and agent.work.current is None:
                self.cycles_s.append(self._cycle_s)
                self._cycle_s = 0.0


def settings() -> Settings:
    """A cluster that has long been running, observed."""
    result = check({"mode": "observe", "triggers": {"first_observe_s": 0, "warmup_s": 0, "reconcile_s": 3600}})
    assert isinstance(result, Settings)
    return result


def measured(nodes: int, guests: int, starts: int) -> Iterator[float]:
    """The figures of `NAMES`, medians, for a cluster of that size."""
    world = world_from(generate(1, nodes, guests, "mixed"), hook=True)
    world.put_file("proxlb/leader.json", leader_text(min(world.nodes)))
    simulation = Simulation(world, settings())
    stopped = [guest for guest in world.guests.values() if guest.status == "running" and guest.ha is None][:starts]
    for guest in stopped:
        world.stop_guest(guest.vmid)
    for number, guest in enumerate(stopped):
        simulation.at(CALM_S + BETWEEN_STARTS_S * number, lambda vmid=guest.vmid: world.start_guest(vmid))  # type: ignore[misc]
    steps = Steps()
    with steps.watched():
        simulation.run(CALM_S + BETWEEN_STARTS_S * len(stopped))
    files_s, statistics_s = statistics.median(steps.files_s), statistics.median(steps.statistics_s)
    yield 1000 * files_s
    yield 1000 * statistics_s
    yield 100 * (files_s / 2 + (statistics_s - files_s) / 10)
    yield 1000 * steps.cycles_s[0]
    yield 1000 * statistics.median(steps.cycles_s[1:])


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet", description=__doc__)
    parser.add_argument("sizes", nargs="*", default=[f"{nodes}/{guests}" for nodes, guests in SIZES], metavar="NODES/GUESTS")
    parser.add_argument("--starts", type=int, default=10, help="guests that are started one after the other")
    options = parser.parse_args(arguments)
    sizes = [tuple(int(number) for number in size.split("/")) for size in options.sizes]
    columns = [list(measured(nodes, guests, options.starts)) for nodes, guests in sizes]
    print("| nodes and guests |", " | ".join(f"{nodes} / {guests}" for nodes, guests in sizes), "|")
    print("| --- |", " --- |" * len(sizes))
    for row, name in enumerate(NAMES):
        print(f"| {name} |", " | ".join(f"{column[row]:.2f}" for column in columns), "|")


if __name__ == "__main__":
    main()

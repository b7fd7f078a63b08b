# SPDX-License-Identifier: GPL-3.0-or-later
"""How long it takes until somebody leads again: after a clean stop, a killed process, a dead node, a node that is cut off.

Run from the project's root:  .cache/tools/bin/python -m tests.bench.takeover [--nodes 3 16] [--phases 40]
and, as root, for one dead node in real time:  .cache/tools/bin/python -m tests.bench.takeover --real
The real agents in simulated time, each cause at so many points of a leader's ten seconds between two renewals. Prints a table: until
another leader has written that it leads, and until it has looked at everything and said what is to be done (settle_s and the age of
pvestatd's numbers are in that). Judges nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator

from agent.core.cluster import GIB
from agent.core.journal import MessageId
from agent.core.settings import Settings
from agent.core.settings_check import check
from agent.sim.inventory import SimGuest, SimNode
from agent.sim.world import World
from agent.simulation import Simulation
from tests.fire.clusters import leader_text

CALM_S = 100.0  # the first leader has settled in
LONGEST_S = 400.0
RESTART_S = 5.0  # RestartSec= of the unit


def _killed_and_started(world: World) -> None:
    world.kill_agent("pve1")
    world.timeline.after(RESTART_S, lambda: world.start_agent("pve1"))


CAUSES: tuple[tuple[str, Callable[[World], None]], ...] = (
    ("clean stop", lambda world: world.stop_agent("pve1")),
    ("process killed, started again 5 s later", _killed_and_started),
    ("process killed, its node lives on without it", lambda world: world.kill_agent("pve1")),
    ("node dead", lambda world: world.power_off_node("pve1")),
    ("node cut off", lambda world: world.cut_node("pve1")),
)


def settings() -> Settings:
    """A cluster that has long been running."""
    result = check({"triggers": {"first_observe_s": 0}})
    assert isinstance(result, Settings)
    return result


def measured(nodes: int, cause: Callable[[World], None], at_s: float) -> tuple[float, float]:
    """Seconds from the cause until somebody leads, and until its first decision."""
    names = [f"pve{number}" for number in range(1, nodes + 1)]
    guests = [SimGuest(100 + number, name, cores=2, memory_bytes=8 * GIB, used_memory_bytes=4 * GIB) for number, name in enumerate(names)]
    world = World([SimNode(name, 16, 64 * GIB) for name in names], guests)
    world.put_file("proxlb/leader.json", leader_text("pve2"))
    simulation = Simulation(world, settings())
    simulation.at(at_s, lambda: cause(world))
    simulation.run(at_s + LONGEST_S)
    lines = [line for line in world.journal if line.at_s > at_s]
    leads = next(line for line in lines if "leads the cluster" in line.record.text)
    decided = next(line for line in lines if line.node == leads.node and line.record.message_id is MessageId.DECISION)
    return leads.at_s - at_s, decided.at_s - at_s


def rows(nodes: int, phases: int) -> Iterator[tuple[str, str, str]]:
    """Cause, and median and worst of both times, a cause at a time."""
    for words, cause in CAUSES:
        times = [measured(nodes, cause, CALM_S + 10.0 * phase / phases + 0.01) for phase in range(phases)]
        yield words, *(f"{statistics.median(column):.1f} / {max(column):.1f}" for column in zip(*times, strict=True))  # type: ignore[misc]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[3, 16])
    parser.add_argument("--phases", type=int, default=40)
    parser.add_argument("--real", action="store_true", help="one dead node, with real processes and in real time (2.5 minutes)")
    arguments = parser.parse_args()
    if arguments.real:
        from tests.service.pair import dead_node_taken_over

        print(f"| node dead, real time | {dead_node_taken_over().leads_s:.1f} |")
        return
    for nodes in arguments.nodes:
        print(f"| {nodes} nodes | leads: median / worst of {arguments.phases}, s | has decided: median / worst, s |\n| --- | --- | --- |")
        for row in rows(nodes, arguments.phases):
            print("| {} | {} | {} |".format(*row), flush=True)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent simulate`: the real agent on the simulated cluster that a folder describes, in simulated time."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from agent.commands.scenario import journal_text, read_scenario
from agent.commands.tables import aligned, gib, percent
from agent.commands.wrong_use import WrongUseError
from agent.sim.world import World

AFTERWARDS_S = 600.0  # so long goes on what the last event set off, if --until says nothing else


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("folder", metavar="DIR", help="with cluster.yaml, and if wanted events.yaml, settings.yaml and README")
    parser.add_argument("--until", metavar="S", type=float, help="simulated seconds; by default 600 after the last event")
    parser.add_argument("--journal", action="store_true", help="print the journal alone")


def execute(arguments: argparse.Namespace) -> int:
    """Run it; print the journal and what is where in the end."""
    if arguments.until is not None and not (math.isfinite(arguments.until) and arguments.until >= 0):
        raise WrongUseError("--until must be a number of seconds, 0 or more")
    scenario = read_scenario(Path(arguments.folder))
    until_s = scenario.last_event_s + AFTERWARDS_S if arguments.until is None else arguments.until
    if scenario.title and not arguments.journal:
        print(f"{scenario.title}\n")
    seen = 0

    def show() -> None:
        nonlocal seen
        for line in scenario.new_lines(seen):
            print(journal_text(line))
        seen = len(scenario.world.journal)

    scenario.simulation.run(until_s, show)
    if not arguments.journal:
        print(f"\nafter {until_s:g} simulated seconds:\n{placement_text(scenario.world)}")
    return 0


def placement_text(world: World) -> str:
    """Each node with its load at this instant and the guests that run there."""
    running, use = world.running(), world.use()
    rows = []
    for name in world.nodes:
        here = ", ".join(f"{vmid} {world.guests[vmid].name}" for vmid, node in running.items() if node == name)
        used = use.get(name)
        if used is None:
            rows.append((name, "-", "-", "-", "offline"))
        else:
            cpu, memory = used.used_cores / used.cores, used.used_memory_bytes / used.memory_bytes
            rows.append((name, percent(cpu), percent(memory), gib(used.used_memory_bytes), here or "-"))
    return aligned(("NODE", "CPU", "MEMORY", "USED", "RUNNING GUESTS"), rows)

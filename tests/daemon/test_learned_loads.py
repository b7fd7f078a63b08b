# SPDX-License-Identifier: GPL-3.0-or-later
"""loads.json: read before the first lead, written when something was learned, at most now and then, and at the stop."""

from __future__ import annotations

import pytest

from agent.core.cluster import GIB
from agent.core.documents import LEADER_SCHEMA, LOADS_SCHEMA, LeaderFile, LeaderState, LearnedLoad, LoadsFile, parse, render
from agent.core.settings import Settings
from agent.daemon.kept_loads import KEEP_LOADS_S
from agent.daemon.outside import LEADER_PATH
from agent.sim.inventory import START_WALL_S, SimGuest, SimNode
from agent.sim.world import World
from agent.simulation import Simulation

KEPT = LoadsFile(LOADS_SCHEMA, (LearnedLoad(101, 1.0, 2.0 * GIB, START_WALL_S - 60), LearnedLoad(999, 1.0, GIB, START_WALL_S - 60)))


def simulation(loads_text: str | None = None) -> Simulation:
    """Three nodes of which pve1 leads, with a guest each that runs."""
    world = World(
        [SimNode(f"pve{number}", 16, 64 * GIB) for number in (1, 2, 3)],
        [SimGuest(100 + number, f"pve{number}", cores=2, memory_bytes=8 * GIB, used_memory_bytes=2 * GIB) for number in (1, 2, 3)],
    )
    world.put_file(LEADER_PATH, render(LeaderFile(LEADER_SCHEMA, "pve3", "before", 6, LeaderState.RELEASED, 0.0, "0.1.0")))
    world.nodes["pve1"].loads_text = loads_text
    return Simulation(world, Settings())


def kept(made: Simulation, node: str = "pve1") -> list[int]:
    text = made.world.nodes[node].loads_text
    return [] if text is None else [load.vmid for load in parse(LoadsFile, text).loads]


def test_a_leader_writes_what_it_learned_and_nobody_else_does() -> None:
    made = simulation()
    for vmid, at_s in ((101, 400.0), (102, 420.0)):
        made.at(at_s, lambda vmid=vmid: made.world.stop_guest(vmid))  # type: ignore[misc]
    made.run(400.0 + 2 * KEEP_LOADS_S)
    assert (kept(made), kept(made, "pve2")) == ([101, 102], [])


def test_what_is_learned_is_written_at_once_when_the_agent_stops() -> None:
    made = simulation()
    made.at(2 * KEEP_LOADS_S + 5, lambda: made.world.stop_guest(101))
    made.at(2 * KEEP_LOADS_S + 30, lambda: made.world.stop_agent("pve1"))
    made.run(2 * KEEP_LOADS_S + 40)
    assert kept(made) == [101]


def test_what_was_kept_is_known_again_but_not_of_guests_that_are_gone() -> None:
    made = simulation(render(KEPT))
    made.at(60.0, lambda: made.world.stop_guest(102))
    made.run(120.0)
    agent = made.agent("pve1")
    assert agent is not None and agent.leading is not None
    assert sorted(agent.leading.senses.learned) == [101, 102], "102 has just stopped, and 999 is not there"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "proxlb-agent/loads/9"}', render(KEPT).replace("2147483648", '"much"')])
def test_a_file_that_cannot_be_used_is_said_once_and_made_anew(text: str) -> None:
    made = simulation(text)
    made.at(400.0, lambda: made.world.stop_guest(102))
    made.run(400.0 + 2 * KEEP_LOADS_S)
    assert sum("loads.json cannot be used" in line.record.text for line in made.world.journal) == 1
    assert kept(made) == [102]


def test_a_disk_that_takes_nothing_costs_no_more_than_what_was_learned() -> None:
    made = simulation()
    made.world.fill_disk("pve1")
    made.at(400.0, lambda: made.world.stop_guest(101))
    made.run(400.0 + 2 * KEEP_LOADS_S)
    agent = made.agent("pve1")
    assert agent is not None and agent.leading is not None
    assert (kept(made), sorted(agent.leading.senses.learned)) == ([], [101])

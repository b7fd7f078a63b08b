# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node has reaches the leader, and costs next to no writes below /etc/pve."""

from __future__ import annotations

from dataclasses import replace

from agent.core.cluster import GIB
from agent.core.documents import Facts, InboxFile, parse
from agent.sim.inventory import SimNode
from agent.sim.world import World
from agent.simulation import Simulation
from tests.core.clusters import settings

NODES = ("pve1", "pve2", "pve3")
INBOX = "proxlb/inbox/pve2.json"
HOUR_S = 3600.0


def simulation() -> Simulation:
    world = World([SimNode(name, 16, 64 * GIB, zfs_cache_bytes=8 * GIB) for name in NODES])
    return Simulation(world, settings())


def inbox_writes(made: Simulation, node: str = "pve2") -> int:
    return made.world.pmxcfs.writes[f"proxlb/inbox/{node}.json"]


def told(made: Simulation) -> Facts:
    return parse(InboxFile, made.world.main.files[INBOX]).facts


def seen_by_the_leader(made: Simulation) -> Facts:
    leader = made.world.lock_holder()
    assert leader is not None
    agent = made.agent(leader)
    assert agent is not None and agent.leading is not None
    return agent.leading.senses.inboxes["pve2"].facts


def test_a_node_tells_what_it_has_at_its_start_and_then_nothing_for_an_hour() -> None:
    made = simulation()
    made.run(120)
    assert inbox_writes(made) == 1
    facts = told(made)
    assert facts.node is not None
    assert (facts.node.pve_version, facts.node.bridges, facts.zfs_cache_bytes) == ("9.0.10", ("vmbr0",), 8 * GIB)
    made.run(HOUR_S)
    assert [inbox_writes(made, node) for node in NODES] == [1, 1, 1]


def test_a_bridge_more_is_told_within_a_minute_and_once() -> None:
    made = simulation()
    made.run(120)
    facts = replace(made.world.nodes["pve2"].facts, bridges=("vmbr0", "vnet1"))
    made.world.change_facts("pve2", facts)
    made.run(120 + 70)
    assert told(made).node == seen_by_the_leader(made).node == replace(facts, pve_version="9.0.10")
    made.run(600)
    assert inbox_writes(made) == 2


def test_a_zfs_cache_that_breathes_is_no_news() -> None:
    made = simulation()
    for minute in range(20):
        cache = int((8 + 3 * (minute % 2)) * GIB)  # 3 of 64 GiB
        made.at(60.0 * minute + 130, lambda cache=cache: made.world.set_zfs_cache("pve2", cache))  # type: ignore[misc]
    made.run(20 * 60 + 200)
    assert inbox_writes(made) == 1


def test_a_zfs_cache_that_moves_far_is_told_every_five_minutes_at_most() -> None:
    made = simulation()
    for minute in range(20):
        cache = int((8 + 30 * (minute % 2)) * GIB)
        made.at(60.0 * minute + 130, lambda cache=cache: made.world.set_zfs_cache("pve2", cache))  # type: ignore[misc]
    made.run(20 * 60 + 200)
    assert 2 <= inbox_writes(made) <= 1 + 5


def test_the_zfs_cache_goes_along_with_what_is_told_anyway() -> None:
    made = simulation()
    made.run(120)
    made.world.set_zfs_cache("pve2", 9 * GIB)
    made.run(300)
    assert told(made).zfs_cache_bytes == 8 * GIB
    made.world.set_local_flag("pve2", "a new disk")
    made.run(330)
    assert told(made).zfs_cache_bytes == 9 * GIB
    assert inbox_writes(made) == 2

# SPDX-License-Identifier: GPL-3.0-or-later
"""Many guests start at once, on many nodes, while leaders come and go: few looks, few lines, and each start is answered once."""

from __future__ import annotations

from collections import Counter

import pytest

from agent.core.cluster import GIB
from agent.core.documents import render
from agent.core.journal import Level, MessageId
from agent.core.settings import Settings
from agent.core.settings_check import check
from agent.daemon.perform import LEADER_PATH
from agent.sim.inventory import SimGuest, SimNode
from agent.sim.world import World
from agent.simulation import Simulation
from tests.daemon.test_what_must_not_happen import RELEASED
from tests.scenarios.witness import Witness

NODES = tuple(f"pve{number:02}" for number in range(1, 11))
GUESTS = 200


def settings(**triggers: float) -> Settings:
    found = check({"triggers": {"first_observe_s": 0, **triggers}})
    assert isinstance(found, Settings), found
    return found


def guests(status: str, on: tuple[str, ...] = NODES) -> list[SimGuest]:
    """Uneven ones: the first nodes have larger guests. Every second one has the hookscript."""
    made = []
    for number in range(GUESTS):
        node = on[number % len(on)]
        size = GIB if NODES.index(node) < 5 else 2 * GIB
        made.append(
            SimGuest(
                1000 + number, node, cores=1, memory_bytes=2 * size, used_cores=0.1, used_memory_bytes=size, status=status,
                hook=number % 2 == 0, onboot=True,
            )
        )  # fmt: skip
    return made


def looks(world: World) -> int:
    return world.api_requests["GET /cluster/resources"]


def lines(world: World, from_s: float) -> list[str]:
    """What people read."""
    return [line.record.text for line in world.journal if line.at_s >= from_s and line.record.level <= Level.INFO]


def told(world: World) -> Counter[tuple[str, int]]:
    """How often each leader took the start of each guest for news, singly or among others."""
    return Counter(
        (line.node, line.record.vmid)
        for line in world.journal
        if line.record.message_id is MessageId.EVENT
        and line.record.vmid is not None
        and f"guest {line.record.vmid} started on" in line.record.text
    )


@pytest.mark.parametrize("dark", [NODES[5:], NODES], ids=["five nodes", "the whole cluster"])
def test_a_boot_storm_of_two_hundred_guests_is_answered_in_few_looks(dark: tuple[str, ...]) -> None:
    """After a power cut. Nobody is moved for load while guests are started one after the other; what is uneven then, is put right."""
    world = World([SimNode(name, 16, 96 * GIB, online=name not in dark) for name in NODES], guests("stopped", dark))
    world.put_file(LEADER_PATH, render(RELEASED))
    made = Simulation(world, settings(warmup_s=60))
    witness = Witness(world, settings())
    for name in dark:
        made.at(60, lambda name=name: world.power_on_node(name))  # type: ignore[misc]
    made.run(60)
    before = looks(world)
    storm_s = 60 + 5 + GUESTS / len(dark) + 10  # startall begins after 5 s, and starts a guest a second
    made.run(storm_s, witness.look)
    assert len(world.running()) == GUESTS
    assert looks(world) - before <= 12
    assert len([text for text in lines(world, 60) if "runs on" not in text and "follows" not in text and "goes on:" not in text]) <= 45
    assert not world.post_record, "nobody is moved meanwhile"
    made.run(900, witness.look)
    assert witness.all_problems() == []


@pytest.mark.parametrize("how", ["stop_agent", "kill_agent", "power_off_node"])
def test_a_leader_that_changes_in_the_middle_of_a_burst_loses_nothing_and_answers_nothing_twice(how: str) -> None:
    world = World([SimNode(name, 16, 96 * GIB) for name in NODES[:3]], guests("stopped", NODES[1:3]))
    world.put_file(LEADER_PATH, render(RELEASED))
    made = Simulation(world, settings(warmup_s=0))
    witness = Witness(world, settings())
    starts_s = {1000 + number: 60 + number * 0.05 for number in range(GUESTS)}
    for vmid, at_s in starts_s.items():
        made.at(at_s, lambda vmid=vmid: world.start_guest(vmid))  # type: ignore[misc]
    made.at(65, lambda: getattr(world, how)("pve01"))
    made.run(400, witness.look)
    assert world.lock_holder() in ("pve02", "pve03")
    assert len(world.running()) == GUESTS
    assert witness.all_problems() == []
    taken_s = next(line.at_s for line in world.journal if line.node != "pve01" and "took the lead" in line.record.text)
    counts = told(world)
    assert set(counts.values()) == {1}, [of for of, count in counts.items() if count > 1]
    answered_s = [line.at_s for line in world.journal if line.node == "pve01" and line.record.message_id is MessageId.DECISION]
    assert max(answered_s) < 60, "the first leader has answered none of them, so what the next one hears is heard for the first time"
    late = [vmid for vmid, at_s in starts_s.items() if at_s > taken_s]
    assert [vmid for vmid in late if not counts.keys() & {("pve02", vmid), ("pve03", vmid)}] == [], "who starts later is heard of"
    looked = [line.at_s for line in world.journal if line.record.message_id is MessageId.DECISION and line.at_s > taken_s]
    assert looked, "and who started before is seen in its first look"

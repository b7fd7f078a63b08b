# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever watches every scenario sees what must never happen: otherwise a scenario would pass because nobody looked."""

from __future__ import annotations

from agent.core.cluster import GIB, GuestType
from agent.core.journal import Level, MessageId, Record
from agent.core.settings import Settings
from agent.ports import MigrationOrder
from agent.sim.inventory import SimGuest, SimNode
from agent.sim.ports import ports_of
from agent.sim.records import JournalLine
from agent.sim.world import World
from tests.scenarios.witness import Witness


def a_world(**tags: str) -> World:
    """Three nodes of 64 GiB; guests 101 and 102 with 20 GiB on pve1, 201 with 45 GiB on pve2."""
    nodes = [SimNode(name, 16.0, 64 * GIB) for name in ("pve1", "pve2", "pve3")]
    sizes = {101: ("pve1", 20), 102: ("pve1", 20), 201: ("pve2", 45)}
    guests = [
        SimGuest(vmid, node, memory_bytes=gib * GIB, used_memory_bytes=gib * GIB, tags=tuple(filter(None, [tags.get(f"vm{vmid}")])))
        for vmid, (node, gib) in sizes.items()
    ]
    return World(nodes, guests)


def problems_of(world: World, *moves: tuple[int, str], epoch: int | None = 2, reason: str = "overload", lock: bool = True) -> str:
    """What is seen when pve1's agent sends these guests away, one after the other."""
    witness = Witness(world, Settings())
    ports = ports_of(world, "pve1")
    if lock and world.lock_holder() is None:
        ports.lock.take()
    for vmid, target in moves:
        if epoch is not None:
            said = Record(Level.NOTICE, MessageId.MOVE, "moving", reason=reason, vmid=vmid, epoch=epoch)
            world.journal.append(JournalLine(world.now_s, "pve1", said))
        ports.api.migrate(MigrationOrder(vmid, GuestType.QEMU, world.guests[vmid].node, target, online=True, restart=False))
        witness.look()
        world.advance(world.now_s + 200)
        witness.look()
    return "; ".join(witness.all_problems())


def test_a_good_move_is_no_problem() -> None:
    assert problems_of(a_world(), (101, "pve3")) == ""


def test_a_move_without_the_lock_is_seen() -> None:
    assert "did not have the lock" in problems_of(a_world(), (101, "pve3"), lock=False)


def test_an_unannounced_move_is_seen() -> None:
    assert "without a line that says so" in problems_of(a_world(), (101, "pve3"), epoch=None)


def test_an_overfilled_target_is_seen() -> None:
    assert "memory there is 67.0 of 60.0 GiB" in problems_of(a_world(), (101, "pve2"))


def test_a_broken_rule_is_seen() -> None:
    assert "guest 201 is there" in problems_of(a_world(vm101="x;plb_anti_affinity_a", vm201="plb_anti_affinity_a"), (101, "pve2"))
    assert "pinned to ['pve1']" in problems_of(a_world(vm101="plb_pin_PVE1"), (101, "pve3"))
    assert "to be ignored" in problems_of(a_world(vm101="plb_ignore_me"), (101, "pve3"))
    assert "must stay together" in problems_of(a_world(vm101="plb_affinity_a", vm102="plb_affinity_a"), (101, "pve3"))


def test_a_second_move_within_the_cooldown_is_seen() -> None:
    assert "s after it moved" in problems_of(a_world(), (101, "pve3"), (101, "pve1"))
    assert problems_of(a_world(), (101, "pve3"), (101, "pve1"), reason="manual") == ""


def test_two_who_act_are_seen() -> None:
    world = a_world()
    problems_of(world, (101, "pve3"), epoch=3)
    assert "acts in epoch 2 after epoch 3 has begun" in problems_of(world, (102, "pve3"), epoch=2)


def test_an_event_without_an_answer_is_seen() -> None:
    world = a_world()
    witness = Witness(world, Settings())
    world.journal.append(JournalLine(1.0, "pve1", Record(Level.INFO, MessageId.EVENT, "guest 101 started, seen by hook")))
    world.advance(500)
    assert "no sentence answers: guest 101 started" in "; ".join(witness.all_problems())
    world.journal.append(JournalLine(9.0, "pve1", Record(Level.INFO, MessageId.DECISION, "guest 101 started: nothing to do")))
    assert witness.all_problems() == []


def test_a_bug_is_seen() -> None:
    world = a_world()
    world.journal.append(JournalLine(1.0, "pve1", Record(Level.ERROR, MessageId.BUG, "a bug in the agent")))
    assert "a bug in the agent" in "; ".join(Witness(world, Settings()).all_problems())

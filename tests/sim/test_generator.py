# SPDX-License-Identifier: GPL-3.0-or-later
"""Made-up clusters are possible ones, and the same again for the same seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.cluster import Snapshot
from agent.core.rule_reading import read_rules
from agent.core.rules import Rules
from agent.core.settings import Settings
from agent.sim.generator import Shape, generate, world_from
from agent.sim.ports import ports_of


def broken(snapshot: Snapshot, rules: Rules) -> int:
    at = {guest.vmid: guest.node for guest in snapshot.guests}
    split = sum(len({at[vmid] for vmid in group.vmids}) > 1 for group in rules.affinity)
    crowded = sum(len({at[vmid] for vmid in group.vmids}) < len(group.vmids) for group in rules.anti_affinity)
    return split + crowded + sum(at[vmid] not in allowed for vmid, allowed in rules.pins.items())


@given(seed=st.integers(0, 10**6), nodes=st.integers(1, 12), guests=st.integers(0, 120), shape=st.sampled_from(Shape))
def test_no_node_has_more_than_it_can_hold(seed: int, nodes: int, guests: int, shape: Shape) -> None:
    made = generate(seed, nodes, guests, shape)
    assert (len(made.nodes), len(made.guests)) == (nodes, guests)
    assert made == generate(seed, nodes, guests, shape)
    for node in made.nodes:
        here = [guest for guest in made.guests if guest.node == node.name]
        assert node.cpu_used_cores is not None
        assert node.memory_used_bytes is not None
        assert node.cpu_used_cores <= node.cpu_cores
        assert node.memory_used_bytes <= node.memory_bytes
        assert sum(guest.memory_used_bytes or 0 for guest in here) < node.memory_used_bytes
    for guest in made.guests:
        assert (guest.cpu_used_cores or 0.0) <= guest.cpu_cores
        assert (guest.memory_used_bytes or 0) <= guest.memory_bytes


@given(seed=st.integers(0, 10**6), nodes=st.integers(2, 10), guests=st.integers(10, 120))
def test_rules_do_not_contradict_each_other(seed: int, nodes: int, guests: int) -> None:
    made = generate(seed, nodes, guests, Shape.RULES)
    rules = read_rules(made, Settings())
    assert rules.conflicts == ()
    assert not rules.contradicted


def test_as_many_rules_are_broken_as_asked() -> None:
    counts = []
    for fraction in (0.0, 1.0):
        made = generate(3, 16, 500, "rules", violated_fraction=fraction)
        rules = read_rules(made, Settings())
        counts.append((broken(made, rules), len(rules.affinity) + len(rules.anti_affinity) + len(rules.pins)))
    (kept_broken, kept_all), (left_broken, left_all) = counts
    assert kept_broken == 0 < kept_all
    assert left_broken > left_all / 3


def test_hot_clusters_have_a_node_over_the_default_threshold() -> None:
    for seed in range(5):
        made = generate(seed, 8, 200, Shape.HOT)
        assert max((node.cpu_used_cores or 0.0) / node.cpu_cores for node in made.nodes) > 0.8


@pytest.mark.parametrize("shape", Shape)
def test_a_world_made_of_a_snapshot_looks_like_it(shape: Shape) -> None:
    made = generate(5, 6, 80, shape)
    look = ports_of(world_from(made), "pve01").api.look()
    assert [(guest.vmid, guest.node, guest.status, guest.tags, guest.ha) for guest in look.guests] == [
        (guest.vmid, guest.node, guest.status, guest.tags, guest.ha) for guest in made.guests
    ]
    assert [node.memory_used_bytes for node in look.nodes] == [node.memory_used_bytes for node in made.nodes]
    assert [node.cpu_used_cores for node in look.nodes] == pytest.approx([node.cpu_used_cores for node in made.nodes])
    for seen, wanted in zip(look.guests, made.guests, strict=True):
        assert seen.cpu_used_cores == pytest.approx(wanted.cpu_used_cores)
        assert (seen.memory_used_bytes, seen.memory_host_bytes) == (wanted.memory_used_bytes, wanted.memory_host_bytes)

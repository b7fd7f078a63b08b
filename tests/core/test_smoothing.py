# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads over five minutes: a peak passes by, a guest takes its history along, and nothing is made up."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from agent.core.cluster import Guest, Snapshot
from agent.core.smoothing import SMOOTHED_OVER_S, Average, Held, Smoothing
from tests.core.clusters import changed, cluster, node, started, stopped, vm

TWO = (node("pve1"), node("pve2"))


def after(*snapshots: Snapshot, every_s: float = 10.0) -> Smoothing:
    smoothing = Smoothing()
    for i, snapshot in enumerate(snapshots):
        smoothing = smoothing.with_snapshot(snapshot, 1000.0 + every_s * i)
    return smoothing


def cpu_of(snapshot: Snapshot, name: str) -> float:
    found = snapshot.node(name)
    assert found is not None
    assert found.cpu_used_cores is not None
    return found.cpu_used_cores


def test_a_steady_load_stays_what_it_is() -> None:
    snapshot = cluster(*TWO, vm(101, "pve1", 4, 6.0))
    assert after(*[snapshot] * 40).applied(snapshot) == snapshot


def test_a_peak_is_a_small_part_of_five_minutes() -> None:
    calm, peak = (cluster(*TWO, vm(101, "pve1", 4, cpu, cpu_cores=32.0)) for cpu in (2.0, 30.0))
    smoothed = after(*[calm] * 30, peak).applied(peak)
    assert 2.0 < (smoothed.guests[0].cpu_used_cores or 0.0) < 4.0
    assert cpu_of(smoothed, "pve1") == pytest.approx(0.5 + (smoothed.guests[0].cpu_used_cores or 0.0))


def test_a_load_that_stays_is_the_load_after_a_while() -> None:
    calm, busy = (cluster(*TWO, vm(101, "pve1", 4, cpu, cpu_cores=32.0)) for cpu in (2.0, 30.0))
    assert (after(*[calm] * 30, *[busy] * 90).applied(busy).guests[0].cpu_used_cores or 0.0) > 27.0


def test_of_the_first_samples_the_plain_mean_counts() -> None:
    one = Average(2.0, 0.0).with_sample(10.0, 4.0).with_sample(20.0, 6.0)
    assert one.mean == pytest.approx(4.0, rel=0.02)


def test_a_time_that_stands_still_or_goes_back_changes_nothing() -> None:
    one = Average(2.0, 100.0)
    assert one.with_sample(100.0, 9.0) is one.with_sample(50.0, 9.0) is one


def test_after_a_long_silence_the_new_sample_counts() -> None:
    assert Average(2.0, 0.0, 100).with_sample(100 * SMOOTHED_OVER_S, 9.0).mean == pytest.approx(9.0)


def test_a_guest_takes_its_history_along() -> None:
    here, there = (cluster(*TWO, vm(101, name, 4, 8.0)) for name in ("pve1", "pve2"))
    smoothed = after(*[here] * 30, there).applied(there)
    assert cpu_of(smoothed, "pve1") == pytest.approx(0.5)
    assert cpu_of(smoothed, "pve2") == pytest.approx(8.5)


def test_guest_whose_place_is_told_before_its_load_makes_no_room_on_its_node() -> None:
    """A guest's sample is from its former node until its new one's pvestatd has looked; its node is told at once."""
    here, there = vm(101, "pve1", 4, 6.0), vm(102, "pve2", 4, 6.0)
    before = cluster(*TWO, here, there)
    told = before.nodes[0]
    between = replace(before, guests=(here, replace(there, node="pve1")))
    assert between.nodes[0] == told, "pve1's own sample is from before"
    after_it = cluster(*TWO, here, replace(there, node="pve1"))
    smoothed = after(before, between, after_it).applied(after_it)
    assert cpu_of(smoothed, "pve1") >= (here.cpu_used_cores or 0.0) + (there.cpu_used_cores or 0.0)


def test_a_fresh_guest_has_no_history_yet() -> None:
    snapshot = cluster(*TWO, started(vm(101, "pve1", 4, 8.0)))
    smoothing = after(*[snapshot] * 3)
    assert smoothing.guests == {}
    assert smoothing.applied(snapshot).guests == snapshot.guests


def test_who_is_gone_is_forgotten() -> None:
    smoothing = after(cluster(*TWO, vm(101, "pve1"), vm(102, "pve1")), cluster(TWO[0], stopped(vm(101, "pve1"))))
    assert (sorted(smoothing.guests), sorted(smoothing.nodes)) == ([], ["pve1"])


def test_an_unknown_load_stays_unknown() -> None:
    good = cluster(*TWO, vm(101, "pve1", 4, 2.0))
    for bad in (changed(good, "pve1", cpu_used_cores=None), changed(good, "pve1", cpu_used_cores=float("nan"))):
        applied = after(good, bad).applied(bad)
        assert applied.nodes[0].cpu_used_cores is bad.nodes[0].cpu_used_cores
    unknown = replace(good, guests=(replace(good.guests[0], cpu_used_cores=None),))
    assert after(good, unknown).applied(unknown).guests[0].cpu_used_cores is None


def test_memory_is_taken_as_it_is() -> None:
    small, large = (cluster(*TWO, vm(101, "pve1", gib, 2.0)) for gib in (2, 40))
    assert after(*[small] * 30, large).applied(large).nodes[0].memory_used_bytes == large.nodes[0].memory_used_bytes


def test_overload_lasts_only_without_a_break() -> None:
    held = Held()
    for at_s, over in ((0.0, ["pve1"]), (10.0, ["pve1"]), (20.0, []), (30.0, ["pve1"]), (40.0, ["pve1", "pve2"])):
        held = held.with_look(at_s, over, [])
    assert held.long_enough(59.0, 30.0, 30.0) == frozenset()
    assert held.long_enough(60.0, 30.0, 30.0) == {"pve1"}


def test_cpu_and_memory_have_times_of_their_own() -> None:
    held = Held().with_look(0.0, ["pve1"], ["pve2"])
    assert held.long_enough(60.0, 180.0, 60.0) == {"pve2"}
    assert held.long_enough(180.0, 180.0, 60.0) == {"pve1", "pve2"}


def pressed(one: float | None, other: float | None, place: str = "pve1", *more: Guest) -> Snapshot:
    """Two nodes with these pressures, and a guest that is on the one or the other."""
    nodes = (node("pve1", pressure_fraction=one), node("pve2", pressure_fraction=other))
    return cluster(*nodes, vm(101, place, 4, 4.0), *more)


def pressures(smoothing: Smoothing) -> dict[str, float]:
    return {name: round(average.mean, 3) for name, average in smoothing.pressures.items()}


def test_a_peak_of_pressure_is_a_small_part_of_five_minutes() -> None:
    calm, peak = pressed(0.1, 0.0), pressed(0.9, 0.0)
    smoothing = after(*[calm] * 30, peak)
    assert 0.1 < pressures(smoothing)["pve1"] < 0.15
    assert smoothing.applied(replace(peak, nodes=TWO)).nodes[0].pressure_fraction == smoothing.pressures["pve1"].mean


def test_pressure_begins_anew_on_both_nodes_when_a_guest_moves() -> None:
    assert pressures(after(*[pressed(0.6, 0.1)] * 30, pressed(0.2, 0.3, "pve2"))) == {"pve1": 0.2, "pve2": 0.3}


def test_pressure_begins_anew_when_a_guest_stops_and_not_when_one_starts() -> None:
    before = pressed(0.6, 0.1, "pve1", vm(102, "pve1"))
    assert pressures(after(*[before] * 30, pressed(0.2, 0.1)))["pve1"] == 0.2
    assert pressures(after(*[pressed(0.2, 0.1)] * 30, pressed(0.9, 0.1, "pve1", started(vm(102, "pve1")))))["pve1"] < 0.25


def test_an_unknown_pressure_stays_unknown() -> None:
    assert pressures(after(pressed(0.2, None), pressed(None, 7.0))) == {}


def test_another_cpu_load_leaves_all_else_as_it_is() -> None:
    values: dict[str, Any] = {entry.name: f"its {entry.name}" for entry in fields(Guest)}
    guest = Guest(**values)
    assert guest.with_cpu_used(1.5) == replace(guest, cpu_used_cores=1.5)

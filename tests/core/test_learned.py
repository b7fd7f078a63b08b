# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests took before they stopped: learned when it is of use, kept for a while, and never believed beyond their size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.cluster import GIB, Guest, Snapshot
from agent.core.documents import LearnedLoad, LoadsFile, parse, render
from agent.core.guest_load import GuestLoad, Ledger, expected_load
from agent.core.learned import KEPT_S, LEAST_RUN_S, LEAST_SAMPLES, MOST_KEPT, as_file, bounded, of_starting, with_look
from agent.core.smoothing import Smoothing
from tests.core.clusters import NOW, cluster, node, started, stopped, vm

ONE = vm(101, "pve1", 10, 4, cpu_cores=8.0, memory_bytes=40 * GIB)


def seen(*guests: Guest) -> Snapshot:
    return cluster(node("pve1"), node("pve2"), *guests)


def smoothed(snapshot: Snapshot, samples: int = LEAST_SAMPLES) -> Smoothing:
    smoothing = Smoothing()
    for i in range(samples):
        smoothing = smoothing.with_snapshot(snapshot, 1000.0 + 10.0 * i)
    return smoothing


def learned_from(before: Guest, after: Guest | None, samples: int = LEAST_SAMPLES) -> dict[int, LearnedLoad]:
    snapshot = seen(before)
    return dict(with_look({}, snapshot, smoothed(snapshot, samples), seen(*([] if after is None else [after])), {101}))


@pytest.mark.parametrize("after", [stopped(ONE), started(ONE), started(replace(ONE, node="pve2")), replace(ONE, status="paused")])
def test_a_load_is_learned_when_a_guest_stops_or_starts_anew(after: Guest) -> None:
    assert learned_from(ONE, after) == {101: LearnedLoad(101, pytest.approx(4.0), 10 * GIB, NOW)}


@pytest.mark.parametrize("after", [ONE, replace(ONE, cpu_used_cores=0.1), replace(ONE, uptime_s=None), None])
def test_nothing_is_learned_of_a_guest_that_runs_on_or_is_gone(after: Guest | None) -> None:
    assert learned_from(ONE, after) == {}


def test_a_guest_that_ran_for_a_moment_teaches_nothing() -> None:
    assert learned_from(replace(ONE, uptime_s=30.0), stopped(ONE), samples=LEAST_SAMPLES - 1) == {}
    assert learned_from(replace(ONE, memory_used_bytes=None), stopped(ONE)) == {}


def test_a_new_leader_learns_of_a_guest_that_has_run_for_long() -> None:
    assert learned_from(replace(ONE, uptime_s=LEAST_RUN_S), stopped(ONE), samples=1)[101].cpu_cores == pytest.approx(4.0)
    assert learned_from(replace(ONE, uptime_s=LEAST_RUN_S - 1), stopped(ONE), samples=1) == {}


def test_a_guest_that_comes_to_another_node_begins_anew_there_though_nobody_tells_its_uptime() -> None:
    assert learned_from(ONE, replace(ONE, node="pve2", uptime_s=None))[101].memory_bytes == 10 * GIB


def test_the_mean_of_cpu_is_learned_and_not_the_last_peak() -> None:
    calm, peak = seen(ONE), seen(replace(ONE, cpu_used_cores=8.0))
    found = with_look({}, peak, smoothed(calm), seen(stopped(ONE)), {101})
    assert found[101].cpu_cores == pytest.approx(4.0)


def test_while_nobody_stops_the_same_is_known() -> None:
    snapshot = seen(ONE)
    known = {101: LearnedLoad(101, 1.0, GIB, NOW)}
    assert with_look(known, snapshot, smoothed(snapshot), snapshot, ()) is known
    assert with_look(known, snapshot, smoothed(snapshot), snapshot, {101}) is known
    assert with_look(known, snapshot, smoothed(snapshot), seen(stopped(ONE)), {102}) is known


def test_a_guest_that_is_removed_is_forgotten() -> None:
    known = {vmid: LearnedLoad(vmid, 1.0, GIB, NOW) for vmid in (101, 102)}
    assert with_look(known, seen(ONE), Smoothing(), seen(ONE), {103}).keys() == {101}


def test_what_is_known_is_bounded_and_sound() -> None:
    many = [LearnedLoad(100 + i, 1.0, GIB, NOW + i) for i in range(MOST_KEPT + 10)]
    assert list(bounded(many, NOW + MOST_KEPT + 10)) == list(range(110, 110 + MOST_KEPT))
    odd = [LearnedLoad(1, -1.0, GIB, NOW), LearnedLoad(2, 1.0, float("nan"), NOW), LearnedLoad(3, 1.0, 1e300, NOW)]
    assert bounded(odd, NOW) == {}
    assert bounded([LearnedLoad(1, 1.0, GIB, NOW - KEPT_S)], NOW) == {}
    assert bounded([LearnedLoad(1, 1.0, GIB, NOW + 9e9)], NOW)[1].at == NOW, "a clock that was ahead keeps nothing for ever"


def test_a_start_is_judged_by_what_was_learned() -> None:
    known = {101: LearnedLoad(101, 3.0, 9 * GIB, NOW), 102: LearnedLoad(102, 3.0, 9 * GIB, NOW)}
    guest = started(ONE)
    found = of_starting(known, seen(guest, vm(102, "pve1")))
    assert found == {101: GuestLoad(3.0, 9 * GIB)}, "a guest that runs is measured"
    assert expected_load(guest, Ledger(found)) == GuestLoad(3.0, 9 * GIB)
    assert expected_load(guest, Ledger()) == GuestLoad(2.0, 28 * GIB)
    assert of_starting(known, seen(guest, vm(102, "pve1")), {102}).keys() == {101, 102}, "who has just arrived is not measured either"


def test_a_guest_that_became_smaller_takes_no_more_than_it_may() -> None:
    known = {101: LearnedLoad(101, 6.0, 30 * GIB, NOW)}
    guest = replace(started(ONE), cpu_cores=2.0, memory_bytes=8 * GIB)
    assert of_starting(known, seen(guest)) == {101: GuestLoad(2.0, 8 * GIB)}


def test_what_is_known_comes_back_from_its_file() -> None:
    known = {vmid: LearnedLoad(vmid, 1.5, float(vmid * GIB), NOW) for vmid in (102, 101)}
    file = parse(LoadsFile, render(as_file(known)))
    assert [load.vmid for load in file.loads] == [101, 102]
    assert bounded(file.loads, NOW) == known

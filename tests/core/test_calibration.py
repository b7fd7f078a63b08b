# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests take after a move against what was expected: when it is measured, for whom it holds, and what it changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core import history as memory
from agent.core.calibration import MOST_KEPT, REMEMBERED_S, calibrated, rows, taken, with_arrivals
from agent.core.cluster import GIB, Guest, Snapshot
from agent.core.documents import HistoryFile, parse, render
from agent.core.guest_load import GuestLoad, InFlight, Ledger
from agent.core.known_loads import ledger_of
from agent.core.migrations import Migration, MigrationState
from agent.core.node_load import node_loads
from agent.core.placement import Placement
from agent.core.planner import plan
from agent.core.question import Question
from agent.core.reasons import RefusalReason
from tests.core.clusters import NOW, changed, cluster, node, settings, stopped, vm, wrong_in
from tests.core.records import record

PLAIN = settings()
TWO = (node("pve1"), node("pve2", 32))
EXPECTED = GuestLoad(0.5, 4.0 * GIB)  # of `record()`


def arrived(now: float = NOW, **other: object) -> Migration:
    return record(101, MigrationState.DONE, ended_at=now, **other)


def seen(guest: Guest, *more: Guest) -> Snapshot:
    return cluster(*TWO, guest, *more)


def noted(*records: Migration, snapshot: Snapshot | None = None) -> HistoryFile:
    """The history right after these have arrived."""
    history = memory.with_migrations(memory.empty(NOW - 86400), records)
    snapshot = snapshot or seen(vm(101, "pve2", 0, 0))
    return with_arrivals(history, records, snapshot, ledger_of(snapshot, history, (), NOW), PLAIN)


def later(history: HistoryFile, guest: Guest, after_s: float = 300.0) -> HistoryFile:
    return calibrated(history, replace(seen(guest), taken_at=NOW + after_s), NOW + after_s, PLAIN)


GREW = vm(101, "pve2", 20, 3, memory_bytes=32 * GIB, cpu_cores=4)


def test_the_error_is_what_is_measured_less_what_was_expected_of_guest_and_nodes() -> None:
    history = later(noted(arrived()), GREW)
    assert rows(history) == [
        {
            "vmid": 101,
            "source": "pve1",
            "target": "pve2",
            "at": NOW,
            "expected_cpu_cores": 0.5,
            "expected_memory_bytes": 4 * GIB,
            "error_cpu_cores": 2.5,
            "error_memory_bytes": 16 * GIB,
            "source_error_cpu_cores": 0.0,
            "source_error_memory_bytes": 0,
            "target_error_cpu_cores": 2.5,
            "target_error_memory_bytes": 16 * GIB,
        }
    ]
    assert taken(history, seen(GREW), NOW + 300) == {101: GuestLoad(3.0, 20.0 * GIB)}
    assert parse(HistoryFile, render(history)) == history


@pytest.mark.parametrize("after_s", [0.0, 100.0, 239.0])
def test_it_is_not_measured_before_the_guest_has_settled_in(after_s: float) -> None:
    history = noted(arrived())
    assert later(history, GREW, after_s) is history
    assert rows(history) == []


@pytest.mark.parametrize(
    "guest",
    [
        vm(101, "pve1", 20, 3),  # moved on
        stopped(vm(101, "pve2")),
        replace(GREW, uptime_s=100.0),  # started anew
        replace(GREW, cpu_used_cores=None),
        vm(999, "pve2"),
    ],
)
def test_a_guest_that_is_not_as_it_arrived_tells_nothing(guest: Guest) -> None:
    assert later(noted(arrived()), guest).calibrations == ()


def test_what_could_not_be_measured_in_time_is_not_measured() -> None:
    assert later(noted(arrived()), GREW, 1801.0).calibrations == ()


def test_it_is_measured_once_and_forgotten_after_a_day() -> None:
    first = later(noted(arrived()), GREW)
    assert later(first, vm(101, "pve2", 9, 1), 600.0) is first
    assert later(first, GREW, REMEMBERED_S + 1).calibrations == ()
    assert taken(first, seen(GREW), NOW + REMEMBERED_S + 1) == {}


def test_only_who_ran_and_arrived_is_noted_and_of_each_guest_the_latest() -> None:
    assert noted(arrived(online=False)).calibrations == ()
    assert noted(replace(arrived(), state=MigrationState.FAILED)).calibrations == ()
    twice = [arrived(NOW - 100, intent="1-1"), arrived(NOW, intent="1-2", target="pve1")]
    assert [(one.intent, one.target) for one in noted(*twice).calibrations] == [("1-2", "pve1")]
    many = [record(200 + i, MigrationState.DONE, ended_at=NOW + i, intent=f"2-{i}") for i in range(MOST_KEPT + 5)]
    assert [one.vmid for one in noted(*many).calibrations] == [205 + i for i in range(MOST_KEPT)]


def test_a_node_whose_load_is_unknown_has_no_error() -> None:
    dark = changed(seen(vm(101, "pve2", 0, 0)), "pve1", cpu_used_cores=None)
    (row,) = rows(later(noted(arrived(), snapshot=dark), GREW))
    assert (row["source_error_cpu_cores"], row["target_error_memory_bytes"]) == (None, 16 * GIB)


def test_nobody_is_held_to_take_more_than_is_configured() -> None:
    history = later(noted(arrived()), GREW)
    small = replace(GREW, memory_bytes=8 * GIB, cpu_cores=2)
    assert taken(history, seen(small), NOW + 300) == {101: GuestLoad(2.0, 8.0 * GIB)}


LOW = replace(GREW, node="pve1", memory_used_bytes=4 * GIB, cpu_used_cores=0.5)
TAKEN = {101: GuestLoad(3.0, 20.0 * GIB)}


def test_the_larger_counts_where_something_must_fit_and_nowhere_else() -> None:
    snapshot = cluster(*TWO, LOW)
    with_it, without = (node_loads(snapshot, Ledger(taken=known), PLAIN)["pve1"] for known in (TAKEN, {}))
    assert with_it.memory_used_bytes - without.memory_used_bytes == 16 * GIB
    assert with_it.cpu_used_cores - without.cpu_used_cores == 2.5
    assert (with_it.memory_fraction, with_it.cpu_fraction) == (without.memory_fraction, without.cpu_fraction)
    sketch = Placement(snapshot, PLAIN, Question(ledger=Ledger(taken=TAKEN)))
    burden = sketch.burden_of(101)
    assert (burden.memory_bytes, burden.counted_memory_bytes) == (20 * GIB, 4 * GIB)
    sketch.move((101,), "pve2")
    assert sketch.states["pve1"].sums.memory_bytes == 2 * GIB  # nothing is left over where it was
    more = node_loads(cluster(*TWO, replace(LOW, memory_used_bytes=30 * GIB)), Ledger(taken=TAKEN), PLAIN)["pve1"]
    assert more.memory_used_bytes == 32 * GIB  # it takes more now: that is all there is


def test_a_guest_in_flight_keeps_its_room_on_its_target() -> None:
    flight = InFlight(101, "pve1", "pve2", EXPECTED)
    with_it, without = (node_loads(cluster(*TWO, LOW), Ledger(in_flight=(flight,), taken=known), PLAIN) for known in (TAKEN, {}))
    assert with_it["pve2"].memory_used_bytes - without["pve2"].memory_used_bytes == 16 * GIB
    assert with_it["pve1"] == without["pve1"]


def test_the_second_plan_differs() -> None:
    snapshot = cluster(node("pve1"), node("pve2", 24), node("pve3", 20), LOW, vm(102, "pve1", 4), drain=["pve1"])
    for known, target in (({}, True), (TAKEN, False)):
        question = Question(ledger=Ledger(taken=known))
        made = plan(snapshot, PLAIN, question)
        assert (101 in {move.vmid for move in made.moves}) is target
        assert wrong_in(snapshot, made, PLAIN) == [] or known
    refused = next(refusal for refusal in made.refused if refusal.vmid == 101)
    assert refused.reason is RefusalReason.NO_TARGET
    assert RefusalReason.NO_MEMORY.value in refused.detail

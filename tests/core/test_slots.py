# SPDX-License-Identifier: GPL-3.0-or-later
"""Which moves may start now: the first batch, as far as there are slots on both nodes and in all."""

from __future__ import annotations

import pytest

from agent.core.cluster import GIB, GuestType
from agent.core.migrations import MigrationState
from agent.core.others import Foreign
from agent.core.plan_types import Move
from agent.core.reasons import MoveReason
from agent.core.slots import startable
from tests.core.clusters import settings
from tests.core.records import record

PLAIN = settings()


def move(vmid: int, source: str, target: str, reason: MoveReason = MoveReason.OVERLOAD, batch: int = 1, first_pass: bool = True) -> Move:
    return Move(vmid, GuestType.QEMU, "", source, target, reason, batch, first_pass, 4 * GIB, 0.5, 0.01)


def started(moves: list[Move], *under_way: object, how: object = None) -> list[int]:
    return [one.vmid for one in startable(moves, under_way, settings(how))]  # type: ignore[arg-type]


def test_one_migration_a_node_and_two_in_all() -> None:
    moves = [
        move(101, "pve1", "pve2"),
        move(102, "pve1", "pve3"),
        move(103, "pve4", "pve2"),
        move(104, "pve5", "pve6"),
        move(105, "pve7", "pve8"),
    ]
    assert started(moves) == [101, 104]


def test_what_is_under_way_takes_slots() -> None:
    moves = [move(101, "pve1", "pve3"), move(102, "pve2", "pve3"), move(103, "pve4", "pve5")]
    assert started(moves, record(200, MigrationState.RUNNING)) == [103]
    assert started(moves, record(200, MigrationState.RUNNING), record(201, MigrationState.PLANNED, source="pve8", target="pve9")) == []


@pytest.mark.parametrize("reason", [MoveReason.MAINTENANCE, MoveReason.RETURN_HOME])
def test_maintenance_and_the_way_home_have_more_slots(reason: MoveReason) -> None:
    moves = [move(101 + i, "pve1", f"pve{2 + i}", reason) for i in range(4)] + [
        move(110 + i, f"pve{10 + i}", f"pve{20 + i}", reason) for i in range(4)
    ]
    assert started(moves) == [101, 102, 110, 111]


def test_only_the_first_batch_and_only_what_the_brakes_allow_starts() -> None:
    assert started([move(101, "pve1", "pve2", batch=2), move(102, "pve3", "pve4", first_pass=False)]) == []


def test_a_guest_under_way_is_not_started_again() -> None:
    wide = {"migration": {"parallel_per_node": 9, "parallel_total": 9}}
    assert started([move(101, "pve1", "pve2")], record(101, MigrationState.ASKED), how=wide) == []


def test_a_full_node_does_not_hold_up_the_others() -> None:
    assert started([move(101, "pve1", "pve2"), move(102, "pve1", "pve2"), move(103, "pve3", "pve4")]) == [101, 103]


def test_nothing_to_do_starts_nothing() -> None:
    assert startable([], [], PLAIN) == []


def test_what_others_move_takes_slots_too() -> None:
    moves = [move(101, "pve1", "pve3"), move(102, "pve2", "pve4"), move(103, "pve5", "pve6")]
    assert [one.vmid for one in startable(moves, (), PLAIN, [Foreign(200, "pve1", None)])] == [102]
    assert [one.vmid for one in startable(moves, (), PLAIN, [Foreign(200, "pve1", "pve2")])] == [103]
    assert startable(moves, (), PLAIN, [Foreign(200, "pve8", None), Foreign(201, "pve9", None)]) == []

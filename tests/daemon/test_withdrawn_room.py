# SPDX-License-Identifier: GPL-3.0-or-later
"""Room is made for a guest that must leave: while that was being written down, the flag may be withdrawn."""

from __future__ import annotations

from typing import Any, cast

import pytest

from agent.core import history as memory
from agent.core.cluster import GuestType
from agent.core.documents import LEADER_SCHEMA, LeaderFile, LeaderState
from agent.core.events import Event, EventKind, EventSource
from agent.core.leadership import Leadership
from agent.core.migrations import MigrationState
from agent.core.plan_types import Balance, Gate, Move, Plan
from agent.core.reasons import MoveReason
from agent.core.triggers import joined
from agent.daemon.inputs import Now, SignsSeen, WriteAnswer, Written
from agent.daemon.outputs import StartMigration
from agent.daemon.senses import Senses
from agent.daemon.work import Phase, Work
from tests.core.clusters import NOW, cluster, node, settings, vm
from tests.core.records import record

LEADER = LeaderFile(LEADER_SCHEMA, "pve2", "x", 1, LeaderState.LEADING, NOW, "0.1.0")
CALM = settings({"triggers": {"warmup_s": 0, "first_observe_s": 0}})


class _Leads:
    lease_until_s = 10_000.0
    epoch = 1

    def may_act(self, _now_s: float) -> bool:
        return True


def move(vmid: int, source: str, target: str, reason: MoveReason, batch: int) -> Move:
    return Move(vmid, GuestType.QEMU, "web", source, target, reason, batch, True, 1 << 30, 1.0, 0.0)


@pytest.mark.parametrize("is_flagged", [True, False])
def test_room_is_made_only_while_somebody_wants_the_node_empty(is_flagged: bool) -> None:
    now = Now(5000.0, NOW)
    senses = Senses("pve2")
    senses.on_signs(SignsSeen(flags=(("pve1", "bios"),) if is_flagged else ()), now, CALM, lambda _: False)
    work = Work(memory.empty(NOW - 86400), LEADER, now)
    bystander = record(201, MigrationState.PLANNED, 0.0, source="pve2", target="pve3", reason=MoveReason.ROOM, asked_at=None, upid=None)
    made: Any = work  # as it is between writing down and starting
    made.snapshot = cluster(node("pve1"), node("pve2"), node("pve3"), vm(101, "pve1"), vm(201, "pve2"), drain=["pve1"])
    moves = (move(201, "pve2", "pve3", MoveReason.ROOM, 1), move(101, "pve1", "pve2", MoveReason.MAINTENANCE, 2))
    made.plan = Plan(NOW, "flag", Gate.CLOSED, moves, (), (), Balance(0.0, ()), Balance(0.0, ()))
    made.current = joined(None, Event(EventKind.MAINTENANCE_BEGAN, EventSource.FLAG, 5000.0, node="pve1"))
    made._acting._to_start = [bystander]
    made._phase, made._intended_s = Phase.WRITING, now.boot_s
    answer = WriteAnswer(Written.HISTORY, made._chronicle.write(now).serial, "")
    outputs = work.on_written(answer, cast(Leadership, _Leads()), senses, CALM, now)
    assert [output.order.vmid for output in outputs if isinstance(output, StartMigration)] == ([201] if is_flagged else [])

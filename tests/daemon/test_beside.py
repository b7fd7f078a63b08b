# SPDX-License-Identifier: GPL-3.0-or-later
"""What the cluster log tells of other people's migrations counts, as PVE's task list shows the last few of a node alone."""

from __future__ import annotations

from agent.core import history as memory
from agent.core.clusterlog import LogTask
from agent.daemon.beside import Beside
from agent.daemon.inputs import Now
from agent.daemon.outputs import Say
from tests.core.clusters import NOW, cluster, node, settings, vm

THERE = cluster(node("pve1"), node("pve2"), vm(101, "pve1"))
USER = "admin@pve"


def told(kind: str, target_id: str, at: float, status: str | None) -> LogTask:
    return LogTask(f"UPID:pve1:{kind}:{target_id}:{USER}:", "pve1", kind, target_id, USER, int(at), status)


def said(beside: Beside, now: float) -> list[str]:
    outputs = beside.on_look(THERE, memory.empty(now), settings(), Now(now - NOW, now))
    return [output.record.text for output in outputs if isinstance(output, Say)]


def one_by_one(beside: Beside, first: float) -> float:
    """Thirty guests, one in twenty seconds, as the log tells; returns when the last one is over."""
    for turn in range(30):
        at = first + 20 * turn
        beside.on_log([told("qmigrate", str(101 + turn), at, None)], Now(at - NOW, at))
        beside.on_log([told("qmigrate", str(101 + turn), at, "OK")], Now(at + 15 - NOW, at + 15))
    return first + 600


def test_migrations_that_only_the_log_tells_of_are_said_once_and_their_end_too() -> None:
    beside = Beside()
    now = one_by_one(beside, NOW)
    (line,) = said(beside, now)
    assert "admin@pve has migrated 30 guests in the last hour" in line
    assert said(beside, now + 60) == []
    assert 101 in beside.stepped_back(Now(600, now))
    (line,) = said(beside, now + 3600)
    assert line == "admin@pve has migrated nobody for an hour: all guests are balanced again"
    assert beside.stepped_back(Now(4200, now + 3600)) == {}


def test_a_bulk_action_is_known_after_the_task_list_has_let_go_of_it() -> None:
    beside = Beside()
    beside.on_log([told("migrateall", "", NOW - 1, None)], Now(0, NOW))
    now = one_by_one(beside, NOW)
    assert said(beside, now) == []
    beside.on_log([told("migrateall", "", NOW - 1, "OK")], Now(600, now))
    assert said(beside, now + 300) == []

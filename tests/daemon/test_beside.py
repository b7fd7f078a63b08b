# SPDX-License-Identifier: GPL-3.0-or-later
"""What the cluster log tells of other people's migrations counts, as PVE's task list shows the last few of a node alone."""

from __future__ import annotations

from dataclasses import replace

from agent.core import history as memory
from agent.core.cluster import Maintenance, Snapshot
from agent.core.clusterlog import LogTask
from agent.daemon.beside import Beside
from agent.daemon.inputs import Now
from agent.daemon.outputs import Say
from tests.core.clusters import NOW, cluster, node, settings, vm

THERE = cluster(node("pve1"), node("pve2"), vm(101, "pve1"))
USER = "admin@pve!lb"


def told(kind: str, target_id: str, at: float, status: str | None, user: str = USER, source: str = "pve1") -> LogTask:
    return LogTask(f"UPID:{source}:{kind}:{target_id}:{user}:", source, kind, target_id, user, int(at), status)


def said(beside: Beside, now: float, snapshot: Snapshot = THERE) -> list[str]:
    outputs = beside.on_look(snapshot, memory.empty(now), settings(), Now(now - NOW, now))
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
    assert "admin@pve!lb has migrated 30 guests in the last hour" in line
    assert said(beside, now + 60) == []
    assert 101 in beside.stepped_back(Now(600, now))
    (line,) = said(beside, now + 3600)
    assert line == "admin@pve!lb has migrated nobody for an hour: all guests are balanced again"
    assert beside.stepped_back(Now(4200, now + 3600)) == {}


def test_a_bulk_action_is_known_after_the_task_list_has_let_go_of_it() -> None:
    beside = Beside()
    beside.on_log([told("migrateall", "", NOW - 1, None)], Now(0, NOW))
    now = one_by_one(beside, NOW)
    assert said(beside, now) == []
    beside.on_log([told("migrateall", "", NOW - 1, "OK")], Now(600, now))
    assert said(beside, now + 300) == []


def test_a_node_that_a_person_emptied_is_told_of_once_and_remembered_when_it_has_guests_again() -> None:
    beside = Beside()
    for turn in range(8):
        at, source = NOW + 20 * turn, "pve1" if turn < 4 else "pve2"
        beside.on_log([told("qmigrate", str(101 + turn), at, "OK", "alice@pve", source)], Now(at + 15 - NOW, at + 15))
        if turn == 3:
            empty = cluster(node("pve1"), node("pve2"), *(vm(101 + turn, "pve2") for turn in range(8)))
            (line,) = said(beside, at + 15, empty)
            assert line.startswith("alice@pve has migrated 4 guests off pve1 in the last hour: taken for emptying it")
    there = [vm(101 + turn, "pve3" if turn < 4 else "pve1") for turn in range(8)]
    full = cluster(node("pve1"), node("pve2"), node("pve3"), vm(200, "pve2"), *there)
    (line,) = said(beside, NOW + 200, full)
    assert line.startswith("alice@pve has migrated 4 guests off pve2 in the last hour")
    assert said(beside, NOW + 260, full) == []
    assert beside.stepped_back(Now(600, NOW + 600)) == {}


def test_the_emptying_of_a_node_in_maintenance_is_no_news() -> None:
    beside = Beside()
    for turn in range(4):
        beside.on_log([told("qmigrate", str(101 + turn), NOW + 20 * turn, "OK", "alice@pve")], Now(20 * turn, NOW + 20 * turn))
    now = NOW + 100
    empty = replace(cluster(node("pve1"), node("pve2")), maintenance=(Maintenance("pve1", "flag"),))
    assert said(beside, now, empty) == []

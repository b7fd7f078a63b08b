# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers that do not run after their migration: who is started, once, and who is left as somebody wants it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.cluster import Guest, GuestType, Task
from agent.core.journal import Level
from agent.core.migrations import Migration, MigrationState
from agent.daemon.follow import Follow
from agent.daemon.inputs import Now, TaskAnswer
from agent.daemon.outputs import Say
from tests.core.clusters import NOW, cluster, ct, node, settings, stopped, vm
from tests.core.records import record

SETTINGS = settings()
TARGET = stopped(ct(101, "pve2"))


class Story:
    """A migration whose task has ended, and the looks after it."""

    def __init__(self, status: str = "migration problems", **other: object) -> None:
        known: dict[str, object] = {"type": GuestType.LXC, "upid": "UPID:x", "state": MigrationState.RUNNING, "asked_at": NOW}
        self.boot_s = 1000.0
        self.follow = Follow([replace(record(101, MigrationState.RUNNING), **(known | other))], self.now)  # type: ignore[arg-type]
        self.follow.on_answer(TaskAnswer(self.follow.records[0].intent, status), SETTINGS, self.now)
        self.said: list[Say] = []

    @property
    def now(self) -> Now:
        return Now(self.boot_s, NOW + self.boot_s - 1000.0)

    def look(self, at_s: float, guest: Guest, *tasks: Task) -> list[tuple[Migration, str]]:
        """The guests that are to be started after this look."""
        self.boot_s = 1000.0 + at_s
        _, outputs = self.follow.settle(cluster(node("pve1"), node("pve2"), guest, *tasks), SETTINGS, self.now)
        self.said += [one for one in outputs if isinstance(one, Say)]
        found, self.follow.to_start = self.follow.to_start, []
        return found

    @property
    def alarms(self) -> int:
        return sum(say.record.level is Level.ERROR for say in self.said)


@pytest.mark.parametrize("where", ["pve1", "pve2"])
def test_a_container_that_pve_left_stopped_is_started_once_where_it_is(where: str) -> None:
    story = Story()
    guest = stopped(ct(101, where))
    assert story.look(15, guest) == []  # the statistics are older than its start may be
    assert [(one.vmid, node) for one, node in story.look(20, guest)] == [(101, where)]
    assert story.look(25, guest) == []
    assert story.look(60, guest) == []
    assert story.alarms == 0
    assert story.look(95, guest) == []
    assert story.alarms == 1


def test_one_that_runs_by_then_is_not_started() -> None:
    story = Story()
    assert story.look(15, TARGET) == []
    assert story.look(20, ct(101, "pve2")) == []
    assert story.follow.records == ()
    assert story.alarms == 0


def test_after_the_start_it_is_done() -> None:
    story = Story()
    assert story.look(20, TARGET)
    assert story.look(30, ct(101, "pve2")) == []
    assert story.follow.records == ()
    assert story.alarms == 0


@pytest.mark.parametrize("status", ["OK", "WARNINGS: 1"])
def test_what_ran_after_a_good_migration_and_stopped_by_itself_is_left_to_a_person(status: str) -> None:
    story = Story(status)
    assert [story.look(at_s, TARGET) for at_s in (20, 60, 95)] == [[], [], []]
    assert story.alarms == 1


@pytest.mark.parametrize("kind", ["vzstop", "vzshutdown"])
def test_what_somebody_has_stopped_is_not_started(kind: str) -> None:
    stop = Task("UPID:y", "pve2", kind, "101", "root@pam", NOW + 5, NOW + 6, "OK")
    assert Story().look(20, TARGET, stop) == []
    assert Story().look(20, TARGET, replace(stop, started_at=NOW - 60)) != []  # before the migration
    assert Story().look(20, TARGET, replace(stop, target_id="102")) != []


@pytest.mark.parametrize("guest", [replace(TARGET, lock="migrate"), replace(TARGET, status="unknown"), stopped(vm(101, "pve2"))])
def test_nothing_else_is_started(guest: Guest) -> None:
    story = Story(type=guest.type)
    assert [story.look(at_s, guest) for at_s in (20, 60, 95)] == [[], [], []]


def test_a_container_that_did_not_run_before_is_not_started() -> None:
    story = Story(online=False)
    assert story.look(20, TARGET) == []
    assert (story.follow.records, story.alarms) == ((), 0)

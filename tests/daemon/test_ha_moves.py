# SPDX-License-Identifier: GPL-3.0-or-later
"""A move that is handed to the HA manager: each step it can take, and each lie that PVE can tell about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from agent.core.cluster import Guest, HaResource, HighAvailability, Task
from agent.core.journal import Level
from agent.core.migrations import Migration, MigrationState, in_flight
from agent.core.settings import Settings
from agent.daemon import follow, ha_looks
from agent.daemon.follow import Follow
from agent.daemon.inputs import MigrationAnswer, Now, PostOutcome, SearchAnswer, TaskAnswer
from agent.daemon.outputs import AskTask, Output, Say, SearchMigration
from tests.core.clusters import NOW, cluster, ct, node, settings, stopped, vm
from tests.core.records import record

S = MigrationState
ASKED_UPID = "UPID:pve1:00000001:00000002:69000000:hamigrate:101:proxlb@pve!agent:"
OWN_UPID = "UPID:pve1:00000003:00000004:69000010:qmigrate:101:root@pam:"
SETTINGS: Settings = settings()


def planned(vmid: int = 101, state: MigrationState = S.PLANNED, **other: object) -> Migration:
    """A move from pve1 to pve2 that is about to be asked for, or has got so far."""
    return record(vmid, state, 0.0, **({"through_ha": True, "intent": f"1-{vmid}", "asked_at": None} | other))


class Story:
    """What is followed, the clocks, and all that was said."""

    def __init__(self, *taken_over: Migration) -> None:
        self.boot_s, self.step_s = 1000.0, 0.0
        self.follow = Follow(taken_over, self.now)
        self.said: list[Say] = []
        self.ended: dict[int, Migration] = {}

    @property
    def now(self) -> Now:
        return Now(self.boot_s, NOW + self.boot_s - 1000.0 + self.step_s)

    def state(self, vmid: int = 101) -> MigrationState:
        found = {one.vmid: one for one in self.follow.records} | self.ended
        return found[vmid].state

    @property
    def words(self) -> str:
        return " | ".join(say.record.text for say in self.said)

    def _take(self, changed: Iterable[Migration], outputs: Iterable[Output]) -> None:
        self.ended |= {one.vmid: one for one in changed if not one.is_open}
        self.said += [output for output in outputs if isinstance(output, Say)]

    def answer(self, answer: MigrationAnswer | TaskAnswer | SearchAnswer) -> None:
        self._take(*self.follow.on_answer(answer, SETTINGS, self.now))

    def ask(self, *records: Migration, upid: str = ASKED_UPID) -> None:
        for one in records:
            self.follow.ask(one, self.now)
        self.answer(MigrationAnswer(records[0].intent, PostOutcome.STARTED, upid))

    def questions(self) -> list[Output]:
        return self.follow.next_outputs(self.now)

    def look(
        self, *guests: Guest, after_s: float = 0.0, target: str | None = None, tasks: Iterable[Task] = (), online: bool = True
    ) -> None:
        """A look at these guests; `target` is where the HA manager says it is bringing them."""
        self.boot_s += after_s
        resources = tuple(HaResource(guest.vmid, state=guest.ha, node="pve1", target=target) for guest in guests if guest.ha is not None)
        seen = cluster(node("pve1", online=online), node("pve2"), node("pve3"), *guests, *tasks, ha=HighAvailability(resources))
        self._take(*self.follow.settle(replace(seen, taken_at=self.now.wall_s), SETTINGS, self.now))


def ha_vm(where: str = "pve1", state: str | None = "started", vmid: int = 101, **other: object) -> Guest:
    return vm(vmid, where, ha=state, **other)


def queued() -> Story:
    """A story in which PVE has said that the request is queued."""
    story = Story()
    story.ask(planned())
    story.answer(TaskAnswer("1-101", "OK"))
    return story


def moving() -> Story:
    """A story in which the HA manager is at it."""
    story = queued()
    story.look(ha_vm(state="migrate"), after_s=10.0, target="pve2")
    return story


# ---- the usual way


def test_from_the_request_to_the_arrival() -> None:
    story = Story()
    story.ask(planned())
    assert story.state() is S.ASKED
    story.boot_s += follow.POLL_S
    assert story.questions() == [AskTask("1-101", ASKED_UPID)]
    story.answer(TaskAnswer("1-101", None))
    assert story.state() is S.ASKED, "its task runs"
    story.answer(TaskAnswer("1-101", "OK"))
    assert story.state() is S.QUEUED
    story.look(ha_vm(), after_s=10.0)
    assert story.state() is S.QUEUED
    story.look(ha_vm(state="migrate"), after_s=10.0, target="pve2")
    assert story.state() is S.RUNNING
    story.look(ha_vm("pve2"), after_s=10.0)
    assert story.state() is S.DONE
    assert "handed to the HA manager | " in story.words
    assert "the HA manager moves it | " in story.words
    assert story.said[-1].record.level is Level.NOTICE


def test_what_the_ha_manager_has_is_looked_at_in_each_of_its_rounds_and_asked_about_never() -> None:
    story = queued()
    for _ in range(3):
        assert story.follow.look_at_s == story.boot_s + ha_looks.HA_LOOK_S
        assert story.questions() == []
        assert story.follow.next_wakeup_s() == float("inf"), "the look is the only thing that is due"
        story.look(ha_vm(), after_s=ha_looks.HA_LOOK_S)


def test_it_is_in_flight_until_it_is_over() -> None:
    story = queued()
    assert [(flight.vmid, flight.source, flight.target) for flight in in_flight(story.follow.records)] == [(101, "pve1", "pve2")]
    story.look(ha_vm("pve2"))
    assert in_flight(story.follow.records) == ()


def test_after_the_arrival_it_is_watched_for_a_while_and_no_longer() -> None:
    story = moving()
    story.look(ha_vm("pve2"), after_s=10.0)
    looks = 0
    while story.follow.look_at_s is not None:
        looks += 1
        story.look(ha_vm("pve2"), after_s=10.0)
    assert looks == 6


def test_a_move_too_quick_to_be_seen_is_done_all_the_same() -> None:
    story = queued()
    story.look(ha_vm("pve2"), after_s=10.0)
    assert story.state() is S.DONE


# ---- lies


def test_the_task_said_ok_and_nothing_moved() -> None:
    story = queued()
    while story.state() is S.QUEUED:
        story.look(ha_vm(), after_s=10.0)
    assert story.state() is S.FAILED
    assert story.boot_s - 1000.0 == ha_looks.HA_TAKES_UP_S
    assert "the HA manager did not take it up in 150 s" in story.words


def test_the_configuration_is_on_the_target_while_the_migration_runs() -> None:
    story = moving()
    own = Task(OWN_UPID, "pve1", "qmigrate", "101", "root@pam", NOW + 15)
    story.look(ha_vm("pve2", "migrate", lock="migrate"), after_s=10.0, target="pve2", tasks=[own])
    assert story.state() is S.RUNNING
    story.look(ha_vm("pve2", "migrate"), after_s=10.0, target="pve2")
    assert story.state() is S.DONE, "where the guest is decides, not that the HA manager has not noted it yet"


def test_tried_and_given_up() -> None:
    story = moving()
    failed = Task(OWN_UPID, "pve1", "qmigrate", "101", "root@pam", NOW + 15, NOW + 18, "migration aborted")
    story.look(ha_vm(), after_s=10.0, tasks=[failed])
    assert story.state() is S.RUNNING, "one look is not enough: it may be between two of the HA manager's rounds"
    story.look(ha_vm(), after_s=10.0, tasks=[failed])
    assert story.state() is S.FAILED
    assert "the HA manager's migration ended: migration aborted" in story.words


def test_tried_and_given_up_between_two_looks() -> None:
    story = queued()
    failed = Task(OWN_UPID, "pve1", "qmigrate", "101", "root@pam", NOW + 15, NOW + 18, "migration aborted")
    for _ in range(2):
        story.look(ha_vm(), after_s=10.0, tasks=[failed])
    assert story.state() is S.FAILED


def test_an_older_failure_is_not_this_ones() -> None:
    story = queued()
    before = Task(OWN_UPID, "pve1", "qmigrate", "101", "root@pam", NOW - 900, NOW - 890, "migration aborted")
    for _ in range(3):
        story.look(ha_vm(), after_s=10.0, tasks=[before])
    assert story.state() is S.QUEUED


def test_a_command_that_fails_may_have_queued_the_request() -> None:
    story = Story()
    story.ask(planned())
    story.answer(TaskAnswer("1-101", "command 'ha-manager migrate vm:101 pve2' failed: exit code 255"))
    assert story.state() is S.QUEUED
    story.look(ha_vm(), after_s=10.0)
    assert story.state() is S.QUEUED
    story.look(ha_vm(state="migrate"), after_s=10.0, target="pve2")
    assert story.state() is S.RUNNING


def test_a_command_that_failed_and_queued_nothing() -> None:
    story = Story()
    story.ask(planned())
    story.answer(TaskAnswer("1-101", "service 'vm:101' in error state, must be disabled and fixed first"))
    for _ in range(3):
        story.look(ha_vm(), after_s=10.0)
    assert story.state() is S.FAILED
    assert "failed after 30 s: service 'vm:101' in error state" in story.words


@pytest.mark.parametrize("of", [queued, moving], ids=["queued", "moving"])
def test_the_guest_vanished(of: type[Story]) -> None:
    story = of()
    story.look()
    assert story.state() is S.LOST


@pytest.mark.parametrize("of", [queued, moving], ids=["queued", "moving"])
def test_the_service_is_gone_from_the_ha_manager(of: type[Story]) -> None:
    story = of()
    story.look(ha_vm(state=None), after_s=10.0)
    assert story.follow.records, "once may be a file that could not be read"
    story.look(ha_vm(state=None), after_s=10.0)
    assert story.state() is S.FAILED
    assert "does not have the guest any more" in story.words


def test_in_error_state_there_is_nothing_to_wait_for() -> None:
    story = queued()
    story.look(ha_vm(state="error"), after_s=10.0)
    assert story.state() is S.FAILED
    assert "disable it there" in story.words


@pytest.mark.parametrize(("state", "online"), [("started", False), ("fence", True), ("recovery", False)])
def test_the_source_is_lost(state: str, online: bool) -> None:
    story = moving()
    story.look(ha_vm(state=state), after_s=10.0, online=online)
    assert story.state() is S.FAILED
    assert "pve1 is lost; the HA manager recovers the guest" in story.words


def test_the_ha_manager_brings_it_elsewhere() -> None:
    story = queued()
    for _ in range(30):
        story.look(ha_vm(state="migrate"), after_s=10.0, target="pve3")
    assert story.state() is S.QUEUED, "it moves, though not for us"
    story.look(ha_vm("pve3"), after_s=10.0)
    assert story.state() is S.FAILED
    assert "the guest is on pve3 now" in story.words


def test_a_request_without_an_answer_is_looked_for() -> None:
    story = Story()
    story.follow.ask(planned(), story.now)
    story.answer(MigrationAnswer("1-101", PostOutcome.IN_DOUBT, text="connection lost"))
    story.boot_s += follow.POLL_S
    assert [type(output) for output in story.questions()] == [SearchMigration]
    story.answer(SearchAnswer("1-101", ASKED_UPID))
    story.answer(TaskAnswer("1-101", "OK"))
    assert story.state() is S.QUEUED


def test_what_is_found_may_be_the_ha_managers_own_migration_already() -> None:
    story = Story(planned())
    story.answer(SearchAnswer("1-101", OWN_UPID))
    assert story.state() is S.QUEUED
    own = Task(OWN_UPID, "pve1", "qmigrate", "101", "root@pam", NOW)
    story.look(ha_vm(state="migrate"), target="pve2", tasks=[own])
    assert story.state() is S.RUNNING


def test_a_guest_taken_off_the_ha_manager_before_the_request_moves_as_any_other() -> None:
    story = Story()
    story.ask(planned(), upid=OWN_UPID)
    assert story.state() is S.RUNNING
    story.boot_s += follow.POLL_S
    assert story.questions() == [AskTask("1-101", OWN_UPID)]


def test_a_guest_put_under_the_ha_manager_before_the_request_goes_through_it() -> None:
    story = Story()
    story.ask(planned(through_ha=False))
    story.answer(TaskAnswer("1-101", "OK"))
    assert story.state() is S.QUEUED


def test_the_node_with_the_request_does_not_answer_and_the_guest_moves() -> None:
    story = Story()
    story.ask(planned())
    for _ in range(14):
        assert story.state() is S.ASKED or story.boot_s > 1000.0 + follow.DOUBT_S
        story.boot_s += follow.POLL_S
        story.answer(TaskAnswer("1-101", error="595 no route to host"))
    assert story.state() is S.QUEUED
    story.look(ha_vm("pve2"), after_s=10.0)
    assert story.state() is S.DONE


# ---- clocks and leaders


@pytest.mark.parametrize("step_s", [-86400.0, 86400.0])
def test_a_step_of_the_clock_neither_fails_nor_prolongs_it(step_s: float) -> None:
    story = queued()
    story.step_s = step_s
    for _ in range(14):
        story.look(ha_vm(), after_s=10.0)
    assert story.state() is S.QUEUED
    story.look(ha_vm(), after_s=10.0)
    assert story.state() is S.FAILED
    assert "did not take it up in 150 s" in story.words


@pytest.mark.parametrize("state", [S.QUEUED, S.RUNNING])
def test_a_leader_that_takes_over_goes_on(state: MigrationState) -> None:
    story = Story(planned(state=state, asked_at=NOW - 20, upid=ASKED_UPID))
    assert story.follow.look_at_s == story.boot_s
    assert story.questions() == []
    story.look(ha_vm(state="migrate"), target="pve2")
    assert story.state() is S.RUNNING
    story.look(ha_vm("pve2"), after_s=10.0)
    assert story.state() is S.DONE


def test_a_leader_that_takes_over_asks_whether_the_request_was_queued() -> None:
    story = Story(planned(state=S.ASKED, asked_at=NOW - 1, upid=ASKED_UPID))
    assert story.questions() == [AskTask("1-101", ASKED_UPID)]


# ---- containers


def ha_ct(where: str, state: str = "started", **other: object) -> Guest:
    return ct(101, where, ha=state, **other)


def relocating() -> Story:
    """A container that has been stopped and brought to its target."""
    story = Story()
    story.ask(planned(type=ha_ct("pve1").type))
    story.answer(TaskAnswer("1-101", "OK"))
    story.look(stopped(ha_ct("pve1", "relocate")), after_s=20.0, target="pve2")
    story.look(stopped(ha_ct("pve2", "relocate")), after_s=10.0, target="pve2")
    return story


def test_a_container_is_done_when_it_runs() -> None:
    story = relocating()
    assert story.state() is S.RUNNING
    story.look(ha_ct("pve2"), after_s=10.0)
    assert story.state() is S.RUNNING, "a day of uptime is what its old node said"
    story.look(ha_ct("pve2", uptime_s=3.0), after_s=10.0)
    assert story.state() is S.DONE


def test_a_container_that_does_not_run_raises_the_alarm() -> None:
    story = relocating()
    while story.state() is S.RUNNING:
        story.look(stopped(ha_ct("pve2")), after_s=10.0)
    assert story.state() is S.DONE
    assert "ct:101 is on pve2 but does not run: start it there" in story.words
    assert any(say.record.level is Level.ERROR for say in story.said)


# ---- partners


def bundle() -> tuple[Migration, Migration]:
    return planned(101), planned(102, along_with="1-101")


def test_partners_are_queued_with_the_one_request_and_judged_by_where_they_are() -> None:
    story = Story()
    story.ask(*bundle())
    assert [story.state(101), story.state(102)] == [S.ASKED, S.ASKED]
    story.answer(TaskAnswer("1-101", "OK"))
    assert [story.state(101), story.state(102)] == [S.QUEUED, S.QUEUED]
    story.look(ha_vm("pve2"), ha_vm("pve1", "migrate", 102), after_s=10.0, target="pve2")
    assert [story.state(101), story.state(102)] == [S.DONE, S.RUNNING]
    story.look(ha_vm("pve2"), ha_vm("pve2", vmid=102), after_s=10.0)
    assert story.state(102) is S.DONE


@pytest.mark.parametrize("outcome", [PostOutcome.REFUSED, PostOutcome.NOT_SENT])
def test_partners_are_given_up_when_nothing_was_queued(outcome: PostOutcome) -> None:
    story = Story()
    for one in bundle():
        story.follow.ask(one, story.now)
    story.answer(MigrationAnswer("1-101", outcome, text="no"))
    assert story.state(102) is S.SKIPPED
    assert story.follow.records == ()


def test_partners_that_nobody_wants_to_move_any_more_are_given_up() -> None:
    story = Story()
    story.ask(*bundle(), upid=OWN_UPID)
    assert [story.state(101), story.state(102)] == [S.RUNNING, S.SKIPPED]


def test_a_leader_that_takes_over_a_bundle_searches_for_its_one_request() -> None:
    story = Story(*bundle())
    assert [output.vmid for output in story.questions() if isinstance(output, SearchMigration)] == [101]
    story.answer(SearchAnswer("1-101", ASKED_UPID))
    story.answer(TaskAnswer("1-101", "OK"))
    assert [story.state(101), story.state(102)] == [S.QUEUED, S.QUEUED]


def test_a_leader_that_takes_over_a_bundle_nobody_asked_for_gives_it_up() -> None:
    story = Story(*bundle())
    story.boot_s += follow.DOUBT_S
    story.answer(SearchAnswer("1-101"))
    story.look(ha_vm(), ha_vm(vmid=102))
    assert [story.state(101), story.state(102)] == [S.SKIPPED, S.SKIPPED]


def test_a_partner_whose_request_nobody_knows_is_judged_by_where_it_is() -> None:
    story = Story(planned(102, along_with="1-101", state=S.ASKED, asked_at=NOW - 20))
    story.look(ha_vm("pve2", vmid=102))
    assert story.state(102) is S.DONE

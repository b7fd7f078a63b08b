# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge finds what it is there to find: each rule of the protocol switched off, and the fault that shows it.

And what nothing can exclude is let off, counted and measured, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from agent.core import leadership
from agent.core.leadership import Leadership
from agent.daemon import outputs
from agent.daemon.inputs import LockAnswer, LockOutcome
from agent.daemon.perform import Performer
from tests.fire.blaze import CHECK, LOCK_REMOVED, POST, WIRE, Fault, Point, both, cut_off, frozen, hangs, leader_file
from tests.fire.clusters import drain, leader_text
from tests.fire.judge import LATEST_S
from tests.fire.test_points import BATCH_S, STOP_S, is_beyond_all, points, run
from tests.planted import Put, late_rmdir, no_renewal


@dataclass(frozen=True, slots=True)
class Plant:
    """A bug, the fault that brings it to light, and what the judge says then."""

    words: str
    plant: Callable[[Put], None]
    fault: Fault
    says: str
    stop_s: float | None = None

    def __str__(self) -> str:
        return self.words


def _no_look_at_the_file(put: Put) -> None:
    put(Performer, "_why_not_leader", lambda self, leader, *, same_since=True: None)


def _no_time_limit(put: Put) -> None:
    put(Performer, "_send_until_s", lambda self, renewed_s: float("inf"))


def _no_caution(put: Put) -> None:
    put(leadership, "why_not_act_yet", lambda state, now_s: None)


def _released_too_early(put: Put) -> None:
    give_up = leadership.give_up

    def always_released(state: Leadership, now_s: float, *, stops: bool, is_asking: bool = False) -> Leadership:
        return give_up(state, now_s, stops=stops, is_asking=False)

    put(leadership, "give_up", always_released)


def _rests_on_the_lease_alone(put: Put) -> None:
    """A renewal that failed is taken for one that succeeded."""
    lock = Performer._lock

    def believes(self: Performer, asked: outputs.DoLock) -> LockAnswer:
        answer = lock(self, asked)
        return replace(answer, outcome=LockOutcome.DONE) if answer.act.value == "renew" else answer

    put(Performer, "_lock", believes)
    no_renewal(put)


ANOTHER = leader_file("leader.json names another", lambda text: leader_text("pve2", 9, "leading"))
PLANTS = (
    Plant("no renewal before the POST", no_renewal, LOCK_REMOVED, "while None has the lock"),
    Plant("leader.json is not read before the POST", _no_look_at_the_file, ANOTHER, "while leader.json names pve2"),
    Plant("no limit from the check to the request", _no_time_limit, frozen(200), "while pve2 has the lock"),
    Plant("rmdir after the lease", late_rmdir, frozen(200), "pve1 removes the lock of pve2", STOP_S),
    Plant("the next leader acts at once", _no_caution, both(LOCK_REMOVED, hangs(29)), "while a request of pve"),
    Plant("released while a request is open", _released_too_early, hangs(29), "while a request of pve1 is under way", 21.0),
    Plant("a failed renewal is believed in", _rests_on_the_lease_alone, cut_off(200), "while None has the lock"),
)  # fmt: skip


def _found(fault: Fault, stop_s: float | None, says: str) -> str | None:
    undisturbed = drain(stop_s=stop_s)
    undisturbed.run(STOP_S + 5)
    window = (0.0, BATCH_S) if stop_s is None else (BATCH_S - 2, STOP_S + 5)
    for point in points(undisturbed, from_s=window[0], to_s=window[1]):
        for problem in run(fault, point, stop_s).judge.problems():
            if says in problem and not is_beyond_all(point, fault):
                return f"{point}: {problem}"
    return None


@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_planted(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant.plant(monkeypatch.setattr)
    found = _found(plant.fault, plant.stop_s, plant.says)
    print(found)
    assert found is not None


ON_ITS_WAY = [Point("pve1", CHECK, 1, is_after=True), Point("pve1", POST, 1), Point("pve1", WIRE, 1)]
FROM_OUTSIDE = [LOCK_REMOVED, cut_off(40), leader_file("leader.json deleted", lambda text: None)]


@pytest.mark.parametrize("fault", FROM_OUTSIDE, ids=str)
@pytest.mark.parametrize("point", ON_ITS_WAY, ids=str)
def test_what_strikes_between_check_and_request_is_too_late_for_it(point: Point, fault: Fault) -> None:
    """The request goes out, or is refused by a node that is cut off; nobody else's is sent before it must be over.

    Others count 90 s from the last renewal that they saw, and the one right before the request may be 10 s and a look younger.
    """
    blaze = run(fault, point)
    first, *others = blaze.judge.requests
    assert not list(blaze.judge.problems())
    assert first.late_s == 0
    assert list(blaze.judge.let_off()) in ([], [first])
    assert all(other.at_s >= first.at_s + 75 for other in others if other.sender != first.sender)


def test_a_request_is_late_by_half_a_lease_at_the_most() -> None:
    """The lock is removed and the process stopped, between check and request: what is too old is not sent."""
    late = [run(both(LOCK_REMOVED, frozen(for_s)), Point("pve1", POST, 1)).judge for for_s in (LATEST_S - 1, LATEST_S + 1)]
    assert [sent.late_s for sent in late[0].let_off()] == [LATEST_S - 1]
    assert list(late[1].let_off()) == []
    assert [list(judge.problems()) for judge in late] == [[], []]


def test_a_process_stopped_in_the_middle_of_sending_is_beyond_all() -> None:
    """One request goes out that nobody expects any more; PVE's own lock and place of the guest are what is left, and they hold."""
    judge = run(frozen(200), Point("pve1", WIRE, 1)).judge
    assert [(sent.sender, sent.late_s) for sent in judge.requests if any(sent.why_not())] == [("pve1", 200)]
    assert not list(judge.moved_twice())


def test_a_late_rmdir_costs_the_next_leader_its_lead_and_nothing_else() -> None:
    blaze = run(frozen(200), Point("pve1", "rmdir", 1), STOP_S)
    assert list(blaze.judge.problems()) == ["240.0 s: pve1 removes the lock of pve2"]
    assert [line.at_s for line in blaze.world.journal if line.node == "pve2" and "leads the cluster" in line.record.text] == [162, 241]

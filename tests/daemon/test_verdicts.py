# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's check of a guest without an answer: left alone for a growing time, and never held against the guest."""

from __future__ import annotations

from agent.core.plan_types import Verdict
from agent.core.reasons import RefusalReason
from agent.daemon.inputs import Now
from agent.daemon.verdicts import PATIENCE, Verdicts
from tests.core.clusters import NOW


def at(seconds: float) -> Now:
    return Now(1000.0 + seconds, NOW + seconds)


def test_the_time_doubles_and_an_answer_begins_it_anew() -> None:
    verdicts = Verdicts()
    waits = [verdicts.no_answer(101, "away", at(0)).until_s - 1000.0 for _ in range(7)]
    assert waits == [30, 60, 120, 240, 480, 480, 480]
    assert sum(waits[:PATIENCE]) == 450
    verdicts.take(Verdict(101, NOW))
    assert verdicts.no_answer(101, "away", at(0)).until_s == 1030.0


def test_the_planner_is_told_until_the_time_is_over() -> None:
    verdicts = Verdicts()
    verdicts.no_answer(101, "pve1 does not answer", at(0))
    told = verdicts.for_planning(at(29.0))[101].refusal
    assert told is not None
    assert (told.reason, told.detail) == (RefusalReason.UNANSWERED, "pve1 does not answer; asked again in 1 s")
    assert verdicts.for_planning(at(30.0)) == {}
    assert not verdicts.is_fresh(101, at(1))


def test_an_old_answer_does_not_hold_when_the_next_one_did_not_come() -> None:
    verdicts = Verdicts()
    verdicts.take(Verdict(101, NOW))
    assert verdicts.is_fresh(101, at(59))
    verdicts.no_answer(101, "away", at(59))
    assert not verdicts.is_fresh(101, at(59))


def test_an_answer_is_believed_for_a_minute_and_a_refusal_remembered_for_five() -> None:
    verdicts = Verdicts()
    verdicts.take(Verdict(101, NOW))
    assert not verdicts.is_fresh(101, at(60))
    assert 101 in verdicts.for_planning(at(299))
    assert verdicts.for_planning(at(300)) == {}
    verdicts.take(Verdict(101, NOW + 300))
    verdicts.forget(101)
    assert not verdicts.is_fresh(101, at(301))

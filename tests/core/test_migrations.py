# SPDX-License-Identifier: GPL-3.0-or-later
"""The states of an attempt: which follow which, and what counts as under way."""

from __future__ import annotations

import itertools

import pytest

from agent.core.guest_load import InFlight
from agent.core.migrations import MEANING, NEXT, OPEN, MigrationState, advanced, in_flight, intended, is_load_move
from agent.core.planner import plan
from agent.core.reasons import MoveReason
from tests.core.clusters import NOW, cluster, node, settings, vm
from tests.core.records import record

S = MigrationState


def test_every_state_has_its_meaning_and_what_may_follow() -> None:
    assert set(MEANING) == set(NEXT) == set(MigrationState)


@pytest.mark.parametrize(("now", "then"), list(itertools.product(MigrationState, MigrationState)))
def test_only_the_table_leads_from_state_to_state(now: MigrationState, then: MigrationState) -> None:
    if then in NEXT[now]:
        assert advanced(record(state=now), then, NOW).state is then
    else:
        with pytest.raises(ValueError, match="a migration cannot go from"):
            advanced(record(state=now), then, NOW)


def test_no_state_is_reached_twice_and_every_way_ends() -> None:
    def ways(state: MigrationState, before: tuple[MigrationState, ...]) -> None:
        assert state not in before
        for follows in NEXT[state]:
            ways(follows, (*before, state))

    ways(S.PLANNED, ())
    assert {state for state in MigrationState if not NEXT[state]} == {S.DONE, S.FAILED, S.SKIPPED}


@pytest.mark.parametrize("state", MigrationState)
def test_an_open_attempt_is_in_flight_and_an_ended_one_is_not(state: MigrationState) -> None:
    one = record(state=state)
    assert one.is_open == (state in OPEN) == bool(in_flight([one]))


def test_times_and_words_are_kept_from_state_to_state() -> None:
    asked = advanced(record(state=S.PLANNED), S.ASKED, NOW)
    running = advanced(asked, S.RUNNING, NOW + 1, upid="UPID:1")
    done = advanced(running, S.DONE, NOW + 9, text="arrived")
    assert (done.asked_at, done.ended_at, done.upid, done.text) == (NOW, NOW + 9, "UPID:1", "arrived")
    assert (asked.ended_at, running.ended_at) == (None, None)


def test_the_record_of_a_move_says_what_was_planned() -> None:
    move = plan(cluster(node("pve1"), node("pve2"), vm(101, "pve1", 4, 0.5, "plb_pin_pve2")), settings()).moves[0]
    one = intended(move, "7-1", 7, NOW, "r1")
    assert (one.vmid, one.source, one.target, one.reason, one.epoch, one.state) == (101, "pve1", "pve2", MoveReason.PIN, 7, S.PLANNED)
    assert in_flight([one]) == (InFlight(101, "pve1", "pve2", one.load),)


@pytest.mark.parametrize("reason", MoveReason)
def test_only_moves_that_even_out_load_are_load_moves(reason: MoveReason) -> None:
    assert is_load_move(record(reason=reason)) == (reason in (MoveReason.OVERLOAD, MoveReason.SPREAD, MoveReason.MANUAL))


def test_flights_are_in_order_of_their_guests() -> None:
    assert [flight.vmid for flight in in_flight([record(103, S.RUNNING), record(101, S.ASKED), record(102)])] == [101, 103]

# SPDX-License-Identifier: GPL-3.0-or-later
"""From hints to reasons to look: bursts, echoes of migrations, scopes, ranks and when to look."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.events import EventKind
from agent.core.migrations import MigrationState
from agent.core.question import EVERYWHERE, Scope
from agent.core.settings import TriggerSettings
from agent.core.triggers import (
    MOST_EVENTS,
    MigrationTraces,
    Rank,
    Trigger,
    described,
    gathered,
    joined,
    rank_of,
    scope_of,
    traces,
    why_echo,
    with_starts,
    without_echoes,
)
from tests.core.clusters import NOW, cluster, node, stopped, task, vm
from tests.core.records import event, record

TIMES = TriggerSettings()
K = EventKind
NOBODY = MigrationTraces()


def burst(*events: object) -> Trigger:
    trigger = None
    for one in events:
        trigger = joined(trigger, one)  # type: ignore[arg-type]
    assert trigger is not None
    return trigger


@pytest.mark.parametrize(
    ("kind", "scope", "rank"),
    [
        (K.GUEST_STARTED, Scope(frozenset({"pve1"}), frozenset({101})), Rank.RULES),
        (K.GUEST_CHANGED, Scope(frozenset({"pve1"}), frozenset({101})), Rank.RULES),
        (K.GUEST_STOPPED, Scope(frozenset(), frozenset({101})), Rank.RULES),
        (K.OVERLOAD, Scope(frozenset({"pve1"}), frozenset({101})), Rank.OVERLOAD),
        (K.SPREAD, Scope(frozenset({"pve1"}), frozenset({101})), Rank.SPREAD),
        (K.MAINTENANCE_BEGAN, Scope(frozenset(), frozenset({101})), Rank.MAINTENANCE),
        (K.NODE_OFFLINE, Scope(frozenset(), frozenset({101})), Rank.RULES),
        *[
            (kind, EVERYWHERE, Rank.RULES)
            for kind in (K.MAINTENANCE_ENDED, K.NODE_ONLINE, K.REQUEST, K.GAP, K.TOOK_LEAD, K.SETTINGS_CHANGED)
        ],
    ],
)
def test_each_kind_has_its_scope_and_rank(kind: EventKind, scope: Scope, rank: Rank) -> None:
    assert (scope_of(event(kind)).nodes, rank_of(event(kind))) == (scope.nodes, rank)
    if scope.nodes is not None:
        assert scope_of(event(kind)) == scope


def test_a_look_again_for_a_node_that_is_to_be_empty_is_maintenance_and_says_so() -> None:
    plain, drains = event(K.TIMER, vmid=None, node=None), event(K.TIMER, vmid=None)
    assert (scope_of(plain), rank_of(plain), described(burst(plain))) == (EVERYWHERE, Rank.RULES, "regular look")
    assert (scope_of(drains), rank_of(drains), described(burst(drains))) == (EVERYWHERE, Rank.MAINTENANCE, "pve1 is to be empty")
    assert described(burst(plain, drains)) == "regular look, pve1 is to be empty"


def test_every_kind_of_event_has_words() -> None:
    for kind in EventKind:
        assert described(burst(event(kind)))


def test_the_events_of_a_burst_are_answered_together() -> None:
    trigger = burst(event(vmid=101), event(vmid=102, node="pve2"), event(K.GUEST_STOPPED, vmid=103))
    assert len(trigger.events) == 3
    assert trigger.scope == Scope(frozenset({"pve1", "pve2"}), frozenset({101, 102, 103}))


def test_a_burst_is_answered_when_it_is_quiet_or_has_lasted_too_long() -> None:
    trigger = burst(event(at_s=100.0), event(vmid=102, at_s=103.0))
    assert trigger.due_s(TIMES) == 103.0 + TIMES.settle_s
    for i in range(200):
        trigger = joined(trigger, event(vmid=200 + i, at_s=103.0 + i))
    assert trigger.due_s(TIMES) == 100.0 + TIMES.settle_max_s


@pytest.mark.parametrize("kind", [K.MAINTENANCE_BEGAN, K.REQUEST])
def test_maintenance_and_requests_do_not_wait(kind: EventKind) -> None:
    assert burst(event(at_s=100.0), event(kind, vmid=None, at_s=101.0)).due_s(TIMES) == 100.0


def test_the_most_urgent_event_gives_the_rank() -> None:
    assert burst(event(K.SPREAD), event(K.MAINTENANCE_BEGAN), event(K.OVERLOAD)).rank is Rank.MAINTENANCE


def test_the_same_hint_twice_is_one_event() -> None:
    assert len(burst(event(at_s=100.0), event(at_s=101.0)).events) == 1
    assert burst(event(at_s=100.0), event(at_s=101.0)).last_s == 101.0


def test_a_request_is_never_lost() -> None:
    trigger = burst(*[event(vmid=i) for i in range(MOST_EVENTS + 10)], event(K.REQUEST, vmid=None, request="r1", force=True))
    assert trigger.requests == ("r1",)
    assert trigger.force


def test_more_events_than_are_kept_are_covered_by_looking_everywhere() -> None:
    trigger = burst(*[event(vmid=i) for i in range(MOST_EVENTS + 100)])
    assert len(trigger.events) == MOST_EVENTS
    assert trigger.scope.nodes is None
    assert trigger.left_out == 100
    assert described(trigger).endswith(f"and {MOST_EVENTS + 100 - 3} more events")


def test_maintenance_does_not_wait_behind_a_storm() -> None:
    storm = [event(vmid=i, at_s=100.0) for i in range(MOST_EVENTS + 100)]
    trigger = burst(*storm, event(K.MAINTENANCE_BEGAN, vmid=None, at_s=103.0))
    assert trigger.due_s(TIMES) == 100.0
    assert trigger.events[-1].kind is K.MAINTENANCE_BEGAN


def test_a_storm_is_told_in_one_line() -> None:
    starts = [event(vmid=101 + number) for number in range(7)]
    assert gathered(starts) == "7 more guests started on pve1 (101, 102, 103, 104, 105 and 2 more)"
    assert gathered([event(vmid=101)]) == "1 more guest started on pve1 (101)"
    stops = [event(K.GUEST_STOPPED, vmid=201, node="pve2"), event(K.GUEST_STOPPED, vmid=202, node="pve3")]
    text = "1 more guest started on pve1 (101), 2 more guests stopped on 2 nodes (201, 202), 9 more events than are kept"
    assert gathered([event(vmid=101), *stops], left_out=9) == text


def test_echoes_do_not_narrow_a_trigger_that_holds_more_than_its_events() -> None:
    trigger = burst(*[event(vmid=i) for i in range(MOST_EVENTS + 100)])
    for running in (frozenset({1}), frozenset(range(MOST_EVENTS))):
        left = without_echoes(trigger, MigrationTraces(running), NOW)
        assert left is not None
        assert left.scope.nodes is None


# --- Echoes ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [K.GUEST_STARTED, K.GUEST_STOPPED, K.GUEST_CHANGED])
def test_own_migration_does_not_retrigger(kind: EventKind) -> None:
    for records in ([record(state=MigrationState.RUNNING)], [record(state=MigrationState.PLANNED)], [record(ago_s=40)]):
        assert why_echo(event(kind), traces(None, records), NOW) is not None
        assert without_echoes(burst(event(kind)), traces(None, records), NOW) is None


def test_a_migration_by_somebody_else_does_not_trigger_either() -> None:
    for seen in (task("qmigrate", "pve1", 101), task("vzmigrate", "pve1", 101, ended_s_ago=30)):
        assert why_echo(event(), traces(cluster(seen), []), NOW) is not None
    assert why_echo(event(), traces(cluster(task("qmstart", "pve1", 101)), []), NOW) is None


def test_a_start_that_says_where_the_guest_comes_from_is_an_echo() -> None:
    assert why_echo(event(origin="pve2"), NOBODY, NOW) == "it is arriving from pve2"


def test_a_minute_after_its_migration_a_guests_start_is_news() -> None:
    assert why_echo(event(), traces(None, [record(ago_s=11 + 59)]), NOW) is not None
    assert why_echo(event(), traces(None, [record(ago_s=11 + 61)]), NOW) is None


def test_a_clock_that_was_ahead_does_not_silence_a_guest_for_ever() -> None:
    assert why_echo(event(), traces(None, [record(ago_s=-3600)]), NOW) is None


def test_a_migration_dated_ahead_does_not_make_news_of_the_echo_of_another() -> None:
    records = [record(ago_s=40), replace(record(ago_s=-3600), intent="2-1")]
    assert why_echo(event(), traces(None, records), NOW) == "it migrated 29 s ago"
    seen = cluster(task("qmigrate", "pve1", 101, ended_s_ago=30), task("qmigrate", "pve2", 101, ended_s_ago=-3600))
    assert why_echo(event(), traces(seen, []), NOW) == "it migrated 30 s ago"


def test_what_was_never_asked_of_pve_leaves_no_echo() -> None:
    assert why_echo(event(), traces(None, [record(state=MigrationState.SKIPPED, ago_s=20)]), NOW) is None


@pytest.mark.parametrize("kind", [K.NODE_ONLINE, K.MAINTENANCE_BEGAN, K.OVERLOAD, K.TIMER])
def test_what_is_not_about_a_guest_is_no_echo(kind: EventKind) -> None:
    assert why_echo(event(kind), traces(None, [record(state=MigrationState.RUNNING)]), NOW) is None


def test_the_rest_of_a_burst_is_answered_without_its_echoes() -> None:
    trigger = burst(event(vmid=101, at_s=90.0), event(vmid=102, node="pve2", at_s=95.0))
    left = without_echoes(trigger, traces(None, [record(101, MigrationState.RUNNING)]), NOW)
    assert left is not None
    assert (left.scope, left.first_s) == (Scope(frozenset({"pve2"}), frozenset({102})), 95.0)


# --- Starts that PVE does not show yet ---------------------------------------------------------------------------------------------


def test_a_start_counts_before_pve_shows_it() -> None:
    snapshot = cluster(node("pve1"), stopped(vm(101, "pve1")))
    guest = with_starts(snapshot, burst(event(at_s=100.0)), 101.0).guests[0]
    assert (guest.is_running, guest.uptime_s) == (True, 0.0)


def test_of_a_guest_that_starts_stops_and_starts_again_in_one_burst_the_last_counts() -> None:
    snapshot = cluster(node("pve1"), stopped(vm(101, "pve1")))
    both = [event(at_s=100.0), event(K.GUEST_STOPPED, at_s=102.0)]
    assert not with_starts(snapshot, burst(*both), 105.0).guests[0].is_running
    assert with_starts(snapshot, burst(*both, event(at_s=104.0)), 105.0).guests[0].is_running
    assert [one.at_s for one in burst(*both, event(at_s=104.0)).events] == [104.0, 102.0], "each once"


@pytest.mark.parametrize(
    ("trigger", "now_s"),
    [
        (burst(event(at_s=100.0)), 200.0),
        (burst(event(at_s=100.0), event(K.GUEST_STOPPED, at_s=101.0)), 102.0),
        (burst(event(at_s=100.0, origin="pve2")), 101.0),
        (burst(event(vmid=102, at_s=100.0)), 101.0),
    ],
    ids=["long ago", "stopped since", "arriving", "another guest"],
)
def test_other_starts_change_nothing(trigger: Trigger, now_s: float) -> None:
    snapshot = cluster(node("pve1"), stopped(vm(101, "pve1")))
    assert with_starts(snapshot, trigger, now_s) == snapshot


def test_starts_do_not_hide_what_else_happened() -> None:
    starts = [event(vmid=i) for i in range(101, 105)]
    began, ended = event(EventKind.MAINTENANCE_BEGAN, vmid=None), event(EventKind.MAINTENANCE_ENDED, vmid=None)
    words = described(burst(starts[0], began, *starts[1:], ended))
    assert words == ("guest 101 started on pve1, maintenance of pve1 began, maintenance of pve1 ended, and 3 more events")
    many = [replace(ended, node=f"pve{i}") for i in range(9)]
    assert described(burst(*many, starts[0])).endswith("maintenance of pve5 ended, and 4 more events")


def test_a_guest_whose_load_is_known_keeps_it() -> None:
    snapshot = cluster(node("pve1"), vm(101, "pve1"), replace(vm(102, "pve1"), status="paused"))
    assert with_starts(snapshot, burst(event(vmid=101), event(vmid=102)), 101.0).guests == snapshot.guests


def test_a_long_burst_is_told_in_few_words() -> None:
    assert described(burst(*[event(vmid=i) for i in range(101, 150)])).endswith("guest 103 started on pve1, and 46 more events")

# SPDX-License-Identifier: GPL-3.0-or-later
"""Who left a node for a maintenance: where each must come home, who brings it there, and when nobody is waited for any more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core import history as memory
from agent.core import homes
from agent.core.cluster import HaResource, HighAvailability, Maintenance, Snapshot
from agent.core.documents import HistoryFile, Home, Homecoming
from agent.core.reasons import MoveReason
from tests.core.clusters import NOW, cluster, node, vm
from tests.core.records import record

NOBODY = memory.empty(NOW)
LEFT = record(reason=MoveReason.MAINTENANCE)


def test_who_leaves_for_a_maintenance_has_a_home() -> None:
    assert homes.with_success(NOBODY, LEFT).homes == (Home(101, "pve1", "pve2", LEFT.ended_at or 0),)
    assert homes.with_success(NOBODY, record()).homes == ()


def test_who_has_to_leave_again_keeps_the_first_home() -> None:
    twice = homes.with_success(homes.with_success(NOBODY, LEFT), replace(LEFT, source="pve2", target="pve3"))
    assert [(home.home, home.put_on) for home in twice.homes] == [("pve1", "pve3")]


def test_who_was_elsewhere_in_between_has_a_new_home() -> None:
    twice = homes.with_success(homes.with_success(NOBODY, LEFT), replace(LEFT, source="pve3", target="pve4"))
    assert [(home.home, home.put_on) for home in twice.homes] == [("pve3", "pve4")]


def test_a_move_for_any_other_reason_makes_the_new_place_home() -> None:
    left = homes.with_success(NOBODY, LEFT)
    for reason in (MoveReason.RETURN_HOME, MoveReason.OVERLOAD, MoveReason.PIN):
        assert homes.with_success(left, replace(LEFT, source="pve2", target="pve1", reason=reason)).homes == ()


@pytest.mark.parametrize(("place", "kept"), [("pve2", True), ("pve1", False), ("pve3", False), (None, False)])
def test_a_home_is_forgotten_when_the_guest_is_not_where_it_was_put(place: str | None, kept: bool) -> None:
    left = homes.with_success(NOBODY, LEFT)
    snapshot = cluster(node("pve1"), *([] if place is None else [vm(101, place)]))
    assert bool(homes.with_look(left, snapshot).homes) == kept


def test_a_guest_that_the_token_does_not_show_is_still_away() -> None:
    left = homes.with_success(NOBODY, LEFT)
    assert homes.with_look(left, replace(cluster(node("pve1")), unseen=(101,))) == left


def test_a_home_on_a_node_that_has_left_the_cluster_is_none() -> None:
    assert homes.with_look(homes.with_success(NOBODY, LEFT), cluster(node("pve2"), vm(101, "pve2"))).homes == ()


# --- Guests that the HA manager brings home ----------------------------------------------------------------------------------------

NODES = (node("pve1"), node("pve2"), node("pve3"))


def under_ha(place: str, **known: object) -> Snapshot:
    resource = HaResource(101, node=place, **known)  # type: ignore[arg-type]
    return replace(cluster(*NODES, vm(101, place)), ha=HighAvailability((resource,)))


AWAY = under_ha("pve2", state="started", maintenance_node="pve1")


def test_whom_the_ha_manager_took_off_a_node_has_a_home_that_is_no_concern_of_the_planner() -> None:
    seen = homes.with_look(NOBODY, AWAY)
    assert seen.homes == (Home(101, "pve1", "pve2", NOW, by_ha=True),)
    assert homes.homes_of(seen) == {}
    moved_on = homes.with_look(seen, replace(under_ha("pve3", state="started", maintenance_node="pve1"), taken_at=NOW + 60))
    assert moved_on.homes == (Home(101, "pve1", "pve3", NOW, by_ha=True),)


def test_it_is_away_until_the_ha_manager_has_brought_it_home_or_will_not() -> None:
    away = homes.with_look(NOBODY, AWAY)
    on_its_way = under_ha("pve2", state="migrate", target="pve1")
    assert homes.with_look(away, on_its_way) == away
    assert homes.with_look(away, under_ha("pve1", state="started")).homes == ()
    assert homes.with_look(away, under_ha("pve2", state="started")).homes == (), "somebody has moved it, and the HA manager forgot"
    assert homes.with_look(away, under_ha("pve2", state="migrate", target="pve3")).homes == ()
    assert homes.with_look(away, cluster(*NODES)).homes == (), "it is gone"


def test_while_the_ha_manager_does_not_say_what_it_does_nobody_is_given_up() -> None:
    """Its status counts for nothing while its master changes."""
    away = homes.with_look(NOBODY, AWAY)
    assert homes.with_look(away, under_ha("pve2")) == away
    assert homes.with_look(away, under_ha("pve1")).homes == ()


def test_whom_the_ha_manager_does_not_have_any_more_the_agent_brings_home() -> None:
    away = homes.with_look(NOBODY, AWAY)
    released = homes.with_look(away, cluster(*NODES, vm(101, "pve3")))
    assert released.homes == (Home(101, "pve1", "pve3", NOW),)
    assert homes.with_look(away, cluster(*NODES, vm(101, "pve1"))).homes == ()
    unclear = cluster(*NODES, vm(101, "pve3", ha="started"))
    assert homes.with_look(away, unclear).homes == (), "PVE says that it has it, and the HA manager nothing of a way home"


def test_whom_the_agent_has_moved_it_brings_home_itself() -> None:
    left = homes.with_success(NOBODY, LEFT)
    assert homes.with_look(left, AWAY) == left


def test_who_is_on_the_node_or_only_passes_it_is_not_away() -> None:
    assert homes.with_look(NOBODY, under_ha("pve1", state="started", maintenance_node="pve1")).homes == ()
    assert homes.with_look(NOBODY, under_ha("pve2", state="started")).homes == ()


def test_of_very_many_only_some_are_told_of() -> None:
    resources = tuple(HaResource(1000 + i, node="pve2", maintenance_node="pve1") for i in range(homes.MOST_OF_HA + 50))
    snapshot = replace(cluster(*NODES, *(vm(one.vmid, "pve2") for one in resources)), ha=HighAvailability(resources))
    assert len(homes.with_look(NOBODY, snapshot).homes) == homes.MOST_OF_HA


# --- Nobody is waited for any more --------------------------------------------------------------------------------------------------

AT_HOME = tuple(Home(vmid, "pve1", "pve2", NOW) for vmid in (101, 102, 103))


def after(history: HistoryFile, *left: Home) -> HistoryFile:
    """The history when of its homes only those are left."""
    return homes.with_homecomings(replace(history, homes=left), history.homes)


def told(history: HistoryFile, *guests: object, **other: object) -> list[str]:
    """What is said of nodes whose guests are not waited for any more."""
    snapshot = replace(cluster(*NODES, *guests), **other)  # type: ignore[arg-type]
    return [homes.return_words(one) for one in homes.returns(history, snapshot) if not one.away]


def test_when_the_last_one_is_home_all_are() -> None:
    history = after(replace(NOBODY, homes=AT_HOME), *AT_HOME[2:])
    guests = [vm(vmid, "pve1") for vmid in (101, 102, 103)]
    assert history.homecomings == (Homecoming("pve1", (101, 102)),)
    assert told(history, *guests) == [], "one is still away"
    history = after(history)
    assert told(history, *guests) == ["all 3 guests that left pve1 are home again"]
    (one,) = homes.returns(history, cluster(*NODES, *guests))
    assert homes.without_returns(history, [one]).homecomings == ()


def test_a_single_one_is_called_by_its_number() -> None:
    assert told(after(replace(NOBODY, homes=AT_HOME[:1])), vm(101, "pve1")) == ["guest 101, which left pve1, is home again"]
    assert told(after(replace(NOBODY, homes=AT_HOME[:1])), vm(101, "pve3")) == [
        "nobody is waited for any more of 1 guest that left pve1: guest 101 is on pve3"
    ]


def test_who_is_elsewhere_or_gone_is_named() -> None:
    history = after(replace(NOBODY, homes=AT_HOME))
    assert told(history, vm(101, "pve1"), vm(102, "pve3")) == [
        "nobody is waited for any more of 3 guests that left pve1: 1 is home again, guest 102 is on pve3, guest 103 is gone"
    ]


def test_many_who_are_elsewhere_are_counted() -> None:
    many = tuple(Home(100 + i, "pve1", "pve2", NOW) for i in range(1, 10))
    (text,) = told(after(replace(NOBODY, homes=many)), *(vm(home.vmid, "pve2") for home in many))
    assert text.endswith("guest 105 is on pve2, and 4 more")


def test_nothing_is_said_of_a_node_that_is_to_be_empty() -> None:
    history = after(replace(NOBODY, homes=AT_HOME))
    guests = [vm(vmid, "pve1") for vmid in (101, 102, 103)]
    assert told(history, *guests, maintenance=(Maintenance("pve1", "flag"),)) == []
    assert told(history, *guests, no_target=("pve1",)) == []
    assert told(history, *guests, ha=HighAvailability(closed_nodes=("pve1",))) == []
    assert told(history, *guests, maintenance=(Maintenance("pve2", "flag"),)) != []


def test_of_guests_that_the_token_does_not_show_nothing_is_said() -> None:
    history = after(replace(NOBODY, homes=AT_HOME[:1]))
    assert told(history, unseen=(101,)) == []


def test_who_leaves_again_is_waited_for_again() -> None:
    history = after(replace(NOBODY, homes=AT_HOME))
    again = homes.with_homecomings(replace(history, homes=AT_HOME[:1]), ())
    assert again.homecomings == (Homecoming("pve1", (102, 103)),)
    elsewhere = homes.with_homecomings(replace(history, homes=(Home(101, "pve3", "pve2", NOW),)), ())
    assert elsewhere.homecomings == (Homecoming("pve1", (102, 103)),)


def test_who_cannot_come_for_now_is_named_with_why() -> None:
    history = after(replace(NOBODY, homes=AT_HOME), *AT_HOME[2:])
    (one,) = homes.returns(history, cluster(*NODES, vm(101, "pve1"), vm(103, "pve2")))
    assert homes.kept_away_words(one, {103: "no-memory"}) == (
        "of 3 guests that left pve1 1 is home again, guest 102 is gone, 1 stays away for now: 103 (no-memory); "
        "what keeps each: proxlb-agent explain VMID"
    )

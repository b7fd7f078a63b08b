# SPDX-License-Identifier: GPL-3.0-or-later
"""Who balances beside the agent, and who only migrates: an admin by hand, a bulk action, the HA manager, the agent itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.balancers import (
    KEPT_S,
    MOST_KEPT,
    Balancer,
    Emptying,
    balancer_words,
    emptying_words,
    nobody_on,
    others_at_work,
    stepped_back,
    with_tasks,
)
from agent.core.cluster import BULK_KINDS, HaResource, HighAvailability, Snapshot, Task
from tests.core.clusters import NOW, cluster, node, vm

NODES = (node("pve1"), node("pve2"))
OWN = "proxlb@pve!agent"
LB = "root@pam!proxlb"


def moved(vmid: int, minutes_ago: float, user: str = LB, **other: object) -> Task:
    """A migration off pve1 that took a minute."""
    at = NOW - 60 * minutes_ago
    known: dict[str, object] = {"node": "pve1", "kind": "qmigrate", "ended_at": at + 60, "status": "OK"}
    upid = f"UPID:pve1:{vmid:08X}:00000001:{int(at):08X}:{user}:"
    return Task(upid=upid, target_id=str(vmid), user=user, started_at=at, **(known | other))  # type: ignore[arg-type]


def bulk(kind: str, minutes_ago: float, minutes: float, **other: object) -> Task:
    at = NOW - 60 * minutes_ago
    known: dict[str, object] = {"node": "pve1", "user": LB, "ended_at": at + 60 * minutes, "status": "OK"}
    return Task(upid=f"{kind}-{at}", kind=kind, target_id="", started_at=at, **(known | other))  # type: ignore[arg-type]


FOUR = tuple(moved(101 + i, 40 - 10 * i) for i in range(4))


ON_PVE1 = cluster(*NODES, vm(101, "pve1"))


def found(*tasks: Task, snapshot: Snapshot | None = None, ours: frozenset[str] = frozenset(), now: float = NOW) -> tuple[Balancer, ...]:
    return others_at_work(with_tasks({}, tasks, now), snapshot or ON_PVE1, ours, OWN, now, {})[0]


def emptying(*tasks: Task, snapshot: Snapshot | None = None, **emptied_minutes_ago: float) -> tuple[tuple[str, ...], tuple[Emptying, ...]]:
    """The users that are taken for balancers, and those who empty nodes."""
    emptied = {name: NOW - 60 * minutes for name, minutes in emptied_minutes_ago.items()}
    balancing, drains = others_at_work(with_tasks({}, tasks, NOW), snapshot or ON_PVE1, frozenset(), OWN, NOW, emptied)
    return tuple(one.user for one in balancing), drains


def test_four_migrations_of_one_user_within_an_hour_are_a_balancers() -> None:
    (one,) = found(*FOUR)
    assert (one.user, one.moves, one.last_at) == (LB, 4, NOW - 600)
    assert one.moved == ((101, NOW - 2400), (102, NOW - 1800), (103, NOW - 1200), (104, NOW - 600))
    assert stepped_back([one], NOW)[104] == "root@pam!proxlb moved it 10 min ago, and others beside it"
    assert balancer_words(one) == "root@pam!proxlb has migrated 4 guests in the last hour (101, 102, 103, 104)"


def test_one_guest_to_and_fro_is_one_guest() -> None:
    (one,) = found(*[moved(101, minutes) for minutes in (40, 30, 20, 10)])
    assert one.moved == ((101, NOW - 600),)
    assert balancer_words(one) == "root@pam!proxlb has migrated 1 guest 4 times in the last hour (101)"


def test_containers_and_requests_to_the_ha_manager_count_too() -> None:
    kinds = ("qmigrate", "vzmigrate", "hamigrate", "hamigrate")
    assert found(*[moved(101 + i, 10 + i, kind=kind) for i, kind in enumerate(kinds)])


def test_one_that_runs_counts_and_one_that_failed_does_not() -> None:
    runs = replace(FOUR[3], ended_at=None, status=None)
    assert found(*FOUR[:3], runs)
    assert found(*FOUR[:3], replace(FOUR[3], status="WARNINGS: 1"))
    assert not found(*FOUR[:3], replace(FOUR[3], status="migration aborted"))


@pytest.mark.parametrize(
    ("why", "tasks"),
    [
        ("three", FOUR[:3]),
        ("two users", (*FOUR[:3], moved(104, 10, "root@pam"))),
        ("spread over more than an hour", (moved(100, 80), *FOUR[1:])),
        ("the agent's own token", tuple(replace(task, user=OWN) for task in FOUR)),
        ("no migrations", tuple(replace(task, kind="qmstart") for task in FOUR)),
        ("long ago", tuple(moved(101 + i, 75 + i) for i in range(4))),
    ],
)
def test_who_is_no_balancer(why: str, tasks: tuple[Task, ...]) -> None:
    assert found(*tasks) == (), why


def test_the_agents_own_are_known_by_their_upids_whoever_it_was_when_it_asked() -> None:
    assert found(*FOUR, ours=frozenset(task.upid for task in FOUR[:1])) == ()


def test_what_the_ha_manager_moves_is_its_own_affair_and_not_what_root_moves_past_it() -> None:
    tasks = (replace(FOUR[0], user="root@pam", node="pve2"), *(replace(task, user="root@pam") for task in FOUR[1:]))
    managed = HighAvailability(tuple(HaResource(vmid, state="started", node="pve1") for vmid in range(101, 105)))
    snapshot = cluster(*NODES, vm(101, "pve1"))
    assert found(*tasks, snapshot=replace(snapshot, ha=managed)) == ()
    assert found(*tasks, snapshot=snapshot)
    ignored = replace(managed, resources=tuple(replace(resource, requested="ignored") for resource in managed.resources))
    assert found(*tasks, snapshot=replace(snapshot, ha=ignored))
    asked = tuple(replace(task, kind="hamigrate") for task in tasks)
    assert found(*asked, snapshot=replace(snapshot, ha=managed)), "somebody asked the HA manager for it"


@pytest.mark.parametrize("kind", ["migrateall", "bulk-migrate"])
def test_parts_of_a_bulk_action_are_none_of_a_balancer(kind: str) -> None:
    assert kind in BULK_KINDS
    assert found(*FOUR, bulk(kind, 41, 35)) == ()
    assert found(*FOUR, bulk(kind, 41, 0, ended_at=None, status=None)) == (), "it still runs"
    assert found(*FOUR, bulk(kind, 80, 35)), "they came after it"
    assert found(*FOUR, bulk(kind, 41, 35, user="root@pam")), "somebody else's"
    assert found(*FOUR, bulk("startall", 41, 35)), "that migrates nobody"


def test_a_bulk_action_of_a_node_has_no_part_in_what_leaves_another() -> None:
    assert found(*FOUR, bulk("migrateall", 41, 35, node="pve2"))
    assert found(*FOUR, bulk("bulk-migrate", 41, 35, node="pve2")) == ()


def test_who_was_a_balancer_is_one_until_an_hour_after_the_last_move_and_each_guest_is_left_alone_for_an_hour() -> None:
    tasks = (*FOUR, moved(105, -30))  # forty, thirty, twenty, ten minutes ago, and in half an hour
    (later,) = found(*tasks, now=NOW + 3500)
    assert (later.moves, [vmid for vmid, _ in later.moved]) == (1, [105])
    assert found(*tasks, now=NOW + 1800 + 3599)
    assert found(*tasks, now=NOW + 1800 + 3601) == ()


def test_what_the_task_list_has_let_go_of_is_remembered_for_two_hours() -> None:
    seen = with_tasks({}, FOUR, NOW)
    assert with_tasks(seen, (), NOW + KEPT_S - 2400 + 60 - 1).keys() == seen.keys()
    assert len(with_tasks(seen, (), NOW + KEPT_S - 2400 + 60 + 1)) == 3
    assert with_tasks({}, [replace(task, kind="qmstart") for task in FOUR], NOW) == {}


def test_a_task_that_ended_is_known_as_ended_whoever_tells_first() -> None:
    runs = replace(FOUR[0], ended_at=None, status=None)
    for tasks in ((runs, FOUR[0]), (FOUR[0], runs)):
        assert with_tasks({}, tasks, NOW) == {FOUR[0].upid: FOUR[0]}


def test_a_bulk_action_of_many_hours_is_known_as_long_as_it_is_told_of() -> None:
    long = bulk("migrateall", 300, 0, ended_at=None, status=None)
    assert with_tasks({}, [long], NOW)
    assert with_tasks(with_tasks({}, [long], NOW), (), NOW) == {}, "nobody told of its end"


def test_memory_has_a_bound() -> None:
    tasks = [moved(100 + i, 60 - i / 50) for i in range(MOST_KEPT + 100)]
    seen = with_tasks({}, tasks, NOW)
    assert len(seen) == MOST_KEPT
    assert tasks[0].upid not in seen
    assert tasks[-1].upid in seen


def test_of_many_guests_the_first_few_are_named() -> None:
    (one,) = found(*[moved(101 + i, 20 - i) for i in range(9)])
    assert balancer_words(one).endswith("(101, 102, 103, 104, 105 and 4 more)")


# --- Who empties a node by hand ----------------------------------------------------------------------------------------------------

BY_HAND = tuple(replace(task, user="alice@pve") for task in FOUR)


def test_what_a_person_takes_off_one_node_and_no_other_is_taken_for_emptying_it() -> None:
    assert emptying(*BY_HAND) == ((), (Emptying("alice@pve", "pve1", 4),))
    assert emptying(*BY_HAND, moved(105, 5, "alice@pve", node="pve2")) == (("alice@pve",), ())
    assert emptying(*BY_HAND[:3]) == ((), ()), "three are not worth a word"


def test_a_program_that_takes_guests_off_one_node_may_well_balance() -> None:
    assert emptying(*FOUR) == ((LB,), ())


def test_a_person_who_leaves_nobody_on_a_node_has_emptied_it() -> None:
    two_nodes = [*BY_HAND, *(moved(201 + i, 9 - i, "alice@pve", node="pve2") for i in range(4))]
    assert emptying(*two_nodes) == (("alice@pve",), ())
    assert emptying(*two_nodes, pve1=9.5)[1] == (Emptying("alice@pve", "pve1", 4), Emptying("alice@pve", "pve2", 4)), "one after the other"
    assert emptying(*two_nodes, pve1=35)[0] == ("alice@pve",), "two of them came after that"
    assert emptying(*BY_HAND[1:], *two_nodes[4:7], pve1=9.5, pve2=5)[0] == ("alice@pve",), "with three guests each any balancer may do so"


def test_a_program_that_empties_a_node_may_be_a_balancer_that_piles_up() -> None:
    assert emptying(*FOUR, pve1=5) == ((LB,), ())


def test_whom_a_person_brings_back_to_an_emptied_node_does_not_count() -> None:
    back = [moved(101 + i, 9 - i, "alice@pve", node=f"pve{2 + i % 2}") for i in range(4)]
    there = cluster(*NODES, *(vm(101 + i, "pve1") for i in range(4)))
    assert emptying(*BY_HAND, *back, snapshot=there, pve1=9.9) == ((), (Emptying("alice@pve", "pve1", 4),))
    assert emptying(*BY_HAND, *back, snapshot=there)[0] == ("alice@pve",), "nobody saw it empty"
    elsewhere = cluster(*NODES, *(vm(101 + i, "pve3") for i in range(4)))
    assert emptying(*BY_HAND, *back, snapshot=elsewhere, pve1=9.9)[0] == ("alice@pve",)


def test_nobody_runs_on_a_node_only_where_all_guests_are_seen() -> None:
    snapshot = cluster(*NODES, vm(101, "pve1"), replace(vm(102, "pve2"), status="stopped"))
    assert nobody_on(snapshot) == {"pve2"}
    assert nobody_on(replace(snapshot, unseen=(900,))) == frozenset()
    assert nobody_on(cluster(*NODES, vm(101, "pve1"), replace(vm(102, "pve2"), status="unknown"))) == frozenset(), "its node may be lost"


def test_the_words_say_what_keeps_a_node_empty() -> None:
    assert emptying_words(Emptying("alice@pve", "pve1", 5)) == (
        "alice@pve has migrated 5 guests off pve1 in the last hour: taken for emptying it, not for another balancer; "
        "to have it kept empty: proxlb-agent maintenance enter pve1"
    )

# SPDX-License-Identifier: GPL-3.0-or-later
"""Who goes along with a guest of the HA manager, and whom that one takes back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.cluster import Guest, HaResource, HaResourceAffinity, HighAvailability, Snapshot, Task
from agent.core.ha_moves import PULLED_BACK_S, partners, pulled_back, with_partners
from agent.core.migrations import Migration, MigrationState
from agent.core.plan_types import Move
from agent.core.reasons import MoveReason
from tests.core.clusters import NOW, changed, cluster, node, vm
from tests.core.records import record


def together(*vmids: int, name: str = "app") -> HaResourceAffinity:
    return HaResourceAffinity(name, vmids, together=True)


def managed(*vmids: int, rules: tuple[HaResourceAffinity, ...] = (), **of_all: object) -> HighAvailability:
    resources = tuple(HaResource(vmid, state="started", **of_all) for vmid in vmids)  # type: ignore[arg-type]
    return HighAvailability(resources, resource_affinity=rules)


def move(vmid: int, target: str = "pve2") -> Move:
    return Move(vmid, vm(vmid, "pve1").type, "", "pve1", target, MoveReason.MAINTENANCE, 1, True, 1, 1.0, 0.0)


def seen(*guests: Guest, ha: HighAvailability) -> Snapshot:
    return cluster(node("pve1"), node("pve2"), node("pve3"), *guests, ha=ha)


def ha_vm(vmid: int, where: str = "pve1") -> Guest:
    return vm(vmid, where, ha="started")


# ---- partners


def test_partners_are_all_that_rules_bind_however_many_rules_it_takes() -> None:
    ha = managed(101, 102, 103, 104, rules=(together(101, 102), together(102, 103, name="b")))
    assert partners(ha, 101) == {102, 103}
    assert partners(ha, 104) == frozenset()


def test_who_must_be_kept_apart_is_no_partner() -> None:
    assert partners(managed(101, 102, rules=(HaResourceAffinity("a", (101, 102), together=False),)), 101) == frozenset()


def test_a_guest_that_the_ha_manager_ignores_or_has_not_is_no_partner() -> None:
    ha = managed(101, 102, rules=(together(101, 102, 103),))
    assert partners(ha, 101) == {102}
    ignored = replace(ha, resources=(ha.resources[0], replace(ha.resources[1], requested="ignored")))
    assert partners(ignored, 101) == frozenset()


def test_a_bundle_starts_whole_whatever_slots_there_are() -> None:
    ha = managed(101, 102, 103, rules=(together(101, 102, 103),))
    moves = [move(101), move(102), move(103)]
    snapshot = seen(ha_vm(101), ha_vm(102), ha_vm(103), ha=ha)
    assert [one.vmid for one in with_partners([moves[0]], moves, snapshot, [])] == [101, 102, 103]


@pytest.mark.parametrize("planned", [[], [move(102, "pve3")]], ids=["not-at-all", "elsewhere"])
def test_a_bundle_that_the_plan_tears_apart_does_not_start(planned: list[Move]) -> None:
    ha = managed(101, 102, rules=(together(101, 102),))
    snapshot = seen(ha_vm(101), ha_vm(102), vm(104, "pve1"), ha=ha)
    assert [one.vmid for one in with_partners([move(101), move(104)], [move(101), *planned, move(104)], snapshot, [])] == [104]


def test_partners_that_are_there_or_on_their_way_need_no_move() -> None:
    ha = managed(101, 102, 103, rules=(together(101, 102, 103),))
    snapshot = seen(ha_vm(101), ha_vm(102, "pve2"), ha_vm(103), ha=ha)
    under_way = record(103, MigrationState.QUEUED)
    assert [one.vmid for one in with_partners([move(101)], [move(101)], snapshot, [under_way])] == [101]


def test_a_guest_that_is_not_the_ha_managers_moves_alone() -> None:
    snapshot = seen(vm(101, "pve1"), ha_vm(102), ha=managed(102, rules=(together(101, 102),)))
    assert [one.vmid for one in with_partners([move(101)], [move(101)], snapshot, [])] == [101]


# ---- pulled back


def arrived(ago_s: float = 20.0, **other: object) -> Migration:
    known: dict[str, object] = {"through_ha": True, "asked_at": NOW - ago_s - 40, "ended_at": NOW - ago_s}
    return record(101, MigrationState.DONE, ago_s + 41, **(known | other))


def found(snapshot: Snapshot, *records: Migration) -> list[str]:
    return [to for _, to in pulled_back(records, snapshot, NOW)]


def test_a_guest_on_its_way_back_has_been_pulled_back() -> None:
    back = seen(vm(101, "pve2", ha="migrate"), ha=HighAvailability((HaResource(101, state="migrate", node="pve2", target="pve1"),)))
    assert found(back, arrived()) == ["pve1"]


def test_a_guest_that_is_back_has_been_pulled_back() -> None:
    assert found(seen(ha_vm(101, "pve3"), ha=managed(101)), arrived()) == ["pve3"]


def test_a_guest_that_stays_has_not() -> None:
    assert found(seen(ha_vm(101, "pve2"), ha=managed(101)), arrived()) == []
    still = HighAvailability((HaResource(101, state="migrate", node="pve1", target="pve2"),))
    assert found(seen(ha_vm(101, "pve2"), ha=still), arrived()) == [], "the HA manager has not noted its arrival yet"


@pytest.mark.parametrize(
    "record_of",
    [
        arrived(PULLED_BACK_S + 1),
        arrived(-PULLED_BACK_S - 1),
        arrived(text="told before"),
        arrived(through_ha=False),
        replace(arrived(), state=MigrationState.FAILED),
    ],
    ids=["long-ago", "clock-set-back", "told", "not-through-ha", "failed"],
)
def test_what_has_other_causes_is_not_called_so(record_of: Migration) -> None:
    assert found(seen(ha_vm(101, "pve1"), ha=managed(101)), record_of) == []


def test_what_somebody_asked_for_is_not_called_so() -> None:
    asked = Task("UPID:1", "pve2", "hamigrate", "101", "root@pam", NOW - 10, NOW - 9, "OK")
    snapshot = replace(seen(ha_vm(101, "pve1"), ha=managed(101)), tasks=(asked,))
    assert found(snapshot, arrived()) == []
    later = replace(arrived(5.0), intent="2-1", state=MigrationState.QUEUED, ended_at=None)
    assert found(seen(ha_vm(101, "pve1"), ha=managed(101)), arrived(), later) == [], "the agent itself has asked since"


def test_a_target_that_is_lost_or_in_maintenance_is_left_for_that() -> None:
    back = seen(ha_vm(101, "pve1"), ha=managed(101))
    assert found(changed(back, "pve2", online=False), arrived()) == []
    assert found(replace(back, no_target=("pve2",)), arrived()) == []

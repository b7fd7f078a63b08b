# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated HA manager does what PVE's does: in its own time, by its own rules, and mostly without a word."""

from __future__ import annotations

import json

import pytest

from agent.core.cluster import GIB, GuestType, HaNodeAffinity, HaResource, HaResourceAffinity
from agent.ports import MigrationOrder
from agent.sim.ha import LOCAL_S, RECOVERED_AFTER_S, ROUND_S
from agent.sim.inventory import SimGuest, SimNode
from agent.sim.migrations import FailureKind
from agent.sim.ports import NodePorts, ports_of
from agent.sim.world import World

VM = MigrationOrder(100, GuestType.QEMU, "pve1", "pve2", online=True, restart=False)
SETTLED_S = 120.0  # a few rounds and a migration


def world(*more: SimGuest, ha: str | None = "started") -> World:
    """Three nodes, and VM 100 on the first, which the HA manager has."""
    nodes = [SimNode(name, 16, 64 * GIB) for name in ("pve1", "pve2", "pve3")]
    made = World(nodes, [vm(100, ha=ha), *more])
    made.advance(1.0)
    return made


def vm(vmid: int, node: str = "pve1", ha: str | None = "started", **other: object) -> SimGuest:
    return SimGuest(vmid, node, used_memory_bytes=2 * GIB, ha=ha, **other)  # type: ignore[arg-type]


def on(made: World, node: str = "pve3") -> NodePorts:
    return ports_of(made, node)


def known(made: World, vmid: int = 100) -> HaResource:
    found = on(made).api.look().ha.resource(vmid)
    assert found is not None
    return found


def kinds(made: World, vmid: int = 100) -> list[str]:
    return [task.kind for task in on(made).api.look().tasks if task.vmid == vmid]


def prefers(*nodes: tuple[str, int], strict: bool = False) -> HaNodeAffinity:
    return HaNodeAffinity("prefers", (100,), nodes, strict)


def bound(*vmids: int, together: bool) -> HaResourceAffinity:
    return HaResourceAffinity("bound", vmids, together)


def test_a_request_is_read_in_a_round_and_carried_out_by_the_local_manager() -> None:
    made = world()
    on(made).api.migrate(VM)
    made.advance(ROUND_S - 0.1)
    assert known(made) == HaResource(100, "started", "started", "pve1")
    made.advance(ROUND_S)
    assert (known(made).state, known(made).target, kinds(made)) == ("migrate", "pve2", ["hamigrate"])
    made.advance(ROUND_S + LOCAL_S)
    assert kinds(made) == ["hamigrate", "qmigrate"]
    made.advance(SETTLED_S)
    assert (known(made).state, known(made).target, known(made).node, made.placements()[100]) == ("started", None, "pve2", "pve2")


def test_the_managers_own_file_shows_what_it_does() -> None:
    made = world()
    on(made).api.migrate(VM)
    made.advance(ROUND_S)
    status = json.loads(on(made).files.read("ha/manager_status") or "")["service_status"]
    assert status == {"vm:100": {"node": "pve1", "state": "migrate", "target": "pve2"}}


def test_nothing_is_due_where_nothing_changes() -> None:
    made = world()
    made.advance(ROUND_S)
    assert made.next_change_s() is None


@pytest.mark.parametrize("why", ["offline", "maintenance", "negative", "there"])
def test_a_request_may_be_dropped_without_a_word(why: str) -> None:
    made = world(vm(101, "pve2"))
    if why == "negative":
        made.ha.resource_affinity = (bound(100, 101, together=False),)
    on(made).api.migrate(VM)
    made.advance(2.0)
    if why == "offline":
        made.power_off_node("pve2")
    elif why == "maintenance":
        made.set_ha_state("pve2", "maintenance")
    elif why == "there":
        made.ha.services[100].node = "pve2"
    made.advance(made.now_s + ROUND_S)
    assert made.guests[100].ha == "started"
    made.ha.services[100].node = "pve1"
    made.advance(SETTLED_S)
    assert (kinds(made), made.placements()[100]) == (["hamigrate"], "pve1")


def test_a_migration_that_fails_leaves_the_service_started_where_it_was() -> None:
    made = world()
    made.fail_next_migration(FailureKind.HALF_WAY, 100)
    on(made).api.migrate(VM)
    made.advance(SETTLED_S)
    assert (known(made).state, known(made).node, made.placements()[100]) == ("started", "pve1", "pve1")
    assert made.running()[100] == "pve1"


def test_a_container_is_stopped_moved_and_started_in_a_later_round() -> None:
    made = world(vm(200, type=GuestType.LXC))
    on(made).api.migrate(MigrationOrder(200, GuestType.LXC, "pve1", "pve2", online=False, restart=True))
    made.advance(ROUND_S)
    assert known(made, 200).state == "relocate"
    made.advance(SETTLED_S)
    assert kinds(made, 200) == ["hamigrate", "vzshutdown", "vzmigrate", "vzstart"]
    assert made.running()[200] == "pve2"


def test_partners_move_along() -> None:
    made = world(vm(101), vm(102, "pve2"), vm(103))
    made.ha.resource_affinity = (bound(100, 101, 102, together=True),)
    on(made).api.migrate(VM)
    made.advance(SETTLED_S)
    assert [made.placements()[vmid] for vmid in (100, 101, 102, 103)] == ["pve2", "pve2", "pve2", "pve1"]


def test_a_node_migrates_four_at_a_time() -> None:
    made = world(*(vm(vmid, migration_s=60.0) for vmid in range(101, 106)))
    made.guests[100].migration_s = 60.0
    made.ha.resource_affinity = (bound(*range(100, 106), together=True),)
    on(made).api.migrate(VM)
    made.advance(40.0)
    assert len(made.in_flight()) == 4
    made.advance(200.0)
    assert set(made.placements().values()) == {"pve2"}


@pytest.mark.parametrize(("failback", "end"), [(True, "pve1"), (False, "pve2")])
def test_a_service_goes_back_to_a_better_node_if_it_fails_back(failback: bool, end: str) -> None:
    made = world()
    made.ha.node_affinity = (prefers(("pve1", 2), ("pve2", 1)),)
    made.ha.services[100].failback = failback
    on(made).api.migrate(VM)
    made.advance(40.0)
    assert made.placements()[100] == "pve2"
    made.advance(SETTLED_S)
    assert made.placements()[100] == end


def test_a_strict_rule_is_enforced_whatever_the_failback() -> None:
    made = world()
    made.ha.node_affinity = (prefers(("pve1", 1), strict=True),)
    made.ha.services[100].failback = False
    on(made).api.migrate(VM)
    made.advance(SETTLED_S)
    assert made.placements()[100] == "pve1"


def test_a_maintenance_takes_its_guests_away_and_brings_them_back() -> None:
    made = world(vm(101, ha=None))
    made.request_ha_maintenance("pve1")
    made.advance(SETTLED_S)
    assert made.placements()[100] != "pve1"
    assert made.placements()[101] == "pve1", "what the HA manager does not have stays"
    assert known(made).maintenance_node == "pve1"
    made.request_ha_maintenance("pve1", wanted=False)
    made.advance(2 * SETTLED_S)
    assert (made.placements()[100], known(made).maintenance_node) == ("pve1", None)


def test_a_dead_nodes_guests_are_started_elsewhere_when_it_is_fenced() -> None:
    made = world(vm(101, ha=None))
    made.power_off_node("pve1")
    made.advance(100.0)
    assert (made.guests[100].ha, made.placements()[100]) == ("fence", "pve1")
    made.advance(made.now_s + RECOVERED_AFTER_S)
    assert made.running() == {100: "pve2"}
    assert made.placements()[101] == "pve1"


def test_a_node_that_is_back_soon_is_not_fenced() -> None:
    made = world()
    made.power_off_node("pve1")
    made.advance(40.0)
    made.power_on_node("pve1")
    made.advance(300.0)
    assert made.running() == {100: "pve1"}


def test_a_manager_that_hangs_carries_out_later_what_it_was_asked_for() -> None:
    made = world()
    made.hang_ha_manager()
    on(made).api.migrate(VM)
    made.advance(300.0)
    assert made.placements()[100] == "pve1"
    made.hang_ha_manager(hanging=False)
    made.advance(300.0 + SETTLED_S)
    assert made.placements()[100] == "pve2"


def test_a_guest_taken_off_the_ha_manager_is_not_moved_any_more() -> None:
    made = world()
    on(made).api.migrate(VM)
    made.advance(2.0)
    made.set_ha(100, None)
    made.advance(SETTLED_S)
    assert (kinds(made), made.placements()[100]) == (["hamigrate"], "pve1")

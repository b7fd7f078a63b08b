# SPDX-License-Identifier: GPL-3.0-or-later
"""What every `ClusterApi` promises."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from agent.core.cluster import GIB, GuestType, HaNodeAffinity, HaResource, HaResourceAffinity, HighAvailability, Maintenance
from agent.core.reasons import RefusalReason
from agent.ports import InDoubtError, MigrationOrder, RefusedError, TemporaryError
from tests.contracts.stages import NODES, ApiStage, eventually

VM = MigrationOrder(100, GuestType.QEMU, "pve1", "pve2", online=True, restart=False)
CT = MigrationOrder(200, GuestType.LXC, "pve2", "pve3", online=False, restart=True)
UPID = re.compile(r"UPID:pve1:[0-9A-F]{8}:[0-9A-F]{8,9}:[0-9A-F]{8}:qmigrate:100:[^:]+:")
MOST_REQUESTS = 6


def test_a_look_shows_nodes_and_guests_with_their_loads(pve: ApiStage) -> None:
    seen = pve.api().look()
    assert [node.name for node in seen.nodes] == list(NODES)
    assert all(node.online for node in seen.nodes)
    assert [guest.label for guest in seen.guests] == ["vm:100", "vm:101", "ct:200", "vm:300"]
    node, guest = seen.nodes[0], seen.guests[0]
    assert (node.cpu_cores, node.memory_bytes, node.memory_used_bytes) == (16.0, 64 * GIB, 6 * GIB)
    assert node.cpu_used_cores == pytest.approx(1.6)
    assert (guest.node, guest.status, guest.cpu_cores, guest.memory_bytes, guest.memory_used_bytes) == (
        "pve1",
        "running",
        4,
        8 * GIB,
        4 * GIB,
    )
    assert guest.cpu_used_cores == pytest.approx(1.5)
    assert seen.taken_at == pytest.approx(pve.wall_s("pve1"), abs=60.0)
    assert seen.pve_version.startswith("9.")
    stopped, container, template = seen.guests[1:]
    assert (stopped.status, stopped.cpu_used_cores) == ("stopped", 0.0)
    assert (container.type, container.is_running) == (GuestType.LXC, True)
    assert template.template
    assert seen.tasks == ()


def test_a_look_needs_few_requests(pve: ApiStage) -> None:
    api = pve.api()
    for _ in range(2):
        before = pve.requests()
        api.look()
        assert 0 < pve.requests() - before <= MOST_REQUESTS


def test_a_free_guest_may_migrate(pve: ApiStage) -> None:
    for order in (VM, CT):
        found = pve.api().verdict(order.vmid, order.type, order.source, 1234.5)
        assert (found.vmid, found.asked_at, found.refusal, found.refused_nodes) == (order.vmid, 1234.5, None, ())


def test_a_migration_is_not_asked_for_once_its_time_is_over(pve: ApiStage) -> None:
    with pytest.raises(TemporaryError, match="timed out before the request was sent"):
        pve.api().migrate(VM, 0.0)
    assert pve.api().find_migration(100, "pve1", 0.0) is None


def test_a_locked_guest_may_not_migrate(pve: ApiStage) -> None:
    pve.lock_guest(100, "backup")
    refusal = pve.api().verdict(100, GuestType.QEMU, "pve1", 0.0).refusal
    assert refusal is not None
    assert (refusal.reason, refusal.detail) == (RefusalReason.LOCKED, "backup")
    with pytest.raises(RefusedError, match=r"VM is locked \(backup\)"):
        pve.api().migrate(VM)
    assert pve.api().find_migration(100, "pve1", 0.0) is None


def test_a_guest_with_local_disks_may_not_migrate(pve: ApiStage) -> None:
    pve.add_local_disk(100)
    refusal = pve.api().verdict(100, GuestType.QEMU, "pve1", 0.0).refusal
    assert refusal is not None
    assert refusal.reason is RefusalReason.LOCAL_DISK


def test_a_guest_that_is_elsewhere_cannot_be_judged_there(pve: ApiStage) -> None:
    refusal = pve.api().verdict(100, GuestType.QEMU, "pve2", 0.0).refusal
    assert refusal is not None
    assert refusal.reason is RefusalReason.PRECONDITION


def test_a_vm_migrates(pve: ApiStage) -> None:
    api = pve.api()
    upid = api.migrate(VM)
    assert UPID.fullmatch(upid)
    assert api.task(upid).exit_status is None
    under_way = api.look()
    moving = under_way.guest(100)
    assert moving is not None
    assert moving.lock == "migrate"
    assert [(task.kind, task.vmid, task.is_running) for task in under_way.tasks if task.upid == upid] == [("qmigrate", 100, True)]
    pve.finish_migration(100)
    assert api.task(upid).exit_status == "OK"
    arrived = api.look().guest(100)
    assert arrived is not None
    assert (arrived.node, arrived.lock, arrived.status) == ("pve2", None, "running")
    assert [(task.status, task.is_running) for task in api.look().tasks if task.upid == upid] == [("OK", False)]


def test_a_container_migrates_with_a_restart(pve: ApiStage) -> None:
    api = pve.api()
    upid = api.migrate(CT)
    assert ":vzmigrate:200:" in upid
    pve.finish_migration(200)
    assert api.task(upid).exit_status == "OK"
    arrived = api.look().guest(200)
    assert arrived is not None
    assert (arrived.node, arrived.lock) == ("pve3", None)


def test_a_stopped_vm_migrates(pve: ApiStage) -> None:
    api = pve.api()
    upid = api.migrate(MigrationOrder(101, GuestType.QEMU, "pve1", "pve3", online=False, restart=False))
    pve.finish_migration(101)
    assert api.task(upid).exit_status == "OK"
    arrived = api.look().guest(101)
    assert arrived is not None
    assert (arrived.node, arrived.status) == ("pve3", "stopped")


@pytest.mark.parametrize(
    "order",
    [
        MigrationOrder(100, GuestType.QEMU, "pve2", "pve3", online=True, restart=False),
        MigrationOrder(100, GuestType.QEMU, "pve1", "pve1", online=True, restart=False),
        MigrationOrder(100, GuestType.QEMU, "pve1", "pve2", online=False, restart=False),
        MigrationOrder(200, GuestType.LXC, "pve2", "pve3", online=False, restart=False),
        MigrationOrder(999, GuestType.QEMU, "pve1", "pve2", online=True, restart=False),
    ],
    ids=["elsewhere", "there-already", "not-online", "no-restart", "unknown"],
)
def test_what_pve_refuses_was_not_started(pve: ApiStage, order: MigrationOrder) -> None:
    with pytest.raises(RefusedError):
        pve.api().migrate(order)
    assert pve.api().find_migration(order.vmid, order.source, 0.0) is None


def test_a_migration_that_fails_leaves_the_guest_where_it_was(pve: ApiStage) -> None:
    api = pve.api()
    pve.fail_migration(100)
    upid = api.migrate(VM)
    pve.finish_migration(100)
    assert api.task(upid).exit_status == "migration problems"
    log = api.task_log(upid)
    assert any(" ERROR: " in line and "something went wrong" in line for line in log), log
    assert log[-1] == "TASK ERROR: migration problems"
    guest = api.look().guest(100)
    assert guest is not None
    assert (guest.node, guest.lock, guest.status) == ("pve1", None, "running")


def test_a_lost_answer_is_in_doubt_and_its_task_can_be_found(pve: ApiStage) -> None:
    api = pve.api()
    before_s = pve.wall_s("pve1")
    assert api.find_migration(100, "pve1", before_s) is None
    pve.lose_answer()
    with pytest.raises(InDoubtError):
        api.migrate(VM)
    upid = api.find_migration(100, "pve1", before_s)
    assert upid is not None
    assert api.task(upid).exit_status is None
    assert api.find_migration(100, "pve1", pve.wall_s("pve1") + 3600.0) is None
    assert api.find_migration(100, "pve2", before_s) is None


def test_an_unknown_task_is_not_a_running_one(pve: ApiStage) -> None:
    for upid in ("UPID:pve1:00000001:00000001:6955B900:qmigrate:100:root@pam:", "nonsense"):
        with pytest.raises(RefusedError):
            pve.api().task(upid)
        with pytest.raises(RefusedError):
            pve.api().task_log(upid)


def test_a_dead_node_is_seen_and_asks_for_patience(pve: ApiStage) -> None:
    api = pve.api()
    upid = api.migrate(CT)
    pve.power_off("pve2")
    seen = api.look()
    assert [node.online for node in seen.nodes] == [True, False, True]
    assert [guest.vmid for guest in seen.guests] == [100, 101, 200, 300]
    with pytest.raises(TemporaryError):
        api.task(upid)
    with pytest.raises(TemporaryError):
        api.migrate(CT)
    with pytest.raises(TemporaryError):
        api.verdict(200, GuestType.LXC, "pve2", 0.0)


def test_a_server_that_does_not_answer_asks_for_patience(pve: ApiStage) -> None:
    api = pve.api()
    api.look()
    pve.set_reachable(False)
    with pytest.raises(TemporaryError):
        api.look()
    with pytest.raises(TemporaryError):
        api.migrate(VM)
    pve.set_reachable(True)
    assert api.find_migration(100, "pve1", 0.0) is None


def test_an_admins_request_for_maintenance_is_seen(pve: ApiStage) -> None:
    pve.ask_maintenance("pve3")
    assert pve.api().look().maintenance == (Maintenance("pve3", "ha-manager"),)


def test_without_guests_of_its_own_the_ha_manager_says_nothing(pve: ApiStage) -> None:
    assert pve.api().look().ha == HighAvailability()


def test_the_ha_managers_guests_and_rules_are_seen(pve: ApiStage) -> None:
    pve.hang_ha()
    pve.manage(100, "started")
    pve.manage(200, "error")
    home = HaNodeAffinity("home", (100,), (("pve1", 2), ("pve2", 0)), strict=True)
    apart = HaResourceAffinity("apart", (100, 200), together=False)
    pve.make_ha_rules(home, apart)
    seen = pve.api().look().ha
    assert (seen.node_affinity, seen.resource_affinity) == ((home,), (apart,))
    assert seen.resources == (HaResource(100, state="started", node="pve1"), HaResource(200, state="error", node="pve2"))
    assert (seen.closed_nodes, seen.balances, seen.disarmed) == ((), False, False)


def test_a_node_that_the_ha_manager_empties_is_closed_to_it(pve: ApiStage) -> None:
    pve.hang_ha()
    pve.manage(100, "started")
    pve.ask_maintenance("pve3")
    assert pve.api().look().ha.closed_nodes == ("pve3",)


@pytest.mark.parametrize("balances", [True, False])
def test_the_clusters_options_are_seen(pve: ApiStage, balances: bool) -> None:
    pve.set_options(balances=balances, registered_tags=("a", "plb_pin_pve1"))
    seen = pve.api().look()
    assert (seen.ha.balances, seen.registered_tags) == (balances, ("a", "plb_pin_pve1"))


@pytest.mark.parametrize(("order", "kind"), [(VM, "qmigrate"), (CT, "vzmigrate")], ids=["vm", "container"])
def test_a_guest_of_the_ha_manager_moves_after_its_request_has_ended(pve: ApiStage, order: MigrationOrder, kind: str) -> None:
    pve.manage(order.vmid, "started")
    api = pve.api()
    upid = api.migrate(order)
    assert f":hamigrate:{order.vmid}:" in upid
    assert eventually(pve, lambda: api.task(upid).exit_status == "OK")
    queued = api.look().guest(order.vmid)
    assert queued is not None
    assert queued.node == order.source, "OK says that it is queued"
    pve.ha_begins(order.vmid)
    under_way = api.look()
    moving = under_way.guest(order.vmid)
    assert moving is not None
    assert (moving.node, moving.ha) == (order.source, "migrate" if order is VM else "relocate")
    [task] = [task for task in under_way.tasks if task.kind == kind]
    assert (task.vmid, task.user, task.node, task.is_running) == (order.vmid, "root@pam", order.source, True)
    pve.ha_rests(order.vmid)
    arrived = api.look().guest(order.vmid)
    assert arrived is not None
    assert (arrived.node, arrived.ha, arrived.lock) == (order.target, "started", None)
    assert api.find_migration(order.vmid, order.source, 0.0) == task.upid, "the newest is the HA manager's own"


def test_a_request_that_the_ha_manager_does_not_take_up_looks_like_any_other(pve: ApiStage) -> None:
    pve.manage(100, "started")
    pve.hang_ha()
    api = pve.api()
    upid = api.migrate(VM)
    assert eventually(pve, lambda: api.task(upid).exit_status == "OK")
    seen = api.look()
    guest = seen.guest(100)
    assert guest is not None
    assert (guest.node, guest.ha) == ("pve1", "started")
    assert [task.kind for task in seen.tasks] == ["hamigrate"]


def test_a_request_for_a_guest_in_the_ha_managers_error_state_fails_in_its_task(pve: ApiStage) -> None:
    pve.manage(100, "error")
    api = pve.api()
    upid = api.migrate(VM)
    assert eventually(pve, lambda: "error state" in (api.task(upid).exit_status or ""))


def test_a_vm_may_keep_its_connections(pve: ApiStage) -> None:
    api = pve.api()
    upid = api.migrate(replace(VM, conntrack=True))
    pve.finish_migration(100)
    assert api.task(upid).exit_status == "OK"


def test_a_guest_that_does_not_run_is_started(pve: ApiStage) -> None:
    api = pve.api()
    upid = api.start(101, GuestType.QEMU, "pve1")
    assert ":qmstart:101:" in upid
    assert eventually(pve, lambda: api.task(upid).exit_status == "OK")
    with pytest.raises(RefusedError):
        api.start(999, GuestType.QEMU, "pve1")

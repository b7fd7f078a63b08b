# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests of the simulated cluster start, stop and migrate as those of real ones, also where that is unpleasant."""

from __future__ import annotations

import pytest

from agent.core.cluster import GIB, GuestType, Snapshot
from agent.core.statistics import parse_vmlist
from agent.ports import InDoubtError, MigrationOrder, RefusedError
from agent.sim.inventory import SimGuest
from agent.sim.migrations import FailureKind, MigrationState
from tests.sim.made import CT, VM, log_of, made_world, on, seen


def test_a_guest_that_just_started_shows_no_cpu_in_its_first_sample() -> None:
    world = made_world(SimGuest(101, "pve2", status="stopped", used_cores=1.5))
    world.advance(12.0)
    world.start_guest(101)
    assert seen(world, 101).status == "stopped"
    world.advance(20.0)
    assert (seen(world, 101).status, seen(world, 101).cpu_used_cores, seen(world, 101).uptime_s) == ("running", 0.0, 8.0)
    world.advance(30.0)
    assert seen(world, 101).cpu_used_cores == 1.5


def test_a_new_guest_is_unknown_until_its_node_tells_of_it() -> None:
    world = made_world()
    world.advance(12.0)
    world.add_guest(SimGuest(101, "pve2"))
    assert (seen(world, 101).status, seen(world, 101).memory_used_bytes) == ("unknown", None)
    assert [entry.vmid for entry in parse_vmlist(on(world, "pve3").files.read(".vmlist") or "") or ()] == [100, 101, 200]
    world.advance(20.0)
    assert seen(world, 101).status == "running"


def test_the_load_of_a_vm_in_flight_is_on_both_nodes_and_its_process_is_a_new_one() -> None:
    world = made_world()
    world.advance(5.0)
    upid = on(world, "pve3").api.migrate(VM)
    world.advance(20.0)

    def memory(look: Snapshot) -> list[int]:
        return [(node.memory_used_bytes or 0) // GIB for node in look.nodes]

    assert memory(on(world, "pve1").api.look()) == [7, 5, 2]
    assert world.use()["pve1"].used_memory_bytes == 7 * GIB
    assert world.use()["pve2"].used_memory_bytes == 6 * GIB
    assert world.in_flight()[0].state is MigrationState.RUNNING
    world.advance(24.5)
    assert (seen(world, 100).node, seen(world, 100).lock, seen(world, 100).uptime_s) == ("pve2", "migrate", 86420.0)
    world.advance(25.0)
    assert on(world, "pve1").api.task(upid).exit_status == "OK"
    assert world.use()["pve1"].used_memory_bytes == 3 * GIB
    world.advance(30.0)
    assert (seen(world, 100).uptime_s, seen(world, 100).cpu_used_cores) == (24.0, 0.0)
    assert memory(on(world, "pve1").api.look()) == [3, 6, 2]
    world.advance(40.0)
    assert seen(world, 100).cpu_used_cores == 2.0


def test_a_live_migration_tells_the_target_alone() -> None:
    world = made_world()
    before = on(world, "pve3").files.read(".clusterlog") or ""
    on(world, "pve3").api.migrate(VM)
    world.advance(20.0)
    assert on(world, "pve1").inbox.claim().names == ()
    assert on(world, "pve2").inbox.claim().names == ("100.pre-start.pve1", "100.post-start.pve1")
    assert log_of(world, before) == ["starting task qmigrate", "starting task qmstart", "end task qmstart OK", "end task qmigrate OK"]


def test_a_container_stops_and_starts() -> None:
    world = made_world()
    before = on(world, "pve3").files.read(".clusterlog") or ""
    upid = on(world, "pve3").api.migrate(CT)
    world.advance(10.0)
    assert seen(world, 200).status == "stopped" or not world.guests[200].has_process
    assert "200" not in map(str, world.running())
    world.advance(20.0)
    assert on(world, "pve1").api.task(upid).exit_status == "OK"
    assert world.running()[200] == "pve2"
    assert on(world, "pve1").inbox.claim().names == ("200.pre-stop", "200.post-stop")
    assert on(world, "pve2").inbox.claim().names == ("200.pre-start", "200.post-start")
    assert log_of(world, before) == ["starting task vzmigrate", "starting task vzstart", "end task vzstart OK", "end task vzmigrate OK"]


@pytest.mark.parametrize(
    ("kind", "exit_status", "node", "runs"),
    [
        (FailureKind.ABORTED, "migration aborted", "pve1", True),
        (FailureKind.HALF_WAY, {VM: "migration problems", CT: "migration aborted"}, "pve1", True),
        (FailureKind.WARNINGS, "WARNINGS: 1", "pve2", True),
        (FailureKind.PROBLEMS, "migration problems", "pve2", True),
        (FailureKind.NOT_RUNNING, "migration problems", "pve2", False),
        (FailureKind.STUCK, None, "pve1", None),
    ],
)
@pytest.mark.parametrize("order", [VM, CT], ids=["vm", "ct"])
def test_migrations_go_wrong_as_asked(
    kind: FailureKind, exit_status: str | dict[MigrationOrder, str] | None, node: str, runs: bool | None, order: MigrationOrder
) -> None:
    world = made_world()
    world.fail_next_migration(kind)
    upid = on(world, "pve1").api.migrate(order)
    world.advance(600.0)
    expected = exit_status[order] if isinstance(exit_status, dict) else exit_status
    assert on(world, "pve1").api.task(upid).exit_status == expected
    assert world.placements()[order.vmid] == node
    if runs is not None:
        assert (order.vmid in world.running()) is runs
        assert world.guests[order.vmid].lock is None
    else:
        world.end_migration(order.vmid)
        assert world.running()[order.vmid] == "pve1"
    assert on(world, "pve1").api.migrate(MigrationOrder(100, GuestType.QEMU, world.placements()[100], "pve3", online=True, restart=False))


def test_why_a_migration_failed_stands_in_its_log_alone() -> None:
    world = made_world()
    world.fail_next_migration(FailureKind.HALF_WAY, text="mirroring error: x")
    upid = on(world, "pve1").api.migrate(VM)
    world.advance(600.0)
    log = on(world, "pve1").api.task_log(upid)
    assert any("ERROR: online migrate failure - mirroring error: x" in line for line in log)
    assert log[-1] == "TASK ERROR: migration problems"


def test_a_killed_worker_leaves_the_lock_and_no_last_word() -> None:
    world = made_world()
    world.fail_next_migration(FailureKind.WORKER_KILLED)
    upid = on(world, "pve1").api.migrate(VM)
    world.advance(600.0)
    assert on(world, "pve1").api.task(upid).exit_status == "unexpected status"
    assert (world.placements()[100], world.guests[100].lock, world.running()[100]) == ("pve1", "migrate", "pve1")


def test_a_forgotten_task_is_not_known_any_more() -> None:
    world = made_world()
    world.fail_next_migration(FailureKind.FORGOTTEN)
    upid = on(world, "pve1").api.migrate(VM)
    world.advance(600.0)
    with pytest.raises(RefusedError):
        on(world, "pve1").api.task(upid)
    assert world.placements()[100] == "pve2"


def test_what_pve_refuses_is_its_own_text() -> None:
    world = made_world()
    world.fail_next_migration(FailureKind.REFUSED, text="storage 'fast' is not available on node 'pve2'")
    with pytest.raises(RefusedError, match="storage 'fast' is not available"):
        on(world, "pve1").api.migrate(VM)
    world.fail_next_migration(FailureKind.REQUEST_LOST)
    with pytest.raises(InDoubtError):
        on(world, "pve1").api.migrate(VM)
    assert world.in_flight() == ()
    assert [post.answer.split(":")[0] for post in world.post_record] == ["RefusedError", "InDoubtError"]


def test_a_guest_of_the_ha_manager_moves_later_by_another_task() -> None:
    world = made_world()
    world.set_ha(100, "started")
    upid = on(world, "pve1").api.migrate(VM)
    world.advance(2.0)
    assert ":hamigrate:100:" in upid
    assert on(world, "pve1").api.task(upid).exit_status == "OK"
    assert world.placements()[100] == "pve1"
    world.advance(60.0)
    assert world.placements()[100] == "pve2"
    assert [(task.kind, task.user) for task in on(world, "pve1").api.look().tasks if task.vmid == 100] == [
        ("hamigrate", "proxlb@pve!agent"),
        ("qmigrate", "root@pam"),
        ("qmstart", "root@pam"),
    ]


def test_the_task_runs_on_though_the_agent_is_gone() -> None:
    world = made_world()
    on(world, "pve3").api.migrate(VM)
    world.kill_agent("pve3")
    world.power_off_node("pve3")
    world.advance(30.0)
    assert world.placements()[100] == "pve2"


def test_a_guest_that_powers_itself_off_leaves_a_hook_and_no_task() -> None:
    world = made_world()
    before = on(world, "pve3").files.read(".clusterlog") or ""
    world.stop_guest(100, inside=True)
    assert log_of(world, before) == []
    assert on(world, "pve1").inbox.claim().names == ("100.post-stop",)

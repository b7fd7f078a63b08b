# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated cluster does what is known of real ones, also where that is unpleasant."""

from __future__ import annotations

import contextlib

import pytest

from agent.core.cluster import GIB, Guest, GuestType, Snapshot
from agent.core.clusterlog import ClusterLogCursor
from agent.core.statistics import parse_rrd, parse_vmlist
from agent.ports import FilesystemState, InDoubtError, MigrationOrder, NotMountedError, OutsideError, RefusedError, TemporaryError
from agent.sim.inventory import START_WALL_S
from agent.sim.migrations import FailureKind, MigrationState
from agent.sim.ports import NodePorts, ports_of
from agent.sim.world import SimGuest, SimNode, World

VM = MigrationOrder(100, GuestType.QEMU, "pve1", "pve2", online=True, restart=False)
CT = MigrationOrder(200, GuestType.LXC, "pve1", "pve2", online=False, restart=True)
WEEK_S = 7 * 86_400.0


def made_world(*more: SimGuest, pve_version: str = "9.0.10") -> World:
    nodes = [SimNode(name, 16, 64 * GIB, overhead_cores=1.0, sample_phase_s=0.0) for name in ("pve1", "pve2", "pve3")]
    vm = SimGuest(100, "pve1", cores=4, memory_bytes=8 * GIB, used_cores=2.0, used_memory_bytes=4 * GIB, migration_s=20.0, hook=True)
    ct = SimGuest(200, "pve1", type=GuestType.LXC, used_cores=1.0, used_memory_bytes=GIB, migration_s=20.0, hook=True)
    return World(nodes, [vm, ct, *more], pve_version=pve_version)


def on(world: World, node: str) -> NodePorts:
    return ports_of(world, node)


def seen(world: World, vmid: int, node: str = "pve1") -> Guest:
    found = on(world, node).api.look().guest(vmid)
    assert found is not None
    return found


def log_of(world: World, since: str) -> list[str]:
    """The messages since a reading of the log, without what differs from task to task."""
    advance = ClusterLogCursor().advance(since).cursor.advance(on(world, "pve3").files.read(".clusterlog") or "")
    return [" ".join(word.split(":")[5] if word.startswith("UPID") else word for word in e.message.split()) for e in advance.entries]


def test_what_is_seen_is_as_old_as_the_last_round_of_pvestatd() -> None:
    world = made_world()
    world.advance(15.0)
    world.set_load(100, cores=3.0, memory_bytes=6 * GIB)
    world.advance(19.9)
    assert (seen(world, 100).cpu_used_cores, seen(world, 100).memory_used_bytes) == (2.0, 4 * GIB)
    world.advance(20.0)
    assert (seen(world, 100).cpu_used_cores, seen(world, 100).memory_used_bytes) == (3.0, 6 * GIB)
    node = on(world, "pve2").api.look().node("pve1")
    assert node is not None
    assert (node.cpu_used_cores, node.memory_used_bytes) == (5.0, 9 * GIB)
    sample = parse_rrd(on(world, "pve3").files.read(".rrd") or "").nodes[0]
    assert (sample.at_s, sample.cpu_used_cores) == (START_WALL_S + 20, 5.0)


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


def test_a_dead_source_takes_its_guest_along_and_leaves_the_lock() -> None:
    world = made_world()
    upid = on(world, "pve3").api.migrate(VM)
    world.advance(10.0)
    world.power_off_node("pve1")
    assert world.in_flight() == ()
    assert (world.placements()[100], world.guests[100].lock) == ("pve1", "migrate")
    with pytest.raises(TemporaryError):
        on(world, "pve3").api.task(upid)
    world.power_on_node("pve1")
    assert on(world, "pve3").api.task(upid).exit_status == "unexpected status"


def test_a_dead_target_leaves_the_guest_where_it_was() -> None:
    world = made_world()
    upid = on(world, "pve3").api.migrate(CT)
    world.advance(15.0)
    world.power_off_node("pve2")
    assert world.running()[200] == "pve1"
    assert on(world, "pve3").api.task(upid).exit_status == "migration aborted"


def test_guests_of_a_dead_node_look_as_if_they_ran_for_five_minutes() -> None:
    world = made_world()
    world.advance(1000.0)
    world.power_off_node("pve1")
    world.advance(1295.0)
    look = on(world, "pve2").api.look()
    assert [node.online for node in look.nodes] == [False, True, True]
    assert (seen(world, 100, "pve2").status, seen(world, 100, "pve2").cpu_used_cores) == ("running", 2.0)
    world.advance(1301.0)
    assert (seen(world, 100, "pve2").status, seen(world, 100, "pve2").cpu_used_cores) == ("unknown", None)
    assert {guest.vmid for guest in parse_rrd(on(world, "pve2").files.read(".rrd") or "").guests} == set()


def test_a_node_that_boots_starts_its_guests_one_by_one() -> None:
    world = made_world()
    world.power_off_node("pve1")
    world.advance(100.0)
    before = on(world, "pve3").files.read(".clusterlog") or ""
    world.power_on_node("pve1")
    assert on(world, "pve1").clock.boottime_s() == 0.0
    world.advance(110.0)
    assert world.running() == {100: "pve1", 200: "pve1"}
    assert [line for line in log_of(world, before) if line.startswith("starting")] == [
        "starting task startall",
        "starting task qmstart",
        "starting task vzstart",
    ]
    assert world.nodes["pve1"].boots == 2


def test_a_guest_that_powers_itself_off_leaves_a_hook_and_no_task() -> None:
    world = made_world()
    before = on(world, "pve3").files.read(".clusterlog") or ""
    world.stop_guest(100, inside=True)
    assert log_of(world, before) == []
    assert on(world, "pve1").inbox.claim().names == ("100.post-stop",)


def test_nodes_that_want_more_than_they_have_share_it() -> None:
    world = made_world()
    world.set_load(100, cores=31.0)
    world.advance(10.0)
    node = on(world, "pve1").api.look().nodes[0]
    assert node.cpu_used_cores == 16.0
    assert seen(world, 200).cpu_used_cores == pytest.approx(16 / 33)


def test_noise_comes_out_the_same_again_and_stays_within_bounds() -> None:
    def samples() -> list[float]:
        world = made_world(SimGuest(101, "pve2", used_cores=1.0, noise_fraction=0.2))
        found = []
        for round_number in range(1, 50):
            world.advance(round_number * 10.0)
            found.append(seen(world, 101).cpu_used_cores or 0.0)
        return found

    first = samples()
    assert first == samples()
    assert 0.8 <= min(first) < 0.9 < 1.1 < max(first) <= 1.2


def test_a_cut_node_stands_still_and_forgets_what_it_thought_when_it_is_back() -> None:
    world = made_world()
    world.advance(100.0)
    world.cut_node("pve1")
    assert on(world, "pve1").files.state() is FilesystemState.NO_QUORUM
    world.set_flag("pve2", "disks")
    world.append_log("pve2", "unheard of")
    world.advance(500.0)
    assert on(world, "pve1").files.list("proxlb/maintenance") == ()
    assert "unheard of" not in (on(world, "pve1").files.read(".clusterlog") or "")
    assert [node.name for node in parse_rrd(on(world, "pve1").files.read(".rrd") or "").nodes] == ["pve1"]
    assert [node.name for node in parse_rrd(on(world, "pve2").files.read(".rrd") or "").nodes] == ["pve2", "pve3"]
    with pytest.raises(RefusedError, match="no quorum"):
        on(world, "pve1").api.migrate(VM)
    with pytest.raises(TemporaryError):
        on(world, "pve2").api.migrate(VM)
    world.heal()
    assert on(world, "pve1").files.list("proxlb/maintenance") == ("pve2",)
    assert "unheard of" in (on(world, "pve1").files.read(".clusterlog") or "")
    assert len(parse_rrd(on(world, "pve2").files.read(".rrd") or "").nodes) == 3


def test_the_larger_part_of_a_split_cluster_goes_on() -> None:
    world = made_world()
    world.split(["pve1", "pve2"])
    assert [on(world, name).files.state().value for name in world.nodes] == ["quorate", "quorate", "no quorum"]
    assert on(world, "pve2").lock.take()
    assert world.lock_holder() == "pve2"
    world.heal()
    assert world.lock_holder() == "pve2"


def test_a_clock_step_of_the_lowest_node_drops_a_lock_early() -> None:
    world = made_world()
    assert on(world, "pve2").lock.take()
    world.advance(10.0)
    world.step_wall_clock("pve1", 3600.0)
    on(world, "pve3").lock.ask_expiry()
    world.advance(12.0)
    assert world.lock_holder() is None


def test_a_renewal_between_the_request_and_the_end_saves_the_lock() -> None:
    world = made_world()
    assert on(world, "pve2").lock.take()
    world.advance(130.0)
    on(world, "pve3").lock.ask_expiry()
    on(world, "pve2").lock.renew()
    world.advance(140.0)
    assert world.lock_holder() == "pve2"


@pytest.mark.parametrize("applied", [False, True])
def test_a_write_may_fail_and_have_been_carried_out(applied: bool) -> None:
    world = made_world()
    world.fail_next_write("pve1", applied=applied)
    with pytest.raises(TemporaryError):
        on(world, "pve1").lock.take()
    assert (world.lock_holder() == "pve1") is applied


def test_pmxcfs_may_restart_and_hang() -> None:
    world = made_world()
    world.restart_pmxcfs("pve1", 2.0)
    with pytest.raises(NotMountedError):
        on(world, "pve1").lock.take()
    world.advance(2.0)
    world.append_log("pve1", "anew")
    assert '"uid": 1, ' in (on(world, "pve2").files.read(".clusterlog") or "")
    world.hang_pmxcfs("pve1", 5.0)
    with pytest.raises(TemporaryError):
        on(world, "pve1").files.read("proxlb/leader.json")
    world.advance(7.0)
    assert on(world, "pve1").files.read("proxlb/leader.json") is None


def test_log_lines_after_a_clock_step_back_are_lost() -> None:
    world = made_world()
    world.advance(100.0)
    world.append_log("pve1", "before")
    world.step_wall_clock("pve1", -60.0)
    world.append_log("pve1", "lost")
    world.advance(161.0)
    world.append_log("pve1", "after")
    text = on(world, "pve2").files.read(".clusterlog") or ""
    assert ("before" in text, "lost" in text, "after" in text) == (True, False, True)


def test_numbers_age_where_pvestatd_hangs() -> None:
    world = made_world()
    world.advance(100.0)
    world.stop_statistics("pve1")
    world.set_load(100, cores=4.0)
    world.advance(200.0)
    assert parse_rrd(on(world, "pve2").files.read(".rrd") or "").nodes[0].at_s == START_WALL_S + 100
    world.stop_statistics("pve1", stopped=False)
    assert seen(world, 100).cpu_used_cores == 4.0


def test_pve_8_tells_less() -> None:
    world = made_world(pve_version="8.4.1")
    text = on(world, "pve1").files.read(".rrd") or ""
    assert text.startswith("pve2-node/pve1:")
    found = parse_rrd(text)
    assert [(guest.vmid, guest.cpu_used_cores, guest.memory_host_bytes) for guest in found.guests] == [(100, 2.0, None), (200, 1.0, None)]
    assert seen(world, 100).memory_host_bytes is None


def test_an_idle_week_has_nothing_in_it() -> None:
    world = made_world()
    assert world.next_change_s() is None
    world.advance(WEEK_S)
    assert seen(world, 100).uptime_s == WEEK_S + 86_400.0
    assert not world.pmxcfs.writes


def test_two_equal_worlds_give_equal_bytes() -> None:
    def life() -> str:
        world = made_world()
        on(world, "pve2").lock.take()
        on(world, "pve2").api.migrate(VM)
        world.migrate_by_person(200, "pve3")
        world.advance(12.0)
        world.power_off_node("pve3")
        world.advance(50.0)
        files = on(world, "pve2").files
        return "".join(files.read(name) or "" for name in (".rrd", ".vmlist", ".members", ".clusterlog", ".version"))

    assert life() == life()


def test_the_record_of_requests_says_whether_the_senders_node_had_the_lock() -> None:
    """Had it in the quorate part, whatever the sender's own copy says; also for requests that come to nothing."""

    def held(made: World) -> bool:
        with contextlib.suppress(OutsideError):
            on(made, "pve2").api.migrate(VM)
        return made.post_record[-1].held_lock

    world = made_world()
    assert not held(world), "nobody has it"
    assert on(world, "pve2").lock.take()
    assert held(world)
    world.cut_node("pve2")
    assert not held(world), "cut off, with its own copy of the lock"
    world.heal()
    assert held(world)
    world.remove_lock()
    assert on(world, "pve3").lock.take()
    assert not held(world), "another's"
    assert len(world.post_record) == 5

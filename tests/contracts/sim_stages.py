# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated side of the contracts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from agent.core.cluster import GIB, GuestType, HaNodeAffinity, HaResourceAffinity
from agent.ports import Clock, ClusterApi, ClusterFiles, FactsSource, JournalSink, LeaderLock, LocalFiles, LocalInbox
from agent.sim.inventory import SimGuest, SimNode
from agent.sim.migrations import FailureKind
from agent.sim.ports import ports_of
from agent.sim.world import World
from tests.contracts.stages import NODES

CACHED_S = 1.2  # what a node may need to see a change


def made_world() -> World:
    nodes = [SimNode(name, 16, 64 * GIB) for name in NODES]
    guests = [
        SimGuest(100, "pve1", cores=4, memory_bytes=8 * GIB, used_cores=1.5, used_memory_bytes=4 * GIB),
        SimGuest(101, "pve1", status="stopped"),
        SimGuest(200, "pve2", type=GuestType.LXC, cores=2, memory_bytes=2 * GIB, used_memory_bytes=GIB),
        SimGuest(300, "pve3", template=True),
    ]
    return World(nodes, guests)


class SimStage:
    """One world for all ports; each port's protocol of `stages` is a part of it, but for names that differ."""

    def __init__(self) -> None:
        self.world = made_world()

    def pass_s(self, seconds: float) -> None:
        self.world.advance(self.world.now_s + seconds)


class SimPmxcfs(SimStage):
    def lock(self, node: str) -> LeaderLock:
        return ports_of(self.world, node).lock

    def files(self, node: str) -> ClusterFiles:
        return ports_of(self.world, node).files

    def cut(self, node: str) -> None:
        self.world.cut_node(node)
        self.pass_s(CACHED_S)

    def heal(self) -> None:
        self.world.heal()
        self.pass_s(CACHED_S)

    def unmount(self, node: str) -> None:
        self.world.nodes[node].mounted = False

    def mount(self, node: str) -> None:
        self.world.restart_pmxcfs(node, 0.0)
        self.pass_s(CACHED_S)

    def left_behind(self, node: str) -> list[str]:
        return []

    def age_lock(self, by_s: float) -> None:
        self.pass_s(by_s)

    def step_clock(self, node: str, by_s: float) -> None:
        self.world.step_wall_clock(node, by_s)

    def put_guest(self, vmid: int, node: str) -> None:
        self.world.add_guest(SimGuest(vmid, node))

    def report(self) -> None:
        pass  # the world's nodes always do

    def log(self, node: str, msg: str) -> None:
        self.world.append_log(node, msg)


class SimInboxStage(SimStage):
    def inbox(self) -> LocalInbox:
        return ports_of(self.world, "pve1").inbox

    def leave_event(self, name: str) -> None:
        self.world.leave_event("pve1", name)

    def leave_request(self, request_id: str, text: str) -> None:
        self.world.request("pve1", request_id, text)

    def set_flag(self, text: str | None) -> None:
        if text is None:
            self.world.clear_local_flag("pve1")
        else:
            self.world.set_local_flag("pve1", text)

    def set_broken(self, broken: bool) -> None:
        self.world.break_inbox("pve1", broken)


class SimLocalFilesStage(SimStage):
    def files(self) -> LocalFiles:
        return ports_of(self.world, "pve1").local_files

    def status(self) -> str | None:
        return self.world.nodes["pve1"].status_text

    def set_broken(self, broken: bool) -> None:
        self.world.fill_disk("pve1", broken)


class SimFactsStage(SimStage):
    def source(self) -> FactsSource:
        return ports_of(self.world, "pve1").facts

    def upgrade_qemu(self, version: str) -> None:
        self.world.change_facts("pve1", replace(self.world.nodes["pve1"].facts, qemu_version=version))

    def add_bridge(self, name: str) -> None:
        facts = self.world.nodes["pve1"].facts
        self.world.change_facts("pve1", replace(facts, bridges=tuple(sorted((*facts.bridges, name)))))

    def set_cache(self, cache_bytes: int | None) -> None:
        self.world.set_zfs_cache("pve1", cache_bytes)


class SimClockStage(SimStage):
    def clock(self) -> Clock:
        return ports_of(self.world, "pve1").clock


class SimJournalStage(SimStage):
    def sink(self) -> JournalSink:
        return ports_of(self.world, "pve1").journal

    def texts(self) -> list[str]:
        return [line.record.text for line in self.world.journal]

    def close(self) -> None:
        pass  # a list does not close


class SimApiStage(SimStage):
    def api(self) -> ClusterApi:
        return ports_of(self.world, "pve1").api

    def requests(self) -> int:
        return sum(self.world.api_requests.values())

    def wall_s(self, node: str) -> float:
        return self.world.nodes[node].wall_s(self.world.now_s)

    def finish_migration(self, vmid: int) -> None:
        while vmid in self.world.migrations.under_way:
            change_s = self.world.next_change_s()
            assert change_s is not None
            self.world.advance(change_s)

    def fail_migration(self, vmid: int) -> None:
        self.world.fail_next_migration(FailureKind.HALF_WAY, vmid)

    def lose_answer(self) -> None:
        self.world.fail_next_migration(FailureKind.ANSWER_LOST)

    def lock_guest(self, vmid: int, lock: str | None) -> None:
        self.world.lock_guest(vmid, lock)

    def add_local_disk(self, vmid: int) -> None:
        self.world.guests[vmid].local_disks = ("local-lvm:vm-100-disk-0",)

    def power_off(self, node: str) -> None:
        self.world.power_off_node(node)

    def manage(self, vmid: int, state: str) -> None:
        self.world.set_ha(vmid, state)

    def make_ha_rules(self, *rules: HaNodeAffinity | HaResourceAffinity) -> None:
        ha = self.world.ha
        ha.node_affinity = tuple(rule for rule in rules if isinstance(rule, HaNodeAffinity))
        ha.resource_affinity = tuple(rule for rule in rules if isinstance(rule, HaResourceAffinity))

    def set_options(self, *, balances: bool, registered_tags: tuple[str, ...]) -> None:
        self.world.ha.balances, self.world.registered_tags = balances, registered_tags

    def hang_ha(self) -> None:
        self.world.hang_ha_manager()

    def ha_begins(self, vmid: int) -> None:
        self._until(lambda: vmid in self.world.migrations.under_way)

    def ha_rests(self, vmid: int) -> None:
        self._until(lambda: self.world.guests[vmid].ha == "started" and self.world.guests[vmid].has_process)
        self.pass_s(CACHED_S)

    def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            change_s = self.world.next_change_s()
            assert change_s is not None, "nothing happens any more"
            self.world.advance(change_s)

    def set_reachable(self, reachable: bool) -> None:
        self.world.cut_api("pve1", cut=not reachable)

    def ask_maintenance(self, node: str) -> None:
        self.world.request_ha_maintenance(node)

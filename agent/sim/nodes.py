# SPDX-License-Identifier: GPL-3.0-or-later
"""What people and machines do to the nodes of the simulated cluster, and what fails of them."""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.cluster import NodeFacts, StorageUse
from agent.sim.guests import Guests
from agent.sim.inventory import Inbox
from agent.sim.tasks import ROOT, LogRing

STARTALL_DELAY_S = 5.0  # from a node's boot to its first guest


class Nodes(Guests):
    """Nodes go down and boot, which starts their guests; they part and meet again, and their /etc/pve and their numbers fail."""

    def power_off_node(self, name: str) -> None:
        """The node is gone at once, with its guests, its tasks and what was in /run."""
        node = self._node(name)
        if not node.online:
            return
        self.settle(name)
        node.online = False
        self.migrations.node_went_down(name)
        self.tasks.cut_off(node)
        for guest in self._residents[name].values():
            guest.status = "stopped"
        node.inbox = Inbox()
        node.status_text = None
        if not self.pmxcfs.members(node.partition):
            node.partition.ring = LogRing()
            node.partition.node_rows.clear()
            node.partition.guest_rows.clear()
        self.pmxcfs.membership_changed()
        self.ha.node_went_down(name)

    def power_on_node(self, name: str) -> None:
        """The node has booted and joined; its agent starts, and a little later its guests do."""
        node = self._node(name)
        if node.online:
            return
        node.online, node.mounted = True, True
        node.booted_at_s = self.now_s
        node.boots += 1
        node.agent_starts += 1
        node.log_uid = 0
        node.sampled_s = None
        self.pmxcfs.forget_lock_age(node)
        self.pmxcfs.membership_changed()
        self.ha.node_came_up(name)
        boot = node.boots
        onboot = [vmid for vmid, guest in sorted(self._residents[name].items()) if guest.onboot and not guest.template]
        if not onboot:
            return

        def start_all() -> None:
            if node.online and node.boots == boot:
                task = self.tasks.begin(node, "startall", "")
                for number, vmid in enumerate(onboot):
                    self.timeline.after(float(number), lambda vmid=vmid: self._start_at_boot(vmid, name))  # type: ignore[misc]
                self.timeline.after(float(len(onboot)), lambda: self.tasks.end(node, task, "OK"))

        self.timeline.after(STARTALL_DELAY_S, start_all)

    def _start_at_boot(self, vmid: int, node: str) -> None:
        if vmid in self.guests and self.guests[vmid].node == node:
            self.start_guest(vmid)

    def cut_node(self, name: str) -> None:
        """The node loses the cluster's network: it stays up, alone, without quorum."""
        self._settle_all()
        self._node(name).partition = self._node(name).partition.copy()
        self.pmxcfs.membership_changed()

    def split(self, names: Iterable[str]) -> None:
        """These nodes see each other and no others any more."""
        self._settle_all()
        part = self.main.copy()
        for name in names:
            self._node(name).partition = part
        self.pmxcfs.membership_changed()
        self._choose_main()

    def heal(self) -> None:
        """All nodes see each other again; what the quorate part holds is true."""
        self._settle_all()
        self._choose_main()
        parts = list({id(node.partition): node.partition for node in self.nodes.values()}.values())
        for part in parts:
            if part is not self.main:
                self.main.absorb(part)
        for node in self.nodes.values():
            missed = not node.partition.is_same_as(self.main)
            node.partition = self.main
            if missed:
                self.pmxcfs.forget_lock_age(node)
        self.pmxcfs.membership_changed()

    def _choose_main(self) -> None:
        parts = [node.partition for node in self.nodes.values()]
        self.main = max(parts, key=lambda part: (part.quorate, part.changes, part is self.main))

    def restart_pmxcfs(self, name: str, duration_s: float) -> None:
        """pve-cluster restarts on the node: /etc/pve is not mounted for so long."""
        node = self._node(name)
        node.mounted = False

        def back() -> None:
            node.mounted = True
            node.log_uid = 0
            self.pmxcfs.forget_lock_age(node)
            self.pmxcfs.membership_changed()

        self.timeline.after(duration_s, back)

    def hang_pmxcfs(self, name: str, duration_s: float) -> None:
        """Calls into /etc/pve on the node fail for so long."""
        self._node(name).pmxcfs_hangs_until_s = self.now_s + duration_s

    def fail_next_write(self, name: str, *, applied: bool = False) -> None:
        """The node's next change below /etc/pve, the lock's included, fails; `applied`: it was carried out all the same."""
        self._node(name).pmxcfs_failures.append(applied)

    def stop_statistics(self, name: str, stopped: bool = True) -> None:
        """The node's pvestatd hangs, and its numbers and its guests' age."""
        self.settle(name)
        self._node(name).statistics_stopped = stopped

    def set_node_load(self, name: str, overhead_cores: float | None = None, overhead_memory_bytes: int | None = None) -> None:
        """What the node takes for itself from now on."""
        node = self._node(name)
        self.settle(name)
        node.overhead_cores = node.overhead_cores if overhead_cores is None else overhead_cores
        node.overhead_memory_bytes = node.overhead_memory_bytes if overhead_memory_bytes is None else overhead_memory_bytes

    def set_storage_use(self, use: StorageUse) -> None:
        """How full a storage is from now on."""
        self.storage_use[use.name, use.nodes] = use

    def set_zfs_cache(self, name: str, cache_bytes: int | None) -> None:
        """What the node's ZFS cache could give back from now on."""
        self._node(name).zfs_cache_bytes = cache_bytes

    def change_facts(self, name: str, facts: NodeFacts) -> None:
        """Somebody upgrades the node, or changes its network."""
        self._node(name).facts = facts

    def run_task(self, node: str, kind: str, target_id: str, duration_s: float, user: str = ROOT) -> None:
        """Some task of the node runs so long."""
        where = self._node(node)
        task = self.tasks.begin(where, kind, target_id, user)
        self.timeline.after(duration_s, lambda: self.tasks.end(where, task, "OK"))

    def step_wall_clock(self, node: str, by_s: float) -> None:
        """Somebody sets the node's clock."""
        self._node(node).wall_offset_s += by_s

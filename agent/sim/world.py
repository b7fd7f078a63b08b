# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated cluster, and what people and machines do to it."""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.cluster import GuestType, NodeFacts, Storage, StorageUse, Task
from agent.ports import MigrationOrder, PermanentError, TemporaryError
from agent.sim.ha import HaManager
from agent.sim.inventory import AgentWish, Inbox, SimGuest, SimNode
from agent.sim.migrations import Failure, FailureKind, Migration, Migrations, MigrationState
from agent.sim.records import HaPost, JournalLine, Post
from agent.sim.standing import NodeUse, Standing
from agent.sim.tasks import ROOT, LogRing

GUEST_START_S = 1.0  # from the start task's begin to its end
STARTALL_DELAY_S = 5.0  # from a node's boot to its first guest
AGENT_USER = "proxlb@pve!agent"


class World(Standing):
    """A cluster in simulated time.

    Everything that happens by itself is on `timeline`; everything else is a call. Ports for a node: `agent.sim.ports`.

    Units:   seconds since the simulation began; bytes, cores.
    """

    def __init__(
        self,
        nodes: Iterable[SimNode],
        guests: Iterable[SimGuest] = (),
        *,
        pve_version: str = "9.0.10",
        bandwidth_bytes_s: float = float(500 << 20),
        storages: Iterable[Storage] = (),
    ) -> None:
        super().__init__(nodes, pve_version, storages)
        self.migrations = Migrations(self, bandwidth_bytes_s)
        self.ha = HaManager(self)
        for guest in sorted(guests, key=lambda guest: guest.vmid):
            self._take_in(guest)
        self.pmxcfs.membership_changed()
        for node in self.nodes.values():
            self.settle(node.name)

    # time

    def advance(self, to_s: float) -> None:
        """Let time pass until then."""
        self.timeline.advance(to_s)

    def step_wall_clock(self, node: str, by_s: float) -> None:
        """Somebody sets the node's clock."""
        self._node(node).wall_offset_s += by_s

    def set_utc_offset(self, offset_s: float) -> None:
        """The nodes' local time is so far ahead of UTC from now on: summer time begins or ends."""
        self.utc_offset_s = offset_s

    # guests

    def add_guest(self, guest: SimGuest) -> None:
        """A guest that exists from now on."""
        self.settle(self._node(guest.node).name)
        self._take_in(guest)

    def _take_in(self, guest: SimGuest) -> None:
        if guest.vmid in self.guests:
            raise ValueError(f"guest {guest.vmid} exists already")
        self._node(guest.node)
        self.guests[guest.vmid] = guest
        self._residents[guest.node][guest.vmid] = guest
        self._configuration_written(guest)
        if guest.ha is not None:
            self.ha.manage(guest, guest.ha)

    def remove_guest(self, vmid: int) -> None:
        """The guest is destroyed."""
        guest = self._guest(vmid)
        if vmid in self.migrations.under_way:
            raise ValueError(f"guest {vmid} is being migrated")
        self.settle(guest.node)
        self.ha.manage(guest, None)
        del self.guests[vmid], self._residents[guest.node][vmid]
        self.vmlist_version += 1

    def start_guest(self, vmid: int, user: str = ROOT) -> Task | None:
        """Somebody starts the guest: task, hooks, and a process from now on. Nothing when it runs."""
        guest = self._guest(vmid)
        node = self.nodes[guest.node]
        if guest.has_process or not node.online:
            return None
        task = self.tasks.begin(node, f"{guest.short_kind}start", str(vmid), user)
        if guest.lock is not None:
            self.tasks.end(node, task, f"{'VM' if guest.type is GuestType.QEMU else 'CT'} is locked ({guest.lock})")
            return task
        if guest.cannot_start:
            self.tasks.end(node, task, "startup for container failed")
            return task
        self.hook(guest, node.name, "pre-start")
        self.settle(node.name)
        guest.status = "running"
        guest.since_s = guest.seen_since_s = self.now_s

        def started() -> None:
            if node.online:
                self.hook(guest, node.name, "post-start")
                self.tasks.end(node, task, "OK")

        self.timeline.after(GUEST_START_S, started)
        return task

    def stop_guest(self, vmid: int, *, inside: bool = False) -> None:
        """Somebody stops the guest; `inside`: it powers itself off or crashes, and only a VM's post-stop hook tells."""
        guest = self._guest(vmid)
        node = self.nodes[guest.node]
        if not guest.has_process or not node.online:
            return
        self.settle(node.name)
        if inside:
            guest.status = "stopped"
            self.hook(guest, node.name, "post-stop")
            return
        task = self.tasks.begin(node, f"{guest.short_kind}stop", str(vmid))
        self.hook(guest, node.name, "pre-stop")
        guest.status = "stopped"
        self.hook(guest, node.name, "post-stop")
        self.tasks.end(node, task, "OK")

    def set_status(self, vmid: int, status: str) -> None:
        """PVE's word for the guest changes without a task: paused, io-error, running."""
        guest = self._guest(vmid)
        self.settle(guest.node)
        guest.status = status

    def set_load(
        self, vmid: int, cores: float | None = None, memory_bytes: int | None = None, host_memory_bytes: int | None = None
    ) -> None:
        """What the guest takes from now on; None leaves it."""
        guest = self._guest(vmid)
        self.settle(guest.node)
        guest.used_cores = guest.used_cores if cores is None else cores
        guest.used_memory_bytes = guest.used_memory_bytes if memory_bytes is None else memory_bytes
        guest.host_memory_bytes = guest.host_memory_bytes if host_memory_bytes is None else host_memory_bytes

    def resize(self, vmid: int, cores: float | None = None, memory_bytes: int | None = None) -> None:
        """The guest's configured size changes."""
        guest = self._guest(vmid)
        self.settle(guest.node)
        guest.cores = guest.cores if cores is None else cores
        guest.memory_bytes = guest.memory_bytes if memory_bytes is None else memory_bytes
        self._configuration_written(guest)

    def set_tags(self, vmid: int, tags: Iterable[str]) -> None:
        """Somebody writes other tags into the guest's configuration."""
        guest = self._guest(vmid)
        guest.tags = tuple(tags)
        self._configuration_written(guest)

    def edit_guest(self, vmid: int) -> None:
        """Somebody edits the guest's configuration, in a way that nobody here need know."""
        guest = self._guest(vmid)
        guest.description += "edited "
        self._configuration_written(guest)

    def set_ha(self, vmid: int, state: str | None) -> None:
        """The HA manager's state of the guest; None: not managed."""
        self.ha.manage(self._guest(vmid), state)

    def set_guest_lock(self, guest: SimGuest, lock: str | None) -> None:
        """PVE's lock in the guest's configuration."""
        guest.lock = lock
        self._configuration_written(guest)

    def lock_guest(self, vmid: int, lock: str | None) -> None:
        """As `set_guest_lock`, by VMID."""
        self.set_guest_lock(self._guest(vmid), lock)

    def back_up(self, vmid: int, duration_s: float, *, stops: bool = False) -> None:
        """A vzdump task of the guest runs so long, with PVE's lock on it; in mode stop a VM is started again at once, a container in
        the end, and only hookscripts tell."""
        guest = self._guest(vmid)
        node = self.nodes[guest.node]
        task = self.tasks.begin(node, "vzdump", str(vmid))
        self.set_guest_lock(guest, "backup")
        is_stopped = stops and guest.has_process
        if is_stopped:
            self.settle(node.name)
            self.hook(guest, node.name, "pre-stop")
            guest.status = "stopped"
            self.hook(guest, node.name, "post-stop")

        def start() -> None:
            self.settle(node.name)
            self.hook(guest, node.name, "pre-start")
            guest.status = "running"
            guest.since_s = guest.seen_since_s = self.now_s
            self.hook(guest, node.name, "post-start")

        def done() -> None:
            if is_stopped and guest.type is GuestType.LXC:
                start()
            if guest.lock == "backup":
                self.set_guest_lock(guest, None)
            self.tasks.end(node, task, "OK")

        if is_stopped and guest.type is GuestType.QEMU:
            self.timeline.after(GUEST_START_S, start)

        self.timeline.after(duration_s, done)

    def run_task(self, node: str, kind: str, target_id: str, duration_s: float, user: str = ROOT) -> None:
        """Some task of the node runs so long."""
        where = self._node(node)
        task = self.tasks.begin(where, kind, target_id, user)
        self.timeline.after(duration_s, lambda: self.tasks.end(where, task, "OK"))

    def change_facts(self, name: str, facts: NodeFacts) -> None:
        """Somebody upgrades the node, or changes its network."""
        self._node(name).facts = facts

    def set_zfs_cache(self, name: str, cache_bytes: int | None) -> None:
        """What the node's ZFS cache could give back from now on."""
        self._node(name).zfs_cache_bytes = cache_bytes

    def hide_guest(self, vmid: int, hidden: bool = True) -> None:
        """The agent's token does not show the guest."""
        self._guest(vmid).hidden = hidden

    def move_by_recovery(self, vmid: int, target: str) -> None:
        """The HA manager takes the guest off a dead node: its configuration moves without a trace, then it is started."""
        guest = self._guest(vmid)
        guest.status = "stopped"
        guest.lock = None
        self.move_configuration(guest, target)
        self.start_guest(vmid)

    # migrations

    def migrate_by_person(self, vmid: int, target: str, user: str = ROOT) -> None:
        """An admin migrates the guest in the web interface, or a program of others by the API."""
        guest = self._guest(vmid)
        is_vm = guest.type is GuestType.QEMU
        order = MigrationOrder(
            vmid, guest.type, guest.node, target, online=is_vm and guest.has_process, restart=not is_vm and guest.has_process
        )
        self.migrations.request(order, user)

    def fail_next_migration(self, kind: FailureKind | str, vmid: int | None = None, text: str | None = None, times: int = 1) -> None:
        """The next migrations (of that guest) go wrong in that way, with that text of PVE."""
        self.migrations.failures.append(Failure(FailureKind(kind), vmid, text, times))

    def end_migration(self, vmid: int) -> None:
        """Somebody stops the guest's migration task."""
        self.migrations.end_stuck(vmid)

    # nodes

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

    # the API, agents, flags, log

    def cut_api(self, name: str, cut: bool = True) -> None:
        """The node's API server does not answer any more, or does again."""
        self._node(name).api_cut = cut

    def hang_api(self, name: str, duration_s: float) -> None:
        """The node's API server times out for so long."""
        self._node(name).api_hangs_until_s = self.now_s + duration_s

    def fail_api_calls(self, name: str, times: int) -> None:
        """So many calls of the node's agent fail."""
        self._node(name).api_failures = times

    def stop_agent(self, name: str) -> None:
        """systemctl stop."""
        self._node(name).agent = AgentWish.STOP

    def kill_agent(self, name: str) -> None:
        """kill -9, and nobody starts it again."""
        self._node(name).agent = AgentWish.KILL

    def start_agent(self, name: str) -> None:
        """systemctl start; after a kill or a stop, or as a restart."""
        node = self._node(name)
        node.agent = AgentWish.RUN
        node.agent_starts += 1

    def reload_agent(self, name: str) -> None:
        """systemctl reload."""
        self._node(name).agent_reloads += 1

    def freeze_agent(self, name: str, duration_s: float) -> None:
        """The agent's process is stopped for so long, and goes on as if nothing had been."""
        self._node(name).agent_frozen_until_s = self.now_s + duration_s

    def put_file(self, path: str, text: str) -> None:
        """Somebody writes a file below /etc/pve (on the quorate part)."""
        self.pmxcfs.put(self.main, path, text)

    def drop_file(self, path: str) -> None:
        """Somebody removes a file below /etc/pve."""
        if self.main.files.pop(path, None) is not None:
            self.main.changes += 1

    def set_flag(self, node: str, text: str = "") -> None:
        """Somebody wants the node empty: the flag below /etc/pve."""
        self.put_file(f"proxlb/maintenance/{node}", text)

    def clear_flag(self, node: str) -> None:
        """The flag below /etc/pve is taken back."""
        self.drop_file(f"proxlb/maintenance/{node}")

    def set_local_flag(self, node: str, text: str = "") -> None:
        """Somebody on the node wants it empty: /etc/proxlb-agent/maintenance."""
        self._node(node).local_flag = text

    def clear_local_flag(self, node: str) -> None:
        """The flag on the node is taken back."""
        self._node(node).local_flag = None

    def request_ha_maintenance(self, node: str, wanted: bool = True) -> None:
        """An admin asks the HA manager to empty the node, or takes that back."""
        self._node(node)
        if wanted:
            self.ha_requests.add(node)
            self.ha_states[node] = "maintenance"
        else:
            self.ha_requests.discard(node)
            self.ha_states.pop(node, None)
        self.ha.wake()

    def fail_ha_command(self, node: str, text: str, times: int = 1, *, lasting: bool = False) -> None:
        """The next calls of `ha-manager` on the node fail."""
        kind = PermanentError if lasting else TemporaryError
        self._node(node).ha_command_failures += [kind(f"ha-manager: {text}") for _ in range(times)]

    def set_ha_state(self, node: str, state: str | None) -> None:
        """The HA manager's state of the node without an admin's request, as at a reboot with shutdown policy migrate."""
        self._node(node)
        if state is None:
            self.ha_states.pop(node, None)
        else:
            self.ha_states[node] = state
        self.ha.wake()

    def hang_ha_manager(self, hanging: bool = True) -> None:
        """The HA manager takes requests and does nothing, or works again."""
        self.ha.hang(hanging)

    def request(self, node: str, request_id: str, text: str) -> None:
        """A command on the node leaves a request for its agent."""
        self._node(node).inbox.requests[request_id] = text

    def break_inbox(self, node: str, broken: bool = True) -> None:
        """The inbox's folder is missing or not safe, or is well again."""
        self._node(node).inbox.is_broken = broken

    def fill_disk(self, node: str, full: bool = True) -> None:
        """The node's disk is full, or is not any more."""
        self._node(node).disk_full = full

    def append_log(self, node: str, msg: str, times: int = 1, user: str = ROOT) -> None:
        """Lines in the cluster log."""
        for _ in range(times):
            self.tasks.log(self._node(node), msg, user=user)

    def remove_lock(self) -> None:
        """Somebody removes the lock's directory by hand."""
        self.main.lock = None

    def hook(self, guest: SimGuest, node: str, phase: str, origin: str | None = None) -> None:
        """The guest's hookscript runs on the node, if it has one."""
        if guest.hook and self.nodes[node].online:
            self.leave_event(node, f"{guest.vmid}.{phase}" + (f".{origin}" if origin else ""))

    def leave_event(self, node: str, name: str) -> None:
        """A file in the node's inbox; one of the same name is made anew."""
        names = self._node(node).inbox.names
        names.pop(name, None)
        names[name] = self.now_s


__all__ = [
    "AgentWish",
    "FailureKind",
    "HaPost",
    "JournalLine",
    "Migration",
    "MigrationState",
    "NodeUse",
    "Post",
    "SimGuest",
    "SimNode",
    "World",
]

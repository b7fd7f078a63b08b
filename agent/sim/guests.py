# SPDX-License-Identifier: GPL-3.0-or-later
"""What people and machines do to the guests of the simulated cluster."""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.cluster import GuestType, Task
from agent.ports import MigrationOrder
from agent.sim.inventory import SimGuest
from agent.sim.migrations import Failure, FailureKind
from agent.sim.standing import Standing
from agent.sim.tasks import ROOT

GUEST_START_S = 1.0  # from the start task's begin to its end


class Guests(Standing):
    """Guests come and go, are started, changed and moved, and their hookscripts tell of it."""

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

    # hookscripts

    def hook(self, guest: SimGuest, node: str, phase: str, origin: str | None = None) -> None:
        """The guest's hookscript runs on the node, if it has one."""
        if guest.hook and self.nodes[node].online:
            self.leave_event(node, f"{guest.vmid}.{phase}" + (f".{origin}" if origin else ""))

    def leave_event(self, node: str, name: str) -> None:
        """A file in the node's inbox; one of the same name is made anew."""
        names = self._node(node).inbox.names
        names.pop(name, None)
        names[name] = self.now_s

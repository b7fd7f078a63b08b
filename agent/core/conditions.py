# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps a guest where it is, and a node from taking it, whatever else moves: all conditions but rules among guests and room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum, auto

from agent.core.backups import backup_nodes, due_backups
from agent.core.cluster import BULK_KINDS, CLUSTER_BULK_KINDS, MIGRATE_KINDS, NODE_BULK_KINDS, NODE_SETTLED_S, Guest, Node, Snapshot
from agent.core.guest_load import GuestLoad
from agent.core.local_disks import may_take_along, why_too_long
from agent.core.node_load import memory_limit_bytes, why_not_measured
from agent.core.plan_types import Refusal, Verdict
from agent.core.question import Question
from agent.core.reasons import RefusalReason
from agent.core.rules import Rules
from agent.core.settings import ContainerPolicy, Settings
from agent.core.suitability import Suitability

_STUCK_STATES = frozenset({"paused", "suspended", "prelaunch", "io-error", "postmigrate", "unknown"})
_STARTS_ALL = "startall"
_EMPTIED_STATES = frozenset({"started", "migrate", "relocate"})  # the HA manager moves only what it has in order


def why_starting(node: Node) -> str | None:
    """How long the node is up when that is not long enough to have started its own guests, else None."""
    return f"up for {node.uptime_s:.0f} s" if node.uptime_s is not None and node.uptime_s < NODE_SETTLED_S else None


class Purpose(Enum):
    """What a move is for: it decides which conditions apply."""

    DRAIN = auto()
    RULE = auto()
    LOAD = auto()


class Conditions:
    """The conditions of one snapshot: nothing here changes while a plan is made.

    Shape:   `measured` are the measured loads of the snapshot's guests; `draining` are the nodes to be emptied, `open_nodes` those that
             may take guests at all, sorted.
    """

    def __init__(self, snapshot: Snapshot, settings: Settings, question: Question, rules: Rules, measured: Mapping[int, GuestLoad]) -> None:
        self.snapshot, self.settings, self.question, self.rules = snapshot, settings, question, rules
        self._measured = measured
        self.node_of = {node.name: node for node in snapshot.nodes}
        self.draining = {maintenance.node for maintenance in snapshot.maintenance}
        self.draining |= {name for name in self.node_of if _named(name, settings.nodes.maintenance)}
        self.draining &= self.node_of.keys()  # a flag that is left of a node long gone empties nobody
        self._shut_down = {maintenance.node for maintenance in snapshot.maintenance if maintenance.shuts_down}
        self._suitability = Suitability(snapshot, settings)
        self._ha_resources = {resource.vmid: resource for resource in snapshot.ha.resources}
        self._busy = self._busy_guests()
        running = [task for task in snapshot.tasks if task.is_running]
        self._bulk_of_nodes = {task.node: f"{task.kind} is running on {task.node}" for task in running if task.kind in NODE_BULK_KINDS}
        self._bulk_of_all = next((f"{task.kind} is running" for task in running if task.kind in CLUSTER_BULK_KINDS), None)
        self._starting_all = {task.node for task in snapshot.tasks if task.is_running and task.kind == _STARTS_ALL}
        self._due = due_backups(snapshot)
        self._backup_nodes = backup_nodes(snapshot, self._due)
        self._holding = {name: held for name, node in self.node_of.items() if (held := self._why_node_keeps(node)) is not None}
        self._closed = {name: self._judged(node) for name, node in sorted(self.node_of.items())}
        self.open_nodes = tuple(name for name, why in self._closed.items() if why is None)

    # guests

    def _busy_guests(self) -> dict[int, str]:
        busy = {
            task.vmid: f"{task.kind} is running"
            for task in self.snapshot.tasks
            if task.is_running and task.vmid is not None and (task.kind in MIGRATE_KINDS or task.kind not in BULK_KINDS)
        }
        return busy | {flight.vmid: "it is migrating" for flight in self.question.ledger.in_flight}

    def why_guest_stays(self, guest: Guest, purpose: Purpose) -> Refusal | None:  # noqa: C901  # one line a condition
        """Why the guest cannot be moved for that purpose by anybody's plan, None when it can."""
        settings, vmid = self.settings, guest.vmid

        def refuse(reason: RefusalReason, detail: str = "") -> Refusal:
            return Refusal(vmid, reason, detail)

        if guest.template:
            return refuse(RefusalReason.TEMPLATE)
        if guest.node not in self.node_of:
            return refuse(RefusalReason.NODE_OFFLINE, guest.node)
        if guest.node in self._holding:
            return refuse(*self._holding[guest.node])
        if (why := self._why_ha_keeps(guest)) is not None:
            return why
        if vmid in self.rules.ignored:
            return refuse(RefusalReason.IGNORED, "plb_ignore")
        if settings.guests.is_ignored(vmid):
            return refuse(RefusalReason.IGNORED, "guests.ignore")
        if guest.status in _STUCK_STATES:
            return refuse(RefusalReason.STATE, guest.status)
        if not guest.is_running and not (purpose is Purpose.DRAIN and leaves_stopped(guest, settings)):
            return refuse(RefusalReason.NOT_RUNNING, guest.status)
        if guest.lock:
            return refuse(RefusalReason.LOCKED, guest.lock)
        if vmid in self._busy:
            return refuse(RefusalReason.BUSY, self._busy[vmid])
        if (bulk := self._why_bulk(guest, purpose)) is not None:
            return refuse(RefusalReason.BUSY, bulk)
        if guest.type == "lxc" and guest.is_running and not self._containers_may(purpose):
            return refuse(RefusalReason.CONTAINER, f"guests.containers is {settings.guests.containers.value}")
        if vmid in self.rules.contradicted:
            return refuse(RefusalReason.CONFLICT)
        if vmid in self.question.set_aside:
            return refuse(RefusalReason.SET_ASIDE, self.question.set_aside[vmid])
        verdict = self.question.verdicts.get(vmid)
        if verdict is not None and verdict.refusal is not None and not self._takes_disks_along(guest, verdict):
            return verdict.refusal
        if verdict is not None and verdict.needs is not None and (tie := self._suitability.why_stays(guest, verdict.needs)) is not None:
            return refuse(*tie)
        if purpose is Purpose.LOAD:
            if (slow := why_too_long(self.disk_bytes(guest), settings)) is not None:
                return refuse(RefusalReason.LOCAL_DISK, slow)
            if vmid in self.question.stepped_back and not self.question.force:
                return refuse(RefusalReason.OTHER_BALANCER, self.question.stepped_back[vmid])
            if vmid in self.question.cooling and not self.question.force:
                return refuse(RefusalReason.COOLDOWN, self.question.cooling[vmid])
            if (due := self._due.guests.get(vmid)) is not None:
                return refuse(RefusalReason.BACKUP_DUE, due.words)
            if vmid not in self._measured:
                return refuse(RefusalReason.LOAD_UNKNOWN)
        return None

    def _why_bulk(self, guest: Guest, purpose: Purpose) -> str | None:
        """Which of PVE's bulk actions may have the guest next: one that finds it elsewhere fails for it. One of the whole cluster may be
        of anybody: it holds up no drain, for which somebody waits."""
        return self._bulk_of_nodes.get(guest.node) or (None if purpose is Purpose.DRAIN else self._bulk_of_all)

    def _why_node_keeps(self, node: Node) -> tuple[RefusalReason, str] | None:
        """Why nobody leaves the node, None when who is there may."""
        if not node.online:
            return RefusalReason.NODE_OFFLINE, node.name
        if node.name in self.snapshot.going_down:
            return RefusalReason.NODE_SHUTS_DOWN, node.name
        if node.name not in self.draining and _named(node.name, self.settings.nodes.ignore):
            return RefusalReason.NODE_IGNORED, node.name
        if (starting := self._why_starting(node)) is not None:
            return RefusalReason.NODE_STARTING, starting  # who runs there is not known, or about to change
        return None

    def _why_starting(self, node: Node) -> str | None:
        """Why the node's guests are not left to themselves yet: it has just booted, or is still starting them."""
        return "startall is running" if node.name in self._starting_all else why_starting(node)

    def _takes_disks_along(self, guest: Guest, verdict: Verdict) -> bool:
        """True where all that PVE has against the guest is disks, and these it may take along."""
        is_disk = verdict.refusal is not None and verdict.refusal.reason is RefusalReason.LOCAL_DISK
        return is_disk and verdict.needs is not None and may_take_along(guest, self.settings)

    def disk_bytes(self, guest: Guest) -> int:
        """What moving the guest copies beside its memory, as far as its configuration has been read."""
        verdict = self.question.verdicts.get(guest.vmid)
        return 0 if verdict is None or verdict.needs is None else self._suitability.copied(guest, verdict.needs).size_bytes

    def _why_ha_keeps(self, guest: Guest) -> Refusal | None:
        """Why the HA manager does not let go of the guest now, None when it moves the guest on request or has no part in it.

        A node that it empties itself is left to it: its own maintenance takes all HA guests along, and brings them back.
        Where only a flag empties the node, its HA guests are asked for one by one. Where the cluster balances its HA guests
        itself, even that would be undone: an emptied node is the first it would fill.

        Source:  pve-ha-manager, src/PVE/HA/Manager.pm, load_balance and next_state_started.
        """
        ha, resource = self.snapshot.ha, self._ha_resources.get(guest.vmid)
        if resource is None:
            return None if guest.ha is None else Refusal(guest.vmid, RefusalReason.HA_BUSY, "the HA manager has not said how it keeps it")
        if resource.requested == "ignored":
            return None
        if guest.node in self._shut_down:
            return Refusal(guest.vmid, RefusalReason.HA_BUSY, f"{guest.node} shuts down, and the HA manager has its own rule for that")
        if guest.node in ha.closed_nodes and not ha.disarmed and resource.requested == "started" and resource.state in _EMPTIED_STATES:
            return Refusal(guest.vmid, RefusalReason.HA_EMPTIES)
        if ha.balances and resource.auto_rebalance:
            return Refusal(guest.vmid, RefusalReason.HA_BALANCED)
        detail = ""
        if ha.disarmed:
            detail = "the HA manager is disarmed"
        elif resource.requested != "started":
            detail = f"it is to be {resource.requested}"
        elif resource.state != "started":
            detail = resource.state or "not taken on yet"
        elif resource.target is not None:
            detail = f"on its way to {resource.target}"
        elif resource.node is not None and resource.node != guest.node:
            detail = f"the HA manager has it on {resource.node}"
        elif resource.maintenance_node is not None:
            detail = f"it goes back to {resource.maintenance_node} after the maintenance"
        return Refusal(guest.vmid, RefusalReason.HA_BUSY, detail) if detail else None

    def _containers_may(self, purpose: Purpose) -> bool:
        policy = self.settings.guests.containers
        return policy is ContainerPolicy.ALWAYS or (policy is ContainerPolicy.MAINTENANCE and purpose is Purpose.DRAIN)

    # nodes

    def _judged(self, node: Node) -> Refusal | None:
        def refuse(reason: RefusalReason, detail: str = "") -> Refusal:
            return Refusal(0, reason, detail)

        if not node.online:
            return refuse(RefusalReason.NODE_OFFLINE)
        if node.name in self.draining or node.name in self.snapshot.no_target:
            return refuse(RefusalReason.NODE_MAINTENANCE)
        if _named(node.name, self.settings.nodes.ignore):
            return refuse(RefusalReason.NODE_IGNORED)
        if (why := why_not_measured(node)) is not None:
            return refuse(RefusalReason.NODE_STALE, why)
        if (starting := why_starting(node)) is not None:
            return refuse(RefusalReason.NODE_STARTING, starting)
        if node.reports is False:
            return refuse(RefusalReason.NODE_SILENT)
        if memory_limit_bytes(node, self.settings) <= 0:
            return refuse(RefusalReason.NO_MEMORY, "the reserve is all it has")  # a witness: neither a target nor part of the spread
        return None

    def has_backup(self, name: str) -> bool:
        """True while a backup runs on the node, or is about to begin there."""
        return name in self._backup_nodes

    def why_closed(self, name: str) -> Refusal | None:
        """Why the node takes no guest at all, None when it may."""
        return self._closed.get(name, _GONE)

    def _is_home(self, guest: Guest, target: str) -> bool:
        return self.question.homes.get(guest.vmid) == target

    def _is_mapped_away(self, guest: Guest, verdict: Verdict, refused: Refusal, target: str) -> bool:
        """True where PVE misses only storages whose disks go to others: it is not told of the map when it is asked."""
        if refused.reason is not RefusalReason.STORAGE_MISSING or verdict.needs is None:
            return False
        home = target if self._is_home(guest, target) else None
        renamed = {storage for storage, _ in self._suitability.copied(guest, verdict.needs, home).mapped}
        return set(refused.detail.split(", ")) <= renamed

    def why_never(self, guest: Guest, target: str, purpose: Purpose) -> Refusal | None:
        """Why the guest cannot go to the node whatever else moves, None when that depends on rules among guests and room alone."""
        if (closed := self.why_closed(target)) is not None:
            return Refusal(guest.vmid, closed.reason, closed.detail)
        if purpose is Purpose.LOAD and target in self._backup_nodes:
            return Refusal(guest.vmid, RefusalReason.NODE_BACKUP, self._backup_nodes[target])
        if (failed := self.question.avoided.get(guest.vmid, {}).get(target)) is not None:
            return Refusal(guest.vmid, RefusalReason.NODE_FAILED, failed)
        verdict = self.question.verdicts.get(guest.vmid)
        if verdict is not None:
            refused = dict(verdict.refused_nodes).get(target)
            if refused is not None and not self._is_mapped_away(guest, verdict, refused, target):
                return refused
            if verdict.needs is not None:
                lack = self._suitability.why_not_there(guest, verdict.needs, target, is_home=self._is_home(guest, target))
                if lack is not None:
                    return Refusal(guest.vmid, *lack)
        if guest.vmid in self.rules.pins and (broken := self.rules.broken_pins(guest.vmid, target)):
            return Refusal(guest.vmid, RefusalReason.PINNED, broken[0].words)
        return None


def leaves_stopped(guest: Guest, settings: Settings) -> bool:
    """True for a guest that does not run and leaves its node in a drain all the same."""
    return settings.drain.stopped and guest.status == "stopped" and not guest.template


_GONE = Refusal(0, RefusalReason.NODE_OFFLINE)


def _named(name: str, names: Iterable[str]) -> bool:
    return name.lower() in {other.lower() for other in names}

# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's HA manager: it takes requests at once, carries them out in rounds of its own, or drops them without a word to anybody.

Source:  pve-ha-manager, CRM (Manager.pm) and LRM; rounds that would change nothing are left out, so that an idle cluster stays idle.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.core.cluster import GuestType, HaNodeAffinity, HaResource, HaResourceAffinity, HighAvailability
from agent.sim.inventory import SimGuest
from agent.sim.tasks import ROOT

if TYPE_CHECKING:
    from agent.sim.migrations import Failure
    from agent.sim.world import World

ROUND_S = 10.0  # the cluster resource manager's
LOCAL_S = 5.0  # from its word to a node's resource manager's deed, and from the deed to the report
MOST_WORKERS = 4  # at a time, of one node's resource manager
FENCE_AFTER_S = 60.0  # a node is taken for dead when it has been away for so long
RECOVERED_AFTER_S = 120.0  # and its guests are taken off it when its lock has run out
MOVING = frozenset({"migrate", "relocate"})


@dataclass(slots=True)
class Service:
    """What the HA manager knows of a guest beside its state, which is the guest's own field `ha`.

    Shape:   `node` is where the manager has it, `target` where it is bringing it; `asked` the node of a command it has taken;
             `result` whether the local manager's migration went well, None while that is not known.
    """

    node: str
    target: str | None = None
    asked: str | None = None
    result: bool | None = None
    failure: Failure | None = None
    maintenance_node: str | None = None
    requested: str = "started"
    failback: bool = True
    auto_rebalance: bool = True


class HaManager:
    """The cluster's HA manager with the local ones of all nodes.

    Shape:   `services` by VMID; `commands` are (vmid, target, what goes wrong with its migration), not read yet, `node_commands`
             (node, whether it is to be in maintenance), of which one that `drops_maintenance` takes none; a `hanging` manager keeps
             its commands and does nothing.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.services: dict[int, Service] = {}
        self.commands: list[tuple[int, str, Failure | None]] = []
        self.node_affinity: tuple[HaNodeAffinity, ...] = ()
        self.resource_affinity: tuple[HaResourceAffinity, ...] = ()
        self.node_commands: list[tuple[str, bool]] = []
        self.drops_maintenance = False
        self.balances = False
        self.disarmed = False
        self.hanging = False
        self._down_since: dict[str, float] = {}
        self._is_awake = False

    # what others do

    def manage(self, guest: SimGuest, state: str | None) -> None:
        """Put the guest under the HA manager in that state; None: take it away."""
        guest.ha = state
        if state is None:
            self.services.pop(guest.vmid, None)
            return
        service = self.services.setdefault(guest.vmid, Service(guest.node))
        service.node, service.target = guest.node, None
        service.requested = "stopped" if state == "stopped" else "started"
        self.wake()

    def command(self, vmid: int, target: str, failure: Failure | None = None) -> None:
        """Somebody asks for the guest to be moved: the next round reads it."""
        self.commands.append((vmid, target, failure))
        self.wake()

    def ask_maintenance(self, node: str, wanted: bool) -> None:
        """`ha-manager crm-command node-maintenance`: the next round reads it."""
        self.node_commands.append((node, wanted))
        self.wake()

    def add(self, rule: HaNodeAffinity) -> None:
        """Somebody makes a rule: the next round keeps to it."""
        self.node_affinity = (*self.node_affinity, rule)
        self.wake()

    def hang(self, hanging: bool = True) -> None:
        """No node's cluster resource manager works any more, or one does again."""
        self.hanging = hanging
        self.wake()

    def node_went_down(self, name: str) -> None:
        """The node is away from now on."""
        self._down_since[name] = self._world.now_s
        self.wake()

    def node_came_up(self, name: str) -> None:
        """The node is back."""
        self._down_since.pop(name, None)
        self.wake()

    def migration_ended(self, guest: SimGuest, is_good: bool) -> None:
        """A migration task of the guest has ended; its node's manager reports that on its next turn."""
        service = self.services.get(guest.vmid)
        if service is None or service.target is None:
            return

        def report() -> None:
            if service.target is not None:
                service.result = is_good
                self.wake()

        self._world.timeline.after(LOCAL_S, report)

    # what can be seen

    def seen(self) -> HighAvailability:
        """What PVE's API tells of it."""
        return HighAvailability(
            resources=tuple(
                HaResource(
                    vmid,
                    requested=service.requested,
                    state=self._world.guests[vmid].ha or "",
                    node=service.node,
                    target=service.target,
                    maintenance_node=service.maintenance_node,
                    failback=service.failback,
                    auto_rebalance=service.auto_rebalance,
                )
                for vmid, service in sorted(self.services.items())
            ),
            node_affinity=tuple(sorted(self.node_affinity, key=lambda rule: rule.name)),
            resource_affinity=tuple(sorted(self.resource_affinity, key=lambda rule: rule.name)),
            closed_nodes=tuple(sorted(self._world.ha_states.keys() | self._world.ha_requests)),
            balances=self.balances,
            disarmed=self.disarmed,
        )

    def status_of_services(self) -> dict[str, dict[str, str]]:
        """`service_status` of the manager's own file."""
        found: dict[str, dict[str, str]] = {}
        for vmid, service in sorted(self.services.items()):
            guest = self._world.guests[vmid]
            known = {"node": service.node, "state": guest.ha, "target": service.target, "maintenance_node": service.maintenance_node}
            found[guest.label] = {key: value for key, value in known.items() if value}
        return found

    # rounds of the cluster resource manager

    def wake(self) -> None:
        """Something has changed: there is a next round."""
        if not self._is_awake and not self.hanging:
            self._is_awake = True
            next_s = (math.floor(self._world.now_s / ROUND_S) + 1) * ROUND_S
            self._world.timeline.at(next_s, self._round)

    def _round(self) -> None:
        self._is_awake = False
        if self.hanging:
            return
        node_commands, self.node_commands = self.node_commands, []
        for node, wanted in node_commands:
            self._take_node_command(node, wanted)
        commands, self.commands = self.commands, []
        for vmid, target, failure in commands:
            self._take(vmid, target, failure)
        if sum([self._step(self._world.guests[vmid], service) for vmid, service in sorted(self.services.items())]):
            self.wake()

    def _take_node_command(self, node: str, wanted: bool) -> None:
        """The request stands at once; the node's own manager reports that it keeps to it, and then its state changes."""
        world = self._world
        if wanted and (self.drops_maintenance or self.disarmed or not world.nodes[node].online):
            return
        if wanted:
            world.ha_requests.add(node)
        else:
            world.ha_requests.discard(node)

        def reported() -> None:
            if node in world.ha_requests:
                world.ha_states[node] = "maintenance"
            elif world.ha_states.get(node) == "maintenance":
                del world.ha_states[node]
            self.wake()

        world.timeline.after(LOCAL_S, reported)

    def _take(self, vmid: int, target: str, failure: Failure | None) -> None:
        """Read one command: taken for the guest and its partners, or dropped with a line in the manager's own log."""
        service = self.services.get(vmid)
        if service is None or not self._is_open(target) or service.node == target:
            return
        for other in self._bound(vmid, together=False):
            if target in (self.services[other].node, self.services[other].target):
                return
        service.asked, service.failure = target, failure
        for partner in self._bound(vmid, together=True):
            if target not in (self.services[partner].node, self.services[partner].target):
                self.services[partner].asked = target

    def _bound(self, vmid: int, *, together: bool) -> list[int]:
        """The other services that a resource-affinity rule of that kind binds to this one."""
        rules = [rule for rule in self.resource_affinity if rule.together is together and vmid in rule.vmids]
        return sorted({other for rule in rules for other in rule.vmids if other in self.services} - {vmid})

    def _is_open(self, node: str) -> bool:
        """True when the manager takes the node for online and not in maintenance."""
        known = self._world.nodes.get(node)
        return known is not None and known.online and node not in self._world.ha_states

    def _step(self, guest: SimGuest, service: Service) -> bool:
        """One service's turn; returns whether another round must come for it."""
        if not self._world.nodes[service.node].online and guest.ha in ("started", "fence", "recovery", *MOVING):
            return self._recover(guest, service)
        if guest.ha in MOVING:
            return self._judge(guest, service)
        if guest.ha not in ("started", "stopped"):
            return False
        if self._world.ha_states.get(service.node) == "maintenance":
            service.maintenance_node = service.node
        target = service.asked
        service.asked = None
        if target is None or not self._is_open(target) or target == service.node:
            target = self._wanted_node(guest, service)
        if target is None or target == service.node:
            return False
        if service.maintenance_node == target:
            service.maintenance_node = None
        self._move(guest, service, target)
        return True

    def _judge(self, guest: SimGuest, service: Service) -> bool:
        if service.result is None:
            return False
        service.node = guest.node
        service.target = service.result = None
        guest.ha = service.requested
        if guest.ha == "started" and not guest.has_process:
            self._start(guest)
        return True

    def _start(self, guest: SimGuest) -> None:
        def start() -> None:
            if guest.vmid in self.services and guest.ha == "started":
                self._world.start_guest(guest.vmid)

        self._world.timeline.after(LOCAL_S, start)

    def _recover(self, guest: SimGuest, service: Service) -> bool:
        """Its node is dead: fence it, and when it can no longer run there, start the guest elsewhere."""
        if guest.node != service.node:  # it had changed its node before that one died
            service.node, service.target, service.result, guest.ha = guest.node, None, None, "started"
            return True
        away_s = self._world.now_s - self._down_since.get(service.node, self._world.now_s)
        if away_s >= FENCE_AFTER_S:
            guest.ha = "fence"
            service.target = service.asked = service.result = None
        if away_s < RECOVERED_AFTER_S:
            return True
        guest.ha = "recovery"
        target = self._wanted_node(guest, service)
        if target is None:
            return True
        guest.status, guest.lock = "stopped", None
        self._world.move_configuration(guest, target)
        service.node, guest.ha = target, "started"
        self._start(guest)
        return True

    def _wanted_node(self, guest: SimGuest, service: Service) -> str | None:
        """Where the manager wants the service to be, None when it knows no place for it."""
        online = {name for name in self._world.nodes if self._is_open(name)}
        rule = next((rule for rule in self.node_affinity if guest.vmid in rule.vmids), None)
        allowed, first = online, online
        if rule is not None:
            choices = {name: priority for name, priority in rule.nodes if name in online}
            first = {name for name, priority in choices.items() if priority == max(choices.values())} or (set() if rule.strict else online)
            allowed = set(choices) if rule.strict else online
        taken = {place for other in self._bound(guest.vmid, together=False) for place in self._places(other)}
        partners = Counter(place for other in self._bound(guest.vmid, together=True) for place in self._places(other))
        fits = service.node not in taken and (not partners or service.node in partners)
        if not service.failback and service.node in allowed and fits:
            return service.node
        first = first - taken
        with_partners = [name for name in sorted(partners, key=lambda name: (-partners[name], name)) if name in first]
        first = {with_partners[0]} if with_partners else first
        if service.maintenance_node in first:
            return service.maintenance_node
        if service.node in first:
            return service.node
        use = Counter(place for other in self.services for place in self._places(other))
        return min(first, key=lambda name: (use[name], name), default=None)

    def _places(self, vmid: int) -> set[str]:
        service = self.services[vmid]
        return {service.target or service.node}

    # the local resource managers

    def _move(self, guest: SimGuest, service: Service, target: str) -> None:
        guest.ha = "relocate" if guest.type is GuestType.LXC or not guest.has_process else "migrate"
        service.target, service.result = target, None
        self._world.timeline.after(LOCAL_S, lambda: self._work(guest, service))

    def _work(self, guest: SimGuest, service: Service) -> None:
        """The turn of the node's local manager: begin the migration when it has a worker free."""
        world = self._world
        target, node = service.target, world.nodes[service.node]
        if target is None or guest.vmid not in self.services or not node.online:
            return
        busy = [other for other, known in self.services.items() if known.node == node.name and other in world.migrations.under_way]
        if len(busy) >= MOST_WORKERS:
            world.timeline.after(LOCAL_S, lambda: self._work(guest, service))
            return
        if guest.lock is not None:
            self.migration_ended(guest, is_good=False)
            return
        failure, service.failure = service.failure, None
        if guest.type is GuestType.QEMU or not guest.has_process:
            world.migrations.begin(guest, target, ROOT, failure, None)
            return
        task = world.tasks.begin(node, "vzshutdown", str(guest.vmid), ROOT)
        world.hook(guest, node.name, "pre-stop")

        def stopped() -> None:
            if not node.online or service.target != target or guest.vmid not in self.services:
                return
            world.settle(node.name)
            guest.status = "stopped"
            world.hook(guest, node.name, "post-stop")
            world.tasks.end(node, task, "OK")
            world.migrations.begin(guest, target, ROOT, failure, None)

        world.timeline.after(guest.shutdown_s, stopped)

# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated day from a seed: a small cluster, its guests' loads, what people do, and what goes wrong. Then an hour of calm, in which
all that is left must come right."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

from agent.core.cluster import GIB
from agent.core.settings import Settings
from agent.core.settings_check import check
from agent.sim.inventory import AgentWish, SimGuest, SimNode
from agent.sim.migrations import FailureKind
from agent.sim.world import World
from agent.simulation import UNHURRIED_CADENCE, UNHURRIED_TIMES
from tests.chaos.faults import FAULTS, LOADS, draw
from tests.chaos.machine import Machine
from tests.chaos.witness import DayWitness

# Fewer looks than usual, so that days are lived quickly: what is decided stays the same, reactions are up to 15 s later.
TIMES = replace(UNHURRIED_TIMES, look_every_s=15.0, renew_every_s=15.0)
CADENCE = replace(UNHURRIED_CADENCE, signs_s=15.0)

DAY_S = 86400.0
CALM_S = 3600.0  # the end of the day, in which nothing more goes wrong
FAULT_EVERY_S, LOAD_EVERY_S = 700.0, 400.0  # on the mean
UNLOCK_S = 3600.0  # somebody sees a lock that a dead worker left, and removes it
DRAIN_AT_S, DRAIN_S = 900.0, 1800.0  # in the calm: when a node is flagged, and how long it may take to leave it
NODE_CORES, NODE_GIB = 16, 64
MODEST = (0.2, 0.4)  # of its cores and memory, for each guest in the calm
SIZES = ((1, 2), (2, 4), (2, 8), (4, 8), (4, 12))


class WatchedWorld(World):
    """A world that counts the files that hooks leave."""

    hooked: Counter[tuple[int, str]]

    def leave_event(self, node: str, name: str) -> None:
        """See `World.leave_event`."""
        vmid, _, phase = name.partition(".")
        if vmid.isdecimal():
            self.hooked[int(vmid), phase.split(".")[0]] += 1
        super().leave_event(node, name)


def settings() -> Settings:
    """Little waiting and few brakes, so that a day holds much."""
    found = check({
        "triggers": {"warmup_s": 60, "first_observe_s": 0, "reconcile_s": 900},
        "balance": {"guest_cooldown_s": 1800, "max_moves_per_hour": 60},
    })  # fmt: skip
    assert isinstance(found, Settings), found
    return found


def cluster(rng: random.Random, count: int) -> WatchedWorld:
    """So many nodes, half full, with guests of all kinds."""
    nodes = [SimNode(f"pve{number}", float(NODE_CORES), NODE_GIB * GIB) for number in range(1, count + 1)]
    guests = []
    for vmid in range(101, 101 + 4 * count):
        cores, gib = rng.choice(SIZES)
        guests.append(
            SimGuest(
                vmid,
                rng.choice(nodes).name,
                type=rng.choice(("qemu", "qemu", "qemu", "lxc")),  # type: ignore[arg-type]
                cores=float(cores),
                memory_bytes=gib * GIB,
                used_cores=rng.uniform(0.1, 0.8) * cores,
                used_memory_bytes=int(rng.uniform(0.3, 0.9) * gib * GIB),
                status=rng.choice(("running", "running", "running", "running", "stopped")),
                hook=rng.random() < 0.7,
                tags=(rng.choice(("plb_anti_affinity_y", "plb_affinity_x")),) if rng.random() < 0.15 else (),
            )
        )
    WatchedWorld.hooked = Counter()
    return WatchedWorld(nodes, guests)


class Day:
    """One seed's day, or a longer time: `run` lives it, `problems` is what must not have been, `hits` how often each kind of thing befell
    it. Without a number of nodes there are three or four."""

    def __init__(self, seed: int, *, days: float = 1.0, nodes: int | None = None) -> None:
        self.seed, self.length_s = seed, days * DAY_S
        self.rng = random.Random(seed)
        count = self.rng.choice((3, 3, 3, 4))
        self.world = cluster(self.rng, nodes or count)
        self.machine = Machine(self.world, settings(), times=TIMES, cadence=CADENCE, rng=self.rng)
        self.hits: Counter[str] = Counter()
        self.flagged: dict[str, float] = {}
        self.touches: dict[int, list[float]] = defaultdict(list)  # when somebody started, stopped or changed the guest
        self.unsettled: dict[str, float] = defaultdict(lambda: -1e9)  # when what a node has to bear changed last
        self.unsettled_guests: dict[int, float] = {}  # the same of guests, who take it along when they move
        self.tagged: dict[int, float] = {}
        self.clocks_set: list[float] = []
        self.forced_s = -1e9  # when somebody asked to balance past cooldowns
        self.tasks_lost_s = -1e9
        self.epochs = 0
        self.requests = 0
        self.is_calm = False
        self._failures: Counter[FailureKind] = Counter()
        self.witness = DayWitness(self)
        self._late: list[str] = []

    def run(self, until_s: float | None = None) -> None:
        """Live until then; the calm is the day's last hour."""
        self._next(FAULT_EVERY_S, self._fault)
        self._next(LOAD_EVERY_S, self._load)
        self.later(UNLOCK_S, self._unlock)
        self.machine.at(self.length_s - CALM_S, self._begin_calm)
        self.machine.run(self.length_s if until_s is None else until_s, self._look)

    def problems(self) -> Iterator[str]:
        """What must not have been."""
        yield from self.witness.all_problems()
        yield from self._late

    def _look(self) -> None:
        self._see_failures()
        self.witness.look()

    # what happens when

    def _next(self, mean_s: float, act: Callable[[], None]) -> None:
        def happen() -> None:
            if not self.is_calm:
                act()
                self._next(mean_s, act)

        self.later(self.rng.uniform(0.2, 1.8) * mean_s, happen)

    def _fault(self) -> None:
        FAULTS[draw(self.rng, FAULTS)][1](self)

    def _load(self) -> None:
        LOADS[draw(self.rng, LOADS)][1](self)

    def _unlock(self) -> None:
        for guest in self.world.guests.values():
            if guest.lock == "migrate" and guest.vmid not in self.world.migrations.under_way:
                self.world.lock_guest(guest.vmid, None)
        self.later(UNLOCK_S, self._unlock)

    def _see_failures(self) -> None:
        """Count what went wrong with migrations since the last look."""
        left: Counter[FailureKind] = Counter()
        for failure in self.world.migrations.failures:
            left[failure.kind] += failure.times
        if left != self._failures:
            for kind in FailureKind:
                if (times := self._failures[kind] - left[kind]) > 0 and not self.is_calm:
                    self.hits[f"migration {kind.value}"] += times
                    if kind is FailureKind.STUCK:
                        self.later(self.rng.uniform(200.0, 2000.0), self._end_stuck)
            self._failures = left

    def _end_stuck(self) -> None:
        for vmid, migration in list(self.world.migrations.under_way.items()):
            if migration.failure is not None and migration.failure.kind is FailureKind.STUCK:
                self.world.end_migration(vmid)

    def _begin_calm(self) -> None:
        """All that was broken is mended."""
        self.is_calm, world = True, self.world
        self.machine.traps.clear()
        self.machine.slow.clear()
        world.migrations.failures.clear()
        self.machine.settings.error = None
        self.heal_network()
        world.hang_ha_manager(hanging=False)
        world.clear_flag("pve77")
        for name, node in world.nodes.items():
            self._clear_flags(name)
            world.power_on_node(name)
            self.start_agent(name)
            world.cut_api(name, cut=False)
            world.fail_api_calls(name, 0)
            world.fill_disk(name, full=False)
            world.stop_statistics(name, stopped=False)
            node.pmxcfs_failures.clear()
        self._end_stuck()
        for guest in world.guests.values():
            self.set_load(guest, *MODEST)  # two nodes have room for all
        self.later(DRAIN_AT_S / 2, self._unlock)
        self.later(DRAIN_AT_S, self._flag_in_calm)

    def _flag_in_calm(self) -> None:
        name = self.node().name
        self.world.set_flag(name, "in the calm")
        self.later(DRAIN_S, lambda: self._late.extend(self.witness.not_answered(name)))

    # what faults and loads need

    def hit(self, what: str) -> None:
        """That has befallen the cluster now."""
        self.hits[what] += 1
        self.machine.hit(what)

    def later(self, after_s: float, act: Callable[[], None]) -> None:
        """Have it happen so many seconds from now."""
        self.world.timeline.after(after_s, act)

    def leader(self) -> str | None:
        """The node that has the lock, when it is up."""
        name = self.world.lock_holder()
        return name if name is not None and self.world.nodes[name].online else None

    def follower(self) -> str | None:
        """A node that runs an agent and has not the lock."""
        leader = self.leader()
        names = [name for name in self.world.nodes if name != leader and self.machine.is_at_work(name)]
        return self.rng.choice(names) if names else None

    def node(self) -> SimNode:
        """Any node."""
        return self.rng.choice(list(self.world.nodes.values()))

    def guest(self) -> SimGuest | None:
        """A guest with which somebody can do something: its node is up, and nothing is being done with it."""
        world = self.world
        guests = [
            guest
            for vmid, guest in sorted(world.guests.items())
            if world.nodes[guest.node].online and guest.lock is None and vmid not in world.migrations.under_way
        ]
        return self.rng.choice(guests) if guests else None

    def was_touched(self, vmid: int, from_s: float, to_s: float) -> bool:
        """True when somebody may have done something with the guest in that time."""
        return any(from_s <= at_s <= to_s for at_s in self.touches[vmid])

    def touch(self, vmid: int) -> None:
        """Somebody does something with the guest now."""
        self.touches[vmid].append(self.world.now_s)
        self.unsettled_guests[vmid] = self.world.now_s
        guest = self.world.guests.get(vmid)
        if guest is not None:
            self.unsettled[guest.node] = self.world.now_s

    def touch_all(self, node: str) -> None:
        """The node's guests start or stop with it."""
        self.unsettled[node] = self.world.now_s
        for vmid in self.world.residents(node):
            self.touches[vmid].append(self.world.now_s)
            self.unsettled_guests[vmid] = self.world.now_s

    def start(self, guest: SimGuest) -> None:
        """Somebody starts the guest."""
        self.touch(guest.vmid)
        self.world.start_guest(guest.vmid)

    def toggle(self, guest: SimGuest, *, inside: bool) -> None:
        """Somebody stops a guest that runs, or starts one that does not."""
        if guest.has_process:
            self.touch(guest.vmid)
            self.world.stop_guest(guest.vmid, inside=inside)
        else:
            self.start(guest)

    def set_load(self, guest: SimGuest, cpu_fraction: float, memory_fraction: float) -> None:
        """The guest takes so much of what it has from now on."""
        self.unsettled[guest.node] = self.unsettled_guests[guest.vmid] = self.world.now_s
        self.world.set_load(guest.vmid, cpu_fraction * guest.cores, int(memory_fraction * guest.memory_bytes))

    def leave_event(self, node: str, name: str) -> None:
        """Somebody or something leaves a file in the node's inbox."""
        self.world.leave_event(node, name)

    def edit_settings(self) -> None:
        """An admin changes how much may be done at a time."""
        now = self.machine.settings.settings
        moves, total = self.rng.choice((2, 4, 8)), self.rng.choice((1, 2, 4))
        self.machine.settings.settings = replace(
            now, balance=replace(now.balance, max_moves_per_pass=moves), migration=replace(now.migration, parallel_total=total)
        )

    def flags_left(self) -> int:
        """How many more nodes may be flagged."""
        return 1 - len(self.flagged)

    def flag_a_node(self, for_s: float) -> None:
        """Somebody wants a node empty for so long."""
        if self.is_calm or self.flags_left() <= 0:
            return
        name = self.node().name
        self.hit("flag set")
        self.flagged[name] = self.world.now_s
        self.world.set_flag(name, "a new kernel")
        self.later(for_s, lambda: self.clear_flags(name))

    def clear_flags(self, name: str) -> None:
        """The node is wanted full again; in the calm that is over already, and the flag another."""
        if not self.is_calm:
            self._clear_flags(name)

    def _clear_flags(self, name: str) -> None:
        self.flagged.pop(name, None)
        self.world.clear_flag(name)
        self.world.clear_local_flag(name)
        self.world.request_ha_maintenance(name, wanted=False)

    def is_whole(self) -> bool:
        """True when all nodes are up and see each other."""
        nodes = list(self.world.nodes.values())
        return all(node.online and node.partition is nodes[0].partition for node in nodes)

    def can_lose(self, name: str) -> bool:
        """True when the others have a quorum without that node."""
        return self.is_whole() and self.world.nodes[name].mounted

    def cut(self, name: str, for_s: float) -> bool:
        """The node loses the network for so long; False when it, or another, has lost it already."""
        if not self.is_whole():
            return False
        self.world.cut_node(name)
        self.later(for_s, self.heal_network)
        return True

    def heal_network(self) -> None:
        """All nodes see each other again."""
        self.world.heal()

    def power_off(self, name: str, for_s: float) -> bool:
        """The node dies and comes back after that time; False when it is down already."""
        if not self.world.nodes[name].online:
            return False
        self.touch_all(name)
        self.world.power_off_node(name)

        def back() -> None:
            self.touch_all(name)
            self.world.power_on_node(name)

        self.later(for_s, back)
        return True

    def set_clock(self, name: str, by_s: float) -> None:
        """Somebody sets the node's clock."""
        self.clocks_set.append(self.world.now_s)
        self.world.step_wall_clock(name, by_s)

    def remove_lock(self) -> bool:
        """Somebody removes the lock's directory; False when there is none."""
        if self.world.lock_holder() is None:
            return False
        self.world.remove_lock()
        return True

    def start_agent(self, name: str) -> None:
        """systemctl start."""
        if self.world.nodes[name].online and self.world.nodes[name].agent is not AgentWish.RUN:
            self.world.start_agent(name)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the real agents on a simulated cluster: steps each when something is due or has arrived, and jumps over the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.core.leadership import LockTimes
from agent.core.settings import Settings
from agent.daemon import inputs, outputs
from agent.daemon.agent import Agent
from agent.daemon.identity import Cadence, Identity
from agent.daemon.inputs import Now
from agent.daemon.outside import Ports
from agent.daemon.perform import Performer
from agent.sim.ports import ports_of
from agent.sim.world import World

# For simulations of days and weeks: a tenth of the looks, and so a tenth of the time. Reactions are up to 10 s later.
UNHURRIED_TIMES = LockTimes(look_every_s=10.0)
UNHURRIED_CADENCE = Cadence(signs_s=10.0, statistics_s=30.0, settings_s=600.0, status_s=3600.0, inbox_s=60.0, facts_s=3600.0)
MOST_ROUNDS = 200  # of one agent at one instant: more is an agent that answers itself for ever


class SimSettings:
    """The configuration of the simulated cluster: one value for all nodes, which a scenario may change or break."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.error: Exception | None = None

    def read(self) -> Settings:
        """See `agent.ports.SettingsSource`."""
        if self.error is not None:
            raise self.error
        return self.settings


@dataclass(slots=True)
class _Process:
    """One run of an agent on a node."""

    agent: Agent
    performer: Performer
    starts: int
    reloads: int
    boots: int
    wake_s: float
    arrived: deque[inputs.Input] = field(default_factory=deque)


class Simulation:
    """A world with an agent on each node that wants one.

    Deterministic: nodes are stepped in order of name, and what an agent asks for is done at the instant it asks.

    Units:   simulated seconds since the world began.
    """

    def __init__(self, world: World, settings: Settings, *, times: LockTimes | None = None, cadence: Cadence | None = None) -> None:
        self.world = world
        self.settings = SimSettings(settings)
        self._times = times or LockTimes()
        self._cadence = cadence or Cadence()
        self._processes: dict[str, _Process] = {}
        self._seen_starts: dict[str, int] = {}
        self._planned: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, at_s: float, act: Callable[[], None]) -> None:
        """Have somebody do something at that second, before the agents see it."""
        self.world.timeline.at(at_s, act)

    def agent(self, node: str) -> Agent | None:
        """The agent that runs on the node now."""
        process = self._processes.get(node)
        return None if process is None else process.agent

    def run(self, until_s: float, watch: Callable[[], None] | None = None) -> None:
        """Let the cluster live until then; `watch` is called after each instant at which something happened."""
        world = self.world
        while True:
            self._start_and_end()
            for name in sorted(self._processes):
                self._let_run(name)
            if watch is not None:
                watch()
            if world.now_s >= until_s:
                return
            due = [process.wake_s for name, process in self._processes.items() if not self._is_frozen(name)]
            due += [world.nodes[name].agent_frozen_until_s for name in self._processes if self._is_frozen(name)]
            change = world.next_change_s()
            if change is not None:
                due.append(change)
            world.advance(max(world.now_s, min([until_s, *due])))

    def _is_frozen(self, name: str) -> bool:
        return self.world.nodes[name].agent_frozen_until_s > self.world.now_s

    def _start_and_end(self) -> None:
        world = self.world
        wanted = set(world.agents_wanted())
        for name in sorted(set(self._processes) | wanted):
            node, process = world.nodes[name], self._processes.get(name)
            if process is not None and (process.boots != node.boots or not node.online or node.agent.value == "kill"):
                del self._processes[name]
                process = None
            elif process is not None and (name not in wanted or process.starts != node.agent_starts):
                process.arrived.append(inputs.StopAsked())
            elif process is not None and process.reloads != node.agent_reloads:
                process.reloads = node.agent_reloads
                process.arrived.append(inputs.ReloadAsked())
            if process is None and name in wanted:
                self._processes[name] = self._started(name)

    def _ports(self, name: str) -> Ports:
        """What an agent on that node has of the world outside."""
        given = ports_of(self.world, name)
        return Ports(
            clock=given.clock,
            lock=given.lock,
            files=given.files,
            api=lambda: given.api,
            inbox=given.inbox,
            facts=given.facts,
            ha_nodes=given.ha_nodes,
            local=given.local_files,
            settings=self.settings,
            journal=given.journal,
            notifier=given.notifier,
        )

    def _started(self, name: str) -> _Process:
        world, node = self.world, self.world.nodes[name]
        serial = self._seen_starts[name] = self._seen_starts.get(name, 0) + 1
        identity = Identity(name, f"{name}-{serial}", f"{name}-boot-{node.boots}")
        agent = Agent(identity, self._first_settings(), self._times, self._now(name), self._cadence)
        return _Process(agent, Performer(self._ports(name), self._times), node.agent_starts, node.agent_reloads, node.boots, world.now_s)

    def _first_settings(self) -> Settings:
        return self.settings.settings

    def _now(self, name: str) -> Now:
        node = self.world.nodes[name]
        return Now(node.boottime_s(self.world.now_s), node.wall_s(self.world.now_s))

    def _let_run(self, name: str) -> None:
        """Step the agent until it has nothing more to do at this instant."""
        process, world = self._processes[name], self.world
        node = world.nodes[name]
        if self._is_frozen(name):
            return
        if node.inbox or node.requests:
            process.arrived.append(inputs.BellRang())
        if not process.arrived and world.now_s < process.wake_s:
            return
        for _ in range(MOST_ROUNDS):
            taken = tuple(process.arrived)
            process.arrived.clear()
            now = self._now(name)
            asked, next_boot_s = process.agent.step(now, taken)
            process.wake_s = world.now_s + max(0.0, next_boot_s - now.boot_s)
            process.arrived.extend(self._answers(process, asked))
            if any(isinstance(output, outputs.Exit) for output in asked):
                del self._processes[name]
                return
            if not process.arrived:
                return
        raise RuntimeError(f"the agent on {name} does not come to rest at {world.now_s} s")

    def _answers(self, process: _Process, asked: Iterable[outputs.Output]) -> Iterable[inputs.Input]:
        for output in asked:
            answer = process.performer.perform(output)
            if answer is not None:
                yield answer

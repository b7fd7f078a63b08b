# SPDX-License-Identifier: GPL-3.0-or-later
"""A scenario's folder as a simulation that is ready to run: cluster.yaml, and if they are there events.yaml and settings.yaml."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent import wiring
from agent.commands.wrong_use import WrongUseError
from agent.core.journal import Level
from agent.core.settings import Settings
from agent.core.settings_check import check
from agent.ports import OutsideError
from agent.sim.cluster_file import ScenarioError, read_cluster
from agent.sim.records import JournalLine
from agent.sim.scenario_events import ScenarioEvent, read_events
from agent.sim.world import World
from agent.simulation import Simulation


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a folder describes.

    Shape:   `title` is the first paragraph of its README, empty when there is none; `events` are in the simulation already.
    """

    title: str
    world: World
    settings: Settings
    events: tuple[ScenarioEvent, ...]
    simulation: Simulation

    @property
    def last_event_s(self) -> float:
        """When the last event is."""
        return max((event.at_s for event in self.events), default=0.0)

    def new_lines(self, seen: int) -> tuple[JournalLine, ...]:
        """The journal from that line on, as far as the settings' level lets it through."""
        level = Level[self.settings.log.level.name]
        return tuple(line for line in self.world.journal[seen:] if line.record.level <= level)


def read_scenario(folder: Path) -> Scenario:
    """Return the scenario of a folder.

    Raises:  WrongUseError in one line that names file and place.
    """
    if not folder.is_dir():
        raise WrongUseError(f"{folder}: there is no such folder")
    try:
        world = read_cluster(wiring.read_yaml(str(folder / "cluster.yaml")))
        events = read_events(wiring.read_yaml(str(folder / "events.yaml"), missing_ok=True))
        settings = check(wiring.read_yaml(str(folder / "settings.yaml"), missing_ok=True))
    except ScenarioError as error:
        raise WrongUseError(f"{folder}: {error}") from None
    except OutsideError as error:
        raise WrongUseError(str(error), getattr(error, "hint", "")) from None
    if not isinstance(settings, Settings):
        raise WrongUseError("; ".join(f"{folder}/settings.yaml: {problem.line}" for problem in settings))
    simulation = Simulation(world, settings)
    for event in events:
        simulation.at(event.at_s, _told(event, world))
    return Scenario(_title(folder), world, settings, events, simulation)


def _told(event: ScenarioEvent, world: World) -> Callable[[], None]:
    """The event's act, which names the event when it cannot be done."""

    def act() -> None:
        try:
            event.act(world)
        except (KeyError, ValueError) as error:
            raise WrongUseError(f"events: {event.words} at {event.at_s:g} s cannot be done: {error}") from None

    return act


def _title(folder: Path) -> str:
    try:
        return (folder / "README").read_text(encoding="utf-8").strip().partition("\n\n")[0]
    except (OSError, UnicodeDecodeError):
        return ""


def journal_text(line: JournalLine) -> str:
    """A line of the journal for people: simulated time, node, text."""
    word = {Level.ERROR: "error: ", Level.WARNING: "warning: "}.get(line.record.level, "")
    return f"{line.at_s:9.1f} s  {line.node}  {word}{line.record.text}"

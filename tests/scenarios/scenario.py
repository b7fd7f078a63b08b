# SPDX-License-Identifier: GPL-3.0-or-later
"""A scenario's folder, and one run of it: the real agents on the simulated cluster that the folder describes.

cluster.yaml, events.yaml and settings.yaml are what `proxlb-agent simulate` takes; checks.yaml is the tests' own:

    until_s: 200            # when the run ends
    pace: unhurried         # a tenth of the looks, for days; lazy: less still, for weeks; both are run once only
    kill_everywhere: true   # run again and again, the agent killed behind each line of an action, started 5 s later
    settings_changes: [{at_s: 60, broken: text}, {at_s: 90, to: {mode: rules}}]
    must: ["regex", {line: regex, from_s: 20, to_s: 30, times: 1}]    # searched in `  22.0  pve1  notice   moving ...`
    must_not: ["regex"]
    placements: {101: pve2}         # at the end
    placements_if_killed: {}        # the same for those runs, as a gate that was open before a kill may be closed after it
    sent_if_killed: [105]           # guests that may be sent then besides, as more is known of their load by that time
    posts: {101: 1}                 # requests to migrate, of every guest that had one; or most_posts: 5
    questions: 2                    # how often PVE was asked whether a guest may migrate
    stopped: [105]                  # who does not run at the end and did at the start
    answers: {r1: "regex"}          # of requests, in history.json
    leader: pve1                    # who has the lock at the end
    most_requests: 100              # to PVE's API, of all agents together
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from agent import wiring
from agent.core.codec import from_json
from agent.core.documents import HistoryFile, parse
from agent.core.journal import Level, MessageId, Record
from agent.core.json_types import JsonObject
from agent.core.leadership import LockTimes
from agent.core.settings import Settings
from agent.core.settings_check import check
from agent.daemon.identity import Cadence
from agent.ports import PermanentError
from agent.sim.cluster_file import read_cluster
from agent.sim.records import JournalLine
from agent.sim.scenario_events import read_events
from agent.sim.world import World
from agent.simulation import UNHURRIED_CADENCE, UNHURRIED_TIMES, Simulation
from tests.scenarios.witness import Witness

RESTART_AFTER_S = 5.0  # what systemd takes to start the agent again after it was killed
ACTIONS = frozenset({MessageId.MOVE, MessageId.OUTCOME, MessageId.DECISION})


class Pace(StrEnum):
    """How often the agents look at what does not announce itself."""

    USUAL = "usual"
    UNHURRIED = "unhurried"
    LAZY = "lazy"


_PACES: dict[Pace, tuple[LockTimes | None, Cadence | None]] = {
    Pace.USUAL: (None, None),
    Pace.UNHURRIED: (UNHURRIED_TIMES, UNHURRIED_CADENCE),
    Pace.LAZY: (
        replace(UNHURRIED_TIMES, look_every_s=30.0, renew_every_s=30.0),
        replace(UNHURRIED_CADENCE, signs_s=60.0, statistics_s=40.0, inbox_s=300.0),
    ),
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line that must be in the journal; `times` None: once or more, 0: not then."""

    line: str
    from_s: float = 0.0
    to_s: float = float("inf")
    times: int | None = None


@dataclass(frozen=True, slots=True)
class SettingsChange:
    """Somebody edits the configuration: `to` is a document over the scenario's own settings, `broken` what is wrong with it."""

    at_s: float
    to: JsonObject | None = None
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class Checks:
    """checks.yaml."""

    until_s: float
    pace: Pace = Pace.USUAL
    kill_everywhere: bool = False
    settings_changes: tuple[SettingsChange, ...] = ()
    must: tuple[Line, ...] = ()
    must_not: tuple[str, ...] = ()
    placements: Mapping[int, str] = field(default_factory=dict)
    placements_if_killed: Mapping[int, str] | None = None
    sent_if_killed: tuple[int, ...] = ()
    posts: Mapping[int, int] | None = None
    most_posts: int | None = None
    questions: int | None = None
    stopped: tuple[int, ...] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    leader: str | None = None
    most_requests: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a run."""

    world: World
    settings: Settings
    simulation: Simulation
    witness: Witness

    @property
    def journal(self) -> str:
        """All that people read: the journal without what is for debugging."""
        return "".join(text(line) for line in self.world.journal if line.record.level <= Level.INFO)

    @property
    def everything(self) -> str:
        """All that must come out the same again."""
        journal = "".join(text(line) for line in self.world.journal)
        posts = "".join(f"{post}\n" for post in self.world.post_record)
        return journal + posts + f"{sorted(self.world.api_requests.items())}\n{sorted(self.world.main.files.items())}\n"

    @property
    def history(self) -> HistoryFile | None:
        """history.json as it is in the end."""
        content = self.world.main.files.get("proxlb/history.json")
        return None if content is None else parse(HistoryFile, content)


def text(line: JournalLine) -> str:
    """A line as it stands in journal.expect; what has several lines is indented."""
    words = line.record.text.replace("\n", "\n        ")
    return f"{line.at_s:9.1f}  {line.node}  {line.record.level.name.lower():<7}  {words}\n"


def read_checks(folder: Path) -> Checks:
    """The folder's checks.yaml."""
    document = wiring.read_yaml(str(folder / "checks.yaml"))
    if isinstance(document, dict) and isinstance(wanted := document.get("must"), list):
        document = {**document, "must": [{"line": line} if isinstance(line, str) else line for line in wanted]}
    return from_json(Checks, document)


def run(folder: Path, checks: Checks, *, kill_after: int | None = None, further_s: float = 0.0) -> Run:
    """Run the scenario; `kill_after`: the agent that writes that many lines of actions is killed right behind the last of them."""
    world = read_cluster(wiring.read_yaml(str(folder / "cluster.yaml")))
    own = wiring.read_yaml(str(folder / "settings.yaml"), missing_ok=True)
    settings = _settings(own)
    times, cadence = _PACES[checks.pace]
    simulation = _Killing(world, settings, times=times, cadence=cadence)
    for event in read_events(wiring.read_yaml(str(folder / "events.yaml"), missing_ok=True)):
        simulation.at(event.at_s, lambda act=event.act: act(world))
    for change in checks.settings_changes:
        simulation.at(change.at_s, lambda change=change: _change(simulation, own, change))
    if kill_after is not None:
        world.journal = _Deadly(world, kill_after)
    witness = Witness(world, settings)
    simulation.run(checks.until_s + further_s, witness.look)
    return Run(world, settings, simulation, witness)


def actions_in(run: Run) -> int:
    """How many lines of actions the journal has."""
    return sum(_is_action(line.record) for line in run.world.journal)


def _settings(document: object) -> Settings:
    settings = check(document)  # type: ignore[arg-type]
    assert isinstance(settings, Settings), [problem.line for problem in settings]
    return settings


def _change(simulation: Simulation, own: object, change: SettingsChange) -> None:
    simulation.settings.error = None if change.broken is None else PermanentError(change.broken)
    if change.to is not None:
        simulation.settings.settings = _settings({**(own if isinstance(own, dict) else {}), **change.to})


def _is_action(record: Record) -> bool:
    return record.message_id in ACTIONS and record.level <= Level.INFO


class _KilledError(BaseException):
    """kill -9: nothing in the agent catches it."""


class _Deadly(list[JournalLine]):
    """A journal that kills who writes the n-th line of an action, before it does anything more."""

    def __init__(self, world: World, after: int) -> None:
        super().__init__(world.journal)
        self._world, self._left = world, after

    def append(self, line: JournalLine) -> None:
        super().append(line)
        if not _is_action(line.record):
            return
        self._left -= 1
        if self._left == 0:
            self._world.kill_agent(line.node)
            self._world.timeline.after(RESTART_AFTER_S, lambda: self._world.start_agent(line.node))
            raise _KilledError


class _Killing(Simulation):
    """A simulation in which an agent can be killed in the middle of what it does at one instant."""

    def _let_run(self, name: str) -> None:
        try:
            super()._let_run(name)
        except _KilledError:
            del self._processes[name]

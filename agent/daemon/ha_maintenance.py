# SPDX-License-Identifier: GPL-3.0-or-later
"""The leader's requests for the HA manager's maintenance: handed over when they are written down, followed, and taken back."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from agent.core.cluster import Snapshot
from agent.core.documents import HaAsk, HaAskState, LeaderFile
from agent.core.ha_maintenance import TAKEN_BACK, Outcome, asked_anew, asked_nodes, bound_for, given_up, judged, leaving, ours
from agent.core.ha_moves import MOVING_STATES
from agent.core.journal import Level, MessageId, Record
from agent.core.settings import Settings
from agent.daemon.inputs import HaMaintenanceAnswer, Now
from agent.daemon.outputs import AskHaMaintenance, Output, Say

LOOK_S = 10.0  # the HA manager's round
SLOW_LOOK_S = 60.0
QUICK_S = 600.0  # after so long without an end, it is looked at more rarely
AGAIN_S = 10.0
MOST_TRIES = 3  # for the request; what takes it back is tried until it succeeds


_LET_GO = frozenset({HaAskState.GIVEN_UP, HaAskState.WITHDRAWN})


class HaMaintenance:
    """The requests of all nodes. `asks` belong into history.json, and `due` goes out when they stand there.

    Shape:   `came_back` are nodes whose maintenance the HA manager has ended, `let_go` those that it does not empty after all; whoever
             takes note of them takes them out.
    """

    def __init__(self, asks: Iterable[HaAsk], now: Now) -> None:
        self._asks: dict[str, HaAsk] = {ask.node: ask for ask in asks}
        self._sent_s: dict[tuple[str, bool], float] = {}
        self._due: dict[str, bool] = {}
        self._tries: dict[str, int] = {}
        self._again_s: dict[str, float] = {}
        self._said: dict[str, str] = {}
        self._since_s: dict[str, float] = {}
        self._coming_s: dict[str, float] = {}
        self.look_at_s: float | None = now.boot_s if self._asks else None
        self._held: set[str] = set()
        self.came_back: list[str] = []
        self.let_go: list[str] = []

    @property
    def asks(self) -> tuple[HaAsk, ...]:
        """All requests that are not over, by node."""
        return tuple(ask for _, ask in sorted(self._asks.items()))

    @property
    def ours(self) -> frozenset[str]:
        """The nodes whose request is this one's and no admin's."""
        return ours(self._asks.values())

    def on_look(
        self, snapshot: Snapshot, wanted: AbstractSet[str], settings: Settings, now: Now, why_not: str | None = None
    ) -> list[Output]:
        """Take a look as PVE answered it; returns what to say. `wanted` are the nodes that flags want empty.

        Who may not act, for what `why_not` says, neither asks nor takes back: both move guests.
        """
        may_act = why_not is None
        requested, outputs = asked_nodes(snapshot), list[Output]()
        for node in sorted(wanted - self._asks.keys()):
            if may_act and (asked := asked_anew(snapshot, node, settings, now.wall_s)) is not None:
                outputs += self._put(node, asked, now)
        for node, ask in sorted(self._asks.items()):
            key = (node, ask.state not in TAKEN_BACK)
            sent = self._sent_s.get(key)
            outcome = judged(ask, snapshot, requested, node in wanted, None if sent is None else now.boot_s - sent)
            if outcome.hand_over is False and why_not is not None and node not in self._held:
                self._held.add(node)
                text = f"the HA manager's maintenance of {node} stays for now ({why_not}), and is taken back as soon as guests may be moved"
                outputs.append(Say(Record(Level.NOTICE, MessageId.MAINTENANCE, text, source=node)))
            if outcome.hand_over is not None and (not may_act or now.boot_s < self._again_s.get(node, -1e9)):
                continue
            self._held.discard(node)
            outputs += self._put(node, outcome, now)
        self._plan_look(snapshot, now)
        return outputs

    def _put(self, node: str, outcome: Outcome, now: Now) -> list[Output]:
        if outcome.ask is None:
            was = self._asks.pop(node)
            for known in (self._due, self._tries, self._again_s, self._said, self._since_s):
                known.pop(node, None)
            self._sent_s.pop((node, True), None)
            self._sent_s.pop((node, False), None)
            if was.state is HaAskState.RETURNING:
                self.came_back.append(node)
            return []
        before = self._asks.get(node)
        if outcome.ask.state in _LET_GO and before is not None and before.state not in _LET_GO:
            self.let_go.append(node)
        if before is None or before.state is not outcome.ask.state:
            self._since_s[node] = now.boot_s
        self._asks[node] = outcome.ask
        if outcome.hand_over is not None:
            self._due[node] = outcome.hand_over
        if not outcome.text:
            return []
        level = Level.WARNING if outcome.is_warning else Level.NOTICE
        return [Say(Record(level, MessageId.MAINTENANCE, outcome.text, source=node))]

    def _plan_look(self, snapshot: Snapshot, now: Now) -> None:
        """Look again as long as something is on its way: nobody else tells of it."""
        waits = []
        for node, ask in self._asks.items():
            is_moving = ask.state is HaAskState.TAKEN and leaving(snapshot, node)
            if is_moving or ask.state is HaAskState.ASKED or ask.state in TAKEN_BACK:
                is_new = now.boot_s - self._since_s.get(node, now.boot_s) < QUICK_S
                waits.append(LOOK_S if is_new else SLOW_LOOK_S)
        for node in asked_nodes(snapshot) - self._asks.keys():  # an admin's own request
            since_s = self._since_s.setdefault(node, now.boot_s)
            if leaving(snapshot, node):
                waits.append(LOOK_S if now.boot_s - since_s < QUICK_S else SLOW_LOOK_S)
        waits += self._waits_for_the_way_home(snapshot, now)
        self.look_at_s = now.boot_s + min(waits) if waits else None

    def _waits_for_the_way_home(self, snapshot: Snapshot, now: Now) -> list[float]:
        """How long to wait for the HA manager to have brought its guests back to nodes that it may bring them to."""
        nodes = [node.name for node in snapshot.nodes if node.online and node.name not in snapshot.ha.closed_nodes]
        moving = {resource.target for resource in snapshot.ha.resources if resource.state in MOVING_STATES}  # there or not, it is at it
        coming = [name for name in nodes if name not in self._asks and (name in moving or bound_for(snapshot, name))]
        self._coming_s = {name: self._coming_s.get(name, now.boot_s) for name in coming}
        return [LOOK_S if now.boot_s - since_s < QUICK_S else SLOW_LOOK_S for since_s in self._coming_s.values()]

    def due(self, leader: LeaderFile, lease_until_s: float, now: Now) -> list[Output]:
        """The requests to hand over, now that they are written down."""
        due, self._due = self._due, {}
        outputs: list[Output] = []
        for node, wanted in sorted(due.items()):
            ask = self._asks.get(node)
            if ask is not None and (ask.state in TAKEN_BACK) is not wanted:
                self._sent_s[node, wanted] = now.boot_s
                outputs.append(AskHaMaintenance(node, wanted, leader, lease_until_s))
        return outputs

    @property
    def has_due(self) -> bool:
        """True while requests wait for being written down."""
        return bool(self._due)

    def on_answer(self, answer: HaMaintenanceAnswer, now: Now) -> list[Output]:
        """The request was handed over, or was not."""
        node, ask = answer.node, self._asks.get(answer.node)
        if ask is None or (ask.state in TAKEN_BACK) is answer.wanted:
            return []  # it is about what was asked for before
        if not answer.error:
            self._tries.pop(node, None)
            self._said.pop(node, None)
            return []
        self._sent_s.pop((node, answer.wanted), None)
        self._again_s[node] = now.boot_s + AGAIN_S
        self._tries[node] = self._tries.get(node, 0) + 1
        self.look_at_s = now.boot_s + AGAIN_S
        if answer.wanted and (answer.is_lasting or self._tries[node] >= MOST_TRIES):
            return self._put(node, given_up(ask, f"that failed ({answer.error})", is_lasting=answer.is_lasting), now)
        is_known = self._said.get(node) == answer.error
        self._said[node] = answer.error
        act = "be asked for" if answer.wanted else "be taken back"
        text = f"the HA manager's maintenance of {node} could not {act}, and is tried again: {answer.error}"
        return [] if is_known else [Say(Record(Level.WARNING, MessageId.OUTSIDE, text, source=node))]

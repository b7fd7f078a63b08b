# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated agents with threads that can be held up: calls that hang, answers that come late, and processes that are killed or
stopped in the middle of what they do.

An agent's outputs go to lanes as in `agent.service`. A call that cannot go on leaves its lane waiting; when it can, the output is
done again with the answers of the calls it had made already, so that to the agent it is one call that took long.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from agent.core.leadership import LockAct
from agent.daemon import inputs, outputs
from agent.daemon.outputs import Lane
from agent.daemon.outside import Ports
from agent.daemon.perform import Performer
from agent.ports import InDoubtError, OutsideError, TemporaryError
from agent.simulation import Simulation, _Process
from tests.fire.judge import POST_TIMEOUT_S, Judge

PMXCFS = frozenset({"lock", "files"})
CHANGES = frozenset({"take", "renew", "release", "write"})  # what pmxcfs may still carry out for a process that is gone
RESTART_S = 5.0  # what systemd takes to start the agent again after it was killed


class Point:
    """Where in its work an agent can be hit."""

    WRITTEN = "intent written, before its request"
    BEFORE_CHECK = "before the check that precedes a request"
    CHECKED = "between check and request"
    POSTED = "between a request and its answer"
    BEFORE_RMDIR = "before the lock is removed"
    RENEWED = "right after a renewal"
    TAKEN = "right after taking the lock"
    BEFORE_LEADING = "before leader.json names it"
    LOOKING = "between a look and its answer"


class Suspended(BaseException):
    """The call goes no further before that second; nothing in the agent catches it."""

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s


class Killed(BaseException):
    """kill -9 in the middle of a call; nothing in the agent catches it."""


@dataclass(slots=True)
class Trap:
    """Something that happens to the next agent that comes to that point; `act` is called with the node's name."""

    point: str
    until_s: float
    act: Callable[[str], None]


@dataclass(slots=True)
class Slowness:
    """How long a node's API takes: before it acts, and until its answer is back."""

    until_s: float
    before_s: float
    after_s: float


@dataclass(slots=True)
class Tape:
    """One output being done: the answers it has had so far."""

    node: str
    output: outputs.Output
    done: list[tuple[bool, Any]] = field(default_factory=list)
    at: int = 0
    met: set[tuple[int, str]] = field(default_factory=set)  # what has held up which call already
    pending: tuple[str, str, Callable[[], Any]] | None = None
    checked_s: float | None = None  # when it renewed the lock last
    hung: set[int] = field(default_factory=set)  # the calls that /etc/pve held up


class _Port:
    """A port whose calls go through a tape."""

    def __init__(self, machine: Machine, tape: Tape, kind: str, real: Any) -> None:
        self._machine, self._tape, self._kind, self._real = machine, tape, kind, real

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._real, name)
        return lambda *given: self._machine.call(self._tape, self._kind, name, lambda: call(*given), given)


class _Lane:
    """What waits to be done in a lane, and until when the first of it hangs."""

    def __init__(self) -> None:
        self.waiting: deque[Tape] = deque()
        self.blocked_s = -1.0


class Machine(Simulation):
    """A simulation whose agents can be disturbed in the middle of a call.

    Shape:   `traps` wait for an agent to come to their point; `strikes` is what went wrong when; `judge` knows every request to
             migrate that reached PVE.
    """

    def __init__(self, *given: Any, rng: random.Random, **named: Any) -> None:
        super().__init__(*given, **named)
        self._rng = rng
        self._lanes: dict[str, tuple[int, dict[Lane, _Lane]]] = {}
        self.traps: list[Trap] = []
        self.slow: dict[str, Slowness] = {}
        self.strikes: list[tuple[float, str]] = []
        self.sent_again: list[str] = []
        self.judge = Judge(self.world)

    def hit(self, what: str) -> None:
        """Something goes wrong now."""
        self.strikes.append((self.world.now_s, what))

    def is_at_work(self, name: str) -> bool:
        """True when an agent runs there that is not stopped."""
        return name in self._processes and not self._is_frozen(name)

    # lanes

    def _lanes_of(self, name: str) -> dict[Lane, _Lane]:
        process = self._processes[name]
        known = self._lanes.get(name)
        if known is None or known[0] != id(process.agent):
            self._forget(name)
            known = self._lanes[name] = (id(process.agent), {lane: _Lane() for lane in Lane})
        return known[1]

    def _start_and_end(self) -> None:
        super()._start_and_end()
        for name in [name for name in self._lanes if name not in self._processes]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        """The process is gone. What it had handed to pmxcfs may still be carried out when that works again."""
        _, lanes = self._lanes.pop(name, (0, {}))
        node = self.world.nodes[name]
        for lane in lanes.values():
            if lane.waiting and lane.waiting[0].pending is not None and node.online:
                kind, what, act = lane.waiting[0].pending
                if kind in PMXCFS and what in CHANGES and node.pmxcfs_hangs_until_s > self.world.now_s and self._rng.random() < 0.7:
                    self.world.timeline.at(node.pmxcfs_hangs_until_s, lambda act=act: self._do_late(act, name))

    def _do_late(self, act: Callable[[], Any], name: str) -> None:
        with contextlib.suppress(OutsideError):
            act()
            self.hit("pmxcfs did what a dead process had asked for")

    def _let_run(self, name: str) -> None:
        try:
            if not self._is_frozen(name):
                lanes = self._lanes_of(name)
                if any(lane.waiting for lane in lanes.values()):
                    self._processes[name].arrived.extend(self._pumped(name))
            super()._let_run(name)
        except Killed:
            self._processes.pop(name, None)
        if name not in self._processes:
            self._forget(name)

    def _answers(self, process: _Process, asked: Iterable[outputs.Output]) -> Iterable[inputs.Input]:
        name = process.agent.identity.node
        lanes, performer = self._lanes_of(name), process.performer
        answers: list[inputs.Input] = []
        for output in asked:
            lane = lanes[output.lane]
            if lane.waiting or lane.blocked_s > self.world.now_s or self._is_frozen(name) or self._is_disturbed(name, output):
                lane.waiting.append(Tape(name, output))
            elif (answer := performer.perform(output)) is not None:
                answers.append(answer)
        if any(lane.waiting for lane in lanes.values()):
            answers += self._pumped(name)
        return answers

    def _pumped(self, name: str) -> list[inputs.Input]:
        """Do what can be done now, in every lane in the order in which it was asked for."""
        answers: list[inputs.Input] = []
        lanes = self._lanes_of(name)
        for lane in lanes.values():
            while lane.waiting and lane.blocked_s <= self.world.now_s and not self._is_frozen(name):
                tape = lane.waiting[0]
                try:
                    answer = self._done(tape)
                except Suspended as suspended:
                    lane.blocked_s = suspended.until_s
                    self.world.timeline.at(suspended.until_s, lambda: None)
                    break
                lane.waiting.popleft()
                if answer is not None:
                    answers.append(answer)
        return answers

    def _done(self, tape: Tape) -> inputs.Input | None:
        performer = self._processes[tape.node].performer
        if tape.done or self._is_disturbed(tape.node, tape.output):
            return self._taped(tape, performer)
        return performer.perform(tape.output)

    def _is_disturbed(self, name: str, output: outputs.Output) -> bool:
        """True when a call of that output may be held up, or must be known to the witness."""
        if output.lane is Lane.NOW:
            return False
        if isinstance(output, outputs.StartMigration) or (isinstance(output, outputs.DoLock) and output.act is LockAct.RELEASE):
            return True
        now_s = self.world.now_s
        if self.world.nodes[name].pmxcfs_hangs_until_s > now_s or ((slow := self.slow.get(name)) is not None and slow.until_s > now_s):
            return True
        return bool(self.traps) and isinstance(output, _TRAPPED) and getattr(output, "act", None) is not LockAct.LOOK

    def _taped(self, tape: Tape, performer: Performer) -> inputs.Input | None:
        tape.at = 0
        given = performer._ports  # the same ports, each call by way of the tape
        ports = replace(
            given,
            clock=_Port(self, tape, "clock", given.clock),
            lock=_Port(self, tape, "lock", given.lock),
            files=_Port(self, tape, "files", given.files),
            api=lambda: _Port(self, tape, "api", given.api()),
        )
        self._spring_output(tape)
        return Performer(_typed(ports), self._times).perform(tape.output)

    # one call

    def call(self, tape: Tape, kind: str, name: str, act: Callable[[], Any], given: tuple[Any, ...]) -> Any:
        """Make a call, or give the answer that it has had already."""
        if tape.at < len(tape.done):
            is_good, value = tape.done[tape.at]
        else:
            tape.pending = (kind, name, act)
            self._before(tape, kind, name)
            if kind == "lock" and name == "release" and tape.at not in tape.hung:
                self.judge.removes(self.world.nodes[tape.node])
            try:
                value, is_good = (self._sent(tape, act, *given) if name == "migrate" else act()), True
            except OutsideError as error:
                value, is_good = error, False
            tape.pending = None
            tape.done.append((is_good, value))
            if kind == "lock" and name == "renew" and is_good:
                tape.checked_s = self.world.now_s
        tape.at += 1
        if tape.at == len(tape.done):
            self._after(tape, kind, name)
            is_good, value = tape.done[tape.at - 1]
        if not is_good:
            raise value
        return value

    def _sent(self, tape: Tape, act: Callable[[], Any], order: Any, send_until_s: float = math.inf) -> Any:
        """The request reaches PVE, unless its time was over before it left."""
        world = self.world
        if world.nodes[tape.node].boottime_s(world.now_s) >= send_until_s:
            return act()
        checked_s = tape.checked_s
        migration = world.migrations.under_way.get(order.vmid)
        if migration is not None and any(sent.answer == migration.task.upid for sent in self.judge.requests):
            self.sent_again.append(f"{world.now_s:.1f} s: {tape.node} sends {order.vmid} while it is migrating on an agent's request")
        struck = tuple(what for at_s, what in self.strikes[-20:] if checked_s is not None and at_s >= checked_s)
        sent = self.judge.sent(tape.node, order, checked_s, struck)
        try:
            sent.answer = act()
        except Exception as error:
            sent.answer = f"{type(error).__name__}: {error}"
            raise
        return sent.answer

    def _hold(self, tape: Tape, why: str, for_s: float) -> None:
        """Let the call wait that long, once."""
        if (tape.at, why) not in tape.met:
            tape.met.add((tape.at, why))
            if for_s > 0:
                raise Suspended(self.world.now_s + for_s)

    def _before(self, tape: Tape, kind: str, name: str) -> None:
        node, now_s = self.world.nodes[tape.node], self.world.now_s
        if kind in PMXCFS and node.mounted and node.pmxcfs_hangs_until_s > now_s:
            tape.hung.add(tape.at)
            raise Suspended(node.pmxcfs_hangs_until_s)
        if kind != "api":
            return
        if name == "migrate":
            self._spring(tape, Point.CHECKED)
        slow = self.slow.get(tape.node)
        if slow is not None and slow.until_s > now_s:
            self._hold(tape, "request under way", min(slow.before_s, POST_TIMEOUT_S - 1))

    def _after(self, tape: Tape, kind: str, name: str) -> None:
        now_s = self.world.now_s
        if kind == "lock" and name == "renew" and isinstance(tape.output, outputs.DoLock):
            self._spring(tape, Point.RENEWED)
        elif kind == "lock" and name == "take":
            self._spring(tape, Point.TAKEN)
        elif kind == "files" and name == "write" and isinstance(tape.output, outputs.WriteShared) and tape.output.leader is not None:
            self._spring(tape, Point.WRITTEN)
        elif kind == "api":
            self._spring(tape, Point.POSTED if name == "migrate" else Point.LOOKING)
            slow = self.slow.get(tape.node)
            if slow is not None and slow.until_s > now_s and (tape.at, "answer under way") not in tape.met:
                before_s = min(slow.before_s, POST_TIMEOUT_S - 1)
                if before_s + slow.after_s >= POST_TIMEOUT_S:
                    tape.met.add((tape.at, "late"))
                self._hold(tape, "answer under way", min(slow.after_s, POST_TIMEOUT_S - before_s))
            if (tape.at, "late") in tape.met and tape.done[-1][0]:
                error = InDoubtError if name == "migrate" else TemporaryError
                tape.done[-1] = (False, error("no answer within 30 s"))
                self.hit(f"no answer in time: {name}")
            if name == "migrate":
                self.judge.answered(tape.node)

    # traps

    def _spring_output(self, tape: Tape) -> None:
        output = tape.output
        if tape.done:
            return
        if isinstance(output, outputs.StartMigration):
            self._spring(tape, Point.BEFORE_CHECK)
        elif isinstance(output, outputs.DoLock) and output.act is LockAct.RELEASE:
            self._spring(tape, Point.BEFORE_RMDIR)
        elif isinstance(output, outputs.DoLock) and output.act is LockAct.WRITE_LEADING:
            self._spring(tape, Point.BEFORE_LEADING)

    def _spring(self, tape: Tape, point: str) -> None:
        """Let whatever waits at that point happen to this agent, now."""
        now_s = self.world.now_s
        if not self.traps or (tape.at, point) in tape.met:
            return
        self.traps = [trap for trap in self.traps if trap.until_s >= now_s]
        for trap in self.traps:
            if trap.point == point:
                self.traps.remove(trap)
                tape.met.add((tape.at, point))
                node = self.world.nodes[tape.node]
                before = (node.agent_starts, node.boots)
                trap.act(tape.node)
                if not node.online or node.agent.value == "kill" or (node.agent_starts, node.boots) != before:
                    raise Killed
                if self._is_frozen(tape.node):
                    raise Suspended(node.agent_frozen_until_s)
                return

    def kill(self, name: str, back_after_s: float = RESTART_S) -> None:
        """kill -9 of the node's agent, which systemd starts again."""
        world, node = self.world, self.world.nodes[name]
        if not node.online or name not in self._processes:
            return
        world.kill_agent(name)
        node.agent_frozen_until_s = 0.0
        boots = node.boots

        def back() -> None:
            if node.boots == boots and node.online and node.agent.value == "kill":
                world.start_agent(name)

        world.timeline.after(back_after_s, back)


_TRAPPED = (outputs.StartMigration, outputs.DoLock, outputs.WriteShared, outputs.Observe)


def _typed(ports: Any) -> Ports:
    result: Ports = ports
    return result

# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulation in which a fault strikes right before or right after one call of one agent, and in which calls take time.

The agents, the protocol and the cluster are those of every scenario. What is added: a process can be killed or stopped in the middle of
a call; a call can hang while the process goes on, and then only its lane waits, as with the threads of the real process; and what the
kernel has handed to the filesystem is carried out although the process that asked is gone.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from agent.core.leadership import LockAct, LockTimes
from agent.core.settings import Settings
from agent.daemon import inputs, outputs
from agent.daemon.outputs import Lane
from agent.daemon.outside import LEADER_PATH, Ports
from agent.ports import InDoubtError, OutsideError, TemporaryError
from agent.sim.records import Post
from agent.sim.world import World
from agent.simulation import Simulation, _Process
from tests.fire.judge import POST_TIMEOUT_S, Judge
from tests.scenarios.witness import Witness

BLINK_S = 1e-3
RESTART_AFTER_S = 5.0  # what systemd takes to start a killed agent again
CHANGES = {"lock.take": "take", "lock.renew": "renew", "lock.release": "rmdir", "lock.ask_expiry": "ask-expiry", "api.look": "look"}
RELEASE, START = "release", "start"  # what the daemon wants done, before a lane begins to do it
CHECK = "check"  # the renewal that a request to migrate makes for itself
POST = "post"  # from the check to the request; the transport sends nothing once its time is over
WIRE = "wire"  # from the first byte on: what nothing can call back


class Point(NamedTuple):
    """Right before or after the n-th such call of a node's agents: `Point("pve1", "renew", 3, is_after=False)`."""

    node: str
    call: str
    number: int
    is_after: bool = False

    def __str__(self) -> str:
        return f"{'after' if self.is_after else 'before'} {self.call} {self.number} of {self.node}"


class KilledError(BaseException):
    """The process is gone; nothing in the agent catches it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens, in words, and how; `strike` may let time pass, and raise KilledError. It is over after `lasts_s`."""

    words: str
    strike: Callable[[Blaze, str], None]
    lasts_s: float = 0.0

    def __str__(self) -> str:
        return self.words


class Blaze(Simulation):
    """A cluster under fire: `calls` are all calls that change something, in order, `judge` knows every request to migrate."""

    def __init__(
        self, world: World, settings: Settings, faults: Iterable[tuple[Point, Fault]] = (), *, times: LockTimes | None = None
    ) -> None:
        super().__init__(world, settings, times=times)
        self.calls: list[tuple[float, Point]] = []
        self.struck: list[tuple[float, Point, Fault]] = []
        self.mount_hangs_until_s: dict[str, float] = {}
        self.judge = Judge(world)
        self.witness = _Bystander(world, settings)
        self._faults = dict(faults)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._busy: dict[int, set[Lane]] = defaultdict(set)
        self._waiting: dict[int, dict[Lane, deque[outputs.Output]]] = defaultdict(lambda: defaultdict(deque))
        self._doing: dict[str, list[outputs.Output]] = defaultdict(list)
        self._checked: dict[str, tuple[float, int] | None] = {}
        self._point: Point | None = None
        self._on_the_wire: dict[str, Callable[[], object]] = {}

    def run(self, until_s: float, watch: Callable[[], None] | None = None) -> None:
        """Let the cluster live until then."""
        super().run(until_s, self.witness.look if watch is None else watch)

    # processes and their lanes

    def _ports(self, name: str) -> Ports:
        ports = super()._ports(name)
        api = _Port(self, name, "api", ports.api())
        return replace(ports, lock=_Port(self, name, "lock", ports.lock), files=_Port(self, name, "files", ports.files), api=lambda: api)

    def _let_run(self, name: str) -> None:
        process = self._processes.get(name)
        if process is None:  # ended while another agent's call took its time
            return
        try:
            super()._let_run(name)
        except KilledError:
            if self._processes.get(name) is process:
                del self._processes[name]
        except KeyError:
            if self._processes.get(name) is process:
                raise

    def _answers(self, process: _Process, asked: Iterable[outputs.Output]) -> Iterable[inputs.Input]:
        busy, waiting = self._busy[id(process)], self._waiting[id(process)]
        for output in asked:
            if output.lane in busy:
                waiting[output.lane].append(output)
                continue
            queue = deque([output])
            while queue:
                one = queue.popleft()
                answer = self._perform(process, one, busy)
                if answer is not None:
                    yield answer
                queue += waiting[one.lane]
                waiting[one.lane].clear()

    def _perform(self, process: _Process, one: outputs.Output, busy: set[Lane]) -> inputs.Input | None:
        node = process.agent.identity.node
        busy.add(one.lane)
        self._doing[node].append(one)
        if isinstance(one, outputs.StartMigration):
            self._checked[node] = None
        try:
            if (order := _order(one)) is not None:
                return self.call(node, order, lambda: process.performer.perform(one))  # type: ignore[no-any-return]
            answer = process.performer.perform(one)
        finally:
            busy.discard(one.lane)
            self._doing[node].pop()
        if self._processes.get(node) is not process:
            raise KilledError
        return answer

    # calls

    def call(self, node: str, call: str, act: Callable[[], Any]) -> Any:
        """Make a call of that node's agent, with what strikes around it."""
        self._counts[node, call] += 1
        point, process = Point(node, call, self._counts[node, call]), self._processes.get(node)
        self.calls.append((self.world.now_s, point))
        self._strike(point)
        if self._processes.get(node) is not process and call in (RELEASE, START, POST):
            raise KilledError
        if call == "rmdir":
            self.judge.removes(self.world.nodes[node])
        if self._processes.get(node) is not process:
            act()  # the filesystem had it already
            raise KilledError
        called_s = self.world.now_s
        answer = act()
        if call == CHECK:
            self._checked[node] = (called_s, len(self.struck))
        self._strike(point._replace(is_after=True))
        if self._processes.get(node) is not process:
            raise KilledError
        return answer

    def _strike(self, point: Point) -> None:
        fault = self._faults.get(point)
        if fault is not None:
            self.struck.append((self.world.now_s, point, fault))
            self._point = point
            fault.strike(self, point.node)

    def wait_for_mount(self, node: str) -> None:
        """Hang for as long as /etc/pve does on the node; a process that died meanwhile does nothing more."""
        until_s, process = self.mount_hangs_until_s.get(node, 0.0), self._processes.get(node)
        if until_s > self.world.now_s:
            self.pass_time(until_s - self.world.now_s)
        if self._processes.get(node) is not process:
            raise KilledError

    def hang(self, node: str, for_s: float) -> None:
        """The call that is being made takes so long. A request to migrate is given up before that, and PVE acts on it all the same."""
        if self._point is None or self._point.call != WIRE or for_s < POST_TIMEOUT_S:
            self.pass_time(for_s)
            return
        if not self._point.is_after:
            self.world.timeline.after(for_s, self._on_the_wire[node])
        self.pass_time(POST_TIMEOUT_S)
        raise InDoubtError("no answer in time")

    def pass_time(self, for_s: float) -> None:
        """Let the rest of the cluster live on while a call takes its time."""
        self.run(self.world.now_s + for_s)

    def words_of(self, node: str, name: str, arguments: tuple[Any, ...]) -> str | None:
        """The call's name for points, None for one that changes nothing."""
        if name == "files.write":
            return f"write {arguments[0].rpartition('/')[2]}"
        doing = self._doing[node]
        if name == "lock.renew" and doing and isinstance(doing[-1], outputs.StartMigration):
            return CHECK
        return CHANGES.get(name)

    def post(self, node: str, order: Any, send_until_s: float, send: Callable[[], str]) -> str:
        """A request to migrate, as the transport makes it: nothing goes out once its time is over, and no answer is waited for then."""
        world, called_s = self.world, 0.0
        checked = self._checked.get(node)

        def on_the_wire() -> str:
            struck = () if checked is None else tuple(str(fault) for _, _, fault in self.struck[checked[1] :])
            sent = self.judge.sent(node, order, None if checked is None else checked[0], struck)
            try:
                sent.answer = send()
            except Exception as error:
                sent.answer = f"{type(error).__name__}: {error}"
                raise
            finally:
                self.witness.look()
            return sent.answer

        def too_late() -> None:
            with contextlib.suppress(OutsideError):
                on_the_wire()
            self.judge.answered(node)

        def guarded() -> str:
            nonlocal called_s
            called_s = world.now_s
            if world.nodes[node].boottime_s(called_s) >= send_until_s:
                raise TemporaryError("timed out before the request was sent")
            self._on_the_wire[node] = too_late
            return str(self.call(node, WIRE, on_the_wire))

        try:
            upid = str(self.call(node, POST, guarded))
        finally:
            self.judge.answered(node)
        if world.now_s - called_s >= POST_TIMEOUT_S:
            raise InDoubtError("no answer in time")
        return upid


class _Bystander(Witness):
    """Judges requests by all but the lock, which is the judge's."""

    def _why_not_ask(self, post: Post) -> Iterable[str]:  # type: ignore[override]
        return super()._why_not_ask(replace(post, held_lock=True))


class _Port:
    """One of a node's ports, with every call told to the simulation."""

    def __init__(self, blaze: Blaze, node: str, name: str, port: Any) -> None:
        self._blaze, self._node, self._name, self._port = blaze, node, name, port

    def __getattr__(self, method: str) -> Any:
        act, blaze, node, name = getattr(self._port, method), self._blaze, self._node, f"{self._name}.{method}"

        def call(*arguments: Any) -> Any:
            if self._name in ("lock", "files"):
                blaze.wait_for_mount(node)
            if name == "api.migrate":
                order, send_until_s = arguments
                return blaze.post(node, order, send_until_s, lambda: str(act(order)))
            words = blaze.words_of(node, name, arguments)
            return act(*arguments) if words is None else blaze.call(node, words, lambda: act(*arguments))

        return call


def _order(one: outputs.Output) -> str | None:
    """The name of what the daemon wants done, for what may come too late."""
    if isinstance(one, outputs.DoLock) and one.act is LockAct.RELEASE:
        return RELEASE
    return START if isinstance(one, outputs.StartMigration) else None


# what can happen


def _kill(blaze: Blaze, node: str) -> None:
    blaze.world.kill_agent(node)
    blaze.world.timeline.after(RESTART_AFTER_S, lambda: blaze.world.start_agent(node))
    raise KilledError


def _power_off(blaze: Blaze, node: str) -> None:
    blaze.world.power_off_node(node)
    raise KilledError


def frozen(for_s: float) -> Fault:
    """SIGSTOP, and SIGCONT after that time."""

    def strike(blaze: Blaze, node: str) -> None:
        blaze.world.freeze_agent(node, for_s + BLINK_S)  # the call that was stopped goes on first
        blaze.pass_time(for_s)

    return Fault(f"stopped for {for_s:g} s", strike, for_s)


def both(one: Fault, other: Fault) -> Fault:
    """The one, and right after it the other."""

    def strike(blaze: Blaze, node: str) -> None:
        one.strike(blaze, node)
        other.strike(blaze, node)

    return Fault(f"{one} and {other}", strike, max(one.lasts_s, other.lasts_s))


def hangs(for_s: float) -> Fault:
    """This one call hangs; the process goes on."""
    return Fault(f"the call hangs for {for_s:g} s", lambda blaze, node: blaze.hang(node, for_s), for_s)


def mount_hangs(for_s: float) -> Fault:
    """Every call into /etc/pve on the node hangs."""

    def strike(blaze: Blaze, node: str) -> None:
        blaze.mount_hangs_until_s[node] = blaze.world.now_s + for_s
        blaze.pass_time(for_s)

    return Fault(f"/etc/pve hangs for {for_s:g} s", strike, for_s)


def cut_off(for_s: float) -> Fault:
    """The node loses the cluster's network, and has it back after that time."""

    def strike(blaze: Blaze, node: str) -> None:
        blaze.world.cut_node(node)
        blaze.world.timeline.after(for_s, blaze.world.heal)

    return Fault(f"cut off for {for_s:g} s", strike, for_s)


def restarts(for_s: float) -> Fault:
    """pve-cluster restarts on the node."""
    return Fault(f"pmxcfs restarts in {for_s:g} s", lambda blaze, node: blaze.world.restart_pmxcfs(node, for_s), for_s)


def clock_steps(by_s: float) -> Fault:
    """Somebody sets the node's clock."""
    return Fault(f"clock steps by {by_s:+g} s", lambda blaze, node: blaze.world.step_wall_clock(node, by_s))


def write_fails(*, applied: bool) -> Fault:
    """The node's next change below /etc/pve fails with EIO or EBUSY, and was carried out or not."""
    words = "the next write fails" + (" and was carried out" if applied else "")
    return Fault(words, lambda blaze, node: blaze.world.fail_next_write(node, applied=applied))


def leader_file(words: str, change: Callable[[str], str | None]) -> Fault:
    """Somebody changes leader.json; None removes it."""

    def strike(blaze: Blaze, node: str) -> None:
        text = change(blaze.world.main.files.get(LEADER_PATH, ""))
        if text is None:
            blaze.world.drop_file(LEADER_PATH)
        else:
            blaze.world.put_file(LEADER_PATH, text)

    return Fault(words, strike)


KILLED = Fault("killed", _kill, RESTART_AFTER_S)
DEAD = Fault("its node dies", _power_off)
LOCK_REMOVED = Fault("rmdir by hand", lambda blaze, node: blaze.world.remove_lock())

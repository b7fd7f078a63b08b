# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent drain`: empties this node before it shuts down. The unit proxlb-agent-drain runs it as it is stopped.

It makes the node's own flag, waits for the leader on another node to move what can leave, and rewrites the flag when it stops
waiting, so that nobody is moved any more while the node stops its guests. The agent takes the flag back after the next boot.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from agent import wiring
from agent.commands.draining import SAME_LOOKS, running_on
from agent.commands.planning import asker, checked_plan, question_of, remembered
from agent.commands.tables import counted
from agent.commands.wrong_use import WrongUseError, settings_in_force
from agent.core.cluster import MIGRATE_KINDS, Guest, Snapshot
from agent.core.documents import DocumentError, LeaderFile, LeaderState, parse
from agent.core.others import foreign_migrations
from agent.core.reasons import MEANING
from agent.core.settings import Mode, Settings
from agent.core.shutdown import ShutdownFlag, parse_flag, would_keep_quorum
from agent.core.statistics import parse_members
from agent.daemon.outside import FLAG_FOLDER, LEADER_PATH
from agent.ports import ClusterFiles, FilesystemState, OutsideError

UNIT = "proxlb-agent-drain.service"
LOOK_EVERY_S = 3.0
LEADERLESS_S = 45.0  # a leader that lets go is followed within 2 s, a process that died is back in 15
STALL_S = 180.0  # nothing moves; a node that dies while it leads is followed within 130 s
SILENT_S = 120.0  # one look takes four requests of at most 30 s; a longer silence is a call that hangs
SEEN_S = 3.0  # the leader reads flags every 2 s

Beat = Callable[[], None]


def add_options(parser: argparse.ArgumentParser) -> None:
    """It takes none of its own."""


def execute(arguments: argparse.Namespace) -> int:
    """Empty the node if it shuts down and its admin wants that; returns 1 when guests stay that should have left."""
    if not wiring.is_shutting_down():
        _tell("this system does not shut down, so there is nothing to do")
        return 0
    if not wiring.is_enabled(UNIT):
        return 0
    return watched(lambda beat: empty(settings_in_force(arguments), beat))


def watched(work: Callable[[Beat], int], silent_s: float = SILENT_S) -> int:
    """The status of the work, done in a process of its own; 1 as soon as that has not called its beat for so long.

    A call into /etc/pve can hang so that nothing ends the process that made it. The shutdown goes on without it.
    """
    heard, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        _do(work, told)
    os.close(told)
    while select.select([heard], [], [], silent_s)[0]:
        if not os.read(heard, 1024):
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.kill(pid, signal.SIGKILL)
    _tell(f"nothing answers for {silent_s:.0f} s: the shutdown goes on, and the guests that are still here go with the node")
    return 1


def _do(work: Callable[[Beat], int], told: int) -> NoReturn:
    status = 1
    try:
        status = work(lambda: _beat(told))
    except (OutsideError, WrongUseError) as error:
        _tell(f"the shutdown goes on, and the guests go with the node: {error}")
    except Exception:  # noqa: BLE001  # a bug, told as one: this process ends here
        _tell(f"a bug in the agent; the shutdown goes on. Please report this:\n{traceback.format_exc()}")
    os._exit(status)  # noqa: TID251  # the half of a fork: what its parent has set up is not this one's to end


def _beat(told: int) -> None:
    os.write(told, b".")


def empty(settings: Settings, beat: Beat) -> int:
    """Have this node emptied; returns 0 when nobody is left who could leave, 1 when somebody is.

    Raises:  OutsideError when /etc/pve or the API cannot be used.
    """
    files, node = wiring.make_files(settings), wiring.host_name()
    path, boot_id = f"{FLAG_FOLDER}/{node}", wiring.boot_id()
    why_not = _why_not(settings, files, node)
    before = files.read(path) if why_not is None or files.state() is FilesystemState.QUORATE else None
    is_own = before is None or parse_flag(before) is not None  # a person's flag empties the node as well, and outlasts the boot
    if why_not is not None:
        _tell(f"{node} is not emptied before it shuts down: {why_not}")
        if is_own and files.state() is FilesystemState.QUORATE:
            files.write(path, ShutdownFlag(boot_id, why_not).text + "\n")
        return 1
    if is_own:
        files.write(path, ShutdownFlag(boot_id).text + "\n")
    _tell(f"{node} shuts down: its guests leave first, for at most {settings.drain.shutdown_limit_s:.0f} s")
    result = _Emptying(settings, files, node, is_own=is_own).wait(beat)
    if files.state() is FilesystemState.QUORATE and (flag := files.read(path)) is not None and parse_flag(flag) is not None:
        files.write(path, ShutdownFlag(boot_id, result.why).text + "\n")
    if result.left is None:
        _tell(f"{node} shuts down with the guests that are on it: {result.why}")
        return 1
    if not result.left:
        _tell(f"{node} is empty" + (f" but for {result.of_ha} of the HA manager" if result.of_ha else "") + ": the shutdown goes on")
        return 0
    _tell(f"{node} shuts down with {counted(len(result.left), 'guest')}: {result.why}; {'; '.join(result.words)}")
    beat()
    time.sleep(SEEN_S)
    return 1


def _why_not(settings: Settings, files: ClusterFiles, node: str) -> str | None:
    """Why the node's guests stay whatever they are, None when there is no such reason."""
    match files.state():
        case FilesystemState.NOT_MOUNTED:
            return f"{settings.paths.pmxcfs} is not mounted"
        case FilesystemState.NO_QUORUM:
            return "it is not in the quorate part of the cluster"
        case FilesystemState.STANDALONE:
            return "it is in no cluster"
    if settings.mode in (Mode.OFF, Mode.OBSERVE):
        return f"mode is {settings.mode.value}"
    members = parse_members(files.read(".members") or "")
    if members is None or not any(online for name, online in members.nodes.items() if name != node):
        return "no other node is online"
    if not would_keep_quorum(members, files.read("corosync.conf") or "", node):
        return "the other nodes would not be quorate without it"
    return None


class _Result:
    """How the wait ended: who is left who should have left (None: nobody has looked), what keeps each, why nobody waits any longer."""

    def __init__(self, why: str, left: tuple[Guest, ...] | None, words: list[str], of_ha: int) -> None:
        self.why, self.left, self.words, self.of_ha = why, left, words, of_ha


class _Emptying:
    """The wait for the leader to empty this node."""

    def __init__(self, settings: Settings, files: ClusterFiles, node: str, *, is_own: bool) -> None:
        self._settings, self._files, self._node, self._is_own = settings, files, node, is_own
        self._began_s = self._changed_s = self._led_s = time.monotonic()
        self._vmids: frozenset[int] | None = None
        self._hopeless = 0
        self._left: tuple[Guest, ...] | None = None
        self._words: list[str] = []
        self._of_ha = 0
        self._said = ""

    def wait(self, beat: Beat) -> _Result:
        """Look until nobody is left, or waiting makes no sense any more."""
        while True:
            beat()
            why = self._why_stop()
            if why is None:
                snapshot = self._look()
                beat()
                why = None if snapshot is None else self._judge(snapshot)
            if why is not None:
                return _Result(why, self._left, self._words, self._of_ha)
            time.sleep(LOOK_EVERY_S)

    def _look(self) -> Snapshot | None:
        try:
            return wiring.look(self._settings)
        except OutsideError as error:
            if str(error) != self._said:
                _tell(f"cannot look now: {error}")
            self._said = str(error)
            return None

    def _why_stop(self) -> str | None:
        """Why waiting makes no sense any more, as far as /etc/pve and the clock tell."""
        now_s, state = time.monotonic(), self._files.state()
        if now_s - self._began_s >= self._settings.drain.shutdown_limit_s:
            return f"the limit of {self._settings.drain.shutdown_limit_s:.0f} s is reached"
        if state is not FilesystemState.QUORATE:
            return f"{self._settings.paths.pmxcfs} says {state.value}"
        senses = wiring.read_senses(self._settings, self._files)
        if self._is_own and senses is not None and self._node in senses.flags.going_down:
            return senses.flags.going_down[self._node]
        if self._has_leader():
            self._led_s = now_s
        elif now_s - self._led_s >= LEADERLESS_S:
            return "no agent on another node leads"
        return "nothing moves any more" if now_s - self._changed_s >= STALL_S else None

    def _has_leader(self) -> bool:
        """True while another node leads; a leader on this one lets go as soon as it sees the flag."""
        try:
            leader = parse(LeaderFile, self._files.read(LEADER_PATH) or "")
        except DocumentError:
            return False
        return leader.state is LeaderState.LEADING and (leader.node != self._node or not self._is_own)

    def _judge(self, snapshot: Snapshot) -> str | None:
        """Why waiting makes no sense any more, as far as the guests tell."""
        here = running_on(snapshot, self._node)
        left = self._left = tuple(guest for guest in here if not _is_of_ha(guest, snapshot))
        self._of_ha = len(here) - len(left)
        if not left:
            # Where its configuration is, a guest is: a task that is not over may still have to start it there.
            if any(task.is_running and task.kind in MIGRATE_KINDS and task.node == self._node for task in snapshot.tasks):
                self._changed_s = time.monotonic()
                return None
            if any(flight.target == self._node for flight in foreign_migrations(snapshot, frozenset())):
                return None  # who arrives now would go down with the node
            return "all have left"
        vmids = frozenset(guest.vmid for guest in left)
        if vmids != self._vmids:
            _tell(f"{counted(len(vmids), 'guest')} to go: {', '.join(_name(guest) for guest in left[:10])}")
        moves = any(task.is_running and task.kind in MIGRATE_KINDS and task.vmid in vmids for task in snapshot.tasks)
        if vmids != self._vmids or moves:
            self._vmids, self._changed_s = vmids, time.monotonic()
        stuck = {} if moves else self._stuck(snapshot, vmids)
        self._words = [f"{_name(guest)} {stuck.get(guest.vmid, 'did not leave in time')}" for guest in left]
        self._hopeless = self._hopeless + 1 if len(stuck) == len(left) else 0
        return "nobody is left who can leave" if self._hopeless >= SAME_LOOKS else None

    def _stuck(self, snapshot: Snapshot, vmids: frozenset[int]) -> dict[int, str]:
        """Those of the guests that no plan takes away, by VMID, each with why; PVE's own check is asked, as the leader asks it."""
        question = question_of(self._settings, snapshot, remembered(self._settings))
        plan = checked_plan(snapshot, self._settings, question, asker(self._settings, snapshot))
        return {
            refusal.vmid: f"stays: {MEANING[refusal.reason]}" + (f" ({refusal.detail})" if refusal.detail else "")
            for refusal in plan.refused
            if refusal.vmid in vmids
        }


def _name(guest: Guest) -> str:
    return f"{guest.label} {guest.name}".rstrip()


def _is_of_ha(guest: Guest, snapshot: Snapshot) -> bool:
    """True for a guest with which the HA manager does what its own shutdown policy says."""
    resource = snapshot.ha.resource(guest.vmid)
    return guest.ha is not None and (resource is None or resource.requested != "ignored")


def _tell(text: str) -> None:
    print(text, flush=True)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Does what the daemon asks for, through the ports. The same code serves the real agent and the simulated one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from agent.core.documents import DocumentError, LeaderFile, LeaderState, parse, render
from agent.core.leadership import LockAct, LockTimes
from agent.core.shutdown import parse_flag
from agent.daemon import inputs, outputs
from agent.daemon.inputs import LockAnswer, LockOutcome, PostOutcome
from agent.daemon.outside import FLAG_FOLDER, HISTORY_PATH, LEADER_PATH, Ports, text_of, words_of
from agent.daemon.own_files import OwnFiles
from agent.daemon.reading import Reading
from agent.daemon.unanswered import unanswered
from agent.ports import InDoubtError, NotHolderError, OutsideError, PermanentError, RefusedError, TemporaryError


class Performer:
    """Turns one output into calls of ports, and their answers or errors into one input.

    Raises nothing that a port may raise: every OutsideError becomes an answer, or a line where nothing waits for one.
    """

    def __init__(self, ports: Ports, times: LockTimes) -> None:
        self._ports = ports
        self._times = times
        self._reading = Reading(ports)
        self._own_files = OwnFiles(ports.local, ports.journal)

    def perform(self, output: outputs.Output) -> inputs.Input | None:  # noqa: C901  # one case an output
        """Do it; returns the answer for the daemon, None when there is none to give."""
        match output:
            case outputs.DoLock():
                return self._lock(output)
            case outputs.WithdrawShutdownFlag():
                return self._withdraw(output)
            case outputs.WriteShared():
                return inputs.WriteAnswer(output.what, output.serial, self._try(lambda: self._write(output)))
            case outputs.MakeFlagFolder():
                self._try(lambda: self._ports.files.make_folder(FLAG_FOLDER))
            case outputs.RemoveFlag():
                return self._remove(output)
            case outputs.ClaimInbox():
                try:
                    return inputs.InboxSeen(self._ports.inbox.claim())
                except OutsideError as error:
                    return inputs.InboxSeen(None, words_of(error))
            case outputs.WriteStatus() | outputs.KeepDecision() | outputs.KeepLoads():
                self._own_files.write(output)
            case outputs.StartMigration():
                return self._start(output)
            case outputs.StartGuest():
                return self._start_guest(output)
            case outputs.AskHaMaintenance():
                return self._ask_ha(output)
            case outputs.Say():
                self._ports.journal.say(output.record)
            case outputs.SetStatusLine():
                self._ports.notifier.status(output.text)
            case outputs.TellReady():
                self._ports.notifier.ready()
            case outputs.Exit():
                self._ports.notifier.stopping()
            case _:
                return self._reading.answer(output)
        return None

    def failed(self, output: outputs.Output, text: str) -> inputs.Input | None:
        """The answer for an output that a bug kept from being done, so that the daemon does not wait for ever."""
        return unanswered(output, text, self._ports)

    def _try(self, act: Callable[[], None]) -> str:
        try:
            act()
        except OutsideError as error:
            return words_of(error)
        return ""

    def _write(self, asked: outputs.WriteShared) -> None:
        """A write that waited while the filesystem hung must not land on top of the next leader's."""
        if asked.leader is not None and (why_not := self._why_not_leader(asked.leader)) is not None:
            raise TemporaryError(why_not)
        self._ports.files.write(asked.path, asked.text)

    def _withdraw(self, asked: outputs.WithdrawShutdownFlag) -> inputs.ShutdownFlagWithdrawn:
        """What somebody else has put in the flag's place since is theirs to take back."""
        path = f"{FLAG_FOLDER}/{asked.node}"
        text, error = text_of(self._ports.files, path)
        flag = None if text is None else parse_flag(text)
        if error or flag is None or flag.boot_id == asked.boot_id:
            return inputs.ShutdownFlagWithdrawn(done=False, error=error)
        error = self._try(lambda: self._ports.files.remove(path))
        return inputs.ShutdownFlagWithdrawn(done=not error, error=error)

    def _remove(self, asked: outputs.RemoveFlag) -> inputs.FlagRemoved:
        """Only the flag that was seen: one that somebody has written meanwhile is another."""
        if (why_not := self._why_not_leader(asked.leader)) is not None:
            return inputs.FlagRemoved(asked.words, error=why_not)
        files = self._ports.files
        try:
            if files.read(asked.path) != asked.text:
                return inputs.FlagRemoved(asked.words)
            files.remove(asked.path)
        except OutsideError as error:
            return inputs.FlagRemoved(asked.words, error=words_of(error))
        return inputs.FlagRemoved(asked.words, was_there=True)

    # the lock

    def _lock(self, asked: outputs.DoLock) -> LockAnswer:
        ports, act = self._ports, asked.act
        called_s = ports.clock.boottime_s()
        outcome, text, mtime, leader_text = LockOutcome.DONE, "", None, None
        try:
            match act:
                case LockAct.LOOK:
                    mtime = ports.lock.sight().mtime_s
                    leader_text = ports.files.read(LEADER_PATH)
                case LockAct.TAKE:
                    outcome = LockOutcome.DONE if ports.lock.take() else LockOutcome.REFUSED
                case LockAct.RENEW:
                    ports.lock.renew()
                case LockAct.ASK_EXPIRY:
                    ports.lock.ask_expiry()
                case LockAct.WRITE_LEADING | LockAct.WRITE_RELEASED:
                    if asked.leader is not None:
                        leader = self._with_new_epoch(asked.leader)
                        self._check_own(leader)
                        leader_text = render(leader)
                        ports.files.write(LEADER_PATH, leader_text)
                case LockAct.RELEASE:
                    # Nobody is asked who removes it: a process that was stopped for minutes would remove the next leader's.
                    if ports.clock.boottime_s() >= asked.until_s:
                        raise NotHolderError("the lease ran out before the lock could be removed")
                    ports.lock.release()
        except NotHolderError as error:
            outcome, text = LockOutcome.NOT_HOLDER, str(error)
        except OutsideError as error:
            outcome, text = LockOutcome.FAILED, words_of(error)
        state = ports.files.state()
        return LockAnswer(act, outcome, called_s, state, mtime, leader_text, text)

    def _with_new_epoch(self, leader: LeaderFile) -> LeaderFile:
        """With an epoch that no attempt in history.json has had: leader.json may have been lost, and with it the count."""
        if leader.state is not LeaderState.LEADING:
            return leader
        from agent.core.history import highest_epoch  # only who leads reads the history

        return replace(leader, epoch=max(leader.epoch, highest_epoch(self._ports.files.read(HISTORY_PATH)) + 1))

    def _check_own(self, leader: LeaderFile) -> None:
        """Raise NotHolderError when the lock, or the lead that is to be released, is another's: a process that was stopped for minutes
        must not write over the next leader's file."""
        if leader.state is LeaderState.LEADING:
            self._ports.lock.renew()
        elif (why_not := self._why_not_leader(replace(leader, state=LeaderState.LEADING), same_since=False)) is not None:
            raise NotHolderError(why_not)

    # what only a leader does

    def _start(self, asked: outputs.StartMigration) -> inputs.MigrationAnswer:
        """Like `_start_guest`, a place that changes something outside: it asks once more, right before, whether this node leads."""
        called_s = self._ports.clock.boottime_s()
        why_not = self._why_not_leading(asked.leader, asked.lease_until_s, called_s)
        if why_not is not None:
            return inputs.MigrationAnswer(asked.intent, PostOutcome.NOT_SENT, text=why_not)
        try:
            upid = self._ports.api().migrate(asked.order, self._send_until_s(called_s))
            return inputs.MigrationAnswer(asked.intent, PostOutcome.STARTED, upid=upid)
        except RefusedError as error:
            return inputs.MigrationAnswer(asked.intent, PostOutcome.REFUSED, text=str(error))
        except InDoubtError as error:
            return inputs.MigrationAnswer(asked.intent, PostOutcome.IN_DOUBT, text=str(error))
        except OutsideError as error:
            return inputs.MigrationAnswer(asked.intent, PostOutcome.NOT_SENT, text=words_of(error))

    def _ask_ha(self, asked: outputs.AskHaMaintenance) -> inputs.HaMaintenanceAnswer:
        """As `_start`: only who leads tells the HA manager anything."""
        why_not = self._why_not_leading(asked.leader, asked.lease_until_s, self._ports.clock.boottime_s())
        if why_not is not None:
            return inputs.HaMaintenanceAnswer(asked.node, asked.wanted, why_not)
        try:
            self._ports.ha_nodes.set_maintenance(asked.node, asked.wanted)
        except PermanentError as error:
            return inputs.HaMaintenanceAnswer(asked.node, asked.wanted, str(error), is_lasting=True)
        except OutsideError as error:
            return inputs.HaMaintenanceAnswer(asked.node, asked.wanted, words_of(error))
        return inputs.HaMaintenanceAnswer(asked.node, asked.wanted)

    def _start_guest(self, asked: outputs.StartGuest) -> inputs.StartAnswer:
        called_s = self._ports.clock.boottime_s()
        if (why_not := self._why_not_leading(asked.leader, asked.lease_until_s, called_s)) is not None:
            return inputs.StartAnswer(asked.vmid, why_not)
        try:
            self._ports.api().start(asked.vmid, asked.type, asked.node, self._send_until_s(called_s))
        except OutsideError as error:
            return inputs.StartAnswer(asked.vmid, words_of(error))
        return inputs.StartAnswer(asked.vmid)

    def _why_not_leading(self, leader: LeaderFile, lease_until_s: float, called_s: float) -> str | None:
        ports = self._ports
        if called_s >= lease_until_s:
            return "the lease ran out before the request could be sent"
        try:
            ports.lock.renew()
        except OutsideError as error:
            return f"the lock could not be renewed: {error}"
        if (why_not := self._why_not_leader(leader)) is not None:
            return why_not
        if ports.clock.boottime_s() >= self._send_until_s(called_s):
            return "the renewal of the lock took too long"
        return None

    def _send_until_s(self, renewed_s: float) -> float:
        """From when on no request goes out: its answer is due before the lease of that renewal ends."""
        times = self._times
        return renewed_s + times.lease_s - times.post_timeout_s - times.post_margin_s

    def _why_not_leader(self, leader: LeaderFile, *, same_since: bool = True) -> str | None:
        """Why leader.json does not name this lead, None when it does."""
        text, error = text_of(self._ports.files, LEADER_PATH)
        if error:
            return f"leader.json cannot be read: {error}"
        try:
            found = None if text is None else parse(LeaderFile, text)
        except DocumentError as problem:
            return f"leader.json cannot be read: {problem}"
        if found is not None and not same_since:
            found = replace(found, since=leader.since)
        return None if found == leader else "leader.json no longer names this agent"

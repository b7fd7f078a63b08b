# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's part in the election: asks for what the protocol wants next, and tells changes of who leads."""

from __future__ import annotations

from agent import __version__
from agent.core import leadership
from agent.core.documents import LEADER_SCHEMA, DocumentError, LeaderFile, LeaderState, parse
from agent.core.journal import Level, MessageId, Record
from agent.core.leadership import Leadership, LockAct, LockTimes, Stage
from agent.daemon.inputs import LockAnswer, LockOutcome, Now
from agent.daemon.outputs import DoLock, Output, Say
from agent.ports import FilesystemState

STOP_WITHIN_S = 4.0  # SIGTERM ends the process within 5 s even if a call hangs


class Lead:
    """Holds the state of the election and turns it into outputs."""

    def __init__(self, node: str, incarnation: str, times: LockTimes, now_s: float) -> None:
        self.state: Leadership = leadership.begin(node, incarnation, times, now_s)
        self.filesystem: FilesystemState | None = None
        self._said_leader: str | None = None
        self._said_wait: str | None = None
        self._said_error = ""
        self._text: str | None = None
        self._parsed: LeaderFile | None = None

    def leader_name(self) -> str | None:
        """The node that leads as far as this one can tell, None when nobody does."""
        leader = self.state.leader
        if self.state.stage is Stage.LEADING:
            return self.state.node
        if leader is None or leader.state is LeaderState.RELEASED or self.state.lock_mtime_s is None:
            return None
        return leader.node

    def next_outputs(self, now: Now, *, may_stand: bool) -> list[Output]:
        """What to ask for now about the lock: one call at a time, as any may hang."""
        before = self.state.stage
        self.state, act = leadership.next_act(self.state, now.boot_s, may_stand=may_stand)
        said: list[Output] = []
        if before is Stage.LEADING and self.state.stage is Stage.LAPSED:
            said.append(self._say(Level.WARNING, "the lock could not be renewed in time: stopped leading until it can be"))
        if act is None:
            return said
        leader = None
        if act is LockAct.WRITE_LEADING:
            leader = self._file(LeaderState.LEADING, self.state.highest_epoch + 1, now)
        elif act is LockAct.WRITE_RELEASED:
            leader = self._file(LeaderState.RELEASED, self.state.epoch, now)
        return [*said, DoLock(act, leader, self.state.lease_until_s)]

    def _file(self, state: LeaderState, epoch: int, now: Now) -> LeaderFile:
        return LeaderFile(LEADER_SCHEMA, self.state.node, self.state.incarnation, epoch, state, now.wall_s, __version__)

    def on_answer(self, answer: LockAnswer, now: Now) -> list[Output]:
        """Take an answer about the lock, and say what it changed."""
        before, epoch = self.state.stage, self.state.epoch
        self.filesystem = answer.filesystem
        self.state = self._after(answer, now)
        said: list[Output] = []
        if answer.outcome is LockOutcome.FAILED and answer.act not in (LockAct.LOOK, LockAct.ASK_EXPIRY):
            if answer.text != self._said_error:
                said.append(self._say(Level.WARNING, f"the lock: {answer.act.value} failed: {answer.text}", epoch=epoch or None))
            self._said_error = answer.text
        elif answer.outcome is LockOutcome.DONE:
            self._said_error = ""
        return said + self._changes(before, epoch, now)

    def _after(self, answer: LockAnswer, now: Now) -> Leadership:
        state = self.state
        if answer.outcome is LockOutcome.NOT_HOLDER:
            return leadership.on_not_holder(state, now.boot_s)
        if answer.outcome is LockOutcome.FAILED:
            return leadership.on_failed(state, answer.act, now.boot_s)
        match answer.act:
            case LockAct.LOOK:
                return leadership.on_looked(state, now.boot_s, answer.mtime_s, self._leader_in(answer.leader_text))
            case LockAct.TAKE:
                return leadership.on_took(state, answer.called_s, got_it=answer.outcome is LockOutcome.DONE)
            case LockAct.RENEW:
                return leadership.on_renewed(state, answer.called_s)
            case LockAct.ASK_EXPIRY:
                return leadership.on_asked(state)
            case LockAct.RELEASE:
                return leadership.on_released(state, now.boot_s)
        written = _leader(answer.leader_text)
        if written is None:
            return leadership.on_failed(state, answer.act, now.boot_s)
        if answer.act is LockAct.WRITE_LEADING:
            return leadership.on_wrote_leading(state, written)
        return leadership.on_wrote_released(state, written)

    def _leader_in(self, text: str | None) -> LeaderFile | None:
        """leader.json as a value, parsed only when it has changed: it is read every second."""
        if text != self._text:
            self._text, self._parsed = text, _leader(text)
        return self._parsed

    def _changes(self, before: Stage, epoch: int, now: Now) -> list[Output]:
        state, said = self.state, list[Output]()
        if state.stage is Stage.LEADING and before is not Stage.LEADING:
            self._said_leader, self._said_wait = state.node, None
            said.append(self._say(Level.NOTICE, f"leads the cluster, epoch {state.epoch}", epoch=state.epoch))
        elif before in (Stage.LEADING, Stage.LAPSED) and state.stage is Stage.FOLLOWING:
            said.append(self._say(Level.WARNING, "lost the lead: the lock or leader.json is no longer this node's", epoch=epoch or None))
        elif before is Stage.LEAVING and state.stage is not Stage.LEAVING:
            said.append(self._say(Level.NOTICE, "gave the lead away", epoch=epoch or None))
        elif state.stage is Stage.HOLDING and state.leader_known:
            wait = leadership.why_not_act_yet(state, now.boot_s)
            if wait is not None and self._said_wait is None:
                said.append(self._say(Level.NOTICE, f"has the lock, but waits: {wait}"))
                self._said_wait = wait
        elif state.stage is Stage.FOLLOWING and state.has_looked:
            name = self.leader_name()
            if name not in (None, self.state.node, self._said_leader):  # its own former lead is not one to follow
                self._said_leader = name
                said.append(self._say(Level.INFO, f"follows {name}"))
        return said

    def give_up(self, now: Now, *, stops: bool, why: str, is_asking: bool = False) -> list[Output]:
        """Give the lead away, for good or for a while; `is_asking`: a request to migrate has no answer yet."""
        was_leading = self.state.stage is Stage.LEADING
        self.state = leadership.give_up(self.state, now.boot_s, stops=stops, is_asking=is_asking)
        return [self._say(Level.NOTICE, f"gives the lead away: {why}", epoch=self.state.epoch)] if was_leading else []

    def _say(self, level: Level, text: str, epoch: int | None = None) -> Say:
        return Say(Record(level, MessageId.LEADERSHIP, text, epoch=epoch))


def _leader(text: str | None) -> LeaderFile | None:
    """leader.json as a value; what cannot be read as one names nobody, and so lets nobody act early."""
    if text is None:
        return None
    try:
        return parse(LeaderFile, text)
    except DocumentError:
        return None

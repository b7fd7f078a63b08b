# SPDX-License-Identifier: GPL-3.0-or-later
"""Who leads: the protocol of the lock in /etc/pve as a table of stages and what each answer does to them.

Invariant: a node acts only in stage LEADING with a lease that has not run out, and the lease is counted on the node's
own CLOCK_BOOTTIME from before the renewal that won it. The lock alone is not enough: it belongs to a node rather than
a process, anybody can remove it, and a clock step can drop it early. What cannot be excluded, as PVE has no fencing
token, is a process that is stopped between the check and the request; that window is milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from agent.core.documents import LeaderFile, LeaderState

NEVER_S = -1e9


class Stage(StrEnum):
    """Where a node stands; `STAGE_MEANING` has a line for each."""

    FOLLOWING = "following"
    HOLDING = "holding"
    LEADING = "leading"
    LAPSED = "lapsed"
    LEAVING = "leaving"
    LEFT = "left"


STAGE_MEANING: dict[Stage, str] = {
    Stage.FOLLOWING: "another node leads, or nobody yet; writes nothing",
    Stage.HOLDING: "has the lock, but a former leader may still be acting",
    Stage.LEADING: "has the lock, a lease and an epoch of its own; acts",
    Stage.LAPSED: "the lease ran out before a renewal succeeded; does not act",
    Stage.LEAVING: "gives the lock away: writes `released` if it led and nothing it asked for is under way, renews, removes the lock",
    Stage.LEFT: "has given the lead away, or could not",
}


@dataclass(frozen=True, slots=True)
class LockTimes:
    """Times of the protocol, in seconds; one value, passed in.

    `lease_s` plus `post_timeout_s` must not exceed `foreign_quiet_s`: a former leader's last request has ended by then.
    """

    look_every_s: float = 1.0
    renew_every_s: float = 10.0
    lease_s: float = 60.0
    expiry_after_s: float = 121.0  # pmxcfs drops a lock 120 s after its last change, when asked
    ask_every_s: float = 5.0
    foreign_quiet_s: float = 90.0
    post_timeout_s: float = 30.0
    post_margin_s: float = 5.0
    api_failure_s: float = 180.0
    rest_s: float = 300.0
    adopt_every_s: float = 30.0


class LockAct(StrEnum):
    """What a node does about the lock; each is answered by one of the functions below."""

    LOOK = "look"
    TAKE = "take"
    RENEW = "renew"
    ASK_EXPIRY = "ask-expiry"
    WRITE_LEADING = "write-leading"
    WRITE_RELEASED = "write-released"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Leadership:
    """One node's view of who leads. All times are its own CLOCK_BOOTTIME.

    Shape:   `waiting_for` is the act that has been asked and not answered; there is one at a time, as a call may hang.
    """

    node: str
    incarnation: str
    times: LockTimes
    started_s: float
    stage: Stage = Stage.FOLLOWING
    epoch: int = 0
    highest_epoch: int = 0
    lease_until_s: float = 0.0
    renewed_s: float = 0.0
    lock_mtime_s: int | None = None
    unchanged_since_s: float = 0.0
    foreign_seen_s: float = 0.0
    seen_s: float = 0.0
    has_looked: bool = False
    leader: LeaderFile | None = None
    leader_known: bool = False
    looked_s: float = NEVER_S
    asked_expiry_s: float = NEVER_S
    tried_adopting_s: float = NEVER_S
    stands_again_s: float = NEVER_S
    not_before_s: float = NEVER_S
    waiting_for: LockAct | None = None
    stop_wanted: bool = False
    says_released: bool = True

    def may_act(self, now_s: float) -> bool:
        """True when this node leads and its lease is long enough for one more request."""
        return self.stage is Stage.LEADING and self.lease_until_s - now_s > self.times.post_timeout_s + self.times.post_margin_s

    def leads(self, now_s: float) -> bool:
        """True while this node leads with a lease that has not run out."""
        return self.stage is Stage.LEADING and now_s < self.lease_until_s


def begin(node: str, incarnation: str, times: LockTimes, now_s: float) -> Leadership:
    """The view of an agent that has just started: it knows of nobody, so anybody may have renewed a moment ago."""
    return Leadership(node, incarnation, times, now_s, unchanged_since_s=now_s, foreign_seen_s=now_s, seen_s=now_s)


def next_act(state: Leadership, now_s: float, *, may_stand: bool) -> tuple[Leadership, LockAct | None]:
    """Return what to do about the lock now, None when there is nothing or an earlier call has not come back.

    `may_stand` False keeps a follower from becoming leader (mode off, no API access); it does not end a lead.
    """
    state = _lapsed_if_late(state, now_s)
    is_early = state.waiting_for is not None or now_s < state.not_before_s
    act = None if is_early else _wanted(state, now_s, may_stand=may_stand)
    if act is None:
        return state, None
    match act:
        case LockAct.LOOK:
            return replace(state, waiting_for=act, looked_s=now_s), act
        case LockAct.ASK_EXPIRY:
            return replace(state, waiting_for=act, asked_expiry_s=now_s), act
        case LockAct.RENEW if state.stage is Stage.FOLLOWING:
            return replace(state, waiting_for=act, tried_adopting_s=now_s), act
    return replace(state, waiting_for=act), act


def _lapsed_if_late(state: Leadership, now_s: float) -> Leadership:
    if state.stage in (Stage.HOLDING, Stage.LEADING) and now_s >= state.lease_until_s:
        return replace(state, stage=Stage.LAPSED)
    return state


def _wanted(state: Leadership, now_s: float, *, may_stand: bool) -> LockAct | None:  # noqa: C901  # the table of stages
    times = state.times
    look_due = now_s - state.looked_s >= times.look_every_s
    match state.stage:
        case Stage.LEFT:
            return None
        case Stage.LEAVING:
            if state.says_released and state.leader is not None and state.leader.state is LeaderState.LEADING and _is_mine(state):
                return LockAct.WRITE_RELEASED if now_s < state.lease_until_s else LockAct.RENEW
            is_fresh = state.renewed_s >= state.looked_s and now_s - state.renewed_s < times.renew_every_s
            return LockAct.RELEASE if is_fresh else LockAct.RENEW
        case Stage.FOLLOWING:
            if state.stop_wanted:
                return None
            if look_due:
                return LockAct.LOOK
            if not state.has_looked or not may_stand or now_s < state.stands_again_s:
                return None
            if state.lock_mtime_s is None:
                return LockAct.TAKE
            if state.tried_adopting_s == NEVER_S:
                return LockAct.RENEW  # once: nothing else tells that an earlier run of this node holds the lock without having led
            adopts = state.leader is not None and state.leader.node == state.node
            if adopts and now_s - state.tried_adopting_s >= times.adopt_every_s:
                return LockAct.RENEW
            if now_s - state.unchanged_since_s >= times.expiry_after_s and now_s - state.asked_expiry_s >= times.ask_every_s:
                return LockAct.ASK_EXPIRY
            return None
        case Stage.HOLDING | Stage.LEADING | Stage.LAPSED:
            if now_s - state.renewed_s >= times.renew_every_s or state.stage is Stage.LAPSED:
                return LockAct.RENEW
            if state.stage is Stage.HOLDING:
                if not state.leader_known:
                    return LockAct.LOOK
                if why_not_act_yet(state, now_s) is None:
                    return LockAct.WRITE_LEADING
            return LockAct.LOOK if look_due else None


def why_not_act_yet(state: Leadership, now_s: float) -> str | None:
    """Why a node that has the lock may not lead yet, None when it may: a former leader's request may be under way."""
    leader = state.leader
    if leader is not None and (leader.state is LeaderState.RELEASED or leader.node == state.node):
        return None
    quiet_s = now_s - state.foreign_seen_s
    if quiet_s >= state.times.foreign_quiet_s:
        return None
    former = "a former leader" if leader is None else leader.node
    return f"{former} may still be acting for {state.times.foreign_quiet_s - quiet_s:.0f} s"


def _is_mine(state: Leadership) -> bool:
    leader = state.leader
    return leader is not None and leader.node == state.node and leader.incarnation == state.incarnation


def on_looked(state: Leadership, at_s: float, mtime_s: int | None, leader: LeaderFile | None) -> Leadership:
    """What a look showed: the lock's mtime (None: no lock) and leader.json (None: none, or not readable as one).

    `at_s` is when the answer came: the look saw what was then or a moment before, while it may have been asked for minutes ago.
    """
    previous, changed = state.leader, mtime_s != state.lock_mtime_s
    highest = state.highest_epoch if leader is None else max(state.highest_epoch, leader.epoch)
    waiting = None if state.waiting_for is LockAct.LOOK else state.waiting_for
    # Nothing was seen for so long that a leader may have renewed meanwhile; who holds the lock already knows that nobody has.
    is_blind = at_s - state.seen_s > state.times.renew_every_s
    is_blind &= mtime_s is None if state.stage is Stage.FOLLOWING else state.stage is Stage.HOLDING and not state.leader_known
    is_renewed = changed and state.stage is Stage.FOLLOWING
    state = replace(
        state,
        waiting_for=waiting,
        has_looked=True,
        leader_known=True,
        highest_epoch=highest,
        leader=leader,
        seen_s=at_s,
        foreign_seen_s=at_s if is_blind or (is_renewed and mtime_s is not None) else state.foreign_seen_s,
        unchanged_since_s=at_s if is_renewed else state.unchanged_since_s,
        lock_mtime_s=mtime_s if is_renewed else state.lock_mtime_s,
    )
    if state.stage in (Stage.LEADING, Stage.HOLDING, Stage.LAPSED):
        if mtime_s is None:
            return _lost(state, at_s)
        if state.stage is Stage.LEADING and not _names_me(state):
            return _lost(state, at_s)
        if state.stage is Stage.HOLDING and leader is not None and previous is not None and leader.epoch > previous.epoch:
            return _lost(state, at_s)
    return state


def _names_me(state: Leadership) -> bool:
    return state.leader is not None and _is_mine(state) and state.leader.epoch == state.epoch


def on_took(state: Leadership, called_s: float, *, got_it: bool) -> Leadership:
    """mkdir came back; the lease counts from before the call."""
    state = _answered(state, LockAct.TAKE)
    if state.stage is not Stage.FOLLOWING:
        return state
    if not got_it:
        return replace(state, looked_s=NEVER_S)  # somebody was quicker: look at once
    return replace(
        state, stage=Stage.HOLDING, lease_until_s=called_s + state.times.lease_s, renewed_s=called_s, leader_known=False, looked_s=NEVER_S
    )


def on_renewed(state: Leadership, called_s: float) -> Leadership:
    """utime succeeded. A lapsed lease that is regained is a new epoch: the node holds, and has to begin anew."""
    state = _answered(state, LockAct.RENEW)
    lease = called_s + state.times.lease_s
    match state.stage:
        case Stage.FOLLOWING | Stage.LAPSED:
            return replace(state, stage=Stage.HOLDING, lease_until_s=lease, renewed_s=called_s, leader_known=False, looked_s=NEVER_S)
        case Stage.HOLDING | Stage.LEADING:
            if called_s >= state.lease_until_s:
                return replace(state, stage=Stage.HOLDING, lease_until_s=lease, renewed_s=called_s, leader_known=False, looked_s=NEVER_S)
            return replace(state, lease_until_s=max(lease, state.lease_until_s), renewed_s=called_s)
        case _:  # asked for after `released` was written, as one act is asked at a time: at the same instant where time is simulated
            return replace(state, renewed_s=max(called_s, state.looked_s), lease_until_s=max(lease, state.lease_until_s))


def on_not_holder(state: Leadership, at_s: float) -> Leadership:
    """The lock is gone or another node's: the lead, if there was one, is over at once."""
    state = replace(state, waiting_for=None)
    if state.stage is Stage.LEAVING:
        return _left(state, at_s)
    return _lost(state, at_s) if state.stage is not Stage.FOLLOWING else state


def on_failed(state: Leadership, act: LockAct, at_s: float) -> Leadership:
    """A call failed for a reason that may pass; nothing is known that was not known before. The lease decides.

    The next call waits as long as between two looks, so that a filesystem that is not there is not asked without a pause.
    """
    state = replace(_answered(state, act), not_before_s=at_s + state.times.look_every_s)
    if act is LockAct.TAKE:
        state = replace(state, tried_adopting_s=NEVER_S)  # it may have been carried out all the same
    return _left(state, at_s) if state.stage is Stage.LEAVING else state


def on_asked(state: Leadership) -> Leadership:
    """utime(0, 0) came back: whether pmxcfs drops the lock shows at the next look."""
    return _answered(state, LockAct.ASK_EXPIRY)


def on_wrote_leading(state: Leadership, written: LeaderFile) -> Leadership:
    """leader.json names this node now: from here on it acts."""
    state = _answered(state, LockAct.WRITE_LEADING)
    if state.stage is not Stage.HOLDING:
        return state
    return replace(state, stage=Stage.LEADING, epoch=written.epoch, highest_epoch=max(written.epoch, state.highest_epoch), leader=written)


def on_wrote_released(state: Leadership, written: LeaderFile) -> Leadership:
    """leader.json says `released`: one more renewal proves that the lock is still this node's to remove."""
    return replace(_answered(state, LockAct.WRITE_RELEASED), leader=written, looked_s=state.renewed_s + 1e-6)


def on_released(state: Leadership, now_s: float) -> Leadership:
    """The lock is removed."""
    return _left(_answered(state, LockAct.RELEASE), now_s)


def give_up(state: Leadership, now_s: float, *, stops: bool, is_asking: bool = False) -> Leadership:
    """Begin to give the lead away: for good when the process stops, else for `rest_s` (its own API access fails).

    `is_asking`: a request of this lead has no answer yet. Then leader.json goes on naming it, so that whoever has the lock next waits
    until that request must be over. A process that stops gives away a lock with which it does not lead, too.
    """
    state = replace(state, stop_wanted=state.stop_wanted or stops)
    if state.stage is Stage.LEADING:
        return replace(state, stage=Stage.LEAVING, looked_s=now_s, says_released=not is_asking)
    if stops and state.stage in (Stage.HOLDING, Stage.LAPSED):
        return replace(state, stage=Stage.LEAVING, looked_s=now_s, says_released=False)  # what its last lead asked for may be under way
    if stops and state.stage is not Stage.LEAVING:
        return replace(state, stage=Stage.LEFT)
    return state


def _left(state: Leadership, at_s: float) -> Leadership:
    """The lead is given away, or could not be: a process that stops is done, one that goes on follows, and rests."""
    if state.stop_wanted:
        return replace(state, stage=Stage.LEFT)
    return replace(_lost(state, at_s), stands_again_s=at_s + state.times.rest_s)


def _lost(state: Leadership, at_s: float) -> Leadership:
    return replace(
        state,
        stage=Stage.FOLLOWING,
        epoch=0,
        lease_until_s=0.0,
        lock_mtime_s=None,
        has_looked=False,
        leader_known=False,
        unchanged_since_s=at_s,
        foreign_seen_s=at_s,
        looked_s=NEVER_S,
    )


def _answered(state: Leadership, act: LockAct) -> Leadership:
    return replace(state, waiting_for=None) if state.waiting_for is act else state

# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may have acted, judged by the lock table and by what reached PVE, at the instant it did; the agents are not asked.

The rule is: nobody sends a request without the lock, or while leader.json names another; requests of two nodes are never under way at
the same time; nobody removes another node's lock; no guest is sent again whose migration has not failed.

PVE has no fencing token, so nobody can look and send in one step. A request that was checked for (a renewal that succeeded, after which
leader.json named the sender) is let off when what struck since then took the lock away, and when it reached PVE within `LATEST_S` of its
check. That lets off nothing else: such a request is still judged by the other rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.core.documents import DocumentError, LeaderFile, parse
from agent.core.leadership import LockTimes
from agent.ports import MigrationOrder
from agent.sim.inventory import SimNode
from agent.sim.world import World

_TIMES = LockTimes()
POST_TIMEOUT_S = _TIMES.post_timeout_s  # an answer is not waited for longer, and PVE's server has given up by then, too
LATEST_S = _TIMES.lease_s - _TIMES.post_timeout_s - _TIMES.post_margin_s  # from the check until nothing goes out any more


@dataclass(slots=True)
class Sent:
    """A request to migrate that reached PVE.

    Shape:   `holder` had the lock in the quorate part then, and None is nobody, or a sender outside of that part; `leader` is
             leader.json there and then; `checked_s` is when the sender renewed the lock for this request, None: never; `struck` is what
             struck since. `over_s` is when the request was over: answered, given up, or its sender dead.
    """

    at_s: float
    sender: str
    order: MigrationOrder
    holder: str | None
    leader: LeaderFile | None
    checked_s: float | None
    struck: tuple[str, ...]
    over_s: float
    answer: str = ""
    is_answered: bool = False

    @property
    def has_begun(self) -> bool:
        """True when PVE started a task."""
        return self.answer.startswith("UPID")

    @property
    def late_s(self) -> float:
        """From the check to PVE."""
        return float("inf") if self.checked_s is None else self.at_s - self.checked_s

    @property
    def is_let_off(self) -> bool:
        """True for what lies between a check and its request, as nothing can exclude it."""
        return bool(self.struck) and self.late_s < LATEST_S

    def why_not(self) -> Iterator[str]:
        """Why it should not have been sent at that instant."""
        if self.holder != self.sender:
            yield f"{self.at_s:.1f} s: {self.sender} sends {self.order.vmid} while {self.holder} has the lock"
        if self.leader is None or self.leader.node != self.sender:
            named = "nobody" if self.leader is None else self.leader.node
            yield f"{self.at_s:.1f} s: {self.sender} sends {self.order.vmid} while leader.json names {named}"


class Judge:
    """Takes down every request and every lock that is removed, and says what must not have been."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.requests: list[Sent] = []
        self._removed: list[str] = []

    def sent(self, sender: str, order: MigrationOrder, checked_s: float | None, struck: tuple[str, ...]) -> Sent:
        """A request reaches PVE now."""
        world = self._world
        text = world.main.files.get("proxlb/leader.json")
        try:
            leader = None if text is None else parse(LeaderFile, text)
        except DocumentError:
            leader = None
        holder = world.lock_holder() if world.pmxcfs.is_quorate(world.nodes[sender]) else None
        sent = Sent(world.now_s, sender, order, holder, leader, checked_s, struck, world.now_s + POST_TIMEOUT_S)
        self.requests.append(sent)
        return sent

    def answered(self, sender: str) -> None:
        """The sender's request is over."""
        for sent in self.requests:
            if sent.sender == sender and not sent.is_answered:
                sent.is_answered, sent.over_s = True, min(sent.over_s, self._world.now_s)

    def removes(self, node: SimNode) -> None:
        """That node's agent removes the lock now."""
        lock = node.partition.lock
        if lock is not None and lock.writer != node.name:
            self._removed.append(f"{self._world.now_s:.1f} s: {node.name} removes the lock of {lock.writer}")

    def problems(self) -> Iterator[str]:
        """What must not have happened."""
        yield from self.of_leaders()
        yield from self.moved_twice()

    def of_leaders(self) -> Iterator[str]:
        """What nobody may do who does not lead, or two at a time."""
        for sent in self.requests:
            if not sent.is_let_off:
                yield from sent.why_not()
        yield from self._removed
        yield from self.overlapping()

    def let_off(self) -> Iterator[Sent]:
        """Requests that should not have been sent, and could not be kept from it."""
        return (sent for sent in self.requests if sent.is_let_off and any(sent.why_not()))

    def overlapping(self) -> Iterator[str]:
        """Two nodes' requests at the same time, or under epochs that do not follow each other."""
        for number, after in enumerate(self.requests):
            for before in self.requests[:number]:
                if before.sender == after.sender:
                    continue
                if before.over_s > after.at_s:
                    yield f"{after.at_s:.1f} s: {after.sender} sends {after.order.vmid} while a request of {before.sender} is under way"
                if before.leader is None or after.leader is None or after.is_let_off or before.is_let_off:
                    continue
                if after.leader.epoch <= before.leader.epoch:
                    yield f"{after.at_s:.1f} s: {after.sender} acts in epoch {after.leader.epoch} after {before.leader.epoch}"

    def moved_twice(self) -> Iterator[str]:
        """Guests of which a second migration was begun although the first had not failed."""
        begun: dict[int, Sent] = {}
        for sent in self.requests:
            if not sent.has_begun:
                continue
            before = begun.get(sent.order.vmid)
            begun[sent.order.vmid] = sent
            if before is None:
                continue
            task = self._world.tasks.known(before.answer)
            if task is None or task.status is None or task.status == "OK":
                status = None if task is None else task.status
                yield f"{sent.at_s:.1f} s: {sent.order.vmid} is sent again, its migration of {before.at_s:.1f} s is {status}"

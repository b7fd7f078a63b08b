# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold on a simulated day, judged by the cluster and by what reached PVE. What the agents could not know yet is let off:
a load, a tag or a clock that somebody changed a moment before."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.core.cluster import GuestType
from agent.core.journal import Level, MessageId
from agent.sim.inventory import AgentWish
from agent.sim.records import JournalLine, Post
from tests.fire.judge import Sent
from tests.scenarios.witness import Witness

if TYPE_CHECKING:
    from tests.chaos.day import Day

MEASURED_S = 60.0  # pvestatd's rounds, a look, and the way of a request: memory is known after that
SMOOTHED_S = 900.0  # cpu is smoothed over five minutes: after 15, a twentieth of a change is not in it yet
NEARLY_CORES = 0.02  # of a node's: what is left of that
KNOWN_S = 180.0  # a tag is seen with the next look; a request may wait for a slot after it
IN_DOUBT_S = 60.0
MOVING_S = 60.0  # the agents count from the request, the witness from when the guest is there
ECHO_S = 50.0  # after the end of a migration: the agents' own 60 s less a late look


class DayWitness(Witness):
    """Looks at the cluster after each instant; `judged` counts what was not let off."""

    def __init__(self, day: Day) -> None:
        super().__init__(day.world, day.machine.settings.settings)
        self._day = day
        self.judged: Counter[str] = Counter()
        self._full_s: dict[str, float] = {}  # when a node's processors were too few last

    def look(self) -> None:
        """See `Witness.look`."""
        super().look()
        for name, row in self._world.main.node_rows.items():
            if row.pressure_cpu_percent > 0.0:
                self._full_s[name] = row.sampled_s

    def _why_not_ask(self, post: Post) -> Iterator[str]:
        # the lock is the judge's
        if self._is_tagged_lately(post):
            return
        self.judged["guest that may move"] += 1
        yield from super()._why_not_ask(replace(post, held_lock=True))

    def _overfull(self, post: Post) -> Iterator[str]:
        settled_s = self._world.now_s - self._unsettled_s(post)
        if settled_s < MEASURED_S:
            return
        self.judged["room on the target"] += 1
        # What guests want beyond what their node has is not seen by anybody.
        is_cpu_known = settled_s >= SMOOTHED_S and all(self._world.now_s - at_s >= SMOOTHED_S for at_s in self._full_s.values())
        use = self._world.use().get(post.order.target)
        is_nearly = use is not None and use.used_cores <= use.cores * (1 + NEARLY_CORES)
        self.judged["processors of the target"] += is_cpu_known
        for problem in super()._overfull(post):
            if not problem.startswith("cpu") or (is_cpu_known and not is_nearly):
                yield problem

    def _unsettled_s(self, post: Post) -> float:
        """When that changed last which the target has to bear, of its own and with those who are on their way to it."""
        world, target, changed = self._world, post.order.target, self._day.unsettled_guests
        comers = {vmid for vmid, flight in world.migrations.under_way.items() if flight.target == target}
        bear = {post.order.vmid, *comers, *world.residents(target)}
        return max(self._day.unsettled[target], *(changed.get(vmid, -math.inf) for vmid in bear))

    def _breaks_a_rule(self, post: Post) -> Iterator[str]:
        if self._is_tagged_lately(post):
            return
        self.judged["rules"] += 1
        yield from super()._breaks_a_rule(post)

    def _is_too_soon(self, post: Post) -> Iterator[str]:
        if self._world.now_s - max(-math.inf, *self._day.clocks_set[-1:], self._day.forced_s) < self._settings.balance.guest_cooldown_s:
            return
        if any(node.wall_offset_s for node in self._world.nodes.values()):
            return
        self.judged["cooldown"] += 1
        moved_s = self._moved_s.get(post.order.vmid)
        if moved_s is not None and self._world.now_s - moved_s < self._settings.balance.guest_cooldown_s - MOVING_S:
            yield from super()._is_too_soon(post)

    def _is_tagged_lately(self, post: Post) -> bool:
        return any(self._world.now_s - at_s < KNOWN_S for at_s in self._day.tagged.values())

    # the whole day

    def all_problems(self) -> list[str]:
        """Everything that was seen, and what shows only in the whole day."""
        judge = self._day.machine.judge
        return [
            *self.problems,
            *judge.of_leaders(),
            *self.bugs(),
            *self._day.machine.sent_again,
            *self._sent_in_doubt(judge.requests),
            *self._echoes(judge.requests),
            *self._answered_twice(),
            *self._unanswered(),
            *self._no_leader(),
        ]

    def _sent_in_doubt(self, requests: Iterable[Sent]) -> Iterator[str]:
        """A guest is asked to move again while nobody can know what became of the last request: it is still where it was."""
        last: dict[int, Sent] = {}
        for sent in requests:
            before = last.get(sent.order.vmid)
            last[sent.order.vmid] = sent
            if before is None:
                continue
            self.judged["sent again"] += 1
            since_s = sent.at_s - before.at_s
            is_in_doubt = "InDoubtError" in before.answer and sent.order.source == before.order.source
            if is_in_doubt and since_s < IN_DOUBT_S - 1 and not self._day.was_touched(sent.order.vmid, before.at_s, sent.at_s):
                yield f"{sent.at_s:.1f} s: {sent.sender} sends {sent.order.vmid} again, {since_s:.0f} s after a request without an answer"

    def _echoes(self, requests: Iterable[Sent]) -> Iterator[str]:
        """The leader takes its own migration for news."""
        world, day = self._world, self._day
        spans = []
        for sent in requests:
            task = world.tasks.known(sent.answer) if sent.has_begun else None
            if task is not None and task.status == "OK" and task.ended_at is not None:
                spans.append((sent, task.ended_at - task.started_at))
        told: dict[int, list[JournalLine]] = defaultdict(list)
        for line in self._of(MessageId.EVENT):
            if line.record.level <= Level.INFO and line.record.vmid is not None:
                told[line.record.vmid].append(line)
        for sent, lasted_s in spans:
            self.judged["echoes"] += 1
            for line in told[sent.order.vmid]:
                if line.node != sent.sender or not sent.at_s < line.at_s < sent.at_s + lasted_s + ECHO_S:
                    continue
                if any(sent.at_s <= at_s <= line.at_s for at_s in day.clocks_set):
                    continue  # nobody can tell how long ago it was
                if not day.was_touched(sent.order.vmid, sent.at_s - ECHO_S, line.at_s) and sent.order.type is GuestType.QEMU:
                    yield f"{line.at_s:.1f} s: {line.node} takes its migration of {sent.at_s:.1f} s for news: {line.record.text}"

    def _answered_twice(self) -> Iterator[str]:
        """More events of other nodes' inboxes than hooks have left, and than processes that were killed may have told again."""
        left = self._day.world.hooked
        told: Counter[tuple[int, str]] = Counter()
        held_back: set[tuple[str, str]] = set()
        phases = {"guest-started": "post-start", "guest-stopped": "post-stop"}
        for line in self._world.journal:
            record = line.record
            if record.message_id in (MessageId.STARTED, MessageId.LEADERSHIP):
                told.clear()
            if record.message_id is MessageId.EVENT and record.vmid is not None and "seen by inbox" in record.text:
                if record.level is Level.DEBUG:
                    held_back.add((line.node, record.text))
                elif (line.node, record.text) in held_back:  # in a storm; of one that is held back alone the journal tells after all
                    held_back.discard((line.node, record.text))
                    continue
                key = (record.vmid, phases.get(record.event or "", ""))
                told[key] += 1
                self.judged["inbox"] += 1
                if told[key] > left[key]:
                    yield f"{line.at_s:.1f} s: {line.node} answers {told[key]} times what happened {left[key]} times: {record.text}"

    def _no_leader(self) -> Iterator[str]:
        world = self._world
        holder = world.lock_holder()
        if holder is None or world.nodes[holder].agent is not AgentWish.RUN:
            yield f"{world.now_s:.1f} s: {holder or 'nobody'} has the lock in the end"
        elif (agent := self._day.machine.agent(holder)) is None or agent.work is None:
            yield f"{world.now_s:.1f} s: {holder} does not lead in the end"

    def not_answered(self, node: str) -> Iterator[str]:
        """Guests that a flag has not moved, though nothing keeps them."""
        world = self._world
        for vmid, guest in sorted(world.residents(node).items()):
            if (
                guest.status != "running"
                or guest.ha is not None
                or guest.tags
                or guest.lock is not None
                or vmid in world.migrations.under_way
            ):
                continue
            yield f"{world.now_s:.1f} s: guest {vmid} is still on {node}"

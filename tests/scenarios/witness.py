# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds in every scenario, judged by the simulated cluster itself and not by what the agents believe.

Written without the agent's own rules, limits and history, so that an error there does not hide itself here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from agent.core.cluster import GIB, GuestType
from agent.core.journal import Level, MessageId
from agent.core.settings import Settings
from agent.sim.records import JournalLine, Post
from agent.sim.world import World

LATEST_ANSWER_S = 100.0  # an event is answered within settle_max_s and a look; what came later than that before the end is let off
LONGEST_SENTENCE = 400


class Witness:
    """Looks at the cluster after each instant; `problems` are what it saw, and `all_problems` those of the whole story, too."""

    def __init__(self, world: World, settings: Settings) -> None:
        self._world, self._settings = world, settings
        self._posts = 0
        self._together = [group for group in self._affinity_groups() if self._is_together(group)]
        self.running_at_first = set(world.running())
        self._places = world.placements()
        self._vmlist_version = world.vmlist_version
        self._moved_s: dict[int, float] = {}
        self.problems: list[str] = []

    def look(self) -> None:
        """Judge the requests of this instant by what the cluster is now."""
        new = self._world.post_record[self._posts :]
        self._posts += len(new)
        started = [post for post in new if post.answer.startswith("UPID") or "InDoubtError" in post.answer]
        for post in new:
            self._say(post, self._why_not_ask(post))
        for post in started:
            self._say(post, self._overfull(post))
            self._say(post, self._breaks_a_rule(post))
            self._say(post, self._is_too_soon(post))
        self._see_who_moved()

    def _see_who_moved(self) -> None:
        if self._world.vmlist_version == self._vmlist_version:
            return
        self._vmlist_version = self._world.vmlist_version
        places = self._world.placements()
        self._moved_s |= {vmid: self._world.now_s for vmid, node in places.items() if self._places.get(vmid, node) != node}
        self._places = places

    def _say(self, post: Post, problems: Iterable[str]) -> None:
        for problem in problems:
            self.problems.append(f"{post.at_s:.1f} s: {post.sender} sends {post.order.vmid} to {post.order.target}: {problem}")

    # one request

    def _why_not_ask(self, post: Post) -> Iterator[str]:
        if not post.held_lock:
            yield "its node did not have the lock"
        guest = self._world.guests.get(post.order.vmid)
        words = _tags(guest.tags) if guest is not None else []
        if any(word == "plb_ignore" or word.startswith("plb_ignore_") for word in words):
            yield "the guest is to be ignored"
        if guest is not None and guest.template:
            yield "the guest is a template"
        if guest is not None and guest.ha not in (None, "started", "stopped"):
            yield f"the HA manager has it in the state {guest.ha}"
        if any(vmid == post.order.vmid for vmid, _, _ in self._world.ha.commands):
            yield "the HA manager has been asked already"

    def _overfull(self, post: Post) -> Iterator[str]:
        """A target's limits, with guests in flight counted on both of their nodes."""
        use = self._world.use().get(post.order.target)
        if use is None:
            yield "the target is offline"
            return
        reserve = self._settings.balance.node_reserve
        limit = use.memory_bytes - max(use.memory_bytes * reserve.memory_percent / 100, reserve.memory_gib * GIB)
        if use.used_memory_bytes > limit:
            yield f"memory there is {use.used_memory_bytes / GIB:.1f} of {limit / GIB:.1f} GiB"
        if use.used_cores > use.cores:
            yield f"cpu there is {use.used_cores:.1f} of {use.cores:.1f} cores"

    def _breaks_a_rule(self, post: Post) -> Iterator[str]:
        world, vmid, target = self._world, post.order.vmid, post.order.target
        guest = world.guests[vmid]
        words = _tags(guest.tags)
        nodes = {name.lower() for name in world.nodes}
        pins = {word.removeprefix("plb_pin_") for word in words if word.startswith("plb_pin_")} & nodes
        if pins and target.lower() not in pins:
            yield f"it is pinned to {sorted(pins)}"
        apart = {word for word in words if word.startswith("plb_anti_affinity_")}
        for other in world.guests.values():
            if other.vmid == vmid or other.status != "running" or apart.isdisjoint(_tags(other.tags)):
                continue
            flight = world.migrations.under_way.get(other.vmid)
            has_left = flight is None or (other.type is GuestType.LXC and other.node == flight.target)  # a VM's process ends with its task
            if target in ({other.node} if has_left else {flight.source, flight.target}):
                yield f"guest {other.vmid} is there, from which it is to be kept apart"

    def _is_too_soon(self, post: Post) -> Iterator[str]:
        """Whoever moved a guest, load moves it again only after its cooldown."""
        before = self._moved_s.get(post.order.vmid)
        if before is None or self._world.now_s - before >= self._settings.balance.guest_cooldown_s:
            return
        said = [line.record for line in self._world.journal[-50:] if line.at_s == post.at_s and line.record.vmid == post.order.vmid]
        if any(record.message_id is MessageId.MOVE and record.reason in ("overload", "spread") for record in said):
            yield f"for load, {self._world.now_s - before:.0f} s after it moved"

    # the end

    def all_problems(self) -> list[str]:
        """Everything that was seen, and what shows only in the whole story."""
        return [
            *self.problems,
            *self._epochs(),
            *self.bugs(),
            *self._unanswered(),
            *self._torn_apart(),
        ]

    def _epochs(self) -> Iterator[str]:
        """One node acts at a time: each request is announced with an epoch, epochs rise, and each has one sender."""
        said = {(line.at_s, line.node, line.record.vmid): line.record for line in self._of(MessageId.MOVE)}
        sender_of: dict[int, str] = {}
        highest = 0
        for post in self._world.post_record:
            record = said.get((post.at_s, post.sender, post.order.vmid))
            if record is None or record.epoch is None or record.reason is None:
                yield f"{post.at_s:.1f} s: guest {post.order.vmid} was sent away without a line that says so, with epoch and reason"
                continue
            if record.epoch < highest:
                yield f"{post.at_s:.1f} s: {post.sender} acts in epoch {record.epoch} after epoch {highest} has begun"
            if sender_of.setdefault(record.epoch, post.sender) != post.sender:
                yield f"{post.at_s:.1f} s: {post.sender} acts in epoch {record.epoch}, which is {sender_of[record.epoch]}'s"
            highest = max(highest, record.epoch)

    def bugs(self) -> Iterator[str]:
        """Errors in the agents that they told themselves."""
        for line in self._of(MessageId.BUG):
            yield f"{line.at_s:.1f} s: {line.node}: {line.record.text}"

    def _unanswered(self) -> Iterator[str]:
        """Every event that the leader took is followed by the one sentence that ends its cycle, or by the end of its lead."""
        waiting: dict[str, list[JournalLine]] = defaultdict(list)
        for line in self._world.journal:
            record = line.record
            if record.message_id is MessageId.EVENT and record.level <= Level.INFO:
                waiting[line.node].append(line)
            elif record.message_id is MessageId.DECISION:
                waiting[line.node].clear()
                if "\n" in record.text or len(record.text) > LONGEST_SENTENCE:
                    yield f"{line.at_s:.1f} s: not one sentence: {record.text}"
            elif record.message_id in (MessageId.LEADERSHIP, MessageId.STARTED, MessageId.STOPPED):
                waiting[line.node].clear()
        for lines in waiting.values():
            for line in lines:
                is_young = line.at_s > self._world.now_s - LATEST_ANSWER_S
                if not is_young and not self._world.in_flight() and line.node in self._world.agents_wanted():
                    yield f"{line.at_s:.1f} s: {line.node}: no sentence answers: {line.record.text}"

    def _torn_apart(self) -> Iterator[str]:
        for group in self._together:
            if not self._is_together(group):
                yield f"guests {sorted(group)} must stay together and are on different nodes in the end"

    def _affinity_groups(self) -> list[frozenset[int]]:
        groups: dict[str, set[int]] = defaultdict(set)
        for guest in self._world.guests.values():
            for word in _tags(guest.tags):
                if word.startswith("plb_affinity_"):
                    groups[word].add(guest.vmid)
        return [frozenset(vmids) for _, vmids in sorted(groups.items())]

    def _is_together(self, group: frozenset[int]) -> bool:
        running = self._world.running()
        return len({running[vmid] for vmid in group if vmid in running}) <= 1

    def _of(self, kind: MessageId) -> Iterator[JournalLine]:
        return (line for line in self._world.journal if line.record.message_id is kind)


def _tags(tags: Iterable[str]) -> list[str]:
    return [word.lower() for tag in tags for word in re.split(r"[;, ]+", tag) if word]

# SPDX-License-Identifier: GPL-3.0-or-later
"""How long migrations take: what this cluster's past ones took, and what that foretells.

A live migration copies the guest's memory, so its time is a fixed part and a part for each byte. Both are read from the latest
migrations of the cluster: the part for a byte is the median slope over all pairs of them whose sizes differ enough, the fixed part
the median of what is left (Theil and Sen's line, which a few migrations that were slowed down do not bend). Where all were of one
size, only their time by size is known. Where disks are copied along, these count with the memory, and such migrations have a line of
their own. A container's and a stopped guest's time does not hang on memory: the median of their kind.

What it cannot see: how fast the guest writes to its memory while it is copied, and what else the network carries at that moment.
Migrations that run at the same time share the network; past ones did so, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.core.cluster import MIB, GuestType, Task
from agent.core.documents import Timing, Way
from agent.core.history import is_success
from agent.core.migrations import Migration
from agent.core.plan_types import Move
from agent.core.settings import Settings
from agent.core.slots import slots_of

MOST_KEPT = 48  # 6 KiB of JSON, and enough of each kind
LATEST = 12  # of one kind, that foretell: networks change
UNLIKE = 1.5  # sizes that differ by this factor tell the fixed part from the part for a byte
ASSUMED_FIXED_S = 4.0  # PVE's steps beside copying: tunnel, start on the target, hand-over
ASSUMED_BYTES_S = 100.0 * MIB  # a line of 1 Gbit/s, before anything was migrated
ASSUMED_RESTART_S = 30.0  # a container's stop and start
ASSUMED_OFFLINE_S = 5.0  # a stopped guest on shared storage
SLOWEST_BYTES_S = 1.0 * MIB
NOTICED_S = 4.0  # half a round of asking how it stands, and the look that follows
CLOCK_S = 5.0  # between the clocks of two nodes

_BY_SIZE = (Way.LIVE, Way.COPY)
_OWN_TASKS = frozenset({"qmigrate", "vzmigrate"})


def way_of(type: GuestType, *, is_running: bool, disk_bytes: int = 0) -> Way:
    """How such a guest is moved."""
    if disk_bytes > 0:
        return Way.COPY
    if not is_running:
        return Way.OFFLINE
    return Way.LIVE if type is GuestType.QEMU else Way.RESTART


@dataclass(frozen=True, slots=True)
class Expected:
    """How long a migration will take. `rests_on` is the number of past migrations that say so, 0: it is only assumed."""

    seconds: float
    rests_on: int


def ended_task(record: Migration, tasks: Iterable[Task]) -> Task | None:
    """PVE's task of the attempt, once it has ended; None when it is not in the list, as that of a node that is lost."""
    own = [
        task
        for task in tasks
        if task.vmid == record.vmid
        and task.kind in _OWN_TASKS
        and task.node == record.source
        and task.ended_at is not None
        and task.started_at >= record.planned_at - CLOCK_S
    ]
    return max(own, key=lambda task: (task.started_at, task.upid), default=None)


def timing_of(record: Migration, tasks: Iterable[Task]) -> Timing | None:
    """What a migration that has brought its guest took, by PVE's own task; None when its task is not in the list.

    The task's times are of one clock and to the second; the agent's own are when it noticed.
    """
    last = ended_task(record, tasks)
    if last is None or not is_success(last.status):
        return None
    took_s = (last.ended_at or 0.0) - last.started_at
    if took_s < 0:
        return None
    way = way_of(record.type, is_running=record.online, disk_bytes=record.disk_bytes)
    return Timing(last.ended_at or 0.0, way, record.memory_bytes + record.disk_bytes, took_s, record.limit_kib_s)


def bounded(timings: Iterable[Timing]) -> tuple[Timing, ...]:
    """The latest, each kind with a share of its own, so that a drain of containers does not push out what is known of VMs."""
    kept: list[Timing] = []
    for way in Way:
        kept += sorted((one for one in timings if one.way is way), key=lambda one: one.at)[-(MOST_KEPT // len(Way)) :]
    return tuple(sorted(kept, key=lambda one: (one.at, one.way, one.memory_bytes)))


class Pace:
    """What past migrations foretell, for the limit that is set now."""

    def __init__(self, timings: Sequence[Timing], settings: Settings) -> None:
        self._limit_kib_s = settings.migration.bandwidth_limit_kib_s
        self._of_way = {way: self._latest(timings, way) for way in Way}
        self._lines = {way: self._line(way) for way in _BY_SIZE}

    def _latest(self, timings: Sequence[Timing], way: Way) -> list[Timing]:
        """The latest of a kind; of those whose time hangs on size the ones under the limit of now, where there are any."""
        found = sorted((one for one in timings if one.way is way), key=lambda one: one.at)
        alike = [one for one in found if one.limit_kib_s == self._limit_kib_s]
        return (alike if way in _BY_SIZE and alike else found)[-LATEST:]

    def _line(self, way: Way) -> tuple[float, float]:
        """The fixed part in seconds, and bytes a second."""
        known = [one for one in self._of_way[way] if one.memory_bytes > 0]
        if not known:
            return ASSUMED_FIXED_S, self._limited(ASSUMED_BYTES_S)
        slopes = [
            (two.took_s - one.took_s) / (two.memory_bytes - one.memory_bytes)
            for number, one in enumerate(known)
            for two in known[number + 1 :]
            if max(one.memory_bytes, two.memory_bytes) >= UNLIKE * min(one.memory_bytes, two.memory_bytes)
        ]
        slope = _median(slopes) if slopes else 0.0
        if slope <= 0:
            fixed_s = min(ASSUMED_FIXED_S, *(one.took_s / 2 for one in known))
            slope = _median((one.took_s - fixed_s) / one.memory_bytes for one in known)
        else:
            fixed_s = max(0.0, _median(one.took_s - slope * one.memory_bytes for one in known))
        rate = 1 / slope if slope > 0 else ASSUMED_BYTES_S
        is_alike = all(one.limit_kib_s == self._limit_kib_s for one in known)
        return fixed_s, max(SLOWEST_BYTES_S, rate if is_alike else self._limited(rate))

    def _limited(self, rate: float) -> float:
        return rate if self._limit_kib_s is None else min(rate, self._limit_kib_s * 1024.0)

    def expected(self, way: Way, memory_bytes: float) -> Expected:
        """How long such a guest's migration will take."""
        known = self._of_way[way]
        if way in _BY_SIZE:
            fixed_s, bytes_s = self._lines[way]
            return Expected(fixed_s + max(0.0, memory_bytes) / bytes_s, len(known))
        if known:
            return Expected(_median(one.took_s for one in known), len(known))
        return Expected(ASSUMED_RESTART_S if way is Way.RESTART else ASSUMED_OFFLINE_S, 0)

    def of_move(self, move: Move) -> Expected:
        """How long a move of a plan will take."""
        way = way_of(move.type, is_running=move.is_running, disk_bytes=move.disk_bytes)
        return self.expected(way, move.memory_bytes + move.disk_bytes)

    def of_record(self, record: Migration) -> Expected:
        """How long a migration that was asked for takes in all."""
        way = way_of(record.type, is_running=record.online, disk_bytes=record.disk_bytes)
        return self.expected(way, record.memory_bytes + record.disk_bytes)


@dataclass(frozen=True, slots=True)
class Foretold:
    """How long a plan takes: each of its moves by VMID, and all of them in the slots that there are."""

    moves: Mapping[int, Expected]
    whole_s: float

    @property
    def rests_on(self) -> int:
        """The number of past migrations that the least known of the moves rests on."""
        return min((expected.rests_on for expected in self.moves.values()), default=0)


def foretold(moves: Sequence[Move], timings: Sequence[Timing], settings: Settings) -> Foretold:
    """How long the moves take, begun now with nothing else under way.

    Batches one after the other; in a batch each begins in the plan's order as soon as slots on both of its nodes and in all are
    free, as `agent.core.slots` has it. The pauses of load balancing, for which nobody can know the length, are not in it.
    """
    pace = Pace(timings, settings)
    each = {move.vmid: pace.of_move(move) for move in moves}
    return Foretold(each, _whole_s(moves, [], each, settings))


def remaining(moves: Sequence[Move], under_way: Sequence[Migration], timings: Sequence[Timing], settings: Settings, now: float) -> Expected:
    """How long what is under way and the moves after it take from now on, in the slots that there are, as `foretold` has it.

    What takes longer than it should is expected to end at any moment.

    Units:   `now` in Unix seconds.
    """
    pace, busy = Pace(timings, settings), {record.vmid for record in under_way}
    each = {move.vmid: pace.of_move(move) for move in moves if move.vmid not in busy}
    asked = [(record, pace.of_record(record), now - (record.began_at or record.asked_at or record.planned_at)) for record in under_way]
    running = [
        (max(0.0, expected.seconds - max(0.0, since_s)) + NOTICED_S, record.vmid, record.source, record.target)
        for record, expected, since_s in asked
    ]
    rests_on = min((expected.rests_on for expected in (*each.values(), *(expected for _, expected, _ in asked))), default=0)
    return Expected(_whole_s([move for move in moves if move.vmid in each], running, each, settings), rests_on)


_Running = tuple[float, int, str, str]  # when it ends, VMID, source, target


def _whole_s(moves: Sequence[Move], running: list[_Running], each: Mapping[int, Expected], settings: Settings) -> float:
    now = 0.0
    for batch in sorted({move.batch for move in moves}) or [1]:
        waiting = [move for move in moves if move.batch == batch]
        while waiting or running:
            now = _start(waiting, running, each, settings, now)
    return now


def _start(waiting: list[Move], running: list[_Running], each: Mapping[int, Expected], settings: Settings, now: float) -> float:
    """Start what has a slot, let the first of what runs end; returns when that is."""
    for move in list(waiting):
        slots = slots_of(move.reason, settings)
        busy = Counter(name for _, _, *nodes in running for name in nodes)
        if len(running) < slots.parallel_total and max(busy[move.source], busy[move.target]) < slots.parallel_per_node:
            running.append((now + each[move.vmid].seconds + NOTICED_S, move.vmid, move.source, move.target))
            waiting.remove(move)
    running.sort()
    return running.pop(0)[0]


def foretold_words(foretold: Foretold) -> str:
    """`about 3 min in all, by the last 12 migrations`."""
    known = foretold.rests_on
    by = (
        f"by the last {known} migration{'s' if known != 1 else ''} of the kind"
        if known
        else "assumed, as none of the kind was measured yet"
    )
    return f"about {words(foretold.whole_s)} in all, {by}"


def words(seconds: float) -> str:
    """`40 s`, `3 min`, `2.5 h`: as exact as such a number can be."""
    if seconds < 90:
        return f"{max(5.0, 5 * round(seconds / 5)):.0f} s" if seconds >= 5 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _median(values: Iterable[float]) -> float:
    """As `statistics.median`, which brings decimal and fractions along, half a MiB."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

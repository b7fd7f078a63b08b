# SPDX-License-Identifier: GPL-3.0-or-later
"""What leaders remember for each other, and what follows from it: cooldowns, brakes, who is set aside.

A time that lies ahead was written by a clock that was: within a window it counts as if it were as long ago, beyond it not at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from agent.core.aside import is_kept
from agent.core.cluster import MIGRATE_KINDS, Snapshot
from agent.core.documents import HISTORY_SCHEMA, Answer, DocumentError, ForeignMove, HistoryFile, parse, render
from agent.core.failures import FailureClass
from agent.core.guest_load import FRESH_S, GuestLoad
from agent.core.migrations import Migration, MigrationState, is_load_move
from agent.core.reasons import MoveReason

KEPT_MIGRATIONS = 150  # about 60 KiB of JSON, well under what is read in one piece
KEPT_ANSWERS = 20
KEPT_FOREIGN = 200  # 9 KiB
MOST_PLACES = 1000  # 17 KiB: of more guests under the HA manager no place is kept
MOST_BYTES = 90_000  # files over 100 KiB are not written, as larger ones tear
KEPT_S = 2 * 86400.0
HOUR_S = 3600.0
DAY_S = 86400.0
LEARNED_S = 600.0  # for so long after a migration its guest's load is known better from before than from its first samples
SAMPLED_S = 15.0  # pvestatd's round of 10 s and its own time
FAILURES_WINDOW_S = 600.0
MOST_FAILURES = 3
MOST_MOVES_A_DAY = 3

_CAME_TO_PASS = frozenset({MigrationState.DONE, MigrationState.RUNNING, MigrationState.QUEUED, MigrationState.ASKED, MigrationState.LOST})


def empty(now: float) -> HistoryFile:
    """The history of a cluster that has its first leader now (Unix seconds)."""
    return HistoryFile(HISTORY_SCHEMA, first_seen_at=now)


def with_migrations(history: HistoryFile, records: Iterable[Migration]) -> HistoryFile:
    """The history with these records added, or put in place of what has the same intent."""
    by_intent = {record.intent: record for record in history.migrations}
    by_intent.update({record.intent: record for record in records})
    return replace(history, migrations=tuple(sorted(by_intent.values(), key=lambda record: (record.planned_at, record.intent))))


def bounded(history: HistoryFile, now: float) -> HistoryFile:
    """The history without what is old, and small enough to be written: open attempts and homes stay.

    What goes first: attempts that came to nothing, then the oldest ended ones, of these late the last move of each guest (its
    cooldown rests on it), and last what the hourly brake counts (a drain of hundreds of guests must not loosen it), then guests set
    aside for the shortest time.
    """
    records = [record for record in history.migrations if record.is_open or abs(now - record.planned_at) < KEPT_S]
    ended = [record for record in records if not record.is_open]
    last = {record.vmid: record.intent for record in ended if record.state in _CAME_TO_PASS}

    def worth(record: Migration) -> int:
        if _is_braking(record, now):
            return 3
        return 2 if last.get(record.vmid) == record.intent else int(record.state is not MigrationState.SKIPPED)

    ended.sort(key=worth)  # stable: by time within each
    aside = [entry for entry in history.set_aside if is_kept(entry, now)]
    aside.sort(key=lambda entry: math.inf if entry.until is None else entry.until, reverse=True)
    keep = max(0, KEPT_MIGRATIONS - (len(records) - len(ended)))
    while True:
        kept = {record.intent for record in ended[len(ended) - min(keep, len(ended)) :]}
        result = replace(
            history,
            migrations=tuple(record for record in records if record.is_open or record.intent in kept),
            set_aside=tuple(sorted(aside, key=lambda entry: (entry.vmid, entry.target or ""))),
            answers=history.answers[-KEPT_ANSWERS:],
            foreign_moves=tuple(moved for moved in history.foreign_moves if abs(now - moved.at) < KEPT_S)[-KEPT_FOREIGN:],
        )
        if len(render(result)) <= MOST_BYTES or not (kept or aside):
            return result
        if kept:
            keep = len(kept) * 7 // 8
        else:
            aside = aside[: len(aside) * 3 // 4]


def highest_epoch(text: str | None) -> int:
    """The highest epoch in which an attempt was written down, 0 for none, by history.json's text; None: there is no such file.

    leader.json counts epochs, and can be lost; then a new count would give new attempts the names of old ones.
    """
    try:
        history = None if text is None else parse(HistoryFile, text)
    except DocumentError:
        return 0
    return max((record.epoch for record in history.migrations), default=0) if history is not None else 0


def open_migrations(history: HistoryFile) -> tuple[Migration, ...]:
    """The attempts that have not ended."""
    return tuple(record for record in history.migrations if record.is_open)


def cooling(history: HistoryFile, snapshot: Snapshot | None, now: float, cooldown_s: float) -> dict[int, str]:
    """Guests that moved less than the cooldown ago, by whomever, with when they may move again.

    Units:   Unix seconds; the words are for people.
    """
    moves = [
        (record.vmid, record.ended_at or record.asked_at or record.planned_at)
        for record in history.migrations
        if record.state in _CAME_TO_PASS
    ]
    moves += [(moved.vmid, moved.at) for moved in history.foreign_moves]
    place = {guest.vmid: guest.node for guest in (snapshot.guests if snapshot is not None else ())}
    moves += [
        (task.vmid, task.ended_at)
        for task in (snapshot.tasks if snapshot is not None else ())
        if task.kind in MIGRATE_KINDS
        and task.vmid is not None
        and task.ended_at is not None
        and (is_success(task.status) or place.get(task.vmid, task.node) != task.node)
    ]
    moved: dict[int, float] = {}
    for vmid, at in moves:  # the nearest: one that a wrong clock dated far ahead hides no other
        moved[vmid] = min(at, moved.get(vmid, at), key=lambda time: abs(now - time))
    return {
        vmid: f"moved {max(0.0, now - at) / 60:.0f} min ago, may move again in {(at + cooldown_s - now) / 60:.0f} min"
        for vmid, at in sorted(moved.items())
        if abs(now - at) < cooldown_s
    }


def is_success(exit_status: str | None) -> bool:
    """True for PVE's words for a task that did its work: `OK`, and `WARNINGS: n`."""
    return exit_status is not None and (exit_status == "OK" or exit_status.startswith("WARNINGS"))


def with_places(history: HistoryFile, before: Snapshot | None, snapshot: Snapshot, now: float) -> HistoryFile:
    """The history after a look: who was moved by others since the look before, and where the HA manager's guests are.

    Of a former leader's looks only the latter is known: what a person does while nobody leads, PVE's task list tells. That is kept, too,
    as a node that dies takes its tasks along.
    """
    was = dict(history.ha_places)
    if before is not None:
        was |= {guest.vmid: guest.node for guest in before.guests}
    moved = {guest.vmid: guest.node for guest in snapshot.guests if was.get(guest.vmid, guest.node) != guest.node}
    managed = {resource.vmid for resource in snapshot.ha.resources}
    places = tuple(sorted((guest.vmid, guest.node) for guest in snapshot.guests if guest.vmid in managed))
    if len(places) > MOST_PLACES:
        places = ()
    history = _with_told_moves(with_foreign_moves(history, moved, now), snapshot, now)
    return history if places == history.ha_places else replace(history, ha_places=places)


def with_foreign_moves(history: HistoryFile, moved: Mapping[int, str], now: float) -> HistoryFile:
    """The history with the guests that were seen to have moved, VMID to node, and that none of the own attempts has moved there: by a
    person, or by the HA manager, whose recovery of a guest leaves no task that would tell. An attempt that was only written down, by a
    leader whose node died with it, has moved nobody."""
    ours = {
        (record.vmid, record.target)
        for record in history.migrations
        if (record.is_open and record.state is not MigrationState.PLANNED)
        or (record.state in _CAME_TO_PASS and abs(now - (record.ended_at or record.planned_at)) < LEARNED_S)
    }
    new = {vmid: ForeignMove(vmid, node, now) for vmid, node in sorted(moved.items()) if (vmid, node) not in ours}
    if not new:
        return history
    kept = [known for known in history.foreign_moves if known.vmid not in new]
    return replace(history, foreign_moves=(*kept, *new.values())[-KEPT_FOREIGN:])


def _with_told_moves(history: HistoryFile, snapshot: Snapshot, now: float) -> HistoryFile:
    """The history with what the task list tells of migrations of others that nobody has seen happen."""
    ours = {record.upid for record in history.migrations}
    known = {moved.vmid: moved.at for moved in history.foreign_moves}
    place = {guest.vmid: guest.node for guest in snapshot.guests}
    new: dict[int, ForeignMove] = {}
    for task in sorted(snapshot.tasks, key=lambda task: (task.ended_at or 0.0, task.upid)):
        if task.kind not in MIGRATE_KINDS or task.vmid is None or task.ended_at is None or task.upid in ours:
            continue
        has_left = place.get(task.vmid, task.node) != task.node  # that decides, not the task's end: `migration problems` may have moved it
        if has_left and abs(now - task.ended_at) < KEPT_S and known.get(task.vmid, -math.inf) < task.ended_at:
            new[task.vmid] = ForeignMove(task.vmid, place[task.vmid], task.ended_at)
    kept = [moved for moved in history.foreign_moves if moved.vmid not in new]
    # the latest, so that those for which there is no room are not taken in again at each look, and written
    latest = sorted([*kept, *new.values()], key=lambda moved: (moved.at, moved.vmid))[-KEPT_FOREIGN:]
    return history if set(latest) == set(history.foreign_moves) else replace(history, foreign_moves=tuple(latest))


def moves_left(history: HistoryFile, now: float, most_an_hour: int) -> int:
    """How many moves the hourly brake still allows; those for maintenance are not counted."""
    return max(0, most_an_hour - sum(_is_braking(record, now) for record in history.migrations))


def _is_braking(record: Migration, now: float) -> bool:
    return record.reason is not MoveReason.MAINTENANCE and record.state in _CAME_TO_PASS and abs(now - record.planned_at) < HOUR_S


def alarm(history: HistoryFile, now: float) -> str | None:
    """Why load balancing should stop until a person has looked, None when all is well."""
    failed = [
        r
        for r in history.migrations
        if r.state is MigrationState.FAILED
        and r.failure is not FailureClass.CHANGED
        and abs(now - (r.ended_at or r.planned_at)) < FAILURES_WINDOW_S
    ]
    if len(failed) >= MOST_FAILURES:
        return f"{len(failed)} migrations failed in {FAILURES_WINDOW_S / 60:.0f} minutes, the last: {failed[-1].text}"
    moved = Counter(r.vmid for r in history.migrations if is_load_move(r) and r.state in _CAME_TO_PASS and abs(now - r.planned_at) < DAY_S)
    for vmid, count in sorted(moved.items()):
        if count >= MOST_MOVES_A_DAY:
            return f"guest {vmid} was moved {count} times in a day"
    return None


def learned(history: HistoryFile, now: float) -> dict[int, GuestLoad]:
    """Loads of guests that arrived a short while ago, as they were before."""
    return {
        record.vmid: record.load
        for record in history.migrations
        if record.state is MigrationState.DONE and abs(now - (record.ended_at or 0.0)) < LEARNED_S
    }


def unsampled(history: HistoryFile, snapshot: Snapshot, now: float) -> frozenset[int]:
    """Guests that may have arrived after the last sample of their target's load, so that nothing of theirs is in it.

    Where the age of the samples is not known (off a node), they are taken to be as old as they may be: `SAMPLED_S`.
    """
    ended = [(record, abs(now - (record.ended_at or 0.0))) for record in history.migrations if record.state is MigrationState.DONE]
    return frozenset(record.vmid for record, since_s in ended if is_unsampled(record.target, since_s, snapshot))


def is_unsampled(target: str, since_s: float, snapshot: Snapshot) -> bool:
    """True when nothing of a guest that arrived there so long ago may be in the node's load."""
    if since_s >= SAMPLED_S:
        return False
    node = snapshot.node(target)
    return node is None or node.sample_age_s is None or node.sample_age_s >= since_s - 1.0


def landed(history: HistoryFile, now: float) -> frozenset[int]:
    """Guests that arrived so short a while ago that there are no two samples of their load on the target yet."""
    return frozenset(
        record.vmid
        for record in history.migrations
        if record.state is MigrationState.DONE and abs(now - (record.ended_at or 0.0)) < FRESH_S
    )


def finally_answered(history: HistoryFile) -> frozenset[str]:
    """The requests of which nothing more follows; what a leader began and did not finish is not among them."""
    return frozenset(answer.request for answer in history.answers if answer.final)


def with_answer(history: HistoryFile, answer: Answer) -> HistoryFile:
    """The history with what came of a command's request."""
    others = tuple(other for other in history.answers if other.request != answer.request)
    return replace(history, answers=(*others, answer))

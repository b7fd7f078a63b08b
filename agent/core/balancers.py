# SPDX-License-Identifier: GPL-3.0-or-later
"""Another balancer at work: somebody else who migrates guest after guest, one by one. With two of them, each undoes what the other did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from agent.core.cluster import MIGRATE_KINDS, Snapshot, Task
from agent.core.ha_moves import MOVE_KINDS
from agent.core.history import HOUR_S, is_success

MANY = 4  # migrations within an hour: an admin who sees to a few guests by hand starts fewer
KEPT_S = 2 * HOUR_S  # the first of them may be an hour older than the last, which counts for an hour
MOST_KEPT = 1000  # tasks, of some hundred bytes each: that many in two hours are one each seven seconds
BULK_MIGRATIONS = frozenset({"migrateall", "bulk-migrate"})  # of BULK_KINDS: of a node, and, with PVE 9, of the cluster
CLOCK_S = 5.0  # a bulk action's node, and that of a guest it migrates, may differ by that
MARK = "!"  # in the name of a token, with which programs come
HA_USER = "root@pam"  # as which the HA manager migrates its guests
MOST_NAMED = 5

Seen = Mapping[str, Task]


@dataclass(frozen=True, slots=True)
class Balancer:
    """Somebody who balances beside the agent.

    Units:   Unix seconds.
    Shape:   `user` is a user or token as PVE writes it; `moved` are the guests of its last hour with when each was moved last, by
             VMID; `moves` is how many migrations that were, `last_at` when the last of them was.
    """

    user: str
    moves: int
    last_at: float
    moved: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Emptying:
    """Somebody who seems to empty a node by hand: so many migrations off it within the last hour."""

    user: str
    node: str
    moves: int


def with_tasks(seen: Seen, tasks: Iterable[Task], now: float) -> Seen:
    """The migrations and bulk migrations that have been seen, with these: the cluster's list shows the last 25 tasks of a node alone."""
    found = dict(seen)
    given = set()
    for task in tasks:
        given.add(task.upid)
        if task.kind in MIGRATE_KINDS or task.kind in BULK_MIGRATIONS:
            before = found.get(task.upid)
            found[task.upid] = task if before is None or before.is_running else before
    kept = [(upid, task) for upid, task in found.items() if upid in given or abs(now - (task.ended_at or task.started_at)) < KEPT_S]
    kept.sort(key=lambda entry: (entry[1].started_at, entry[0]))
    return dict(kept[-MOST_KEPT:])


def others_at_work(
    seen: Seen, snapshot: Snapshot, ours: AbstractSet[str], own_user: str, now: float, emptied: Mapping[str, float]
) -> tuple[tuple[Balancer, ...], tuple[Emptying, ...]]:
    """Who has started at least `MANY` migrations within an hour, the last of them less than an hour ago, by user; and who so many off
    one node that they are taken to empty it.

    What fails moves nobody and does not count; nor do bulk actions, nor what the HA manager does. A person, who comes without a token,
    empties a node when nobody is left on it within an hour, or when they migrate off no other node; whom they bring back to a node that
    they emptied does not count, either. Of a program with a token nobody can tell: what empties a node may be a balancer that piles up.

    Shape:   `ours` are the UPIDs of the agent's own migrations; whatever else `own_user` does counts as the agent's, too; `emptied` is
             since when nobody runs on a node, as `nobody_on` tells it, in Unix seconds.
    """
    place = {guest.vmid: guest.node for guest in snapshot.guests}
    found: list[Balancer] = []
    emptying: list[Emptying] = []
    for user, tasks in sorted(_by_user(seen, snapshot, ours, own_user).items()):
        parts, rest = ([], tasks) if MARK in user else _emptied_by(tasks, place, emptied)
        balancer = _balancer(user, [(task.started_at, task.vmid or 0) for task in rest], now)
        if balancer is not None:
            found.append(balancer)
        counted = Counter(task.node for task in parts if abs(now - task.started_at) < HOUR_S)
        emptying += [Emptying(user, node, count) for node, count in sorted(counted.items()) if count >= MANY]
    return tuple(found), tuple(emptying)


def _emptied_by(tasks: list[Task], place: Mapping[int, str], emptied: Mapping[str, float]) -> tuple[list[Task], list[Task]]:
    """Of one person's migrations, by time, those that empty nodes, and the rest without those that bring guests back there."""
    parts: list[Task] = []
    home: dict[int | None, str] = {}
    for node, at in sorted(emptied.items(), key=lambda entry: (entry[1], entry[0])):
        off = [task for task in tasks if task.node == node and 0 <= at + CLOCK_S - task.started_at <= HOUR_S and task.vmid not in home]
        if len(off) >= MANY:
            parts += off
            home |= {task.vmid: node for task in off}
    rest = [task for task in tasks if task not in parts and (task.vmid not in home or place.get(task.vmid or 0) != home[task.vmid])]
    return (parts + rest, []) if len({task.node for task in rest}) == 1 else (parts, rest)


def nobody_on(snapshot: Snapshot) -> frozenset[str]:
    """The nodes on which nobody runs, as far as all guests can be seen."""
    if snapshot.unseen:
        return frozenset()
    return frozenset(node.name for node in snapshot.nodes) - {guest.node for guest in snapshot.guests if guest.status != "stopped"}


def _by_user(seen: Seen, snapshot: Snapshot, ours: AbstractSet[str], own_user: str) -> dict[str, list[Task]]:
    """The migrations of others that count, by time."""
    of_ha = {resource.vmid for resource in snapshot.ha.resources if resource.requested != "ignored"}
    of_ha |= {guest.vmid for guest in snapshot.guests if guest.ha is not None}
    bulk = [task for task in seen.values() if task.kind in BULK_MIGRATIONS]
    by_user: dict[str, list[Task]] = {}
    for task in sorted(seen.values(), key=lambda task: (task.started_at, task.upid)):
        if task.kind not in MIGRATE_KINDS or task.vmid is None or task.user == own_user or task.upid in ours:
            continue
        if not task.is_running and not is_success(task.status):
            continue
        if task.user == HA_USER and task.kind in MOVE_KINDS and task.vmid in of_ha:
            continue
        if not any(_is_part_of(task, action) for action in bulk):
            by_user.setdefault(task.user, []).append(task)
    return by_user


def _is_part_of(task: Task, action: Task) -> bool:
    if task.user != action.user or (action.kind == "migrateall" and task.node != action.node):
        return False
    return action.started_at - CLOCK_S <= task.started_at and (action.ended_at is None or task.started_at <= action.ended_at + CLOCK_S)


def _balancer(user: str, moves: list[tuple[float, int]], now: float) -> Balancer | None:
    """`moves` by time. Whoever was one an hour ago, and goes on less often, still is."""
    busy = [last for (first, _), (last, _) in zip(moves, moves[MANY - 1 :], strict=False) if last - first <= HOUR_S]
    recent = [(at, vmid) for at, vmid in moves if abs(now - at) < HOUR_S]
    if not busy or not recent:
        return None
    return Balancer(user, len(recent), recent[-1][0], tuple(sorted({vmid: at for at, vmid in recent}.items())))


def stepped_back(found: Iterable[Balancer], now: float) -> dict[int, str]:
    """The guests that others balance, with who moved each and when."""
    moved = sorted((at, vmid, balancer.user) for balancer in found for vmid, at in balancer.moved)
    return {vmid: f"{user} moved it {max(0.0, now - at) / 60:.0f} min ago, and others beside it" for at, vmid, user in moved}


def emptying_words(emptying: Emptying) -> str:
    """That this is taken for the emptying of a node, and what keeps one empty."""
    return (
        f"{emptying.user} has migrated {emptying.moves} guests off {emptying.node} in the last hour: taken for emptying it, not for "
        f"another balancer; to have it kept empty: proxlb-agent maintenance enter {emptying.node}"
    )


def balancer_words(balancer: Balancer) -> str:
    """`lb@pve!lb has migrated 5 guests in the last hour (101, 102, 103, 104, 105)`."""
    vmids = [vmid for vmid, _ in balancer.moved]
    named = ", ".join(map(str, vmids[:MOST_NAMED])) + (f" and {len(vmids) - MOST_NAMED} more" if len(vmids) > MOST_NAMED else "")
    times = "" if balancer.moves == len(vmids) else f" {balancer.moves} times"
    return f"{balancer.user} has migrated {len(vmids)} guest{'' if len(vmids) == 1 else 's'}{times} in the last hour ({named})"

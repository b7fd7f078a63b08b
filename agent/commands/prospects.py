# SPDX-License-Identifier: GPL-3.0-or-later
"""Goal table, bound and N+1 as JSON and for people: what several commands tell alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agent.commands.tables import aligned, counted, few, label, points
from agent.core.bound import Bound
from agent.core.cluster import Snapshot
from agent.core.goal_table import GoalRow
from agent.core.json_types import Json, JsonObject
from agent.core.plan_types import Refusal
from agent.core.survival import Loss, Survival

MOST_NAMED = 3  # guests without a place, of one node


def goal_document(rows: Iterable[GoalRow]) -> list[Json]:
    """The goal table as JSON."""
    return [
        {
            "name": row.name,
            "weight": round(row.weight, 6),
            "meaning": row.meaning,
            "before": round(row.before, 6),
            "after": round(row.after, 6),
        }
        for row in rows
    ]


def goal_text(rows: Sequence[GoalRow], then: str | None) -> str:
    """The goal table for people, in points, with its sum; `then` heads the column of what is after, None leaves it out."""
    cells = [(row.name, f"{row.weight:.2f}", points(row.before), points(row.after), row.meaning) for row in rows]
    before, after = sum(row.weight * row.before for row in rows), sum(row.weight * row.after for row in rows)
    cells.append(("goal", "-", points(before), points(after), "their sum, each times its weight; a move must take off more than it costs"))
    if then is not None:
        return aligned(("STATISTIC", "WEIGHT", "NOW", then, "WHAT IT IS, IN POINTS"), cells)
    return aligned(("STATISTIC", "WEIGHT", "NOW", "WHAT IT IS, IN POINTS"), [(*cell[:3], cell[4]) for cell in cells])


def bound_document(bound: Bound) -> JsonObject:
    """The bound as JSON."""
    return {"imbalance": round(bound.imbalance, 6), "moves": bound.moves, "hopeless": list(bound.hopeless)}


def bound_words(bound: Bound) -> str:
    """What no set of moves can do better."""
    text = f"no set of moves gets below {points(bound.imbalance)}"
    if bound.moves is None:
        return f"{text} or takes {few(bound.hopeless)} below every threshold"
    return f"{text}, and ending all overload takes {counted(bound.moves, 'move')} at least" if bound.moves else text


def survival_text(before: Survival, after: Survival | None, snapshot: Snapshot) -> str:
    """Which nodes can be lost, now and, where something moves, after the plan."""
    now = _survival_words(before, snapshot)
    then = now if after is None else _survival_words(after, snapshot)
    if after is None:
        text = f"N+1: {now}"
    else:
        text = f"N+1, now and after these moves: {now}" if now == then else f"N+1 now: {now}\nN+1 after these moves: {then}"
        text = _worse_words(before, after) + text
    hidden = len(snapshot.unseen)
    return text + (f"\n  {counted(hidden, 'guest')} not shown to the token {'is' if hidden == 1 else 'are'} not counted" if hidden else "")


def _worse_words(before: Survival, after: Survival) -> str:
    """Which nodes could be lost before the moves and not after them, as a line; empty where there is none."""
    could = {loss.node for loss in before.losses if not loss.survives}
    worse = [loss.node for loss in after.losses if not loss.survives and loss.node not in could]
    if not worse:
        return ""
    return f"N+1 gets worse by these moves: {few(worse)} can be lost now, and not any more then\n"


def _survival_words(found: Survival, snapshot: Snapshot) -> str:
    if not found.losses:
        return "no guest runs"
    if found.survives:
        return "any one node can be lost, the others have a place for all its guests"
    lines = [f"  {_loss_words(loss, snapshot)}" for loss in found.losses if not loss.survives]
    safe = [loss.node for loss in found.losses if loss.survives]
    return "\n".join([f"can be lost: {few(safe) or 'none'}; of the others no place was found for all guests", *lines])


def _loss_words(loss: Loss, snapshot: Snapshot) -> str:
    named = [_homeless(refusal, snapshot) for refusal in loss.without_place]
    return f"{loss.node}: {len(named)} of {counted(loss.guests, 'guest')}, {few(named, MOST_NAMED)}"


def _homeless(refusal: Refusal, snapshot: Snapshot) -> str:
    guest = snapshot.guest(refusal.vmid)
    who = f"guest {refusal.vmid}" if guest is None else label(guest.type.value, guest.vmid, guest.name)
    return f"{who} ({refusal.reason.value}{f': {refusal.detail}' if refusal.detail else ''})"

# SPDX-License-Identifier: GPL-3.0-or-later
"""The sentence with which the answer to a trigger ends."""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.backups import kept_off_words
from agent.core.cluster import Snapshot
from agent.core.imbalance import Weights
from agent.core.journal import Level
from agent.core.plan_types import Plan
from agent.core.sentences import move_words, nothing_words, state_words, stuck_words, summary
from agent.core.settings import Settings
from agent.daemon.permission import Permission


def conclusion(
    plan: Plan,
    snapshot: Snapshot,
    settings: Settings,
    permission: Permission,
    homes: Iterable[str],
    *,
    has_moved: bool,
    has_failed: bool,
    is_settled: bool,
) -> tuple[str, Level]:
    """Return why nothing (more) is moved, and how loud that is.

    Shape:   `has_moved` and `has_failed` are about this trigger; `is_settled`: loads show every guest where it is, and before that
             who has arrived is counted to be on the safe side. `homes` are the nodes that guests left for a maintenance, each
             as often as there are such guests.
    """
    weights = Weights.of(settings)
    away = {*(maintenance.node for maintenance in snapshot.maintenance), *snapshot.no_target}
    if plan.moves:
        return _waiting(plan, permission), Level.INFO
    if (stuck := stuck_words(plan, snapshot, settings)) is not None:
        return stuck, Level.WARNING
    if has_moved and not plan.refused and not has_failed:
        text = f"nothing more to do ({state_words(plan, weights, away)})" if is_settled else "nothing more to do"
    else:
        text = nothing_words(plan, weights, away)
    is_held_back = not permission.load or bool(snapshot.unseen)
    if is_held_back and permission.why_not and not plan.refused and not has_moved:
        text += f"; {permission.why_not}"
    kept_off = kept_off_words(snapshot)
    if kept_off is not None and permission.load and not has_moved:
        text += f"; {kept_off}"
    if (wait := _home_later(homes, snapshot, settings)) is not None:
        text += f"; {wait}"
    return text, Level.INFO


def _home_later(homes: Iterable[str], snapshot: Snapshot, settings: Settings) -> str | None:
    """Who does not come home although that node is open again, as nobody does while another one is in maintenance."""
    away = {maintenance.node for maintenance in snapshot.maintenance}
    away |= {node.name for node in snapshot.nodes if node.name.lower() in {name.lower() for name in settings.nodes.maintenance}}
    count = sum(home not in away for home in homes) if settings.drain.return_home and away else 0
    if not count:
        return None
    who = "1 guest comes" if count == 1 else f"{count} guests come"
    return f"{who} home when {' and '.join(sorted(away))} {'is' if len(away) == 1 else 'are'} not in maintenance any more"


def _waiting(plan: Plan, permission: Permission) -> str:
    """Why the moves of a plan are not begun."""
    if not permission.act:
        return f"would make {summary(plan)}, first {move_words(plan.moves[0])}, but {permission.why_not}"
    if not any(move.first_pass for move in plan.moves):
        return f"{summary(plan)} wait: max_moves_per_hour is used up"
    return f"{summary(plan)} wait for the next look"

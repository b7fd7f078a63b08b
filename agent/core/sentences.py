# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans and outcomes in words: the one sentence that ends a cycle, and the lines of single moves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from agent.core.cluster import GIB, Snapshot
from agent.core.codec import to_json
from agent.core.conditions import leaves_stopped
from agent.core.imbalance import Weights
from agent.core.migrations import Migration
from agent.core.plan_types import Gate, Move, Plan, Refusal
from agent.core.reasons import RefusalReason
from agent.core.remedies import remedy_of
from agent.core.settings import Settings


def move_words(move: Move) -> str:
    """`vm:101 web1 from pve1 to pve2 (overload, 4.0 GiB, gain 12.1 points)`."""
    label = f"{'vm' if move.type == 'qemu' else 'ct'}:{move.vmid}"
    name = f" {move.name}" if move.name else ""
    return f"{label}{name} from {move.source} to {move.target} ({why_words(move)})"


def why_words(move: Move) -> str:
    """Reason, size and gain of a move."""
    disks = f" and {move.disk_bytes / GIB:.0f} GiB of disks" if move.disk_bytes else ""
    return f"{move.reason.value}, {move.memory_bytes / GIB:.1f} GiB{disks}, {_gain_words(move.gain)}"


def _gain_words(gain: float) -> str:
    return f"gain {100 * gain:.1f} points"


def migration_words(record: Migration) -> str:
    """`vm:101 web1 from pve1 to pve2`."""
    label = f"{'vm' if record.type == 'qemu' else 'ct'}:{record.vmid}"
    return f"{label}{' ' + record.name if record.name else ''} from {record.source} to {record.target}"


def state_words(plan: Plan, weights: Weights, without: AbstractSet[str] = frozenset()) -> str:
    """The lowest and highest loads before the plan, in percent, of all nodes but those `without`."""
    nodes = [(name, load) for name, load in plan.before.nodes if name not in without]
    if not nodes:
        return "no node's load is known"
    parts = []
    for title, weight, attribute in (("cpu", weights.cpu, "cpu_fraction"), ("memory", weights.memory, "memory_fraction")):
        values: Mapping[str, float] = {name: float(getattr(node, attribute)) for name, node in nodes}
        if weight > 0:
            high, low = max(values, key=lambda name: values[name]), min(values, key=lambda name: values[name])
            parts.append(f"{title} {100 * values[low]:.0f} to {100 * values[high]:.0f} %")
    return ", ".join(parts)


def nothing_words(plan: Plan, weights: Weights, without: AbstractSet[str] = frozenset()) -> str:
    """Why a plan moves nobody; `without` as for `state_words`."""
    state = state_words(plan, weights, without)
    leave = sum(refusal.reason is RefusalReason.HA_EMPTIES for refusal in plan.refused)
    if leave and leave == len(plan.refused):
        return f"nothing to do: the HA manager moves {leave} guest{'s' if leave != 1 else ''} ({state})"
    if plan.refused:
        counted = Counter(refusal.reason.value for refusal in plan.refused)
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counted.items(), key=lambda item: (-item[1], item[0])))
        return f"nobody can be moved ({reasons}; {state})"
    if plan.gate is Gate.CLOSED:
        return f"nothing to do ({state})"
    return f"no move gains anything ({state})"


MOST_NODES = 3  # of one reason, that are named


def nodes_words(reasons: Mapping[str, RefusalReason], detail_of: Callable[[str], str]) -> str:
    """Why nodes refuse, a reason at a time, the commonest first: `pinned on pve1, pve2 (pinned to pve9); no-memory on pve4 and 7 more`.

    What exactly is told once where it is the same for all, and node by node where the nodes are few; nobody is asked for more of it.
    """
    by_reason: dict[RefusalReason, list[str]] = {}
    for name in sorted(reasons):
        by_reason.setdefault(reasons[name], []).append(name)
    parts = []
    for reason, names in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        first = detail_of(names[0])
        is_one = all(detail_of(name) == first for name in names[1:])
        shown = [_named(name, "" if is_one or len(names) > MOST_NODES else detail_of(name)) for name in names[:MOST_NODES]]
        rest = f" and {len(names) - MOST_NODES} more" if len(names) > MOST_NODES else ""
        parts.append(f"{reason} on {', '.join(shown)}{rest}" + (_named("", first) if is_one else ""))
    return "; ".join(parts)


def _named(name: str, detail: str) -> str:
    return f"{name} ({detail})" if detail else name


_PASSING = frozenset({RefusalReason.HA_EMPTIES, RefusalReason.NODE_STARTING})  # what ends by itself before long


def stuck_words(plan: Plan, snapshot: Snapshot, settings: Settings) -> str | None:
    """Which nodes in maintenance cannot be emptied, and whom that is down to; None when nobody has to leave any more."""
    places = {guest.vmid: guest.node for guest in snapshot.guests if guest.is_running or leaves_stopped(guest, settings)}
    parts, stay_all = [], list[Refusal]()
    for node in sorted({maintenance.node for maintenance in snapshot.maintenance}):
        here = [refusal for refusal in plan.refused if places.get(refusal.vmid) == node and refusal.reason not in _PASSING]
        if here:
            shown = ", ".join(f"{refusal.vmid} ({refusal.reason.value})" for refusal in here[:5])
            more = f" and {len(here) - 5} more" if len(here) > 5 else ""
            stay = f"guest{'s' if len(here) > 1 else ''} {shown}{more} stay{'s' if len(here) == 1 else ''}"
            parts.append(f"{node} cannot be emptied: {stay}")
            stay_all += here
    return f"{'; '.join(parts)}; {_what_helps(stay_all, snapshot)}" if parts else None


def _what_helps(here: Sequence[Refusal], snapshot: Snapshot) -> str:
    """What an admin can do about who stays; where that is several things, the command that tells more of each."""
    guests = (snapshot.guest(refusal.vmid) for refusal in here)
    helps = {remedy_of(refusal, guest) for refusal, guest in zip(here, guests, strict=True) if guest is not None}
    return f"what helps: {helps.pop()}" if len(helps) == 1 else "what keeps each: proxlb-agent explain VMID"


def summary(plan: Plan) -> str:
    """A plan with moves in one line."""
    if not plan.moves:
        return "no moves"
    size = sum(move.memory_bytes for move in plan.moves) / GIB
    count = f"{len(plan.moves)} move{'s' if len(plan.moves) != 1 else ''}"
    return f"{count}, {size:.1f} GiB, imbalance {100 * plan.before.imbalance:.1f} to {100 * plan.after.imbalance:.1f} points"


def decision_line(at: float, text: str, moves: Sequence[Move]) -> str:
    """One line of the decision journal: JSON with what was decided and the moves that began with it; `at` in Unix seconds."""
    document = {"schema": "proxlb-agent/decision/1", "at": round(at, 3), "text": text, "moves": [to_json(move) for move in moves]}
    return json.dumps(document, sort_keys=True, separators=(",", ":"))

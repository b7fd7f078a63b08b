# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans and outcomes in words: the one sentence that ends a cycle, and the lines of single moves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from agent.core.cluster import GIB
from agent.core.codec import to_json
from agent.core.load import Weights
from agent.core.migrations import Migration
from agent.core.plan_types import Gate, Move, Plan


def move_words(move: Move) -> str:
    """`vm:101 web1 from pve1 to pve2 (overload, 4.0 GiB, gain 12.1 points)`."""
    label = f"{'vm' if move.type == 'qemu' else 'ct'}:{move.vmid}"
    name = f" {move.name}" if move.name else ""
    return f"{label}{name} from {move.source} to {move.target} ({why_words(move)})"


def why_words(move: Move) -> str:
    """Reason, size and gain of a move."""
    return f"{move.reason.value}, {move.memory_bytes / GIB:.1f} GiB, {_gain_words(move.gain)}"


def _gain_words(gain: float) -> str:
    return f"gain {100 * gain:.1f} points" if gain >= 0 else f"costs {-100 * gain:.1f} points"


def migration_words(record: Migration) -> str:
    """`vm:101 web1 from pve1 to pve2`."""
    label = f"{'vm' if record.type == 'qemu' else 'ct'}:{record.vmid}"
    return f"{label}{' ' + record.name if record.name else ''} from {record.source} to {record.target}"


def state_words(plan: Plan, weights: Weights) -> str:
    """The highest loads and the spread of the plan's start, in percent."""
    if not plan.before.nodes:
        return "no node's load is known"
    parts = []
    for title, weight, attribute in (("cpu", weights.cpu, "cpu_fraction"), ("memory", weights.memory, "memory_fraction")):
        values: Mapping[str, float] = {name: float(getattr(node, attribute)) for name, node in plan.before.nodes}
        if weight > 0:
            high, low = max(values, key=lambda name: values[name]), min(values, key=lambda name: values[name])
            parts.append(f"{title} {100 * values[low]:.0f} to {100 * values[high]:.0f} %")
    return ", ".join(parts)


def nothing_words(plan: Plan, weights: Weights) -> str:
    """Why a plan moves nobody."""
    state = state_words(plan, weights)
    if plan.refused:
        counted = Counter(refusal.reason.value for refusal in plan.refused)
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counted.items(), key=lambda item: (-item[1], item[0])))
        return f"nobody can be moved ({reasons}; {state})"
    if plan.gate is Gate.CLOSED:
        return f"nothing to do ({state})"
    return f"no move gains anything ({state})"


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

# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent explain`: every node as a target for a guest, what keeps the guest where it is, and its last moves."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import replace

from agent.commands.plan import known_guest_node, look_or_read, refusal_document
from agent.commands.planning import asker, question_of, why_only_words
from agent.commands.prospects import goal_document, goal_text
from agent.commands.tables import aligned, clock, counted, gib, iso, label, points
from agent.commands.wrong_use import settings_of, vmid
from agent.core.cluster import MIGRATE_KINDS, Snapshot, Task
from agent.core.documents import HistoryFile
from agent.core.explain import Explanation, TargetView, explain
from agent.core.goal_table import GoalRow
from agent.core.guest_load import GuestLoad
from agent.core.json_types import Json, JsonObject
from agent.core.migrations import Migration
from agent.core.plan_types import Refusal
from agent.core.question import Question
from agent.core.reasons import MEANING

SCHEMA = "proxlb-agent/explain/1"
MOVES_SHOWN = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument("--snapshot", metavar="FILE", help="look at what `snapshot` wrote, not at the cluster (-: standard input)")
    parser.add_argument("vmid", metavar="VMID", type=vmid, help="the guest")


def execute(arguments: argparse.Namespace) -> int:
    """Print the explanation."""
    settings = settings_of(arguments)
    snapshot, known = look_or_read(arguments.snapshot, settings)
    history = known.history
    node = known_guest_node(snapshot, arguments.vmid)
    question = question_of(settings, snapshot, known)
    guest = snapshot.guest(arguments.vmid)
    if arguments.snapshot is None and guest is not None and guest.is_running and not guest.template:
        question = replace(question, verdicts={guest.vmid: asker(settings, snapshot)(guest, node)})
    found = explain(snapshot, settings, question, arguments.vmid)
    assert found is not None  # its node is known
    moves, others_moves = last_moves(history, arguments.vmid), moves_of_others(history, snapshot, arguments.vmid)
    if arguments.json:
        print(json.dumps(explain_document(found, snapshot, question, moves, others_moves), indent=1, allow_nan=False))
    else:
        print(explain_text(found, question, moves, others_moves, notes_on(question, why_only_words(settings, snapshot, known))))
    return 0


def notes_on(question: Question, why: tuple[str, ...]) -> tuple[str, ...]:
    """What else keeps the guest from moving just now."""
    return (*why, "max_moves_per_hour is used up: nobody moves for load or rules now") if question.moves_left <= 0 else why


def last_moves(history: HistoryFile | None, vmid: int) -> tuple[Migration, ...]:
    """The guest's last migrations, the newest first."""
    found = [record for record in (history.migrations if history is not None else ()) if record.vmid == vmid]
    return tuple(reversed(found[-MOVES_SHOWN:]))


def moves_of_others(history: HistoryFile | None, snapshot: Snapshot, vmid: int) -> tuple[Task, ...]:
    """Migrations of the guest that PVE's task list shows and the agent did not ask for, the newest first."""
    ours = {record.upid for record in (history.migrations if history is not None else ())}
    found = [task for task in snapshot.tasks if task.vmid == vmid and task.kind in MIGRATE_KINDS and task.upid not in ours]
    return tuple(sorted(found, key=lambda task: -task.started_at)[:MOVES_SHOWN])


def explain_document(
    found: Explanation,
    snapshot: Snapshot,
    question: Question,
    moves: tuple[Migration, ...],
    others_moves: tuple[Task, ...],
) -> JsonObject:
    """The explanation as `agent/schemas/explain-1.json` describes it."""
    guest = found.guest
    return {
        "schema": SCHEMA,
        "taken_at": iso(snapshot.taken_at),
        "vmid": guest.vmid,
        "type": guest.type.value,
        "name": guest.name,
        "node": guest.node,
        "status": guest.status,
        "cpu_used_cores": round(found.load.cpu_cores, 4),
        "memory_used_bytes": int(found.load.memory_bytes),
        "rules": list(found.rules),
        "pool": guest.pool,
        "ha": guest.ha,
        "unit": list(found.unit),
        "pins": list(found.pins),
        "together": list(found.together),
        "apart": list(found.apart),
        "contradicted": found.contradicted,
        "drains": found.drains,
        "broken": list(found.broken),
        "stays": None if found.stays is None else refusal_document(found.stays),
        "targets": targets_document(found.targets),
        "goal": goal_document(found.goal),
        "cooldown": question.cooling.get(guest.vmid),
        "set_aside": question.set_aside.get(guest.vmid),
        "home": question.homes.get(guest.vmid),
        "moves": [
            {
                "at": iso(record.ended_at or record.asked_at or record.planned_at),
                "source": record.source,
                "target": record.target,
                "reason": record.reason.value,
                "state": record.state.value,
                "text": record.text,
            }
            for record in moves
        ],
        "after_last_move": _taken_document(question.ledger.taken.get(guest.vmid)),
        "others_moves": [
            {"at": iso(task.started_at), "node": task.node, "user": task.user, "status": task.status} for task in others_moves
        ],
    }


def targets_document(targets: Iterable[TargetView], refusal_as: Callable[[Refusal], JsonObject] = refusal_document) -> list[Json]:
    """Nodes as targets as JSON."""
    return [
        {
            "node": target.node,
            "moving": target.moving,
            "terms": {name: round(value, 6) for name, value in target.terms},
            "gain": None if target.gain is None else round(target.gain, 6),
            "cost": None if target.cost is None else round(target.cost, 6),
            "net": None if target.net is None else round(target.net, 6),
            "refusal": None if target.refusal is None else refusal_as(target.refusal),
        }
        for target in targets
    ]


def explain_text(
    found: Explanation,
    question: Question,
    moves: tuple[Migration, ...],
    others_moves: tuple[Task, ...],
    notes: tuple[str, ...],
) -> str:
    """The explanation for people to read."""
    guest = found.guest
    what = label(guest.type.value, guest.vmid, guest.name)
    takes = f"counts as {found.load.cpu_cores:.1f} cores and {gib(found.load.memory_bytes)}"
    if len(found.unit) > 1:
        takes = f"together with {', '.join(str(vmid) for vmid in found.unit if vmid != guest.vmid)} {takes}"
    parts = [f"{what} is on {guest.node}, {guest.status}, {takes}\n{_verdict(found)}"]
    if (rules := _rules(found)) != "":
        parts.append(rules)
    parts.append(targets_text(found.targets, found.goal, lambda target: _as_target(found, target)))
    parts.append(goal_text(found.goal, then=None if found.best is None else f"ON {found.best.node}"))
    memory = [
        words
        for words in (
            _said("moved lately", question.cooling.get(guest.vmid)),
            _said("set aside", question.set_aside.get(guest.vmid)),
            _said("after its last move it took", _taken_words(question.ledger.taken.get(guest.vmid))),
            _said("left for a maintenance, goes home to", question.homes.get(guest.vmid)),
        )
        if words
    ]
    if memory:
        parts.append("\n".join(memory))
    lines = [
        f"  {clock(record.ended_at or record.asked_at or record.planned_at)}  {record.source} to {record.target}, {record.reason.value}: "
        f"{record.state.value}{f', {record.text}' if record.text else ''}"
        for record in moves
    ]
    parts.append("last moves by the agent:\n" + "\n".join(lines) if lines else "the agent remembers no move of it")
    if others_moves:
        lines = [f"  {clock(task.started_at)}  from {task.node}, by {task.user}: {task.status or 'running'}" for task in others_moves]
        parts.append("last moves by others:\n" + "\n".join(lines))
    if notes:
        parts.append("\n".join(f"note: {note}" for note in notes))
    return "\n\n".join(parts)


def _taken_document(taken: GuestLoad | None) -> JsonObject | None:
    return None if taken is None else {"cpu_cores": round(taken.cpu_cores, 4), "memory_bytes": int(taken.memory_bytes)}


def _taken_words(taken: GuestLoad | None) -> str | None:
    """`2.0 cores and 20.0 GiB; where it must fit, the larger of that and of what it takes now counts`."""
    if taken is None:
        return None
    return (
        f"{taken.cpu_cores:.1f} cores and {gib(taken.memory_bytes)}; where it must fit, the larger of that and of what it takes now counts"
    )


def targets_text(
    targets: Iterable[TargetView], goal: Iterable[GoalRow], says: Callable[[TargetView], str], *, has_cost: bool = True
) -> str:
    """Nodes as targets for people: what going there takes off each statistic, in points, and what it costs, or why not."""
    names = [row.name for row in goal]
    rows = []
    for target in targets:
        terms = dict(target.terms)
        values = [*(terms.get(name) for name in names), *((target.cost,) if has_cost else ()), target.net]
        says_it = says(target) if target.refusal is None else refusal_words(target.refusal)
        rows.append((target.node, *(points(value, 2) for value in values), says_it))
    header = ("NODE", *(name.upper() for name in names), *(("COST",) if has_cost else ()), "NET", "AS A TARGET")
    return aligned(header, rows)


def refusal_words(refusal: Refusal) -> str:
    """`pinned: the guest is pinned to other nodes (pinned to pve1)`."""
    return f"{refusal.reason.value}: {MEANING[refusal.reason]}" + (f" ({refusal.detail})" if refusal.detail else "")


def _as_target(found: Explanation, target: TargetView) -> str:
    if found.broken:
        return f"may be put right there, by {counted(target.moving, 'move')}"
    if found.drains:
        return "may go there"
    return "better than here" if (target.net or 0.0) > 0 else "gains less than the move costs"


def _said(what: str, text: str | None) -> str:
    return f"{what}: {text}" if text else ""


def _verdict(found: Explanation) -> str:
    """The answer in one sentence."""
    broken = f", although a rule is broken: {' and '.join(found.broken)}" if found.broken else ""
    if found.stays is not None:
        detail = f" ({found.stays.detail})" if found.stays.detail else ""
        return f"stays: {found.stays.reason.value}, {MEANING[found.stays.reason]}{detail}{broken}"
    best = found.best
    if best is None:
        return f"stays: no node can take it{broken}"
    if found.broken:
        return f"a rule is broken, as {' and '.join(found.broken)}: best put right on {best.node}"
    if found.drains:
        return f"its node is to be emptied: it leaves, best to {best.node}"
    if (best.net or 0.0) > 0:
        return f"would be better off on {best.node}; it moves there when load is balanced and no other move is better"
    return "stays: no move of it gains more than it costs"


def _rules(found: Explanation) -> str:
    lines = []
    if found.rules:
        lines.append(f"rules: {', '.join(found.rules)}")
    if found.guest.pool is not None:
        lines.append(f"pool: {found.guest.pool}")
    if found.guest.ha is not None:
        lines.append(f"HA: {found.guest.ha}")
    if found.pins:
        lines.append(f"only on: {', '.join(found.pins)}")
    if found.together:
        lines.append(f"together with: {', '.join(str(vmid) for vmid in found.together)}")
    if found.apart:
        lines.append(f"never with: {', '.join(str(vmid) for vmid in found.apart)}")
    if found.contradicted:
        lines.append("its rules contradict each other: it stays where it is")
    return "\n".join(lines)

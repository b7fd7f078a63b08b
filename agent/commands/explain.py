# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent explain`: every node as a target for a guest, what keeps the guest where it is, and its last moves."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from agent import wiring
from agent.commands.plan import known_guest_node, refusal_document
from agent.commands.planning import asker, question_of, why_only_words
from agent.commands.tables import aligned, clock, gib, iso, label, points
from agent.commands.wrong_use import settings_of
from agent.core.cluster import Snapshot
from agent.core.documents import HistoryFile
from agent.core.explain import Explanation, explain
from agent.core.json_types import Json, JsonObject
from agent.core.migrations import Migration
from agent.core.question import Question
from agent.core.reasons import MEANING

SCHEMA = "proxlb-agent/explain/1"
MOVES_SHOWN = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument("vmid", metavar="VMID", type=int, help="the guest")


def execute(arguments: argparse.Namespace) -> int:
    """Print the explanation."""
    settings = settings_of(arguments)
    snapshot = wiring.look(settings)
    node = known_guest_node(snapshot, arguments.vmid)
    history = wiring.read_history(settings)
    question = question_of(settings, snapshot, history)
    guest = snapshot.guest(arguments.vmid)
    if guest is not None and guest.is_running and not guest.template:
        question = replace(question, verdicts={guest.vmid: asker(settings, snapshot)(guest, node)})
    found = explain(snapshot, settings, question, arguments.vmid)
    assert found is not None  # its node is known
    moves = last_moves(history, arguments.vmid)
    if arguments.json:
        print(json.dumps(explain_document(found, snapshot, question, moves), indent=1, allow_nan=False))
    else:
        print(explain_text(found, question, moves, (*why_only_words(settings, snapshot, history),)))
    return 0


def last_moves(history: HistoryFile | None, vmid: int) -> tuple[Migration, ...]:
    """The guest's last migrations, the newest first."""
    found = [record for record in (history.migrations if history is not None else ()) if record.vmid == vmid]
    return tuple(reversed(found[-MOVES_SHOWN:]))


def explain_document(found: Explanation, snapshot: Snapshot, question: Question, moves: tuple[Migration, ...]) -> JsonObject:
    """The explanation as `agent/schemas/explain-1.json` describes it."""
    guest = found.guest
    targets: list[Json] = [
        {
            "node": target.node,
            "gain": None if target.gain is None else round(target.gain, 6),
            "net": None if target.net is None else round(target.net, 6),
            "refusal": None if target.refusal is None else refusal_document(target.refusal),
        }
        for target in found.targets
    ]
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
        "unit": list(found.unit),
        "pins": list(found.pins),
        "together": list(found.together),
        "apart": list(found.apart),
        "contradicted": found.contradicted,
        "drains": found.drains,
        "stays": None if found.stays is None else refusal_document(found.stays),
        "targets": targets,
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
    }


def explain_text(found: Explanation, question: Question, moves: tuple[Migration, ...], notes: tuple[str, ...]) -> str:
    """The explanation for people to read."""
    guest = found.guest
    what = label(guest.type.value, guest.vmid, guest.name)
    takes = f"counts as {found.load.cpu_cores:.1f} cores and {gib(found.load.memory_bytes)}"
    if len(found.unit) > 1:
        takes = f"together with {', '.join(str(vmid) for vmid in found.unit if vmid != guest.vmid)} {takes}"
    parts = [f"{what} is on {guest.node}, {guest.status}, {takes}\n{_verdict(found)}"]
    if (rules := _rules(found)) != "":
        parts.append(rules)
    rows = []
    for target in found.targets:
        if target.refusal is None:
            says = "better than here" if (target.net or 0.0) > 0 else "gains less than the move costs"
            says = "may go there" if found.drains else says
        else:
            detail = f" ({target.refusal.detail})" if target.refusal.detail else ""
            says = f"{target.refusal.reason.value}: {MEANING[target.refusal.reason]}{detail}"
        rows.append((target.node, points(target.gain), points(target.net), says))
    parts.append(aligned(("NODE", "GAIN", "LESS COST", "AS A TARGET"), rows))
    memory = [
        words
        for words in (
            _said("moved lately", question.cooling.get(guest.vmid)),
            _said("set aside", question.set_aside.get(guest.vmid)),
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
    if notes:
        parts.append("\n".join(f"note: {note}" for note in notes))
    return "\n\n".join(parts)


def _said(what: str, text: str | None) -> str:
    return f"{what}: {text}" if text else ""


def _verdict(found: Explanation) -> str:
    """The answer in one sentence."""
    if found.stays is not None:
        detail = f" ({found.stays.detail})" if found.stays.detail else ""
        return f"stays: {found.stays.reason.value}, {MEANING[found.stays.reason]}{detail}"
    best = found.best
    if best is None:
        return "stays: no node can take it"
    if found.drains:
        return f"its node is to be emptied: it leaves, best to {best.node}"
    if (best.net or 0.0) > 0:
        return f"would be better off on {best.node}; it moves there when load is balanced and no other move is better"
    return "stays: no move of it gains more than it costs"


def _rules(found: Explanation) -> str:
    lines = []
    if found.rules:
        lines.append(f"rules: {', '.join(found.rules)}")
    if found.pins:
        lines.append(f"only on: {', '.join(found.pins)}")
    if found.together:
        lines.append(f"together with: {', '.join(str(vmid) for vmid in found.together)}")
    if found.apart:
        lines.append(f"never with: {', '.join(str(vmid) for vmid in found.apart)}")
    if found.contradicted:
        lines.append("its rules contradict each other: it stays where it is")
    return "\n".join(lines)

# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent plan`: what the agent would do now, and why. Moves nothing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from agent import wiring
from agent.commands.planning import Remembered, asker, checked_plan, question_of, remembered, timings_in, why_only_words
from agent.commands.prospects import bound_document, bound_words, goal_document, goal_text, survival_text
from agent.commands.tables import aligned, clock, counted, few, gib, iso, label, percent, points
from agent.commands.wrong_use import WrongUseError, settings_of, vmid
from agent.core.cluster import Snapshot
from agent.core.durations import foretold_words, words
from agent.core.explain import why_no_target
from agent.core.imbalance import Weights
from agent.core.json_types import Json, JsonObject
from agent.core.outlook import Outlook, outlook
from agent.core.plan_types import Balance, Conflict, Gate, Plan, Refusal
from agent.core.question import EVERYWHERE, Scope
from agent.core.reasons import MEANING, RefusalReason
from agent.core.sentences import nothing_words, summary
from agent.core.settings import Settings
from agent.core.snapshot_file import SnapshotFileError, from_text
from agent.core.survival import survival_document

SCHEMA = "proxlb-agent/plan/1"
MOST_LINES = 12  # of one reason

_GATES = {
    Gate.CLOSED: "no load balancing: no node is over a threshold and the spread is small enough",
    Gate.OVERLOAD: "load balancing: a node is over a threshold",
    Gate.SPREAD: "load balancing: the spread is over balance.spread_percent",
    Gate.FORCED: "load balancing: asked for past the gates",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--json", action="store_true", help="the plan as JSON")
    parser.add_argument("--snapshot", metavar="FILE", help="plan on what `snapshot` wrote, not on the cluster (-: standard input)")
    parser.add_argument("--guest", metavar="VMID", type=vmid, help="look at this guest, its rules and its node only")
    parser.add_argument("--node", metavar="NODE", help="look at this node and its guests' rules only")


def execute(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    settings = settings_of(arguments)
    snapshot, known = look_or_read(arguments.snapshot, settings)
    ask = asker(settings, snapshot) if arguments.snapshot is None and wiring.own_node(settings) is not None else None
    question = replace(question_of(settings, snapshot, known), scope=scope_of(snapshot, arguments.guest, arguments.node))
    plan = checked_plan(snapshot, settings, question, ask)
    in_slots = settings if arguments.snapshot is not None else wiring.in_slots(settings)
    view = outlook(snapshot, in_slots, question, plan, timings_in(known.history))
    if arguments.json:
        print(json.dumps(plan_document(plan, view), indent=1, allow_nan=False))
        return 0
    print(plan_text(plan, view, snapshot, settings))
    for sentence in (*why_only_words(settings, snapshot, known), *held_words(plan, settings)):
        print(f"proxlb-agent: note: {sentence}", file=sys.stderr)
    return 0


def held_words(plan: Plan, settings: Settings) -> tuple[str, ...]:
    """What the leader waits for and a plan asked for by hand does not."""
    if plan.gate is not Gate.OVERLOAD or not plan.moves:
        return ()
    cpu, memory = settings.balance.cpu.hold_s, settings.balance.memory.hold_s
    return (f"the leader acts on an overload once it has lasted for {cpu:.0f} s (cpu) or {memory:.0f} s (memory), or a guest has started",)


def look_or_read(path: str | None, settings: Settings) -> tuple[Snapshot, Remembered]:
    """The cluster now with what leaders remember, or, where a file is named, the snapshot in it. Raises WrongUseError."""
    if path is not None:
        return snapshot_from(path), Remembered()
    return wiring.look(settings), remembered(settings)


def snapshot_from(path: str) -> Snapshot:
    """The snapshot that a file holds. Raises WrongUseError."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        return from_text(text)
    except OSError as error:
        raise WrongUseError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise WrongUseError(f"{path}: this is no snapshot: not UTF-8") from None
    except SnapshotFileError as error:
        raise WrongUseError(f"{path}: {error}", "`proxlb-agent snapshot FILE` writes one") from None


def scope_of(snapshot: Snapshot, vmid: int | None, node: str | None) -> Scope:
    """Where to look. Raises WrongUseError for a guest or node that does not exist."""
    scopes = []
    if vmid is not None:
        scopes.append(Scope(frozenset({known_guest_node(snapshot, vmid)}), frozenset({vmid})))
    if node is not None:
        name = known_node(node, (other.name for other in snapshot.nodes))
        scopes.append(Scope(frozenset({name}), frozenset(guest.vmid for guest in snapshot.guests if guest.node == name)))
    if not scopes:
        return EVERYWHERE
    return scopes[0] if len(scopes) == 1 else scopes[0].union(scopes[1])


def known_guest_node(snapshot: Snapshot, vmid: int) -> str:
    """The node of a guest. Raises WrongUseError when there is no such guest."""
    guest = snapshot.guest(vmid)
    if guest is None:
        seen = " that the token sees" if snapshot.unseen else ""
        raise WrongUseError(f"there is no guest {vmid} in the cluster{seen}", "proxlb-agent guests lists them")
    return guest.node


def known_node(name: str, known: Iterable[str]) -> str:
    """The node's name as it is spelt, found in any case. Raises WrongUseError that names all nodes."""
    names = sorted(known)
    found = next((other for other in names if other.lower() == name.lower()), None)
    if found is None:
        raise WrongUseError(f"there is no node {name}", f"the nodes are: {', '.join(names) or 'none'}")
    return found


# as JSON


def plan_document(plan: Plan, view: Outlook) -> JsonObject:
    """The plan as `agent/schemas/plan-1.json` describes it."""
    return {
        "schema": SCHEMA,
        "taken_at": iso(plan.taken_at),
        "trigger": plan.trigger,
        "gate": plan.gate.value,
        "moves": [
            {
                "vmid": move.vmid,
                "type": move.type.value,
                "name": move.name,
                "source": move.source,
                "target": move.target,
                "reason": move.reason.value,
                "batch": move.batch,
                "first_pass": move.first_pass,
                "memory_bytes": move.memory_bytes,
                "disk_bytes": move.disk_bytes,
                "gain": round(move.gain, 6),
                "expected_s": round(view.foretold.moves[move.vmid].seconds, 1),
            }
            for move in plan.moves
        ],
        "refused": [refusal_document(refusal) for refusal in plan.refused],
        "conflicts": conflicts_document(plan.conflicts),
        "before": _balance_document(plan.before),
        "after": _balance_document(plan.after),
        "expected_s": round(view.foretold.whole_s, 1),
        "rests_on": view.foretold.rests_on,
        "goal": goal_document(view.goal),
        "bound": bound_document(view.bound),
        "survival": {"before": survival_document(view.survival_before), "after": survival_document(view.survival_after)},
    }


def refusal_document(refusal: Refusal) -> JsonObject:
    """A refusal as JSON."""
    return {"vmid": refusal.vmid, "reason": refusal.reason.value, "detail": refusal.detail}


def conflicts_document(conflicts: Iterable[Conflict]) -> list[Json]:
    """Conflicts as JSON."""
    return [{"rule": conflict.rule, "vmids": list(conflict.vmids), "detail": conflict.detail} for conflict in conflicts]


def _balance_document(balance: Balance) -> JsonObject:
    nodes: JsonObject = {
        name: {"cpu_fraction": round(load.cpu_fraction, 4), "memory_fraction": round(load.memory_fraction, 4)}
        for name, load in balance.nodes
    }
    return {"imbalance": round(balance.imbalance, 6), "nodes": nodes}


# for people


def plan_text(plan: Plan, view: Outlook, snapshot: Snapshot, settings: Settings) -> str:
    """The plan for people to read: what moves and why, who stays and why, and what it is worth."""
    running = sum(guest.is_running for guest in snapshot.guests)
    size = f"{counted(len(snapshot.nodes), 'node')}, {counted(running, 'running guest')}"
    parts = [f"{size}, as of {clock(plan.taken_at)}\n{_gate_words(plan, snapshot, settings)}"]
    if plan.moves:
        parts.append(f"{summary(plan)}; {bound_words(view.bound)}:\n{_moves_table(plan, view)}\n{foretold_words(view.foretold)}")
        later = sum(not move.first_pass for move in plan.moves)
        if later:
            parts.append(f"{counted(later, 'move')} marked with * would wait for a further pass (max_moves_per_pass, max_moves_per_hour)")
    else:
        now = f"imbalance {points(plan.before.imbalance)} points"
        parts.append(f"{nothing_words(plan, Weights.of(settings))}\n{now}; {bound_words(view.bound)}")
    if plan.refused:
        parts.append(f"guests that stay:\n{refusals_text(plan.refused, snapshot)}")
    if plan.conflicts:
        parts.append("rules that cannot be kept as they are written:\n" + "\n".join(map(conflict_words, plan.conflicts)))
    parts += [_loads_table(plan), goal_text(view.goal, then="THEN" if plan.moves else None)]
    parts.append(survival_text(view.survival_before, view.survival_after if plan.moves else None, snapshot))
    return "\n\n".join(parts)


def _gate_words(plan: Plan, snapshot: Snapshot, settings: Settings) -> str:
    """What let load balancing begin, or why it did not."""
    if plan.gate is Gate.CLOSED and snapshot.unseen:
        return "no plan is made: the token does not see all guests"
    refusals = why_no_target(snapshot, settings)
    if plan.gate is Gate.CLOSED and sum(refusal is None for refusal in refusals.values()) < 2:
        why = ", ".join(f"{name}: {refusal.reason.value}" for name, refusal in refusals.items() if refusal is not None)
        return "no load balancing: fewer than two nodes can take part" + (f" ({why})" if why else "")
    return _GATES[plan.gate]


def _moves_table(plan: Plan, view: Outlook) -> str:
    rows = [
        (
            f"{move.batch}{'' if move.first_pass else '*'}",
            label(move.type.value, move.vmid, move.name),
            move.source,
            move.target,
            move.reason.value,
            gib(move.memory_bytes),
            points(move.gain),
            words(view.foretold.moves[move.vmid].seconds),
        )
        for move in plan.moves
    ]
    return aligned(("BATCH", "GUEST", "FROM", "TO", "WHY", "MEMORY", "GAIN", "ABOUT"), rows)


def refusals_text(refusals: Iterable[Refusal], snapshot: Snapshot) -> str:
    """Refusals by reason, and guests that stay for exactly the same one on a line of their own."""
    by_reason: dict[RefusalReason, dict[str, list[str]]] = {}
    for refusal in refusals:
        guest = snapshot.guest(refusal.vmid)
        who = f"guest {refusal.vmid}" if guest is None else label(guest.type.value, guest.vmid, guest.name)
        by_reason.setdefault(refusal.reason, {}).setdefault(refusal.detail, []).append(who)
    lines = []
    for reason in sorted(by_reason, key=list(RefusalReason).index):
        details = by_reason[reason]
        lines.append(f"  {reason.value}: {MEANING[reason]}")
        for detail, guests in list(details.items())[:MOST_LINES]:
            lines.append(f"    {few(guests)}" + (f": {detail}" if detail else ""))
        if (rest := sum(len(guests) for guests in list(details.values())[MOST_LINES:])) > 0:
            lines.append(f"    and {counted(rest, 'guest')} more; --json has all of them")
    return "\n".join(lines)


def _loads_table(plan: Plan) -> str:
    after = dict(plan.after.nodes)
    rows = []
    for name, node in plan.before.nodes:
        then = after.get(name, node)
        row = (name, percent(node.cpu_fraction), percent(node.memory_fraction))
        rows.append((*row, percent(then.cpu_fraction), percent(then.memory_fraction)) if plan.moves else row)
    header = ("NODE", "CPU", "MEMORY")
    return aligned((*header, "CPU THEN", "MEMORY THEN") if plan.moves else header, rows)


def conflict_words(conflict: Conflict) -> str:
    """A line for a rule that cannot be kept: which, why, and whose it is."""
    vmids = [str(vmid) for vmid in conflict.vmids]
    whose = f" (guest{'s' if vmids[1:] else ''} {few(vmids)})" if vmids else ""
    return f"  {conflict.rule}: {conflict.detail}{whose}"

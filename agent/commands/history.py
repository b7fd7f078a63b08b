# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent history`: past migrations, and what leaders remember for each other."""

from __future__ import annotations

import argparse
import json
import time

from agent import wiring
from agent.commands.tables import aligned, clock, counted, gib, label
from agent.commands.wrong_use import own_node_or_refuse, settings_in_force
from agent.core import history as memory
from agent.core.aside import is_active
from agent.core.codec import to_json
from agent.core.documents import HistoryFile
from agent.core.migrations import Migration


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--json", action="store_true", help="history.json as it is")


def execute(arguments: argparse.Namespace) -> int:
    """Print the history."""
    settings = settings_in_force(arguments)
    own_node_or_refuse(settings, "history")
    now = time.time()
    history = wiring.read_history(settings)
    if arguments.json:
        print(json.dumps(to_json(history if history is not None else memory.empty(now)), indent=1, allow_nan=False))
    else:
        print("no agent has led this cluster yet" if history is None else history_text(history, now))
    return 0


def history_text(history: HistoryFile, now: float) -> str:
    """The history for people to read, the newest first."""
    rows = [
        (
            clock(record.ended_at or record.asked_at or record.planned_at),
            label(record.type.value, record.vmid, record.name),
            record.source,
            record.target,
            record.reason.value,
            gib(record.memory_bytes),
            record.state.value,
            _took(record),
            record.text or "-",
        )
        for record in reversed(history.migrations)
    ]
    head = ("WHEN", "GUEST", "FROM", "TO", "WHY", "MEMORY", "STATE", "TOOK", "TEXT")
    parts = [aligned(head, rows) if rows else "no migrations in the last days"]
    if history.homes:
        lines = [
            f"  guest {home.vmid}: on {home.put_on}, goes home to {home.home} (left {clock(home.since)}"
            + (", brought by the HA manager)" if home.by_ha else ")")
            for home in history.homes
        ]
        parts.append("away for a maintenance:\n" + "\n".join(lines))
    aside = [entry for entry in history.set_aside if is_active(entry, now)]
    if aside:
        lines = []
        for entry in aside:
            where = "" if entry.target is None else f" does not go to {entry.target}"
            until = "until somebody acts" if entry.until is None else f"until {clock(entry.until)}"
            lines.append(f"  guest {entry.vmid}{where}: {until}, {counted(entry.failures, 'failure')}, {entry.failure.value}: {entry.text}")
        parts.append("set aside after failures:\n" + "\n".join(lines))
    if history.answers:
        lines = [f"  {clock(answer.at)}  {answer.text}" for answer in reversed(history.answers)]
        parts.append("what was asked for with `balance`:\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _took(record: Migration) -> str:
    """How long it took from the request to its end, and of that what it waited before PVE began."""
    if record.asked_at is None or record.ended_at is None or record.ended_at < record.asked_at:
        return "-"
    waited_s = 0.0 if record.began_at is None else record.began_at - record.asked_at
    return f"{record.ended_at - record.asked_at:.0f} s" + (f" ({waited_s:.0f} s queued)" if waited_s >= 1 else "")

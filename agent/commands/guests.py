# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent guests`: the guests, where they are, their load, their rules."""

from __future__ import annotations

import argparse
import json

from agent import wiring
from agent.commands.plan import known_node
from agent.commands.tables import aligned, counted, gib, iso
from agent.commands.wrong_use import settings_of
from agent.core.cluster import Guest, Snapshot
from agent.core.conditions import Purpose
from agent.core.guest_load import measured_load
from agent.core.json_types import Json, JsonObject
from agent.core.placement import Placement
from agent.core.plan_types import Refusal
from agent.core.question import Question
from agent.core.settings import Settings

SCHEMA = "proxlb-agent/guests/1"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument("--node", metavar="NODE", help="those of this node only")


def execute(arguments: argparse.Namespace) -> int:
    """Print the guests."""
    settings = settings_of(arguments)
    snapshot = wiring.look(settings)
    node = None if arguments.node is None else known_node(arguments.node, (other.name for other in snapshot.nodes))
    chosen = tuple(guest for guest in snapshot.guests if node is None or guest.node == node)
    if arguments.json:
        print(json.dumps(guests_document(snapshot, settings, chosen), indent=1, allow_nan=False))
    else:
        print(guests_text(snapshot, settings, chosen))
    return 0


def _refusals(snapshot: Snapshot, sketch: Placement) -> dict[int, Refusal | None]:
    """What keeps each guest from being moved for load, whatever the target."""
    return {guest.vmid: sketch.conditions.why_guest_stays(guest, Purpose.LOAD) for guest in snapshot.guests}


def guests_document(snapshot: Snapshot, settings: Settings, chosen: tuple[Guest, ...]) -> JsonObject:
    """The guests as `agent/schemas/guests-1.json` describes them."""
    sketch = Placement(snapshot, settings, Question())
    refusals = _refusals(snapshot, sketch)
    guests: list[Json] = []
    for guest in chosen:
        load, refusal = measured_load(guest), refusals[guest.vmid]
        guests.append(
            {
                "vmid": guest.vmid,
                "type": guest.type.value,
                "name": guest.name,
                "node": guest.node,
                "status": guest.status,
                "cpu_cores": guest.cpu_cores,
                "memory_bytes": guest.memory_bytes,
                "cpu_used_cores": None if load is None else round(load.cpu_cores, 4),
                "memory_used_bytes": None if load is None else int(load.memory_bytes),
                "rules": list(sketch.rules.named.get(guest.vmid, ())),
                "pool": guest.pool,
                "lock": guest.lock,
                "ha": guest.ha,
                "template": guest.template,
                "stays": None if refusal is None else refusal.reason.value,
                "detail": "" if refusal is None else refusal.detail,
            }
        )
    return {"schema": SCHEMA, "taken_at": iso(snapshot.taken_at), "guests": guests, "unseen": list(snapshot.unseen)}


def guests_text(snapshot: Snapshot, settings: Settings, chosen: tuple[Guest, ...]) -> str:
    """The guests for people to read."""
    if not chosen:
        return "there are no guests"
    sketch = Placement(snapshot, settings, Question())
    refusals = _refusals(snapshot, sketch)
    rows = []
    for guest in chosen:
        load, refusal = measured_load(guest), refusals[guest.vmid]
        rows.append(
            (
                guest.label,
                guest.name,
                guest.node,
                guest.status,
                f"{guest.cpu_cores:g}",
                "-" if load is None else f"{load.cpu_cores:.1f}",
                gib(guest.memory_bytes),
                gib(None if load is None else load.memory_bytes),
                ", ".join(sketch.rules.named.get(guest.vmid, ())) or "-",
                "may" if refusal is None else refusal.reason.value,
            )
        )
    header = ("GUEST", "NAME", "NODE", "STATUS", "CORES", "USED", "MEMORY", "USED", "RULES", "MAY MOVE FOR LOAD")
    text = aligned(header, rows)
    if snapshot.unseen:
        text += f"\n\n{counted(len(snapshot.unseen), 'guest')} not shown to the token: the agent only observes"
    return text

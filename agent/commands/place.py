# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent place`: the best node for a guest that does not exist yet, and every other one with what it would do there."""

from __future__ import annotations

import argparse
import json
import math
import re

from agent.commands.explain import targets_document, targets_text
from agent.commands.plan import look_or_read
from agent.commands.planning import question_of
from agent.commands.prospects import goal_document, goal_text
from agent.commands.tables import gib, iso
from agent.commands.wrong_use import WrongUseError, settings_of
from agent.core.cluster import GuestType, Snapshot
from agent.core.explain import TargetView
from agent.core.goal_table import OVERLOAD
from agent.core.json_types import JsonObject
from agent.core.newcomer import Placing, newcomer, place

SCHEMA = "proxlb-agent/place/1"
MOST_MEMORY_GIB = 65536.0  # beyond what any machine has
MOST_CORES = 8192.0  # PVE's limit of a container; that of a VM is lower
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+.-]*")  # PVE's pve-tag, in PVE/JSONSchema.pm of pve-common


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument("--snapshot", metavar="FILE", help="look at what `snapshot` wrote, not at the cluster (-: standard input)")
    parser.add_argument("--memory-gib", metavar="N", type=float, required=True, help="memory the guest is to have")
    parser.add_argument("--cores", metavar="N", type=float, required=True, help="cores the guest is to have")
    parser.add_argument("--type", choices=[kind.value for kind in GuestType], default=GuestType.QEMU.value, help="by default qemu")
    parser.add_argument("--tag", metavar="TAG", action="append", default=[], help="a tag the guest is to have; may be given again")
    parser.add_argument("--pool", metavar="POOL", help="the pool the guest is to be in")


def execute(arguments: argparse.Namespace) -> int:
    """Print the nodes; status 1 when none can take the guest."""
    _must_be_within("--memory-gib", arguments.memory_gib, MOST_MEMORY_GIB)
    _must_be_within("--cores", arguments.cores, MOST_CORES)
    for tag in arguments.tag:
        if not _TAG.fullmatch(tag):
            raise WrongUseError(f"--tag {tag!r} is no tag of PVE", "letters, digits and _ + . - only; give --tag again for each")
    settings = settings_of(arguments)
    snapshot, known = look_or_read(arguments.snapshot, settings)
    guest = newcomer(arguments.memory_gib, arguments.cores, GuestType(arguments.type), tuple(arguments.tag), arguments.pool)
    found = place(snapshot, settings, question_of(settings, snapshot, known), guest)
    if arguments.json:
        print(json.dumps(place_document(found, snapshot), indent=1, allow_nan=False))
    else:
        print(place_text(found))
    return 0 if found.best is not None else 1


def _must_be_within(option: str, value: float, most: float) -> None:
    if not (math.isfinite(value) and 0 < value <= most):
        raise WrongUseError(f"{option} must be a number above 0, and not above {most:g}")


def place_document(found: Placing, snapshot: Snapshot) -> JsonObject:
    """The places as `agent/schemas/place-1.json` describes them."""
    guest = found.guest
    return {
        "schema": SCHEMA,
        "taken_at": iso(snapshot.taken_at),
        "type": guest.type.value,
        "cpu_cores": guest.cpu_cores,
        "memory_bytes": guest.memory_bytes,
        "tags": list(guest.tags),
        "pool": guest.pool,
        "cpu_used_cores": round(found.load.cpu_cores, 4),
        "memory_used_bytes": int(found.load.memory_bytes),
        "node": None if found.best is None else found.best.node,
        "targets": targets_document(found.targets, lambda refusal: {"reason": refusal.reason.value, "detail": refusal.detail}),
        "goal": goal_document(found.goal),
        "conflicts": [{"rule": conflict.rule, "detail": conflict.detail} for conflict in found.conflicts],
    }


def place_text(found: Placing) -> str:
    """The places for people to read."""
    guest, best = found.guest, found.best
    kind = "VM" if guest.type is GuestType.QEMU else "container"
    size = f"a {kind} with {gib(guest.memory_bytes)} and {guest.cpu_cores:g} cores"
    counts = f"counts as {found.load.cpu_cores:.1f} cores and {gib(found.load.memory_bytes)} until it has been measured"
    parts = [f"{f'best on {best.node}' if best is not None else 'no node can take it'}: {size}, which {counts}"]
    if found.conflicts:
        lines = [f"  {conflict.rule}: {conflict.detail}" for conflict in found.conflicts]
        parts.append("rules that cannot be kept as they are written (guest 0 is the new one):\n" + "\n".join(lines))
    parts.append(targets_text(found.targets, found.goal, lambda target: _as_place(target, best), has_cost=False))
    parts.append(goal_text(found.goal, then=None if best is None else f"ON {best.node}"))
    return "\n\n".join(parts)


def _as_place(target: TargetView, best: TargetView | None) -> str:
    says = "the best node" if target is best else "may be there"
    return f"{says}, but more than now stands above a threshold then" if dict(target.terms).get(OVERLOAD, 0.0) < 0 else says

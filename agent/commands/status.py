# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent status`: who leads, what runs, what waits, as this node's agent says it."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import cast

from agent import wiring
from agent.commands.flag_files import paused_by
from agent.commands.following import told_by_files
from agent.commands.tables import aligned, clock, counted, label, percent
from agent.commands.wrong_use import settings_in_force
from agent.core.documents import DocumentError, LeaderFile, LeaderState, parse
from agent.core.durations import words
from agent.core.flags import Flag, flag_words
from agent.core.json_types import Json, JsonObject
from agent.core.settings import Settings
from agent.daemon.outside import LEADER_PATH
from agent.daemon.status import STATUS_SCHEMA
from agent.ports import OutsideError, PermanentError, TemporaryError

STALE_S = 60.0  # an agent that is well writes more often
_SEE = "see: systemctl status proxlb-agent"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def execute(arguments: argparse.Namespace) -> int:
    """Print the status."""
    settings = settings_in_force(arguments)
    document = read_status(settings)
    if document["stage"] != "leading":
        document |= told_by_files(settings, wiring.wall_s())
    if arguments.json:
        print(json.dumps(document, indent=1))
    else:
        print(status_text(document, _leader(settings), time.time(), paused_by(settings)))
    return 0


def read_status(settings: Settings) -> JsonObject:
    """What this node's agent says of itself.

    Raises:  PermanentError when no agent runs here, as far as its file tells; TemporaryError when the file is damaged.
    """
    path = wiring.status_path(settings)
    try:
        with path.open("rb") as file:
            age_s = time.time() - os.fstat(file.fileno()).st_mtime
            document = cast(Json, json.loads(file.read()))
    except FileNotFoundError:
        raise PermanentError(f"the agent does not run on this machine ({path} is not there){_who_leads(settings)}", _SEE) from None
    except PermissionError:
        raise PermanentError(f"{path}: only root may read it", "run this as root") from None
    except (OSError, ValueError) as error:
        raise TemporaryError(f"{path} cannot be read: {error}") from None
    if wiring.has_ended(settings):
        raise PermanentError(f"the agent does not run: it has ended, and last said how it is {age_s:.0f} s ago{_who_leads(settings)}", _SEE)
    if age_s > STALE_S:
        text = f"the agent does not run or hangs: it last said how it is {age_s:.0f} s ago ({path})"
        raise PermanentError(text + _who_leads(settings), _SEE)
    if not isinstance(document, dict) or document.get("schema") != STATUS_SCHEMA:
        raise TemporaryError(f"{path} was written by another version of the agent; restart it: systemctl restart proxlb-agent")
    return document


def _leader(settings: Settings) -> LeaderFile | None:
    try:
        text = wiring.make_files(settings).read(LEADER_PATH)
        return None if text is None else parse(LeaderFile, text)
    except (OutsideError, DocumentError):
        return None


def _who_leads(settings: Settings) -> str:
    leader = _leader(settings)
    if leader is None:
        return ""
    return f"; leader.json names {leader.node}" if leader.state is LeaderState.LEADING else f"; {leader.node} was the last to lead"


def status_text(document: JsonObject, leader: LeaderFile | None, now: float, paused: Flag | None = None) -> str:
    """The status for people to read; `leader` and `paused` are what files below /etc/pve say."""
    node, stage = document["node"], document["stage"]
    parts = [f"proxlb-agent {document['version']} on {node}, mode {document['mode']}: {stage} ({document['stage_meaning']})"]
    facts: list[tuple[str, str]] = [("/etc/pve", str(document["filesystem"])), ("leader", _leader_words(document, leader, now))]
    for title, key in (("answering", "answering"), ("waiting for", "waiting_for"), ("last decision", "last_decision"), ("alarm", "alarm")):
        if document[key]:
            facts.append((title, str(document[key])))
    facts += [("problem", problem) for problem in cast(list[str], document.get("problems", []))]
    if paused is not None:
        end = "" if paused.until is not None else ", until proxlb-agent resume"
        facts.append(("paused", f"nobody is moved{end} ({flag_words(paused)})" if flag_words(paused) else f"nobody is moved{end}"))
    if (shared := cast(JsonObject | None, document.get("corosync_link"))) is not None:
        facts.append(("network", str(shared["text"])))
    for balancer in cast(list[JsonObject], document.get("other_balancers", [])):
        facts.append(("balances, too", _balancer_words(balancer)))
    if (quiet := cast(JsonObject | None, document["quiet_hours"])) is not None:
        end = "" if quiet["until"] is None else f" until {clock(cast(float, quiet['until']))}"
        facts.append(("quiet hours", f"no load is balanced{end}"))
    if maintenance := cast(list[str], document["maintenance"]):
        facts.append(("maintenance", ", ".join(maintenance)))
    width = max(len(title) for title, _ in facts)
    parts.append("\n".join(f"{title:{width}}  {text}" for title, text in facts))
    nodes = cast(dict[str, dict[str, float]], document["nodes"])
    if nodes:
        rows = [(name, percent(load["cpu_fraction"]), percent(load["memory_fraction"])) for name, load in sorted(nodes.items())]
        parts.append(aligned(("NODE", "CPU", "MEMORY"), rows))
        if (survival := cast(JsonObject | None, document["survival"])) is not None:
            parts.append(_survival_words(survival))
    elif stage != "leading":
        where = f" (on {document['leader']})" if document["leader"] else ""
        parts.append(f"the leader's status{where} tells what it decides and waits for; loads: proxlb-agent cluster")
    migrations = cast(list[dict[str, Json]], document["migrations"])
    if migrations:
        parts.append(f"{counted(len(migrations), 'migration')} under way:\n{_migrations_table(migrations, now)}")
    aside = cast(list[JsonObject], document["set_aside"])
    if aside:
        parts.append("set aside after failures:\n" + "\n".join(map(_aside_words, aside)))
    return "\n\n".join(parts)


def _balancer_words(balancer: JsonObject) -> str:
    """Who balances, too, and whom load balancing leaves alone for that."""
    vmids = cast(list[int], balancer["vmids"])
    named = ", ".join(map(str, vmids[:5])) + (f" and {len(vmids) - 5} more" if len(vmids) > 5 else "")
    times = counted(cast(int, balancer["migrations"]), "migration")
    last = clock(cast(float, balancer["last_at"]))
    return f"{balancer['user']} ({times} within an hour, the last at {last}): load balancing leaves alone {named}"


def _aside_words(entry: JsonObject) -> str:
    """Who is left alone, why, until when, and what helps."""
    where = "" if entry["target"] is None else f" does not go to {entry['target']}"
    until = "until somebody acts" if entry["until"] is None else f"until {clock(cast(float, entry['until']))}"
    times = counted(cast(int, entry["failures"]), "failure")
    return f"  guest {entry['vmid']}{where}: {entry['failure']}, {until} ({times}): {entry['text']}\n    {entry['remedy']}"


def _survival_words(survival: JsonObject) -> str:
    """Which nodes can be lost, as the leader last looked."""
    at = f"as of {clock(cast(float, survival['at']))}"
    if survival["survives"]:
        return f"N+1: any one node can be lost ({at})"
    losses = cast(dict[str, dict[str, Json]], survival["nodes"])
    lines = []
    for name, loss in sorted(losses.items()):
        if not loss["survives"]:
            homeless = cast(list[dict[str, Json]], loss["without_place"])
            named = ", ".join(f"{refusal['vmid']} ({refusal['reason']})" for refusal in homeless[:3])
            without, guests = cast(int, loss["without_place_count"]), cast(int, loss["guests"])
            lines.append(f"  {name}: {without} of {counted(guests, 'guest')}: {named}{', ...' if without > 3 else ''}")
    return f"N+1: no place was found for all guests of these nodes, were one of them lost ({at}):\n" + "\n".join(lines)


def _leader_words(document: JsonObject, leader: LeaderFile | None, now: float) -> str:
    name, epoch, lease_until = document["leader"], document["epoch"], document["lease_until"]
    if name is None:
        if leader is not None and leader.state is LeaderState.RELEASED:
            return f"nobody; {leader.node} let go at {clock(leader.since)}"
        return "nobody yet"
    words = f"{name}, epoch {epoch}"
    if isinstance(lease_until, int | float):
        words += f", lease for {max(0.0, lease_until - now):.0f} s"
    if leader is not None and leader.node == name and leader.state is LeaderState.LEADING:
        words += f", since {clock(leader.since)}"
    return words


def _migrations_table(migrations: list[dict[str, Json]], now: float) -> str:
    rows = []
    for record in migrations:
        asked_at = record["asked_at"]
        since = f"{now - asked_at:.0f} s" if isinstance(asked_at, int | float) else "-"
        about = words(float(cast(float, record["expected_s"])))
        who = label(str(record["type"]), int(cast(int, record["vmid"])), str(record["name"]))
        rows.append((who, str(record["source"]), str(record["target"]), str(record["reason"]), str(record["state"]), since, about))
    return aligned(("GUEST", "FROM", "TO", "WHY", "STATE", "SINCE", "OF ABOUT"), rows)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What `proxlb-agent status` shows: the agent's state as a JSON document, and as systemd's one line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from agent import __version__
from agent.core import aside, calibration
from agent.core import history as memory
from agent.core.balancers import Balancer
from agent.core.durations import Pace
from agent.core.flags import Flag
from agent.core.json_types import Json, JsonObject
from agent.core.leadership import STAGE_MEANING, Stage
from agent.core.migration_network import SharedLink, shared_words
from agent.core.migrations import Migration
from agent.core.quiet_hours import quiet
from agent.core.survival import survival_document
from agent.core.triggers import described
from agent.daemon.inputs import Now
from agent.daemon.outputs import Output, SetStatusLine, WriteStatus
from agent.daemon.permission import pause_words

if TYPE_CHECKING:
    from agent.core.settings import Settings
    from agent.daemon.agent import Agent
    from agent.daemon.work import Work

STATUS_AGAIN_S = 30.0  # `status` takes an agent whose file is a minute old for dead
STATUS_SCHEMA = "proxlb-agent/status/1"


class StatusTold:
    """What was told of the agent's state, and when: to `status` and to systemd."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._told_s = self._wrote_s = -1e9
        self._standing: tuple[Stage, str | None, Flag | None] | None = None  # what `status` tells at once when it changes
        self._text = ""
        self._line = ""

    def due(self, agent: Agent, now: Now) -> list[Output]:
        """What to write now, where something has changed."""
        standing = (agent.lead.state.stage, agent.lead.leader_name(), None if agent.work is None else agent.work.paused)
        if standing == self._standing and now.boot_s - self._told_s < self._every_s:
            return []
        self._told_s, self._standing = now.boot_s, standing
        result: list[Output] = []
        text, line = status_text(agent, now)
        if text != self._text or now.boot_s - self._wrote_s >= STATUS_AGAIN_S:
            self._text, self._wrote_s = text, now.boot_s
            result.append(WriteStatus(text))
        if line != self._line:
            self._line = line
            result.append(SetStatusLine(line))
        return result


def status_text(agent: Agent, now: Now) -> tuple[str, str]:
    """The status document as text, and one line for systemd."""
    document = status_document(agent, now)
    return json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n", _line(agent)


def _line(agent: Agent) -> str:
    work, leader = agent.work, agent.lead.leader_name()
    if agent.lead.state.stage is not Stage.LEADING:
        state = agent.filesystem
        if state is not None and state.value != "quorate":
            return f"waiting: {state.value}"
        return f"follows {leader}" if leader else "nobody leads yet"
    if work is None:
        return f"leads, epoch {agent.lead.state.epoch}"
    running = len(work.follow.records)
    text = f"leads, epoch {agent.lead.state.epoch}, {running} migration{'' if running == 1 else 's'} under way"
    if work.paused is not None:
        text += f", {pause_words(work.paused)}"
    return f"{text}; {work.sentence}" if work.sentence else text


def status_document(agent: Agent, now: Now) -> JsonObject:
    """The status as a JSON document; `agent/schemas/status-1.json` describes it."""
    state, work = agent.lead.state, agent.work
    maintenance = sorted({m.node for m in agent.senses.maintenance()} | set(agent.settings.nodes.maintenance)) if work is not None else []
    nodes: JsonObject = {}
    if work is not None:
        for name, load in sorted(agent.senses.overloads.node_loads.items()):
            nodes[name] = {"cpu_fraction": round(load.cpu_fraction, 3), "memory_fraction": round(load.memory_fraction, 3)}
    filesystem = agent.filesystem
    return {
        "schema": STATUS_SCHEMA,
        "version": __version__,
        "node": agent.identity.node,
        "mode": agent.settings.mode.value,
        "filesystem": filesystem.value if filesystem is not None else "unknown",
        "stage": state.stage.value,
        "stage_meaning": STAGE_MEANING[state.stage],
        "leader": agent.lead.leader_name(),
        "epoch": state.epoch if state.stage is Stage.LEADING else (state.leader.epoch if state.leader is not None else None),
        "lease_until": round(now.wall_s + state.lease_until_s - now.boot_s) if state.stage is Stage.LEADING else None,
        "nodes": nodes,
        "maintenance": list(maintenance),
        "quiet_hours": None if work is None else _quiet(work, agent.settings, now),
        "paused": None if work is None or work.paused is None else _paused(work.paused),
        "migrations": [] if work is None else _migrations(work, agent.settings),
        "waiting_for": None if work is None or work.pending is None else described(work.pending),
        "answering": None if work is None or work.current is None else described(work.current),
        "last_decision": "" if work is None else work.sentence,
        "calibrations": [] if work is None else [*calibration.rows(work.history)],
        "set_aside": [] if work is None else [*aside.rows(work.history, work.guest_types, now.wall_s)],
        "alarm": None if work is None else memory.alarm(work.history, now.wall_s),
        "corosync_link": None if work is None or (shared := agent.network.shared) is None else _shared(shared),
        "other_balancers": [] if work is None else [*map(_balancer, work.beside.found)],
        "survival": None if work is None or work.survival is None else {"at": work.survival_at, **survival_document(work.survival)},
    }


def _shared(shared: SharedLink) -> JsonObject:
    return {"link": shared.link, "network": shared.network, "text": shared_words(shared)}


def _balancer(balancer: Balancer) -> JsonObject:
    return {
        "user": balancer.user,
        "migrations": balancer.moves,
        "last_at": balancer.last_at,
        "vmids": [vmid for vmid, _ in balancer.moved],
    }


def _quiet(work: Work, settings: Settings, now: Now) -> JsonObject | None:
    hours = None if work.snapshot is None else quiet(settings.quiet_hours, now.wall_s, work.snapshot.utc_offset_s)
    return None if hours is None else {"until": None if hours.until is None else round(hours.until)}


def _paused(flag: Flag) -> JsonObject:
    return {"reason": flag.reason, "until": flag.until}


def _migrations(work: Work, settings: Settings) -> list[Json]:
    pace = Pace(work.history.timings, settings)
    return [_migration(record, pace) for record in work.follow.records]


def _migration(record: Migration, pace: Pace) -> JsonObject:
    return {
        "vmid": record.vmid,
        "type": record.type.value,
        "name": record.name,
        "source": record.source,
        "target": record.target,
        "reason": record.reason.value,
        "state": record.state.value,
        "asked_at": record.asked_at,
        "expected_s": round(pace.of_record(record).seconds, 1),
    }

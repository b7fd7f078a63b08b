# SPDX-License-Identifier: GPL-3.0-or-later
"""What `proxlb-agent status` shows: the agent's state as a JSON document, and as systemd's one line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from agent import __version__
from agent.core.json_types import Json, JsonObject
from agent.core.leadership import STAGE_MEANING, Stage
from agent.daemon.inputs import Now
from agent.daemon.outputs import Output, SetStatusLine, WriteStatus

if TYPE_CHECKING:
    from agent.core.flags import Flag
    from agent.daemon.agent import Agent

STATUS_AGAIN_S = 30.0  # `status` takes an agent whose file is a minute old for dead
STATUS_SCHEMA = "proxlb-agent/status/1"
NO_WORK: JsonObject = {
    "nodes": {},
    "maintenance": [],
    "quiet_hours": None,
    "paused": None,
    "migrations": [],
    "waiting_for": None,
    "answering": None,
    "last_decision": "",
    "calibrations": [],
    "set_aside": [],
    "alarm": None,
    "problems": [],
    "corosync_link": None,
    "other_balancers": [],
    "survival": None,
}  # what a follower says of the work that it does not have


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
    leader = agent.lead.leader_name()
    if agent.lead.state.stage is not Stage.LEADING:
        state = agent.filesystem
        if state is not None and state.value != "quorate":
            return f"waiting: {state.value}"
        return f"follows {leader}" if leader else "nobody leads yet"
    if agent.leading is None or agent.work is None:
        return f"leads, epoch {agent.lead.state.epoch}"
    return f"leads, epoch {agent.lead.state.epoch}, {agent.leading.line()}"


def status_document(agent: Agent, now: Now) -> JsonObject:
    """The status as a JSON document; `agent/schemas/status-1.json` describes it."""
    state = agent.lead.state
    filesystem = agent.filesystem
    rows = NO_WORK if agent.leading is None else agent.leading.rows(agent.settings, now)
    problems = cast(list[Json], rows["problems"])
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
        **rows,
        "problems": [*agent.settings_problems, *problems],
    }

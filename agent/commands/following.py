# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node that follows can tell of the leader's work, by the files below /etc/pve that the leader and others write."""

from __future__ import annotations

from collections.abc import Mapping

from agent import wiring
from agent.commands.flag_files import paused_by
from agent.commands.maintenance import causes
from agent.core import aside, calibration
from agent.core import history as memory
from agent.core.cluster import GuestType
from agent.core.durations import Pace
from agent.core.json_types import Json, JsonObject
from agent.core.settings import Settings
from agent.core.statistics import parse_vmlist
from agent.daemon.work_status import migration_row
from agent.ports import ClusterFiles, OutsideError


def told_by_files(settings: Settings, now: float) -> JsonObject:
    """Rows for the status of a node that does not lead: those of its work that are written down for everybody.

    Which nodes the HA manager was asked to empty is not in these files. `now` in Unix seconds.
    """
    history = wiring.read_history(settings) or memory.empty(now)
    files = wiring.make_files(settings)
    types, asked = _what_files_say(files, settings)
    pace, paused = Pace(history.timings, settings), paused_by(settings)
    return {
        "maintenance": list[Json](sorted(asked)),
        "paused": None if paused is None else {"reason": paused.reason, "until": paused.until},
        "migrations": [migration_row(record, pace) for record in memory.open_migrations(history)],
        "calibrations": [*calibration.rows(history)],
        "set_aside": [*aside.rows(history, types, now)],
        "alarm": memory.alarm(history, now),
    }


def _what_files_say(files: ClusterFiles, settings: Settings) -> tuple[Mapping[int, GuestType], frozenset[str]]:
    try:
        entries = parse_vmlist(files.read(".vmlist") or "") or ()
        return {entry.vmid: entry.type for entry in entries}, frozenset(cause.node for cause in causes(settings, files))
    except OutsideError:
        return {}, frozenset()

# SPDX-License-Identifier: GPL-3.0-or-later
"""What `proxlb-agent status` and systemd show of a leader's work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.core import aside, calibration
from agent.core import history as memory
from agent.core.balancers import Balancer
from agent.core.durations import Pace
from agent.core.flags import Flag
from agent.core.json_types import Json, JsonObject
from agent.core.migration_network import SharedLink, shared_words
from agent.core.migrations import Migration
from agent.core.quiet_hours import quiet
from agent.core.settings import Settings
from agent.core.survival import survival_document
from agent.core.triggers import described
from agent.daemon.inputs import Now
from agent.daemon.permission import pause_words

if TYPE_CHECKING:
    from agent.daemon.senses import Senses
    from agent.daemon.work import Work


def work_line(work: Work) -> str:
    """The work in a few words, for systemd's one line."""
    running = len(work.follow.records)
    text = f"{running} migration{'' if running == 1 else 's'} under way"
    if work.paused is not None:
        text += f", {pause_words(work.paused)}"
    about = "; ".join(work.problems) or work.sentence
    return f"{text}; {about}" if about else text


def work_rows(work: Work, senses: Senses, shared: SharedLink | None, settings: Settings, now: Now) -> JsonObject:
    """What the status document says of the work: `agent.daemon.status.NO_WORK` has the same keys.

    Shape:   `shared` is the link of corosync that migrations share, None without one.
    """
    pace = Pace(work.history.timings, settings)
    return {
        "nodes": {
            name: {"cpu_fraction": round(load.cpu_fraction, 3), "memory_fraction": round(load.memory_fraction, 3)}
            for name, load in sorted(senses.overloads.node_loads.items())
        },
        "maintenance": list[Json](sorted({maintenance.node for maintenance in senses.maintenance()})),
        "quiet_hours": _quiet(work, settings, now),
        "paused": None if work.paused is None else _paused(work.paused),
        "migrations": [migration_row(record, pace) for record in work.follow.records],
        "waiting_for": None if work.pending is None else described(work.pending),
        "answering": None if work.current is None else described(work.current),
        "last_decision": work.sentence,
        "calibrations": [*calibration.rows(work.history)],
        "set_aside": [*aside.rows(work.history, work.guest_types, now.wall_s)],
        "alarm": memory.alarm(work.history, now.wall_s),
        "problems": [*work.problems],
        "corosync_link": None if shared is None else _shared(shared, several=settings.migration.parallel_on_corosync_link),
        "other_balancers": [*map(_balancer, work.beside.found)],
        "survival": None if (found := work.survival.found) is None else {"at": work.survival.at, **survival_document(found)},
    }


def _shared(shared: SharedLink, *, several: bool) -> JsonObject:
    return {"link": shared.link, "network": shared.network, "text": shared_words(shared, several=several)}


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


def migration_row(record: Migration, pace: Pace) -> JsonObject:
    """What the status document says of one migration under way."""
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

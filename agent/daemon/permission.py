# SPDX-License-Identifier: GPL-3.0-or-later
"""What the leader may do at this moment, and why not more."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core import history as memory
from agent.core.cluster import BULK_KINDS, Snapshot
from agent.core.documents import HistoryFile
from agent.core.flags import Flag, flag_words
from agent.core.ha_moves import FENCED_STATES
from agent.core.quiet_hours import quiet
from agent.core.settings import Mode, Settings
from agent.daemon.inputs import Now


@dataclass(frozen=True, slots=True)
class Permission:
    """`act`: start migrations at all; `load`: those that only even out load; `why_not`: for people, what forbids more.

    Units:   `until` is when what forbids load ends by itself, in Unix seconds, None where that is not known.
    """

    act: bool
    load: bool
    why_not: str = ""
    until: float | None = None


NOTHING = Permission(act=False, load=False, why_not="nothing has been looked at yet")


def permission(
    settings: Settings,
    snapshot: Snapshot,
    history: HistoryFile,
    now: Now,
    *,
    paused: Flag | None,
    warm_at_s: float,
    settled_at_s: float,
    force: bool,
) -> Permission:
    """Return what is allowed: maintenance and rules wait for less than load, and a person's force for less than both.

    A pause is for everybody: nobody is moved, whatever for and whoever asks.

    Units:   `warm_at_s` and `settled_at_s` are CLOCK_BOOTTIME seconds: when loads may be judged again after a change of
             leader or members, and after a guest has arrived.
    """
    observing = why_only_observe(settings, snapshot, history, now, paused)
    if observing is not None:
        return Permission(act=False, load=True, why_not=observing)
    why_not = _why_no_load(settings, snapshot, history, now, warm_at_s, settled_at_s, force)
    if why_not is None and not force and (hours := quiet(settings.quiet_hours, now.wall_s, snapshot.utc_offset_s)) is not None:
        return Permission(act=True, load=False, why_not=hours.words, until=hours.until)
    return Permission(act=True, load=why_not is None, why_not=why_not or "")


def why_only_observe(settings: Settings, snapshot: Snapshot, history: HistoryFile, now: Now, paused: Flag | None) -> str | None:
    """Why nobody may be moved at all, None when that is allowed."""
    if settings.mode in (Mode.OFF, Mode.OBSERVE):
        return f"mode is {settings.mode.value}"
    if paused is not None:
        return pause_words(paused)
    if snapshot.unseen:
        shown = ", ".join(str(vmid) for vmid in snapshot.unseen[:5])
        return f"the token does not see guests {shown}: run proxlb-agent setup"
    observed_s = now.wall_s - history.first_seen_at
    if observed_s < settings.triggers.first_observe_s:
        return f"the cluster is new and only observed for {settings.triggers.first_observe_s - observed_s:.0f} s more"
    return None


def pause_words(paused: Flag) -> str:
    """`paused (asked for by root, until 2026-01-01 12:00 UTC)`."""
    words = flag_words(paused)
    return "paused" + (f" ({words})" if words else "")


def _why_no_load(
    settings: Settings, snapshot: Snapshot, history: HistoryFile, now: Now, warm_at_s: float, settled_at_s: float, force: bool
) -> str | None:
    if settings.mode is Mode.RULES:
        return "mode is rules"
    alarm = memory.alarm(history, now.wall_s)
    if alarm is not None:
        return alarm
    if now.boot_s < settled_at_s:
        return "a guest has just arrived"
    if force:
        return None
    bulk = [task for task in snapshot.tasks if task.is_running and task.kind in BULK_KINDS]
    if bulk:
        return f"{bulk[0].kind} is running on {bulk[0].node}"
    recovering = [resource.vmid for resource in snapshot.ha.resources if resource.state in FENCED_STATES]
    if recovering:
        return f"the HA manager recovers guest {recovering[0]}" + (f" and {len(recovering) - 1} more" if recovering[1:] else "")
    if now.boot_s < warm_at_s:
        return f"no load balancing for {warm_at_s - now.boot_s:.0f} s yet"
    return None

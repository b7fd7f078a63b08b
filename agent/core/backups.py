# SPDX-License-Identifier: GPL-3.0-or-later
"""Scheduled backups: which guests and nodes one is about to begin on, so that nobody is on the way when it does.

A backup locks its guest, and a guest that changes its node meanwhile is missed or backed up twice. Load balancing therefore leaves
a backup's guests, and the nodes that hold them, alone from `SOON_S` before it begins; from then on its task tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.core.calendar_events import DAYS, day_of, parse
from agent.core.cluster import VMID_DIGITS, BackupJob, Guest, Snapshot

SOON_S = 600.0  # ten minutes: what a migration takes, nearly always
BEGUN_S = 90.0  # PVE's scheduler looks once a minute, and its task is in the list some seconds later

MOST_NAMED = 3  # nodes in one line of the journal
BACKUP_KIND = "vzdump"  # of a task

JOBS_FILE = "jobs.cfg"  # below /etc/pve
CRON_FILE = "vzdump.cron"  # where they stood before PVE 7.1

_HEADER = re.compile(r"([A-Za-z][\w-]*):\s*(\S+)\s*")
_CRON = re.compile(r"(\d{1,2})\s+(\d{1,2})\s+\*\s+\*\s+(\S+)\s+root\s+(?:/\S+/)?vzdump(?:\s+(.*))?")
_NO = frozenset({"0", "no", "off", "false"})


@dataclass(frozen=True, slots=True)
class Due:
    """A backup that is about to begin. `in_s` after the snapshot, negative when it should have begun already."""

    job: str
    in_s: float

    @property
    def words(self) -> str:
        """`backup-4f begins in 7 minutes`."""
        return f"{self.job} begins " + (f"in {self.in_s / 60:.0f} minutes" if self.in_s >= 60 else "now")


@dataclass(frozen=True, slots=True)
class DueBackups:
    """All that are about to begin, by the guests they take and by the nodes these are on."""

    guests: Mapping[int, Due]
    nodes: Mapping[str, Due]


def due_backups(snapshot: Snapshot) -> DueBackups:
    """The backups that begin within `SOON_S`, or have just begun without a task to be seen."""
    guests: dict[int, Due] = {}
    nodes: dict[str, Due] = {}
    for job in snapshot.backup_jobs:
        event = parse(job.schedule)
        if event is None:
            continue
        in_s = event.next_within(snapshot.taken_at, snapshot.utc_offset_s, -BEGUN_S, SOON_S)
        if in_s is None:
            continue
        for guest in snapshot.guests:
            if _takes(job, guest):
                due = min(guests.get(guest.vmid, Due(job.id, in_s)), Due(job.id, in_s), key=lambda one: (one.in_s, one.job))
                guests[guest.vmid] = due
                nodes[guest.node] = min(nodes.get(guest.node, due), due, key=lambda one: (one.in_s, one.job))
    return DueBackups(guests, nodes)


def backup_nodes(snapshot: Snapshot, due: DueBackups) -> dict[str, str]:
    """The nodes that load balancing keeps off for a backup, by name, with what is going on there in words."""
    running = {task.node: "a backup is running" for task in snapshot.tasks if task.is_running and task.kind == BACKUP_KIND}
    return {name: due.words for name, due in due.nodes.items()} | running


def kept_off_words(snapshot: Snapshot) -> str | None:
    """`load balancing keeps off pve1 (a backup is running)`; None when it keeps off no node for a backup."""
    nodes = backup_nodes(snapshot, due_backups(snapshot))
    named = ", ".join(f"{name} ({nodes[name]})" for name in sorted(nodes)[:MOST_NAMED])
    more = f" and {len(nodes) - MOST_NAMED} more" if len(nodes) > MOST_NAMED else ""
    return f"load balancing keeps off {named}{more}" if nodes else None


def _takes(job: BackupJob, guest: Guest) -> bool:
    """True when the job backs the guest up where it is now."""
    if job.node is not None and job.node != guest.node:
        return False
    if job.pool is not None:
        return guest.pool is not None and (guest.pool == job.pool or guest.pool.startswith(f"{job.pool}/"))
    return guest.vmid not in job.exclude if job.is_all else guest.vmid in job.vmids


def not_understood(snapshot: Snapshot) -> tuple[str, ...]:
    """The jobs whose schedule is not understood, each in words."""
    return tuple(f"{job.id} ({job.schedule[:60]})" for job in snapshot.backup_jobs if parse(job.schedule) is None)


def read_jobs(text: str) -> tuple[BackupJob, ...]:
    """The backup jobs of jobs.cfg that are switched on, by id; jobs of other kinds are left out."""
    sections: list[tuple[str, str, dict[str, str]]] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0].isspace():
            key, _, value = line.strip().partition(" ")
            if sections:
                sections[-1][2][key] = value.strip()
        elif (match := _HEADER.fullmatch(line)) is not None:
            sections.append((match[1], match[2], {}))
    return jobs_of({"type": kind, "id": name, **values} for kind, name, values in sections)


def jobs_of(rows: Iterable[Mapping[str, object]]) -> tuple[BackupJob, ...]:
    """The backup jobs among jobs with all their properties, by id; one without a schedule has the older `dow` and `starttime`."""
    found = []
    for row in rows:
        if row.get("type") not in (None, "vzdump") or _word(row.get("enabled"), "1") in _NO or not row.get("id"):
            continue
        schedule = _word(row.get("schedule"), "")
        if not schedule and row.get("starttime"):
            schedule = f"{_word(row.get('dow'), '')} {row['starttime']}".strip()
        found.append(
            BackupJob(
                id=_word(row["id"], ""),
                schedule=schedule,
                is_all=_word(row.get("all"), "0") not in _NO,
                vmids=_vmids(row.get("vmid")),
                exclude=_vmids(row.get("exclude")),
                pool=_word(row.get("pool"), "") or None,
                node=_word(row.get("node"), "") or None,
            )
        )
    return tuple(sorted(found, key=lambda job: job.id))


def read_cron(text: str) -> tuple[BackupJob, ...]:
    """The backup jobs of vzdump.cron: `0 2 * * 6 root vzdump --all 1`."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if (match := _CRON.fullmatch(line.strip())) is None:
            continue
        minute, hour, days, rest = match.groups()
        options, vmids = _options((rest or "").split())
        rows.append(
            {"vmid": ",".join(vmids), **options, "id": f"vzdump.cron:{number}", "schedule": f"{_cron_days(days)} {hour}:{minute}".strip()}
        )
    return jobs_of(rows)


def _options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    options: dict[str, str] = {}
    vmids: list[str] = []
    key = ""
    for word in words:
        if word.startswith("-"):
            key, found, value = word.lstrip("-").partition("=")
            options[key] = value if found else "1"
            key = "" if found else key
        elif key:
            options[key], key = word, ""
        else:
            vmids.append(word)
    return options, vmids


def _cron_days(text: str) -> str:
    """cron's days of the week as a calendar event has them; what is none of them stays, and is not understood then."""
    if text == "*":
        return ""
    try:
        return ",".join("..".join(_cron_day(end) for end in part.split("-")) for part in text.split(","))
    except ValueError:
        return text


def _cron_day(text: str) -> str:
    return DAYS[(int(text) - 1) % 7] if text.isdigit() and int(text) <= 7 else DAYS[day_of(text)]


def _word(value: object, otherwise: str) -> str:
    if value is None:
        return otherwise
    return str(int(value)) if isinstance(value, bool) else " ".join(str(value).split())


def _vmids(value: object) -> tuple[int, ...]:
    parts = re.split(r"[,;\s]+", _word(value, ""))
    return tuple(sorted({int(part) for part in parts if part.isascii() and part.isdigit() and len(part) <= VMID_DIGITS}))

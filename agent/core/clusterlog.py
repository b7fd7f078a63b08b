# SPDX-License-Identifier: GPL-3.0-or-later
"""What is new in PVE's cluster log, and which tasks it says began and ended."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from agent.core.json_types import Json

SHOWN_ENTRIES = 50  # pmxcfs shows no more of its log than that in `.clusterlog`
REMEMBERED_ENTRIES = 1000  # the ring behind it is 128 KiB, 700 to 900 entries: what a merge can bring up again

# The file looks like JSON and often is none: in `msg` only quotes are escaped (and letters past ASCII), in `tag` and `user` nothing is. But
# control characters are replaced, so an entry is always one line, in this order.
_LINE = re.compile(
    r'\{"uid":\s*(?P<uid>\d+),\s*"time":\s*(?P<time>\d+),\s*"pri":\s*-?\d+,\s*"tag":\s*"(?P<tag>.*?)",\s*"pid":\s*\d+,\s*'
    r'"node":\s*"(?P<node>.*?)",\s*"user":\s*"(?P<user>.*?)",\s*"msg":\s*"(?P<msg>.*)"\s*\}'
)
_ESCAPE = re.compile(r'\\(?:"|u([0-9a-f]{4}))', re.IGNORECASE)
_TASK = re.compile(
    r"(?P<phase>starting|end) task "
    r"(?P<upid>UPID:(?P<node>[A-Za-z0-9-]+):[0-9A-Fa-f]{8}:[0-9A-Fa-f]{8,16}:(?P<start>[0-9A-Fa-f]{8,16}):"
    r"(?P<kind>[^:\s]+):(?P<id>[^:\s]*):(?P<user>[^:\s]+):)(?:\s+(?P<status>.*))?"
)

Key = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of the cluster log.

    Units:   `at_s` are Unix seconds of the clock of `node`.
    Shape:   `uid` counts from 1 on each start of pmxcfs on `node`, so only node, uid and time together name an entry.
    """

    node: str
    uid: int
    at_s: int
    user: str
    tag: str
    message: str

    @property
    def key(self) -> Key:
        """What no other entry has."""
        return (self.node, self.uid, self.at_s)


@dataclass(frozen=True, slots=True)
class LogTask:
    """What an entry says of a task.

    Units:   `started_at` are Unix seconds of the node's clock.
    Shape:   `kind` is PVE's worker type (qmstart, qmigrate, ...), `target_id` its id field (a VMID or ""); `status` is None for a
             start, else OK, `WARNINGS: n`, or the error's text. A start may stay without an end, also when the task is over.
    """

    upid: str
    node: str
    kind: str
    target_id: str
    user: str
    started_at: int
    status: str | None

    @property
    def has_ended(self) -> bool:
        """True for the entry that tells the end."""
        return self.status is not None

    @property
    def vmid(self) -> int | None:
        """The guest the task is about, None when it is about something else."""
        return int(self.target_id) if self.target_id.isascii() and self.target_id.isdigit() else None


class LogAdvance(NamedTuple):
    """What a reading brought: the cursor for the next one, what was not seen before (oldest first), whether more may have been missed."""

    cursor: ClusterLogCursor
    entries: tuple[LogEntry, ...]
    gap: bool


@dataclass(frozen=True, slots=True)
class ClusterLogCursor:
    """What of the cluster log was seen. It holds no position: entries come in any order, and a node's uids begin anew at 1.

    Shape:   `seen` are keys, the latest last, at most REMEMBERED_ENTRIES; `last` those of the last reading.
    """

    seen: tuple[Key, ...] = ()
    last: frozenset[Key] = frozenset()
    has_begun: bool = False

    def advance(self, text: str) -> LogAdvance:
        """Return what a reading of `.clusterlog` has that no reading before it had.

        The first reading is history and brings nothing. A gap is a reading that shares no entry with the one before, while there
        was something to share; or a full one whose last entry is new, as more that is new may come after it, even where a merge has
        put known entries of a node whose clock is ahead on top. A text that is no log (cut off, empty) leaves everything as it is.
        """
        entries = parse_cluster_log(text)
        if not entries and not _is_empty_log(text):
            return LogAdvance(self, (), False)
        known = set(self.seen)
        fresh: list[LogEntry] = []
        for entry in reversed(entries):
            if entry.key not in known:
                known.add(entry.key)
                fresh.append(entry)
        shown = frozenset(entry.key for entry in entries)
        is_cut_off = len(entries) >= SHOWN_ENTRIES and bool(fresh) and fresh[0] is entries[-1]
        gap = self.has_begun and (is_cut_off or (bool(self.last) and self.last.isdisjoint(shown)))
        # What is shown now is the latest whatever its age: a merge must not make it fall out of memory while it is on display.
        seen = (*(key for key in self.seen if key not in shown), *dict.fromkeys(entry.key for entry in reversed(entries)))
        cursor = ClusterLogCursor(seen[-REMEMBERED_ENTRIES:], shown, True)
        return LogAdvance(cursor, tuple(fresh) if self.has_begun else (), gap)


def parse_cluster_log(text: str) -> tuple[LogEntry, ...]:
    """Return the entries of `.clusterlog` as it shows them, newest first; what is broken is left out.

    Source:  clog_dump_json in pve-cluster's logger.c, utf8_to_ascii in cfs-utils.c (9.1.6).
    """
    entries = tuple(_entries_of_lines(text))
    return entries or tuple(_entries_of_json(text))


def log_task(entry: LogEntry) -> LogTask | None:
    """Return what the entry says of a task, None when it is about something else."""
    found = _TASK.fullmatch(entry.message.strip())
    if found is None:
        return None
    status = (found["status"] or "").strip()
    return LogTask(
        upid=found["upid"],
        node=found["node"],
        kind=found["kind"],
        target_id=found["id"],
        user=found["user"],
        started_at=int(found["start"], 16),
        status=None if found["phase"] == "starting" else status or "unknown",
    )


def log_tasks(entries: Iterable[LogEntry]) -> tuple[LogTask, ...]:
    """Return what the entries say of tasks, in their order."""
    return tuple(task for task in map(log_task, entries) if task is not None)


def _entries_of_lines(text: str) -> Iterator[LogEntry]:
    for line in text.split("\n"):
        found = _LINE.fullmatch(line.strip().removesuffix(","))
        if found is not None:
            yield LogEntry(
                node=found["node"],
                uid=int(found["uid"]),
                at_s=int(found["time"]),
                user=found["user"],
                tag=found["tag"],
                message=_ESCAPE.sub(_letter, found["msg"]),
            )


def _letter(found: re.Match[str]) -> str:
    digits: str | None = found[1]
    if digits is None:
        return '"'
    code = int(digits, 16)
    return found[0] if 0xD800 <= code <= 0xDFFF else chr(code)  # pmxcfs writes no surrogates, so these are somebody's own letters


def _entries_of_json(text: str) -> Iterator[LogEntry]:
    """The same from another layout, for a release of PVE that writes real JSON."""
    try:
        document: Json = json.loads(text)
    except (ValueError, RecursionError):
        return
    rows = document.get("data") if isinstance(document, dict) else None
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict):
            continue
        node, uid, at_s, message = row.get("node"), row.get("uid"), row.get("time"), row.get("msg")
        if not isinstance(node, str) or not isinstance(uid, int) or not isinstance(at_s, int) or not isinstance(message, str):
            continue
        yield LogEntry(node, uid, at_s, str(row.get("user", "")), str(row.get("tag", "")), message)


def _is_empty_log(text: str) -> bool:
    return '"data"' in text and "{" not in text.partition('"data"')[2] and text.rstrip().endswith("}")

# SPDX-License-Identifier: GPL-3.0-or-later
"""Where records go: journald with their fields, or a stream for people to read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import TextIO

from systemd import journal

from agent.core.journal import Level, Record
from agent.ports import JournalSink

IDENTIFIER = "proxlb-agent"
JOURNALD_SOCKET = "/run/systemd/journal/socket"


class StreamSink:
    """Writes records as lines: text alone, warnings and errors with that word before.

    With `priorities` the level stands before each line as `<4>`, as journald takes it from a service's standard error.
    """

    def __init__(self, stream: TextIO, level: Level = Level.INFO, *, priorities: bool = False) -> None:
        self.level = level
        self._stream = stream
        self._priorities = priorities

    def say(self, record: Record) -> None:
        """Write one record; never raises."""
        if record.level > self.level:
            return
        if self._priorities:
            text = "\n".join(f"<{record.level.value}>{line}" for line in record.text.splitlines() or [""])
        else:
            word = {Level.ERROR: "error: ", Level.WARNING: "warning: "}.get(record.level, "")
            text = word + record.text
        with contextlib.suppress(OSError, ValueError):  # nobody reads, or the stream is closed
            encoding = self._stream.encoding or "utf-8"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self._stream.flush()


class JournaldSink:
    """Writes records to journald; what it does not take goes to `fallback`."""

    def __init__(self, fallback: JournalSink, level: Level = Level.INFO) -> None:
        self.level = level
        self._fallback = fallback

    def say(self, record: Record) -> None:
        """Write one record; never raises."""
        if record.level > self.level:
            return
        try:
            if os.path.exists(JOURNALD_SOCKET):  # without it libsystemd says nothing and takes the record for written
                journal.sendv(*journald_lines(record))
                return
        except (OSError, ValueError):
            pass
        self._fallback.say(record)


def journald_lines(record: Record) -> tuple[bytes, ...]:
    """Return the fields that journald gets, each as `NAME=value`.

    Not by `journal.send`: that looks through the stack of each call for the place in the code, which would be this one.
    """
    named = {"MESSAGE": record.text, "PRIORITY": str(record.level.value), "SYSLOG_IDENTIFIER": IDENTIFIER} | record.fields()
    return tuple(f"{name}={value}".encode("utf-8", "backslashreplace") for name, value in named.items())


def sink(environment: Mapping[str, str], stream: TextIO, level: Level = Level.INFO) -> JournaldSink | StreamSink:
    """Return journald for a service whose standard error, here `stream`, systemd connected to it; the stream else."""
    if environment.get("JOURNAL_STREAM") and environment["JOURNAL_STREAM"] == _device_and_inode(stream):
        return JournaldSink(StreamSink(stream, level, priorities=True), level)
    return StreamSink(stream, level)


def _device_and_inode(stream: TextIO) -> str:
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return ""
    return f"{found.st_dev}:{found.st_ino}"

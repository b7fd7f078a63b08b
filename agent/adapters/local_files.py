# SPDX-License-Identifier: GPL-3.0-or-later
"""This node's own files: status.json in the run folder, the decision journal and learned loads in the state folder."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from agent.ports import PermanentError, TemporaryError

RUN_FOLDER = "/run/proxlb-agent"
STATE_FOLDER = "/var/lib/proxlb-agent"
DECISIONS_BYTES = 8 << 20  # for both files together: weeks of decisions of a few hundred bytes each
STATUS = "status.json"
LOADS = "loads.json"
MOST_LOADS_BYTES = 4 << 20  # what the agent writes is a tenth of that: a larger file is not its own
DECISIONS = "decisions.jsonl"
DECISIONS_BEFORE = "decisions.jsonl.1"


class NodeFiles:
    """The real `LocalFiles`. The decision journal is two files: the one written to, and the one before."""

    def __init__(self, run_folder: str = RUN_FOLDER, state_folder: str = STATE_FOLDER, decisions_bytes: int = DECISIONS_BYTES) -> None:
        self._run_folder = run_folder
        self._state_folder = state_folder
        self._max_file_bytes = decisions_bytes // 2
        self._writing = threading.Lock()

    def write_status(self, text: str) -> None:
        """Replace status.json: whoever reads it sees the old or the new one whole. Raises TemporaryError."""
        self._replace(self._run_folder, STATUS, text)

    def write_loads(self, text: str) -> None:
        """Replace loads.json, as `write_status`. Raises TemporaryError."""
        self._replace(self._state_folder, LOADS, text)

    def read_loads(self) -> str | None:
        """The text of loads.json, None when there is none. Raises TemporaryError."""
        path = f"{self._state_folder}/{LOADS}"
        with _errors_told(path):
            try:
                with open(path, "rb", opener=_private_opener) as file:
                    return file.read(MOST_LOADS_BYTES).decode("utf-8", "replace")
            except FileNotFoundError:
                return None

    def _replace(self, folder: str, name: str, text: str) -> None:
        path, unfinished = f"{folder}/{name}", f"{folder}/.{name}.tmp"
        with self._writing, _errors_told(path):
            _make_folder(folder)
            try:
                with open(unfinished, "wb", opener=_private_opener) as file:
                    file.write(text.encode())
                os.replace(unfinished, path)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(unfinished)
                raise

    def append_decision(self, line: str) -> None:
        """Append one JSON line, whole or not at all. A full file becomes the one before, and that is dropped.

        Raises:  TemporaryError; PermanentError for a line that would not fit into a file.
        """
        path, before = f"{self._state_folder}/{DECISIONS}", f"{self._state_folder}/{DECISIONS_BEFORE}"
        content = line.replace("\n", " ").encode() + b"\n"
        if len(content) > self._max_file_bytes:
            raise PermanentError(f"{path}: a decision of {len(content)} bytes is more than the file may have")
        with self._writing, _errors_told(path):
            _make_folder(self._state_folder)
            with _opened(path) as fd:
                size = os.fstat(fd).st_size
                if size + len(content) <= self._max_file_bytes:
                    _append(fd, size, content)
                    return
            os.replace(path, before)
            with _opened(path) as fd:
                _append(fd, 0, content)

    def read_decisions(self) -> tuple[str, ...]:
        """The lines of the decision journal, oldest first; one that was cut off by a crash is left out. Raises TemporaryError."""
        lines: list[str] = []
        with self._writing:
            for name in (DECISIONS_BEFORE, DECISIONS):
                path = f"{self._state_folder}/{name}"
                with _errors_told(path), contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                    *whole, _cut_off = file.read().decode("utf-8", "replace").split("\n")
                    lines += [line for line in whole if line]
        return tuple(lines)


@contextlib.contextmanager
def _errors_told(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TemporaryError(f"{path}: {error.strerror}") from None


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _append(fd: int, size: int, content: bytes) -> None:
    """Write behind what is there, over the rest of a line that was cut off; on failure leave the file as it was."""
    end = _end_of_lines(fd, size)
    try:
        written = 0
        while written < len(content):
            written += os.pwrite(fd, content[written:], end + written)
        os.ftruncate(fd, end + len(content))
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, end)
        raise


def _end_of_lines(fd: int, size: int) -> int:
    if size == 0 or os.pread(fd, 1, size - 1) == b"\n":
        return size
    return os.pread(fd, size, 0).rfind(b"\n") + 1


def _make_folder(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o755)


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

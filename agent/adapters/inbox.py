# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder in /run where hookscripts and commands of this node leave events: taking them, leaving a request, hearing of new ones."""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers.inotify import InotifyObserver

from agent.ports import InboxSight, PermanentError, TemporaryError

FOLDER = "/run/proxlb-agent/inbox"
FLAG = "/etc/proxlb-agent/maintenance"
MAX_REQUEST_BYTES = 64 * 1024
MAX_FLAG_BYTES = 4096  # a reason, for people to read
UNFINISHED_LIFE_S = 300  # a request takes milliseconds to write; one that old was given up
MOST_AT_ONCE = 2000  # files taken in one look; of more, which no hookscripts make, the rest waits for the next look
STOP_WAIT_S = 1.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,199}")
_REQUEST = re.compile(r"request\.(?P<id>[A-Za-z0-9-]{1,64})\.json")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO would block


@dataclass(frozen=True, slots=True, order=True)
class _Find:
    mtime_ns: int
    name: str


class InboxFolder:
    """The real `LocalInbox`.

    What is claimed goes to a folder beside the inbox, and stays there until the next `claim`: asking again says that all before was
    passed on. So a process killed in between loses nothing; the next one gets it first.
    """

    def __init__(self, folder: str = FOLDER, flag: str = FLAG) -> None:
        self._folder = folder
        self._claimed_folder = f"{folder.rstrip('/')}.claimed"
        self._flag = flag
        self._passed_on: tuple[str, ...] = ()

    def claim(self) -> InboxSight:
        """Take what is there, oldest first and at most `MOST_AT_ONCE`; forget what the last call returned.

        Links, FIFOs, other people's files and names that cannot be are removed unread, folders left alone.

        Raises:  TemporaryError when the folder is missing, or somebody else may write there.
        """
        try:
            flag = _flag_text(self._flag)
            with contextlib.ExitStack() as open_folders:
                inbox = _open_folder(self._folder, open_folders)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._claimed_folder, 0o700)
                claimed = _open_folder(self._claimed_folder, open_folders)
                for name in self._passed_on:
                    _unlink(name, claimed)
                self._passed_on = ()
                for find in _finds(inbox):
                    _move(find.name, inbox, claimed)
                finds = _finds(claimed)
                sight = _sight(finds, claimed, flag)
                self._passed_on = tuple(find.name for find in finds)
                return sight
        except FileNotFoundError:
            raise TemporaryError(f"{self._folder}: the inbox is missing; `systemd-tmpfiles --create` makes it") from None
        except OSError as error:
            raise TemporaryError(f"{self._folder}: {error.strerror}") from None


def leave_request(request_id: str, text: str, folder: str = FOLDER) -> None:
    """Leave a command's request for this node's agent, whole or not at all.

    Raises:  PermanentError for an id or a size that the agent would not take; TemporaryError when there is no inbox.
    """
    name, content = f"request.{request_id}.json", text.encode()
    if _REQUEST.fullmatch(name) is None or len(content) > MAX_REQUEST_BYTES:
        raise PermanentError(f"the request {request_id[:80]!r} of {len(content)} bytes cannot be handed to the agent")
    unfinished = f".{name}.tmp.{os.getpid()}"
    try:
        with contextlib.ExitStack() as open_folders:
            inbox = _open_folder(folder, open_folders)
            fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=inbox)
            with open(fd, "wb") as file:
                file.write(content)
            os.rename(unfinished, name, src_dir_fd=inbox, dst_dir_fd=inbox)
    except PermissionError as error:
        raise PermanentError(f"{folder}: {error.strerror}", "run this as root") from None
    except OSError as error:
        raise TemporaryError(f"{folder}: {error.strerror}; does proxlb-agent run on this node?") from None


class InboxBell:
    """Rings when something new is in the inbox. It may ring too often, and it may miss some: list the inbox every few seconds, too.

    `ring` is called in a thread of the observer, at least once for each file: set an event there, do no work.
    """

    def __init__(self, ring: Callable[[], None], folder: str = FOLDER) -> None:
        self._ring = ring
        self._folder = folder
        self._observer = InotifyObserver()
        self._handler = FileSystemEventHandler()
        self._handler.on_any_event = self._on_any_event
        self._watched: os.stat_result | None = None
        self._mending = threading.Lock()

    def mend(self) -> bool:
        """Watch the folder that is at the path now, and return whether it is watched. Call it at first, then every few seconds.

        A folder that was removed and made again is another one, and nothing tells the watch of the old one.
        """
        with self._mending:
            there = _folder_at(self._folder)
            if self._watched is not None and not self._is_on(there):
                self._watched = None
                self._observer.unschedule_all()
            if self._watched is None and there is not None:
                try:
                    if not self._observer.is_alive():
                        self._observer.start()
                    self._observer.schedule(self._handler, self._folder)
                except (OSError, RuntimeError):  # removed meanwhile, or the machine has no inotify watch or thread to give
                    self._observer.unschedule_all()  # it keeps what did not start, and would take it for watched
                    return False
                self._watched = there
                self._ring()  # for what came before the watch
            return self._watched is not None

    def stop(self) -> None:
        """Ring no more."""
        with self._mending:
            if self._observer.is_alive():
                self._observer.stop()
                self._observer.join(STOP_WAIT_S)

    def _is_on(self, there: os.stat_result | None) -> bool:
        if there is None or self._watched is None or not os.path.samestat(there, self._watched):
            return False
        return any(emitter.is_alive() for emitter in tuple(self._observer.emitters))

    def _on_any_event(self, event: FileSystemEvent) -> None:
        # Only what brings something: our own listing and claiming make events, too, and would ring for ever.
        if event.event_type in {"created", "moved", "closed"} and not event.is_directory:
            self._ring()


def _open_folder(path: str, open_folders: contextlib.ExitStack) -> int:
    """Open a folder that nobody else can put anything into. OSError when it is none."""
    fd = os.open(path, _FOLDER_FLAGS)
    open_folders.callback(os.close, fd)
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(0, f"others may write to {path}, so nothing there is believed")
    return fd


def _finds(folder: int) -> list[_Find]:
    """Return what may be events or requests in the folder, the oldest `MOST_AT_ONCE` of them, and remove what cannot be."""
    return heapq.nsmallest(MOST_AT_ONCE, _plausible(folder))


def _plausible(folder: int) -> Iterator[_Find]:
    """What may be events or requests, one at a time: nobody knows how much there is."""
    with os.scandir(folder) as entries:
        for name in (entry.name for entry in entries):
            try:
                seen = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(seen.st_mode):
                continue
            if not stat.S_ISREG(seen.st_mode) or seen.st_uid != os.geteuid() or not _is_plausible(name):
                _unlink(name, folder)
            elif not name.startswith("."):
                yield _Find(seen.st_mtime_ns, name)
            elif seen.st_mtime < time.time() - UNFINISHED_LIFE_S:
                _unlink(name, folder)


def _is_plausible(name: str) -> bool:
    if name.startswith("request."):
        return _REQUEST.fullmatch(name) is not None
    return name.startswith(".") or _NAME.fullmatch(name) is not None


def _move(name: str, inbox: int, claimed: int) -> None:
    """Put a file into the other folder; it is in one of them at any time, for an instant in both.

    Not by a rename: of those watchdog keeps the first half in memory for ever (2.2.1), and reports what follows half a second late.
    """
    with contextlib.suppress(FileExistsError, FileNotFoundError):  # there already, by a process that was killed; or gone
        os.link(name, name, src_dir_fd=inbox, dst_dir_fd=claimed, follow_symlinks=False)
    _unlink(name, inbox)


def _sight(finds: list[_Find], claimed: int, flag: str | None) -> InboxSight:
    events = [find for find in finds if _REQUEST.fullmatch(find.name) is None]
    now_ns = time.time_ns()
    requests: list[tuple[str, str]] = []
    for find in finds:
        request = _REQUEST.fullmatch(find.name)
        text = None if request is None else _request_text(find.name, claimed)
        if request is not None and text is not None:
            requests.append((request["id"], text))
    return InboxSight(
        tuple(find.name for find in events), tuple(requests), flag, tuple(max(0.0, (now_ns - find.mtime_ns) / 1e9) for find in events)
    )


def _request_text(name: str, folder: int) -> str | None:
    """Return the text of a request, None for one that is no command's: too large, or gone."""
    try:
        fd = os.open(name, _FILE_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
        with open(fd, "rb") as file:
            content = file.read(MAX_REQUEST_BYTES + 1)
    except OSError:
        return None
    return content.decode("utf-8", "replace") if len(content) <= MAX_REQUEST_BYTES else None


def _flag_text(path: str) -> str | None:
    """Return what the flag says, "" for one that cannot be read as text: it is there, and that is what counts."""
    try:
        fd = os.open(path, _FILE_FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        return ""
    try:
        with open(fd, "rb") as file:
            return file.read(MAX_FLAG_BYTES).decode("utf-8", "replace").strip()
    except IsADirectoryError:
        os.close(fd)
        return ""


def _folder_at(path: str) -> os.stat_result | None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found if stat.S_ISDIR(found.st_mode) else None


def _unlink(name: str, folder: int) -> None:
    with contextlib.suppress(OSError):  # gone, or a folder: neither is an event
        os.unlink(name, dir_fd=folder)

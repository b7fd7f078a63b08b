# SPDX-License-Identifier: GPL-3.0-or-later
"""How a command tells of what it waits for: a bar on a terminal that has python3-rich, lines elsewhere. All of it goes to stderr."""

from __future__ import annotations

import math
import os
import sys
import time
from types import TracebackType
from typing import Protocol, Self

from agent.core.progress import Progress

TICK_S = 1.0  # between two pictures of the bar


class Teller(Protocol):
    """Who tells; a context manager, as a bar must be taken away whatever happens."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take away what does not stay."""

    def say(self, text: str) -> None:
        """A line that stays, on stderr."""

    def answer(self, text: str) -> None:
        """A line of the command's answer, on stdout."""

    def show(self, progress: Progress, text: str) -> None:
        """How far it has come, and in words what is left."""

    def wait(self, seconds: float) -> None:
        """Let time pass."""


def teller(title: str) -> Teller:
    """The teller that this terminal, or what stands in its place, can take."""
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        try:
            return Bar(title)
        except ImportError:  # python3-rich is only recommended
            pass
    return Lines()


class Lines:
    """A line for each change."""

    def __init__(self) -> None:
        self._said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Lines stay."""

    def say(self, text: str) -> None:
        """See `Teller`."""
        print(text, file=sys.stderr, flush=True)

    def answer(self, text: str) -> None:
        """See `Teller`."""
        print(text, flush=True)

    def show(self, progress: Progress, text: str) -> None:
        """Say it when it is new; that time has passed alone is not."""
        if text and text != self._said:
            self._said = text
            self.say(f"{text} ({progress.words})")

    def wait(self, seconds: float) -> None:
        """See `Teller`."""
        time.sleep(seconds)


class Bar:
    """A bar with guests, bytes and the time that is left, below the lines that stay. Raises ImportError without python3-rich."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._console = Console(file=sys.stderr)
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[words]}", markup=False),
            console=self._console,
            transient=True,
            auto_refresh=False,  # no thread: it is drawn anew while it waits
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
        )
        self._task = self._bar.add_task(title, total=None, words="")
        self._progress: Progress | None = None
        self._shown_s = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """See `Teller`."""
        self._print(text, is_answer=False)

    def answer(self, text: str) -> None:
        """See `Teller`."""
        self._print(text, is_answer=True)

    def _print(self, text: str, *, is_answer: bool) -> None:
        self._bar.stop()
        print(text, file=sys.stdout if is_answer else sys.stderr, flush=True)
        self._bar.start()

    def show(self, progress: Progress, text: str) -> None:  # the bar says it in figures
        """See `Teller`."""
        self._progress, self._shown_s = progress, time.monotonic()
        self._draw()

    def _draw(self) -> None:
        if self._progress is None:
            return
        progress, since_s = self._progress, time.monotonic() - self._shown_s
        if progress.left_s is not None:
            progress = Progress(
                progress.guests, progress.guests_in_all, progress.bytes, progress.bytes_in_all, max(0.0, progress.left_s - since_s)
            )
        self._bar.update(self._task, completed=progress.guests, total=max(1, progress.guests_in_all), words=progress.words)
        self._bar.refresh()

    def wait(self, seconds: float) -> None:
        """See `Teller`."""
        ticks = max(1, math.ceil(seconds / TICK_S))
        for _ in range(ticks):
            time.sleep(seconds / ticks)
            self._draw()

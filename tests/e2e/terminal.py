# SPDX-License-Identifier: GPL-3.0-or-later
"""A person's terminal on a machine: a shell in tmux, typed into and looked at."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.e2e.machine import Machine

COLUMNS, LINES = 110, 40
LOOK_EVERY_S = 0.3
HANGS_AFTER_S = 120.0
PROMPT = "admin# "


class Terminal:
    """`with Terminal(machine) as terminal: terminal.type("ls"); terminal.wait_prompt(60)`. What it has shown is in `screens`."""

    def __init__(self, machine: Machine) -> None:
        self.screens: list[str] = []
        self._machine = machine

    def __enter__(self) -> Self:
        shell = f"env PS1='{PROMPT}' bash --norc --noprofile"
        self._tmux("new-session", "-d", "-s", "admin", "-x", str(COLUMNS), "-y", str(LINES), shell)
        self.wait(lambda screen: screen.startswith(PROMPT.strip()), HANGS_AFTER_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tmux("kill-server")

    def type(self, line: str) -> None:
        """Type a line, and Enter as soon as it is seen: from then on a prompt at the end is the next one."""
        self._tmux("send-keys", "-t", "admin", "-l", line)
        self.wait(lambda screen: "".join(screen.split()).endswith("".join(f"{PROMPT}{line}".split())), HANGS_AFTER_S)
        self._tmux("send-keys", "-t", "admin", "Enter")

    def screen(self) -> str:
        """What is to be seen now."""
        shown = self._tmux("capture-pane", "-p", "-t", "admin").rstrip()
        if not self.screens or self.screens[-1] != shown:
            self.screens.append(shown)
        return shown

    def wait(self, seen: Callable[[str], object], within_s: float) -> str:
        """Look until the screen is as wanted, and return it; fails with the last one."""
        until = time.monotonic() + within_s
        while not seen(screen := self.screen()):
            assert time.monotonic() < until, f"after {within_s:.0f} s the screen is\n{screen}"
            time.sleep(LOOK_EVERY_S)
        return screen

    def wait_prompt(self, within_s: float) -> str:
        """Look until the shell asks for the next line, and return the screen."""
        return self.wait(lambda screen: screen.splitlines()[-1:] == [PROMPT.strip()], within_s)

    def clear(self) -> None:
        """Begin with an empty screen."""
        self.type("clear")
        self.wait(lambda screen: screen == PROMPT.strip(), HANGS_AFTER_S)
        self.screens.clear()

    def _tmux(self, *words: str) -> str:
        return self._machine.run(["tmux", *words]).stdout

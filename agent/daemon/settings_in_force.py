# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings in force: read again from time to time and when somebody asks, and never worse than the last good ones."""

from __future__ import annotations

from agent.core.journal import Level, MessageId, Record
from agent.core.settings import Settings
from agent.daemon.inputs import Now, SettingsSeen
from agent.daemon.outputs import Output, ReadSettings, Say, TellReady


class SettingsInForce:
    """What the admin has chosen, as far as it could be read.

    problem:  why what the files say now is not in force, as the journal has told; "" when it is.
    """

    def __init__(self, settings: Settings, every_s: float) -> None:
        self.settings = settings
        self._every_s = every_s
        self._read_s = -1e9
        self._is_reading = False
        self.problem = ""

    def due(self, now: Now) -> list[Output]:
        """The question for the settings, where the last one is old and has its answer."""
        if self._is_reading or now.boot_s - self._read_s < self._every_s:
            return []
        return self._ask(now, is_asked=False)

    def reload(self, now: Now) -> list[Output]:
        """Somebody wants them read now, and to hear what came of it."""
        return self._ask(now, is_asked=True)

    def _ask(self, now: Now, *, is_asked: bool) -> list[Output]:
        self._read_s, self._is_reading = now.boot_s, True
        return [ReadSettings(asked=is_asked)]

    def on_seen(self, seen: SettingsSeen) -> tuple[bool, list[Output]]:
        """Take the answer; returns whether other settings are in force now, and what to do."""
        self._is_reading = False
        ready: list[Output] = [TellReady()] if seen.asked else []
        if seen.settings is None:
            if not seen.is_broken and not seen.asked:
                return False, ready  # the cluster's file cannot be read just now: the last good copy serves
            is_known = seen.error == self.problem and not seen.asked
            said = [] if is_known else [_said(Level.ERROR, f"the settings are not taken: {seen.error}")]
            self.problem = seen.error
            return False, [*said, *ready]
        was_broken, self.problem = self.problem != "", ""
        if seen.settings == self.settings:
            said = []
            if was_broken:
                said = [_said(Level.NOTICE, f"the settings are in order again, and those in force: mode {self.settings.mode.value}")]
            elif seen.asked:
                said = [_said(Level.NOTICE, "settings read again, nothing changed")]
            return False, [*said, *ready]
        self.settings = seen.settings
        return True, [_said(Level.NOTICE, f"new settings taken, mode {self.settings.mode.value}"), *ready]


def _said(level: Level, text: str) -> Say:
    return Say(Record(level, MessageId.SETTINGS, text))

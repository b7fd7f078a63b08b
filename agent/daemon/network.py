# SPDX-License-Identifier: GPL-3.0-or-later
"""The network that migrations take: where corosync has it, too, they go one at a time, unless somebody wants several."""

from __future__ import annotations

from agent.core.journal import Level, MessageId, Record
from agent.core.migration_network import SharedLink, one_at_a_time, shared_link, shared_words
from agent.core.settings import Settings
from agent.core.statistics import parse_members
from agent.daemon.inputs import SignsSeen
from agent.daemon.outputs import Output, Say


class Network:
    """What the cluster's files say of it.

    Shape:   `shared` is None while migrations share no link with corosync, as far as can be told.
    """

    def __init__(self) -> None:
        self.shared: SharedLink | None = None
        self._texts: tuple[str | None, str | None, str | None] = (None, None, None)
        self._told: tuple[SharedLink | None, bool] = (None, False)
        self._bound: tuple[Settings, Settings] | None = None

    def on_signs(self, seen: SignsSeen, settings: Settings) -> list[Output]:
        """Take what was read; a change of it, or of what is wanted, is said."""
        texts = (seen.datacenter, seen.corosync, seen.members)
        if seen.members is not None and texts != self._texts and (members := parse_members(seen.members)) is not None:
            self._texts, self.shared = texts, shared_link(seen.datacenter or "", seen.corosync or "", members)
        several = self.shared is not None and settings.migration.parallel_on_corosync_link
        before, self._told = self._told, (self.shared, several)
        if self._told == before:
            return []
        text = "migrations share no link with corosync any more: several at a time again"
        level = Level.NOTICE
        if self.shared is not None:
            text, level = shared_words(self.shared, several=several), Level.WARNING
        return [Say(Record(level, MessageId.OUTSIDE, text))]

    def bound(self, settings: Settings) -> Settings:
        """The settings, with one slot for migrations where they share a link and nobody wants several."""
        if self.shared is None or settings.migration.parallel_on_corosync_link:
            return settings
        if self._bound is None or self._bound[0] is not settings:
            self._bound = (settings, one_at_a_time(settings))
        return self._bound[1]

# SPDX-License-Identifier: GPL-3.0-or-later
"""Which nodes are to be empty and whether all automatic moves are paused, by all that says so; and which flags have come to their end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from agent.core.cluster import Maintenance
from agent.core.events import Event, EventKind, EventSource
from agent.core.flags import ASKED_AGAIN, Flag, flag_words, read_flag
from agent.core.shutdown import ShutdownFlag, flags_of_nodes, why_guests_stay
from agent.daemon.inputs import Now
from agent.daemon.outside import FLAG_FOLDER, PAUSE_PATH

BY_SETTINGS = "nodes.maintenance in the settings"
BY_HA = "asked of the HA manager"
REMOVE_AGAIN_S = 10.0  # a removal that failed is tried again after so long


@dataclass(frozen=True, slots=True)
class Ended:
    """A flag whose time is up: its file, the text that said so, and what it was for."""

    path: str
    text: str
    words: str


@dataclass(frozen=True, slots=True)
class Told:
    """What is said of nodes besides the flags below /etc/pve: by themselves (node to text), the settings, and the HA manager."""

    by_node: Mapping[str, str]
    by_settings: Iterable[str] = ()
    by_ha: Iterable[str] = ()
    known: Iterable[str] = ()


Going = Callable[[Mapping[str, ShutdownFlag]], Collection[str]]  # which of these nodes are there, in the boot that their flags say ends


class Flags:
    """The flags as this lead has seen them.

    The end of a flag is counted on the clock that nobody sets, from when this lead first saw it: a wall clock that steps neither
    ends a maintenance early nor lets it go on for ever.
    """

    def __init__(self) -> None:
        self._set: dict[str, Flag] | None = None
        self._by_ha: frozenset[str] = frozenset()
        self.strange: frozenset[str] = frozenset()
        self.shutdowns: dict[str, ShutdownFlag] = {}
        self.going_down: dict[str, str] = {}
        self.paused: Flag | None = None
        self._ends: dict[str, tuple[str, float]] = {}
        self._words: dict[str, str] = {}
        self._asked_s: dict[str, float] = {}

    def on_signs(self, flags: Iterable[tuple[str, str]], paused: str | None, told: Told, now: Now, going: Going) -> list[Event]:
        """Take what was read; the events in it. What stood there at first is covered by the look with which a lead begins."""
        texts: dict[str, str] = {}
        names = {name.lower(): name for name in told.known}
        raw: dict[str, str] = {}
        strange: set[str] = set()
        for name, text in flags:
            node = names.get(name.lower()) if names else name
            if node is None:
                strange.add(name)
                continue
            raw[node] = text
            texts[f"{FLAG_FOLDER}/{name}"] = text
            self._words[f"{FLAG_FOLDER}/{name}"] = f"the maintenance of {node}"
        self.strange = frozenset(strange)
        found = {node: read_flag(text) for node, text in raw.items()}
        for name, text in sorted(told.by_node.items()):  # these stay until the node says otherwise, whatever end they name
            if name not in found and (not names or name.lower() in names):  # of a node that has left, files may still be there
                raw[name] = text
                found[name] = Flag(" ".join(text.split()))
        by_ha = frozenset(names.get(name.lower(), name) for name in told.by_ha)
        for cause, nodes in ((BY_SETTINGS, told.by_settings), (BY_HA, by_ha)):
            for name in nodes:
                found.setdefault(names.get(name.lower(), name), Flag(cause))
        self.shutdowns = flags_of_nodes(raw)
        going_before, self.going_down = self.going_down, why_guests_stay(self.shutdowns, going(self.shutdowns))
        was_paused, self.paused = self.paused, None if paused is None else read_flag(paused)
        if paused is not None:
            texts[PAUSE_PATH] = paused
            self._words[PAUSE_PATH] = "the pause"
        self._count(texts, now)
        before, self._set = self._set, found
        let_go, self._by_ha = self._by_ha - by_ha, by_ha
        if before is None:
            return []
        events = self._events_of_nodes(before, found, going_before, now)
        for node in sorted(let_go & found.keys() & before.keys()):  # the HA manager brings its guests back, and others want it empty
            events.append(Event(EventKind.TIMER, EventSource.FLAG, now.boot_s, node=node))
        if was_paused is not None and self.paused is None:
            events.append(Event(EventKind.RESUMED, EventSource.FLAG, now.boot_s))
        return events

    def _events_of_nodes(
        self, before: Mapping[str, Flag], found: Mapping[str, Flag], going_before: Mapping[str, str], now: Now
    ) -> list[Event]:
        events = []
        for node in sorted((found.keys() - self.going_down.keys()) - (before.keys() - going_before.keys())):
            detail = "it shuts down" if node in self.shutdowns else flag_words(found[node])[:100]
            events.append(Event(EventKind.MAINTENANCE_BEGAN, EventSource.FLAG, now.boot_s, node=node, detail=detail))
        for node in sorted(found.keys() & before.keys() - self.shutdowns.keys()):
            if found[node].again not in (None, before[node].again):  # by somebody who has removed what kept a guest there
                events.append(Event(EventKind.MAINTENANCE_BEGAN, EventSource.FLAG, now.boot_s, node=node, detail=ASKED_AGAIN))
        for node in sorted(self.going_down.keys() - going_before.keys()):
            detail = f"its guests stay: {self.going_down[node]}"[:100]
            events.append(Event(EventKind.NODE_SHUTS_DOWN, EventSource.FLAG, now.boot_s, node=node, detail=detail))
        for node in sorted(before.keys() - found.keys()):
            events.append(Event(EventKind.MAINTENANCE_ENDED, EventSource.FLAG, now.boot_s, node=node))
        return events

    def _count(self, texts: Mapping[str, str], now: Now) -> None:
        """Note when each flag ends; one that was written anew is counted anew."""
        ends: dict[str, tuple[str, float]] = {}
        for path, text in texts.items():
            until = read_flag(text).until
            if until is None:
                continue
            known = self._ends.get(path)
            ends[path] = known if known is not None and known[0] == text else (text, now.boot_s + max(0.0, until - now.wall_s))
        self._ends = ends

    def ended(self, now: Now) -> list[Ended]:
        """The flags to be removed now."""
        due = []
        for path, (text, end_s) in sorted(self._ends.items()):
            if now.boot_s >= end_s and now.boot_s - self._asked_s.get(path, -1e9) >= REMOVE_AGAIN_S:
                self._asked_s[path] = now.boot_s
                due.append(Ended(path, text, self._words[path]))
        return due

    def next_end_s(self) -> float:
        """When the next flag ends, on the clock that nobody sets."""
        due = (max(end_s, self._asked_s.get(path, -1e9) + REMOVE_AGAIN_S) for path, (_, end_s) in self._ends.items())
        return min(due, default=float("inf"))

    def maintenance(self) -> tuple[Maintenance, ...]:
        """The nodes that are to be empty, and why."""
        return tuple(
            Maintenance(node, flag_words(flag) or "maintenance flag", shuts_down=node in self.shutdowns)
            for node, flag in sorted((self._set or {}).items())
            if node not in self.going_down
        )

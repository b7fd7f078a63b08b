# SPDX-License-Identifier: GPL-3.0-or-later
"""Watches the loads of nodes: who is over a threshold and for how long, and whether the load is uneven."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from agent.core.events import Event, EventKind, EventSource
from agent.core.imbalance import Weights, over_threshold, spread
from agent.core.node_load import NodeLoad
from agent.core.settings import Settings
from agent.core.smoothing import Held
from agent.daemon.inputs import Now


class Overloads:
    """What the statistics have shown so far, and what of it has been told."""

    def __init__(self) -> None:
        self.node_loads: Mapping[str, NodeLoad] = {}
        self.held: Held | None = None
        self._raised: dict[str, float] = {}

    def on_loads(self, loads: Mapping[str, NodeLoad], away: Iterable[str], settings: Settings, now: Now) -> list[Event]:
        """Overload that has lasted, and uneven load: told once as long as it lasts, and at most every `reconcile_s` when it comes and
        goes. What becomes possible meanwhile, the regular look finds.

        Shape:   `away` are nodes whose load need not be as even as that of the others.
        """
        self.node_loads = loads
        weights = Weights.of(settings, loads.values())
        cpu_only = replace(weights, memory_threshold=None)
        memory_only = replace(weights, cpu_threshold=None, pressure_threshold=None)  # pressure is held for as long as cpu
        self.held = (self.held or Held()).with_look(
            now.boot_s,
            [name for name, load in loads.items() if over_threshold(load, cpu_only)],
            [name for name, load in loads.items() if over_threshold(load, memory_only)],
        )
        held = self.long_held(now, settings)
        wanted = [
            Event(EventKind.OVERLOAD, EventSource.STATISTICS, now.boot_s, node=name, detail=over_threshold(loads[name], weights) or "")
            for name in sorted(held)
        ]
        unlike = {name.lower() for name in away}
        width, high, low = spread([load for name, load in loads.items() if name.lower() not in unlike], weights)
        if 0 < settings.balance.spread_percent < 100 * width:
            detail = f"{100 * width:.0f} points between {high} and {low}"
            wanted.append(Event(EventKind.SPREAD, EventSource.STATISTICS, now.boot_s, node=high, detail=detail))
        keys = {f"{event.kind}:{event.node}" for event in wanted}
        self._raised = {key: at for key, at in self._raised.items() if key in keys or now.boot_s - at < settings.triggers.reconcile_s}
        events = [event for event in wanted if f"{event.kind}:{event.node}" not in self._raised]
        self._raised.update({f"{event.kind}:{event.node}": now.boot_s for event in events})
        return events

    def long_held(self, now: Now, settings: Settings) -> frozenset[str]:
        """Nodes that have been over a threshold for as long as the settings want."""
        if self.held is None:
            return frozenset()
        return self.held.long_enough(now.boot_s, settings.balance.cpu.hold_s, settings.balance.memory.hold_s)

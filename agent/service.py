# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as a process: one thread steps it, one thread a lane does what it asks for, signals and answers come by a queue."""

from __future__ import annotations

import queue
import signal
import threading
import traceback
from collections.abc import Callable
from types import FrameType

from agent.core.journal import Level, MessageId, Record
from agent.core.settings import Settings
from agent.daemon import inputs, outputs
from agent.daemon.agent import Agent
from agent.daemon.inputs import Now
from agent.daemon.outputs import Lane
from agent.daemon.perform import Performer
from agent.ports import Clock, ServiceNotifier

LANES = (Lane.LOCK, Lane.FILES, Lane.API, Lane.HA, Lane.LOCAL)
FIRST_TIDY_S = 20.0  # from the start: all is imported, and the first lead has begun, if there is to be one
TIDY_EVERY_S = 300.0
ALIVE_FRACTION = 3.0  # systemd hears from the agent so often within its watchdog's time


class Service:
    """Runs an agent until it exits. The lanes' threads are daemons: a call into /etc/pve that hangs for minutes holds up its
    own lane, and keeps the process neither from working nor from ending. `tidy` is called from time to time."""

    def __init__(
        self,
        agent: Agent,
        clock: Clock,
        notifier: ServiceNotifier,
        watchdog_s: float | None,
        on_settings: Callable[[Settings], None],
        tidy: Callable[[], None],
    ) -> None:
        self._agent = agent
        self._clock = clock
        self._notifier = notifier
        self._alive_every_s = None if watchdog_s is None else watchdog_s / ALIVE_FRACTION
        self._alive_s = -1e9
        self._arrived: queue.SimpleQueue[inputs.Input] = queue.SimpleQueue()
        self._first: list[inputs.Input] = []
        self._lanes: dict[Lane, queue.SimpleQueue[outputs.Output]] = {lane: queue.SimpleQueue() for lane in LANES}
        self._on_settings = on_settings
        self._tidy = tidy
        self._tidy_at_s = clock.boottime_s() + FIRST_TIDY_S

    def put(self, one: inputs.Input) -> None:
        """Hand the agent an input; may be called from any thread and from signal handlers."""
        self._arrived.put(one)

    def run(self, performer: Performer) -> int:
        """Step the agent until it exits; returns its exit status. Takes over SIGTERM, SIGINT and SIGHUP."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        for lane in LANES:
            threading.Thread(target=self._work, args=(lane, performer), name=f"lane-{lane.name.lower()}", daemon=True).start()
        settings = None
        while True:
            now = Now(self._clock.boottime_s(), self._clock.wall_s())
            asked, wake_s = self._agent.step(now, self._taken())
            for output in asked:
                if isinstance(output, outputs.Exit):
                    performer.perform(output)
                    return output.status
                if output.lane is Lane.NOW:
                    performer.perform(output)
                else:
                    self._lanes[output.lane].put(output)
            if self._agent.settings is not settings:
                settings = self._agent.settings
                self._on_settings(settings)
            self._tell_alive(now)
            if now.boot_s >= self._tidy_at_s:
                self._tidy_at_s = now.boot_s + TIDY_EVERY_S
                self._tidy()
            self._wait(wake_s - now.boot_s)

    def _taken(self) -> list[inputs.Input]:
        taken, self._first = self._first, []
        while True:
            try:
                taken.append(self._arrived.get_nowait())
            except queue.Empty:
                return taken

    def _wait(self, timeout_s: float) -> None:
        """Wait until something arrives, at most so long."""
        if self._alive_every_s is not None:
            timeout_s = min(timeout_s, self._alive_every_s)
        try:
            self._first.append(self._arrived.get(timeout=max(0.0, timeout_s)))
        except queue.Empty:
            return

    def _tell_alive(self, now: Now) -> None:
        if self._alive_every_s is not None and now.boot_s - self._alive_s >= self._alive_every_s / 2:
            self._alive_s = now.boot_s
            self._notifier.alive()

    def _work(self, lane: Lane, performer: Performer) -> None:
        while True:
            output = self._lanes[lane].get()
            try:
                answer = performer.perform(output)
            except Exception:  # noqa: BLE001  # a bug in an adapter must neither end its lane nor leave the agent waiting
                text = f"a bug in the agent, while doing {type(output).__name__}; it goes on. Please report this:\n{traceback.format_exc()}"
                performer.perform(outputs.Say(Record(Level.ERROR, MessageId.BUG, text)))
                answer = performer.failed(output, "a bug in the agent; see its journal")
            if answer is not None:
                self._arrived.put(answer)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._arrived.put(inputs.StopAsked())

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        self._notifier.reloading()
        self._arrived.put(inputs.ReloadAsked())

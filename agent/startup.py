# SPDX-License-Identifier: GPL-3.0-or-later
"""What this node's agent is made of, and how it starts."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agent import wiring
from agent.adapters import local_files as local_folders
from agent.adapters.ha_manager import HaManagerCommand
from agent.adapters.inbox import InboxBell, InboxFolder
from agent.adapters.instance_lock import InstanceLock
from agent.adapters.journal import sink
from agent.adapters.memory import tidy
from agent.adapters.node_facts import ThisNode
from agent.adapters.pmxcfs import PmxcfsFiles, PmxcfsLock
from agent.adapters.system_clock import SystemClock
from agent.adapters.systemd import SystemdNotifier, watchdog_s
from agent.config_files import ConfigFiles, first_settings, keep_last_good
from agent.core.journal import Level
from agent.core.leadership import LockTimes
from agent.core.settings import Settings
from agent.daemon import inputs
from agent.daemon.agent import Agent
from agent.daemon.identity import Identity
from agent.daemon.inputs import Now
from agent.daemon.outside import Ports
from agent.daemon.perform import Performer
from agent.ports import ClusterApi, InboxSight, PermanentError
from agent.service import Service


class _WatchedInbox:
    """The inbox folder, with its doorbell mended at each look: a folder made anew is another one."""

    def __init__(self, folder: InboxFolder, bell: InboxBell) -> None:
        self._folder, self._bell = folder, bell

    def claim(self) -> InboxSight:
        """See `agent.ports.LocalInbox`."""
        self._bell.mend()
        return self._folder.claim()


class _OneApi:
    """The API made when it is first asked for, and made anew when what it rests on has changed."""

    def __init__(self, source: Callable[[], Settings]) -> None:
        self._source = source
        self._made: tuple[object, ClusterApi] | None = None

    def __call__(self) -> ClusterApi:
        settings = self._source()
        key = (settings.api, settings.paths.pmxcfs)
        if self._made is None or self._made[0] != key:
            self._made = (key, wiring.make_api(settings))
        return self._made[1]


def run_agent(config: str | None = None) -> int:
    """Run this node's agent until it is told to stop; returns the exit status.

    Raises:  PermanentError for settings of this node that name nothing usable.
    """
    source = ConfigFiles(config)
    node_settings = source.node_settings()
    clock = SystemClock()
    journal = sink(os.environ, sys.stderr, Level[node_settings.log.level.name])
    folder = Path(node_settings.paths.run)
    with suppress(OSError):  # tmpfiles.d makes them; this is for a folder that somebody removed, and for trying the agent out
        folder.mkdir(mode=0o755, exist_ok=True)
        (folder / "inbox").mkdir(mode=0o700, exist_ok=True)
    instance = InstanceLock(str(folder / wiring.INSTANCE_LOCK))
    if not instance.take():
        holder = instance.holder()
        raise PermanentError(f"another agent runs on this node{f' (PID {holder})' if holder else ''}", "see: systemctl status proxlb-agent")
    settings = first_settings(source, node_settings, journal)
    times = LockTimes()  # its 30 s for a request are the most that api.timeout_s may be
    now = Now(clock.boottime_s(), clock.wall_s())
    agent = Agent(Identity(wiring.host_name(), os.urandom(6).hex(), wiring.boot_id()), settings, times, now)
    notifier = SystemdNotifier()
    inbox = f"{node_settings.paths.run}/inbox"

    def taken(settings: Settings) -> None:
        journal.level = Level[settings.log.level.name]
        if (taken_from := source.cluster_text(settings)) is not None:
            kept = (*taken_from, node_settings.paths.state, journal)
            threading.Thread(target=keep_last_good, args=kept, name="last-good", daemon=True).start()  # a disk may hang

    service = Service(agent, clock, notifier, watchdog_s(os.environ), on_settings=taken, tidy=tidy)
    bell = InboxBell(lambda: service.put(inputs.BellRang()), inbox)
    ports = Ports(
        clock=clock,
        lock=PmxcfsLock(clock, node_settings.paths.pmxcfs),
        files=PmxcfsFiles(node_settings.paths.pmxcfs),
        api=_OneApi(lambda: agent.settings),
        inbox=_WatchedInbox(InboxFolder(inbox), bell),
        facts=ThisNode(),
        ha_nodes=HaManagerCommand(),
        local=local_folders.NodeFiles(node_settings.paths.run, node_settings.paths.state),
        settings=source,
        journal=journal,
        notifier=notifier,
    )
    try:
        return service.run(Performer(ports, times))
    finally:
        bell.stop()

# SPDX-License-Identifier: GPL-3.0-or-later
"""How small the window is that nothing can close: from the renewal that shows that this node leads to the request's last byte.

Run as root, from the project's root:  .cache/tools/bin/python -m tests.bench.window [--requests 200]
The real code of one request to migrate between the mounted stand-in for /etc/pve and the played API, on one machine. A process that is
stopped in the middle does nothing more once its time is over; what remains is from the last look at the clock to the bytes that go out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from agent import config_files, wiring
from agent.adapters.pmxcfs import PmxcfsFiles, PmxcfsLock
from agent.adapters.pve import wire
from agent.adapters.system_clock import SystemClock
from agent.core.cluster import GIB, GuestType
from agent.core.documents import LEADER_SCHEMA, LeaderFile, LeaderState, render
from agent.core.leadership import LockTimes
from agent.daemon.inputs import MigrationAnswer, PostOutcome
from agent.daemon.outputs import StartMigration
from agent.daemon.outside import LEADER_PATH, Ports
from agent.daemon.perform import Performer
from agent.ports import MigrationOrder
from tests.pve_server.client import vm
from tests.service.rig import HERE, Rig

NODE: dict[str, Any] = {"cores": 64, "memory_bytes": 1024 * GIB}


class _Timed(PmxcfsLock):
    """The lock, which notes when it was last renewed."""

    renewed_s = 0.0

    def renew(self) -> None:
        self.renewed_s = time.perf_counter()  # before the call, as the lease counts
        super().renew()


def measured(requests: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds from the renewal's begin to the first look at the clock, from there to the last, and from each look to its bytes sent."""
    guests = [vm(1000 + number, "pve2", maxmem_bytes=GIB, mem_bytes=GIB // 2) for number in range(requests)]
    looks: list[float] = []
    gaps: list[float] = []
    before_bytes = wire.Exchange.before_bytes
    send: Callable[..., Any] = wire.HTTPSConnection.send

    def look(exchange: wire.Exchange) -> None:
        before_bytes(exchange)
        looks.append(time.perf_counter())

    def sent(connection: wire.HTTPSConnection, data: Any) -> None:
        send(connection, data)
        gaps.append(time.perf_counter() - looks[-1])

    to_first, to_last = [], []
    with Rig({HERE: NODE, "pve2": NODE, "pve3": NODE}, guests) as rig:
        clock = SystemClock()
        lock, files = _Timed(clock, str(rig.mount)), PmxcfsFiles(str(rig.mount))
        api = wiring.make_api(config_files.load_settings(str(rig.folder / "config.yaml")))
        leader = LeaderFile(LEADER_SCHEMA, HERE, "bench", 7, LeaderState.LEADING, time.time(), "0.1.0")
        files.write(LEADER_PATH, render(leader))
        lock.take()
        nothing: Any = None
        ports = Ports(clock, lock, files, lambda: api, nothing, nothing, nothing, nothing, nothing, nothing, nothing)
        performer = Performer(ports, LockTimes())
        wire.Exchange.before_bytes = look  # type: ignore[method-assign]
        wire.HTTPSConnection.send = sent  # type: ignore[method-assign]
        for number in range(requests):
            looks.clear()
            order = MigrationOrder(1000 + number, GuestType.QEMU, "pve2", "pve3", online=True, restart=False)
            answer = performer.perform(StartMigration(f"1-{number}", order, leader, clock.boottime_s() + 60))
            assert isinstance(answer, MigrationAnswer) and answer.outcome is PostOutcome.STARTED, answer
            to_first.append(looks[0] - lock.renewed_s)
            to_last.append(looks[-1] - looks[0])
        api.close()
    return to_first, to_last, gaps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    columns = measured(parser.parse_args().requests)
    names = ("renewal to the first look at the clock", "first to last look at the clock", "a look at the clock to its bytes sent")
    print("| window | median, ms | 99 %, ms | worst, ms |\n| --- | --- | --- | --- |")
    for name, times in zip(names, columns, strict=True):
        median, high, worst = statistics.median(times), statistics.quantiles(times, n=100)[98], max(times)
        print(f"| {name} | {median * 1e3:.2f} | {high * 1e3:.2f} | {worst * 1e3:.2f} |")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""How often agents write below /etc/pve, in simulated time: in an idle hour, and while hooks on all nodes tell of starts for a minute.

Run from the project's root:  .cache/tools/bin/python -m tests.bench.writes
Each write of a file is one here; pmxcfs makes three messages of it (create, write, rename), of a renewal of the lock one. Promised
are as many as there are nodes, and one more for each second until the last. Prints a table; judges nothing.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator

from agent.core.cluster import GIB
from agent.core.documents import LEADER_SCHEMA, LeaderFile, LeaderState, render
from agent.core.settings import Settings
from agent.core.settings_check import check
from agent.daemon.outside import LEADER_PATH
from agent.sim.inventory import SimNode
from agent.sim.world import World
from agent.simulation import Simulation

SIZES = (3, 16, 32)
IDLE_S, BURST_S, AFTER_S = 3600.0, 60, 120.0
EVENTS_A_SECOND = 5  # on each node: 300 a minute, as many as a relay file holds


def counted(world: World, before: Counter[str]) -> tuple[int, int, int]:
    """Renewals, writes of all other files, and of the node that wrote most its relay file."""
    written = Counter(world.pmxcfs.writes) - before
    relays = [count for path, count in written.items() if path.startswith("proxlb/inbox/")]
    return written["lock renew"], written.total() - written["lock renew"], max(relays, default=0)


def leave(world: World, event: str) -> None:
    """A hook leaves the event on each node."""
    for name in world.nodes:
        world.leave_event(name, event)


def rows() -> Iterator[str]:
    """One row a cluster."""
    settings = check({"triggers": {"first_observe_s": 0}})
    assert isinstance(settings, Settings)
    for size in SIZES:
        names = [f"pve{number:02}" for number in range(1, size + 1)]
        world = World([SimNode(name, 32, 128 * GIB) for name in names])
        world.put_file(LEADER_PATH, render(LeaderFile(LEADER_SCHEMA, "gone", "before", 1, LeaderState.RELEASED, 0.0, "0.1.0")))
        made = Simulation(world, settings)
        made.run(600)
        before = Counter(world.pmxcfs.writes)
        made.run(600 + IDLE_S)
        idle = counted(world, before)
        before, begin_s = Counter(world.pmxcfs.writes), 600 + IDLE_S
        for number in range(BURST_S * EVENTS_A_SECOND):
            made.at(begin_s + number / EVENTS_A_SECOND, functools.partial(leave, world, f"{1000 + number}.post-start"))
        burst, last_s = counted(world, before), begin_s
        while world.now_s < begin_s + BURST_S + AFTER_S:
            made.run(world.now_s + 1)
            now = counted(world, before)
            burst, last_s = now, (world.now_s if now[1] != burst[1] else last_s)
        yield (
            f"| {size} | {idle[0]} | {idle[1]} | {BURST_S * EVENTS_A_SECOND * size} | {burst[0]} | {burst[1]} | {burst[2]} "
            f"| {last_s - begin_s:.0f} | {size + last_s - begin_s:.0f} |"
        )


def main() -> None:
    """Measure and print."""
    print("| nodes | idle hour: renewals | others | burst: events | renewals | others | most of one node | last after, s | promised |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows():
        print(row, flush=True)


if __name__ == "__main__":
    main()

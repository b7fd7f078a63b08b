# SPDX-License-Identifier: GPL-3.0-or-later
"""What an agent at rest takes: memory and processor time of a follower, and of leaders of clusters of several sizes.

Run as root, from the project's root:  .cache/tools/bin/python -m tests.bench.sizes [--idle-s 60] [16/500 32/3000 ...]
The agent is a real process between the mounted stand-in for /etc/pve and the played API. It is started as the package
does: with compiled code, and in the environment of its unit. Prints a table; judges nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from agent.service import FIRST_TIDY_S
from agent.sim.generator import generate
from tests.bench.promises import as_installed, cpu_s, memory_mib, specs
from tests.service.rig import Rig

AT_REST_S = FIRST_TIDY_S + 15.0
QUIET = {"spread_percent": 99, "cpu": {"threshold_percent": 99}, "memory": {"threshold_percent": 99}}


def at_rest(name: str, rig: Rig, idle_s: float) -> Iterator[tuple[str, str]]:
    """The size of the rig's agent when nothing happens."""
    assert rig.process is not None
    time.sleep(AT_REST_S)
    before = cpu_s(rig.process.pid)
    time.sleep(idle_s)
    used_s = cpu_s(rig.process.pid) - before
    yield f"{name}: resident / proportional memory, MiB", "{:.1f} / {:.1f}".format(*memory_mib(rig.process.pid))
    yield f"{name}: cpu over {idle_s:.0f} s, % of a core", f"{100 * used_s / idle_s:.2f}"


def rows(idle_s: float, sizes: list[str]) -> Iterator[tuple[str, str]]:
    """Measure; yields a name and a figure at a time. A follower's size does not depend on the cluster's."""
    for size in ["", *sizes]:
        nodes_count, guests_count = (int(number) for number in (size or sizes[0]).split("/"))
        nodes, guests = specs(generate(1, nodes_count, guests_count, "zipf"))
        with Rig(nodes, guests, mode="observe" if size else "off", balance=QUIET) as rig:
            if size:
                rig.release_lead()
            rig.start(**as_installed(rig.folder))
            rig.wait_for("took the lead: " if size else "runs on", 120)
            yield from at_rest(f"leader at {size}" if size else "follower", rig, idle_s)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--idle-s", type=float, default=60)
    parser.add_argument("sizes", nargs="*", default=["16/500", "32/3000"], metavar="NODES/GUESTS")
    arguments = parser.parse_args()
    for name, figure in rows(arguments.idle_s, arguments.sizes):
        print(f"| {name} | {figure} |", flush=True)


if __name__ == "__main__":
    main()

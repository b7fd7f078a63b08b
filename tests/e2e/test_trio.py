# SPDX-License-Identifier: GPL-3.0-or-later
"""Three booted nodes, two of Debian 12 and one of Debian 13, in real time: the leader's node dies, the leader's package is upgraded.

Judged by what the API was asked for and what its tasks came to, not by what the agents say.
"""

from __future__ import annotations

import itertools
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.core.journal import MessageId
from tests.e2e import roots
from tests.e2e.installed import SAID_WAIT_S
from tests.e2e.trio import Trio
from tests.pve_server.client import GIB, cluster, vm

NODE = {"cores": 16, "memory_bytes": 64 * GIB, "overhead_bytes": 4 * GIB}
SETTINGS = {
    "triggers": {"settle_s": 1, "warmup_s": 0, "first_observe_s": 0, "reconcile_s": 3600},
    "balance": {"spread_percent": 0, "cpu": {"hold_s": 3600}, "memory": {"hold_s": 3600}},
}
DRAINED = "pve3"
MIGRATION_S = 8.0
LONG = 305
LONG_S = 150.0  # still under way when the next one leads
TAKE_OVER_S = 160.0
NEWER = "0.1.9"
GUESTS = (301, 302, 303, 304, LONG)


@pytest.fixture(scope="module")
def trio(deb: Path) -> Iterator[Trio]:
    """pve1 leads; all guests but one are on pve3."""
    guests = [vm(vmid, DRAINED, mem_bytes=(3 + vmid % 10) * GIB, maxmem_bytes=10 * GIB, cpu_cores=0.1) for vmid in GUESTS if vmid != LONG]
    guests += [vm(LONG, DRAINED, mem_bytes=9 * GIB, maxmem_bytes=10 * GIB, tags="plb_pin_pve2;plb_pin_pve3", migration_s=LONG_S)]
    guests += [vm(201, "pve2", mem_bytes=2 * GIB, maxmem_bytes=4 * GIB, cpu_cores=0.1)]
    state = cluster(dict.fromkeys(("pve1", "pve2", DRAINED), NODE), guests, migration={"duration_s": MIGRATION_S})
    releases = {"pve1": "bookworm", "pve2": "bookworm", DRAINED: "trixie"}
    with Trio({name: roots.root(release) for name, release in releases.items()}, state) as up:
        up.install(deb, "pve1", **SETTINGS)
        yield up
        for node in (node for node in up.nodes.values() if node.machine.pid):
            assert node.entries(f"MESSAGE_ID={MessageId.BUG}") == []
        assert not up.api.made_up()


def migrations(trio: Trio) -> list[dict[str, Any]]:
    return trio.api.tasks("qmigrate", "vzmigrate")


def assert_nobody_moved_twice(trio: Trio, since: int = 0) -> None:
    """No guest had two migrations at a time, and none moved again once it had moved."""
    trio.api.wait_until(lambda: all("exitstatus" in task for task in migrations(trio)), 30)
    tasks = migrations(trio)[since:]
    moved = Counter(int(task["id"]) for task in tasks if task["exitstatus"] == "OK")
    assert set(moved.values()) <= {1}, trio.journals()
    for vmid in GUESTS:
        times = sorted((task["starttime"], task["endtime"]) for task in tasks if int(task["id"]) == vmid)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(times)), (vmid, times)


def test_the_leaders_node_dies_while_it_drains_another(trio: Trio, capsys: pytest.CaptureFixture[str]) -> None:
    """Two are on their way then: one to the node that dies, one that still is when the next node leads."""
    trio.flag(DRAINED, "new memory")
    trio["pve1"].wait_said("moving vm:", times=2)
    trio.kill("pve1")
    died_s = time.monotonic()
    assert {(move.vmid, move.target) for move in trio.asked_moves()} == {(LONG, "pve2"), (304, "pve1")}
    next_one = trio.wait_leader("pve2", DRAINED, within_s=TAKE_OVER_S)
    led_s = time.monotonic() - died_s
    trio[next_one].wait_said("takes over 2 migrations of the former leader")
    trio[next_one].wait_said(f"{DRAINED} is empty")
    assert {trio.api.where(vmid) for vmid in GUESTS} == {"pve2"}
    assert_nobody_moved_twice(trio)
    assert len(trio.asked_moves()) == len(migrations(trio)) == len(GUESTS) + 1, "only the one that failed was asked for again"
    with capsys.disabled():
        print(f"\n{next_one} led {led_s:.0f} s after the leader's node had died")


def test_the_node_that_died_follows_when_it_is_back(trio: Trio) -> None:
    leader = trio.wait_leader("pve2", DRAINED)
    epoch = trio.leader()["epoch"]
    trio.start("pve1")
    trio["pve1"].wait_said(f"follows {leader}")
    assert trio.leader()["epoch"] == epoch


def newer(deb: Path, folder: Path) -> Path:
    """The same package, of a higher version."""
    subprocess.run(["dpkg-deb", "-R", deb, folder / "tree"], check=True)
    for file in ("DEBIAN/control", "usr/share/proxlb-agent/agent/__init__.py"):
        path = folder / "tree" / file
        path.write_text(path.read_text().replace("0.1.0", NEWER))
    built = folder / f"proxlb-agent_{NEWER}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", folder / "tree", built], check=True, capture_output=True)
    return built


def test_an_upgrade_of_the_leader_amid_a_batch_loses_nothing_and_asks_for_nothing_twice(trio: Trio, deb: Path, tmp_path: Path) -> None:
    """All come home to the node that was emptied; the leader is upgraded while the first of them are on their way."""
    package = newer(deb, tmp_path)
    leader = trio.wait_leader("pve2", DRAINED)
    before = len(migrations(trio))
    trio.api.set_guest(LONG, migration_s=None)
    trio.api.migration(duration_s=None)  # until the test ends it
    trio.unflag(DRAINED)
    trio[leader].machine.wait_for(lambda: len(migrations(trio)) == before + 2, SAID_WAIT_S, "nobody comes home")
    trio[leader].machine.install(package)
    trio[leader].wait_said(f"proxlb-agent {NEWER} runs on {leader}")
    next_one = trio.wait_leader(*(set(trio.names) - {leader}))
    trio[next_one].wait_said("takes over 2 migrations of the former leader")
    assert len(migrations(trio)) == before + 2
    trio.api.migration(duration_s=2.0)
    for task in migrations(trio)[before:]:
        trio.api.finish_migration(int(task["id"]))
    trio[next_one].machine.wait_for(lambda: {trio.api.where(vmid) for vmid in GUESTS} == {DRAINED}, SAID_WAIT_S, "they are not all home")
    trio[leader].wait_said(f"follows {next_one}")
    assert_nobody_moved_twice(trio, before)
    assert len(trio.asked_moves()) == len(migrations(trio)) == before + len(GUESTS)

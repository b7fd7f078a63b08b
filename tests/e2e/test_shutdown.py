# SPDX-License-Identifier: GPL-3.0-or-later
"""`systemctl enable proxlb-agent-drain`, then `reboot`: two booted nodes, a third one played."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.installed import SAID_WAIT_S
from tests.e2e.played import Move
from tests.e2e.trio import Trio
from tests.pve_server.client import GIB, cluster, ct, vm

FLAG = "proxlb/maintenance/pve1"
SETTINGS = {
    "triggers": {"settle_s": 1, "warmup_s": 0, "first_observe_s": 0, "reconcile_s": 3600},
    "balance": {"spread_percent": 0, "cpu": {"hold_s": 3600}, "memory": {"hold_s": 3600}},
}
NODE = {"cores": 16, "memory_bytes": 64 * GIB, "overhead_bytes": 4 * GIB}
OF_HA = 109


@pytest.fixture(scope="module")
def trio(root: Path, deb: Path) -> Iterator[Trio]:
    """pve1 leads, and has two VMs, a container and a VM of the HA manager's."""
    guests = [
        vm(101, "pve1", name="web1", mem_bytes=4 * GIB, maxmem_bytes=6 * GIB, cpu_cores=0.2),
        vm(102, "pve1", name="db1", mem_bytes=6 * GIB, maxmem_bytes=8 * GIB, cpu_cores=0.2),
        ct(103, "pve1", name="dns1", mem_bytes=GIB, maxmem_bytes=2 * GIB, cpu_cores=0.1),
        vm(OF_HA, "pve1", name="mail1", mem_bytes=2 * GIB, maxmem_bytes=3 * GIB, cpu_cores=0.1, ha="started"),
        vm(201, "pve2", name="web2", mem_bytes=4 * GIB, maxmem_bytes=6 * GIB, cpu_cores=0.2),
    ]
    state = cluster(dict.fromkeys(("pve1", "pve2", "pve3"), NODE), guests, migration={"duration_s": 3.0})
    with Trio({"pve1": root, "pve2": root}, state) as up:
        up.install(deb, "pve1", **SETTINGS)
        up["pve1"].machine.run("systemctl enable proxlb-agent-drain")
        yield up
        up["pve1"].machine.run("systemctl disable proxlb-agent-drain")  # or it would be emptied as the test ends


def test_a_reboot_empties_the_node_first_and_its_guests_come_home(trio: Trio, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = trio["pve1"], trio["pve2"]
    took_s = trio.reboot("pve1")
    drained = one.machine.messages("-b", "-1", "-u", "proxlb-agent-drain", "SYSLOG_IDENTIFIER=proxlb-agent")
    assert drained[0] == "pve1 shuts down: its guests leave first, for at most 600 s"
    assert drained[-1] == "pve1 is empty but for 1 of the HA manager: the shutdown goes on"
    assert one.said("gives the lead away: this node shuts down"), "whoever goes does not decide who comes"
    assert trio.leader()["node"] == "pve2"
    left = trio.asked_moves()
    assert sorted(move.vmid for move in left) == [101, 102, 103]
    assert {move.source for move in left} == {"pve1"}

    assert sorted(trio.api.where(move.vmid) for move in left) == sorted(move.target for move in left)

    two.wait_said(r"guest 103 stays: node-starting \(up for")  # for two minutes, for which a test has no time
    assert trio.asked_moves() == left
    trio.api.row("node/pve1", {"uptime": 121})
    two.machine.wait_for(lambda: {trio.api.where(move.vmid) for move in left} == {"pve1"}, SAID_WAIT_S, "they are not all home")
    two.wait_said("to pve1: done in", times=len(left))
    back = trio.asked_moves()[len(left) :]
    assert sorted(back) == sorted(Move(move.vmid, move.target, "pve1") for move in left), "each once, from where it was"
    assert trio.api.where(OF_HA) == "pve1"
    assert FLAG not in trio.pmxcfs.listing("proxlb/maintenance")
    with capsys.disabled():
        print(f"\nthe shutdown took {took_s:.0f} s with the migrations of three guests, 3 s each, in it")

# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent maintenance enter NODE --wait && reboot`, as an admin types it and sees it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.installed import Installed
from tests.e2e.played import Move
from tests.e2e.terminal import Terminal
from tests.pve_server.client import GIB, cluster, vm

NODE = {"cores": 16, "memory_bytes": 64 * GIB, "overhead_bytes": 4 * GIB}
SETTINGS = {
    "triggers": {"settle_s": 1, "warmup_s": 0, "first_observe_s": 0, "reconcile_s": 3600},
    "balance": {"spread_percent": 0, "cpu": {"hold_s": 3600}, "memory": {"hold_s": 3600}},
}
COMMAND = "proxlb-agent maintenance enter pve1 --wait && echo REBOOT; echo status $?"
UNREACHABLE = "Can't connect to destination address using public key"
FAILS, TIED = 101, 103


@pytest.fixture(scope="module")
def up(root: Path, deb: Path) -> Iterator[Installed]:
    """Four guests on pve1: the first migration of one of them fails, one has a device of the node."""
    guests = [
        vm(FAILS, "pve1", name="db1", mem_bytes=8 * GIB, maxmem_bytes=10 * GIB, cpu_cores=0.2),
        vm(102, "pve1", name="web1", mem_bytes=4 * GIB, maxmem_bytes=6 * GIB, cpu_cores=0.2),
        vm(TIED, "pve1", name="gpu1", mem_bytes=2 * GIB, maxmem_bytes=4 * GIB, cpu_cores=0.2, local_resources=["hostpci0"]),
        vm(104, "pve1", name="mail1", mem_bytes=2 * GIB, maxmem_bytes=4 * GIB, cpu_cores=0.2),
    ]
    state = cluster(dict.fromkeys(("pve1", "pve2", "pve3"), NODE), guests, migration={"duration_s": 8.0})
    # The migrations take longer than from look to look of --wait.
    with Installed(root, state) as node:
        node.install_agent(deb, **SETTINGS)
        node.api.fail_migration(FAILS, detail=UNREACHABLE, early=True)
        yield node


def test_the_node_reboots_only_when_all_have_left_that_should(up: Installed, capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(up.machine) as terminal:
        terminal.type(COMMAND)
        end = terminal.wait_prompt(150)
        bars = [line for screen in terminal.screens for line in screen.splitlines() if line.startswith("emptying pve1 ")]
        assert any(re.search(r"━ +[123] of 4 guests, [\d.]+ of 16.0 GiB, about \d+ s left$", line) for line in bars), bars
        lines = end.splitlines()
        assert lines[1] == "pve1 is in maintenance now: asked for by root"
        assert lines[2] == "vm:103 gpu1 stays: the guest uses devices of its node (hostpci0)"
        assert lines[3].startswith("  what helps: stop it; or take the device from it")
        assert lines[4].startswith("proxlb-agent: pve1 is not empty: 1 guest still there")
        assert lines[-2] == "status 1"
        assert "REBOOT" not in lines, "the bar is gone, and what the shell does next is the admin's line"
        assert up.asked_moves()[:2] == [Move(FAILS, "pve1", "pve2"), Move(102, "pve1", "pve3")]
        assert Counter(up.asked_moves()[2:]) == Counter([Move(FAILS, "pve1", "pve3"), Move(104, "pve1", "pve2")])
        with capsys.disabled():
            print("\n" + "\n\n".join(terminal.screens[-3:]))

        terminal.clear()
        up.api.set_guest(TIED, local_resources=[])
        terminal.type(COMMAND)
        lines = terminal.wait_prompt(150).splitlines()
        assert lines[1].startswith("pve1 is in maintenance already")
        assert lines[2:] == ["pve1 is empty", "REBOOT", "status 0", "admin#"]
        assert [move.vmid for move in up.asked_moves()[4:]] == [TIED]
        assert "pve1" not in up.api.placement().values()

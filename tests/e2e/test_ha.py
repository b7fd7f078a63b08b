# SPDX-License-Identifier: GPL-3.0-or-later
"""The HA manager's own maintenance, asked for by its command from within the unit's sandbox."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.installed import SAID_WAIT_S, Installed
from tests.e2e.played import Move
from tests.pve_server.client import GIB, cluster, vm

NODE = {"cores": 16, "memory_bytes": 64 * GIB, "overhead_bytes": 4 * GIB}
SETTINGS = {
    "triggers": {"settle_s": 1, "warmup_s": 0, "first_observe_s": 0, "reconcile_s": 3600},
    "balance": {"spread_percent": 0, "cpu": {"hold_s": 3600}, "memory": {"hold_s": 3600}},
}
COMMAND = Path(__file__).with_name("ha-manager")
QUEUE = "ha/crm_commands"
DRAINED, OF_HA, OTHER = "pve2", 209, 201


class Crm(Installed):
    """A node whose HA manager takes requests from their queue when the test says so."""

    def take(self, line: str) -> None:
        """Wait until that line is queued, alone, and do what it says."""
        until = time.monotonic() + SAID_WAIT_S
        while not self.pmxcfs.read(QUEUE):
            assert time.monotonic() < until, f"not queued: {line}\n" + "\n".join(self.said())
            time.sleep(0.2)
        assert self.pmxcfs.read(QUEUE) == f"{line}\n"
        self.pmxcfs.put(QUEUE, "")
        act, node = line.split()
        self.api.ha_maintenance(node, act == "enable-node-maintenance")


@pytest.fixture(scope="module")
def up(root: Path, deb: Path) -> Iterator[Crm]:
    """One guest of the HA manager's and one of nobody's are on pve2."""
    guests = [vm(OF_HA, DRAINED, name="mail1", ha="started"), vm(OTHER, DRAINED, name="web1"), vm(101, "pve1")]
    with Crm(root, cluster(dict.fromkeys(("pve1", DRAINED, "pve3"), NODE), guests, migration={"duration_s": 1.0})) as node:
        node.pmxcfs.put(QUEUE, "")
        node.machine.put("/usr/sbin/ha-manager", COMMAND.read_bytes(), mode=0o755)
        node.machine.run("truncate -s 1M /dev/shm/qb-pmxcfs; chmod 600 /dev/shm/qb-pmxcfs")
        node.install_agent(deb, **SETTINGS)
        yield node


def test_the_sandboxed_agent_asks_the_ha_manager_and_takes_it_back(up: Crm) -> None:
    up.flag(DRAINED, "new memory")
    up.take(f"enable-node-maintenance {DRAINED}")
    up.wait_said(f"{DRAINED} is empty")
    assert up.asked_moves() == [Move(OTHER, DRAINED, up.api.where(OTHER))], "the HA manager's guest was moved by the HA manager"
    assert up.api.where(OF_HA) != DRAINED
    up.unflag(DRAINED)
    up.take(f"disable-node-maintenance {DRAINED}")
    up.machine.wait_for(lambda: {up.api.where(OF_HA), up.api.where(OTHER)} == {DRAINED}, SAID_WAIT_S, "\n".join(up.said()))
    assert [move.vmid for move in up.asked_moves()] == [OTHER, OTHER]
    assert up.machine.messages("SYSLOG_IDENTIFIER=ha-manager") == [f"maintenance of {DRAINED}: {act}" for act in ("enable", "disable")]

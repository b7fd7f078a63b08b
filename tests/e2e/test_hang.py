# SPDX-License-Identifier: GPL-3.0-or-later
"""/etc/pve hangs, as while a cluster re-forms: the agent lives on, systemd knows, and a stop does not wait for the end of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.installed import Installed
from tests.pve_server.client import GIB, cluster, vm

NODE = {"cores": 16, "memory_bytes": 64 * GIB, "overhead_bytes": 4 * GIB}
SETTINGS = {"triggers": {"warmup_s": 0, "first_observe_s": 0, "reconcile_s": 3600}, "balance": {"spread_percent": 0}}
HANGS_S = 600.0  # until the test ends it
WATCHDOG_S = 10.0  # the unit's is 120, for which a test has no time
GIVEN_UP_S = 4 * 8.0  # TimeoutStopSec of the unit: systemd waits so long after each of two signals, and does both once more


@pytest.fixture(scope="module")
def up(root: Path, deb: Path) -> Iterator[Installed]:
    with Installed(root, cluster(dict.fromkeys(("pve1", "pve2", "pve3"), NODE), [vm(101, "pve1")])) as node:
        node.machine.put("/etc/systemd/system/proxlb-agent.service.d/watchdog.conf", f"[Service]\nWatchdogSec={WATCHDOG_S}\n")
        node.install_agent(deb, **SETTINGS)
        try:
            yield node
        finally:
            node.pmxcfs.hang(0)


def alive_s(up: Installed) -> float:
    """When systemd has last heard from the agent."""
    return int(up.shows("WatchdogTimestampMonotonic")["WatchdogTimestampMonotonic"]) / 1e6


def test_a_stop_while_a_call_hangs_returns_soon(up: Installed, capsys: pytest.CaptureFixture[str]) -> None:
    before = alive_s(up)
    up.pmxcfs.hang(HANGS_S)
    time.sleep(1.5 * WATCHDOG_S)
    assert alive_s(up) > before + WATCHDOG_S / 2, "systemd hears from it"
    assert up.shows("ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}

    stopped = up.unit("stop")
    assert stopped.took_s < GIVEN_UP_S + 5
    (asked,) = up.machine.journal("-u", "proxlb-agent", "_PID=1", "MESSAGE_ID=de5b426a63be47a7b6ac3eaac82e2f6f")
    (last,) = [entry for entry in up.entries() if str(entry["MESSAGE"]).startswith("stopped; the lock could not be given back")]
    decided_s = (int(last["__REALTIME_TIMESTAMP"]) - int(asked["__REALTIME_TIMESTAMP"])) / 1e6
    assert decided_s < 5.5
    with capsys.disabled():
        print(f"\ntold to stop while a call hung, the agent was done in {decided_s:.1f} s, `systemctl stop` in {stopped.took_s:.1f} s")

    up.pmxcfs.hang(0)
    up.unit("start")
    up.wait_said("leads the cluster, epoch 8")

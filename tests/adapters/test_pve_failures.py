# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's words for a failed migration, said where PVE says them, come through the adapter and are understood."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.adapters.pve.api import PveApi
from agent.adapters.pve.tasks import log_lines
from agent.adapters.pve.values import Row
from agent.core.cluster import GuestType
from agent.core.failures import FailureClass, understood
from agent.ports import MOST_LOG_LINES, MigrationOrder, RefusedError
from tests.adapters.conftest import NODES, Make
from tests.pve_server.client import MIGRATE_VM, PveServer, cluster, vm
from tests.pve_server.error_texts import EARLY, TASK

pytestmark = pytest.mark.proxmoxer

ORDER = MigrationOrder(100, GuestType.QEMU, "pve1", "pve2", online=True, restart=False)
F = FailureClass


@pytest.fixture(params=["9.0.10", "8.4.1"])
def pve(server: PveServer, request: pytest.FixtureRequest) -> PveServer:
    """A VM on three nodes of PVE 9 and of PVE 8."""
    state = cluster({name: {"version": request.param} for name in NODES}, [vm(100, "pve1", cpu_cores=1.5, maxcpu=4)])
    server.load(state)
    return server


@pytest.fixture
def api(server: PveServer, make: Make) -> PveApi:
    return make(f"{server.host}:{server.port}")


def test_each_refusal_is_understood(pve: PveServer, api: PveApi) -> None:
    for status, text, failure in EARLY:
        pve.fail_call("POST", MIGRATE_VM, status, text)
        with pytest.raises(RefusedError) as caught:
            api.migrate(ORDER)
        assert understood(str(caught.value)).failure is failure, text
    assert pve.where(100) == "pve1"


def test_each_failed_task_is_understood_by_its_log(pve: PveServer, api: PveApi) -> None:
    for text, failure in TASK:
        pve.fail_migration(100, detail=text, early=True, at_fraction=0.0)
        upid = api.migrate(ORDER)
        pve.wait_task(upid)
        status = api.task(upid).exit_status
        assert status == "migration aborted", text
        found = understood(status, api.task_log(upid))
        assert found.failure is failure, text
        assert text in found.text or failure is F.UNKNOWN
    assert pve.where(100) == "pve1"


def test_a_migration_that_a_person_cancelled_is_known_as_such(pve: PveServer, api: PveApi) -> None:
    pve.migration(duration_s=None)
    upid = api.migrate(ORDER)
    assert pve.api("DELETE", f"/nodes/pve1/tasks/{upid}").status == 200
    status = pve.wait_task(upid)
    assert understood(status, api.task_log(upid)).failure is F.CANCELLED


def test_what_the_server_itself_refuses_is_understood(pve: PveServer, api: PveApi) -> None:
    pve.do("lock", vmid=100, lock="snapshot")
    with pytest.raises(RefusedError) as caught:
        api.migrate(ORDER)
    assert understood(str(caught.value)).failure is F.LOCKED
    pve.do("lock", vmid=100, lock=None)
    with pytest.raises(RefusedError) as caught:
        api.migrate(replace(ORDER, online=False))  # it was started since it was looked at
    assert understood(str(caught.value)).failure is F.CHANGED
    with pytest.raises(RefusedError) as caught:
        api.migrate(replace(ORDER, source="pve3"))  # it was moved
    assert understood(str(caught.value)).failure is F.CHANGED
    pve.do("set_guest", vmid=100, local_resources=["hostpci0"])
    upid = api.migrate(ORDER)
    pve.wait_task(upid)
    assert understood(api.task(upid).exit_status or "", api.task_log(upid)).failure is F.LOCAL_DEVICE
    pve.do("set_guest", vmid=100, local_resources=[])
    pve.do("node_online", node="pve2", online=False)
    upid = api.migrate(ORDER)
    pve.wait_task(upid)
    assert understood(api.task(upid).exit_status or "", api.task_log(upid)).failure is F.NETWORK


def test_a_long_log_is_told_by_its_first_and_last_lines() -> None:
    rows: list[Row] = [{"n": number, "t": f"line {number}"} for number in range(3 * MOST_LOG_LINES)]
    lines = log_lines([*rows, {"n": 1}, {"t": "TASK ERROR:\nmigration aborted"}])
    assert len(lines) == MOST_LOG_LINES
    assert (lines[0], lines[-1]) == ("line 0", "TASK ERROR: migration aborted")

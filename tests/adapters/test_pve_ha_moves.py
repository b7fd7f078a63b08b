# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves of HA guests against the played cluster in each release: what the adapter shows at each step, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent.adapters.pve.api import PveApi
from agent.core.cluster import GuestType, HaNodeAffinity, HaResourceAffinity, Snapshot
from agent.core.ha_moves import Course, Sight, partners, pulled_back, sight
from agent.core.migrations import Migration, MigrationState
from agent.ports import MigrationOrder
from tests.adapters.conftest import NODES, Make
from tests.core.records import record
from tests.pve_server.client import PveServer, cluster, ct, vm
from tests.pve_server.releases import NINE, RELEASES

pytestmark = pytest.mark.proxmoxer

ORDER = MigrationOrder(110, GuestType.QEMU, "pve1", "pve2", online=True, restart=False)
Play = Callable[..., PveApi]


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def play(server: PveServer, make: Make, release: str) -> Play:
    """A cluster of that release with VM 110 under the HA manager on pve1, and more guests and rules of the HA manager if wanted."""

    def build(*more: dict[str, Any], **ha: Any) -> PveApi:
        guests = [vm(110, "pve1", ha="started"), *more]
        server.load(cluster({name: {"version": release} for name in NODES}, guests, ha={"delay_s": 0.05} | ha))
        return make(f"{server.host}:{server.port}")

    return build


def at_home(release: str) -> dict[str, Any]:
    """The HA manager prefers pve1 for VM 110: a rule on PVE 9, a group on PVE 8."""
    if release == NINE:
        rule = {"rule": "home", "type": "node-affinity", "nodes": "pve1:2,pve2:1", "resources": "vm:110"}
        return {"rules": [rule], "resources": {"vm:110": {}}}
    return {"groups": [{"group": "home", "nodes": "pve1:2,pve2:1"}], "resources": {"vm:110": {"group": "home"}}}


def asked(state: MigrationState, seen: Snapshot, vmid: int = 110) -> Migration:
    """What the leader has written down of the move."""
    times = {"planned_at": seen.taken_at - 2, "asked_at": seen.taken_at - 1}
    return record(vmid, state, through_ha=True, ended_at=seen.taken_at if state is MigrationState.DONE else None, **times)


def told(seen: Snapshot, vmid: int = 110) -> Sight:
    return sight(asked(MigrationState.QUEUED, seen, vmid), seen, 1.0)


def request(server: PveServer, api: PveApi) -> str:
    upid = api.migrate(ORDER)
    server.wait_task(upid)
    return upid


def test_a_request_waits_is_taken_up_and_is_done_when_the_guest_is_there(server: PveServer, play: Play) -> None:
    api = play()
    server.ha(acts=False)
    assert api.task(request(server, api)).exit_status == "OK"
    assert told(api.look()).course is Course.WAITS, "its OK moves nobody"
    server.ha(acts=True)
    server.migration(duration_s=None)
    request(server, api)
    server.wait_event("lock", vmid=110)
    assert told(api.look()).course is Course.MOVES
    server.finish_migration(110)
    server.wait_event("ha-done", sid="vm:110", node="pve2")
    assert told(api.look()).course is Course.ARRIVED


def test_what_the_ha_manager_rejects_only_waits(server: PveServer, play: Play) -> None:
    """Its own log says why; a look shows nothing, until the agent gives up."""
    api = play(reject=["vm:110"])
    assert api.task(request(server, api)).exit_status == "OK"
    server.wait_event("ha-reject", sid="vm:110")
    seen = api.look()
    assert (told(seen).course, server.where(110)) == (Course.WAITS, "pve1")


def test_a_guest_in_error_is_told_with_what_to_do(server: PveServer, play: Play) -> None:
    api = play()
    server.ha_service("vm:110", state="error")
    assert "in error state" in (api.task(request(server, api)).exit_status or "")
    found = told(api.look())
    assert found.course is Course.IN_ERROR
    assert "disable it there, repair it, enable it again" in found.text


def test_node_affinity_is_seen_whether_as_rules_or_as_groups(play: Play, release: str) -> None:
    (rule,) = play(**at_home(release)).look().ha.node_affinity
    assert (rule.vmids, rule.nodes, rule.strict) == ((110,), (("pve1", 2), ("pve2", 1)), False)
    assert isinstance(rule, HaNodeAffinity)


def test_a_guest_that_a_priority_pulls_back_is_known_as_such(server: PveServer, play: Play, release: str) -> None:
    api = play(**at_home(release))
    request(server, api)
    server.wait_event("ha-done", sid="vm:110", node="pve2")
    arrived = asked(MigrationState.DONE, api.look())
    server.wait_event("ha-done", sid="vm:110", node="pve1")
    seen = api.look()
    assert [(one.vmid, to) for one, to in pulled_back([arrived], seen, seen.taken_at)] == [(110, "pve1")]


def test_a_guest_that_stays_is_not_pulled_back(server: PveServer, play: Play) -> None:
    api = play()
    request(server, api)
    server.wait_event("ha-done", sid="vm:110", node="pve2")
    seen = api.look()
    assert pulled_back([asked(MigrationState.DONE, seen)], seen, seen.taken_at) == []


def test_partners_move_along_on_9_and_on_8_there_are_none(server: PveServer, play: Play, release: str) -> None:
    rule = {"rule": "together", "type": "resource-affinity", "affinity": "positive", "resources": "vm:110,ct:112"}
    api = play(ct(112, "pve1", ha="started"), **({"rules": [rule]} if release == NINE else {}))
    before = api.look()
    assert partners(before.ha, 110) == (frozenset({112}) if release == NINE else frozenset())
    request(server, api)
    server.wait_event("ha-done", sid="vm:110", node="pve2")
    if release == NINE:
        server.wait_until(lambda: server.where(112) == "pve2" and server.guest(112)["status"] == "running")
        assert before.ha.resource_affinity == (HaResourceAffinity("together", (110, 112), together=True),)
        assert told(api.look(), 112).course is not Course.WAITS
    else:
        assert server.where(112) == "pve1"
        assert told(api.look(), 112).course is Course.WAITS

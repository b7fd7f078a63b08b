# SPDX-License-Identifier: GPL-3.0-or-later
"""`status`: what it says of a pause, and that it says what changes as soon as that has changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from pytest_mock import MockerFixture

from agent.ports import PermanentError, TemporaryError
from agent.sim.migrations import FailureKind
from agent.sim.ports import SimFiles, SimLocalFiles
from tests.commands.rig import Run, Stage, entry
from tests.commands.test_schemas import must_keep

CALM = entry(guests=[{"vmid": 101, "node": "pve1", "name": "web1", "used_memory_gib": 3}])


def first_told(on: Stage, mocker: MockerFixture, seconds: float, is_so: Callable[[dict[str, Any]], bool]) -> float | None:
    """When one of the nodes first wrote a status that says so, while that much time passes."""
    times: list[float] = []

    def write(_: SimLocalFiles, text: str) -> None:
        if is_so(json.loads(text)):
            times.append(on.world.now_s)

    patch = mocker.patch.object(SimLocalFiles, "write_status", autospec=True, side_effect=write)
    on.live(seconds)
    mocker.stop(patch)
    return min(times, default=None)


def said(on: Stage, text: str) -> float:
    """When that was last said in the journal."""
    return max(line.at_s for line in on.world.journal if text in line.record.text)


def test_a_pause_is_told_with_its_end_and_its_reason(stage: Callable[..., Stage], run: Run) -> None:
    on = stage(CALM)
    run("pause", "--for", "2h", "--reason", "network work")
    on.live(6)
    text, document = run("status").out, must_keep("status", run("status", "--json").out)
    assert "paused         nobody is moved (network work, until 2026-01-01 02:00 UTC)" in text
    assert document["paused"] == {"reason": "network work", "until": 1767232830.0}
    run("resume")
    on.live(6)
    assert json.loads(run("status", "--json").out)["paused"] is None
    assert "nobody is moved" not in run("status").out


def test_plan_and_explain_tell_of_a_pause(stage: Callable[..., Stage], run: Run) -> None:
    stage(CALM)
    run("pause", "--reason", "network work")
    assert "note: paused (network work): the agent moves nobody, not for maintenance either" in run("plan").err
    assert "paused (network work): the agent moves nobody" in run("explain", 101).out


def test_a_pause_without_an_end_says_what_ends_it(stage: Callable[..., Stage], run: Run) -> None:
    on = stage(CALM)
    run("pause", "--reason", "why")
    on.live(6)
    assert "nobody is moved, until proxlb-agent resume (why)" in run("status").out


def test_a_node_that_follows_tells_of_the_pause_too(stage: Callable[..., Stage], run: Run) -> None:
    on = stage(CALM)
    on.world.kill_agent("pve1")
    on.live(200)
    on.world.start_agent("pve1")
    run("pause")
    on.live(30)
    assert "following" in run("status").out
    assert "nobody is moved" in run("status").out


def test_a_pause_and_its_end_are_in_the_status_as_soon_as_they_are_seen(
    stage: Callable[..., Stage], run: Run, mocker: MockerFixture
) -> None:
    on = stage(CALM)
    run("pause")
    at_s = first_told(on, mocker, 10, lambda status: status["paused"] is not None)
    assert at_s == said(on, "paused (asked for by")
    run("resume")
    at_s = first_told(on, mocker, 10, lambda status: status["node"] == "pve1" and status["paused"] is None)
    assert at_s == said(on, "the pause is over")


def test_what_keeps_the_leader_from_looking_is_told_until_it_is_over(stage: Callable[..., Stage], run: Run) -> None:
    on = stage(CALM)
    assert must_keep("status", run("status", "--json").out)["problems"] == []
    on.world.cut_api("pve1")
    on.live(320)
    [told] = must_keep("status", run("status", "--json").out)["problems"]
    assert told.startswith("the cluster cannot be looked at: ")
    assert f"problem        {told}\n" in run("status").out
    on.world.cut_api("pve1", cut=False)
    on.live(30)
    assert must_keep("status", run("status", "--json").out)["problems"] == []
    assert "problem" not in run("status").out


def test_settings_with_a_mistake_are_told_on_every_node_until_they_are_mended(stage: Callable[..., Stage], run: Run) -> None:
    on = stage(CALM)
    on.simulation.settings.error = PermanentError("mode: must be one of off, observe, rules, full")
    on.live(40)
    told = "the settings are not taken: mode: must be one of off, observe, rules, full"
    for name in on.world.nodes:
        assert json.loads(on.world.nodes[name].status_text or "")["problems"] == [told]
    assert told in run("status").out
    on.simulation.settings.error = None
    on.live(40)
    assert must_keep("status", run("status", "--json").out)["problems"] == []


def test_a_node_that_leads_says_so_at_once(stage: Callable[..., Stage], mocker: MockerFixture) -> None:
    on = stage(CALM)
    on.world.kill_agent("pve1")
    at_s = first_told(on, mocker, 300, lambda status: status["stage"] == "leading")
    assert at_s == said(on, "leads the cluster")


def test_another_balancer_is_told_with_its_guests(stage: Callable[..., Stage], run: Run) -> None:
    on = stage(
        entry(guests=[{"vmid": 101 + i, "node": "pve1", "name": f"web{i}", "used_memory_gib": 3, "migration_s": 5} for i in range(4)])
    )
    on.live(30)
    assert must_keep("status", run("status", "--json").out)["other_balancers"] == []
    assert "balances, too" not in run("status").out
    for vmid in range(101, 105):
        on.world.migrate_by_person(vmid, "pve2", "lb@pve!lb")
        on.live(10)
    on.live(320)
    told = must_keep("status", run("status", "--json").out)["other_balancers"]
    assert [(one["user"], one["migrations"], one["vmids"]) for one in told] == [("lb@pve!lb", 4, [101, 102, 103, 104])]
    assert "lb@pve!lb (4 migrations within an hour, the last at" in run("status").out
    assert "load balancing leaves alone 101, 102, 103, 104" in run("status").out
    stays = must_keep("explain", run("explain", "101", "--json").out)["stays"]
    assert stays["reason"] == "other-balancer"
    assert stays["detail"].startswith("lb@pve!lb moved it 6 min ago")


def test_a_link_of_corosync_that_migrations_share_is_told_with_what_helps(stage: Callable[..., Stage], run: Run) -> None:
    on = stage(CALM)
    assert must_keep("status", run("status", "--json").out)["corosync_link"] is None
    conf = "nodelist {\n  node {\n    name: pve1\n    ring0_addr: 192.0.2.1\n  }\n}\n"
    on.world.put_file("corosync.conf", conf)
    on.live(15)
    told = must_keep("status", run("status", "--json").out)["corosync_link"]
    assert (told["link"], told["network"]) == (0, None)
    assert "network        migrations go over link 0 of corosync" in run("status").out
    assert "one at a time" in told["text"]
    on.world.put_file("datacenter.cfg", "migration: secure,network=10.9.0.0/24\n")
    on.live(15)
    assert must_keep("status", run("status", "--json").out)["corosync_link"] is None
    assert "corosync" not in run("status").out


def test_a_node_that_follows_tells_what_the_leader_has_under_way(stage: Callable[..., Stage], run: Run) -> None:
    guests = [{"vmid": 101, "node": "pve2", "name": "ct", "type": "lxc", "used_memory_gib": 1, "migration_s": 5}]
    guests += [{"vmid": vmid, "node": "pve2", "name": "vm", "used_memory_gib": 3, "migration_s": 60} for vmid in (201, 202)]
    on = stage(entry(guests=guests), {"balance": {"spread_percent": 0}, "drain": {"parallel_per_node": 3}})
    on.world.kill_agent("pve1")
    on.live(200)
    on.world.start_agent("pve1")
    on.live(20)
    nothing = must_keep("status", run("status", "--json").out)
    assert (nothing["stage"], nothing["maintenance"], nothing["migrations"], nothing["set_aside"]) == ("following", [], [], [])
    on.world.fail_next_migration(FailureKind.HALF_WAY, 101, "migration aborted (duration 00:00:04): no matching host key", 9)
    run("maintenance", "enter", "PVE2")
    on.live(45)
    told = must_keep("status", run("status", "--json").out)
    leader = next(node for node in on.world.nodes.values() if node.status_text and '"leading"' in node.status_text)
    leads = must_keep("status", leader.status_text or "")
    shared = ("maintenance", "migrations", "set_aside", "alarm", "paused")
    assert [told[key] for key in shared] == [leads[key] for key in shared]
    assert (told["maintenance"], [one["vmid"] for one in told["set_aside"]]) == (["pve2"], [101])
    assert {one["vmid"] for one in told["migrations"]} <= {201, 202} != set()
    text = run("status").out
    assert "following" in text
    assert re.search(r"^maintenance +pve2$", text, re.MULTILINE)
    assert "2 migrations under way" in text
    assert "guest 101" in text
    assert f"the leader's status (on {leads['node']}) tells what it decides" in text


def test_nodes_of_the_settings_are_told_as_the_cluster_writes_them(stage: Callable[..., Stage], run: Run) -> None:
    on = stage(CALM, {"nodes": {"maintenance": ["PVE2"]}})
    on.live(30)
    leads = must_keep("status", run("status", "--json").out)
    assert (leads["stage"], leads["maintenance"]) == ("leading", ["pve2"])
    assert "pve2  nodes.maintenance in the settings" in run("maintenance", "list").out
    on.world.kill_agent("pve1")
    on.live(200)
    on.world.start_agent("pve1")
    on.live(20)
    follows = must_keep("status", run("status", "--json").out)
    assert (follows["stage"], follows["maintenance"]) == ("following", ["pve2"])


def test_a_node_that_follows_tells_of_its_own_when_the_files_cannot_be_read(
    stage: Callable[..., Stage], run: Run, mocker: MockerFixture
) -> None:
    on = stage(CALM)
    on.world.kill_agent("pve1")
    on.live(200)
    on.world.start_agent("pve1")
    on.live(20)
    mocker.patch.object(SimFiles, "read", side_effect=TemporaryError("/etc/pve does not answer"))
    ran = run("status")
    assert (ran.status, "following" in ran.out) == (0, True)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on a simulated cluster with real agents: the cluster lives on while a command waits."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from agent import config_files, wiring
from agent.commands import draining
from agent.commands.status import STALE_S
from agent.core.cluster import GIB, Snapshot, Task
from agent.core.documents import LOADS_SCHEMA, Calibration, Footprint, HistoryFile, LearnedLoad, LoadsFile, parse, render
from agent.core.settings import Settings
from agent.core.shutdown import ShutdownFlag
from agent.sim.migrations import FailureKind
from agent.sim.ports import SimLocalFiles
from tests.commands.rig import Run, Stage, entry
from tests.commands.test_schemas import must_keep

OBSERVE = {"mode": "observe"}


def quiet() -> dict[str, object]:
    """A cluster.yaml on which nothing is to be done."""
    return entry(guests=[{"vmid": 101, "node": "pve1", "name": "web1", "used_memory_gib": 3}])


class TestReading:
    def test_the_plan_moves_nothing_and_says_why(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(settings=OBSERVE)
        ran = run("plan")
        assert ran.status == 0
        assert "overload" in ran.out
        assert "pve1" in ran.out
        assert "mode is observe" in ran.err
        assert on.world.post_record == []

    def test_pve_is_asked_about_each_guest_that_is_about_to_move(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(settings=OBSERVE)
        assert json.loads(run("plan", "--json").out)["moves"]
        for guest in on.world.guests.values():
            guest.local_disks = ("local-zfs:vm-disk-0",)
        on.world.api_requests.clear()
        planned = json.loads(run("plan", "--json").out)
        assert planned["moves"] == []
        assert {refusal["reason"] for refusal in planned["refused"] if refusal["vmid"] < 200} == {"local-disk"}
        assert on.world.api_requests["GET migrate"] == 4  # the one of pve2 is not about to move

    def test_a_guest_that_moved_lately_is_cooling(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(live_s=200.0)
        moved = on.world.post_record[0].order.vmid
        ran = run("explain", moved)
        assert "moved lately: moved" in ran.out
        assert "to pve3, spread: done" in ran.out
        assert "stays: cooldown" in ran.out

    def test_what_a_guest_took_before_counts_when_it_has_just_started(
        self, stage: Callable[..., Stage], run: Run, mocker: MockerFixture
    ) -> None:
        on = stage(quiet())
        seen = wiring.look(config_files.load_settings(None))
        just_started = tuple(replace(guest, uptime_s=5.0) for guest in seen.guests)
        mocker.patch.object(wiring, "look", return_value=replace(seen, guests=just_started))

        def cpu_of_pve1() -> float:
            found = json.loads(run("plan", "--json").out)["before"]["nodes"]["pve1"]["cpu_fraction"]
            assert isinstance(found, float)
            return found

        guessed = cpu_of_pve1()
        learned = LearnedLoad(101, seen.guests[0].cpu_cores, 1 << 28, seen.taken_at - 3600)
        (on.folder / "loads.json").write_text(render(LoadsFile(LOADS_SCHEMA, (learned,))))
        assert cpu_of_pve1() > guessed
        (on.folder / "loads.json").write_text("{broken")
        assert cpu_of_pve1() == guessed

    def test_a_quiet_cluster_has_nothing_to_do(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(quiet())
        ran = run("plan")
        assert (ran.status, ran.err) == (0, "")
        assert "nothing to do" in ran.out

    def test_the_scope_of_a_plan_can_be_a_guest_or_a_node(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(settings=OBSERVE)
        assert json.loads(run("plan", "--node", "PVE1", "--json").out)["moves"]
        assert json.loads(run("plan", "--guest", 101, "--json").out)["moves"]
        assert json.loads(run("plan", "--node", "pve2", "--json").out)["moves"] == []

    def test_explain_names_every_node(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(settings=OBSERVE)
        ran = run("explain", "vm:101")
        assert ran.status == 0
        assert "same-node: the guest is there already" in ran.out
        assert "better than here" in ran.out

    def test_status_is_what_the_agent_says(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(live_s=200.0)
        ran = run("status")
        assert ran.status == 0
        assert "pve1, epoch 2, lease for" in ran.out
        assert "last decision" in ran.out

    def test_an_agent_to_which_nothing_happens_is_still_heard_of(self, stage: Callable[..., Stage], mocker: MockerFixture) -> None:
        on = stage(quiet(), live_s=200.0)
        written = mocker.patch.object(SimLocalFiles, "write_status", autospec=True)
        for _ in range(4):
            written.reset_mock()
            on.live(STALE_S - 10)
            assert {json.loads(call.args[1])["node"] for call in written.call_args_list} == set(on.world.nodes)

    def test_the_history_tells_past_moves(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(live_s=200.0)
        ran = run("history")
        assert ran.status == 0
        assert f"vm:{on.world.post_record[0].order.vmid}" in ran.out
        assert "done" in ran.out

    def test_cluster_and_guests(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(settings=OBSERVE)
        ran = run("cluster")
        assert ran.status == 0
        assert "3 nodes, PVE 9.0.10" in ran.out
        assert ran.out.count("takes guests") == 3
        ran = run("guests", "--node", "pve2")
        assert "vm:201" in ran.out
        assert "vm:101" not in ran.out

    def test_the_cluster_tells_of_full_storages_and_of_pressure_where_it_is_known(self, stage: Callable[..., Stage], run: Run) -> None:
        uses = [
            {"name": "local", "nodes": ["pve1"], "used_gib": 20, "total_gib": 100},
            {"name": "ceph", "nodes": ["pve1", "pve2", "pve3"], "used_gib": 950, "total_gib": 1000},
        ]
        busy = [{"vmid": vmid, "node": "pve2", "name": "", "cores": 16, "used_cores": 16, "used_memory_gib": 1} for vmid in (202, 203)]
        stage(entry(storage_use=uses, guests=busy), settings=OBSERVE)
        text = run("cluster").out
        assert "storages over 90 %:\n  ceph on pve1, pve2, pve3: 95 % of 1000.0 GiB" in text
        assert "local" not in text
        assert "PRESSURE" in text
        assert "50 %" in next(line for line in text.splitlines() if line.startswith("pve2"))
        document = json.loads(run("cluster", "--json").out)
        assert [(use["name"], use["used_bytes"] / use["total_bytes"]) for use in document["storages"]] == [("ceph", 0.95), ("local", 0.2)]
        assert {node["name"]: node["pressure_fraction"] for node in document["nodes"]}["pve2"] == pytest.approx(0.5, abs=0.02)

    def test_a_snapshot_gives_the_same_plan_elsewhere(self, stage: Callable[..., Stage], run: Run, tmp_path: Path) -> None:
        stage(settings=OBSERVE)
        there = json.loads(run("plan", "--json").out)
        file = tmp_path / "snapshot.json"
        ran = run("snapshot", file)
        assert (ran.status, ran.out) == (0, "")
        assert run("snapshot", "-").out == file.read_text()
        again = json.loads(run("plan", "--snapshot", file, "--json").out)
        assert [move["vmid"] for move in again["moves"]] == [move["vmid"] for move in there["moves"]]


class TestBalance:
    def test_it_shows_asks_hands_over_and_follows(self, stage: Callable[..., Stage], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        on = stage(settings={"triggers": {"warmup_s": 3600, "first_observe_s": 0}})
        monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
        ran = run("balance", "--force")
        assert ran.status == 0
        assert "Carry this out?" in ran.err
        assert ": done" in ran.out
        assert "2 guests to go (0 of 2 guests, 0.0 of 30.0 GiB)\n1 guest to go (1 of 2 guests, 15.0 of 30.0 GiB, about " in ran.err
        assert "pve1" in {post.order.source for post in on.world.post_record}

    def test_no_means_no(self, stage: Callable[..., Stage], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        on = stage(settings={"triggers": {"warmup_s": 3600, "first_observe_s": 0}})
        monkeypatch.setattr(sys, "stdin", Terminal("\n"))
        ran = run("balance")
        assert ran.status == 0
        assert ran.out.rstrip().endswith("nothing was asked for")
        on.live(120)
        assert on.world.post_record == []

    def test_without_a_terminal_it_wants_yes(self, stage: Callable[..., Stage], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        stage()
        monkeypatch.setattr(sys, "stdin", Terminal("y\n", is_terminal=False))
        ran = run("balance")
        assert ran.status == 2
        assert "--yes" in ran.complaint

    def test_a_failed_migration_is_a_failure(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(settings={"triggers": {"warmup_s": 3600, "first_observe_s": 0}})
        on.world.fail_next_migration(FailureKind.ABORTED, times=20)
        ran = run("balance", "--yes", "--force")
        assert ran.status == 1
        assert "failed" in ran.out

    def test_nothing_to_do_asks_for_nothing(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(quiet())
        assert run("balance", "--yes").status == 0
        assert not on.world.nodes["pve1"].requests

    def test_nobody_who_answers_is_waited_for_but_not_for_ever(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(settings={"triggers": {"warmup_s": 3600, "first_observe_s": 0}})
        for node in on.world.nodes:
            on.world.kill_agent(node)
        ran = run("balance", "--yes", "--force")
        assert ran.status == 1
        assert "no leader has answered for 120 s" in ran.complaint

    def test_mode_observe_carries_out_nothing(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(settings=OBSERVE)
        ran = run("balance", "--yes")
        assert ran.status == 1
        assert "mode is observe" in ran.complaint


class TestPause:
    def test_nobody_is_moved_until_it_is_over(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(quiet())
        ran = run("pause", "--reason", "network work")
        assert ran.status == 0
        assert ran.out.startswith("paused (network work), until proxlb-agent resume: ")
        run("maintenance", "enter", "pve1")
        on.live(120)
        assert on.world.post_record == []
        assert run("resume").out == "the pause is over\n"
        on.live(120)
        assert on.world.guests[101].node != "pve1"
        assert run("resume").out == "there is no pause\n"

    def test_it_can_end_by_itself(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(quiet())
        assert "until 2026-01-01 02:0" in run("pause", "--for", "2h").out
        on.live(7000)
        assert "proxlb/paused" in on.world.main.files
        on.live(300)
        assert "proxlb/paused" not in on.world.main.files


class TestMaintenance:
    def test_enter_wait_and_leave(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(quiet())
        ran = run("maintenance", "enter", "PVE1", "--wait", "--reason", "a new\nkernel")
        assert ran.status == 0
        assert ran.out.splitlines() == ["pve1 is in maintenance now: a new kernel", "pve1 is empty"]
        assert on.world.main.files["proxlb/maintenance/pve1"] == "a new kernel\n"
        assert on.world.guests[101].node != "pve1"
        assert "proxlb-agent maintenance enter  a new kernel" in run("maintenance", "list").out
        listed = {"node": "pve1", "said_by": "proxlb-agent maintenance enter", "reason": "a new kernel"}
        assert json.loads(run("maintenance", "list", "--json").out) == [listed]
        on.live(60)
        ran = run("maintenance", "leave", "pve1", "--wait")
        assert ran.status == 0
        assert ran.out.splitlines() == ["pve1 is no longer in maintenance", "guest 101, which left pve1, is home again"]
        assert on.world.guests[101].node == "pve1"
        assert run("maintenance", "list").out == "no node is in maintenance\n"
        assert json.loads(run("maintenance", "list", "--json").out) == []

    def test_a_maintenance_for_a_while_ends_by_itself(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(quiet())
        ran = run("maintenance", "enter", "pve1", "--for", "10m", "--wait")
        assert ran.status == 0
        assert "UTC" in ran.out.splitlines()[0]
        assert ", until " in run("maintenance", "list").out
        on.live(800)
        assert "proxlb/maintenance/pve1" not in on.world.main.files
        assert on.world.guests[101].node == "pve1"

    @pytest.mark.parametrize("time", ["2", "0h", "40d", "soon", "-1h"])
    def test_a_time_that_is_none_is_wrong_use(self, stage: Callable[..., Stage], run: Run, time: str) -> None:
        on = stage(quiet())
        ran = run("maintenance", "enter", "pve1", f"--for={time}")
        assert ran.status == 2
        assert "write it as 2h" in ran.err
        assert "proxlb/maintenance/pve1" not in on.world.main.files

    @pytest.mark.parametrize("is_shown_on_the_target", [False, True])
    def test_a_node_is_not_empty_before_the_last_migration_is_over(
        self, stage: Callable[..., Stage], run: Run, monkeypatch: pytest.MonkeyPatch, is_shown_on_the_target: bool
    ) -> None:
        """A container is stopped while it moves; a VM is on its target for PVE while the source still has work to do."""
        on = stage(quiet())
        real = wiring.look
        over_s = on.world.now_s + 120

        def look(settings: Settings) -> Snapshot:
            seen = real(settings)
            if on.world.now_s >= over_s:
                return seen
            task = Task("UPID:1", "pve1", "vzmigrate", "101", "root@pam", on.world.now_s - 10)
            where = "pve2" if is_shown_on_the_target else "pve1"
            guests = tuple(replace(guest, node=where, status="stopped") for guest in seen.guests)
            return replace(seen, guests=guests, tasks=(*seen.tasks, task))

        monkeypatch.setattr(wiring, "look", look)
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert ran.status == 0
        assert "the last migrations off pve1 are not over yet" in ran.err
        assert on.world.now_s >= over_s

    def test_who_cannot_leave_is_named(self, stage: Callable[..., Stage], run: Run) -> None:
        document = quiet()
        document["guests"] = [
            {"vmid": 101, "node": "pve1", "used_memory_gib": 3},
            {"vmid": 102, "node": "pve1", "used_memory_gib": 3, "tags": ["plb_ignore"]},
        ]
        on = stage(document)
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert ran.status == 1
        assert ran.out.splitlines()[-2:] == [
            "vm:102 vm102 stays: a plb_ignore tag or guests.ignore keeps the guest where it is (plb_ignore)",
            "  what helps: take its plb_ignore tag off, or its number out of guests.ignore; or move it by hand",
        ]
        assert "pve1 is not empty: 1 guest still there" in ran.err.splitlines()[-1]
        assert on.world.guests[101].node != "pve1"
        assert "proxlb/maintenance/pve1" in on.world.main.files

    def test_when_nobody_works_it_does_not_wait_for_ever(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(quiet())
        for node in on.world.nodes:
            on.world.kill_agent(node)
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert ran.status == 1
        assert "nothing has moved for 5 minutes" in ran.err.splitlines()[-1]
        assert on.world.now_s < 30 + draining.STALL_S + 60

    def test_asked_for_again_who_stayed_is_looked_at_anew(self, stage: Callable[..., Stage], run: Run) -> None:
        """By an admin who has removed what kept the guest, where nothing else tells the agent."""
        document = quiet()
        document["guests"] = [{"vmid": 101, "node": "pve1", "used_memory_gib": 3, "local_devices": ["hostpci0"]}]
        on = stage(document)
        assert run("maintenance", "enter", "pve1", "--wait").status == 1
        on.world.guests[101] = replace(on.world.guests[101], local_devices=())
        began_s = on.world.now_s
        ran = run("maintenance", "enter", "pve1", "--wait")
        assert (ran.status, ran.out.splitlines()) == (0, ["pve1 is in maintenance already: asked for by root", "pve1 is empty"])
        assert on.world.now_s - began_s < 60

    def test_the_flag_of_a_node_that_shuts_down_is_its_own(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(quiet())
        on.world.set_flag("pve2", ShutdownFlag("pve2-boot-1").text)
        assert run("maintenance", "enter", "pve2").out.startswith("pve2 is in maintenance already: shuts down")
        assert on.world.main.files["proxlb/maintenance/pve2"] == ShutdownFlag("pve2-boot-1").text

    def test_twice_is_once(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(quiet())
        run("maintenance", "enter", "pve2", "--reason", "one")
        assert run("maintenance", "enter", "pve2").out == "pve2 is in maintenance already: one\n"
        assert run("maintenance", "enter", "pve2", "--reason", "two").out == "pve2 is in maintenance now: two\n"
        run("maintenance", "leave", "pve2")
        ran = run("maintenance", "leave", "pve2")
        assert (ran.status, ran.out) == (0, "pve2 is not in maintenance\n")

    @pytest.mark.parametrize("is_off", [False, True], ids=["all others in maintenance", "one of them is off"])
    def test_the_last_usable_node_is_kept(self, stage: Callable[..., Stage], run: Run, is_off: bool) -> None:
        on = stage(quiet())
        assert run("maintenance", "enter", "pve2").status == 0
        if is_off:
            on.world.power_off_node("pve3")
        else:
            assert run("maintenance", "enter", "pve3").status == 0
        ran = run("maintenance", "enter", "pve1")
        assert ran.status == 1
        assert "last usable node" in ran.complaint
        assert "proxlb/maintenance/pve1" not in on.world.main.files

    def test_an_unknown_node_is_answered_with_the_known_ones(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(quiet())
        ran = run("maintenance", "enter", "pve9")
        assert ran.status == 2
        assert ran.complaint == "there is no node pve9; the nodes are: pve1, pve2, pve3"
        assert not any("maintenance" in path for path in on.world.main.files)

    def test_another_cause_is_named_when_leaving(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(quiet())
        on.world.set_local_flag("pve2", "disk swap")
        on.live(30)
        assert "/etc/proxlb-agent/maintenance on the node  disk swap" in run("maintenance", "list").out
        ran = run("maintenance", "leave", "pve2")
        assert ran.status == 1
        assert "still in maintenance: /etc/proxlb-agent/maintenance" in ran.complaint

    def test_without_quorum_nothing_is_written(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(quiet())
        on.world.cut_node("pve1")
        ran = run("maintenance", "enter", "pve2")
        assert ran.status == 1
        assert "quorate" in ran.complaint


class Terminal:
    """Standard input with somebody at it."""

    def __init__(self, text: str, is_terminal: bool = True) -> None:
        self._text, self._is_terminal = text, is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def readline(self) -> str:
        return self._text


def test_a_plan_takes_twice_as_long_where_migrations_share_a_link_of_corosync(stage: Callable[..., Stage], run: Run) -> None:
    guests = [{"vmid": 101 + i, "node": "pve1", "name": f"web{i}", "used_memory_gib": 8, "migration_s": 600} for i in range(2)]
    on = stage(entry(guests=guests))
    on.world.set_flag("pve1", "bios")
    on.live(10)
    before = json.loads(run("plan", "--json").out)["expected_s"]
    conf = "nodelist {\n  node {\n    name: pve1\n    ring0_addr: 192.0.2.1\n  }\n}\n"
    on.world.put_file("corosync.conf", conf)
    assert json.loads(run("plan", "--json").out)["expected_s"] == pytest.approx(2 * before)


def test_explain_tells_what_a_guest_took_after_its_last_move_and_that_it_counts(stage: Callable[..., Stage], run: Run) -> None:
    on = stage(quiet(), settings=OBSERVE)
    on.live(10)
    assert json.loads(run("explain", "101", "--json").out)["after_last_move"] is None
    history = parse(HistoryFile, on.world.main.files["proxlb/history.json"])
    took = [Footprint(cores, gib * GIB, None, None, None, None) for cores, gib in ((0.5, 3), (1.5, 3.9))]
    now = 1767225600.0 + on.world.now_s
    measured = Calibration("1-1", 101, "pve2", "pve1", now - 600, took[0], took[1], now - 300)
    on.world.put_file("proxlb/history.json", render(replace(history, calibrations=(measured,))))
    told = must_keep("explain", run("explain", "101", "--json").out)["after_last_move"]
    assert told == {"cpu_cores": 1.5, "memory_bytes": int(3.9 * GIB)}
    words = "after its last move it took: 1.5 cores and 3.9 GiB; where it must fit, the larger of that and of what it takes now counts"
    assert words in run("explain", "101").out

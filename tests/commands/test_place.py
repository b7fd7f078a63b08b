# SPDX-License-Identifier: GPL-3.0-or-later
"""`place`, and what `plan`, `explain` and `status` tell beyond moves: read by people, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agent.core.snapshot_file import to_text
from tests.commands.rig import Run, Stage, entry
from tests.commands.test_schemas import must_keep
from tests.core.clusters import cluster, node, task, vm

SIZE = ("--memory-gib", "8", "--cores", "2")
OBSERVE = {"mode": "observe"}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """Write a snapshot; returns the options with which a command looks at it."""
    config, file = tmp_path / "config.yaml", tmp_path / "snapshot.json"
    config.write_text("{}\n")

    def write(*things: Any, **more: Any) -> tuple[str, ...]:
        file.write_text(to_text(cluster(*things, **more)))
        return "--config", str(config), "--snapshot", str(file)

    return write


THREE = node("pve1", 64, 16), node("pve2", 64, 16), node("pve3", 64, 16)


class TestPlace:
    def test_the_best_node_is_named_first_and_every_node_told(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(settings=OBSERVE)
        ran = run("place", *SIZE)
        assert (ran.status, ran.err) == (0, "")
        first, *rest = ran.out.splitlines()
        assert first == "best on pve3: a VM with 8.0 GiB and 2 cores, which counts as 0.5 cores and 5.6 GiB until it has been measured"
        assert [line.split()[0] for line in rest if line.startswith("pve")] == ["pve1", "pve2", "pve3"]
        assert "the best node" in ran.out

    def test_what_it_prints(self, saved: Callable[..., tuple[str, ...]], run: Run) -> None:
        guests = vm(101, "pve1", 55, 1), vm(102, "pve2", 20, 1), vm(103, "pve3", 10, 1, "plb_anti_affinity_db")
        ran = run("place", *saved(*THREE, *guests), *SIZE, "--tag", "plb_anti_affinity_db")
        assert ran.status == 0
        assert ran.out == (
            "best on pve2: a VM with 8.0 GiB and 2 cores, which counts as 0.5 cores and 5.6 GiB until it has been measured\n"
            "\n"
            "NODE    CPU  MEMORY  OVERLOAD    NET  AS A TARGET\n"
            "pve1      -       -         -      -  no-memory: the guest and all that is on its way do not fit into the node's memory"
            " (62.6 of 60.0 GiB)\n"
            "pve2  -0.74    0.50      0.00  -0.24  the best node\n"
            "pve3      -       -         -      -  anti-affinity: a guest that a tag, a pool or an HA rule keeps apart from this one "
            "is on the node (guest 103 is there; plb_anti_affinity_db)\n"
            "\n"
            "STATISTIC  WEIGHT   NOW  ON pve2  WHAT IT IS, IN POINTS\n"
            "cpu          0.50   0.0      1.5  standard deviation of the nodes' used share of cpu\n"
            "memory       0.50  30.1     29.2  standard deviation of the nodes' used share of memory\n"
            "overload     1.00   0.7      0.7  mean over the nodes of what stands above a threshold, weighted as above\n"
            "goal            -  15.7     16.0  their sum, each times its weight; a move must take off more than it costs\n"
        )

    def test_no_place_is_status_one(self, saved: Callable[..., tuple[str, ...]], run: Run) -> None:
        where = saved(*THREE)
        ran = run("place", *where, "--memory-gib", "100", "--cores", "2")
        assert ran.status == 1
        assert ran.out.startswith("no node can take it: a VM with 100.0 GiB")
        told = run("place", *where, "--memory-gib", "100", "--cores", "2", "--json")
        assert told.status == 1
        assert json.loads(told.out)["node"] is None

    def test_as_json(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(settings=OBSERVE)
        told = must_keep("place", run("place", *SIZE, "--type", "lxc", "--tag", "plb_pin_pve2", "--tag", "plb_pin_pve9", "--json").out)
        assert (told["node"], told["type"], told["tags"]) == ("pve2", "lxc", ["plb_pin_pve2", "plb_pin_pve9"])
        assert {target["node"]: (target["refusal"] or {}).get("reason") for target in told["targets"]} == {
            "pve1": "pinned",
            "pve2": None,
            "pve3": "pinned",
        }
        assert [conflict["rule"] for conflict in told["conflicts"]] == ["plb_pin_pve9"]

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--memory-gib", "-1", "--cores", "2"),
            ("--memory-gib", "0", "--cores", "2"),
            ("--memory-gib", "nan", "--cores", "2"),
            ("--memory-gib", "1e9", "--cores", "2"),
            ("--memory-gib", "much", "--cores", "2"),
            ("--memory-gib", "8", "--cores", "0"),
            ("--memory-gib", "8", "--cores", "inf"),
            ("--memory-gib", "8"),
            ("--cores", "2"),
            (*SIZE, "--type", "docker"),
            (*SIZE, "--tag", ""),
            (*SIZE, "--tag", "a;b"),
            (*SIZE, "web1"),
        ],
        ids=" ".join,
    )
    def test_wrong_use(self, stage: Callable[..., Stage], run: Run, arguments: tuple[str, ...]) -> None:
        stage(settings=OBSERVE)
        ran = run("place", *arguments)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err


class TestPlan:
    def test_goal_bound_and_survival_are_told(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(settings=OBSERVE)
        ran = run("plan")
        assert "; no set of moves gets below " in ran.out
        assert "STATISTIC  WEIGHT" in ran.out
        assert "N+1" in ran.out
        assert "the leader acts on an overload once it has lasted for 180 s (cpu) or 60 s (memory)" in ran.err
        told = must_keep("plan", run("plan", "--json").out)
        after = sum(row["weight"] * row["after"] for row in told["goal"] if row["name"] != "overload")
        assert after == pytest.approx(told["after"]["imbalance"], abs=1e-5)
        assert told["bound"]["imbalance"] <= told["after"]["imbalance"]
        assert told["survival"]["before"]["nodes"].keys() == {"pve1", "pve2"}
        assert told["survival"]["after"]["nodes"].keys() == {"pve1", "pve2", "pve3"}

    def test_which_nodes_can_be_lost_before_and_after(self, saved: Callable[..., tuple[str, ...]], run: Run) -> None:
        guests = [vm(100 + i, "pve1", 11, 0.5) for i in range(5)]
        out = run("plan", *saved(*THREE, *guests, vm(110, "pve2", 2, 0.5, "plb_pin_pve2"))).out
        assert "N+1 now: can be lost: pve1; of the others no place was found for all guests\n" in out
        assert "  pve2: 1 of 1 guest, vm:110 guest110 (pinned: to pve2)" in out
        assert "N+1 after these moves: can be lost: " in out

    def test_moves_that_leave_no_room_for_a_large_guest_of_a_lost_node_are_told_first(
        self, saved: Callable[..., tuple[str, ...]], run: Run
    ) -> None:
        nodes = [node(f"pve{i}", 64, 32) for i in (1, 2, 3)]
        many = [vm(110 + i, "pve2" if i < 26 else "pve1", 2, 0.1) for i in range(36)]
        out = run("plan", *saved(*nodes, vm(101, "pve1", 30, 0.5, "plb_ignore"), *many)).out
        worse, now, then = out.splitlines()[-4:-1]
        assert worse == "N+1 gets worse by these moves: pve1 can be lost now, and not any more then"
        assert now == "N+1 now: any one node can be lost, the others have a place for all its guests"
        assert then == "N+1 after these moves: can be lost: pve2, pve3; of the others no place was found for all guests"

    def test_a_quiet_cluster_can_lose_any_node(self, saved: Callable[..., tuple[str, ...]], run: Run) -> None:
        ran = run("plan", *saved(*THREE, vm(101, "pve1", 2, 0.5)))
        assert ran.out.endswith("N+1: any one node can be lost, the others have a place for all its guests\n")
        assert ran.err == ""

    def test_guests_that_nobody_sees_are_not_counted_and_that_is_said(self, saved: Callable[..., tuple[str, ...]], run: Run) -> None:
        assert run("plan", *saved(*THREE, vm(101, "pve1", 2, 0.5), unseen=(300, 301))).out.endswith(
            "N+1: any one node can be lost, the others have a place for all its guests\n  2 guests not shown to the token are not counted\n"
        )

    def test_guests_that_stay_for_the_same_reason_stand_together(self, saved: Callable[..., tuple[str, ...]], run: Run) -> None:
        nodes = [node(f"pve{i}", 64, 16) for i in range(1, 7)]
        pinned = [vm(100 + i, "pve1", 2, 0.2, "plb_pin_pve1") for i in range(10)]
        out = run("plan", *saved(*nodes, *pinned, vm(120, "pve1", 2, 0.2, "plb_ignore"), drain=["pve1"])).out
        assert (
            "guests that stay:\n"
            "  ignored: a plb_ignore tag or guests.ignore keeps the guest where it is\n"
            "    vm:120 guest120: plb_ignore\n"
            "  no-target: no node can take the guest\n"
            "    vm:100 guest100, vm:101 guest101, vm:102 guest102, vm:103 guest103, vm:104 guest104, vm:105 guest105, vm:106 guest106, "
            "vm:107 guest107 and 2 more: pinned on pve2, pve3, pve4 and 2 more (plb_pin_pve1)\n"
        ) in out


class TestExplain:
    def test_a_guest_of_a_snapshot_in_a_file(self, saved: Callable[..., tuple[str, ...]], run: Run) -> None:
        guests = vm(101, "pve1", 55, 1, "plb_pin_pve2"), vm(102, "pve2", 20, 1)
        ran = run("explain", 101, *saved(*THREE, *guests))
        assert ran.status == 0
        assert "stays: no node can take it, although a rule is broken: it is pinned to pve2\n" in ran.out
        assert "only on: pve2" in ran.out

    def test_moves_of_others_are_told(self, saved: Callable[..., tuple[str, ...]], run: Run) -> None:
        moved = replace(task("qmigrate", "pve3", 101, ended_s_ago=60.0), user="admin@pam")
        other = task("qmigrate", "pve3", 102, ended_s_ago=60.0)
        where = saved(*THREE, vm(101, "pve1"), vm(102, "pve1"), moved, other)
        told = must_keep("explain", run("explain", 101, *where, "--json").out)
        assert told["moves"] == []
        assert [(entry["node"], entry["user"], entry["status"]) for entry in told["others_moves"]] == [("pve3", "admin@pam", "OK")]
        assert told["stays"]["reason"] == "cooldown"
        out = run("explain", 101, *where).out
        assert "last moves by others:\n" in out
        assert "  from pve3, by admin@pam: OK\n" in out + "\n"
        assert "moved lately: moved 1 min ago, may move again in 59 min\n" in out

    def test_moves_of_the_agent_are_not_told_twice(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(live_s=200.0)
        told = must_keep("explain", run("explain", on.world.post_record[0].order.vmid, "--json").out)
        assert len(told["moves"]) == 1
        assert told["others_moves"] == []

    def test_a_guest_that_is_not_there(self, saved: Callable[..., tuple[str, ...]], run: Run) -> None:
        ran = run("explain", 999, *saved(*THREE))
        assert (ran.status, ran.out) == (2, "")
        assert ran.complaint == "there is no guest 999 in the cluster; proxlb-agent guests lists them"


class TestStatus:
    def test_the_leader_tells_whether_a_node_can_be_lost(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(entry(guests=[{"vmid": 101, "node": "pve1", "used_memory_gib": 3}]), live_s=60.0)
        told = must_keep("status", run("status", "--json").out)
        assert told["survival"]["survives"] is True
        assert "N+1: any one node can be lost (as of " in run("status").out

    def test_and_whose_guests_have_no_place(self, stage: Callable[..., Stage], run: Run) -> None:
        stage(entry(guests=[{"vmid": 101, "node": "pve1", "used_memory_gib": 3, "tags": ["plb_pin_pve1"]}]), live_s=60.0)
        assert "  pve1: 1 of 1 guest: 101 (pinned)" in run("status").out

    def test_it_is_looked_at_no_more_often_than_once_a_minute(self, stage: Callable[..., Stage], run: Run) -> None:
        on = stage(settings={"triggers": {"warmup_s": 0, "first_observe_s": 0, "reconcile_s": 30}}, live_s=40.0)
        seen = set()
        for _ in range(70):
            on.live(4)
            seen.add((json.loads(run("status", "--json").out)["survival"] or {}).get("at"))
        times = sorted(seen - {None})  # None until the first moves are over
        assert len(times) >= 3
        assert all(later - earlier >= 60 for earlier, later in pairwise(times))

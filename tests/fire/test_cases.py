# SPDX-License-Identifier: GPL-3.0-or-later
"""What befalls a cluster at large while pve3 is to be emptied. Each case says what must be, and what must not.

In every one of them the judge watches: no request without the lock, no two nodes' requests at a time, no other node's lock removed, no
guest moved twice; and in the end pve3 is empty and somebody leads.
"""

from __future__ import annotations

import json

import pytest

from agent.daemon.outside import HISTORY_PATH, LEADER_PATH
from agent.sim.world import World
from agent.simulation import _Process
from tests.fire.blaze import Blaze, Point, hangs
from tests.fire.clusters import DRAINED, FLAG_S, drain, leader_text, settings, world
from tests.fire.test_points import undone

CUT_S = 25.0  # the first batch is under way
USUAL_S = 60.0  # the drain is done by then when nothing happens


def leads(blaze: Blaze, node: str) -> list[float]:
    """When the node began to lead."""
    return [line.at_s for line in blaze.world.journal if line.node == node and "leads the cluster" in line.record.text]


def said(blaze: Blaze, text: str, node: str | None = None) -> list[float]:
    """When a line with that text was written."""
    return [line.at_s for line in blaze.world.journal if text in line.record.text and node in (None, line.node)]


def empty_s(blaze: Blaze) -> float:
    """When pve3 was found empty."""
    return said(blaze, "pve3 is empty")[0]


def sent_between(blaze: Blaze, from_s: float, to_s: float) -> list[tuple[float, str]]:
    return [(sent.at_s, sent.sender) for sent in blaze.judge.requests if from_s < sent.at_s < to_s]


def lived(blaze: Blaze, until_s: float) -> Blaze:
    """Let it live until then, and hold it to what holds in every case."""
    blaze.run(until_s)
    journal = "\n".join(f"{line.at_s:8.1f} {line.node} {line.record.text}" for line in blaze.world.journal)
    assert [*blaze.judge.problems(), *blaze.witness.problems, *blaze.witness.bugs(), *undone(blaze)] == [], journal
    assert list(blaze.judge.let_off()) == [], journal
    return blaze


def led_by_pve2() -> Blaze:
    """The drain led by pve2, so that the leader, a follower (pve3) and the node that judges ages (pve1) are three nodes."""
    blaze = drain()
    blaze.world.stop_agent("pve1")
    blaze.at(10.0, lambda: blaze.world.start_agent("pve1"))
    return blaze


@pytest.mark.parametrize(("for_s", "epochs"), [(30.0, 1), (100.0, 2)])
def test_nobody_is_quorate(for_s: float, epochs: int) -> None:
    """Must: wait, say so, go on where it stood; with a new epoch once the lease has run out. Must not: a request in between."""
    blaze = drain()
    blaze.at(CUT_S, lambda: [blaze.world.cut_node(node) for node in ("pve1", "pve2", "pve3")])
    blaze.at(CUT_S + for_s, blaze.world.heal)
    lived(blaze, 400.0)
    assert sent_between(blaze, CUT_S, CUT_S + for_s) == []
    assert len(said(blaze, "waiting: this node is not in the quorate part")) == 3
    assert len(leads(blaze, "pve1")) == epochs
    assert empty_s(blaze) < CUT_S + for_s + USUAL_S


@pytest.mark.parametrize("node", ["pve1", "pve2", "pve3"], ids=["the leader", "a target", "the source"])
@pytest.mark.parametrize("for_s", [3.0, 12.0])
def test_a_node_flaps(node: str, for_s: float) -> None:
    """Must: the same leader all along, as no gap outlasts its lease; the drain done soon after. Must not: a guest sent twice."""
    blaze = drain()
    for number in range(10):
        blaze.at(CUT_S + 20 * number, lambda: blaze.world.cut_node(node))
        blaze.at(CUT_S + 20 * number + for_s, blaze.world.heal)
    lived(blaze, 400.0)
    assert leads(blaze, "pve1") == [0.0]
    assert [leads(blaze, other) for other in ("pve2", "pve3")] == [[], []]
    assert empty_s(blaze) < CUT_S + 200 + 2 * USUAL_S


def test_a_leader_that_is_cut_off_for_long() -> None:
    """Must: another one leads after the lock's 121 s and finishes; the first comes back and follows. Must not: the first take it again."""
    blaze = drain()
    blaze.at(CUT_S, lambda: blaze.world.cut_node("pve1"))
    blaze.at(500.0, blaze.world.heal)
    lived(blaze, 700.0)
    assert leads(blaze, "pve1") == [0.0]
    assert [111 < at_s - CUT_S < 135 for at_s in leads(blaze, "pve2") + leads(blaze, "pve3")] == [True]
    assert said(blaze, "stopped leading", "pve1") == [pytest.approx(80.0, abs=1)]
    assert said(blaze, "follows", "pve1")[-1] >= 500.0
    assert [sender for _, sender in sent_between(blaze, CUT_S, 700.0) if sender == "pve1"] == []


@pytest.mark.parametrize("node", ["pve1", "pve2", "pve3"], ids=["the lowest node", "the leader", "a follower"])
@pytest.mark.parametrize("what", ["restarts", "hangs"])
@pytest.mark.parametrize("for_s", [5.0, 45.0])
def test_pmxcfs_of_one_node(node: str, what: str, for_s: float) -> None:
    """Must: the same leader, the drain done soon after. Must not: another one take the lead within the lease."""
    blaze = led_by_pve2()
    act = blaze.world.restart_pmxcfs if what == "restarts" else blaze.world.hang_pmxcfs
    blaze.at(CUT_S, lambda: act(node, for_s))
    lived(blaze, 300.0)
    assert [leads(blaze, name) for name in ("pve1", "pve2", "pve3")] == [[], [0.0], []]
    assert empty_s(blaze) < USUAL_S + (for_s + 20 if node == "pve2" else 0)


@pytest.mark.parametrize("node", ["pve1", "pve2", "pve3"], ids=["the lowest node", "the leader", "a follower"])
@pytest.mark.parametrize("by_s", [3600.0, -3600.0, 90.0, -90.0])
def test_a_clock_steps(node: str, by_s: float) -> None:
    """Must: nothing change. Must not: the lock be dropped early, or a renewal be refused for the old time in it."""
    blaze = led_by_pve2()
    blaze.at(CUT_S, lambda: blaze.world.step_wall_clock(node, by_s))
    lived(blaze, 300.0)
    assert [leads(blaze, name) for name in ("pve1", "pve2", "pve3")] == [[], [0.0], []]
    assert empty_s(blaze) < USUAL_S


@pytest.mark.parametrize("node", ["pve1", "pve2", "pve3"], ids=["the lowest node", "the dead one", "a follower"])
@pytest.mark.parametrize("by_s", [3600.0, -60.0])
def test_a_clock_steps_before_the_leaders_node_dies(node: str, by_s: float) -> None:
    """Must: somebody lead after the lock's 121 s, plus what the lowest node's clock went back. Must not: it be earlier."""
    blaze = led_by_pve2()
    blaze.at(CUT_S, lambda: blaze.world.step_wall_clock(node, by_s))
    blaze.at(CUT_S + 1, lambda: blaze.world.power_off_node("pve2"))
    lived(blaze, 700.0)
    (at_s,) = leads(blaze, "pve1") + leads(blaze, "pve3")
    back_s = -by_s if node == "pve1" and by_s < 0 else 0.0
    assert 111 < at_s - CUT_S - back_s < 135


def test_the_lowest_nodes_clock_goes_back_an_hour_before_the_leader_dies() -> None:
    """Must: nobody lead for that hour, as pmxcfs counts the lock's age by that clock. Must not: anybody remove the lock instead."""
    blaze = led_by_pve2()
    blaze.at(CUT_S, lambda: blaze.world.step_wall_clock("pve1", -3600.0))
    blaze.at(CUT_S + 1, lambda: blaze.world.power_off_node("pve2"))
    blaze.run(3600.0)
    assert (blaze.world.lock_holder(), sent_between(blaze, CUT_S, 3600.0)) == ("pve2", [])
    lived(blaze, 4200.0)


def test_the_leaders_own_disk_is_full() -> None:
    """Must: lead and drain as ever; what it cannot write down on its disk serves people only. Must not: stop."""
    blaze = drain()
    blaze.at(10.0, lambda: blaze.world.fill_disk("pve1"))
    lived(blaze, 300.0)
    assert (leads(blaze, "pve1"), leads(blaze, "pve2")) == ([0.0], [])
    assert empty_s(blaze) < USUAL_S


def test_the_leaders_pmxcfs_takes_no_write_any_more() -> None:
    """A full disk below pmxcfs. Must: the lead be over with the lease, another node finish. Must not: a request without a renewal."""
    blaze = drain()
    blaze.at(CUT_S, lambda: [blaze.world.fail_next_write("pve1") for _ in range(5000)])
    lived(blaze, 500.0)
    assert [sender for _, sender in sent_between(blaze, CUT_S, 500.0) if sender == "pve1"] == []
    assert [115 < at_s - CUT_S < 135 for at_s in leads(blaze, "pve2") + leads(blaze, "pve3")] == [True]


class _Twins(Blaze):
    """A second agent on pve1 from some second on, as after somebody removed /run/proxlb-agent and with it the file that is locked."""

    def __init__(self, made: World, second_s: float) -> None:
        super().__init__(made, settings())
        self._second_s = second_s
        self._second: _Process | None = None

    def _let_run(self, name: str) -> None:
        super()._let_run(name)
        if name != "pve1" or self.world.now_s < self._second_s:
            return
        first = self._processes[name]
        self._processes[name] = self._second or self._started(name)
        super()._let_run(name)
        self._second, self._processes[name] = self._processes[name], first


def test_two_agents_on_one_node() -> None:
    """The lock is the node's, so both renew it. Must: leader.json tell them apart. Must not: both act for the same lead, or a guest move
    twice; which of them leads changes meanwhile."""
    blaze = _Twins(world(), CUT_S)
    blaze.at(FLAG_S, lambda: blaze.world.set_flag("pve3", "a new kernel"))
    lived(blaze, 500.0)
    senders = [sent.leader.incarnation for sent in blaze.judge.requests if sent.leader is not None]
    assert len(senders) == len(DRAINED)
    assert len(leads(blaze, "pve1")) > 1


def _with_more(text: str | None) -> str:
    return json.dumps(json.loads(text or "") | {"of_a_later_version": {"x": [1, 2]}})


def test_a_later_version_leads() -> None:
    """Its files have fields that this version does not know. Must: be followed, and taken over from. Must not: be taken for nobody."""
    blaze = drain()
    files = blaze.world.main.files
    blaze.at(CUT_S, lambda: blaze.world.put_file(LEADER_PATH, _with_more(files[LEADER_PATH])))
    blaze.at(CUT_S, lambda: blaze.world.put_file(HISTORY_PATH, _with_more(files[HISTORY_PATH])))
    blaze.at(CUT_S + 1, lambda: blaze.world.stop_agent("pve1"))
    lived(blaze, 300.0)
    assert said(blaze, "takes over 2 migrations of the former leader", "pve2")
    assert not said(blaze, "cannot be used")


def test_a_version_leads_whose_files_cannot_be_read() -> None:
    """Must: nobody act for 90 s, as with a leader that cannot be known; what runs in PVE be seen there. Must not: a guest move twice."""
    blaze = drain()
    files = blaze.world.main.files

    def another() -> None:
        blaze.world.put_file(LEADER_PATH, files[LEADER_PATH].replace("leader/1", "leader/2"))
        blaze.world.put_file(HISTORY_PATH, files[HISTORY_PATH].replace("history/1", "history/2"))

    blaze.at(CUT_S, another)
    blaze.at(CUT_S, lambda: blaze.world.kill_agent("pve1"))
    lived(blaze, 600.0)
    (at_s,) = leads(blaze, "pve2") + leads(blaze, "pve3")
    assert at_s - CUT_S > 90
    assert len(blaze.judge.requests) == len(DRAINED)


def test_the_agent_stops_while_a_request_has_no_answer() -> None:
    """Must: the next leader wait until that request must be over. Must not: it take the stop for a clean one."""
    blaze = drain([(Point("pve1", "wire", 1, is_after=True), hangs(29.0))], stop_s=FLAG_S + 1)
    lived(blaze, 300.0)
    (at_s,) = leads(blaze, "pve2")
    assert at_s - FLAG_S == pytest.approx(91, abs=2)
    assert said(blaze, "has the lock, but waits: pve1 may still be acting", "pve2")


def test_the_agent_stops_while_nothing_is_asked() -> None:
    """Must: the next leader go on at once. Must not: it wait, though migrations are under way."""
    blaze = lived(drain(stop_s=CUT_S), 300.0)
    assert [at_s - CUT_S <= 2 for at_s in leads(blaze, "pve2")] == [True]


def test_leader_json_is_from_the_future_when_the_leader_dies() -> None:
    """An epoch and a time that nobody has reached. Must: somebody lead with a higher epoch. Must not: its time count for anything."""
    blaze = drain()
    text = leader_text("pve1", 1000, "leading", 2e9)
    blaze.at(CUT_S, lambda: blaze.world.power_off_node("pve1"))
    blaze.at(CUT_S + 1, lambda: blaze.world.put_file(LEADER_PATH, text))
    lived(blaze, 600.0)
    assert said(blaze, "leads the cluster, epoch 1001") == [pytest.approx(CUT_S + 122, abs=10)]

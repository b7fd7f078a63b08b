# SPDX-License-Identifier: GPL-3.0-or-later
"""Each of these once happened in the simulation, or could have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core import history as memory
from agent.core.cluster import GIB, GuestType
from agent.core.documents import LEADER_SCHEMA, HistoryFile, Home, LeaderFile, LeaderState, SetAside, render
from agent.core.leadership import LockTimes
from agent.core.migrations import Migration, MigrationState
from agent.core.reasons import MoveReason
from agent.core.settings import Settings
from agent.core.settings_check import check
from agent.daemon import inputs, outputs
from agent.daemon.inputs import WriteAnswer, Written
from agent.daemon.mailbox import request_text
from agent.daemon.outside import HISTORY_PATH, LEADER_PATH, Ports
from agent.daemon.perform import Performer
from agent.sim.inventory import SimGuest, SimNode
from agent.sim.ports import ports_of
from agent.sim.world import World
from agent.simulation import SimSettings, Simulation

LIMIT_BYTES = 60 * GIB  # of 64, less the reserve of 4
RELEASED = LeaderFile(LEADER_SCHEMA, "pve3", "before", 6, LeaderState.RELEASED, 0.0, "0.1.0")


def settings() -> Settings:
    result = check({"triggers": {"warmup_s": 0, "first_observe_s": 0}})
    assert isinstance(result, Settings)
    return result


def guest(vmid: int, node: str, gib: int, migration_s: float | None = None) -> SimGuest:
    size = gib * GIB
    return SimGuest(vmid, node, cores=1, memory_bytes=size * 5 // 4, used_cores=0.1, used_memory_bytes=size, migration_s=migration_s)


def world(*guests: SimGuest) -> World:
    made = World([SimNode(f"pve{number}", 16, 64 * GIB) for number in (1, 2, 3)], guests)
    made.put_file(LEADER_PATH, render(RELEASED))
    return made


@pytest.mark.parametrize("migration_s", [3.0, 5.0, 8.0, 12.0])
@pytest.mark.parametrize("at_s", [100.0, 103.0, 106.0, 109.0])
def test_a_quick_drain_overfills_nobody_while_statistics_lag_behind(migration_s: float, at_s: float) -> None:
    leaving = [guest(101 + number, "pve1", 6, migration_s) for number in range(9)]
    made = world(*leaving, guest(201, "pve2", 32), guest(301, "pve3", 32))
    simulation = Simulation(made, settings())
    simulation.at(at_s, lambda: made.set_flag("pve1"))

    def watch() -> None:
        for name in ("pve2", "pve3"):
            assert made.use()[name].used_memory_bytes <= LIMIT_BYTES, (made.now_s, name)

    simulation.run(400.0, watch)
    assert sum(node == "pve1" for vmid, node in made.placements().items() if vmid < 200) <= 1, "what fits has left"


def record(number: int, state: MigrationState, text: str = "") -> Migration:
    return Migration(
        f"1-{number}", 100 + number, GuestType.QEMU, "web", "pve1", "pve2", MoveReason.OVERLOAD, 1, GIB, 1.0, 0.1, 1000.0 + number, state,
        ended_at=1000.0 + number, text=text,
    )  # fmt: skip


def test_history_never_grows_past_what_can_be_written() -> None:
    history = HistoryFile(
        "proxlb-agent/history/1",
        0.0,
        migrations=tuple(record(number, MigrationState.DONE, "x" * 200) for number in range(400)),
        homes=tuple(Home(vmid, "pve1", "pve2", 1000.0) for vmid in range(500, 1000)),
        set_aside=tuple(SetAside(vmid, 2000.0, 1, "y" * 200) for vmid in range(1000, 1600)),
    )
    bounded = memory.bounded(history, 1500.0)
    assert len(render(bounded)) <= memory.MOST_BYTES
    assert bounded.homes == history.homes, "homes are dropped last"


def test_attempts_that_came_to_nothing_push_out_no_others() -> None:
    done = [record(number, MigrationState.DONE) for number in range(100)]
    skipped = [record(1000 + number, MigrationState.SKIPPED) for number in range(400)]
    bounded = memory.bounded(HistoryFile("proxlb-agent/history/1", 0.0, migrations=(*done, *skipped)), 1500.0)
    assert set(done) <= set(bounded.migrations)


def test_a_request_of_days_ago_is_not_carried_out_by_the_next_leader() -> None:
    made = world(guest(101, "pve1", 20), guest(102, "pve1", 20))
    simulation = Simulation(made, replace(settings(), balance=replace(settings().balance, spread_percent=0)))
    simulation.at(20.0, lambda: made.request("pve3", "old", request_text("root", force=True)))
    simulation.run(300.0)
    before = len(made.post_record)
    made.drop_file(HISTORY_PATH)
    simulation.at(5000.0, lambda: made.stop_agent("pve1"))
    simulation.run(5400.0)
    assert before == len(made.post_record)
    assert sum("balancing was asked for" in line.record.text for line in made.journal if line.at_s > 4000) == 0


def test_a_request_made_before_the_node_leads_is_answered_when_it_does() -> None:
    made = world(guest(101, "pve1", 20))
    made.drop_file(LEADER_PATH)  # so that it takes 90 s until somebody leads
    simulation = Simulation(made, settings())
    simulation.at(20.0, lambda: made.request("pve1", "early", request_text("root", force=False)))
    simulation.run(200.0)
    leader = simulation.agent(made.lock_holder() or "")
    assert leader is not None and leader.work is not None
    assert [answer.final for answer in leader.work.history.answers if answer.request == "early"] == [True]


def test_the_answer_to_a_former_leads_look_is_dropped() -> None:
    made = world(guest(101, "pve1", 20))
    simulation = Simulation(made, settings())
    simulation.run(30.0)
    leader = simulation.agent(made.lock_holder() or "")
    assert leader is not None and leader.work is not None
    before = leader.work.snapshot
    late = inputs.Observed(leader.lead.state.epoch - 1, ports_of(made, "pve1").api.look())
    leader.step(inputs.Now(1e9, 1e9), [late])
    assert leader.work is None or leader.work.snapshot is before


def test_a_write_that_hung_does_not_land_on_the_next_leaders_history() -> None:
    made = world()
    given = ports_of(made, "pve1")
    ports = Ports(
        given.clock, given.lock, given.files, lambda: given.api, given.inbox, given.facts, given.ha_nodes, given.local_files,
        SimSettings(settings()), given.journal, given.notifier,
    )  # fmt: skip
    mine = replace(RELEASED, node="pve1", epoch=7, state=LeaderState.LEADING)
    made.put_file(LEADER_PATH, render(replace(mine, node="pve2", epoch=8)))
    answer = Performer(ports, LockTimes()).perform(outputs.WriteShared(Written.HISTORY, HISTORY_PATH, "{}", 1, mine))
    assert isinstance(answer, WriteAnswer) and answer.error
    assert given.files.read(HISTORY_PATH) is None

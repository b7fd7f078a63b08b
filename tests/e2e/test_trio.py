# SPDX-License-Identifier: GPL-3.0-or-later
"""Three agents on three booted nodes: the leader is upgraded, then killed, in the middle of emptying a node.

Judged by what the played API recorded and by whose the lock was, not by what the agents say.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.journal import MessageId
from tests.e2e import roots
from tests.e2e.trio import Trio, newer
from tests.pve_server.client import cluster, vm

GIB = 1 << 30
RELEASES = {"pve1": "bookworm", "pve2": "bookworm", "pve3": "trixie"}
NODES = {"pve1": "8.4.1", "pve2": "8.4.1", "pve3": "9.0.10"}
SETTINGS = {
    "triggers": {"settle_s": 1, "warmup_s": 0, "first_observe_s": 0, "reconcile_s": 3600},
    "balance": {"spread_percent": 0, "cpu": {"hold_s": 3600}, "memory": {"hold_s": 3600}},
    "drain": {"parallel_per_node": 2, "return_home": False},
}
SECOND = "0.1.0+second"
UNTIL_EXPIRY_S = 121.0


@pytest.fixture(scope="module")
def trio(deb: Path) -> Iterator[Trio]:
    """The package is on all three; pve1 leads."""
    guests = [vm(vmid, f"pve{vmid // 100}", cpu_cores=0.1, mem_bytes=GIB) for vmid in (101, 102, 201, 202, 203, 204, 205, 301)]
    state = cluster({name: {"version": version} for name, version in NODES.items()}, guests, migration={"duration_s": None})
    with Trio({name: roots.root(release) for name, release in RELEASES.items()}, state) as up:
        up.settings(**SETTINGS)
        up.install(deb, "pve1")
        up.release_lead()
        up.wait_leader("pve1", within_s=30)
        up.install(deb, "pve2", "pve3")
        for name in ("pve2", "pve3"):
            up.members[name].wait_said("follows pve1")
        yield up
        assert not up.api.made_up(), "the played API made these answers up"


class Drain:
    """A node that is being emptied: what was asked for and what was done since that began."""

    def __init__(self, trio: Trio, node: str) -> None:
        self.trio, self.node = trio, node
        self.guests = {vmid for vmid, where in trio.api.placement().items() if where == node}
        self._earlier = (len(trio.api.requests(method="POST")), len(trio.api.tasks("qmigrate")))
        trio.api.migration(duration_s=None)
        trio.flag(node, "new memory")

    def asked(self) -> list[int]:
        """The guests for which a migration was asked, in that order."""
        return [int(post["path"].split("/")[-2]) for post in self.posts()]

    def posts(self) -> list[dict[str, object]]:
        return self.trio.api.requests(method="POST")[self._earlier[0] :]

    def under_way(self) -> list[int]:
        return [int(task["id"]) for task in self.tasks() if task["status"] == "running"]

    def tasks(self) -> list[dict[str, str]]:
        return self.trio.api.tasks("qmigrate")[self._earlier[1] :]

    def let_go_on(self) -> None:
        """From now on migrations take half a second; those under way end."""
        self.trio.api.migration(duration_s=0.5)
        for vmid in self.under_way():
            self.trio.api.finish_migration(vmid)

    def wait_empty(self, within_s: float = 60.0) -> None:
        self.trio.api.wait_until(lambda: self.node not in self.trio.api.placement().values() and not self.under_way(), within_s)

    def judge(self) -> None:
        """Nobody asked without the lock, nobody was moved twice, nobody was left."""
        senders = [(post["listener"], self.trio.holder_at(float(str(post["time"])))) for post in self.posts()]
        assert all(sender == holder for sender, holder in senders), senders
        moved = Counter(int(task["id"]) for task in self.tasks() if task["exitstatus"] == "OK")
        assert moved == Counter(dict.fromkeys(self.guests, 1)), self.tasks()
        assert self.node not in self.trio.api.placement().values()


def checked(trio: Trio) -> None:
    bugs = [f"{name}: {entry['MESSAGE']}" for name, one in trio.members.items() for entry in one.entries(f"MESSAGE_ID={MessageId.BUG}")]
    assert bugs == []


def test_an_upgrade_of_the_leader_hands_the_drain_over(trio: Trio, deb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, drain, epoch = trio.members["pve1"], Drain(trio, "pve2"), trio.leader()["epoch"]
    trio.api.wait_until(lambda: len(drain.under_way()) == 2, 30)
    asked = drain.asked()
    upgrade = newer(deb, SECOND, tmp_path)
    with trio.while_(lambda: first.machine.install(upgrade)):
        trio.api.wait_until(lambda: trio.leader()["state"] == "released", 30)
        released_s = time.time()
        trio.api.finish_migration(asked[0])
        heir = trio.wait_leader(*trio.names, within_s=30)
    taken_s = next(at for at, holder in trio.pmxcfs.lock_holders("proxlb-agent") if holder and at > released_s) - released_s
    assert trio.leader()["epoch"] == epoch + 1
    heir.wait_said("takes over 1 migration of the former leader|takes over 2 migrations")
    assert drain.asked()[:2] == asked
    drain.let_go_on()
    drain.wait_empty()
    drain.judge()
    assert Counter(drain.asked()) == Counter(drain.guests), "nobody was asked for twice"
    first.wait_said(f"proxlb-agent {SECOND.replace('+', '.')} runs on pve1")
    trio.unflag("pve2")
    checked(trio)
    with capsys.disabled():
        print(f"\nupgrade: {heir.name} had the lock {taken_s:.2f} s after it was released")
        print(*trio.journals(), sep="\n")


def test_a_leader_that_dies_is_followed_by_another_and_comes_back_as_a_follower(trio: Trio, capsys: pytest.CaptureFixture[str]) -> None:
    dead = trio.members[trio.leader()["node"]]
    epoch = trio.leader()["epoch"]
    node = Counter(where for where in trio.api.placement().values() if where != dead.name).most_common(1)[0][0]
    drain = Drain(trio, node)
    trio.api.wait_until(lambda: len(drain.under_way()) == 2, 30)
    trio.api.finish_migration(drain.asked()[0])
    trio.api.wait_until(lambda: len(drain.asked()) == 3, 30)

    dead.kill()
    killed_at = time.time()
    asked = drain.asked()
    trio.api.finish_migration(drain.under_way()[0])
    others = [name for name in trio.names if name != dead.name]
    heir = trio.wait_leader(*others, within_s=UNTIL_EXPIRY_S + 40)
    led_after_s = time.time() - killed_at
    assert trio.leader()["epoch"] == epoch + 1
    assert drain.asked() == asked, "nobody asks while nobody leads"
    drain.let_go_on()
    with trio.telling():
        drain.wait_empty()
    asked_after_s = float(str(drain.posts()[len(asked)]["time"])) - killed_at
    drain.judge()

    dead.come_back()
    dead.wait_said(f"follows {heir.name}")
    renewed = len(trio.pmxcfs.lock_holders("proxlb-agent"))
    trio.api.wait_until(lambda: len(trio.pmxcfs.lock_holders("proxlb-agent")) > renewed, 20)
    assert trio.holder_at(time.time()) == heir.name
    assert trio.leader()["epoch"] == epoch + 1
    checked(trio)
    with capsys.disabled():
        print(f"\n{dead.name} killed: {heir.name} leads after {led_after_s:.1f} s, asks after {asked_after_s:.1f} s")
        print(*trio.journals(), sep="\n")

# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as a process: it leads, answers a start, drains a node, hands over, reloads, and lives through a failing API."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

from tests.pve_server.client import GIB, MIGRATE_VM, vm
from tests.service.rig import HERE, Rig

NODE: dict[str, Any] = {"cores": 16, "memory_bytes": 64 * GIB, "overhead_bytes": 2 * GIB}
NODES = {HERE: NODE, "pve2": NODE, "pve3": NODE}


def guest(vmid: int, node: str, memory_gib: float, **more: Any) -> dict[str, Any]:
    """A VM of that size that uses most of it."""
    return vm(vmid, node, maxcpu=4, maxmem_bytes=int(memory_gib * 1.25 * GIB), mem_bytes=int(memory_gib * GIB), cpu_cores=1.0) | more


def states(rig: Rig) -> list[str]:
    """How the migrations in history.json stand; read past the mount, where it could be replaced between being found and being opened."""
    return [entry["state"] for entry in json.loads(rig.pmxcfs.read("proxlb/history.json"))["migrations"]]


def full_node() -> list[dict[str, Any]]:
    """52 of 64 GiB used here: one more guest of 8 GiB overloads the node; 103 is the one whose move evens it out best."""
    return [
        guest(101, HERE, 14), guest(102, HERE, 14, tags="plb_ignore"), guest(103, HERE, 12),
        guest(104, HERE, 8, status="stopped"), guest(201, "pve2", 24), guest(301, "pve3", 20),
    ]  # fmt: skip


def test_a_start_that_overloads_the_node_moves_a_guest_and_the_lead_is_handed_over() -> None:
    with Rig(NODES, [*full_node(), guest(105, HERE, 8)], balance={"spread_percent": 0}) as rig:
        rig.release_lead()
        rig.start()
        rig.wait_for("leads the cluster, epoch 7")
        rig.wait_for("took the lead: nothing to do")
        asked = sum(rig.pve.counters().values())
        rig.pve.start_guest(104, silent=True)
        rig.hook("104.pre-start")
        rig.hook("104.post-start")
        rig.wait_for("done in")
        moved = {vmid: node for vmid, node in rig.pve.placement().items() if vmid in (101, 102, 103, 104, 105) and node != HERE}
        assert len(moved) == 1 and 102 not in moved, (moved, rig.log)
        posts = [request for request in rig.pve.requests() if request["method"] == "POST"]
        assert len(posts) == 1
        assert asked < sum(rig.pve.counters().values())
        rig.wait(lambda: states(rig) == ["done"], "done in history.json")  # the line comes first
        rig.signal(signal.SIGTERM)
        assert rig.ended() == 0
        assert json.loads((rig.mount / "proxlb/leader.json").read_text())["state"] == "released"
        assert rig.pmxcfs.lock_holder("proxlb-agent") is None
        assert not rig.pve.made_up()


def test_room_enough_or_an_echo_moves_nobody() -> None:
    with Rig(NODES, [guest(101, HERE, 14), guest(104, HERE, 8, status="stopped"), guest(201, "pve2", 20), guest(301, "pve3", 20)]) as rig:
        rig.release_lead()
        rig.start()
        rig.wait_for("took the lead: ")
        rig.hook("101.post-start.pve3")
        rig.pve.start_guest(104, silent=True)
        rig.hook("104.post-start")
        rig.wait_for("guest 104 started on")
        rig.wait_for(f"guest 104 started on {HERE}: nothing to do")
        assert "guest 101 started" not in rig.log
        assert not [request for request in rig.pve.requests() if request["method"] == "POST"]


def test_a_flag_empties_a_node() -> None:
    with Rig(NODES, [guest(101, HERE, 10), guest(201, "pve2", 10), guest(202, "pve2", 6), guest(301, "pve3", 10)]) as rig:
        rig.release_lead()
        rig.start()
        rig.wait_for("took the lead: ")
        rig.pmxcfs.put("proxlb/maintenance/pve2", "new memory\n")
        rig.wait_for("pve2 is empty")
        assert {rig.pve.where(201), rig.pve.where(202)} == {HERE, "pve3"}, "the drain is spread"
        rig.pmxcfs.remove("proxlb/maintenance/pve2")
        rig.wait(lambda: rig.pve.where(201) == rig.pve.where(202) == "pve2", "both are home")


def test_a_failing_api_is_said_once_and_the_event_is_answered_when_it_is_back() -> None:
    with Rig(NODES, [*full_node(), guest(105, HERE, 8)], balance={"spread_percent": 0}) as rig:
        rig.release_lead()
        rig.start()
        rig.wait_for("took the lead: ")
        rig.pve.fail_call("GET", "/cluster/resources", 595, "Connection refused", times=1)
        rig.pve.start_guest(104, silent=True)
        rig.hook("104.post-start")
        rig.wait_for("the cluster cannot be looked at")
        rig.wait_for("the cluster can be looked at again")
        rig.wait_for("done in")
        assert rig.log.count("the cluster cannot be looked at") == 1


def test_a_refused_migration_is_not_tried_again_and_another_guest_goes() -> None:
    with Rig(NODES, [*full_node(), guest(105, HERE, 8)], balance={"spread_percent": 0}) as rig:
        rig.release_lead()
        rig.start()
        rig.wait_for("took the lead: ")
        rig.pve.fail_call("POST", MIGRATE_VM, 500, "VM is locked (backup)", times=1)
        rig.pve.start_guest(104, silent=True)
        rig.hook("104.post-start")
        rig.wait_for("VM is locked (backup)")
        rig.wait_for("done in")
        posts = [request["path"] for request in rig.pve.requests() if request["method"] == "POST"]
        assert len(posts) == len(set(posts)) == 2, "no guest is asked for twice"


def test_sighup_takes_good_settings_and_leaves_bad_ones() -> None:
    with Rig(NODES, [guest(101, HERE, 10)]) as rig:
        rig.release_lead()
        rig.start()
        rig.wait_for("took the lead: ")
        rig.configure(balance={"spread_procent": 10})
        rig.signal(signal.SIGHUP)
        rig.wait_for("balance.spread_procent")
        assert "spread_percent" in rig.log and "the settings are not taken" in rig.log
        rig.configure(balance={"spread_percent": 10})
        rig.signal(signal.SIGHUP)
        rig.wait_for("new settings taken")


def test_the_agent_waits_without_a_cluster_and_writes_nothing_on_the_bare_directory() -> None:
    with Rig(NODES, [guest(101, HERE, 10)]) as rig:
        rig.pmxcfs.unmount(HERE)
        rig.start()
        rig.wait_for("waiting: /etc/pve is not mounted")
        rig.signal(signal.SIGHUP)
        rig.hook("101.post-start")
        rig.wait(lambda: not list((rig.folder / "run/inbox").iterdir()), "the inbox is read")
        assert list(rig.mount.iterdir()) == []
        rig.pmxcfs.mount(HERE)
        rig.wait_for("goes on")
        assert rig.log.count("waiting:") == 1
        rig.signal(signal.SIGTERM)
        assert rig.ended() == 0


def test_a_second_agent_on_the_node_ends_with_one_line() -> None:
    with Rig(NODES, []) as rig:
        rig.start()
        rig.wait_for("runs on")
        first, rig.process = rig.process, None
        rig.start()
        assert rig.process is not None
        assert rig.ended() == 1
        assert "another agent runs on this node" in rig.log and "Traceback" not in rig.log
        rig.process = first


def test_a_hanging_filesystem_keeps_the_agent_neither_from_its_journal_nor_from_deciding_to_end() -> None:
    """The kernel lets no process go while the filesystem's own process has one of its calls; the agent is done before that."""
    with Rig(NODES, [guest(101, HERE, 10)]) as rig:
        rig.release_lead()
        rig.start()
        rig.wait_for("took the lead: ")
        rig.pmxcfs.hang(60, [HERE])
        begun = time.monotonic()
        rig.signal(signal.SIGTERM)
        rig.wait_for("the lock could not be given back in time, it expires by itself")
        assert time.monotonic() - begun < 30, "it did not wait for the filesystem"
        rig.pmxcfs.hang(0, [HERE])
        assert rig.ended() == 0

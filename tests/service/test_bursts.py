# SPDX-License-Identifier: GPL-3.0-or-later
"""A thousand events of hookscripts in a second, on a real process that leads, and on one that does not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.pve_server.client import GIB, vm
from tests.service.rig import HERE, Rig

NODE: dict[str, Any] = {"cores": 16, "memory_bytes": 64 * GIB, "overhead_bytes": 2 * GIB}
NODES = {HERE: NODE, "pve2": NODE, "pve3": NODE}
EVENTS = 1000
MESSAGES_A_FILE = 3  # of pmxcfs, to replace one: create, write, rename
NO_NODE = "changes nothing: the cluster has no node of that name"
RELAY = f"proxlb/inbox/{HERE}.json"  # read past the mount: there it could be replaced between being found and being opened
CALM_S = 3.0
ROOM_MIB = 8.0  # what a burst may add to the memory of the process


def resident_mib(rig: Rig) -> float:
    assert rig.process is not None
    status = Path(f"/proc/{rig.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


def messages(rig: Rig) -> int:
    """What was written below /etc/pve but renewals of the lock."""
    return rig.pmxcfs.writes() - rig.pmxcfs.writes("priv/lock")


def calm_down(rig: Rig) -> None:
    """Return when it has said and written nothing for three seconds: what it does at its start is not the burst's."""
    seen, since_s = (-1, -1), 0.0

    def is_calm() -> bool:
        nonlocal seen, since_s
        now = (rig.log.count("\n"), messages(rig))
        if now != seen:
            seen, since_s = now, time.monotonic()
        return time.monotonic() - since_s > CALM_S

    rig.wait(is_calm, "it has nothing more to do")


def burst(rig: Rig) -> float:
    """Leave the events, and return how many seconds have gone by when all of them are claimed."""
    begun = time.monotonic()
    for number in range(EVENTS):
        rig.hook(f"{100_000 + number}.post-start")
        time.sleep(max(0.0, begun + number / EVENTS - time.monotonic()))
    rig.wait(lambda: not any((rig.folder / "run/inbox").iterdir()), "the inbox is empty")
    time.sleep(4.0)
    return time.monotonic() - begun


@pytest.mark.parametrize("leads", [True, False], ids=["the leader", "a follower"])
def test_a_thousand_events_in_a_second_cost_little_and_none_is_lost(leads: bool) -> None:
    with Rig(NODES, [vm(101, HERE), vm(201, "pve2")]) as rig:
        if leads:
            rig.release_lead()
        rig.start()
        rig.wait((rig.mount / RELAY).exists, "the node reports")
        if leads:
            rig.wait_for("took the lead: ")
        calm_down(rig)
        before, written, lines = resident_mib(rig), messages(rig), rig.log.count("\n")
        took_s = burst(rig)
        assert messages(rig) - written <= MESSAGES_A_FILE * (len(NODES) + took_s)
        rig.wait(lambda: json.loads(rig.pmxcfs.read(RELAY))["seq"] == EVENTS, "each has its number in the relay file")
        assert len(json.loads(rig.pmxcfs.read(RELAY))["events"]) <= 300
        assert resident_mib(rig) - before < ROOM_MIB
        assert rig.log.count("\n") - lines <= 8, rig.log
        if leads:
            rig.wait_for("more guests started on")


def test_whatever_lies_among_the_relay_files_the_leader_goes_on() -> None:
    """On the stand-in for /etc/pve: a folder and a file of another kind in a report's place, bytes that are no text, a file as large as
    pmxcfs takes, and names that no node has."""
    with Rig(NODES, [vm(101, HERE), vm(201, "pve2")]) as rig:
        rig.release_lead()
        rig.start()
        rig.wait_for("took the lead: ")
        inbox = rig.mount / "proxlb/inbox"
        (inbox / "pve2.json").write_bytes(b"\xff\xfe\0{" * 1000)
        (inbox / "pve3.json").unlink()
        (inbox / "pve3.json").mkdir()
        (inbox / "huge.json").write_bytes(b'{"schema": "proxlb-agent/inbox/1", "events": [' + b"1," * 250_000)
        (inbox / "-rf\n.json").write_text("{}")
        (inbox / "pve2.json.bak").write_text("{}")
        (rig.mount / "proxlb/maintenance").mkdir(exist_ok=True)
        (rig.mount / "proxlb/maintenance/a folder").mkdir()
        (rig.mount / "proxlb/maintenance/no\nnode").write_text("nobody\nreads\nthis")
        time.sleep(3.0)
        rig.wait_for(NO_NODE)
        rig.hook("101.post-start")
        rig.wait_for(f"guest 101 started on {HERE}: ")
        before = resident_mib(rig)
        time.sleep(6.0)
        assert resident_mib(rig) - before < ROOM_MIB
        assert "bug" not in rig.log
        assert "cannot be read" not in rig.log
        assert rig.log.count(NO_NODE) == 1

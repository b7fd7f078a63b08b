# SPDX-License-Identifier: GPL-3.0-or-later
"""The two things that simulated time cannot show: pmxcfs' own 120 s, and a call into /etc/pve that hangs for 90 s in the kernel."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from signal import SIGTERM

import pytest

from tests.pve_server.client import vm
from tests.service.pair import GUESTS, NODE, dead_node_taken_over
from tests.service.rig import HERE, Rig

pytestmark = pytest.mark.waits
HANG_S = 90.0
WATCHDOG_S = 12.0  # of the unit: 120; the agent tells that it is alive three times as often


def test_a_dead_leaders_node_is_taken_over_from_and_its_drain_finished() -> None:
    """Must: the other agent lead once pmxcfs has dropped the lock, and send away who has not left. Must not: a guest be asked for twice,
    unless it was on its way to the node that died."""
    done = dead_node_taken_over()
    print(f"leads after {done.leads_s:.1f} s, the others have left after {done.done_s:.1f} s")
    assert done.leads_s > 105, "120 s from the last renewal, which was 10 s old at the most"
    assert "takes over 2 migrations of the former leader" in done.log
    asked = Counter(int(path.split("/")[-2]) for path in done.posts)
    assert asked.keys() == set(GUESTS), done.posts
    assert all(times == 1 or (vmid in done.to_the_dead and times == 2) for vmid, times in asked.items()), (done.posts, done.to_the_dead)


@contextlib.contextmanager
def notices(folder: Path) -> Iterator[socket.socket]:
    """systemd's socket, for what an agent tells it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(folder / "notify"))
        notify.setblocking(False)
        yield notify


def told(notify: socket.socket) -> list[str]:
    """What has arrived since."""
    texts = []
    with contextlib.suppress(BlockingIOError):
        while True:
            texts.append(notify.recv(4096).decode())
    return texts


def test_a_filesystem_that_hangs_for_ninety_seconds_holds_up_nothing_but_itself() -> None:
    """Must: systemd hear that the agent is alive, the journal go on, SIGTERM be answered at once, and the process end when the filesystem
    answers. Must not: it be killed by the watchdog, or write over what others wrote meanwhile."""
    with Rig({HERE: NODE, "pve2": NODE, "pve3": NODE}, [vm(101, HERE)], log={"level": "debug"}) as rig, notices(rig.folder) as notify:
        rig.release_lead()
        rig.start(NOTIFY_SOCKET=str(rig.folder / "notify"), WATCHDOG_USEC=str(int(WATCHDOG_S * 1e6)))
        rig.wait_for("took the lead: ")
        told(notify)
        rig.pmxcfs.hang(HANG_S, [HERE])
        hung_s = time.monotonic()
        alive, lines = 0, rig.log.count("\n")
        while time.monotonic() < hung_s + 70:
            time.sleep(WATCHDOG_S)
            fresh = sum("WATCHDOG=1" in text for text in told(notify))
            assert fresh > 0, "systemd would have killed it"
            alive += fresh
        assert alive >= 70 / WATCHDOG_S
        assert "stopped leading until it can be" in rig.log
        assert rig.log.count("\n") > lines
        rig.signal(SIGTERM)
        rig.wait_for("the lock could not be given back in time, it expires by itself")
        assert time.monotonic() < hung_s + HANG_S, "it did not wait for the filesystem"
        assert "STOPPING=1" in "\n".join(told(notify))
        stuck, rig.process = rig.process, None
        rig.start()
        assert rig.ended() == 1
        assert "another agent runs on this node" in rig.log, "systemd tries again until the first one is gone"
        rig.process = stuck
        assert rig.ended() == 0
        assert time.monotonic() > hung_s + HANG_S - 5, "the kernel lets nobody go whose call the filesystem has taken"
        assert rig.pmxcfs.lock_holder("proxlb-agent") == HERE
        assert '"leading"' in rig.pmxcfs.read("proxlb/leader.json")

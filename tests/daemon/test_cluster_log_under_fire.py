# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster log, broken in every way that pmxcfs has: what it tells is heard once, and where some is lost, everything is looked at."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from agent.core.events import Event, EventKind
from agent.daemon.inputs import Now, SignsSeen
from agent.daemon.senses import Senses
from agent.sim.tasks import LogRing
from agent.simulation import Simulation
from tests.daemon.test_events_under_fire import NOW, said, settings, simulation

Line = tuple[int, str, int]  # uid, node, second

K = EventKind


def entry(uid: int, node: str, at_s: int, text: str) -> str:
    head = f'"uid": {uid}, "time": {1_767_000_000 + at_s}, "pri": 6, "tag": "pvedaemon", "pid": 7, "node": "{node}"'
    return f'{{{head}, "user": "root@pam", "msg": "{text}"}}'


def start(uid: int, node: str = "pve2", at_s: int = 0, vmid: int | None = None, kind: str = "qmstart", status: str = "OK") -> str:
    """The end of a start of guest 1000 + uid."""
    upid = f"UPID:{node}:0002B8A4:00C1F3D2:{1_767_000_000 + at_s:08X}:{kind}:{1000 + uid if vmid is None else vmid}:root@pam:"
    return entry(uid, node, at_s, f"end task {upid} {status}")


def log(*oldest_first: str) -> str:
    rows = list(reversed(oldest_first))[:50]
    return '{\n"data": [\n' + ",\n".join(rows) + "\n]\n}\n"


def heard(*texts: str) -> list[list[Event]]:
    """What each reading after the first brings."""
    senses, found = Senses("pve1"), []
    for number, text in enumerate(texts):
        now = Now(NOW.boot_s + 2 * number, NOW.wall_s + 2 * number)
        found.append(senses.on_signs(SignsSeen(log=text), now, settings(), lambda _: False))
    return found[1:]


def vmids(events: list[Event]) -> list[int | None]:
    return [event.vmid for event in events]


FIRST = [start(1), start(2), start(3)]
ANEW = start(1, at_s=60, vmid=1500)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([log(*FIRST), log(*FIRST), log(*FIRST, start(4)), log(*FIRST, start(4))], [[], [1004], []]),
        ([log(*FIRST), log(*FIRST, start(4), start(4), start(4))], [[1004]]),
        ([log(*FIRST), log(start(3), start(1), start(2)), log(start(2), start(4), start(3), start(1))], [[], [1004]]),
        ([log(*FIRST), log(*FIRST, ANEW), log(*FIRST, ANEW, start(2, at_s=61))], [[1500], [1002]]),
        ([log(*FIRST), log(*FIRST, start(1, node="pve3", vmid=1500))], [[1500]]),
        ([log(*FIRST), log(*FIRST, start(4))[:80], log(*FIRST, start(4))], [[], [1004]]),
        ([log(*FIRST), "", "\0\0", log(*FIRST, start(4))], [[], [], [1004]]),
        ([log(*FIRST), log(*FIRST, entry(4, "pve2", 0, 'a \\ and a " in it'), start(5))], [[1005]]),
        ([log(*FIRST), log(*FIRST, start(4)[:50], start(5))], [[1005]]),
        ([log(*FIRST), log(*FIRST, start(4, vmid=99999999999999999999), start(5))], [[99999999999999999999, 1005]]),
        ([log(*FIRST), log(*FIRST, start(4, status="start failed: exit code 1"), start(5, status="WARNINGS: 1"))], [[1005]]),
        ([log(*FIRST), log(*FIRST, entry(4, "pve2", 0, "end task UPID:pve2:x:y:z:qmstart:100:root@pam: OK"), start(5))], [[1005]]),
        ([log(*FIRST), log(start(9, at_s=-500), *FIRST)], [[1009]]),
    ],
    ids=[
        "new ones once", "repeated", "reordered", "uid begins anew", "the same uid of another node", "cut off and read again",
        "empty and zeroes", "no JSON", "a broken line", "no VMID of PVE", "a start that failed",
        "no UPID", "an older one that a merge brings",
    ],
)  # fmt: skip
def test_each_start_is_heard_once_whatever_the_log_looks_like(texts: list[str], told: list[list[int]]) -> None:
    assert [vmids(events) for events in heard(*texts)] == told
    assert all(event.kind is K.GUEST_STARTED for events in heard(*texts) for event in events), "and nothing was missed"


def test_more_than_fifty_between_two_looks_are_a_gap_and_those_that_are_shown_are_heard() -> None:
    (events,) = heard(log(*FIRST), log(*FIRST, *(start(uid) for uid in range(4, 124))))
    assert [event.kind for event in events].count(K.GAP) == 1
    assert vmids(events) == [*range(1074, 1124), None]


def test_a_log_that_begins_anew_on_all_nodes_is_a_gap_once() -> None:
    """After pve-cluster was restarted everywhere."""
    readings = heard(log(*FIRST), log(start(1, at_s=900, vmid=1500)), log(start(1, at_s=900, vmid=1500), start(2, at_s=901, vmid=1501)))
    assert [[event.kind for event in events] for events in readings] == [[K.GUEST_STARTED, K.GAP], [K.GUEST_STARTED]]


def test_a_migrations_lines_are_no_starts_in_any_order() -> None:
    move = "UPID:pve1:0002B8A4:00C1F3D2:6952A5C0:qmigrate:1004:root@pam:"
    begun, ended = entry(90, "pve1", 0, f"starting task {move}"), entry(91, "pve1", 9, f"end task {move} OK")
    for lines in ([begun, start(4), ended], [start(4), begun, ended], [ended, start(4), begun]):
        (events,) = heard(log(*FIRST), log(*FIRST, *lines))
        assert vmids(events) == [1004], "the leader holds it against the migrations that it knows of"


# with a leader that answers


def lossy(ring: LogRing, change: Callable[[list[str]], list[str]]) -> None:
    """From now on the log shows what is left of it."""
    whole = ring.text

    def text() -> str:
        rows = [json.dumps(row) for row in json.loads(whole())["data"]]
        return '{\n"data": [\n' + ",\n".join(change(rows)) + "\n]\n}\n"

    ring.text = text  # type: ignore[method-assign]


def answered(made: Simulation, vmid: int) -> int:
    return len(said(made, f"guest {vmid} started on pve3, seen by"))


@pytest.mark.parametrize(
    "change",
    [lambda rows: [], lambda rows: rows[::-1], lambda rows: rows + rows, lambda rows: [row[: len(row) // 2] for row in rows]],
    ids=["lost", "reversed", "repeated", "broken"],
)
def test_a_start_is_answered_once_whatever_becomes_of_the_log(change: Callable[[list[str]], list[str]]) -> None:
    """Within two rounds of statistics at the latest: pvestatd's, and the leader's."""
    made = simulation(20)
    world = made.world
    world.stop_guest(1005)
    world.stop_guest(1006)
    made.run(60)
    lossy(world.main.ring, change)
    made.at(70, lambda: world.start_guest(1005))
    made.at(95, lambda: world.start_guest(1006))
    made.run(200)
    assert (answered(made, 1005), answered(made, 1006)) == (1, 1)
    times = [line.at_s for line in world.journal if "started on pve3, seen by" in line.record.text]
    assert times[0] <= 92 and times[1] <= 117

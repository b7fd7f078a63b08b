# SPDX-License-Identifier: GPL-3.0-or-later
"""More events than usual, stranger ones, and at the wrong time: none that should be answered is lost, and none costs too much."""

from __future__ import annotations

import re
from collections import Counter

from agent.core.cluster import GIB
from agent.core.documents import INBOX_SCHEMA, Facts, InboxEvent, InboxFile, render
from agent.core.events import EventKind
from agent.core.journal import Level
from agent.core.settings import Settings
from agent.core.settings_check import check
from agent.daemon.inputs import InboxSeen, Now, OwnInboxSeen, SignsSeen
from agent.daemon.mailbox import KEPT_EVENTS, Mailbox, request_text
from agent.daemon.outside import LEADER_PATH
from agent.daemon.senses import Senses
from agent.ports import InboxSight
from agent.sim.inventory import SimGuest, SimNode
from agent.sim.world import World
from agent.simulation import Simulation
from tests.daemon.test_what_must_not_happen import RELEASED

NODES = ("pve1", "pve2", "pve3")
NOW = Now(1000.0, 1_767_225_600.0)


def settings() -> Settings:
    result = check({"triggers": {"warmup_s": 0, "first_observe_s": 0}})
    assert isinstance(result, Settings)
    return result


def simulation(guests: int = 0, node: str = "pve3") -> Simulation:
    """pve1 leads from the start; the guests run on one node, and are small."""
    size = GIB // 128
    made = [
        SimGuest(1000 + number, node, cores=1, memory_bytes=2 * size, used_cores=0.001, used_memory_bytes=size) for number in range(guests)
    ]
    world = World([SimNode(name, 32, 128 * GIB) for name in NODES], made)
    world.put_file(LEADER_PATH, render(RELEASED))
    return Simulation(world, settings())


def said(made: Simulation, pattern: str, node: str = "pve1") -> list[str]:
    """What people read of it."""
    lines = [line.record.text for line in made.world.journal if line.node == node and line.record.level <= Level.INFO]
    return [text for text in lines if re.search(pattern, text)]


def burst(made: Simulation, node: str, events: int) -> None:
    for number in range(events):
        made.world.leave_event(node, f"{1000 + number}.post-start")


# bursts


def test_what_a_burst_on_a_follower_drops_is_a_gap_told_once_and_everything_is_looked_at() -> None:
    made = simulation(1000)
    made.at(60, lambda: burst(made, "pve3", 1000))
    made.run(160)
    gaps = said(made, "did not get here")
    assert [text for text in gaps if "seen by" in text] == ["700 events of pve3 did not get here, seen by inbox"]
    assert len([text for text in gaps if "nothing to do" in text]) == 1, "and it is answered"
    assert len(said(made, "guest")) < 12, "a storm has a few lines"


def test_a_burst_costs_few_writes_below_etc_pve_and_few_requests() -> None:
    made = simulation(1000)
    made.run(60)
    before, asked = Counter(made.world.pmxcfs.writes), sum(made.world.api_requests.values())
    for second in range(30):
        made.at(60 + second, lambda: burst(made, "pve3", 300))
    made.run(120)
    written = Counter(made.world.pmxcfs.writes) - before
    assert written["proxlb/inbox/pve3.json"] <= 3 + 30 / 3, "one at once, then one in as many seconds as there are nodes"
    assert sum(written.values()) - written["lock renew"] <= len(NODES) + 30, "what is promised"
    assert sum(made.world.api_requests.values()) - asked <= 6 * 4


def test_a_burst_on_all_nodes_of_a_larger_cluster_costs_no_more() -> None:
    """Followers, too, write once in as many seconds as there are nodes."""
    names = tuple(f"pve{number:02}" for number in range(1, 17))
    world = World([SimNode(name, 32, 128 * GIB) for name in names])
    world.put_file(LEADER_PATH, render(RELEASED))
    made = Simulation(world, settings())
    made.run(120)
    before = Counter(world.pmxcfs.writes)
    for second in range(60):
        for name in names:
            made.at(120 + second, lambda name=name, second=second: world.leave_event(name, f"{100 + second}.post-start"))  # type: ignore[misc]
    made.run(180)
    written = Counter(world.pmxcfs.writes) - before
    assert max(count for path, count in written.items() if path.startswith("proxlb/inbox/")) <= 2 + 60 / 16
    assert sum(written.values()) - written["lock renew"] <= len(names) + 60, "what is promised"


def test_a_burst_on_the_leaders_own_node_needs_no_file_and_has_no_gap() -> None:
    made = simulation(1000, "pve1")
    made.at(60, lambda: burst(made, "pve1", 1000))
    made.run(160)
    assert said(made, "did not get here") == []
    assert said(made, "497 more guests started on pve1 .1003, .*, 500 more events than are kept, seen since")
    work = made.agent("pve1")
    assert work is not None
    assert work.work is not None
    assert work.work.pending is None


def test_a_persons_request_in_the_middle_of_a_burst_is_answered() -> None:
    made = simulation(1000)

    def storm() -> None:
        burst(made, "pve3", 400)
        made.world.request("pve3", "mine", request_text("root@pam", force=False))
        burst(made, "pve3", 1000)

    made.at(60, storm)
    made.run(160)
    history = made.world.main.files["proxlb/history.json"]
    assert '"request":"mine"' in history


def test_a_relay_file_is_never_larger_than_what_is_read_in_one_piece() -> None:
    box = Mailbox("pve3", "i", "b")
    box.on_own_file(OwnInboxSeen(None))
    names = tuple(f"{999_000_000 + number}.post-start.{'n' * 63}" for number in range(5000))
    requests = tuple((f"r{number}", request_text("u" * 60_000, force=True)) for number in range(40))
    box.on_claimed(InboxSeen(InboxSight(names, requests, "x" * 4096)), NOW)
    file = box._file  # what goes out with the next write
    assert len(file.events) == KEPT_EVENTS
    assert sum(event.request is not None for event in file.events) == 40
    assert len(render(file).encode()) < 100 << 10


# numbers


def inbox(seq: int, *seqs: int) -> str:
    events = tuple(InboxEvent(number, NOW.wall_s, EventKind.GUEST_STARTED, vmid=100 + number) for number in seqs)
    return render(InboxFile(INBOX_SCHEMA, "pve3", "i", "b", seq, NOW.wall_s, events, None, Facts("0.1.0")))


def heard(senses: Senses, text: str) -> list[tuple[EventKind, str, int | None]]:
    seen = SignsSeen(inboxes=(("pve3", text),))
    return [(event.kind, event.detail, event.vmid) for event in senses.on_signs(seen, NOW, settings(), lambda _: False)]


def test_numbers_that_were_skipped_are_a_gap_and_what_is_there_is_heard_once() -> None:
    senses = Senses("pve1")
    assert heard(senses, inbox(3, 1, 2, 3)) == [], "what was there before is covered by the first look"
    assert heard(senses, inbox(4, 2, 3, 4)) == [(EventKind.GUEST_STARTED, "", 104)]
    assert heard(senses, inbox(7, 6, 7)) == [
        (EventKind.GAP, "1 event", None),
        (EventKind.GUEST_STARTED, "", 106),
        (EventKind.GUEST_STARTED, "", 107),
    ]
    assert heard(senses, inbox(7, 6, 7)) == []
    assert heard(senses, inbox(7)) == [], "old ones that are no longer kept were heard"


def test_a_file_that_was_made_anew_counts_from_the_start() -> None:
    senses = Senses("pve1")
    heard(senses, inbox(500))
    assert heard(senses, inbox(2, 1, 2)) == [(EventKind.GUEST_STARTED, "", 101), (EventKind.GUEST_STARTED, "", 102)]
    assert heard(senses, inbox(1)) == [(EventKind.GAP, "1 event", None)]


def test_a_torn_file_is_read_again_and_nothing_of_it_is_lost() -> None:
    senses = Senses("pve1")
    heard(senses, inbox(1, 1))
    assert heard(senses, inbox(3, 2, 3)[:-40]) == []
    assert heard(senses, inbox(3, 2, 3)) == [(EventKind.GUEST_STARTED, "", 102), (EventKind.GUEST_STARTED, "", 103)]


def test_files_that_come_and_go_are_not_remembered() -> None:
    senses = Senses("pve1")
    for number in range(50):
        senses.on_signs(SignsSeen(inboxes=((f"x{number}", inbox(1, 1)),)), NOW, settings(), lambda _: False)
    assert len(senses._texts) == 1


# flags


def test_a_flag_for_a_node_that_does_not_exist_is_said_once_and_begins_nothing() -> None:
    made = simulation()
    made.at(60, lambda: made.world.set_flag("pve9", "typing error"))
    made.run(1000)
    assert said(made, "pve9") == ["maintenance flag 'pve9' changes nothing: the cluster has no node of that name"]
    made.at(1010, lambda: made.world.clear_flag("pve9"))
    made.at(1050, lambda: made.world.set_flag("pve9", "again"))
    made.run(1100)
    assert len(said(made, "pve9")) == 2, "set again it is said again"


def test_a_flag_counts_in_any_case_of_letters() -> None:
    made = simulation()
    made.at(60, lambda: made.world.set_flag("PVE3", "disks"))
    made.run(100)
    assert said(made, "maintenance of pve3 began .disks., seen by flag")


def test_the_leader_makes_the_folder_for_flags_once_and_again_when_somebody_removed_it() -> None:
    made = simulation()
    made.run(30)
    assert made.world.main.folders == {"proxlb/maintenance"}
    made.run(1500)
    assert made.world.pmxcfs.writes["proxlb/maintenance"] == 1
    made.world.main.folders.clear()
    made.run(1900)
    assert made.world.main.folders == {"proxlb/maintenance"}

# SPDX-License-Identifier: GPL-3.0-or-later
"""Other nodes' relay files below /etc/pve, torn, foreign or forged: they tell of starts, stops and requests, or of nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.documents import parse
from agent.core.events import Event, EventKind
from agent.core.journal import MessageId
from agent.core.triggers import described, joined
from agent.daemon.inputs import SignsSeen
from agent.daemon.senses import Senses
from agent.sim.world import World
from agent.simulation import Simulation
from tests.daemon.test_events_under_fire import NOW, inbox, said, settings, simulation

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([kind.value for kind in EventKind]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
TOLD = {EventKind.GUEST_STARTED, EventKind.GUEST_STOPPED, EventKind.REQUEST, EventKind.GAP}


def heard(senses: Senses, *files: tuple[str, str]) -> list[Event]:
    return senses.on_signs(SignsSeen(inboxes=files), NOW, settings(), lambda _: False)


@given(st.lists(st.tuples(st.integers(0, 30), JSON), min_size=1, max_size=4))
def test_whatever_stands_in_a_field_nothing_breaks_and_nothing_else_is_told(changes: list[tuple[int, Any]]) -> None:
    senses = Senses("pve1")
    heard(senses, ("pve3", inbox(3, 1, 2, 3)))
    document = json.loads(inbox(5, 3, 4, 5))
    parts = [document, document["facts"], document["events"][0], document["events"][-1]]
    fields = [(part, name) for part in parts for name in sorted(part)]
    for number, value in changes:
        part, name = fields[number % len(fields)]
        part[name] = value
    events = heard(senses, ("pve3", json.dumps(document)))
    assert {event.kind for event in events} <= TOLD
    assert all(isinstance(described(joined(None, event)), str) for event in events)
    heard(senses, ("pve3", inbox(8, 8)))
    assert [event.vmid for event in heard(senses, ("pve3", inbox(9, 9)))] == [109], "and the next one is heard"


@given(st.text(max_size=300), st.integers(0, 500))
def test_torn_files_and_other_texts_are_no_events(text: str, length: int) -> None:
    senses = Senses("pve1")
    heard(senses, ("pve3", inbox(1, 1)))
    whole = inbox(2, 1, 2)
    assert heard(senses, ("pve3", text), ("pve9", text), (text or "x", whole)) == []
    if length < len(whole) - 2:
        assert heard(senses, ("pve3", whole[:length])) == []
    assert [event.vmid for event in heard(senses, ("pve3", whole))] == [102]


def test_a_file_that_is_torn_at_a_leaders_first_look_is_history_when_it_is_whole() -> None:
    senses = Senses("pve1")
    whole = inbox(500, 499, 500)
    assert heard(senses, ("pve3", whole[:-30])) == []
    assert heard(senses, ("pve3", whole)) == [], "neither a gap nor news: the first look covers it"
    assert [event.vmid for event in heard(senses, ("pve3", inbox(501, 501)))] == [601]


def test_what_cannot_be_read_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large it is, and however long it stays."""
    senses, parsed = Senses("pve1"), []
    monkeypatch.setattr("agent.daemon.senses.parse", lambda kind, text: parsed.append(text) or parse(kind, text))
    for _ in range(5):
        heard(senses, ("pve3", "x" * 10**6))
    assert len(parsed) == 1


def test_only_an_agent_reports_and_only_what_agents_report() -> None:
    """Flags, loads and who leads are the leader's own to see: a forged line must neither begin a drain nor let go of who is set aside."""
    senses = Senses("pve1")
    heard(senses, ("pve3", inbox(0)))
    document = json.loads(inbox(len(EventKind), *range(1, len(EventKind) + 1)))
    for entry, kind in zip(document["events"], EventKind, strict=True):
        entry["kind"], entry["request"] = kind.value, "r1" if kind is EventKind.REQUEST else None
    assert {event.kind for event in heard(senses, ("pve3", json.dumps(document)))} == TOLD - {EventKind.GAP}


def test_a_file_under_another_nodes_name_speaks_for_nobody() -> None:
    senses = Senses("pve1")
    heard(senses)
    assert heard(senses, ("pve2", inbox(1, 1)), ("PVE3", inbox(1, 1)), ("pve3.old", inbox(1, 1))) == []
    assert senses.inboxes == {}


def put_and_run(*acts: Callable[[World], None]) -> Simulation:
    made = simulation()
    for number, act in enumerate(acts):
        made.at(60 + 20 * number, lambda act=act: act(made.world))  # type: ignore[misc]
    made.run(60 + 20 * len(acts) + 60)
    return made


def test_garbage_beside_and_in_place_of_relay_files_leaves_the_leader_at_work() -> None:
    """A person copies, edits and removes; the next event of that node, and all of the others, are answered all the same."""
    made = put_and_run(
        lambda world: world.put_file("proxlb/inbox/pve3.json", "\0" * 5000),
        lambda world: world.put_file("proxlb/inbox/README", "who reads this?"),
        lambda world: world.put_file("proxlb/inbox/pve3.json.bak", inbox(900, 900)),
        lambda world: world.put_file("proxlb/inbox/pve3.bak.json", inbox(900, 900)),
        lambda world: world.put_file("proxlb/inbox/pve3/pve3.json", inbox(900, 900)),
        lambda world: world.put_file("proxlb/inbox/.json", "{}"),
        lambda world: world.drop_file("proxlb/inbox/pve2.json"),
        lambda world: world.leave_event("pve3", "130.post-start"),
        lambda world: world.leave_event("pve2", "120.post-start"),
    )
    assert len(said(made, "guest 130 started on pve3, seen by inbox")) == 1
    assert len(said(made, "guest 120 started on pve2, seen by inbox")) == 1
    assert said(made, "9[0-9][0-9]") == []
    assert not [line for line in made.world.journal if line.record.message_id is MessageId.BUG]


def test_a_forged_report_of_ten_to_the_thirty_events_is_one_gap_and_no_more() -> None:
    forged = json.dumps(json.loads(inbox(0)) | {"seq": 10**30})
    made = put_and_run(
        lambda world: world.put_file("proxlb/inbox/pve3.json", forged),
        lambda world: world.leave_event("pve3", "130.post-start"),
    )
    assert len(said(made, "did not get here, seen by")) == 1
    assert len(said(made, "guest 130 started on pve3, seen by inbox")) == 1


# the own file


def test_a_relay_file_that_somebody_removed_or_changed_is_put_back_within_minutes() -> None:
    """Else a new leader takes the node for one without an agent, and sends nobody there, until something happens on it."""
    made = simulation()
    path = "proxlb/inbox/pve3.json"
    for at_s, act in ((60, lambda: made.world.drop_file(path)), (700, lambda: made.world.put_file(path, "{}"))):
        made.run(at_s - 1)
        whole, writes = made.world.main.files[path], made.world.pmxcfs.writes[path]
        made.at(at_s, act)
        made.run(at_s + 400)
        assert json.loads(made.world.main.files[path])["node"] == "pve3"
        assert json.loads(made.world.main.files[path])["seq"] == json.loads(whole)["seq"]
        assert made.world.pmxcfs.writes[path] <= writes + 2
    writes = made.world.pmxcfs.writes[path]
    made.run(2500)
    assert made.world.pmxcfs.writes[path] == writes, "nobody writes what is there already"

# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether migrations go over a link of corosync, from what PVE's own files say; where nobody can tell, nothing is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.migration_network import REMEDY, SharedLink, one_at_a_time, shared_link, shared_words
from agent.core.settings import Settings
from agent.core.statistics import Members

MEMBERS = Members("pve1", True, {"pve1": True, "pve2": True}, {"pve1": "10.0.0.1", "pve2": "10.0.0.2"})


def conf(*rings: tuple[str, str], names: tuple[str, ...] = ("pve1", "pve2")) -> str:
    """corosync.conf with a link for each pair of the two nodes' addresses."""
    nodes = ""
    for number, name in enumerate(names):
        lines = "".join(f"    ring{link}_addr: {addresses[number]}\n" for link, addresses in enumerate(rings))
        nodes += f"  node {{\n    name: {name}\n    nodeid: {number + 1}\n{lines}  }}\n"
    return "totem {\n  interface {\n    linknumber: 0\n  }\n}\nnodelist {\n" + nodes + "}\n"


LAN, OWN, V6 = ("10.0.0.1", "10.0.0.2"), ("10.1.0.1", "10.1.0.2"), ("fd00::1", "fd00::2")


@pytest.mark.parametrize(
    ("datacenter", "corosync", "found"),
    [
        ("", conf(LAN), SharedLink(0, None)),
        ("migration: secure\n", conf(LAN), SharedLink(0, None)),
        ("migration: type=insecure\n", conf(OWN, LAN), SharedLink(1, None)),
        ("", conf(("pve1", "pve2.example.org")), SharedLink(0, None)),
        ("", conf(OWN), None),
        ("", conf(("other1", "other2")), None),
        ("migration: secure,network=10.0.0.0/24\n", conf(LAN), SharedLink(0, "10.0.0.0/24")),
        ("migration: network=10.1.0.0/16,type=secure\n", conf(LAN, OWN), SharedLink(1, "10.1.0.0/16")),
        ("keyboard: de\nmigration: secure,network=10.0.0.1/24\n", conf(LAN), SharedLink(0, "10.0.0.1/24")),
        ("migration: secure,network=10.9.0.0/24\n", conf(LAN, OWN), None),
        ("#migration: secure,network=10.9.0.0/24\n", conf(LAN), SharedLink(0, None)),
        ("migration: secure,network=fd00::/64\n", conf(LAN, V6), SharedLink(1, "fd00::/64")),
        ("migration: secure,network=fd01::/64\n", conf(LAN, V6), None),
        ("migration: secure,network=what\n", conf(LAN), None),
        ("migration: secure,network=10.0.0.0/24\n", conf(("pve1", "pve2")), SharedLink(0, "10.0.0.0/24")),
        ("", "", None),
    ],
)
def test_which_link_is_shared(datacenter: str, corosync: str, found: SharedLink | None) -> None:
    assert shared_link(datacenter, corosync, MEMBERS) == found


def test_addresses_are_told_apart_by_what_they_are_and_not_how_they_are_written() -> None:
    members = Members("pve1", True, {}, {"pve1": "fd00:0:0::1"})
    assert shared_link("", conf(V6), members) == SharedLink(0, None)


def test_where_the_nodes_addresses_are_not_known_nobody_can_tell() -> None:
    assert shared_link("", conf(LAN), Members("pve1", True, {"pve1": True})) is None
    assert shared_link("", conf(("pve1", "pve2")), Members("pve1", True, {"pve1": True})) is None


def test_one_at_a_time_holds_for_drains_too_and_changes_nothing_else() -> None:
    bound = one_at_a_time(Settings())
    assert (bound.migration.parallel_total, bound.drain.parallel_total, bound.drain.parallel_per_node) == (1, 1, 1)
    assert bound.migration.timeout_s == Settings().migration.timeout_s
    assert bound.balance == Settings().balance


def test_the_words_name_the_link_and_what_helps() -> None:
    assert shared_words(SharedLink(1, "10.0.0.0/24")).startswith("migrations go over link 1 of corosync (10.0.0.0/24): one at a time")
    assert shared_words(SharedLink(0, None)).endswith(REMEDY)


def test_where_somebody_wants_several_at_a_time_the_words_say_who_and_what_that_risks() -> None:
    words = shared_words(SharedLink(0, None), several=True)
    assert "several at a time, as migration.parallel_on_corosync_link says, though a network that they fill makes nodes lose" in words
    assert words.endswith(REMEDY)


@given(st.text(max_size=200), st.text(max_size=200), st.dictionaries(st.text(max_size=9), st.text(max_size=20), max_size=3))
def test_no_text_makes_it_fail(datacenter: str, corosync: str, addresses: dict[str, str]) -> None:
    shared_link(datacenter, corosync, Members("pve1", True, {}, addresses))
    shared_link(f"migration: {datacenter}", conf((corosync, "10.0.0.2")), Members("pve1", True, {}, addresses))

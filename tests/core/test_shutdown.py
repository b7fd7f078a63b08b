# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that shuts down: its flag, whose guests stay all the same, and who would be quorate without it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.shutdown import ShutdownFlag, flags_of_nodes, parse_flag, why_guests_stay, would_keep_quorum
from agent.core.statistics import Members

LEAVE = ShutdownFlag("boot-1")


@given(st.text(), st.from_regex(r"[0-9a-f-]{1,36}", fullmatch=True))
def test_what_a_node_writes_is_read_again(why: str, boot_id: str) -> None:
    flag = ShutdownFlag(boot_id, " ".join(why.split()))
    assert "\n" not in flag.text
    assert parse_flag(flag.text + "\n") == flag


@given(st.text())
def test_whatever_a_person_writes_is_read_or_is_no_such_flag(text: str) -> None:
    flag = parse_flag(text)
    assert flag is None or flag.text == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a new kernel",
        "shuts down",
        "shuts down, its guests leave first",
        "shuts down, its guests leave first; boot ",
        "rack 3 shuts down",
    ],
)
def test_a_persons_flag_is_none_of_a_shutdown(text: str) -> None:
    assert parse_flag(text) is None


def test_one_node_alone_is_emptied() -> None:
    flags = flags_of_nodes({"pve1": "a new kernel", "pve2": LEAVE.text})
    assert flags == {"pve2": LEAVE}
    assert why_guests_stay(flags, {"pve2"}) == {}


def test_of_several_that_go_none_is_emptied() -> None:
    flags = {"pve1": LEAVE, "pve2": LEAVE, "pve3": ShutdownFlag("boot-1", "mode is observe")}
    assert why_guests_stay(flags, set(flags)) == {
        "pve1": "pve2, pve3 shut down, too",
        "pve2": "pve1, pve3 shut down, too",
        "pve3": "mode is observe",
    }


def test_a_flag_that_is_left_over_empties_nobody_and_keeps_nobody_from_it() -> None:
    assert why_guests_stay({"pve1": LEAVE, "pve2": LEAVE}, {"pve2"}) == {"pve1": "it has gone, or its flag is of an earlier boot"}


def cluster(*online: bool) -> Members:
    return Members("pve1", True, {f"pve{number}": is_online for number, is_online in enumerate(online, 1)})


QDEVICE = "quorum {\n  device {\n    model: net\n    net {\n      algorithm: ffsplit\n      host: 192.0.2.9\n    }\n    votes: 1\n  }\n}\n"


@pytest.mark.parametrize(
    ("members", "conf", "keeps"),
    [
        (cluster(True, True, True), "", True),
        (cluster(True, True, False), "", False),
        (cluster(True, True, True, False), "", False),
        (cluster(True, True, True, True), "", True),
        (cluster(True, True), "", False),
        (cluster(True, True), QDEVICE, True),
        (cluster(True, True), QDEVICE.replace("    votes: 1\n", ""), True),
        (cluster(True, True), "# device {\n", False),
        (cluster(True, True), "quorum {\n  two_node: 1\n}\n", True),
        (cluster(True, False), "quorum {\n  two_node: 1\n}\n", False),
        (cluster(True, True, True), "nodelist {\n  node {\n    name: pve1\n    quorum_votes: 3\n  }\n}\n", False),
        (cluster(True, True, True), "nodelist {\n  node {\n    name: pve2\n    quorum_votes: 3\n  }\n}\n", True),
        (cluster(True, True, True), "}}}} garbage {{{\n: :\nnode {\nquorum_votes: many", True),
    ],
)
def test_the_others_must_be_quorate_without_it(members: Members, conf: str, keeps: bool) -> None:
    assert would_keep_quorum(members, conf, "pve1") is keeps


@given(st.text())
def test_any_corosync_conf_can_be_read(conf: str) -> None:
    assert would_keep_quorum(cluster(True, True, True), conf, "pve1") in (True, False)

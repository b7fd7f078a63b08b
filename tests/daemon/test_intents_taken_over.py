# SPDX-License-Identifier: GPL-3.0-or-later
"""What a former leader had only written down when it died: nobody knows whether PVE was asked. Where the guest is decides."""

from __future__ import annotations

import pytest

from agent.core.migrations import Migration, MigrationState
from agent.daemon import follow
from agent.daemon.follow import Follow
from agent.daemon.inputs import Now, SearchAnswer
from agent.daemon.outputs import Say
from tests.core.clusters import NOW, cluster, node, settings, vm
from tests.core.records import record

S = MigrationState
THREE = (node("pve1"), node("pve2"), node("pve3"))


def taken_over(where: str, *answers: str) -> tuple[Migration, str]:
    """What becomes of a move from pve1 to pve2 that was planned 200 s ago, and the words for it, when its guest is there now and PVE
    answers the search for a task with nothing, or with these errors."""
    intent = record(101, S.PLANNED, 200.0, intent="1-1")
    begun = Now(1000.0, NOW)
    made = Follow([intent], begun)
    late = Now(1000.0 + follow.DOUBT_S, NOW + follow.DOUBT_S)
    for error in answers or ("",):
        late = Now(late.boot_s + (follow.SILENT_S if error else 0.0), late.wall_s)
        changed, said = made.on_answer(SearchAnswer("1-1", None, error), settings(), late)
        assert (changed, said) == ([], []), "the look that follows decides"
    assert made.look_at_s is not None
    assert made.look_at_s <= late.boot_s
    changed, said = made.settle(cluster(*THREE, vm(101, where)), settings(), late)
    assert made.records == ()
    return changed[0], " | ".join(one.record.text for one in said if isinstance(one, Say))


@pytest.mark.parametrize("where", ["pve1", "pve3"])
def test_without_a_task_and_not_there_it_was_not_started(where: str) -> None:
    ended, words = taken_over(where)
    assert (ended.state, ended.failure) == (S.SKIPPED, None)
    assert words == "vm:101 guest101 from pve1 to pve2: the former leader did not start it"


def test_a_guest_that_is_there_has_moved_though_no_task_tells_of_it() -> None:
    ended, words = taken_over("pve2")
    assert ended.state is S.DONE, "else its cooldown would not hold"
    assert words == "vm:101 guest101 from pve1 to pve2: done in 260 s: the guest is there, but there is no task of it"


@pytest.mark.parametrize(("where", "state"), [("pve1", S.SKIPPED), ("pve2", S.DONE)])
def test_where_the_guest_is_decides_too_when_its_node_keeps_silent(where: str, state: MigrationState) -> None:
    ended, words = taken_over(where, "timed out", "timed out")
    assert ended.state is state
    assert "its node has not answered for 600 s" in words

# SPDX-License-Identifier: GPL-3.0-or-later
"""What every `LocalInbox` promises."""

from __future__ import annotations

import pytest

from agent.ports import InboxSight, TemporaryError
from tests.contracts.stages import InboxStage


def test_an_empty_inbox_gives_nothing(inbox: InboxStage) -> None:
    port = inbox.inbox()
    assert port.claim() == InboxSight((), (), None)
    assert port.claim() == InboxSight((), (), None)


def test_what_is_there_is_claimed_once_oldest_first(inbox: InboxStage) -> None:
    port = inbox.inbox()
    for name in ("102.post-start.pve2", "101.pre-stop", "102.pre-start", "101.pre-stop"):
        inbox.leave_event(name)
    assert port.claim().names == ("102.post-start.pve2", "102.pre-start", "101.pre-stop")
    assert port.claim().names == ()
    inbox.leave_event("101.pre-stop")
    assert port.claim().names == ("101.pre-stop",)


def test_requests_come_with_their_text(inbox: InboxStage) -> None:
    port = inbox.inbox()
    inbox.leave_request("a1", '{"do": "balance"}')
    inbox.leave_event("100.post-start")
    inbox.leave_request("b2", "what a mess ä")
    sight = port.claim()
    assert sight.requests == (("a1", '{"do": "balance"}'), ("b2", "what a mess ä"))
    assert sight.names == ("100.post-start",)
    assert port.claim().requests == ()


def test_the_flag_is_told_as_long_as_it_is_there(inbox: InboxStage) -> None:
    port = inbox.inbox()
    inbox.set_flag("new disks")
    assert [port.claim().flag for _ in range(2)] == ["new disks"] * 2
    inbox.set_flag("")
    assert port.claim().flag == ""
    inbox.set_flag(None)
    assert port.claim().flag is None


def test_a_process_that_was_killed_loses_nothing(inbox: InboxStage) -> None:
    killed = inbox.inbox()
    inbox.leave_event("100.post-start")
    inbox.leave_request("a1", "{}")
    killed.claim()
    inbox.leave_event("101.post-stop")
    successor = inbox.inbox()
    assert successor.claim() == InboxSight(("100.post-start", "101.post-stop"), (("a1", "{}"),), None)
    assert successor.claim() == InboxSight((), (), None)


def test_a_missing_folder_is_said_and_overcome(inbox: InboxStage) -> None:
    port = inbox.inbox()
    port.claim()
    inbox.leave_event("100.post-start")
    inbox.set_broken(True)
    with pytest.raises(TemporaryError):
        port.claim()
    inbox.set_broken(False)
    assert port.claim().names == ("100.post-start",)


def test_how_long_each_event_has_been_there_is_told(inbox: InboxStage) -> None:
    port = inbox.inbox()
    inbox.leave_event("100.post-start")
    inbox.leave_request("a1", "{}")
    inbox.leave_event("101.post-stop")
    sight = port.claim()
    assert len(sight.ages_s) == len(sight.names) == 2
    assert sight.ages_s[0] >= sight.ages_s[1] >= 0.0

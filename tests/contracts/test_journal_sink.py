# SPDX-License-Identifier: GPL-3.0-or-later
"""What every `JournalSink` promises."""

from __future__ import annotations

from agent.core.journal import Level, MessageId, Record
from tests.contracts.stages import JournalStage


def test_records_arrive_in_order(journal: JournalStage) -> None:
    sink = journal.sink()
    sink.say(Record(Level.INFO, MessageId.STARTED, "the agent runs"))
    sink.say(Record(Level.NOTICE, MessageId.MOVE, "vm:101 pve1 -> pve2", vmid=101, source="pve1", target="pve2"))
    assert journal.texts() == ["the agent runs", "vm:101 pve1 -> pve2"]


def test_nothing_it_is_given_or_that_happens_to_it_makes_it_fail(journal: JournalStage) -> None:
    sink = journal.sink()
    sink.say(Record(Level.INFO, MessageId.MOVE, "odd \udc80 text"))
    assert len(journal.texts()) == 1
    journal.close()
    sink.say(Record(Level.ERROR, MessageId.BUG, "nobody hears this"))

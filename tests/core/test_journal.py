# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's records: identifiers by which journalctl finds a kind of message, and fields by which it finds a guest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.core.cluster import GuestType
from agent.core.events import EventKind
from agent.core.journal import Level, MessageId, Record
from agent.core.plan_types import Gate
from agent.core.reasons import LOAD_REASONS, MEANING, RULE_REASONS, MoveReason, RefusalReason


def test_message_ids_are_32_hexadecimal_digits_and_all_different() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{32}", message.value) for message in MessageId)
    assert len({message.value for message in MessageId}) == len(MessageId.__members__)


def test_a_record_has_the_fields_that_it_has_something_for() -> None:
    whole = Record(
        Level.NOTICE, MessageId.MOVE, "moving", event="overload", reason="spread", vmid=101, source="pve1", target="pve2", epoch=7
    )
    assert whole.fields() == {
        "MESSAGE_ID": MessageId.MOVE.value,
        "PROXLB_EVENT": "overload",
        "PROXLB_REASON": "spread",
        "PROXLB_VMID": "101",
        "PROXLB_SOURCE": "pve1",
        "PROXLB_TARGET": "pve2",
        "PROXLB_EPOCH": "7",
    }
    assert Record(Level.INFO, MessageId.EVENT, "text").fields() == {"MESSAGE_ID": MessageId.EVENT.value}


def test_a_zero_is_a_value() -> None:
    assert Record(Level.INFO, MessageId.EVENT, "text", vmid=0, epoch=0).fields().keys() == {"MESSAGE_ID", "PROXLB_VMID", "PROXLB_EPOCH"}


def test_levels_are_those_of_syslog() -> None:
    assert {level.name: level.value for level in Level} == {"ERROR": 3, "WARNING": 4, "NOTICE": 5, "INFO": 6, "DEBUG": 7}


@pytest.mark.parametrize("words", [MoveReason, RefusalReason, EventKind, Gate, GuestType])
def test_words_are_small_letters_with_hyphens(words: type[MoveReason]) -> None:
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", word.value) for word in words)


def test_every_refusal_has_its_meaning_in_one_line() -> None:
    assert set(MEANING) == set(RefusalReason)
    assert all(text and "\n" not in text for text in MEANING.values())


def test_the_man_page_says_the_same_of_each_refusal() -> None:
    lines = (Path(__file__).resolve().parents[2] / "packaging/proxlb-agent.8").read_text(encoding="utf-8").splitlines()
    section = lines[lines.index(".Sh WHY A GUEST STAYS") : lines.index(".Sh SETTINGS")]
    told = {line.removeprefix(".It Li "): section[number + 1] for number, line in enumerate(section) if line.startswith(".It Li ")}
    assert told == {reason.value: f"{meaning[0].upper()}{meaning[1:]}." for reason, meaning in MEANING.items()}


def test_the_words_for_moves_and_refusals_that_are_the_same_mean_the_same() -> None:
    assert {reason.value for reason in MoveReason} & {reason.value for reason in RefusalReason} == {"affinity", "anti-affinity"}
    assert not LOAD_REASONS & RULE_REASONS

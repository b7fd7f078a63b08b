# SPDX-License-Identifier: GPL-3.0-or-later
"""What a simulated cluster keeps of what was done to it, for those who judge the agents."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.journal import Record
from agent.ports import MigrationOrder


@dataclass(frozen=True, slots=True)
class Post:
    """One request to migrate that an agent sent.

    Shape:   `held_lock` is whether the sender's node had the lock at that instant, whatever it believed; `answer` is the
             UPID, or the error's class and text.
    """

    at_s: float
    sender: str
    order: MigrationOrder
    held_lock: bool
    answer: str


@dataclass(frozen=True, slots=True)
class HaPost:
    """One request for maintenance of a node that an agent handed to the HA manager, or took back. `held_lock` as for `Post`."""

    at_s: float
    sender: str
    node: str
    wanted: bool
    held_lock: bool


@dataclass(frozen=True, slots=True)
class JournalLine:
    """One record that an agent wrote."""

    at_s: float
    node: str
    record: Record

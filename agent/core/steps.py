# SPDX-License-Identifier: GPL-3.0-or-later
"""A step of a plan before it has an order: guests that go to one node together, and why."""

from __future__ import annotations

from dataclasses import dataclass

from agent.core.conditions import Purpose
from agent.core.reasons import LOAD_REASONS, RULE_REASONS, MoveReason


@dataclass(frozen=True, slots=True)
class Step:
    """Guests (one, or a unit that must stay together) that go to `target`; `sources` pairs each VMID with where it is.

    `until`: the first half of an exchange may lift its target over a threshold until these have left it, right afterwards.
    """

    sources: tuple[tuple[int, str], ...]
    target: str
    reason: MoveReason
    until: tuple[int, ...] = ()

    @property
    def vmids(self) -> tuple[int, ...]:
        """The guests that move."""
        return tuple([vmid for vmid, _ in self.sources])

    @property
    def purpose(self) -> Purpose:
        """Which limits apply to the step."""
        return purpose_of(self.reason)


def purpose_of(reason: MoveReason) -> Purpose:
    """Which conditions apply to a move made for that reason."""
    if reason in RULE_REASONS:
        return Purpose.RULE
    if reason in LOAD_REASONS or reason is MoveReason.RETURN_HOME:
        return Purpose.LOAD
    return Purpose.DRAIN

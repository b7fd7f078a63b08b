# SPDX-License-Identifier: GPL-3.0-or-later
"""Who an agent is, and how often it looks at things."""

from __future__ import annotations

from dataclasses import dataclass

from agent.daemon.mailbox import CLAIM_EVERY_S, FACTS_EVERY_S


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often the agent looks at what does not announce itself, in seconds; simulations of weeks look less often.

    Shape:   `signs_s` for the cluster log, inboxes and flags (0.2 ms of reading), `statistics_s` is pvestatd's own round.
    """

    signs_s: float = 2.0
    statistics_s: float = 10.0
    settings_s: float = 10.0
    status_s: float = 5.0
    inbox_s: float = CLAIM_EVERY_S
    facts_s: float = FACTS_EVERY_S


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this agent is: its node's name, a word for this run of it, and for this boot of the node."""

    node: str
    incarnation: str
    boot_id: str

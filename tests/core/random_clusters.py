# SPDX-License-Identifier: GPL-3.0-or-later
"""What hypothesis draws clusters and questions from, for all tests of plans."""

from __future__ import annotations

import random

from hypothesis import settings as profile
from hypothesis import strategies as st

from agent.core.cluster import GIB, Snapshot
from agent.core.guest_load import GuestLoad, InFlight, Ledger
from agent.core.plan_types import Refusal, Verdict
from agent.core.question import NO_LIMIT, Question, Scope
from agent.core.reasons import RefusalReason
from agent.core.settings import Settings
from tests.core.clusters import NOW, Draw, settings

PLAIN = settings()
USUAL_EXAMPLES = 100  # of hypothesis, and so of the profile `house`
HOW: list[Settings] = [
    PLAIN,
    settings({"guests": {"containers": "always"}}),
    settings({"balance": {"spread_percent": 0, "cpu": {"threshold_percent": 60}, "memory": {"threshold_percent": 50}}}),
    settings(
        {
            "balance": {"cpu": {"weight": 0}, "node_reserve": {"memory_percent": 20}},
            "guests": {"containers": "never", "ignore": ["100-109"]},
        }
    ),
    settings({"balance": {"assigned_memory_cap_percent": 100, "min_gain_percent": 0}, "guests": {"local_disks": True}}),
    settings(
        {"nodes": {"ignore": ["pve1"], "maintenance": ["PVE2"]}, "balance": {"cpu": {"threshold_percent": 0}}, "drain": {"stopped": True}}
    ),
]


def examples(usual: int) -> int:
    """How many examples a property of plans looks at: so many, and as many times more as the profile takes of others."""
    return usual * profile().max_examples // USUAL_EXAMPLES


def draws(guests: int = 200, nodes: tuple[int, int] = (5, 12)) -> st.SearchStrategy[Draw]:
    """Clusters of so many nodes; hypothesis draws their shape, the dice inside their guests."""
    return st.builds(
        Draw,
        seed=st.integers(0, 2**32),
        nodes=st.integers(*nodes),
        guests=st.integers(min(20, guests // 2), guests),
        skew=st.sampled_from((0.0, 0.5, 1.0, 2.0)),
        fill=st.floats(0.25, 0.85),
        rules=st.sampled_from((0.0, 0.2, 0.5)),
        oddities=st.sampled_from((0.0, 0.1, 0.3)),
    )


def remembered(snapshot: Snapshot, seed: int) -> Question:
    """A question with something of everything that can be remembered."""
    dice = random.Random(seed)
    vmids = [guest.vmid for guest in snapshot.guests]
    names = [node.name for node in snapshot.nodes]

    def some(share: float) -> list[int]:
        return [vmid for vmid in vmids if dice.random() < share]

    flights = [guest for guest in snapshot.guests if guest.is_running and not guest.template and dice.random() < 0.04]
    return Question(
        scope=dice.choice((Scope(), Scope(), Scope(frozenset(dice.sample(names, min(3, len(names)))), frozenset(some(0.3))))),
        force=dice.random() < 0.3,
        held=dice.choice((None, frozenset(names[:2]))),
        ledger=Ledger(
            {vmid: GuestLoad(dice.uniform(0, 4), dice.uniform(0.1, 8) * GIB) for vmid in some(0.1)},
            tuple(
                InFlight(one.vmid, one.node, dice.choice([name for name in names if name != one.node]), GuestLoad(0.5, 2.0 * GIB))
                for one in flights
            ),
            frozenset(some(0.05)),
        ),
        cooling=dict.fromkeys(some(0.1), "now"),
        set_aside=dict.fromkeys(some(0.05), "it failed"),
        homes={vmid: dice.choice(names) for vmid in some(0.1)},
        verdicts={vmid: Verdict(vmid, NOW, Refusal(vmid, RefusalReason.LOCAL_DISK)) for vmid in some(0.05)}
        | {
            vmid: Verdict(vmid, NOW, None, ((dice.choice(names), Refusal(vmid, RefusalReason.NODE_REFUSED, "no such bridge")),))
            for vmid in some(0.1)
        },
        moves_per_pass=dice.choice((4, NO_LIMIT)),
        moves_left=dice.choice((0, 3, 20, NO_LIMIT)),
        avoided={vmid: {dice.choice(names): "it failed"} for vmid in some(0.05)},
        stepped_back=dict.fromkeys(some(0.05), "lb moved it"),
    )

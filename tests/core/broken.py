# SPDX-License-Identifier: GPL-3.0-or-later
"""Clusters and questions that are broken: sound ones of which dice have spoilt some fields with whatever their type can hold.

Sound ones to begin with, as a cluster in which nothing is right has no moves that could be wrong.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import fields, replace

from agent.core.cluster import GIB, Guest, Maintenance, Node, NodeFacts, Snapshot, Task
from agent.core.guest_load import GuestLoad, InFlight, Ledger
from agent.core.plan_types import Gate, Refusal, Verdict
from agent.core.question import NO_LIMIT, Question, Scope
from agent.core.reasons import RefusalReason
from tests.core.clusters import NOW, Draw, random_cluster

ABSURD = (-1.0, -1e-9, 0.0, 1e-300, 0.5, 1.0, 4.0, 1e9, 1e18, 1e300, math.inf, -math.inf, math.nan)
# by their numbers: separators, a space without a width, directions, Arabic, Hebrew, the Turkish i, sharp and long s, a ligature, Cyrillic,
# Chinese, a bird, two halves of a character, and what no terminal shows
LETTERS = (0xA0, 0x200B, 0x200D, 0x202E, 0x627, 0x5D0, 0x130, 0x131, 0xDF, 0xFB00, 0x17F, 0x41A, 0x439, 0x65E5, 0x1F427, 0xD800, 0xDFFF, 0)
SCRIPTS = "aZ0-_.;, \t\n\x7f" + "".join(map(chr, LETTERS))
PREFIXES = ("plb_affinity_", "plb_anti_affinity_", "plb_pin_", "plb_ignore", "plb_", "PLB_Affinity_", "plb_ANTI_affinity_", "")
LONG = ("x" * 10_000, "plb_affinity_" + chr(0xFC) * 10_000, ";" * 500, "plb_pin_" * 1000)
STATES = ("running", "stopped", "paused", "suspended", "unknown", "", "l\u00e4uft")


def text(dice: random.Random, most: int = 8) -> str:
    """Text in any script, and some that is none."""
    return "".join(dice.choice(SCRIPTS) for _ in range(dice.randrange(most + 1)))


def amount(dice: random.Random) -> float | int | None:
    """A number of anything, absurd more often than not."""
    return dice.choice((None, dice.choice(ABSURD), dice.choice(ABSURD), dice.uniform(-4, 64), dice.randrange(-5, 1 << 62), 48 * GIB))


def size(dice: random.Random) -> float | int:
    """As `amount`, where the type allows nothing missing."""
    found = amount(dice)
    return 0 if found is None else found


def tag(dice: random.Random, names: list[str]) -> str:
    """A tag that is a rule, or nearly one, or very long."""
    if dice.random() < 0.05:
        return dice.choice(LONG)
    return dice.choice(PREFIXES) + dice.choice((dice.choice("abc"), dice.choice("abc"), text(dice), dice.choice(names), ""))


def spoilt_node(one: Node, dice: random.Random) -> Node:
    """The node with one field spoilt; its name stays, it is what holds the cluster together."""
    name = dice.choice([field.name for field in fields(Node)][1:])
    values: dict[str, Callable[[], object]] = {"online": lambda: False, "reports": lambda: dice.choice((None, False))}
    values |= dict.fromkeys(("cpu_cores", "memory_bytes"), lambda: size(dice))
    values["facts"] = lambda: NodeFacts(text(dice), text(dice), text(dice), dice.choice(ABSURD), text(dice), text(dice), (text(dice),))
    known: Callable[[], object] = values.get(name, lambda: amount(dice))
    return _with(one, name, known) if name in values or _is_a_number(one, name) else one


def spoilt_guest(guest: Guest, dice: random.Random, names: list[str]) -> Guest:
    """The guest with one field spoilt."""
    name = dice.choice([field.name for field in fields(Guest)][2:])
    values: dict[str, Callable[[], object]] = {
        "name": lambda: text(dice),
        "node": lambda: dice.choice((*names, "nowhere", "")),
        "status": lambda: dice.choice(STATES),
        "cpu_cores": lambda: size(dice),
        "memory_bytes": lambda: size(dice),
        "tags": lambda: tuple(tag(dice, names) for _ in range(dice.randrange(1, 5))),
        "pool": lambda: text(dice),
        "lock": lambda: dice.choice(("", "backup", text(dice))),
        "ha": lambda: dice.choice(("", "started", text(dice))),
        "template": lambda: True,
    }
    known: Callable[[], object] = values.get(name, lambda: amount(dice))
    return _with(guest, name, known) if name in values or _is_a_number(guest, name) else guest


def _is_a_number(thing: Node | Guest, name: str) -> bool:
    return isinstance(getattr(thing, name), int | float | None) and not isinstance(getattr(thing, name), bool)


def _with(thing: object, name: str, value: Callable[[], object]) -> object:
    return replace(thing, **{name: value()})  # type: ignore[type-var]


def broken_task(dice: random.Random, names: list[str]) -> Task:
    """A task of which anything may be true."""
    return Task(
        upid=text(dice),
        node=dice.choice((*names, "nowhere")),
        kind=dice.choice(("vzdump", "qmigrate", "vzmigrate", "startall", "qmstart", "")),
        target_id=dice.choice(("", "x", "-1", "\u0663", "1" * 5000, "100", "101", "102", "103")),
        user="root@pam",
        started_at=dice.choice(ABSURD),
        ended_at=dice.choice((None, NOW, *ABSURD)),
        status=dice.choice((None, "OK", "")),
    )


def broken_cluster(seed: int) -> Snapshot:
    """A cluster of a few nodes with a tenth to all of its nodes and guests spoilt."""
    dice = random.Random(seed)
    draw = Draw(
        seed, dice.randrange(1, 6), dice.randrange(2, 40), dice.choice((0.0, 2.0)), dice.uniform(0.2, 0.9), dice.choice((0, 0.5)), 0.1
    )
    snapshot = random_cluster(draw)
    names = [one.name for one in snapshot.nodes]
    share = dice.choice((0.1, 0.3, 1.0))
    return replace(
        snapshot,
        nodes=tuple(spoilt_node(one, dice) if dice.random() < share / 2 else one for one in snapshot.nodes),
        guests=tuple(spoilt_guest(one, dice, names) if dice.random() < share else one for one in snapshot.guests),
        tasks=tuple(broken_task(dice, names) for _ in range(dice.choice((0, 0, 3)))),
        maintenance=tuple(Maintenance(dice.choice((*names, "nowhere", "")), text(dice)) for _ in range(dice.choice((0, 0, 1, 2)))),
        no_target=tuple(dice.choice((*names, "nowhere")) for _ in range(dice.choice((0, 0, 1)))),
        unseen=dice.choice(((), (), (), (), (999,))),
    )


def broken_question(snapshot: Snapshot, seed: int) -> Question:
    """A question about guests and nodes that may be there or not, with limits that may be none."""
    dice = random.Random(seed)
    vmids = [*(guest.vmid for guest in snapshot.guests[:10]), 0, -1, 999_999_999]
    names = [*(one.name for one in snapshot.nodes), "nowhere", ""]

    def some(most: int) -> list[int]:
        return dice.sample(vmids, dice.randrange(min(most, len(vmids)) + 1))

    def load() -> GuestLoad:
        return GuestLoad(dice.uniform(0, 16), dice.choice((0.0, dice.uniform(0, 100) * GIB)))

    def verdict(vmid: int) -> Verdict:
        reason = dice.choice((RefusalReason.LOCAL_DISK, RefusalReason.LOCKED, RefusalReason.PRECONDITION))
        refusal = dice.choice((None, Refusal(vmid, reason, text(dice))))
        return Verdict(
            vmid,
            NOW,
            refusal,
            tuple((dice.choice(names), Refusal(vmid, RefusalReason.NODE_REFUSED, text(dice))) for _ in range(dice.randrange(3))),
        )

    limits = (NO_LIMIT, NO_LIMIT, 20, 4, 1, 0, -1)
    return Question(
        trigger=text(dice),
        scope=dice.choice((Scope(), Scope(), Scope(frozenset(dice.sample(names, 2)), frozenset(some(5))), Scope(None, frozenset(some(5))))),
        held=dice.choice((None, None, frozenset(dice.sample(names, 2)))),
        opened_by=dice.choice((None, None, Gate.OVERLOAD, Gate.SPREAD, Gate.FORCED)),
        force=dice.random() < 0.4,
        balance_load=dice.random() < 0.8,
        repair_rules=dice.random() < 0.8,
        ledger=Ledger(
            learned={vmid: load() for vmid in some(4)},
            in_flight=tuple(InFlight(vmid, *dice.sample(names, 2), load()) for vmid in some(4)),
            landed=frozenset(some(4)),
            unsampled=frozenset(some(2)),
        ),
        cooling={vmid: text(dice) for vmid in some(4)},
        set_aside={vmid: text(dice) for vmid in some(4)},
        homes={vmid: dice.choice(names) for vmid in some(5)},
        verdicts={vmid: verdict(vmid) for vmid in some(4)},
        moves_per_pass=dice.choice(limits),
        moves_left=dice.choice(limits),
        stepped_back={vmid: text(dice) for vmid in some(4)},
    )

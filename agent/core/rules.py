# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules read from tags: who stays together, who stays apart, who stays where, who stays put."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from agent.core.cluster import Guest
from agent.core.plan_types import Conflict

AFFINITY = "plb_affinity_"
ANTI_AFFINITY = "plb_anti_affinity_"
PIN = "plb_pin_"
IGNORE = "plb_ignore"

_SEPARATORS = re.compile(r"[;, ]+")


@dataclass(frozen=True, slots=True)
class Group:
    """Guests that share a tag; `rule` is the tag in small letters, as case makes no difference."""

    rule: str
    vmids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a cluster.

    Shape:   groups have two guests or more, sorted by rule; `pins` maps a VMID to the existing nodes it may be on;
             `apart` maps a VMID to those it must not share a node with; `units` maps a VMID to all guests that must be
             where it is (itself included, sorted), through however many affinity groups; `contradicted` are guests whose
             rules cannot be kept together: they are left where they are.
    """

    affinity: tuple[Group, ...]
    anti_affinity: tuple[Group, ...]
    pins: Mapping[int, frozenset[str]]
    apart: Mapping[int, frozenset[int]]
    units: Mapping[int, tuple[int, ...]]
    ignored: frozenset[int]
    contradicted: frozenset[int]
    conflicts: tuple[Conflict, ...]

    def unit(self, vmid: int) -> tuple[int, ...]:
        """The guests that must be on one node with this one, itself included."""
        return self.units.get(vmid, (vmid,))


def split_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Single tags of PVE's `tags` field, which separates by `;`, and of people, who also use `,` and spaces."""
    return tuple(dict.fromkeys(tag for field in tags for tag in _SEPARATORS.split(field) if tag))


def read_rules(guests: Iterable[Guest], node_names: Iterable[str], *, use_tags: bool = True) -> Rules:
    """Return the rules that the guests' tags state, with the conflicts among them.

    Guests are known by VMID; node names match in any case; several pins are a choice; a pin to a node that does not
    exist is reported and leaves the guest free. A group of one is no rule.

    Raises:  nothing; whatever a tag says is a rule, a conflict, or somebody else's tag.
    """
    nodes = {name.lower(): name for name in node_names}
    together: dict[str, list[int]] = defaultdict(list)
    separate: dict[str, list[int]] = defaultdict(list)
    pins: dict[int, frozenset[str]] = {}
    ignored: set[int] = set()
    conflicts: list[Conflict] = []
    running: dict[int, bool] = {}
    for guest in sorted(guests, key=lambda guest: guest.vmid):
        if guest.template:
            continue
        running[guest.vmid] = guest.is_running
        wanted: set[str] = set()
        for tag in split_tags(guest.tags) if use_tags else ():
            word = tag.lower()
            if word == IGNORE or word.startswith(IGNORE + "_"):
                ignored.add(guest.vmid)
            elif word.startswith(ANTI_AFFINITY) and word != ANTI_AFFINITY:
                separate[word].append(guest.vmid)
            elif word.startswith(AFFINITY) and word != AFFINITY:
                together[word].append(guest.vmid)
            elif word.startswith(PIN) and word != PIN:
                if (name := nodes.get(word.removeprefix(PIN))) is None:
                    conflicts.append(Conflict(tag, (guest.vmid,), "there is no such node; the tag has no effect"))
                else:
                    wanted.add(name)
        if wanted:
            pins[guest.vmid] = frozenset(wanted)

    affinity = _groups(together)
    anti_affinity = _groups(separate)
    apart: dict[int, set[int]] = defaultdict(set)
    for group in anti_affinity:
        for one, other in combinations(group.vmids, 2):
            apart[one].add(other)
            apart[other].add(one)
    units = _units([Group(group.rule, tuple(v for v in group.vmids if running[v])) for group in affinity])

    contradicted: set[int] = set()
    for unit in dict.fromkeys(units.values()):
        rules = [group.rule for group in affinity if set(group.vmids) & set(unit)]
        name = " ".join(rules)
        split = [(one, other) for one, other in combinations(unit, 2) if other in apart[one]]
        if split:
            one, other = split[0]
            conflicts.append(Conflict(name, unit, f"guests {one} and {other} must also be kept apart"))
            contradicted.update(unit)
        allowed = [pins[vmid] for vmid in unit if vmid in pins]
        if allowed and not frozenset.intersection(*allowed):
            conflicts.append(Conflict(name, unit, "the guests are pinned to different nodes"))
            contradicted.update(unit)
    return Rules(
        affinity=affinity,
        anti_affinity=anti_affinity,
        pins=pins,
        apart={vmid: frozenset(others) for vmid, others in sorted(apart.items())},
        units=units,
        ignored=frozenset(ignored),
        contradicted=frozenset(contradicted),
        conflicts=tuple(conflicts),
    )


def crowded(rules: Rules, usable_nodes: int) -> tuple[Conflict, ...]:
    """The anti-affinity groups that have more guests than there are nodes to keep them apart."""
    return tuple(
        Conflict(group.rule, group.vmids, f"{len(group.vmids)} guests, {usable_nodes} nodes")
        for group in rules.anti_affinity
        if len(group.vmids) > usable_nodes
    )


def _groups(members: Mapping[str, list[int]]) -> tuple[Group, ...]:
    return tuple(Group(rule, tuple(sorted(set(vmids)))) for rule, vmids in sorted(members.items()) if len(set(vmids)) > 1)


def _units(groups: Iterable[Group]) -> dict[int, tuple[int, ...]]:
    """Connected guests of overlapping groups, each with the whole unit it belongs to."""
    unit_of: dict[int, set[int]] = {}
    for group in groups:
        merged = set(group.vmids)
        for vmid in group.vmids:
            merged |= unit_of.get(vmid, set())
        for vmid in merged:
            unit_of[vmid] = merged
    return {vmid: tuple(sorted(members)) for vmid, members in sorted(unit_of.items()) if len(members) > 1}

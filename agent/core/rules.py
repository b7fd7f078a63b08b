# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules: who stays together, who stays apart, who stays where, who stays put, and which tag, pool or HA rule says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum

from agent.core.plan_types import Conflict


class RuleSource(StrEnum):
    """Who states a rule. What the HA manager states it also puts right itself."""

    TAG = "tag"
    POOL = "pool"
    HA = "ha"


@dataclass(frozen=True, slots=True)
class Group:
    """Guests of one rule, sorted; `rule` is its name for people: a tag in small letters, `pool web`, `HA rule db`."""

    rule: str
    vmids: tuple[int, ...]
    source: RuleSource = RuleSource.TAG


@dataclass(frozen=True, slots=True)
class Pin:
    """The nodes that one rule leaves to one guest; none when it leaves it none now."""

    rule: str
    nodes: frozenset[str]
    source: RuleSource = RuleSource.TAG

    @property
    def words(self) -> str:
        """The rule and its nodes; a tag has them in its name."""
        if self.source is RuleSource.TAG:
            return self.rule
        return f"{self.rule}: {', '.join(sorted(self.nodes)) or 'none of its nodes is available'}"


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a cluster.

    Shape:   groups have two guests or more, sorted by rule; `pins_of` maps a VMID to what each rule leaves it, `pins` to the
             nodes that all of them leave it; `groups_apart` maps a VMID to the places in `anti_affinity` of its groups; `units`
             maps a VMID to all guests that must be where it is (itself included, sorted), through however many affinity groups;
             `contradicted` are guests whose rules cannot be kept together: they are left where they are; `stopped` are guests
             that do not run, and hold their place in an anti-affinity group; `named` maps a VMID to what its rules are called.
    """

    affinity: tuple[Group, ...]
    anti_affinity: tuple[Group, ...]
    pins: Mapping[int, frozenset[str]]
    pins_of: Mapping[int, tuple[Pin, ...]]
    groups_apart: Mapping[int, tuple[int, ...]]
    members_apart: tuple[frozenset[int], ...]
    units: Mapping[int, tuple[int, ...]]
    ignored: frozenset[int]
    contradicted: frozenset[int]
    stopped: frozenset[int]
    named: Mapping[int, tuple[str, ...]]
    conflicts: tuple[Conflict, ...]

    def unit(self, vmid: int) -> tuple[int, ...]:
        """The guests that must be on one node with this one, itself included."""
        return self.units.get(vmid, (vmid,))

    @property
    def apart(self) -> Mapping[int, frozenset[int]]:
        """VMID to the guests it must not share a node with; made when asked for, as a group of n guests has n * n pairs."""
        return _Apart(self)

    def foe(self, vmid: int, present: AbstractSet[int]) -> tuple[int, Group] | None:
        """Of these guests the first that must be kept apart from this one, and the rule that says so; None when there is none."""
        found: tuple[int, Group] | None = None
        for place in self.groups_apart.get(vmid, ()):
            foes = present & self.members_apart[place]
            if vmid in foes:
                foes = foes - {vmid}
            if foes and (found is None or min(foes) < found[0]):
                found = min(foes), self.anti_affinity[place]
        return found

    def why_together(self, one: int, other: int) -> str:
        """The rule that binds these two guests, or the first that binds the one to anybody when it is through others."""
        mine = [group for group in self.affinity if one in group.vmids]
        return next((group.rule for group in mine if other in group.vmids), mine[0].rule if mine else "")

    def broken_pins(self, vmid: int, node: str) -> tuple[Pin, ...]:
        """The pins of the guest that do not leave it this node."""
        return tuple(pin for pin in self.pins_of.get(vmid, ()) if node not in pin.nodes)


class _Apart(Mapping[int, frozenset[int]]):
    """`Rules.apart`."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def __getitem__(self, vmid: int) -> frozenset[int]:
        rules = self._rules
        return frozenset().union(*(rules.members_apart[place] for place in rules.groups_apart[vmid])) - {vmid}

    def __iter__(self) -> Iterator[int]:
        return iter(self._rules.groups_apart)

    def __len__(self) -> int:
        return len(self._rules.groups_apart)

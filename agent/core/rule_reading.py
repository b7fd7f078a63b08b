# SPDX-License-Identifier: GPL-3.0-or-later
"""From what tags, pools and HA rules say to rules that agree, with the conflicts among them named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from agent.core.cluster import Snapshot
from agent.core.plan_types import Conflict
from agent.core.rules import Group, Pin, Rules
from agent.core.settings import Settings
from agent.core.stated_rules import Stated, stated_rules


def read_rules(snapshot: Snapshot, settings: Settings) -> Rules:
    """Return the rules of the cluster's guests, with the conflicts among them.

    Guests are known by VMID; node names match in any case; several pin tags are a choice, while pins of different
    sources must all be kept. A pin to a node that does not exist is reported and leaves the guest free.

    Shape:   time and space grow with the number of guests in all groups together, never with pairs of them.
    Raises:  nothing.
    """
    stated = stated_rules(snapshot, settings)
    running = {guest.vmid for guest in snapshot.guests if guest.is_running and not guest.template}
    affinity = tuple(sorted(stated.together, key=lambda group: (group.rule, group.vmids)))
    anti_affinity = tuple(sorted(stated.apart, key=lambda group: (group.rule, group.vmids)))
    units = _units([vmid for vmid in group.vmids if vmid in running] for group in affinity)
    contradicted: set[int] = set()
    pins_of = _pins(stated, _available(snapshot, settings), contradicted)
    groups_apart: dict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(anti_affinity):
        for vmid in group.vmids:
            groups_apart[vmid].append(place)
    for unit in _contradicted_units(units, affinity, anti_affinity, pins_of, stated.conflicts):
        contradicted.update(unit)
    return Rules(
        affinity=affinity,
        anti_affinity=anti_affinity,
        pins={vmid: _allowed(pins) for vmid, pins in sorted(pins_of.items())},
        pins_of=pins_of,
        groups_apart={vmid: tuple(places) for vmid, places in sorted(groups_apart.items())},
        members_apart=tuple(frozenset(group.vmids) for group in anti_affinity),
        units=units,
        ignored=frozenset(stated.ignored),
        contradicted=frozenset(contradicted),
        stopped=frozenset(guest.vmid for guest in snapshot.guests if not guest.is_running),
        named={vmid: tuple(names) for vmid, names in sorted(stated.named.items())},
        conflicts=tuple(stated.conflicts),
    )


def _available(snapshot: Snapshot, settings: Settings) -> frozenset[str]:
    """The nodes to which a guest could go at all, as far as a pin that gives way asks."""
    away = {maintenance.node for maintenance in snapshot.maintenance} | set(snapshot.no_target)
    emptied = {name.lower() for name in settings.nodes.maintenance}
    return frozenset(node.name for node in snapshot.nodes if node.online and node.name not in away and node.name.lower() not in emptied)


def _allowed(pins: Iterable[Pin]) -> frozenset[str]:
    return frozenset.intersection(*(pin.nodes for pin in pins))


def _pins(stated: Stated, available: frozenset[str], contradicted: set[int]) -> dict[int, tuple[Pin, ...]]:
    """The pins that hold for each guest; who is pinned to nothing by rules that disagree is contradicted."""
    found: dict[int, tuple[Pin, ...]] = {}
    for vmid in sorted(stated.hard.keys() | stated.soft.keys()):
        kept = list(stated.hard.get(vmid, ()))
        if len(kept) > 1 and all(pin.nodes for pin in kept) and not _allowed(kept):
            rules = ", ".join(pin.rule for pin in kept)
            stated.conflicts.append(Conflict(rules, (vmid,), "the rules leave the guest no node: " + "; ".join(pin.words for pin in kept)))
            contradicted.add(vmid)
        for pin in stated.soft.get(vmid, ()):
            if not pin.nodes & available:
                continue  # what is not strict gives way while none of its nodes is there
            if not kept or _allowed([*kept, pin]):
                kept.append(pin)
            elif vmid not in contradicted:
                others = ", ".join(other.rule for other in kept)
                stated.conflicts.append(
                    Conflict(f"{others}, {pin.rule}", (vmid,), f"together they leave the guest no node; {pin.rule}, not strict, gives way")
                )
        if kept:
            found[vmid] = tuple(kept)
    return found


def _units(groups: Iterable[list[int]]) -> dict[int, tuple[int, ...]]:
    """Connected guests of overlapping groups, each with the whole unit it belongs to."""
    leads: dict[int, int] = {}

    def lead(vmid: int) -> int:
        leads.setdefault(vmid, vmid)
        while leads[vmid] != vmid:
            leads[vmid] = leads[leads[vmid]]
            vmid = leads[vmid]
        return vmid

    for group in groups:
        for vmid in group[1:]:
            one, other = sorted((lead(group[0]), lead(vmid)))
            leads[other] = one
    members: dict[int, list[int]] = defaultdict(list)
    for vmid in sorted(leads):
        members[lead(vmid)].append(vmid)
    units = [tuple(unit) for unit in members.values() if len(unit) > 1]
    return dict(sorted((vmid, unit) for unit in units for vmid in unit))


def _contradicted_units(
    units: Mapping[int, tuple[int, ...]],
    affinity: Iterable[Group],
    anti_affinity: Iterable[Group],
    pins_of: Mapping[int, tuple[Pin, ...]],
    conflicts: list[Conflict],
) -> Iterable[tuple[int, ...]]:
    """The units that cannot be kept on one node, each with what keeps it from that added to the conflicts."""
    lead = {vmid: unit[0] for vmid, unit in units.items()}  # stands for the unit, which may have thousands of guests
    rules: dict[int, list[str]] = defaultdict(list)
    for group in affinity:
        for one in dict.fromkeys(lead[vmid] for vmid in group.vmids if vmid in lead):
            rules[one].append(group.rule)
    split: dict[int, tuple[int, int, str]] = {}
    for group in anti_affinity if lead else ():
        first: dict[int, int] = {}
        for vmid in group.vmids:
            if vmid in lead and first.setdefault(lead[vmid], vmid) != vmid:
                split.setdefault(lead[vmid], (first[lead[vmid]], vmid, group.rule))
    found = []
    for one in dict.fromkeys(lead.values()):
        unit = units[one]
        pins = [pin for vmid in unit for pin in pins_of.get(vmid, ())]
        if one in split:
            first_guest, other, rule = split[one]
            name = ", ".join([*rules[one], rule])
            conflicts.append(Conflict(name, unit, f"guests {first_guest} and {other} must also be kept apart"))
            found.append(unit)
        if pins and not _allowed(pins):
            found.append(unit)
            if all(_allowed(pins_of[vmid]) for vmid in unit if vmid in pins_of):  # else one has no node of its own, and that has been said
                name = ", ".join(dict.fromkeys([*rules[one], *(pin.rule for pin in pins)]))
                conflicts.append(Conflict(name, unit, "the guests are pinned to different nodes"))
    return found

# SPDX-License-Identifier: GPL-3.0-or-later
"""What tags, pools and the HA manager's rules each say, one by one and before anybody asks whether they agree."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.core.cluster import Guest, HaNodeAffinity, HaResource, Snapshot
from agent.core.plan_types import Conflict
from agent.core.rules import Group, Pin, RuleSource
from agent.core.settings import PoolRule, PoolSettings, Settings, TagTrust

OURS = "plb_"
AFFINITY = "plb_affinity_"
ANTI_AFFINITY = "plb_anti_affinity_"
PIN = "plb_pin_"
IGNORE = "plb_ignore"
NO_SUCH_TAG = f"no such tag, it has no effect; known are {AFFINITY}GROUP, {ANTI_AFFINITY}GROUP, {PIN}NODE and {IGNORE}"

_SEPARATORS = re.compile(r"[;,\s]+")


@dataclass(slots=True)
class Stated:
    """All that is said.

    Shape:   `hard` and `soft` map a VMID to its pins: a soft one gives way where it leaves no node that is available, or none
             that the hard ones leave; `named` maps a VMID to what its rules are called, tags as they are written.
    """

    together: list[Group] = field(default_factory=list)
    apart: list[Group] = field(default_factory=list)
    hard: dict[int, list[Pin]] = field(default_factory=lambda: defaultdict(list))
    soft: dict[int, list[Pin]] = field(default_factory=lambda: defaultdict(list))
    ignored: set[int] = field(default_factory=set)
    named: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    conflicts: list[Conflict] = field(default_factory=list)


def split_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Single tags of PVE's `tags` field, which separates by `;`, and of people, who also use `,` and spaces."""
    return tuple(dict.fromkeys(tag for field in tags for tag in _SEPARATORS.split(field) if tag))


def stated_rules(snapshot: Snapshot, settings: Settings) -> Stated:
    """Return what is said of the cluster's guests, templates left out.

    Raises:  nothing; whatever a tag says is a rule, a conflict, or somebody else's tag.
    """
    stated = Stated()
    guests = sorted((guest for guest in snapshot.guests if not guest.template), key=lambda guest: guest.vmid)
    nodes = {node.name.lower(): node.name for node in snapshot.nodes}
    if settings.rules.tags is not TagTrust.OFF:
        _tags(guests, nodes, _registered(snapshot, settings, stated), stated)
    for pool in settings.pools:
        _pool(pool, [guest for guest in guests if guest.pool == pool.name], nodes, stated)
    _ha(snapshot, {guest.vmid for guest in guests}, stated)
    return stated


# tags


def _registered(snapshot: Snapshot, settings: Settings, stated: Stated) -> frozenset[str] | None:
    """The tags that are trusted, None for all. Compared as written: PVE guards exactly these, and no others that look alike."""
    if settings.rules.tags is not TagTrust.REGISTERED:
        return None
    if snapshot.registered_tags is None:
        stated.conflicts.append(Conflict("rules.tags", (), "PVE does not tell which tags are registered; no tag counts as a rule"))
    return frozenset(snapshot.registered_tags or ())


def _tags(guests: list[Guest], nodes: Mapping[str, str], trusted: frozenset[str] | None, stated: Stated) -> None:
    together: dict[str, list[int]] = defaultdict(list)
    apart: dict[str, list[int]] = defaultdict(list)
    unknown: dict[str, list[int]] = defaultdict(list)
    for guest in guests:
        if not guest.tags:
            continue
        wanted: dict[str, str] = {}
        for tag in split_tags(guest.tags):
            word = tag.lower()
            if not word.startswith(OURS) or (trusted is not None and tag not in trusted):
                continue
            stated.named[guest.vmid].append(tag)
            if word == IGNORE or word.startswith(IGNORE + "_"):
                stated.ignored.add(guest.vmid)
            elif word.startswith(ANTI_AFFINITY) and word != ANTI_AFFINITY:
                apart[word].append(guest.vmid)
            elif word.startswith(AFFINITY) and word != AFFINITY:
                together[word].append(guest.vmid)
            elif word.startswith(PIN) and word != PIN:
                if (name := nodes.get(word.removeprefix(PIN))) is None:
                    stated.conflicts.append(Conflict(tag, (guest.vmid,), "there is no such node; the tag has no effect"))
                else:
                    wanted[name] = word
            else:
                unknown[tag].append(guest.vmid)
        if wanted:  # several are a choice
            stated.hard[guest.vmid].append(Pin(", ".join(sorted(wanted.values())), frozenset(wanted)))
    stated.together += _groups(together, RuleSource.TAG)
    stated.apart += _groups(apart, RuleSource.TAG)
    stated.conflicts += [Conflict(tag, tuple(vmids), NO_SUCH_TAG) for tag, vmids in sorted(unknown.items())]


# pools


def _pool(pool: PoolSettings, guests: list[Guest], nodes: Mapping[str, str], stated: Stated) -> None:
    rule, vmids = f"pool {pool.name}", [guest.vmid for guest in guests]
    for vmid in vmids if pool.rule is not None or pool.pin else ():
        stated.named[vmid].append(rule)
    if pool.rule is PoolRule.AFFINITY:
        stated.together += _groups({rule: vmids}, RuleSource.POOL)
    elif pool.rule is PoolRule.ANTI_AFFINITY:
        stated.apart += _groups({rule: vmids}, RuleSource.POOL)
    if not pool.pin or not vmids:
        return
    unknown = [name for name in pool.pin if name.lower() not in nodes]
    if unknown:
        effect = "the pin has no effect" if len(unknown) == len(pool.pin) else "the pin is to the others"
        stated.conflicts.append(Conflict(rule, tuple(vmids), f"there is no node {', '.join(unknown)}; {effect}"))
    pin = Pin(rule, frozenset(nodes[name.lower()] for name in pool.pin if name.lower() in nodes), RuleSource.POOL)
    for vmid in vmids if pin.nodes else ():
        (stated.hard if pool.strict else stated.soft)[vmid].append(pin)


# the HA manager


def _ha(snapshot: Snapshot, known: set[int], stated: Stated) -> None:
    """The HA manager's rules, for the guests that it manages; it looks at no others."""
    ha = snapshot.ha
    managed = {resource.vmid: resource for resource in ha.resources if resource.requested != "ignored" and resource.vmid in known}
    online = {node.name for node in snapshot.nodes if node.online} - set(ha.closed_nodes)
    for affinity in ha.resource_affinity:
        name, vmids = f"HA rule {affinity.name}", [vmid for vmid in affinity.vmids if vmid in managed]
        (stated.together if affinity.together else stated.apart).extend(_groups({name: vmids}, RuleSource.HA))
        for vmid in vmids:
            stated.named[vmid].append(name)
    for rule in ha.node_affinity:
        for vmid in rule.vmids:
            if vmid in managed:
                stated.named[vmid].append(f"HA rule {rule.name}")
                _node_affinity(rule, managed[vmid], online, stated)


def _node_affinity(rule: HaNodeAffinity, resource: HaResource, online: set[str], stated: Stated) -> None:
    """Where the HA manager leaves the guest alone once it is there.

    One that fails back is brought to the nodes of the highest priority among those online, whether the rule is strict or
    not: anywhere else it would not stay. One that does not stays wherever the rule allows it, and a rule that is not
    strict allows it everywhere; its nodes are still where its owner wants it, so they are kept to while one is available.
    A rule that is not strict and has no node online says nothing.

    Source:  pve-ha-manager, src/PVE/HA/Rules/NodeAffinity.pm, plugin_compile and get_node_affinity; src/PVE/HA/Manager.pm,
             select_service_node.
    """
    here = [(name, priority) for name, priority in rule.nodes if name in online]
    name = f"HA rule {rule.name}"
    if resource.failback:
        highest = max((priority for _, priority in here), default=0)
        best = frozenset(node for node, priority in here if priority == highest)
        if best or rule.strict:
            stated.hard[resource.vmid].append(Pin(name, best, RuleSource.HA))
    else:
        pin = Pin(name, frozenset(node for node, _ in rule.nodes), RuleSource.HA)
        (stated.hard if rule.strict else stated.soft)[resource.vmid].append(pin)


def _groups(members: Mapping[str, list[int]], source: RuleSource) -> list[Group]:
    """The groups of two guests or more: a group of one is no rule."""
    found = ((rule, tuple(sorted(set(vmids)))) for rule, vmids in sorted(members.items()))
    return [Group(rule, vmids, source) for rule, vmids in found if len(vmids) > 1]

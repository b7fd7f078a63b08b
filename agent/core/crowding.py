# SPDX-License-Identifier: GPL-3.0-or-later
"""Anti-affinity groups that cannot be kept now: their guests have fewer nodes to be apart on than there are guests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from agent.core.plan_types import Conflict
from agent.core.rules import Group, Rules


def crowded(rules: Rules, at: Mapping[int, str], usable: Collection[str], draining: Collection[str] = ()) -> tuple[Conflict, ...]:
    """The anti-affinity groups that no placement on these nodes keeps, with the guests that are too many and why.

    A guest may be on any usable node that its pins, and those of the guests it must be with, leave it, and may stay where it
    is unless that node is to be emptied. A stopped guest, and one whose rules contradict each other, stays and holds its node.

    Shape:   `at` maps each VMID to its node.
    Source:  Hall's theorem: all can be apart if and only if no set of guests has fewer nodes than guests between them.
    """
    return tuple(conflict for group in rules.anti_affinity if (conflict := _crowded(group, rules, at, usable, draining)) is not None)


def _crowded(group: Group, rules: Rules, at: Mapping[int, str], usable: Collection[str], draining: Collection[str]) -> Conflict | None:
    if _is_kept(group, rules, at, draining):
        return None
    still = [vmid for vmid in group.vmids if vmid in rules.stopped or vmid in rules.contradicted]
    held = {at[vmid] for vmid in still}
    free = [vmid for vmid in group.vmids if vmid not in rules.stopped and vmid not in rules.contradicted]
    choices: dict[int, frozenset[str]] = {}
    for vmid in free:
        own = {at[vmid]} - set(draining)
        nodes = (frozenset(usable) | own) - held
        for member in rules.unit(vmid):
            if member in rules.pins:
                nodes &= rules.pins[member]
        choices[vmid] = nodes
    everywhere = frozenset().union(*choices.values())
    too_many = tuple(free) if len(free) > len(everywhere) else _without_room(choices)
    if not too_many:
        return None
    nodes = frozenset().union(*(choices[vmid] for vmid in too_many))
    said = f"{len(too_many)} guests, {_count(nodes)}"
    if len(too_many) < len(free) or any(member in rules.pins for vmid in too_many for member in rules.unit(vmid)):
        said = f"guests {_listed(too_many)} may only be on {_listed(sorted(nodes)) or 'no node'}"
    if held:
        said += f"; {_listed(sorted(held))} {'is' if len(held) == 1 else 'are'} held by {_listed(still)}, not to be moved"
    return Conflict(group.rule, group.vmids, said)


def _is_kept(group: Group, rules: Rules, at: Mapping[int, str], draining: Collection[str]) -> bool:
    """True when everybody is on a node of its own and may stay there: no need to look for another placement."""
    places = [at[vmid] for vmid in group.vmids]
    if len(set(places)) < len(places):
        return False
    return all(
        place not in draining and all(place in rules.pins[member] for member in rules.unit(vmid) if member in rules.pins)
        for vmid, place in zip(group.vmids, places, strict=True)
        if vmid not in rules.stopped
    )


def _without_room(choices: Mapping[int, frozenset[str]]) -> tuple[int, ...]:
    """The smallest found set of guests with fewer nodes than guests between them; empty when each can have one of its own.

    Looks for a matching of guests and nodes along augmenting paths; where one is missing, all that was walked is such a set.
    """
    holder: dict[str, int] = {}
    for vmid in choices:
        came_from: dict[str, int] = {}
        waiting, reached = [vmid], {vmid}
        end: str | None = None
        while waiting and end is None:
            one = waiting.pop()
            for node in sorted(choices[one] - came_from.keys()):
                came_from[node] = one
                if node not in holder:
                    end = node
                    break
                if holder[node] not in reached:
                    reached.add(holder[node])
                    waiting.append(holder[node])
        if end is None:
            return tuple(sorted(reached))
        while end is not None:  # everybody on the path moves up by one
            one = came_from[end]
            before = next((name for name, there in holder.items() if there == one), None)
            holder[end] = one
            if before is not None:
                del holder[before]
            end = before
    return ()


def _count(nodes: Collection[str]) -> str:
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"


def _listed(words: Iterable[object]) -> str:
    return ", ".join(map(str, words))

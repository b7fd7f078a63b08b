# SPDX-License-Identifier: GPL-3.0-or-later
"""Who left a node for a maintenance: where each must come home, who brings it there, and who is not waited for any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agent.core.aside import without_success
from agent.core.cluster import Snapshot
from agent.core.documents import HistoryFile, Home, Homecoming
from agent.core.ha_moves import MOVING_STATES
from agent.core.migrations import Migration
from agent.core.reasons import MoveReason

MOST_OF_HA = 300  # 25 KiB: of more guests that the HA manager brings home nobody is told
MOST_AWAITED = 1000  # VMIDs of one node, 5 KiB
MOST_NAMED = 5


def homes_of(history: HistoryFile) -> dict[int, str]:
    """The guests that the agent brings home, and where that is."""
    return {home.vmid: home.home for home in history.homes if not home.by_ha}


def with_success(history: HistoryFile, record: Migration) -> HistoryFile:
    """The history after a guest has arrived: no longer set aside, and its home is known if it left for a maintenance, be it that it
    only made room for a guest of that node."""
    homes = {home.vmid: home for home in history.homes}
    if record.reason is MoveReason.MAINTENANCE or (record.reason is MoveReason.ROOM and record.drains is not None):
        first = homes.get(record.vmid)
        home = first.home if first is not None and first.put_on == record.source else record.source
        homes[record.vmid] = Home(record.vmid, home, record.target, record.ended_at or record.planned_at)
    else:
        homes.pop(record.vmid, None)
    return replace(without_success(history, record.vmid), homes=tuple(home for _, home in sorted(homes.items())))


def with_look(history: HistoryFile, snapshot: Snapshot) -> HistoryFile:
    """The history after a look: without homes of guests that are gone, home, or were moved elsewhere since, and those on nodes that
    have left the cluster; with the homes of guests that the HA manager took off a node, and brings back.

    A guest that exists but that the token does not show is none of these.
    """
    nodes = {node.name for node in snapshot.nodes}
    of_ha = _of_ha(snapshot)
    homes = (_released(home, snapshot) for home in history.homes)
    kept = {home.vmid: home for home in homes if home.home in nodes and _is_away(home, snapshot, of_ha)}
    since = {home.vmid: home.since for home in history.homes}
    for vmid, (home, place) in sorted(of_ha.items())[:MOST_OF_HA]:
        if home in nodes and (vmid not in kept or kept[vmid].by_ha):
            kept[vmid] = Home(vmid, home, place, since.get(vmid, snapshot.taken_at), by_ha=True)
    result = tuple(home for _, home in sorted(kept.items()))
    return history if result == history.homes else replace(history, homes=result)


def _released(home: Home, snapshot: Snapshot) -> Home:
    """The home, no longer the HA manager's concern once that does not have the guest any more: then the agent brings it home."""
    guest = snapshot.guest(home.vmid) if home.by_ha else None
    if guest is None or guest.ha is not None or snapshot.ha.resource(home.vmid) is not None:
        return home
    return replace(home, put_on=guest.node, by_ha=False)


def _is_away(home: Home, snapshot: Snapshot, of_ha: Mapping[int, tuple[str, str]]) -> bool:
    if home.vmid in snapshot.unseen:
        return True
    if home.by_ha:
        return of_ha.get(home.vmid, ("", ""))[0] == home.home or _is_brought(home, snapshot)
    guest = snapshot.guest(home.vmid)
    return guest is not None and guest.node == home.put_on and home.put_on != home.home


def _of_ha(snapshot: Snapshot) -> dict[int, tuple[str, str]]:
    """The guests that the HA manager keeps away from the node to which it will bring them back, each with that node and its place."""
    places = {guest.vmid: guest.node for guest in snapshot.guests}
    return {
        resource.vmid: (resource.maintenance_node, places[resource.vmid])
        for resource in snapshot.ha.resources
        if resource.maintenance_node is not None and places.get(resource.vmid, resource.maintenance_node) != resource.maintenance_node
    }


def _is_brought(home: Home, snapshot: Snapshot) -> bool:
    """True while the HA manager is bringing the guest home, as it has forgotten by then why, and while it does not say what it does."""
    resource, guest = snapshot.ha.resource(home.vmid), snapshot.guest(home.vmid)
    if resource is None or guest is None:
        return False
    is_silent = not resource.state and guest.node != home.home
    return is_silent or (resource.state in MOVING_STATES and resource.target == home.home)


# who is not waited for any more


def with_homecomings(history: HistoryFile, before: Iterable[Home]) -> HistoryFile:
    """The history with the guests that are not waited for any more, as those were `before`; who has left again is waited for."""
    away = {home.vmid: home.home for home in history.homes}
    ended = {home.vmid: home.home for home in before if home.vmid not in away}
    awaited: dict[str, set[int]] = {one.home: set(one.vmids) - away.keys() for one in history.homecomings}
    for vmid, home in ended.items():
        awaited.setdefault(home, set()).add(vmid)
    found = tuple(Homecoming(home, tuple(sorted(vmids)[:MOST_AWAITED])) for home, vmids in sorted(awaited.items()) if vmids)
    return history if found == history.homecomings else replace(history, homecomings=found)


@dataclass(frozen=True, slots=True)
class Return:
    """How it stands with those who left one node for a maintenance.

    Shape:   `back` are at home, `elsewhere` are on other nodes (by VMID) and not waited for, `gone` do not exist any more, `away` are
             still waited for; all sorted.
    """

    node: str
    back: tuple[int, ...]
    elsewhere: tuple[tuple[int, str], ...]
    gone: tuple[int, ...]
    away: tuple[int, ...]

    @property
    def vmids(self) -> frozenset[int]:
        """All of them."""
        return frozenset((*self.back, *(vmid for vmid, _ in self.elsewhere), *self.gone, *self.away))


def returns(history: HistoryFile, snapshot: Snapshot) -> tuple[Return, ...]:
    """How it stands with the nodes that guests left and that are not in maintenance any more, by name: where the guests are decides."""
    places = {guest.vmid: guest.node for guest in snapshot.guests}
    closed = {maintenance.node for maintenance in snapshot.maintenance}.union(snapshot.no_target, snapshot.ha.closed_nodes)
    ended = {one.home: one.vmids for one in history.homecomings}
    found = []
    for node in sorted((ended.keys() | {home.home for home in history.homes}) - closed):
        away = tuple(home.vmid for home in history.homes if home.home == node)
        known = set(ended.get(node, ())) - set(snapshot.unseen)
        if known or away:
            found.append(return_of(node, known, places, away))
    return tuple(found)


def return_of(node: str, ended: Iterable[int], places: Mapping[int, str], away: tuple[int, ...] = ()) -> Return:
    """How it stands with the node; `ended` are not waited for any more, `places` are where guests are."""
    vmids = sorted(ended)
    return Return(
        node,
        back=tuple(vmid for vmid in vmids if places.get(vmid) == node),
        elsewhere=tuple((vmid, places[vmid]) for vmid in vmids if places.get(vmid, node) != node),
        gone=tuple(vmid for vmid in vmids if vmid not in places),
        away=away,
    )


def return_words(one: Return) -> str:
    """`all 5 guests that left pve1 are home again`, or who of them is not, and where instead."""
    count = len(one.back) + len(one.elsewhere) + len(one.gone)
    if len(one.back) == count > 1:
        return f"{'both' if count == 2 else f'all {count}'} guests that left {one.node} are home again"
    if len(one.back) == count:
        return f"guest {one.back[0]}, which left {one.node}, is home again"
    return f"nobody is waited for any more of {_guests(count)} that left {one.node}: {', '.join(_ended_words(one))}"


def _ended_words(one: Return) -> list[str]:
    """`4 are home again`, `guest 102 is on pve4`, `guest 104 is gone`."""
    parts = [f"guest {vmid} is on {node}" for vmid, node in one.elsewhere] + [f"guest {vmid} is gone" for vmid in one.gone]
    if len(parts) > MOST_NAMED:
        parts = [*parts[:MOST_NAMED], f"and {len(parts) - MOST_NAMED} more"]
    return [f"{len(one.back)} {'is' if len(one.back) == 1 else 'are'} home again", *parts] if one.back else parts


def kept_away_words(one: Return, why: Mapping[int, str]) -> str:
    """Who does not come home for now; `why` in one word, by VMID."""
    count = len(one.back) + len(one.elsewhere) + len(one.gone) + len(one.away)
    stay = f"stay{'s' if len(one.away) == 1 else ''} away for now"
    said = f"{_guests(count)} that left {one.node} {stay}"
    if ended := _ended_words(one):
        said = f"of {_guests(count)} that left {one.node} {', '.join(ended)}, {len(one.away)} {stay}"
    named = ", ".join(f"{vmid} ({why[vmid]})" for vmid in one.away[:MOST_NAMED])
    more = f" and {len(one.away) - MOST_NAMED} more" if len(one.away) > MOST_NAMED else ""
    return f"{said}: {named}{more}; what keeps each: proxlb-agent explain VMID"


def _guests(count: int) -> str:
    return f"{count} guest{'s' if count != 1 else ''}"


def without_returns(history: HistoryFile, over: Iterable[Return]) -> HistoryFile:
    """The history when those have been told."""
    told = {one.node for one in over}
    return replace(history, homecomings=tuple(one for one in history.homecomings if one.home not in told))

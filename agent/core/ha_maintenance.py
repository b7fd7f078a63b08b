# SPDX-License-Identifier: GPL-3.0-or-later
"""Maintenance that the HA manager is asked for: where that helps, whose request it is, and how each stands after a look.

The HA manager moves its guests off a node in maintenance by rules of its own, those included that a node affinity binds to the node,
and brings them back when the maintenance ends. Moved one by one, some would be refused and others taken back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from agent.core.cluster import ASKED_OF_HA, Snapshot
from agent.core.documents import HaAsk, HaAskState
from agent.core.ha_moves import MOVING_STATES
from agent.core.settings import Settings

# Its manager reads requests once in 10 s. Should its node have died, another one takes over when the manager's lock has run out
# (120 s), and reads them in its first round.
TAKES_UP_S = 150.0
TAKEN_BACK = frozenset({HaAskState.RETURNING, HaAskState.RECALLED})
_OURS = TAKEN_BACK | {HaAskState.ASKED, HaAskState.TAKEN, HaAskState.GIVEN_UP}
_MOVED = frozenset({"started", "stopped", "starting", "request_start", "request_stop", "migrate", "relocate"})


def ours(asks: Iterable[HaAsk]) -> frozenset[str]:
    """The nodes whose request for maintenance, if there is one, is a leader's and no admin's."""
    return frozenset(ask.node for ask in asks if ask.state in _OURS)


def asked_nodes(snapshot: Snapshot) -> frozenset[str]:
    """The nodes whose maintenance stands among the HA manager's requests, by whomever."""
    return frozenset(maintenance.node for maintenance in snapshot.maintenance if maintenance.cause == ASKED_OF_HA)


def leaving(snapshot: Snapshot, node: str, *, stopped: bool = False) -> tuple[int, ...]:
    """The guests that the HA manager would take off the node, sorted; with `stopped` those that do not run, too."""
    found = []
    for resource in snapshot.ha.resources:
        guest = snapshot.guest(resource.vmid)
        if guest is None or guest.node != node or guest.template or resource.requested not in ("started", "stopped"):
            continue
        if resource.state in _MOVED and (stopped or guest.is_running):
            found.append(resource.vmid)
    return tuple(sorted(found))


def bound_for(snapshot: Snapshot, node: str) -> tuple[int, ...]:
    """The guests elsewhere that the HA manager is bringing to the node, or will bring back to it as soon as it may; sorted."""
    return tuple(
        sorted(
            resource.vmid
            for resource in snapshot.ha.resources
            if (resource.maintenance_node == node or (resource.state in MOVING_STATES and resource.target == node))
            and (guest := snapshot.guest(resource.vmid)) is not None
            and guest.node != node
        )
    )


def usable_nodes(snapshot: Snapshot, settings: Settings) -> tuple[str, ...]:
    """The nodes that could take the guests of one in maintenance: online, not in maintenance themselves and not ignored."""
    out = {name.lower() for name in (*settings.nodes.ignore, *settings.nodes.maintenance, *snapshot.no_target)}
    out |= {maintenance.node.lower() for maintenance in snapshot.maintenance}
    return tuple(node.name for node in snapshot.nodes if node.online and node.name.lower() not in out)


def closing(snapshot: Snapshot, asks: Iterable[HaAsk], wanted: Collection[str]) -> Snapshot:
    """The snapshot in which nodes that the HA manager was asked to empty count as emptied by it, so that nobody else does.

    Its own status shows that only when the node's manager has reported to keep to it: in between, its guests are not free, either.
    """
    asked = {ask.node for ask in asks if ask.state in (HaAskState.ASKED, HaAskState.TAKEN) and ask.node in wanted}
    if not asked - {*snapshot.ha.closed_nodes}:
        return snapshot
    return replace(snapshot, ha=replace(snapshot.ha, closed_nodes=tuple(sorted(asked.union(snapshot.ha.closed_nodes)))))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a look says of one request: how it stands now (None: it is over), whether to hand something over, and what to tell.

    Shape:   `hand_over` is True for the request, False for what takes it back, None for nothing.
    """

    ask: HaAsk | None
    hand_over: bool | None = None
    text: str = ""
    is_warning: bool = False


def asked_anew(snapshot: Snapshot, node: str, settings: Settings, now: float) -> Outcome | None:
    """The request for a node that is to be empty, None where there is nothing to ask for.

    Asked for only where it moves somebody, or keeps the HA manager from bringing somebody: it runs, knows a guest there or one that it
    would bring back there, and there is another node.
    """
    there = snapshot.node(node)
    if there is None or not there.online or snapshot.ha.disarmed or node in asked_nodes(snapshot):
        return None
    guests, coming = leaving(snapshot, node, stopped=False), bound_for(snapshot, node)
    if not (guests or coming) or not usable_nodes(snapshot, settings):
        return None
    parts = [f"has {_counted(guests)} there"] if guests else []
    parts += [f"brings {_counted(coming)} back there"] if coming else []
    return Outcome(HaAsk(node, now), True, f"asks the HA manager for its maintenance of {node}: it {' and '.join(parts)}")


def _counted(vmids: Collection[int]) -> str:
    return f"{len(vmids)} guest{'s' if len(vmids) != 1 else ''}"


def judged(ask: HaAsk, snapshot: Snapshot, requested: AbstractSet[str], wanted: bool, sent_s: float | None) -> Outcome:
    """How a request stands by this look.

    Units:   `sent_s` is how long ago this lead handed it over, None when it has not.
    Shape:   `requested` as `asked_nodes` of the look, `wanted` while a flag wants the node empty.
    """
    node, is_there = ask.node, ask.node in requested
    if ask.state in TAKEN_BACK:
        is_closed = is_there or node in snapshot.no_target
        if is_closed:
            ask = replace(ask, state=HaAskState.RETURNING)  # it took up late what it was not seen to have
        return Outcome(ask if is_closed or sent_s is None else None, False if sent_s is None else None)
    if not wanted:
        if ask.state is HaAskState.WITHDRAWN:
            return Outcome(None)
        if ask.state is HaAskState.TAKEN or is_there:
            text = f"takes the HA manager's maintenance of {node} back: the HA manager brings its guests home"
            return Outcome(replace(ask, state=HaAskState.RETURNING), False, text)
        text = f"takes back what it asked of the HA manager for {node}, which was not seen to begin with it"
        return Outcome(replace(ask, state=HaAskState.RECALLED), False, text)
    if ask.state is HaAskState.TAKEN and not is_there:
        text = f"somebody took the HA manager's maintenance of {node} back though {node} is to be empty: its guests are moved one by one"
        return Outcome(replace(ask, state=HaAskState.WITHDRAWN), None, text, is_warning=True)
    if is_there and ask.state in (HaAskState.ASKED, HaAskState.GIVEN_UP):
        return Outcome(replace(ask, state=HaAskState.TAKEN), None, f"the HA manager empties {node}")
    if ask.state is HaAskState.ASKED and sent_s is None:
        return Outcome(ask, True)
    if ask.state is HaAskState.ASKED and sent_s is not None and sent_s >= TAKES_UP_S:
        return given_up(ask, f"has not taken that up for {TAKES_UP_S:.0f} s")
    return Outcome(ask)


def given_up(ask: HaAsk, why: str, *, is_lasting: bool = False) -> Outcome:
    """The outcome of a request that nothing came of; one that `is_lasting` was never handed over, so there is nothing to take back."""
    text = f"the HA manager was asked for its maintenance of {ask.node}, and {why}: its guests are moved one by one"
    return Outcome(replace(ask, state=HaAskState.WITHDRAWN if is_lasting else HaAskState.GIVEN_UP), None, text, is_warning=True)

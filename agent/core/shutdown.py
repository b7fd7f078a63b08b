# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that shuts down: what its own flag says to the cluster, and when it is emptied before.

The node writes the flag when it is asked to shut down, and its agent takes it back after the next boot. One node at a time is
emptied so: where several go, guests would be moved onto nodes that are gone in a minute.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.core.corosync_conf import sections

if TYPE_CHECKING:
    from agent.core.statistics import Members

_FLAG = re.compile(r"shuts down, its guests (?:leave first|stay: (?P<why>[^\n]+)); boot (?P<boot>[^\s;]+)")


@dataclass(frozen=True, slots=True)
class ShutdownFlag:
    """The flag that a node makes when it shuts down.

    Shape:   `boot_id` of the boot that ends, so that the next one knows the flag for an old one; `why_stay` says why the
             node's guests are not moved (any more), "" while they are.
    """

    boot_id: str
    why_stay: str = ""

    @property
    def text(self) -> str:
        """The flag file's text."""
        what = f"stay: {' '.join(self.why_stay.split())}" if self.why_stay else "leave first"
        return f"shuts down, its guests {what}; boot {self.boot_id}"


def parse_flag(text: str) -> ShutdownFlag | None:
    """The flag of a node that shuts down, None for a flag that somebody else set."""
    match = _FLAG.fullmatch(text.strip())
    return None if match is None else ShutdownFlag(match["boot"], match["why"] or "")


def flags_of_nodes(texts: Mapping[str, str]) -> dict[str, ShutdownFlag]:
    """Those of the flags, by node, that their nodes made as they shut down."""
    parsed = {node: parse_flag(text) for node, text in texts.items()}
    return {node: flag for node, flag in parsed.items() if flag is not None}


def why_guests_stay(flags: Mapping[str, ShutdownFlag], going: Collection[str]) -> dict[str, str]:
    """The nodes whose guests are not moved although their nodes have said that they shut down, each with why.

    Shape:   `going` are the nodes that are there, in the boot that their flags say ends. All other flags are left over: of a node
             that has gone, or of one that has come back and whose agent has not yet taken it away.
    """
    found = {}
    for node, flag in sorted(flags.items()):
        others = [other for other in sorted(going) if other != node]
        if node not in going:
            found[node] = "it has gone, or its flag is of an earlier boot"
        elif flag.why_stay:
            found[node] = flag.why_stay
        elif others:
            found[node] = f"{', '.join(others)} shut{'s' if len(others) == 1 else ''} down, too"
    return found


def would_keep_quorum(members: Members, corosync_conf: str, without: str) -> bool:
    """True when the nodes that are online are quorate without that one, too.

    A cluster that is not does not let its guests start, and where the HA manager watches over it, it resets its nodes: guests
    would be brought there to die. Votes are those of corosync.conf, one for a node of which it says nothing; a quorum device
    counts as voting for the rest.

    Source:  votequorum(5): more than half of the votes of all nodes and of the device; `two_node` is content with one of two.
    """
    parts = sections(corosync_conf)
    said = {entries.get("name", ""): _votes(entries.get("quorum_votes")) for name, entries in parts if name == "node"}
    device = sum(_votes(entries.get("votes")) for name, entries in parts if name == "device")
    votes = {name: said.get(name, 1) for name in members.nodes}
    rest = sum(count for name, count in votes.items() if members.nodes[name] and name != without)
    if len(votes) == 2 and any(entries.get("two_node") == "1" for name, entries in parts if name == "quorum"):
        return rest > 0
    return 2 * (rest + device) > sum(votes.values()) + device


def _votes(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else 1

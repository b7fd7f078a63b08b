# SPDX-License-Identifier: GPL-3.0-or-later
"""What PVE tells of high availability: resources, rules or groups, what the HA manager does, and the cluster's options for it.

As everywhere in this package a row that makes no sense is left out.

Source:  pve-ha-manager, src/PVE/API2/HA/{Resources,Rules,Groups,Status}.pm and src/PVE/HA/Groups.pm; pve-manager,
         PVE/API2/Cluster.pm, get_options.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from agent.adapters.pve import values
from agent.adapters.pve.maintenance import HA_STATUS_FRESH_S
from agent.adapters.pve.values import Row, flag, number, text
from agent.core.cluster import HaNodeAffinity, HaResource, HaResourceAffinity, HighAvailability
from agent.ports import OutsideError

RESOURCES = "cluster/ha/resources"
RULES = "cluster/ha/rules"  # since PVE 9; also holds what it makes of groups that have not been migrated yet
GROUPS = "cluster/ha/groups"  # PVE 8; an error on 9 once they have been migrated
OPTIONS = "cluster/options"

OPTIONS_LIFE_S = 600.0  # an admin changes the cluster's options now and then
UNUSED_LIFE_S = 300.0  # where no guest is under the HA manager, that one comes under it is seen in the manager's status, too
BALANCING_MODES = frozenset({"static", "dynamic"})

_SID = re.compile(r"(?:vm|ct):([1-9][0-9]{2,8})")
_SEPARATORS = re.compile(r"[;,\s]+")
_MIGRATED = "migrated to rules"


@dataclass(frozen=True, slots=True)
class Options:
    """What the cluster's options say that matters here; `registered_tags` None where PVE has no such endpoint."""

    balances: bool = False
    registered_tags: tuple[str, ...] | None = None


class HaReader:
    """Asks for what changes rarely and remembers it for a while.

    Shape:   `get` gives the answer of GET on a path, None where PVE has no such path, and raises OutsideError.
    """

    def __init__(self, get: Callable[[str], object], now_s: Callable[[], float] = time.monotonic) -> None:
        self._get, self._now_s = get, now_s
        self.forget()

    def forget(self) -> None:
        """Ask for everything again the next time, as after an error nobody knows what has changed."""
        self._options, self._options_until_s = Options(), 0.0
        self._unused_until_s = 0.0

    def options(self) -> Options:
        """The cluster's options, at most OPTIONS_LIFE_S old."""
        if self._now_s() >= self._options_until_s:
            self._options = options(self._get(OPTIONS))
            self._options_until_s = self._now_s() + OPTIONS_LIFE_S
        return self._options

    def read(self, ha_status: object, closed_nodes: tuple[str, ...], release: int | None, wall_s: float) -> HighAvailability:
        """What the HA manager knows: 2 requests where it is in use, at most one in UNUSED_LIFE_S where it is not.

        Shape:   `ha_status` is the answer of its status, `release` PVE's major version.
        Raises:  OutsideError as `get`; UnexpectedAnswerError.
        """
        services = _services(ha_status)
        base = HighAvailability(closed_nodes=closed_nodes, balances=self.options().balances, disarmed=is_disarmed(ha_status))
        if not services and self._now_s() < self._unused_until_s:
            return base
        rows = self._rows(RESOURCES)
        if not rows:
            self._unused_until_s = self._now_s() + UNUSED_LIFE_S
            return base
        self._unused_until_s = 0.0
        rules = self._rows(RULES) if release is None or release >= 9 else []
        has_groups = any(text(row.get("group")) for row in rows)
        groups = self._groups() if has_groups else []
        resource_rules = [bond for row in rules if (bond := resource_affinity(row)) is not None]
        node_rules = [rule for row in rules if (rule := node_affinity(row)) is not None]
        generated = {rule.name.removeprefix("ha-group-") for rule in node_rules}
        node_rules += [rule for rule in group_affinity(groups, rows) if rule.name not in generated]
        return replace(
            base,
            resources=resources(rows, groups, services if _is_fresh(ha_status, wall_s) else {}),
            node_affinity=tuple(sorted(node_rules, key=lambda rule: rule.name)),
            resource_affinity=tuple(sorted(resource_rules, key=lambda bond: bond.name)),
        )

    def _rows(self, path: str) -> list[Row]:
        answer = self._get(path)
        return [] if answer is None else values.rows(answer, path)

    def _groups(self) -> list[Row]:
        try:
            return self._rows(GROUPS)
        except OutsideError as error:
            if _MIGRATED in str(error):
                return []  # since the resources were read
            raise


def options(answer: object) -> Options:
    """The cluster's options; PVE shows property strings as tables and lists, or as they are written."""
    if not isinstance(answer, dict):
        return Options()
    crs = _properties(answer.get("crs"))
    tags = answer.get("registered-tags")
    words = tags if isinstance(tags, list) else _SEPARATORS.split(text(tags))
    return Options(
        balances=text(crs.get("ha")) in BALANCING_MODES and flag(crs.get("ha-auto-rebalance")),
        registered_tags=tuple(sorted({word for word in map(text, words) if word})),
    )


def _properties(value: object) -> Row:
    if isinstance(value, dict):
        return value
    parts = (part.partition("=") for part in text(value).split(","))
    return {key.strip(): content.strip() for key, _, content in parts if content}


# the HA manager's own words


def _services(ha_status: object) -> Row:
    return _table(_table(_table(ha_status).get("manager_status")).get("service_status"))


def _is_fresh(ha_status: object, wall_s: float) -> bool:
    """Whether the HA manager has spoken lately: while it has guests it does so every 10 s, and its last word stays for good."""
    written_at = number(_table(_table(ha_status).get("manager_status")).get("timestamp"))
    return written_at is not None and wall_s - written_at < HA_STATUS_FRESH_S


def is_disarmed(ha_status: object) -> bool:
    """True while the HA manager has been told to let go of everything (PVE 9.1 on)."""
    return bool(_table(_table(ha_status).get("manager_status")).get("disarm"))


def _table(value: object) -> Row:
    return value if isinstance(value, dict) else {}


def vmid_of(sid: object) -> int | None:
    """The guest of `vm:101`, None when it is no such name."""
    match = _SID.fullmatch(text(sid).strip())
    return None if match is None else int(match[1])


def resources(rows: list[Row], groups: list[Row], services: Row) -> tuple[HaResource, ...]:
    """The guests under the HA manager, with what it does with them. A group's nofailback is its resources'."""
    no_failback = {text(group.get("group")) for group in groups if flag(group.get("nofailback"))}
    found: dict[int, HaResource] = {}
    for row in rows:
        vmid = vmid_of(row.get("sid"))
        if vmid is None:
            continue
        service = _table(services.get(text(row.get("sid"))))
        requested = text(row.get("state")) or "started"
        found[vmid] = HaResource(
            vmid,
            requested="started" if requested == "enabled" else requested,  # its old name
            state=text(service.get("state")),
            node=text(service.get("node")) or None,
            target=text(service.get("target")) or _asked_target(service),
            maintenance_node=text(service.get("maintenance_node")) or None,
            failback=_is_on(row.get("failback")) and text(row.get("group")) not in no_failback - {""},
            auto_rebalance=_is_on(row.get("auto-rebalance")),
        )
    return tuple(found[vmid] for vmid in sorted(found))


def _asked_target(service: Row) -> str | None:
    """Where a command that the HA manager has taken and not begun will bring the guest."""
    command = service.get("cmd")
    if isinstance(command, list) and len(command) > 1 and command[0] in ("migrate", "relocate"):
        return text(command[1]) or None
    return None


def _is_on(value: object) -> bool:
    """A switch that is on unless it is turned off."""
    return value is None or flag(value)


# rules and groups


def node_affinity(row: Row) -> HaNodeAffinity | None:
    """The rule of a row, None when it is none, is switched off, or the HA manager drops it for an error it names."""
    if row.get("type") != "node-affinity" or not _holds(row):
        return None
    nodes = priorities(row.get("nodes"))
    vmids = _vmids(row.get("resources"))
    return HaNodeAffinity(text(row.get("rule")), vmids, nodes, flag(row.get("strict"))) if vmids and nodes else None


def resource_affinity(row: Row) -> HaResourceAffinity | None:
    """As `node_affinity`."""
    kind = row.get("affinity")
    if row.get("type") != "resource-affinity" or kind not in ("positive", "negative") or not _holds(row):
        return None
    vmids = _vmids(row.get("resources"))
    return HaResourceAffinity(text(row.get("rule")), vmids, kind == "positive") if len(vmids) > 1 else None


def _holds(row: Row) -> bool:
    """PVE leaves `disable` out when a rule is on, and takes a rule with errors for none (Rules.pm, transform)."""
    return not flag(row.get("disable")) and not row.get("errors")


def group_affinity(groups: list[Row], resource_rows: list[Row]) -> list[HaNodeAffinity]:
    """What groups say of their resources, as PVE 9 turns them into rules."""
    members: dict[str, set[int]] = {}
    for row in resource_rows:
        if (vmid := vmid_of(row.get("sid"))) is not None and (name := text(row.get("group"))):
            members.setdefault(name, set()).add(vmid)
    found = []
    for group in groups:
        name = text(group.get("group"))
        nodes = priorities(group.get("nodes"))
        if name in members and nodes:
            found.append(HaNodeAffinity(name, tuple(sorted(members[name])), nodes, flag(group.get("restricted"))))
    return found


def priorities(value: object) -> tuple[tuple[str, int], ...]:
    """(node, priority) of `pve1:2,pve2`, sorted by node; without one it is 0."""
    found: dict[str, int] = {}
    for word in _words(value):
        name, _, priority = word.partition(":")
        level = number(priority or "0")
        if name and level is not None:
            found[name] = int(level)
    return tuple(sorted(found.items()))


def _vmids(value: object) -> tuple[int, ...]:
    return tuple(sorted({vmid for word in _words(value) if (vmid := vmid_of(word)) is not None}))


def _words(value: object) -> list[str]:
    """The words of a list, of a table's keys, or of text with `,`, `;` or spaces between them."""
    if isinstance(value, list | dict):
        return [word for word in map(text, cast(list[object], list(value))) if word]
    return [word for word in _SEPARATORS.split(text(value)) if word]

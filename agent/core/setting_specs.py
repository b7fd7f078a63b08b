# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be said of one setting: its kind, its bounds, the file it stands in, and the reason why it exists."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Kind(StrEnum):
    """What a setting's value is, in words for people."""

    SWITCH = "true or false"
    WHOLE = "a whole number"
    NUMBER = "a number"
    CHOICE = "one word"
    PATH = "an absolute path"
    TOKEN_ID = "a token's id, as user@realm!name"  # noqa: S105  an id, no secret
    HOSTS = "a list of hosts"
    NODES = "a list of node names"
    GUESTS = "a list of VMIDs and ranges of them"
    POOLS = "a mapping of pools to their rules"
    STORAGES = "a mapping of storages to storages"
    SPANS = "a list of days with times"


class File(StrEnum):
    """Where a setting may stand."""

    NODE = "/etc/proxlb-agent/config.yaml"
    CLUSTER = "/etc/pve/proxlb/config.yaml"
    ONE = "--config"


NODE_SECTIONS = frozenset({"paths", "api", "log"})  # what differs between nodes, or is needed before /etc/pve is there


def home_of(section: str) -> File:
    """The file in which a section stands, of the two."""
    return File.NODE if section in NODE_SECTIONS else File.CLUSTER


@dataclass(frozen=True, slots=True)
class Spec:
    """What is allowed for one setting, and why it exists.

    Units:   `low` and `high` are inclusive and in `unit`.
    """

    kind: Kind
    meaning: str
    unit: str = ""
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    optional: bool = False

    @property
    def allowed(self) -> str:
        """The allowed values in words, `a number from 0 to 100 percent`."""
        if self.kind is Kind.CHOICE:
            return "one of " + ", ".join(self.choices) + (", or null" if self.optional else "")
        words = str(self.kind)
        if self.kind in (Kind.WHOLE, Kind.NUMBER):
            words += f" from {self.low:.15g}" + ("" if self.high == math.inf else f" to {self.high:.15g}")
        return words + (f" {self.unit}" if self.unit else "") + (", or null" if self.optional else "")


def allows(spec: Spec) -> Mapping[str, Spec]:
    """A field's metadata that say what is allowed for it."""
    return MappingProxyType({"spec": spec})


def number(unit: str, low: float, high: float, meaning: str) -> Mapping[str, Spec]:
    """Of a number within these bounds."""
    return allows(Spec(Kind.NUMBER, meaning, unit, low, high))


def whole(unit: str, low: int, high: float, meaning: str, *, optional: bool = False) -> Mapping[str, Spec]:
    """Of a whole number within these bounds."""
    return allows(Spec(Kind.WHOLE, meaning, unit, low, high, optional=optional))


def one_of(choices: type[StrEnum], meaning: str) -> Mapping[str, Spec]:
    """Of one of these words."""
    return allows(Spec(Kind.CHOICE, meaning, choices=tuple(choice.value for choice in choices)))


def of_kind(kind: Kind, meaning: str) -> Mapping[str, Spec]:
    """Of a kind without bounds."""
    return allows(Spec(kind, meaning))


_PORT = "(?::[0-9]{1,5})?"
PATTERNS = {  # full matches; plain enough that JSON schema reads them the same way
    Kind.PATH: r"/[^\x00-\x1f\x7f]*",
    Kind.TOKEN_ID: r"[^\s:/]{1,64}@[A-Za-z][A-Za-z0-9._-]+![A-Za-z][A-Za-z0-9._-]+",  # PVE's user, realm and token name
    Kind.HOSTS: (
        rf"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?{_PORT}|\[[0-9A-Fa-f:.]+\]{_PORT}"
        "|[0-9A-Fa-f:]*::[0-9A-Fa-f:.]*|(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}"
    ),
    Kind.NODES: "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?",  # PVE's pve-node, a host name's length
    Kind.GUESTS: "([1-9][0-9]{2,8})-([1-9][0-9]{2,8})",
    Kind.STORAGES: "[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]",  # PVE's pve-storage-id
    Kind.SPANS: "(?:[01]?[0-9]|2[0-3]):[0-5][0-9]",
    Kind.POOLS: "[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+){0,2}",  # PVE's pve-poolid: pools nest, three deep
}

# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether migrations go over the network by which corosync knows who is alive: a copy that fills it can make nodes lose each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from agent.core.corosync_conf import sections
from agent.core.settings import Settings
from agent.core.statistics import Members

_RING = re.compile(r"ring(\d)_addr")
_MIGRATION = re.compile(r"migration:\s*(\S+)")
REMEDY = "give migrations a network of their own: Datacenter, Options, Migration Settings"


@dataclass(frozen=True, slots=True)
class SharedLink:
    """The link of corosync that migrations share.

    Shape:   `network` is what datacenter.cfg sets for migrations, None where they take the addresses that the nodes' names stand for.
    """

    link: int
    network: str | None


def shared_link(datacenter_cfg: str, corosync_conf: str, members: Members) -> SharedLink | None:
    """Return the first link of corosync that carries migrations, too; None when none does, or nobody can tell.

    A ring's address that is a name is taken for the node's where it is the node's own name; of any other nobody can tell.

    Source:  get_ssh_info in pve-cluster's SSHInfo.pm, remote_node_ip in its Cluster.pm (9.1.6); parse_config in pve-common's
             JSONSchema.pm; corosync.conf(5).
    """
    known = {name: found for name, text in members.addresses.items() if (found := _address(text)) is not None}
    network = _migration_network(datacenter_cfg)
    if network == "":
        return None
    within = None if network is None else _network(network)
    for link, name, address in sorted(_rings(corosync_conf, known), key=lambda ring: ring[0]):
        is_shared = address == known.get(name) if network is None else within is not None and address in within
        if is_shared:
            return SharedLink(link, network)
    return None


_Address = IPv4Address | IPv6Address


def _rings(corosync_conf: str, known: dict[str, _Address]) -> Iterator[tuple[int, str, _Address]]:
    """The addresses of the links, each with its number and its node's name."""
    for section, entries in sections(corosync_conf):
        name = entries.get("name", "")
        for key, text in entries.items() if section == "node" else ():
            if (match := _RING.fullmatch(key)) is not None:
                address = _address(text) or (known.get(name) if text == name or text.startswith(f"{name}.") else None)
                if address is not None:
                    yield int(match[1]), name, address


def _migration_network(datacenter_cfg: str) -> str | None:
    """The network that is set for migrations, None where none is, "" where that cannot be read."""
    for line in datacenter_cfg.splitlines():
        if (match := _MIGRATION.fullmatch(line.strip())) is not None:
            options = [option.partition("=") for option in match[1].split(",")]
            network = next((value for key, _, value in options if key == "network"), None)
            return network if network is None or _network(network) is not None else ""
    return None


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _address(text: str) -> _Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def one_at_a_time(settings: Settings) -> Settings:
    """The settings with one slot in all, for drains, too."""
    return replace(
        settings,
        migration=replace(settings.migration, parallel_per_node=1, parallel_total=1),
        drain=replace(settings.drain, parallel_per_node=1, parallel_total=1),
    )


def shared_words(shared: SharedLink, *, several: bool = False) -> str:
    """`migrations go over link 0 of corosync (10.0.0.0/24): one at a time, so that ...`; `several`: as somebody wants it, at a time."""
    where = "the nodes' own addresses" if shared.network is None else shared.network
    how = "one at a time, so that nodes do not lose each other"
    if several:
        how = "several at a time, as migration.parallel_on_corosync_link says, though a network that they fill makes nodes lose each other"
    return f"migrations go over link {shared.link} of corosync ({where}): {how}; {REMEDY}"

# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking PVE for a migration, or for a start after one: the paths and parameters."""

from __future__ import annotations

from agent.adapters.pve.values import Parameter, quoted
from agent.core.cluster import GuestType
from agent.ports import MigrationOrder


def migrate_path(node: str, kind: GuestType, vmid: int) -> str:
    """Where PVE tells whether a guest may migrate, and starts it."""
    return f"nodes/{quoted(node)}/{kind.value}/{vmid}/migrate"


def start_path(node: str, kind: GuestType, vmid: int) -> str:
    """Where a guest is started."""
    return f"nodes/{quoted(node)}/{kind.value}/{vmid}/status/start"


def migrate_parameters(order: MigrationOrder) -> dict[str, Parameter]:
    """What is sent to start a migration. PVE takes booleans as 1 only, and 8 refuses what it does not know."""
    parameters: dict[str, Parameter] = {"target": order.target}
    if order.online and order.type is GuestType.QEMU:
        parameters["online"] = 1
        if order.local_disks:
            parameters["with-local-disks"] = 1
        if order.conntrack:
            parameters["with-conntrack-state"] = 1
    if order.storage_map and order.type is GuestType.QEMU:  # its privileges are asked for whenever it is there
        parameters["targetstorage"] = ",".join(f"{storage}:{taker}" for storage, taker in order.storage_map)
    if order.restart and order.type is GuestType.LXC:
        parameters["restart"] = 1
    if order.bandwidth_limit_kib_s is not None:
        parameters["bwlimit"] = order.bandwidth_limit_kib_s
    return parameters

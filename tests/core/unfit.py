# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against a guest on a node, by a reading of its own that shares no line with the core's: for the checker of plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Snapshot = Guest = GuestNeeds = Any  # as a snapshot's file names their fields


def unfit(
    snapshot: Snapshot,
    guest: Guest,
    needs: GuestNeeds,
    target: str,
    takes_disks: bool,
    renamed: Mapping[str, str],
    full: float,
    comes_home: bool = False,
) -> Iterator[str]:
    """What speaks against it, a word each; nothing when nothing does. `full` is the fraction to which a storage may be filled."""
    if comes_home:
        renamed = _back(snapshot, target, renamed)
    yield from _of_volumes(snapshot, guest, needs, target, takes_disks, renamed, full)
    facts = {node.name: node.facts for node in snapshot.nodes}
    if needs.devices or needs.args or needs.affinity:
        yield "tied"
    if needs.replicated_to is not None and target not in needs.replicated_to:
        yield "replication"
    here_facts, there_facts = facts.get(guest.node), facts.get(target)
    if needs.cpu_type.split("-")[0] in ("host", "max", "custom") and (
        here_facts is None
        or there_facts is None
        or not here_facts.cpu_model
        or (here_facts.cpu_model, here_facts.cpu_flags) != (there_facts.cpu_model, there_facts.cpu_flags)
    ):
        yield "cpu"
    if not any(facts.values()):
        return
    if there_facts is None:
        yield "unknown"
        return
    if not set(needs.bridges) <= set(there_facts.bridges):
        yield "bridge"
    if needs.hookscript.startswith("local:snippets/") and needs.hookscript.split("/")[1] not in there_facts.hookscripts:
        yield "hookscript"
    if here_facts is None:
        return
    is_of_before = here_facts.qemu_since is not None and (guest.uptime_s or 0) > snapshot.taken_at - here_facts.qemu_since + 120
    runs = (is_of_before and here_facts.qemu_before) or here_facts.qemu_version
    if guest.type.value == "qemu" and _numbers(there_facts.qemu_version)[:3] < _numbers(runs)[:3]:
        yield "older"
    if _numbers(there_facts.pve_version)[:1] < _numbers(here_facts.pve_version)[:1]:
        yield "older"


def _back(snapshot: Snapshot, home: str, renamed: Mapping[str, str]) -> dict[str, str]:
    """The map by which disks come home: where home has not what the map leads to, against the map's direction if that leads to one."""
    at_home = {storage.name for storage in snapshot.storages if home in storage.nodes}
    ways = dict(renamed)
    for elsewhere in set(renamed.values()):
        origins = [origin for origin, taker in renamed.items() if taker == elsewhere and origin in at_home]
        if renamed.get(elsewhere, elsewhere) not in at_home and len(origins) == 1:
            ways[elsewhere] = origins[0]
    return ways


def _of_volumes(
    snapshot: Snapshot, guest: Guest, needs: GuestNeeds, target: str, takes_disks: bool, renamed: Mapping[str, str], full: float
) -> Iterator[str]:
    storages = {storage.name: storage for storage in snapshot.storages}
    may_take = takes_disks and guest.type.value == "qemu"
    is_free = guest.ha is None and needs.replicated_to is None
    arrives: dict[str, float] = {}
    for volume in needs.volumes:
        here = storages.get(volume.storage)
        is_taken = may_take and here is not None and not here.shared and volume.kind.value != "image"
        there_name = renamed.get(volume.storage, volume.storage) if is_taken and is_free else volume.storage
        if there_name not in storages or target not in storages[there_name].nodes:
            yield "storage"
        if (here is None or not here.shared) and volume.kind.value != "cloud-init" and not is_taken:
            yield "local"
        if is_taken:
            if volume.size_bytes is None and volume.kind.value == "disk":
                yield "disk room"
            arrives[there_name] = arrives.get(there_name, 0) + (volume.size_bytes or 0)
    for name, size in arrives.items():
        uses = [use for use in snapshot.storage_use if use.name == name and target in use.nodes]
        if size and not any(use.used_bytes + size <= full * use.total_bytes for use in uses):
            yield "disk room"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split("-", maxsplit=1)[0].split(".") if part.isdigit()]

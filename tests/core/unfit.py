# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks against a guest on a node, by a reading of its own that shares no line with the core's: for the checker of plans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Snapshot = Guest = GuestNeeds = Any  # as a snapshot's file names their fields


def unfit(snapshot: Snapshot, guest: Guest, needs: GuestNeeds, target: str) -> Iterator[str]:
    """What speaks against it, a word each; nothing when nothing does."""
    storages = {storage.name: storage for storage in snapshot.storages}
    facts = {node.name: node.facts for node in snapshot.nodes}
    for volume in needs.volumes:
        there = storages.get(volume.storage)
        if there is None or target not in there.nodes:
            yield "storage"
        if (there is None or not there.shared) and volume.kind.value != "cloud-init":
            yield "local"
    if needs.devices or needs.args or needs.affinity:
        yield "tied"
    if needs.replicated_to is not None and target not in needs.replicated_to:
        yield "replication"
    here, there_facts = facts.get(guest.node), facts.get(target)
    if needs.cpu_type.split("-")[0] in ("host", "max", "custom") and (
        here is None
        or there_facts is None
        or not here.cpu_model
        or (here.cpu_model, here.cpu_flags) != (there_facts.cpu_model, there_facts.cpu_flags)
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
    if here is None:
        return
    is_of_before = here.qemu_since is not None and (guest.uptime_s or 0) > snapshot.taken_at - here.qemu_since + 120
    runs = (is_of_before and here.qemu_before) or here.qemu_version
    if guest.type.value == "qemu" and _numbers(there_facts.qemu_version)[:3] < _numbers(runs)[:3]:
        yield "older"
    if _numbers(there_facts.pve_version)[:1] < _numbers(here.pve_version)[:1]:
        yield "older"


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split("-", maxsplit=1)[0].split(".") if part.isdigit()]

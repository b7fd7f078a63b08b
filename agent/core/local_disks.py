# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks that a guest takes along: which they are, where on the target they go, whether they fit there, and how long that takes.

Only a VM takes disks along, and only where `guests.local_disks` says so: a container would be down for as long as they are copied. A
disk goes to the storage that `guests.storage_map` names for its own, else to the one of the same name; when its guest comes home after a
maintenance, where neither is there, back to the one storage for whose disks the map names its own. It must fit there below
`balance.storage.threshold_percent`, by what PVE told of the storage last; so that this holds, one copy at a time goes to a node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.core.cluster import GIB, MIB, Guest, GuestType, Storage, StorageUse
from agent.core.migrations import Migration
from agent.core.needs import GuestNeeds, Volume, VolumeKind
from agent.core.plan_types import Move
from agent.core.settings import Settings

ASSUMED_BYTES_S = 100.0 * MIB  # a line of 1 Gbit/s, or a busy disk


@dataclass(frozen=True, slots=True)
class Copied:
    """The volumes of a guest that are copied when it moves. `names` maps each one's storage to the one that takes it."""

    volumes: tuple[Volume, ...]
    names: Mapping[str, str]

    @property
    def size_bytes(self) -> int:
        """What is copied, as far as sizes are known."""
        return sum(volume.size_bytes or 0 for volume in self.volumes)

    @property
    def mapped(self) -> tuple[tuple[str, str], ...]:
        """The storages that change their name, sorted: what PVE must be told."""
        return tuple(sorted((storage, taker) for storage, taker in self.names.items() if storage != taker))


NOTHING = Copied((), {})


def may_take_along(guest: Guest, settings: Settings) -> bool:
    """True for a guest that may take disks of its node along."""
    return settings.guests.local_disks and guest.type is GuestType.QEMU


def copied(guest: Guest, needs: GuestNeeds, storages: Mapping[str, Storage], settings: Settings, home: str | None = None) -> Copied:
    """What moving the guest copies; nothing where it may take nothing along. `home` is the node to which it comes home, None elsewhere.

    The HA manager drops the storage map, so its guests keep the names.
    """
    if not may_take_along(guest, settings):
        return NOTHING
    local = tuple(
        volume
        for volume in needs.volumes
        if volume.kind is not VolumeKind.IMAGE and volume.storage in storages and not storages[volume.storage].shared
    )
    may_rename = guest.ha is None and needs.replicated_to is None  # a replica is on the storage of the same name
    renamed = dict(settings.guests.storage_map) if may_rename else {}
    names = {volume.storage: renamed.get(volume.storage, volume.storage) for volume in local}
    if home is not None and may_rename:
        names = {storage: _homeward(storage, taker, home, renamed, storages) for storage, taker in names.items()}
    return Copied(local, names)


def _homeward(storage: str, taker: str, home: str, renamed: Mapping[str, str], storages: Mapping[str, Storage]) -> str:
    """The storage at home for disks that are on `storage`: `taker` where there is one, else the one from which they may have come."""

    def is_there(name: str) -> bool:
        return name in storages and home in storages[name].nodes

    came_from = [] if is_there(taker) else [name for name, other in renamed.items() if other == storage and is_there(name)]
    return came_from[0] if len(came_from) == 1 else taker


def why_no_disk_room(what: Copied, target: str, uses: Iterable[StorageUse], threshold_percent: float) -> str | None:
    """Why the copies do not fit on the target, for people; None when they do."""
    if unknown := [volume.name for volume in what.volumes if volume.size_bytes is None and volume.kind is VolumeKind.DISK]:
        return f"the size of {', '.join(unknown)} is not known"
    free = {use.name: (use, use.total_bytes * _fraction(threshold_percent) - use.used_bytes) for use in uses if target in use.nodes}
    for taker in sorted(set(what.names.values())):
        size = sum(volume.size_bytes or 0 for volume in what.volumes if what.names[volume.storage] == taker)
        if size <= 0:
            continue
        if taker not in free:
            return f"how full {taker} is on {target} is not known"
        use, room_bytes = free[taker]
        if size > room_bytes:
            return f"{size / GIB:.0f} GiB, {taker} has {max(0.0, room_bytes) / GIB:.0f} of {use.total_bytes / GIB:.0f} GiB left"
    return None


def _fraction(threshold_percent: float) -> float:
    return threshold_percent / 100 if 0 < threshold_percent < 100 else 1.0


def why_too_long(size_bytes: int, settings: Settings) -> str | None:
    """Why the copy would take longer than a migration may before it is reported; None when it would not, or copies nothing."""
    migration = settings.migration
    limit = migration.bandwidth_limit_kib_s
    rate = ASSUMED_BYTES_S if limit is None else min(ASSUMED_BYTES_S, limit * 1024.0)
    if size_bytes / rate <= migration.timeout_s:
        return None
    return f"{size_bytes / GIB:.0f} GiB of disks would take about {size_bytes / rate / 3600:.1f} h to copy, more than migration.timeout_s"


def one_copy_a_node(ready: Sequence[Move], open_records: Iterable[Migration]) -> list[Move]:
    """Of the moves that may start those that copy disks only where no other copy goes to the same node meanwhile."""
    busy = {record.target for record in open_records if record.disk_bytes > 0}
    chosen = []
    for move in ready:
        if move.disk_bytes > 0:
            if move.target in busy:
                continue
            busy.add(move.target)
        chosen.append(move)
    return chosen

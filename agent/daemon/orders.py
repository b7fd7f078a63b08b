# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of PVE for a migration that has been written down."""

from __future__ import annotations

from dataclasses import replace

from agent.core.cluster import GuestType, Snapshot
from agent.core.local_disks import copied
from agent.core.migrations import Migration
from agent.core.needs import GuestNeeds
from agent.core.settings import Settings
from agent.core.suitability import keeps_connections
from agent.ports import MigrationOrder


def order_of(
    record: Migration, snapshot: Snapshot, needs: GuestNeeds | None, settings: Settings, *, is_home: bool = False
) -> MigrationOrder:
    """The request for the guest as it was seen last; `needs` None: its configuration was not read; `is_home`: it comes home with it.

    A request through the HA manager carries the target alone, as that drops everything else.
    """
    is_vm, guest = record.type is GuestType.QEMU, snapshot.guest(record.vmid)
    order = MigrationOrder(
        record.vmid,
        record.type,
        record.source,
        record.target,
        online=record.online and is_vm,
        restart=record.online and not is_vm,
        bandwidth_limit_kib_s=settings.migration.bandwidth_limit_kib_s,
    )
    if record.through_ha or not is_vm or guest is None or needs is None:
        return order
    storages = {storage.name: storage for storage in snapshot.storages}
    disks = copied(guest, needs, storages, settings, record.target if is_home else None)
    return replace(
        order,
        local_disks=order.online and bool(disks.volumes),
        storage_map=disks.mapped,
        conntrack=order.online and keeps_connections(snapshot, record.source, record.target),
    )

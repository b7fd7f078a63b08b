# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest needs of the node it runs on, as its configuration says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class VolumeKind(StrEnum):
    """What a volume is to its guest."""

    DISK = "disk"
    IMAGE = "image"  # in a CD drive
    CLOUD_INIT = "cloud-init"  # PVE makes it anew wherever the guest starts


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume of a guest: `name` as PVE writes it (`ceph:vm-100-disk-0`), and the storage it is on; None is an unknown size."""

    name: str
    storage: str
    kind: VolumeKind = VolumeKind.DISK
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class GuestNeeds:
    """What a guest needs, each empty when it needs none of it.

    Shape:   `cpu_type` and `machine` as PVE spells them (`host`, `pc-q35-9.2+pve1`), `hookscript` is its volume; `devices` are
             things of its node by their keys (`dev0 /dev/dri/card0`); `args` and `affinity` are the settings' values;
             `replicated_to` are the nodes that have its disks as well, None when it is not replicated.
    """

    volumes: tuple[Volume, ...] = ()
    bridges: tuple[str, ...] = ()
    cpu_type: str = ""
    machine: str = ""
    hookscript: str = ""
    devices: tuple[str, ...] = ()
    args: str = ""
    affinity: str = ""
    replicated_to: tuple[str, ...] | None = None

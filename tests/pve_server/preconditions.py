# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a guest may go: GET .../migrate, and the same checks as a migration makes them."""

from __future__ import annotations

from typing import Any

from fakepve.lxc import MOUNT_KEY, parse_size
from fakepve.model import DRIVE_PREFIXES, PveError

from tests.pve_server.base import version_key
from tests.pve_server.resources import ResourcesApi

NODES_WHILE_RUNNING = (8, 4)  # before, PVE 8 named allowed nodes only for a stopped VM


class PreconditionsApi(ResourcesApi):
    """What PVE says about a migration before it happens."""

    def _routes_preconditions(self) -> list[tuple[str, str, Any]]:
        return [("GET", "/nodes/{node}/qemu/{vmid}/migrate", self._qemu_preconditions)]

    # ---- disks and storages

    def volumes(self, guest: Any) -> list[tuple[str, str]]:
        """The guest's volumes as (key of the configuration, value), CD drives without a medium left out."""
        is_ours = MOUNT_KEY.match if self.spec_of(guest).type == "lxc" else lambda key: key.startswith(DRIVE_PREFIXES) and key[-1].isdigit()
        found = [(key, str(value)) for key, value in sorted(guest.config.items()) if is_ours(key)]
        return [(key, value) for key, value in found if ":" in value.split(",")[0] and not value.startswith("/")]

    def local_disks(self, guest: Any) -> list[dict[str, Any]]:
        """What the guest has on storages that are not shared, as the state says or else from its configuration."""
        stated = self.spec_of(guest).local_disks
        if stated is not None:
            return [self._disk_row(disk, number) for number, disk in enumerate(stated)]
        rows = []
        for key, value in self.volumes(guest):
            storage = self.spec.storages.get(value.split(":")[0])
            if (storage is None or not storage.shared) and "cloudinit" not in value:
                volid = value.split(",")[0].removeprefix("volume=")
                cdrom = "media=cdrom" in value
                rows.append(
                    {
                        "volid": volid,
                        "size": _size(value),
                        "cdrom": int(cdrom),
                        "is_unused": int(key.startswith("unused")),
                        "drivename": key,
                    }
                )
        return rows

    @staticmethod
    def _disk_row(disk: Any, number: int) -> dict[str, Any]:
        row = {"size": 0, "cdrom": 0, "is_unused": 0, "drivename": f"scsi{number}"}
        return row | (disk if isinstance(disk, dict) else {"volid": str(disk)})

    def storages_of(self, guest: Any) -> list[str]:
        """The storages the guest has volumes on."""
        volids = [value for _, value in self.volumes(guest)] + [disk["volid"] for disk in self.local_disks(guest)]
        return sorted({volid.removeprefix("volume=").split(":")[0] for volid in volids})

    def _check_storages(self, guest: Any, target: str, storage_map: str | None) -> None:
        """The target has every storage the guest's volumes will be on."""
        mapping = _storage_map(storage_map)
        for storage in self.storages_of(guest):
            wanted = mapping.get(storage, mapping.get("*", storage))
            if wanted not in self.storages:
                raise PveError(500, f"storage '{wanted}' does not exist")
            if not self._storage_enabled(wanted, target):
                raise PveError(500, f"storage '{wanted}' is not available on node '{target}'")

    def missing_mappings(self, guest: Any, node: str) -> list[str]:
        """The mapped devices of the guest that a node has not."""
        return [key for key, device in sorted(self.spec_of(guest).mapped_resources.items()) if node not in device.get("nodes", [])]

    # ---- in the task

    def why_not_migratable(self, guest: Any, target: str, with_local_disks: bool) -> str | None:
        """What the migration's first phase says against it, or None."""
        spec, live = self.spec_of(guest), guest.status == "running"
        if not self.is_online(target):
            return "Can't connect to destination address using public key"
        if spec.type == "lxc":
            binds = [key for key, value in sorted(guest.config.items()) if MOUNT_KEY.match(key) and str(value).startswith("/")]
            local = [key for key in binds if "shared=1" not in str(guest.config[key])]
            return f"cannot migrate local bind mount point '{local[0]}'" if local else None
        devices = [name for name in spec.local_resources if name not in spec.mapped_resources and name != "clipboard=vnc"]
        if devices:
            return f"can't migrate VM which uses local devices: {', '.join(devices)}"
        if "clipboard=vnc" in spec.local_resources and live:
            return "VMs with 'clipboard' set to 'vnc' are not live migratable"
        missing = self.missing_mappings(guest, target)
        if missing:
            return f"can't migrate to '{target}': missing mapped devices {', '.join(missing)}"
        bound = [key for key, device in sorted(spec.mapped_resources.items()) if not device.get("live")]
        if bound and live:
            return f"can't live migrate running VM which uses following mapped devices: {', '.join(bound)}"
        disks = self.local_disks(guest)
        if any(disk["cdrom"] for disk in disks):
            return "can't migrate local cdrom drive" if any(disk["volid"] == "cdrom" for disk in disks) else "local cdrom image"
        if live and disks and not with_local_disks:
            return "can't live migrate attached local disks without with-local-disks option"
        return None

    # ---- the requests

    async def _qemu_preconditions(self, values: dict[str, Any], _user: str) -> dict[str, Any]:
        source, asked = values["node"], values.get("target")
        if asked:
            self.check_node(asked)
        vm = self.find(source, values["vmid"])
        self._check_lock(vm)
        spec, live = self.spec_of(vm), vm.status == "running"
        version = version_key(str(self.spec.nodes[source].version))
        answer: dict[str, Any] = {
            "running": int(live),
            "local_disks": self.local_disks(vm),
            "local_resources": list(spec.local_resources),
            "mapped-resources": sorted(spec.mapped_resources),
        }
        if version[0] >= 9:
            answer |= {"has-dbus-vmstate": 1, "dependent-ha-resources": self.ha_partners(vm)}
        if version >= NODES_WHILE_RUNNING:
            info = {
                key: {"name": device["name"]} | ({"live-migration": 1} if device.get("live") else {})
                for key, device in spec.mapped_resources.items()
            }
            answer["mapped-resource-info"] = info
        if live and version < NODES_WHILE_RUNNING:
            return answer
        allowed, refused = [], {}
        for node in self.nodes:  # offline nodes and those in maintenance are not left out
            if node != source:
                why = self._why_not_node(vm, node, version)
                if why:
                    refused[node] = why
                else:
                    allowed.append(node)
        return answer | {"allowed_nodes": allowed, "not_allowed_nodes": refused}

    def _why_not_node(self, vm: Any, node: str, version: tuple[int, ...]) -> dict[str, Any]:
        storages = [name for name in self.storages_of(vm) if name not in self.storages or not self._storage_enabled(name, node)]
        why: dict[str, Any] = {"unavailable_storages": storages} if storages else {}
        missing = self.missing_mappings(vm, node)
        if missing:
            why["unavailable-resources"] = missing
        blocking = self.ha_blocking(vm, node) if version[0] >= 9 else []
        return why | ({"blocking-ha-resources": blocking} if blocking else {})

    async def _lxc_migrate_check(self, _user: str, values: dict[str, Any]) -> dict[str, Any]:
        ct = self._find_ct(values["node"], values["vmid"])
        self._ct_check_lock(ct)
        others = [node for node in self.nodes if node != values["node"]]
        refused = {node: {"blocking-ha-resources": self.ha_blocking(ct, node)} for node in others if self.ha_blocking(ct, node)}
        answer = {"running": int(ct.status == "running"), "allowed-nodes": [node for node in others if node not in refused]}
        return answer | {"not-allowed-nodes": refused, "dependent-ha-resources": self.ha_partners(ct)}

    def ha_partners(self, _guest: Any) -> list[str]:
        """The HA resources that move with it."""
        return []

    def ha_blocking(self, _guest: Any, _node: str) -> list[dict[str, str]]:
        """The HA resources that keep it from a node."""
        return []


def _size(value: str) -> int:
    for part in value.split(","):
        if part.startswith("size="):
            return int(parse_size(part[len("size=") :]) or 0)
    return 0


def _storage_map(text: str | None) -> dict[str, str]:
    """PVE's storage map: `a:b,c:d`, one storage for all, or 1 for the same names."""
    mapping: dict[str, str] = {}
    for part in (text or "").split(","):
        if part and part != "1":
            source, found, target = part.partition(":")
            mapping |= {source: target} if found else {"*": source}
    return mapping

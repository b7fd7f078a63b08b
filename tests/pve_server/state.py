# SPDX-License-Identifier: GPL-3.0-or-later
"""The state file: what the played cluster is made of, read strictly so that a misspelt key is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

GIB = 1024**3
DEFAULT_UPTIME_S = 86400  # long enough that nothing looks as if it had just started
PVE_VERSIONS = {"8": "8.2.4", "9": "9.0.10"}
Spec = TypeVar("Spec")


class StateError(ValueError):
    """The state file, or a control request, says something the server does not know."""


@dataclasses.dataclass
class NodeSpec:
    """A node. `cpu_fraction` and `mem_bytes` replace what is derived from its guests; None: derived."""

    cores: int = 16
    memory_bytes: int = 64 * GIB
    version: str | None = None
    online: bool = True
    uptime_s: float = DEFAULT_UPTIME_S
    overhead_cores: float = 0.0
    overhead_bytes: int = 0
    cpu_fraction: float | None = None
    mem_bytes: int | None = None
    cpu_model: str = "Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz"
    cpu_flags: str = "fpu vme de pse tsc msr pae cx8 sse4_2 avx avx2 aes"
    sockets: int = 1
    qemu_version: str = "10.0.2"
    ip: str | None = None
    bridges: list[str] = dataclasses.field(default_factory=lambda: ["vmbr0"])
    pressure: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class GuestSpec:
    """A guest. What it uses while it runs stays as given here when it stops; only what is reported becomes 0.

    Units: `cpu_cores` is cores in use (1.5 is one and a half), not a fraction of `maxcpu`.
    """

    vmid: int
    node: str
    type: str = "qemu"
    name: str | None = None
    status: str = "running"
    maxcpu: float = 2
    maxmem_bytes: int = 4 * GIB
    cpu_cores: float = 0.0
    mem_bytes: int | None = None
    memhost_bytes: int | None = None
    tags: str | None = None
    lock: str | None = None
    ha: str | None = None
    template: bool = False
    pool: str | None = None
    uptime_s: float = DEFAULT_UPTIME_S
    local_disks: list[Any] | None = None
    local_resources: list[str] = dataclasses.field(default_factory=list)
    mapped_resources: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    replication: list[str] = dataclasses.field(default_factory=list)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    pressure: dict[str, float] = dataclasses.field(default_factory=dict)
    disk_bytes: int = 0
    maxdisk_bytes: int | None = None
    migration_s: float | None = None

    def __post_init__(self) -> None:
        if self.type not in ("qemu", "lxc"):
            raise StateError(f"guest {self.vmid}: type is qemu or lxc, not {self.type!r}")
        if self.mem_bytes is None:
            self.mem_bytes = self.maxmem_bytes // 2
        if self.name is None:
            self.name = f"{'vm' if self.type == 'qemu' else 'ct'}{self.vmid}"

    @property
    def sid(self) -> str:
        """The name the HA manager knows it by."""
        return f"{'vm' if self.type == 'qemu' else 'ct'}:{self.vmid}"

    @property
    def host_bytes(self) -> int:
        """What it takes of its node's memory while it runs."""
        return self.memhost_bytes if self.memhost_bytes is not None else self.mem_bytes or 0


@dataclasses.dataclass
class StorageSpec:
    """A storage. `per_node` holds other `total_bytes` and `used_bytes` for single nodes."""

    type: str = "dir"
    shared: bool = False
    content: str = "images,rootdir"
    nodes: list[str] = dataclasses.field(default_factory=list)
    active: bool = True
    total_bytes: int = 1024 * GIB
    used_bytes: int = 100 * GIB
    per_node: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class MigrationSpec:
    """How migrations go, in seconds of the wall clock whatever `time_scale` is.

    `duration_s` None: a migration runs until the control call finish_migration. With `bytes_per_s` the guest's
    memory (and its local disks, if they are moved) is added to the time. The guest's node changes after
    `switch_fraction` of the time, while the lock stays until the end, as in PVE.
    """

    duration_s: float | None = 0.2
    bytes_per_s: float | None = None
    switch_fraction: float = 0.8


@dataclasses.dataclass
class HaSpec:
    """The HA manager. `delay_s` is one round of the CRM or of an LRM; `acts` False: it takes requests and does nothing."""

    delay_s: float = 0.05
    acts: bool = True
    master: str | None = None
    rules: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    groups: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    resources: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    reject: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class ClusterSpec:
    """The whole state.

    `pvestatd_s`: seconds between two samples of all numbers; 0: always fresh; None: only when told.
    `acl`: lines of user (or token), path, privs; None: everybody may do everything.
    `privsep`: the tokens that have only what both they and their user were granted; other tokens have their user's rights too.
    """

    nodes: dict[str, NodeSpec]
    guests: list[GuestSpec] = dataclasses.field(default_factory=list)
    storages: dict[str, StorageSpec] = dataclasses.field(
        default_factory=lambda: {
            "local": StorageSpec(type="dir", content="iso,vztmpl,backup,snippets"),
            "local-lvm": StorageSpec(type="lvmthin"),
            "ceph": StorageSpec(type="rbd", shared=True),
        }
    )
    tokens: dict[str, str] = dataclasses.field(default_factory=dict)
    users: dict[str, str] = dataclasses.field(default_factory=dict)
    acl: list[dict[str, Any]] | None = None
    privsep: list[str] = dataclasses.field(default_factory=list)
    pve: str = "9"
    time_scale: float = 0.0
    pvestatd_s: float | None = 0
    cpu_blank_s: float = 0.0
    dead_known_s: float = 300  # entries of a dead node live that long in the status cache
    quorate: bool = True
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    migration: MigrationSpec = dataclasses.field(default_factory=MigrationSpec)
    ha: HaSpec = dataclasses.field(default_factory=HaSpec)
    numbers_as_strings: bool = False

    def __post_init__(self) -> None:
        if self.pve not in PVE_VERSIONS:
            raise StateError(f"pve is one of {sorted(PVE_VERSIONS)}, not {self.pve!r}")
        for node in self.nodes.values():
            node.version = node.version or PVE_VERSIONS[self.pve]
        for guest in self.guests:
            if guest.node not in self.nodes:
                raise StateError(f"guest {guest.vmid}: no node {guest.node!r}")


def spec(kind: type[Spec], values: Mapping[str, Any], where: str) -> Spec:
    """Return the values as the given dataclass.

    Raises:  StateError that names the place and the unknown or missing key.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise StateError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    try:
        return kind(**values)
    except TypeError as error:
        raise StateError(f"{where}: {error}") from None


def read_state(document: Mapping[str, Any]) -> ClusterSpec:
    """Return the cluster a JSON document describes.

    Raises:  StateError for anything that is not in the dataclasses of this module.
    """
    values = dict(document)
    values["nodes"] = {name: spec(NodeSpec, node, f"node {name}") for name, node in dict(values.get("nodes", {})).items()}
    if not values["nodes"]:
        raise StateError("a cluster has at least one node")
    values["guests"] = [spec(GuestSpec, guest, f"guest {guest.get('vmid')}") for guest in values.get("guests", [])]
    if "storages" in values:
        values["storages"] = {name: spec(StorageSpec, item, f"storage {name}") for name, item in values["storages"].items()}
    if "migration" in values:
        values["migration"] = spec(MigrationSpec, values["migration"], "migration")
    if "ha" in values:
        values["ha"] = spec(HaSpec, values["ha"], "ha")
    return spec(ClusterSpec, values, "state")

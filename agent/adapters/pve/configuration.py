# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest needs of its node, from its configuration: the API's fields, or the file below /etc/pve, which says the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from agent.adapters.pve.values import Row, names, one_line, quoted, text
from agent.core.cluster import GuestType
from agent.core.needs import GuestNeeds, Volume, VolumeKind

REPLICATION = "cluster/replication"
REPLICATION_FILE = "replication.cfg"

_FOLDERS = {GuestType.QEMU: "qemu-server", GuestType.LXC: "lxc"}
_VOLUME = {
    GuestType.QEMU: re.compile(r"(?:ide|sata|scsi|virtio|unused)\d+|efidisk0|tpmstate0"),
    GuestType.LXC: re.compile(r"rootfs|mp\d+|unused\d+"),
}
_NET = re.compile(r"net\d+")
_CONTAINER_DEVICE = re.compile(r"dev\d+")
_RAW_DEVICE = re.compile(r"lxc\.(mount|hook|cgroup2?\.devices)\b")
_CLOUD_INIT = re.compile(r"vm-\d+-cloudinit(\.\w+)?$")
_LINE = re.compile(r"([A-Za-z][\w.-]*)\s*[:=]\s*(.*?)\s*")
_SIZE = re.compile(r"size=(\d{1,12}(?:\.\d{1,6})?)([KMGT]?)")
_UNITS = ("", "K", "M", "G", "T")
_JOB = re.compile(r"\w+:\s*(\d+)-\d+\s*")


def config_path(node: str, kind: GuestType, vmid: int) -> str:
    """Where the API has a guest's configuration."""
    return f"nodes/{quoted(node)}/{kind.value}/{vmid}/config"


def config_file(node: str, kind: GuestType, vmid: int) -> str:
    """Where it is below /etc/pve."""
    return f"nodes/{node}/{_FOLDERS[kind]}/{vmid}.conf"


def read_config(content: str) -> Row:
    """The fields of a configuration file as the API gives them; sections (snapshots, pending changes) are not of now."""
    found: dict[str, object] = {}
    raw: list[list[str]] = []
    for line in content.splitlines():
        if line.startswith("["):
            break
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        if match[1].startswith("lxc."):
            raw.append([match[1], match[2]])
        else:
            found[match[1]] = match[2]
    return found | ({"lxc": raw} if raw else {})


def needs_of(kind: GuestType, config: Row, replicated_to: tuple[str, ...] | None) -> GuestNeeds:
    """What the guest needs of a node."""
    nets = [dict(_parts(value, "model")) for key, value in sorted(config.items()) if _NET.fullmatch(key)]
    is_vm = kind is GuestType.QEMU
    return GuestNeeds(
        volumes=tuple(_volumes(kind, config)),
        bridges=tuple(sorted({net["bridge"] for net in nets if net.get("bridge")})),
        cpu_type=dict(_parts(config.get("cpu"), "cputype")).get("cputype", "") if is_vm else "",
        machine=dict(_parts(config.get("machine"), "type")).get("type", "") if is_vm else "",
        hookscript=one_line(text(config.get("hookscript"))),
        devices=() if is_vm else tuple(_container_devices(config)),
        args=one_line(text(config.get("args"))) if is_vm else "",
        affinity=one_line(text(config.get("affinity"))) if is_vm else "",
        replicated_to=replicated_to,
    )


def with_sizes(needs: GuestNeeds, sizes: Mapping[str, int]) -> GuestNeeds:
    """The needs with sizes that PVE tells of volumes besides: of those that are not in use the configuration says none."""
    told = tuple(replace(volume, size_bytes=sizes.get(volume.name)) if volume.size_bytes is None else volume for volume in needs.volumes)
    return needs if told == needs.volumes else replace(needs, volumes=told)


def _parts(value: object, first: str) -> Iterator[tuple[str, str]]:
    """The keys and values of a property string; `first` is the key that may be left out."""
    for number, part in enumerate(text(value).split(",")):
        key, found, rest = part.strip().partition("=")
        if found:
            yield key, rest
        elif number == 0 and key:
            yield first, key


def _volumes(kind: GuestType, config: Row) -> Iterator[Volume]:
    """The volumes by their keys; what begins with a slash is none, nor is an empty CD drive."""
    for key, value in sorted(config.items()):
        if not _VOLUME[kind].fullmatch(key):
            continue
        name = _first(value)
        storage, found, _ = name.partition(":")
        if not found or name.startswith("/"):
            continue
        parts = text(value).split(",")
        yield Volume(one_line(name), storage, _kind_of(name, parts), _size(parts))


def _size(parts: list[str]) -> int | None:
    """The size of a volume, None where its configuration does not tell it, as of one that is not in use."""
    for part in parts:
        if (match := _SIZE.fullmatch(part)) is not None:
            return int(float(match[1]) * 1024 ** _UNITS.index(match[2]))
    return None


def _kind_of(name: str, parts: list[str]) -> VolumeKind:
    if _CLOUD_INIT.search(name):
        return VolumeKind.CLOUD_INIT
    return VolumeKind.IMAGE if "media=cdrom" in parts else VolumeKind.DISK


def _container_devices(config: Row) -> list[str]:
    """Devices, directories and raw settings of its node that a container uses."""
    found = [f"{key} {_first(value)}" for key, value in sorted(config.items()) if _CONTAINER_DEVICE.fullmatch(key)]
    for key, value in sorted(config.items()):
        is_bind = _VOLUME[GuestType.LXC].fullmatch(key) and _first(value).startswith("/")
        if is_bind and "shared=1" not in text(value).split(","):
            found.append(f"{key} {_first(value)}")
    raw = config.get("lxc")
    for entry in raw if isinstance(raw, list) else ():
        key = text(entry[0]) if isinstance(entry, list) and entry else ""
        if _RAW_DEVICE.match(key):
            found.append(key)
    return [one_line(device) for device in dict.fromkeys(found)]


def _first(value: object) -> str:
    """The value of a property string's default key, which may be spelt out."""
    first = text(value).split(",")[0]
    return first.partition("=")[2] if first.startswith(("file=", "volume=", "path=")) else first


def replication_targets(rows: list[Row]) -> dict[int, tuple[str, ...]]:
    """The nodes that each replicated guest's disks are sent to, by VMID; also those of jobs that are switched off, as PVE has it."""
    found: dict[int, set[str]] = {}
    for row in rows:
        guest = text(row.get("guest")) or text(row.get("id")).partition("-")[0]
        if guest.isascii() and guest.isdigit():
            found.setdefault(int(guest), set()).update(names([row.get("target")]))
    return {vmid: tuple(sorted(targets)) for vmid, targets in sorted(found.items())}


def read_replication(content: str) -> list[Row]:
    """The jobs of replication.cfg as rows of the API."""
    rows: list[dict[str, object]] = []
    for line in content.splitlines():
        if (job := _JOB.fullmatch(line)) is not None:
            rows.append({"guest": job[1]})
        elif rows and line[:1].isspace() and line.split()[:1] == ["target"]:
            rows[-1]["target"] = line.split()[-1]
    return list(rows)

# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's field names: rows of its JSON become nodes, guests, tasks and verdicts here, and nowhere else.

PVE leaves out what it does not know, says numbers as strings now and then, and its numbers may be broken. So every
function here takes any JSON: a row that makes no sense is left out, a number that cannot be one is None and never
zero. Only an answer that is not even a list of rows (or a table of fields) is an error, UnexpectedAnswerError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from agent.core.cluster import MIGRATE_KINDS, Guest, GuestType, Maintenance, Node, StorageUse, Task
from agent.core.plan_types import Refusal, Verdict
from agent.core.reasons import RefusalReason
from agent.ports import MigrationOrder, TaskSight

Row = Mapping[str, object]
Parameter = str | int

RESOURCES = "cluster/resources"
TASKS = "cluster/tasks"
HA_STATUS = "cluster/ha/status/manager_status"
VERSION = "version"

LIMIT = 1e18  # no cluster has as many bytes, cores or seconds: beyond it a number is broken
VMID_MAX = 999_999_999
TEXT_LENGTH = 300  # of an error's text: enough for PVE's own, and still one line of the journal
HA_STATUS_FRESH_S = 60.0  # the CRM writes every 10 s while it has something to do, and its last word stays for good when it has not
HA_NO_TARGET = frozenset({"maintenance", "fence", "unknown", "gone"})
HA_ASKED_BY = "ha-manager"
HA_HANDS_OFF = frozenset({"ignored", "unmanaged"})  # the HA manager knows the guest and leaves it alone: PVE migrates it like any other

_TAG_SEPARATORS = re.compile(r"[;,\s]+")
_UPID = re.compile(r"UPID:([^:/\s]+):[0-9A-Fa-f]{8}:[0-9A-Fa-f]{8,9}:([0-9A-Fa-f]{8}):([^:\s]+):([^:]*):([^:\s]+):")
_CONTAINER_VOLUME = re.compile(r"rootfs|mp\d+|unused\d+")
_CONTAINER_DEVICE = re.compile(r"dev\d+")
_RAW_DEVICE = re.compile(r"lxc\.(mount|hook|cgroup2?\.devices)\b")
_LOCKED = re.compile(r"\b(?:VM|CT) is locked\b(?: \(([^)]*)\))?")
_CLOUD_INIT = re.compile(r"vm-\d+-cloudinit(\.\w+)?$")


class UnexpectedAnswerError(ValueError):
    """PVE's answer has another shape than its schema says; the text is one line."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a storage is: on all of `nodes` the same (`shared`), or on each of them another."""

    shared: bool
    nodes: frozenset[str]


# ---- values


def number(value: object) -> float | None:
    """The value as a number from 0 up, None when it is missing, no number, negative or absurd."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and 0 <= found <= LIMIT else None


def whole(value: object) -> int | None:
    """As `number`, without what is behind the point."""
    found = number(value)
    return None if found is None else int(found)


def flag(value: object) -> bool:
    """PVE's booleans: 1, "1", true."""
    return value is True or number(value) == 1


def text(value: object) -> str:
    """The value as text, "" when it is missing."""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def names(value: object) -> tuple[str, ...]:
    """The texts of a list, or the keys of a table, in their order; nothing when it is neither."""
    return tuple(name for name in map(text, value) if name) if isinstance(value, list | tuple | dict) else ()


def one_line(value: object) -> str:
    """The value as one line of printable text, not longer than TEXT_LENGTH."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in str(value)).split())
    return line if len(line) <= TEXT_LENGTH else line[: TEXT_LENGTH - 1] + "…"


def rows(answer: object, path: str) -> list[Row]:
    """The rows of an answer that is a list; what is no row in it is left out. Raises UnexpectedAnswerError."""
    if not isinstance(answer, list):
        raise UnexpectedAnswerError(f"PVE answered GET /{path} with {_kind(answer)}, not with a list")
    return [row for row in answer if isinstance(row, dict)]


def fields(answer: object, path: str) -> Row:
    """The answer that is a table of fields. Raises UnexpectedAnswerError."""
    if not isinstance(answer, dict):
        raise UnexpectedAnswerError(f"PVE answered GET /{path} with {_kind(answer)}, not with fields")
    return answer


def _kind(answer: object) -> str:
    if answer is None:
        return "nothing"
    if isinstance(answer, list | dict):
        return "a list" if isinstance(answer, list) else "fields"
    return "text" if isinstance(answer, str) else "a number"


def _table(value: object) -> Row:
    return value if isinstance(value, dict) else {}


# ---- the cluster


def version(answer: object) -> str:
    """PVE's version (9.0.10) from GET /version, "" when it does not say."""
    return text(_table(answer).get("version"))


def major(pve_version: str) -> int | None:
    """The release of a version: 8 or 9; None when it cannot be told."""
    first = pve_version.partition(".")[0]
    return int(first) if first.isascii() and first.isdigit() else None


def nodes(resources: list[Row]) -> tuple[Node, ...]:
    """The nodes among the rows of /cluster/resources, by name.

    A node without numbers (offline, or the token may not see them) has size 0 and unknown load.
    """
    found: dict[str, Node] = {}
    for row in resources:
        name = text(row.get("node")) or text(row.get("id")).removeprefix("node/")
        if row.get("type") != "node" or not name:
            continue
        cores = number(row.get("maxcpu")) or 0.0
        cpu = number(row.get("cpu"))
        node = Node(
            name=name,
            online=row.get("status") == "online",
            cpu_cores=cores,
            memory_bytes=whole(row.get("maxmem")) or 0,
            cpu_used_cores=cpu * cores if cpu is not None and cores else None,
            memory_used_bytes=whole(row.get("mem")),
            uptime_s=number(row.get("uptime")),
        )
        found.setdefault(name, node)
    return tuple(found[name] for name in sorted(found))


def guests(resources: list[Row]) -> tuple[Guest, ...]:
    """The guests among the rows of /cluster/resources, by VMID, also those on nodes that have no row."""
    found: dict[int, Guest] = {}
    for row in resources:
        kind = row.get("type")
        if kind not in ("qemu", "lxc"):
            continue
        vmid = whole(row.get("vmid")) or whole(text(row.get("id")).rpartition("/")[2])
        node = text(row.get("node"))
        if vmid is not None and 0 < vmid <= VMID_MAX and node:
            found.setdefault(vmid, _guest(row, vmid, GuestType(kind), node))
    return tuple(found[vmid] for vmid in sorted(found))


def _guest(row: Row, vmid: int, kind: GuestType, node: str) -> Guest:
    cores = number(row.get("maxcpu")) or 0.0
    cpu = number(row.get("cpu"))  # a fraction of the guest's own vCPUs
    return Guest(
        vmid=vmid,
        type=kind,
        name=text(row.get("name")) or (f"VM {vmid}" if kind is GuestType.QEMU else f"CT{vmid}"),  # as PVE calls the nameless
        node=node,
        status=text(row.get("status")) or "unknown",
        cpu_cores=cores,
        memory_bytes=whole(row.get("maxmem")) or 0,
        cpu_used_cores=cpu * cores if cpu is not None and cores else None,
        memory_used_bytes=whole(row.get("mem")),
        memory_host_bytes=whole(row.get("memhost")),
        uptime_s=number(row.get("uptime")),
        tags=tuple(dict.fromkeys(tag for tag in _TAG_SEPARATORS.split(text(row.get("tags"))) if tag)),
        pool=text(row.get("pool")) or None,
        lock=text(row.get("lock")) or None,
        ha=ha if (ha := text(row.get("hastate"))) not in HA_HANDS_OFF and ha else None,
        template=flag(row.get("template")),
    )


def storages(resources: list[Row]) -> dict[str, Storage]:
    """The storages among the rows of /cluster/resources; PVE has a row for each node on which a storage is to be had."""
    shared: dict[str, bool] = {}
    where: dict[str, set[str]] = {}
    for row in resources:
        name, node = text(row.get("storage")), text(row.get("node"))
        if row.get("type") == "storage" and name and node:
            shared[name] = shared.get(name, True) and flag(row.get("shared"))
            where.setdefault(name, set()).add(node)
    return {name: Storage(shared[name], frozenset(where[name])) for name in sorted(shared)}


def storage_use(resources: list[Row]) -> tuple[StorageUse, ...]:
    """How full the storages are: a shared one once, by the row that says most; without those whose use PVE does not tell."""
    found: dict[tuple[str, str], StorageUse] = {}
    where = storages(resources)
    for row in resources:
        name, node = text(row.get("storage")), text(row.get("node"))
        used, total = whole(row.get("disk")), whole(row.get("maxdisk"))
        if row.get("type") != "storage" or name not in where or not node or used is None or not total:
            continue
        nodes = tuple(sorted(where[name].nodes)) if where[name].shared else (node,)
        use, before = StorageUse(name, nodes, used, total), found.get((name, nodes[0]))
        if before is None or used / total > before.used_bytes / before.total_bytes:
            found[name, nodes[0]] = use
    return tuple(sorted(found.values(), key=lambda use: (use.name, use.nodes)))


def ha_nodes(answer: object, known: tuple[Node, ...], wall_s: float) -> tuple[tuple[Maintenance, ...], tuple[str, ...]]:
    """Which nodes an admin asked the HA manager to empty, and which others may receive nobody as it says.

    A request stands until it is taken back. A state alone (a node that reboots with shutdown policy migrate, one that
    is fenced) is believed for a minute after the HA manager last wrote it down: on a cluster without HA guests it
    stops writing, and its last word would stand for ever.
    """
    manager = _table(_table(answer).get("manager_status"))
    asked = {name for name, request in _table(manager.get("node_request")).items() if flag(_table(request).get("maintenance"))}
    written_at = number(manager.get("timestamp"))
    is_fresh = written_at is not None and wall_s - written_at < HA_STATUS_FRESH_S
    states = _table(manager.get("node_status")) if is_fresh else {}
    barred = {name for name, state in states.items() if isinstance(state, str) and state in HA_NO_TARGET} - asked
    maintenance = tuple(Maintenance(node.name, HA_ASKED_BY) for node in known if node.name in asked)
    return maintenance, tuple(node.name for node in known if node.online and node.name in barred)


def ha_nodes_of_resources(resources: list[Row], known: tuple[Node, ...]) -> tuple[str, ...]:
    """Which online nodes may receive nobody as PVE 9 says in /cluster/resources; for want of the HA manager's own status."""
    barred = {text(row.get("node")) for row in resources if row.get("type") == "node" and row.get("hastate") in ("maintenance", "fence")}
    return tuple(node.name for node in known if node.online and node.name in barred)


# ---- tasks


def upid_task(upid: str) -> Task | None:
    """What a UPID says about its task, as if it ran; None when it is no UPID."""
    match = _UPID.fullmatch(upid)
    if match is None:
        return None
    node, started, kind, target_id, user = match.groups()
    return Task(upid, node, kind, target_id, user, float(int(started, 16)))


def tasks(answer: list[Row]) -> tuple[Task, ...]:
    """The tasks of a task list, by start; what its UPID says is believed before the other fields."""
    found: dict[str, Task] = {}
    for row in answer:
        task = upid_task(text(row.get("upid")))
        if task is None:
            continue
        status = text(row.get("status")) or None
        ended_at = number(row.get("endtime"))
        if ended_at is None and status is not None and status.lower() != "running":
            ended_at = task.started_at
        if ended_at is None:
            status = None
        ended = Task(task.upid, task.node, task.kind, task.target_id, task.user, task.started_at, ended_at, status)
        found.setdefault(task.upid, ended)
    return tuple(sorted(found.values(), key=lambda task: (task.started_at, task.upid)))


def task_status_path(task: Task) -> str:
    """Where its node tells how a task stands."""
    return f"nodes/{_quoted(task.node)}/tasks/{quote(task.upid, safe=':@!')}/status"


def task_sight(upid: str, answer: object, path: str) -> TaskSight:
    """How a task stands. Raises UnexpectedAnswerError when it neither runs nor has stopped."""
    row = fields(answer, path)
    status = row.get("status")
    if status == "running":
        return TaskSight(upid, None)
    if status != "stopped":
        raise UnexpectedAnswerError(f"PVE does not say whether the task {one_line(upid)} runs")
    return TaskSight(upid, text(row.get("exitstatus")) or "unexpected status")


def node_tasks_path(node: str) -> str:
    """Where a node lists its tasks."""
    return f"nodes/{_quoted(node)}/tasks"


def migrations_wanted(vmid: int, since_wall_s: float) -> dict[str, Parameter]:
    """What to ask of a node's task list for a guest's migrations; PVE counts in whole seconds."""
    return {"vmid": vmid, "source": "all", "since": int(since_wall_s)}


def newest_migration(found: tuple[Task, ...], vmid: int, node: str, since_wall_s: float) -> str | None:
    """UPID of the last migrate task of the guest on the node started since then."""
    ours = [task for task in found if task.vmid == vmid and task.kind in MIGRATE_KINDS and task.node == node]
    return max(((task.started_at, task.upid) for task in ours if task.started_at >= int(since_wall_s)), default=(0.0, None))[1]


# ---- migrating


def migrate_path(node: str, kind: GuestType, vmid: int) -> str:
    """Where PVE tells whether a guest may migrate, and starts it."""
    return f"nodes/{_quoted(node)}/{kind.value}/{vmid}/migrate"


def config_path(node: str, kind: GuestType, vmid: int) -> str:
    """Where a guest's configuration is."""
    return f"nodes/{_quoted(node)}/{kind.value}/{vmid}/config"


def migrate_parameters(order: MigrationOrder) -> dict[str, Parameter]:
    """What is sent to start a migration. PVE takes booleans as 1 only, and 8 refuses what it does not know."""
    parameters: dict[str, Parameter] = {"target": order.target}
    if order.online and order.type is GuestType.QEMU:
        parameters["online"] = 1
    if order.restart and order.type is GuestType.LXC:
        parameters["restart"] = 1
    if order.bandwidth_limit_kib_s is not None:
        parameters["bwlimit"] = order.bandwidth_limit_kib_s
    return parameters


def verdict_of_refusal(vmid: int, said: str, wall_s: float) -> Verdict:
    """The verdict when PVE refused to answer, with its own words."""
    locked = _LOCKED.search(said)
    if locked is None:
        return Verdict(vmid, wall_s, Refusal(vmid, RefusalReason.PRECONDITION, one_line(said)))
    return Verdict(vmid, wall_s, Refusal(vmid, RefusalReason.LOCKED, locked[1] or ""))


def vm_verdict(vmid: int, answer: object, path: str, wall_s: float) -> Verdict:
    """What PVE says about migrating a VM.

    Devices come before disks: a device keeps the VM where it is, for disks there may be a way. PVE before 8.4 tells
    allowed nodes only for a stopped VM, so a missing list says nothing; nor does a node's absence from it, as PVE names
    each refused node with its cause.
    """
    row = fields(answer, path)
    devices = _blocking_devices(row)
    if devices:
        refusal = Refusal(vmid, RefusalReason.LOCAL_DEVICE, one_line(", ".join(devices)))
        return Verdict(vmid, wall_s, refusal)
    disks = _local_disks(row.get("local_disks"))
    refusal_of_disks = Refusal(vmid, RefusalReason.LOCAL_DISK, one_line(", ".join(disks))) if disks else None
    return Verdict(vmid, wall_s, refusal_of_disks, _refused_nodes(row.get("not_allowed_nodes")))


def _blocking_devices(row: Row) -> list[str]:
    """Devices that keep the VM where it is. PVE lists mapped ones among the local ones, too."""
    info = _table(row.get("mapped-resource-info"))
    mapped = {*names(row.get("mapped-resources")), *info}
    local = [name for name in names(row.get("local_resources")) if name not in mapped]
    fixed = [name for name in sorted(mapped) if not flag(_table(info.get(name)).get("live-migration"))]
    physical = [f"{_drive(disk)} (the node's own drive)" for disk in _disks(row.get("local_disks")) if _volid(disk) == "cdrom"]
    return sorted(local) + (fixed if flag(row.get("running")) else []) + physical


def _local_disks(value: object) -> list[str]:
    """Volumes that exist on this node alone; a cloud-init image is made anew by PVE wherever the VM starts."""
    found = []
    for disk in _disks(value):
        volid = _volid(disk)
        if volid in ("", "none", "cdrom") or _CLOUD_INIT.search(volid):
            continue
        found.append(f"{volid} (cdrom)" if flag(disk.get("cdrom")) else volid)
    return sorted(found)


def _disks(value: object) -> Iterator[Row]:
    for disk in value if isinstance(value, list) else ():
        yield disk if isinstance(disk, dict) else {"volid": disk}


def _volid(disk: Row) -> str:
    return text(disk.get("volid")) or _drive(disk)


def _drive(disk: Row) -> str:
    return text(disk.get("drivename"))


def _refused_nodes(value: object) -> tuple[tuple[str, str], ...]:
    return tuple((node, one_line(_why_not_node(why))) for node, why in sorted(_table(value).items()))


def _why_not_node(why: object) -> str:
    row = _table(why)
    said = []
    if stores := names(row.get("unavailable_storages")):
        said.append(f"storage {', '.join(stores)} is not there")
    if devices := names(row.get("unavailable-resources")):
        said.append(f"mapped device {', '.join(devices)} is not there")
    blocking = row.get("blocking-ha-resources")
    guests_there = [_table(entry) for entry in blocking] if isinstance(blocking, list) else []
    if guests_there:
        said.append("HA rule: " + ", ".join(f"{text(entry.get('sid'))} ({text(entry.get('cause'))})" for entry in guests_there))
    return "; ".join(said) or "PVE does not allow it" + (f" ({', '.join(sorted(map(str, row)))})" if row else "")


# ---- containers: PVE 8 has no check of its own, that of PVE 9 looks at no storage


def container_verdict(
    vmid: int, precondition: object, config: object, known: Mapping[str, Storage], cluster_nodes: Collection[str], wall_s: float
) -> Verdict:
    """What keeps a container from migrating, from its configuration and, where PVE has it, PVE's own check.

    Shape:   `precondition` is the answer of GET .../migrate, None on PVE 8; a storage that is not in `known` counts as local.
    """
    row = fields(config, "nodes/.../config")
    if lock := text(row.get("lock")):
        return Verdict(vmid, wall_s, Refusal(vmid, RefusalReason.LOCKED, one_line(lock)))
    devices = _container_devices(row)
    if devices:
        return Verdict(vmid, wall_s, Refusal(vmid, RefusalReason.LOCAL_DEVICE, one_line(", ".join(devices))))
    volumes = _container_volumes(row)
    local = [volid for storage, volid in volumes if storage not in known or not known[storage].shared]
    refused = dict(_refused_nodes(_table(precondition).get("not-allowed-nodes")))
    shared = sorted({storage for storage, _ in volumes if storage in known and known[storage].shared})
    for node in sorted(cluster_nodes):
        missing = [storage for storage in shared if node not in known[storage].nodes]
        if missing:
            refused.setdefault(node, one_line(f"storage {', '.join(missing)} is not there"))
    refusal = Refusal(vmid, RefusalReason.LOCAL_DISK, one_line(", ".join(local))) if local else None
    return Verdict(vmid, wall_s, refusal, tuple(sorted(refused.items())))


def container_storages(config: object) -> set[str]:
    """The storages a container has volumes on."""
    return {storage for storage, _ in _container_volumes(_table(config))}


def _container_devices(config: Row) -> list[str]:
    """Devices, directories and raw settings of its node that a container uses."""
    found = [f"{key} {_first(value)}" for key, value in sorted(config.items()) if _CONTAINER_DEVICE.fullmatch(key)]
    for key, value in sorted(config.items()):
        if _CONTAINER_VOLUME.fullmatch(key) and _first(value).startswith("/") and "shared=1" not in text(value).split(","):
            found.append(f"{key} {_first(value)}")
    raw = config.get("lxc")
    for entry in raw if isinstance(raw, list) else ():
        key = text(entry[0]) if isinstance(entry, list) and entry else ""
        if _RAW_DEVICE.match(key):
            found.append(key)
    return list(dict.fromkeys(found))


def _container_volumes(config: Row) -> list[tuple[str, str]]:
    """(storage, volid) of each volume, by its key; what begins with a slash is none."""
    volids = [_first(value) for key, value in sorted(config.items()) if _CONTAINER_VOLUME.fullmatch(key)]
    return [(volid.partition(":")[0], volid) for volid in volids if volid and not volid.startswith("/")]


def _first(value: object) -> str:
    """The value of a property string's default key, which may be spelt out."""
    first = text(value).split(",")[0]
    return first.partition("=")[2] if first.startswith(("volume=", "path=")) else first


def _quoted(name: str) -> str:
    return quote(name, safe="")

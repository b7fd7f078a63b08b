# SPDX-License-Identifier: GPL-3.0-or-later
"""What PVE's words for a failed migration mean: the class of the failure, and what is done about it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class FailureClass(StrEnum):
    """Why a migration failed. `MEANING`, `TREATMENT` and `REMEDY` have a line for each."""

    LOCKED = "locked"
    BACKUP = "backup"
    LOCAL_DEVICE = "local-device"
    STORAGE = "storage"
    NETWORK = "network"
    MEMORY = "memory"
    HA_REJECTED = "ha-rejected"
    PERMISSION = "permission"
    VERSION = "version"
    CANCELLED = "cancelled"
    CHANGED = "changed"
    UNKNOWN = "unknown"


class Treatment(StrEnum):
    """What is done about a failure."""

    OTHER_TARGET = "other-target"  # only that node is avoided, for a growing time
    WAIT = "wait"  # for a lock that goes by itself; the time does not grow
    LOOK_AGAIN = "look-again"  # what the request rested on was old: it is no failure, and the next look shows the guest as it is
    SET_ASIDE = "set-aside"  # the guest is left alone, for a growing time
    TO_A_PERSON = "to-a-person"  # trying again helps nobody: the guest is left alone as long as may be
    NEVER_AGAIN = "never-again"  # until somebody has acted


PASSING = frozenset({Treatment.WAIT, Treatment.LOOK_AGAIN})  # they count for nothing against the guest

F, T = FailureClass, Treatment
MEANING: dict[FailureClass, str] = {
    F.LOCKED: "PVE holds a lock on the guest, or on a file that the migration needs",
    F.BACKUP: "a backup of the guest runs",
    F.LOCAL_DEVICE: "the guest uses a device, a disk or an image of its node that cannot be moved along",
    F.STORAGE: "a storage, a bridge, a device or a script that the guest needs is not on the target, does not take it or is full",
    F.NETWORK: "the nodes do not reach each other, or the connection broke",
    F.MEMORY: "the target has not the memory to start the guest",
    F.HA_REJECTED: "the HA manager did not take the request, or did not carry it out",
    F.PERMISSION: "the agent's token may not do that",
    F.VERSION: "the target's software or CPU is not fit for the guest, or PVE does not know a parameter",
    F.CANCELLED: "a person stopped the migration",
    F.CHANGED: "the guest was started or moved by somebody else meanwhile",
    F.UNKNOWN: "PVE's words are not known to the agent",
}
TREATMENT: dict[FailureClass, Treatment] = {
    F.LOCKED: T.WAIT,
    F.BACKUP: T.WAIT,
    F.LOCAL_DEVICE: T.TO_A_PERSON,
    F.STORAGE: T.OTHER_TARGET,
    F.NETWORK: T.OTHER_TARGET,
    F.MEMORY: T.OTHER_TARGET,
    F.HA_REJECTED: T.SET_ASIDE,
    F.PERMISSION: T.TO_A_PERSON,
    F.VERSION: T.OTHER_TARGET,
    F.CANCELLED: T.NEVER_AGAIN,
    F.CHANGED: T.LOOK_AGAIN,
    F.UNKNOWN: T.SET_ASIDE,
}
REMEDY: dict[FailureClass, str] = {
    F.LOCKED: "it is tried again when the lock is gone; one that a crash left behind goes with `{tool} unlock {vmid}` on its node",
    F.BACKUP: "it is tried again after the backup",
    F.LOCAL_DEVICE: "take from the guest what ties it to its node, or move it by hand",
    F.STORAGE: "make what is missing available on the target, with room for the guest",
    F.NETWORK: "check the migration network, and ssh from the source to the target as root",
    F.MEMORY: "see what takes the memory of the target",
    F.HA_REJECTED: "see `ha-manager status`, and the log of pve-ha-crm on the node of the HA master",
    F.PERMISSION: "give the token's role what it lacks: proxlb-agent setup",
    F.VERSION: "bring the nodes to the same version of Proxmox VE and QEMU",
    F.CANCELLED: "move it yourself, or ask again: set the maintenance anew, or proxlb-agent balance --force",
    F.CHANGED: "nothing: it is looked at anew in some seconds",
    F.UNKNOWN: "see the log of the task in PVE",
}


@dataclass(frozen=True, slots=True)
class Known:
    """One of PVE's texts: what to look for, what it means, and where PVE has it.

    Source:  qemu-server 9.2.6, pve-container 6.1.10, pve-guest-common 6.0.2, pve-ha-manager 5.2.0, pve-common 9.2.1, pve-storage
             and pve-cluster of the same time; of QEMU and the kernel where no file is named. PVE 8 has the same texts where it has
             the check.
    """

    pattern: re.Pattern[str]
    failure: FailureClass
    source: str


def _known(failure: FailureClass, *rows: tuple[str, str]) -> tuple[Known, ...]:
    return tuple(Known(re.compile(pattern), failure, source) for pattern, source in rows)


# The order decides where one text matches twice: what a person did comes first, what says the least last.
KNOWN: tuple[Known, ...] = (
    *_known(
        F.CANCELLED,
        (r"interrupted by signal", "pve-guest-common src/PVE/AbstractMigrate.pm:91"),
        (r"received interrupt", "pve-common src/PVE/RESTEnvironment.pm:566, pve-guest-common src/PVE/AbstractMigrate.pm:139"),
    ),
    *_known(
        F.BACKUP,
        (r"(?:VM|CT) is locked \(backup\)", "pve-guest-common src/PVE/AbstractConfig.pm:339"),
    ),
    *_known(
        F.LOCKED,
        (r"(?:VM|CT) is locked(?: \([\w-]+\))?", "pve-guest-common src/PVE/AbstractConfig.pm:339"),
        (r"can't lock file '", "pve-common src/PVE/Tools.pm:264"),
        (r"can't acquire lock '", "pve-common src/PVE/Tools.pm:229"),
        (r"got lock request timeout", "pve-cluster src/PVE/Cluster.pm:628"),
        (r"'-locked command timed out", "pve-cluster src/PVE/Cluster.pm:657"),
    ),
    *_known(
        F.CHANGED,
        (r"can't migrate running VM without --online", "qemu-server src/PVE/API2/Qemu.pm:5595 and QemuMigrate.pm:215"),
        (r"can't migrate running container without --online or --restart", "pve-container src/PVE/API2/LXC.pm:1697"),
        (r"running container can only be migrated in restart mode", "pve-container src/PVE/LXC/Migrate.pm:53"),
        (r"Configuration file '[^']*' does not exist", "pve-guest-common src/PVE/AbstractConfig.pm:57"),
        (r"\bVM \d+ not running", "qemu-server src/PVE/QemuServer/Monitor.pm:81"),
        (r"resource '\w+:\d+' is not HA managed", "pve-ha-manager src/PVE/HA/Config.pm:487"),
    ),
    *_known(
        F.PERMISSION,
        (r"Permission check failed", "pve-common src/PVE/Exception.pm:58"),
        (r"Only root may use this option", "qemu-server src/PVE/API2/Qemu.pm:5577"),
    ),
    *_known(
        F.HA_REJECTED,
        (r"service '\w+:\d+' in error state", "pve-ha-manager src/PVE/API2/HA/Resources.pm:49"),
        (r"crm command error|crm command '[^']*' error", "pve-ha-manager src/PVE/HA/Manager.pm:656 and 596"),
        (r"cannot (?:migrate|relocate) resource '", "pve-ha-manager src/PVE/CLI/ha_manager.pm:160"),
        (r"command 'ha-manager migrate .*failed", "qemu-server src/PVE/API2/Qemu.pm:5648, pve-common src/PVE/Cmd.pm"),
        (r"the HA manager\b", "the agent's own words"),
    ),
    *_known(
        F.VERSION,
        (r"Installed QEMU version '[^']*' is too old", "qemu-server src/PVE/QemuServer.pm:3168"),
        (r"Installed qemu-server \(max feature level .*too old", "qemu-server src/PVE/QemuServer.pm:3172"),
        (r"target node \S+ is too old", "qemu-server src/PVE/QemuMigrate.pm:1134"),
        (r"Remote tunnel endpoint (?:not compatible|too old)", "qemu-server src/PVE/QemuMigrate.pm:350"),
        (r"property is not defined in schema", "pve-common src/PVE/JSONSchema.pm:1378"),
        (r"CPU model '[^']*' does not exist", "qemu-server src/PVE/QemuServer/CPUConfig.pm:901"),
        (r"unsupported machine type", "QEMU"),
        (r"host doesn't support requested feature", "QEMU"),
        (r"error while loading state for instance|Unknown savevm section|Unknown ramblock", "QEMU"),
    ),
    *_known(
        F.MEMORY,
        (r"[Cc]annot allocate memory", "the kernel"),
        (r"[Cc]annot set up guest memory", "QEMU"),
        (r"hugepage allocation failed", "qemu-server src/PVE/QemuServer/Memory.pm:731"),
    ),
    *_known(
        F.LOCAL_DEVICE,
        (r"can't migrate VM which uses local devices", "qemu-server src/PVE/QemuMigrate.pm:280"),
        (r"can't live migrate running VM which uses following mapped devices", "qemu-server src/PVE/QemuMigrate.pm:300"),
        (r"Cannot live-migrate, snapshot \(with RAM\), or hibernate", "qemu-server src/PVE/QemuMigrate/Helpers.pm:28"),
        (r"VMs with 'clipboard' set to 'vnc' are not live migratable", "qemu-server src/PVE/QemuMigrate.pm:310"),
        (r"cannot migrate local \w+ mount point", "pve-container src/PVE/LXC/Migrate.pm:71"),
        (r"can't migrate local cdrom drive", "qemu-server src/PVE/QemuMigrate.pm:418"),
        (r"local cdrom image", "qemu-server src/PVE/QemuMigrate.pm:478"),
        (r"local file/device", "qemu-server src/PVE/QemuMigrate.pm:411"),
        (r"can't live migrate attached local disks without with-local-disks", "qemu-server src/PVE/QemuMigrate.pm:542"),
        (r"non-migratable snapshot exists", "qemu-server src/PVE/QemuMigrate.pm:512, pve-container src/PVE/LXC/Migrate.pm:258"),
        (r"online storage migration not possible if non-replicated snapshot exists", "qemu-server src/PVE/QemuMigrate.pm:500"),
        (r"referenced by linked clone", "qemu-server src/PVE/QemuMigrate.pm:516"),
        (r"\bclone of '", "qemu-server src/PVE/QemuMigrate.pm:586, pve-container src/PVE/LXC/Migrate.pm:327"),
        (r"State blocked by non-migratable device", "QEMU"),
        (r"No common base snapshot on volume", "pve-guest-common src/PVE/Replication.pm:112"),
        (r"owned by other (?:VM|guest)", "qemu-server src/PVE/QemuMigrate.pm:483, pve-container src/PVE/LXC/Migrate.pm:247"),
        (r"detected not supported aliased volumes", "qemu-server src/PVE/QemuMigrate.pm:533"),
        (r"replication job is marked for removal", "qemu-server src/PVE/QemuMigrate.pm:208"),
        (r"storage type '\w+' not supported", "qemu-server src/PVE/QemuMigrate.pm:581, pve-container src/PVE/LXC/Migrate.pm:322"),
    ),
    *_known(
        F.STORAGE,
        (r"missing mapped devices", "qemu-server src/PVE/QemuMigrate.pm:297"),
        (r"bridge '[^']*' does not exist", "pve-common src/PVE/Network.pm:135"),
        (r"storage '[^']*' is not available on node '", "pve-storage src/PVE/Storage.pm:272"),
        (r"storage '[^']*' does not exist", "pve-storage src/PVE/Storage.pm:259"),
        (r"storage '[^']*' is (?:disabled|not online)", "pve-storage src/PVE/Storage.pm:286"),
        (r"unable to activate storage '", "pve-storage src/PVE/Storage/NFSPlugin.pm:149"),
        (r"storage '[^']*' does not support (?:vm images|CT rootdirs)", "qemu-server and pve-container, check_storage_access_migrate"),
        (r"content type '\w*' is not available on storage '", "qemu-server src/PVE/QemuMigrate.pm:178"),
        (r"cannot migrate from storage type '", "pve-storage src/PVE/Storage.pm:957"),
        (r"storage migration for '[^']*' to storage '[^']*' failed", "qemu-server src/PVE/QemuMigrate.pm:771"),
        (r"disk import failed", "pve-guest-common src/PVE/StorageTunnel.pm:128"),
        (r"Failed to complete storage migration", "qemu-server src/PVE/QemuMigrate.pm:1588"),
        (r"mirroring error:|block job \([\w' ]+\) error:", "qemu-server src/PVE/QemuServer/BlockJob.pm:318"),
        (r"[Nn]o space left on device|not enough free space|out of space|insufficient free space", "the kernel, LVM and ZFS"),
        (r"not a replication target", "qemu-server src/PVE/QemuMigrate.pm:226 and API2/Qemu.pm:5602"),
        (r"script '[^']*' does not exist|script '[^']*' is not executable", "pve-guest-common src/PVE/GuestHelpers.pm:108"),
        (r"is not in the snippets directory", "pve-guest-common src/PVE/GuestHelpers.pm:105"),
        (r"lvcreate '[^']*' error|zfs error:|rbd error:", "pve-storage src/PVE/Storage/LVMPlugin.pm:639"),
        (r"unable to get ID of the migrated volume", "pve-storage src/PVE/Storage.pm:1065"),
        (r"hookscript error for \d+ on pre-start", "pve-guest-common src/PVE/GuestHelpers.pm:129"),
    ),
    *_known(
        F.NETWORK,
        (r"Can't connect to destination address", "qemu-server src/PVE/QemuMigrate.pm:361, pve-container src/PVE/LXC/Migrate.pm:161"),
        (r"can't open tunnel", "pve-guest-common src/PVE/Tunnel.pm:197"),
        (r"(?:writing to|reading from) tunnel failed", "pve-guest-common src/PVE/Tunnel.pm:106"),
        (r"no reply to command '", "pve-guest-common src/PVE/Tunnel.pm:110"),
        (r"no quorum on target node|cluster not ready - no quorum", "pve-guest-common src/PVE/Tunnel.pm:177"),
        (r"failed to get ip for node '", "pve-cluster src/PVE/SSHInfo.pm:44"),
        (r"could not get migration ip", "pve-cluster src/PVE/CLI/pvecm.pm:733"),
        (r"no tunnel (?:IP|port) received|failed to connect to tunnel at", "pve-storage src/PVE/Storage.pm:1013"),
        (r"failed to run insecure migration", "pve-storage src/PVE/Storage.pm:1057"),
        (r"pve cluster filesystem not online|\(pmxcfs\) not mounted", "pve-cluster src/PVE/Cluster.pm:625"),
        (r"unable to detect remote migration address", "qemu-server src/PVE/QemuMigrate.pm:1139"),
        (r"migration socket .* did not get ready", "qemu-server src/PVE/QemuMigrate.pm:139"),
        (r"no such cluster node", "pve-cluster src/PVE/Cluster.pm:807"),
        (r"Connection (?:timed out|refused|reset|closed)|No route to host|Host key verification failed", "ssh and the kernel"),
        (r"Broken pipe|Permission denied \(publickey", "ssh and the kernel"),
    ),
)
CLUTTER = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?:ERROR: )?|^TASK (?:ERROR|WARNINGS): ")
_DECIDES_NOTHING = re.compile(r"^migration (?:aborted|problems|finished with problems)(?: \(duration [\d:]+\))?:?\s*$")


@dataclass(frozen=True, slots=True)
class Failure:
    """What a failure is, and PVE's words that say so (one line, "" when none does)."""

    failure: FailureClass
    text: str = ""


def understood(status: str, log: Iterable[str] = ()) -> Failure:
    """The class of a failed attempt by how its task ended, or by PVE's refusal, and the lines of its log.

    PVE's status itself says only `migration aborted` or `migration problems`. Of the log, the first line that is known decides, as
    what follows is what came of it; but that a person stopped it counts wherever it stands.
    """
    lines = [CLUTTER.sub("", line.strip()) for line in (*log, status)]
    found = [(row.failure, line) for line in lines if (row := _row(line)) is not None]
    for failure, line in found:
        if failure is F.CANCELLED:
            return Failure(failure, line)
    if found:
        return Failure(*found[0])
    errors = [CLUTTER.sub("", line.strip()) for line in log if " ERROR: " in line]
    telling = [line for line in errors if line and not _DECIDES_NOTHING.match(line)]
    return Failure(F.UNKNOWN, telling[0] if telling else "")


def _row(line: str) -> Known | None:
    return next((row for row in KNOWN if row.pattern.search(line)), None)


def remedy(failure: FailureClass, vmid: int, is_vm: bool) -> str:
    """What a person can do."""
    return REMEDY[failure].format(vmid=vmid, tool="qm" if is_vm else "pct")

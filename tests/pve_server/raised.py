# SPDX-License-Identifier: GPL-3.0-or-later
"""Every place in PVE's sources where a migration of a guest can die, with what the agent takes it for.

`python3 -m tests.pve_server.raised FOLDER` holds this to the sources: FOLDER has a checkout of each package, named after it.

Source:  qemu-server 9.2.6, pve-container 6.1.10, pve-guest-common 6.0.2, pve-ha-manager 5.2.0, pve-cluster 9.1.6, pve-common 9.2.1,
         pve-storage of the same time.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from agent.core.failures import FailureClass as F


class Unclassed(StrEnum):
    """Why a text needs no class."""

    GENERIC = "says only that it failed: a line before it says why"
    INTERNAL = "a mistake in PVE itself, or in how it is called: the guest is left alone for a growing time, as for any unknown text"
    REMOTE = "of migrations to another cluster, which the agent never asks for"
    OVER = "the guest is on the target by then: its place decides"


U = Unclassed


@dataclass(frozen=True, slots=True)
class Raised:
    """One place. `fragment` is what stands there of the text, without what is put into it."""

    source: str
    line: int
    fragment: str
    meaning: F | Unclassed

    @property
    def place(self) -> str:
        """`package path:line`, as `agent.core.failures.KNOWN` writes it."""
        return f"{self.source}:{self.line}"


def _in(source: str, *rows: tuple[int, str, F | Unclassed]) -> tuple[Raised, ...]:
    return tuple(Raised(source, *row) for row in rows)


RAISED: tuple[Raised, ...] = (
    *_in(
        "qemu-server src/PVE/QemuMigrate.pm",
        (112, "unexpected socket address '", U.INTERNAL),
        (139, "did not get ready", F.NETWORK),
        (155, "unsupported protocol in migration URI", U.INTERNAL),
        (178, "is not available on storage '", F.STORAGE),
        (208, "refusing to migrate replicated VM whose replication job is marked for removal", F.LOCAL_DEVICE),
        (215, "can't migrate running VM without --online", F.CHANGED),
        (226, "Cannot live-migrate replicated VM to node '", F.STORAGE),
        (280, "can't migrate VM which uses local devices", F.LOCAL_DEVICE),
        (297, "missing mapped devices", F.STORAGE),
        (300, "can't live migrate running VM which uses following mapped devices", F.LOCAL_DEVICE),
        (310, "VMs with 'clipboard' set to 'vnc' are not live migratable with", F.LOCAL_DEVICE),
        (350, "Remote tunnel endpoint not compatible", U.REMOTE),
        (352, "Remote tunnel endpoint too old", U.REMOTE),
        (361, "Can't connect to destination address using public key", F.NETWORK),
        (411, "local file/device", F.LOCAL_DEVICE),
        (418, "can't migrate local cdrom drive", F.LOCAL_DEVICE),
        (456, "unable to determine size for volume '", F.UNKNOWN),
        (458, "unable to determine format for volume '", F.UNKNOWN),
        (478, "local cdrom image", F.LOCAL_DEVICE),
        (483, "owned by other VM (owner = VM", F.LOCAL_DEVICE),
        (500, "online storage migration not possible if non-replicated snapshot exists", F.LOCAL_DEVICE),
        (503, "remote migration with snapshots not supported yet", U.REMOTE),
        (512, "non-migratable snapshot exists", F.LOCAL_DEVICE),
        (516, "referenced by linked clone(s)", F.LOCAL_DEVICE),
        (533, "detected not supported aliased volumes", F.LOCAL_DEVICE),
        (542, "can't live migrate attached local disks without with-local-disks option", F.LOCAL_DEVICE),
        (568, "can't migrate VM - check log", U.GENERIC),
        (581, "' not supported", F.LOCAL_DEVICE),
        (586, "as it's a clone of '", F.LOCAL_DEVICE),
        (605, "Problem found while scanning volumes - ", U.GENERIC),
        (616, "can't migrate VM with replicated volumes to remote cluster/node", U.REMOTE),
        (623, "internal error - no drive for '", U.INTERNAL),
        (650, "to get replicated, but it wasn't", F.UNKNOWN),
        (771, "storage migration for '", F.STORAGE),
        (1088, "Destination UNIX sockets VMID does not match source VMID", U.INTERNAL),
        (1109, "Destination UNIX socket's VMID does not match source VMID", U.INTERNAL),
        (1134, "is too old for preserving VirtIO-net MTU", F.VERSION),
        (1137, "remote command failed with exit code", U.GENERIC),
        (1139, "unable to detect remote migration address", F.NETWORK),
        (1153, "insecure migration to remote cluster not implemented", U.REMOTE),
        (1168, "unexpected NBD uri for '", U.INTERNAL),
        (1263, "only UNIX sockets are supported for remote migration", U.REMOTE),
        (1268, "unexpected socket address '", U.INTERNAL),
        (1279, "unexpected socket address '", U.INTERNAL),
        (1301, "The number of local disks does not match between the source and the destination", F.UNKNOWN),
        (1460, "too many query migrate failures - aborting", F.UNKNOWN),
        (1472, "unable to parse migration status '", F.UNKNOWN),
        (1507, "aborting", U.GENERIC),
        (1588, "Failed to complete storage migration", F.STORAGE),
        (1606, "no 'status' in result", U.OVER),
    ),
    *_in(
        "qemu-server src/PVE/API2/Qemu.pm",
        (333, "does not support vm images", F.STORAGE),
        (5567, "target is local node.", F.UNKNOWN),
        (5577, "Only root may use this option.", F.PERMISSION),
        (5580, "Only root may use this option.", F.PERMISSION),
        (5584, "Only root may use this option.", F.PERMISSION),
        (5595, "can't migrate running VM without --online", F.CHANGED),
        (5602, "Cannot live-migrate replicated VM to node '", F.STORAGE),
        (5615, "failed to parse storage map", F.UNKNOWN),
        (5648, "ha-manager", F.HA_REJECTED),
    ),
    *_in("qemu-server src/PVE/QemuMigrate/Helpers.pm", (28, "Cannot live-migrate, snapshot (with RAM), or hibernate", F.LOCAL_DEVICE)),
    *_in(
        "qemu-server src/PVE/QemuServer.pm",
        (2254, "is not available on storage '", F.STORAGE),
        (3168, "is too old to run machine type", F.VERSION),
        (3172, "Installed qemu-server (max feature level for", F.VERSION),
        (5835, "QEMU exited with code", U.GENERIC),
        (5878, "start failed: ", U.GENERIC),
    ),
    *_in("qemu-server src/PVE/QemuServer/CPUConfig.pm", (901, "does not exist", F.VERSION)),
    *_in("qemu-server src/PVE/QemuServer/Memory.pm", (731, "hugepage allocation failed", F.MEMORY)),
    *_in("qemu-server src/PVE/QemuServer/Monitor.pm", (81, "not running", F.CHANGED), (96, "unable to open monitor socket", U.INTERNAL)),
    *_in("qemu-server src/PVE/QemuServer/BlockJob.pm", (318, "mirroring error: ", F.STORAGE)),
    *_in(
        "pve-container src/PVE/LXC/Migrate.pm",
        (52, "lxc live migration is currently not implemented", U.INTERNAL),
        (53, "running container can only be migrated in restart mode", F.CHANGED),
        (71, "cannot migrate local ", F.LOCAL_DEVICE),
        (75, "missing volume for mount point '", F.UNKNOWN),
        (78, "can't determine assigned storage for mount point '", F.UNKNOWN),
        (85, "is not available on storage '", F.STORAGE),
        (95, "unable to migrate local mount point '", U.INTERNAL),
        (106, "is not available on storage '", F.STORAGE),
        (150, "Remote tunnel endpoint not compatible", U.REMOTE),
        (152, "Remote tunnel endpoint too old", U.REMOTE),
        (161, "Can't connect to destination address using public key", F.NETWORK),
        (247, "owned by other guest (owner = ", F.LOCAL_DEVICE),
        (258, "non-migratable snapshot exists", F.LOCAL_DEVICE),
        (278, "remote migration with snapshots not supported yet", U.REMOTE),
        (302, "detected not supported aliased volumes", F.LOCAL_DEVICE),
        (322, "' not supported", F.LOCAL_DEVICE),
        (327, "clone of '", F.LOCAL_DEVICE),
        (351, "can't migrate CT - check log", U.GENERIC),
        (359, "cannot remote-migrate replicated VM", U.REMOTE),
        (362, "can't live migrate VM with replicated volumes", U.INTERNAL),
        (418, "storage migration for '", F.STORAGE),
        (431, "implement me", U.INTERNAL),
    ),
    *_in(
        "pve-container src/PVE/API2/LXC.pm",
        (70, "does not support CT rootdirs", F.STORAGE),
        (1681, "target is local node.", F.UNKNOWN),
        (1697, "can't migrate running container without --online or --restart", F.CHANGED),
        (1704, "failed to parse storage map", F.UNKNOWN),
    ),
    *_in("pve-container src/PVE/LXC.pm", (3270, "container did not stop", F.UNKNOWN)),
    *_in(
        "pve-guest-common src/PVE/AbstractMigrate.pm",
        (91, "interrupted by signal", F.CANCELLED),
        (97, "interrupted by signal", F.CANCELLED),
        (171, "Can't connect to destination address (", F.NETWORK),
        (242, "migration aborted", U.GENERIC),
        (247, "migration problems", U.GENERIC),
        (377, "invalid remote bandwidth limit", U.REMOTE),
    ),
    *_in("pve-guest-common src/PVE/AbstractConfig.pm", (57, "Configuration file '", F.CHANGED), (339, " is locked (", F.LOCKED)),
    *_in(
        "pve-guest-common src/PVE/GuestHelpers.pm",
        (105, "' is not in the snippets directory", F.STORAGE),
        (108, "does not exist", F.STORAGE),
        (111, "is not executable", F.STORAGE),
        (129, "hookscript error for ", F.STORAGE),
    ),
    *_in("pve-guest-common src/PVE/StorageTunnel.pm", (128, "disk import failed - see log above", F.STORAGE)),
    *_in("pve-guest-common src/PVE/Replication.pm", (112, "No common base snapshot on volume(s)", F.LOCAL_DEVICE)),
    *_in(
        "pve-guest-common src/PVE/Tunnel.pm",
        (73, "reading from tunnel failed", F.NETWORK),
        (93, "failed to encode command as JSON", U.INTERNAL),
        (106, "writing to tunnel failed", F.NETWORK),
        (110, "no reply to command '", F.NETWORK),
        (116, "tunnel replied '", F.UNKNOWN),
        (120, "failed to decode tunnel reply '", U.INTERNAL),
        (125, "error - tunnel command '", U.REMOTE),
        (127, "error - tunnel command '", U.REMOTE),
        (176, "no reply", U.GENERIC),
        (177, "no quorum on target node", F.NETWORK),
        (178, "got strange reply from tunnel ('", U.GENERIC),
        (197, "can't open tunnel - ", F.NETWORK),
        (228, "failed to write forwarding command", U.REMOTE),
        (239, "can't connect to remote host without credentials", U.REMOTE),
        (290, "failed to write tunnel connect command", U.REMOTE),
        (292, "failed to connect via WS", U.REMOTE),
        (326, "can't open tunnel - ", F.NETWORK),
    ),
    *_in("pve-ha-manager src/PVE/API2/HA/Resources.pm", (49, "in error state, must be disabled and fixed first", F.HA_REJECTED)),
    *_in("pve-ha-manager src/PVE/CLI/ha_manager.pm", (160, "resource '", F.HA_REJECTED)),
    *_in("pve-ha-manager src/PVE/HA/Config.pm", (487, "is not HA managed", F.CHANGED)),
    *_in(
        "pve-ha-manager src/PVE/HA/Manager.pm",
        (596, "error - service '", F.HA_REJECTED),
        (656, "crm command error - node not online", F.HA_REJECTED),
    ),
    *_in(
        "pve-cluster src/PVE/Cluster.pm",
        (129, "cluster not ready - no quorum?", F.NETWORK),
        (625, "pve cluster filesystem not online.", F.NETWORK),
        (628, "got lock request timeout", F.LOCKED),
        (657, "-locked command timed out - aborting", F.LOCKED),
        (807, "no such cluster node '", F.NETWORK),
    ),
    *_in("pve-cluster src/PVE/SSHInfo.pm", (44, "failed to get ip for node '", F.NETWORK)),
    *_in("pve-cluster src/PVE/CLI/pvecm.pm", (733, "could not get migration ip: ", F.NETWORK)),
    *_in("pve-common src/PVE/Tools.pm", (229, "can't acquire lock '", F.LOCKED), (264, "can't lock file '", F.LOCKED)),
    *_in("pve-common src/PVE/Network.pm", (135, "does not exist", F.STORAGE)),
    *_in("pve-common src/PVE/RESTEnvironment.pm", (566, "received interrupt", F.CANCELLED)),
    *_in("pve-common src/PVE/Exception.pm", (58, "Permission check failed", F.PERMISSION)),
    *_in("pve-common src/PVE/JSONSchema.pm", (1378, "property is not defined in schema", F.VERSION)),
    *_in(
        "pve-storage src/PVE/Storage.pm",
        (259, "does not exist", F.STORAGE),
        (272, "is not available on node '", F.STORAGE),
        (286, "is disabled", F.STORAGE),
        (957, "cannot migrate from storage type '", F.STORAGE),
        (1013, "no tunnel IP received, got '", F.NETWORK),
        (1016, "no tunnel port received, got '", F.NETWORK),
        (1024, "failed to connect to tunnel at ", F.NETWORK),
        (1057, "failed to run insecure migration: ", F.NETWORK),
        (1065, "unable to get ID of the migrated volume", F.STORAGE),
    ),
    *_in("pve-storage src/PVE/Storage/NFSPlugin.pm", (149, "unable to activate storage '", F.STORAGE)),
    *_in("pve-storage src/PVE/Storage/LVMPlugin.pm", (639, "error", F.STORAGE), (713, "not enough free space (", F.STORAGE)),
)
# Files of which each `die` has its row: they migrate guests and do nothing else.
WHOLE = ("qemu-server src/PVE/QemuMigrate.pm", "pve-container src/PVE/LXC/Migrate.pm", "pve-guest-common src/PVE/Tunnel.pm")
_DIES = re.compile(r'(?:^|\s)die\s+"')


def unlike_in(folder: Path) -> list[str]:
    """Where the table and the sources in that folder differ."""
    found = []
    for source in sorted({row.source for row in RAISED}):
        package, _, path = source.partition(" ")
        lines = (folder / package / path).read_text(encoding="utf-8").splitlines()
        rows = [row for row in RAISED if row.source == source]
        for row in rows:
            near = " ".join(" ".join(lines[row.line - 3 : row.line + 4]).split())
            if row.fragment.strip() not in near.replace("' . \"", "").replace('" . "', ""):
                found.append(f"{row.place}: {row.fragment!r} is not there")
        if source in WHOLE:
            known = {number for row in rows for number in range(row.line - 1, row.line + 3)}
            found += [
                f"{source}:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if _DIES.search(line) and number not in known
            ]
    return found


if __name__ == "__main__":
    for problem in (problems := unlike_in(Path(sys.argv[1]))):
        print(problem)
    sys.exit(1 if problems else 0)

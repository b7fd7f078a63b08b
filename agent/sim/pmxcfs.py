# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster filesystem: one content per part of the cluster, quorum, and the directory that is the leader's lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from agent.ports import FilesystemState, NoQuorumError, NotMountedError, PermanentError, TemporaryError
from agent.sim.inventory import SimNode
from agent.sim.statistics import GuestRow, NodeRow
from agent.sim.tasks import LogRing
from agent.sim.timeline import Timeline

LOCK_LIFE_S = 120  # pmxcfs drops a lock that did not change for longer than this, when asked to
UNLOCK_DELAY_S = 1.0  # between the request for expiry and the lock being gone; seen: up to 1.7 s
MAX_FILE_BYTES = 100 << 10  # larger files are torn when read on another node
WRITABLE = ("proxlb/", "priv/proxlb/")


@lru_cache(maxsize=4096)  # the same few paths every second of a simulated week
def check_path(path: str) -> None:
    """Raise PermanentError for what is no path below /etc/pve."""
    if any(name in {"", ".", ".."} or "\0" in name for name in path.split("/")):
        raise PermanentError(f"{path!r} is no path below /etc/pve")


@dataclass(slots=True)
class SharedLock:
    """The lock's directory: which node made it, its mtime, and since when it did not change, as each node knows by its own clock."""

    writer: str
    mtime_s: int
    unchanged_since_wall_s: dict[str, float]
    serial: int


class Partition:
    """What one part of the cluster holds: nodes that see each other share one of these."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.folders: set[str] = set()  # that were made by themselves; the others come and stay with their files
        self.lock: SharedLock | None = None
        self.ring = LogRing()
        self.node_rows: dict[str, NodeRow] = {}
        self.guest_rows: dict[int, GuestRow] = {}
        self.changes = 0
        self.rows_changed = 0
        self.rrd_shown: tuple[int, float, str] | None = None  # of which change, good until when, the text
        self.quorate = True

    def copy(self) -> Partition:
        """The same content for a part that splits off."""
        other = Partition()
        other.files, other.folders = dict(self.files), set(self.folders)
        if self.lock is not None:
            other.lock = SharedLock(self.lock.writer, self.lock.mtime_s, dict(self.lock.unchanged_since_wall_s), self.lock.serial)
        other.ring = LogRing(self.ring.entries)
        other.node_rows, other.guest_rows = dict(self.node_rows), dict(self.guest_rows)
        other.changes = self.changes
        return other

    def is_same_as(self, other: Partition) -> bool:
        """True when neither part changed a file or the lock that the other one did not."""
        serials = [part.lock.serial if part.lock else None for part in (self, other)]
        return self.changes == other.changes and serials[0] == serials[1]

    def absorb(self, other: Partition) -> None:
        """Take over what is lost otherwise when the other part joins this one: newer statistics, and its log."""
        self.ring = self.ring.merged(other.ring)
        for name, row in other.node_rows.items():
            if name not in self.node_rows or self.node_rows[name].sampled_s < row.sampled_s:
                self.node_rows[name] = row
        for vmid, guest_row in other.guest_rows.items():
            if vmid not in self.guest_rows or self.guest_rows[vmid].sampled_s < guest_row.sampled_s:
                self.guest_rows[vmid] = guest_row
        self.rows_changed += 1


class Pmxcfs:
    """Files and the lock as each node may use them now. All errors are those of `agent.ports`.

    Shape:   `writes` counts changes of the cluster's files by path, the lock's as `lock take|renew|release|expiry`.
    """

    def __init__(self, timeline: Timeline, nodes: Mapping[str, SimNode]) -> None:
        self._timeline = timeline
        self._nodes = nodes
        self._serial = 0
        self.writes: Counter[str] = Counter()
        self.membership_version = 1

    def is_standalone(self) -> bool:
        """True for a single node that never was in a cluster."""
        return len(self._nodes) == 1

    def members(self, partition: Partition) -> list[SimNode]:
        """The nodes that are up in that part, lowest node id first."""
        return [node for node in self._nodes.values() if node.online and node.partition is partition]

    def is_quorate(self, node: SimNode) -> bool:
        """True when the node is up and sees more than half of the cluster."""
        return node.online and node.partition.quorate

    def membership_changed(self) -> None:
        """Count votes anew; and for a node that knows no age of the lock it starts from zero."""
        self.membership_version += 1
        parts = list({id(node.partition): node.partition for node in self._nodes.values()}.values())
        for part in parts:
            members = self.members(part)
            part.quorate = 2 * len(members) > len(self._nodes)
            if part.lock is not None:
                part.lock.unchanged_since_wall_s = self._walls_s(members) | part.lock.unchanged_since_wall_s

    def forget_lock_age(self, node: SimNode) -> None:
        """The node's pmxcfs starts, or gets from the others what it missed: what it sees now is new to it."""
        if node.partition.lock is not None:
            node.partition.lock.unchanged_since_wall_s.pop(node.name, None)

    def state(self, node: SimNode) -> FilesystemState:
        """What can be done now."""
        if not node.mounted or not node.online:
            return FilesystemState.NOT_MOUNTED
        if self.is_standalone():
            return FilesystemState.STANDALONE
        return FilesystemState.QUORATE if node.partition.quorate else FilesystemState.NO_QUORUM

    def check_readable(self, node: SimNode) -> None:
        """Raise what a read raises now."""
        if not node.mounted or not node.online:
            raise NotMountedError("/etc/pve is not mounted: is pve-cluster running?")
        if self._timeline.now_s < node.pmxcfs_hangs_until_s:
            raise TemporaryError("/etc/pve does not answer")

    def _is_lost(self, node: SimNode) -> bool:
        """Check for what refuses a write; True when the caller must apply it and then say that it failed."""
        self.check_readable(node)
        if not node.partition.quorate:
            raise NoQuorumError("/etc/pve takes no writes: this node is not in the quorate part of the cluster")
        if node.pmxcfs_failures:
            if node.pmxcfs_failures.pop(0):
                return True
            raise TemporaryError("/etc/pve: device or resource busy")
        return False

    def _applied(self, lost: bool) -> None:
        if lost:
            raise TemporaryError("/etc/pve: device or resource busy")

    def write(self, node: SimNode, path: str, text: str) -> None:
        """Replace one of the agent's files."""
        check_path(path)
        if not path.startswith(WRITABLE):
            raise PermanentError(f"{path}: the agent writes below proxlb/ and priv/proxlb/ only")
        if len(text.encode()) > MAX_FILE_BYTES:
            raise PermanentError(f"{path}: {len(text.encode())} bytes are more than the {MAX_FILE_BYTES} that can be read in one piece")
        lost = self._is_lost(node)
        self.put(node.partition, path, text)
        self._applied(lost)

    def put(self, partition: Partition, path: str, text: str) -> None:
        """Put a file there, whoever does it."""
        partition.files[path] = text
        partition.changes += 1
        self.writes[path] += 1

    def remove(self, node: SimNode, path: str) -> None:
        """Remove one of the agent's files; fine when it is gone."""
        check_path(path)
        if not path.startswith("proxlb/"):
            raise PermanentError(f"{path}: the agent removes files below proxlb/ only")
        lost = self._is_lost(node)
        if node.partition.files.pop(path, None) is not None:
            node.partition.changes += 1
            self.writes[path] += 1
        self._applied(lost)

    def make_folder(self, node: SimNode, path: str) -> None:
        """Make one of the agent's folders where it is missing."""
        check_path(path)
        if not path.startswith("proxlb/"):
            raise PermanentError(f"{path}: the agent makes folders below proxlb/ only")
        self.check_readable(node)
        parent, _, name = path.rpartition("/")
        if name in self.names(node, parent):
            return
        lost = self._is_lost(node)
        node.partition.folders.add(path)
        node.partition.changes += 1
        self.writes[path] += 1
        self._applied(lost)

    def names(self, node: SimNode, folder: str) -> tuple[str, ...]:
        """What is directly in a folder, sorted."""
        prefix = f"{folder}/"
        there = (*node.partition.files, *node.partition.folders)
        inside = (path[len(prefix) :] for path in there if path.startswith(prefix))
        return tuple(sorted({name.split("/", 1)[0] for name in inside}))

    def lock_take(self, node: SimNode) -> bool:
        """mkdir of the lock."""
        lost = self._is_lost(node)
        if node.partition.lock is not None:
            return False
        self._serial += 1
        node.partition.lock = SharedLock(node.name, int(node.wall_s(self._timeline.now_s)), self._walls_of(node), self._serial)
        self.writes["lock take"] += 1
        self._applied(lost)
        return True

    def lock_renew(self, node: SimNode) -> bool:
        """utime(max(now, stored + 1)): False when the lock is gone or another node's."""
        lost = self._is_lost(node)
        lock = node.partition.lock
        if lock is None or lock.writer != node.name:
            return False
        self._serial += 1
        lock.mtime_s = max(int(node.wall_s(self._timeline.now_s)), lock.mtime_s + 1)
        lock.unchanged_since_wall_s, lock.serial = self._walls_of(node), self._serial
        self.writes["lock renew"] += 1
        self._applied(lost)
        return True

    def lock_ask_expiry(self, node: SimNode) -> None:
        """utime(0, 0): the lowest node judges by its own clock, and the lock is gone a moment later unless it changed."""
        lost = self._is_lost(node)
        partition, lock = node.partition, node.partition.lock
        self.writes["lock expiry"] += 1
        lowest = self.members(partition)[0]
        if lock is not None and lowest.wall_s(self._timeline.now_s) - lock.unchanged_since_wall_s[lowest.name] > LOCK_LIFE_S:
            serial = lock.serial

            def unlock() -> None:
                if partition.lock is not None and partition.lock.serial == serial:
                    partition.lock = None

            self._timeline.after(UNLOCK_DELAY_S, unlock)
        self._applied(lost)

    def lock_release(self, node: SimNode) -> None:
        """rmdir: nobody is asked whose lock it is."""
        lost = self._is_lost(node)
        node.partition.lock = None
        self.writes["lock release"] += 1
        self._applied(lost)

    def _walls_of(self, node: SimNode) -> dict[str, float]:
        return self._walls_s(self.members(node.partition))

    def _walls_s(self, nodes: Iterable[SimNode]) -> dict[str, float]:
        return {node.name: node.wall_s(self._timeline.now_s) for node in nodes}

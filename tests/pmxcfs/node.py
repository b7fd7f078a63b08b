# SPDX-License-Identifier: GPL-3.0-or-later
"""What one node's pmxcfs keeps in memory: counters, guests, ages of locks, the cluster log, what nodes report. A start forgets it."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass

from tests.pmxcfs.tree import Entry, Tree, guest_of

MAX_LOG_ENTRIES = 800  # the ring is 128 KiB, about that many
RRD_LIFE_S = 300.0  # what no pvestatd repeated for that long is dropped
RRD_SHOWN_S = 2.0  # and how long the text of `.rrd` is kept
# The files whose changes `.version` counts, in its order.
COUNTED_FILES = (
    "corosync.conf", "corosync.conf.new", "storage.cfg", "user.cfg", "domains.cfg", "notifications.cfg", "priv/notifications.cfg",
    "priv/shadow.cfg", "priv/acme/plugins.cfg", "priv/tfa.cfg", "priv/token.cfg", "priv/wg-keys.cfg", "datacenter.cfg", "vzdump.cron",
    "vzdump.conf", "jobs.cfg", "ha/crm_commands", "ha/manager_status", "ha/resources.cfg", "ha/rules.cfg", "ha/groups.cfg",
    "ha/fence.cfg", "status.cfg", "replication.cfg", "ceph.conf", "sdn/vnets.cfg", "sdn/zones.cfg", "sdn/controllers.cfg",
    "sdn/subnets.cfg", "sdn/ipams.cfg", "sdn/mac-cache.json", "sdn/pve-ipam-state.json", "sdn/dns.cfg", "sdn/fabrics.cfg",
    "sdn/route-maps.cfg", "sdn/prefix-lists.cfg", "sdn/.running-config", "virtual-guest/cpu-models.conf", "virtual-guest/profiles.cfg",
    "firewall/cluster.fw", "mapping/directory.cfg", "mapping/pci.cfg", "mapping/usb.cfg",
)  # fmt: skip


@dataclass(frozen=True)
class LogEntry:
    uid: int
    time: int
    pri: int
    tag: str
    pid: int
    node: str
    user: str
    msg: str

    @property
    def place(self) -> tuple[int, str, int]:
        """Where it belongs among others."""
        return self.time, self.node, self.uid


@dataclass(frozen=True)
class Age:
    """Since when, by the node's clock, a lock is what that change made it."""

    change: int
    since_s: float


@dataclass
class Node:
    """One node: its id in corosync is its place in the list. Those of one `side` that are there see each other."""

    name: str
    id: int
    tree: Tree
    side: int = 0
    quorate: bool = True
    there: bool = True  # its pmxcfs runs
    clock_ahead_s: float = 0.0
    refused_one: bool = False  # of the calls that were under way when quorum went
    hang_until: float = 0.0
    hang_calls: frozenset[str] = frozenset()  # empty: every call hangs
    debug: bool = False
    member_changes: int = 1

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin with nothing but the files."""
        self.started = int(self.wall_s())
        self.loads = 0
        self.changes: Counter[str] = Counter()
        self.guests: dict[int, tuple[str, str, int]] = {}  # vmid -> (node, qemu or lxc, number of the change)
        self.guest_changes = -1
        self.last_guest_change = 0
        self.log: deque[LogEntry] = deque(maxlen=MAX_LOG_ENTRIES)  # newest first
        self.log_uid = 0
        self.status: dict[str, dict[str, int]] = {self.name: {}}
        self.rrd: dict[str, tuple[str, float]] = {}  # key -> (line, the node's clock when it came)
        self.rrd_shown: tuple[str, float] = ("", 0.0)
        self.load()
        self.hear(LogEntry(self.next_uid(), self.started, 6, "cluster", 1, self.name, "root", "starting cluster log"))

    def load(self, tree: Tree | None = None) -> None:
        """Have these files from now on, as when pmxcfs starts or got what it missed: everything counts as changed, every lock as new."""
        self.tree = tree or self.tree
        self.loads += 1
        self.guest_changes += 1
        self.guests = {}
        for vmid, node, kind in self.tree.guests():
            self.last_guest_change += 1
            self.guests[vmid] = (node, kind, self.last_guest_change)
        self.ages = {path: Age(lock.change, self.wall_s()) for path, lock in self.tree.locks().items()}

    def wall_s(self) -> float:
        """The time by the node's clock."""
        return time.time() + self.clock_ahead_s

    # -- locks -------------------------------------------------------------------------------------------------------------------

    def begin_age(self, path: str, lock: Entry) -> None:
        self.ages[path] = Age(lock.change, self.wall_s())

    def is_old(self, path: str, lock: Entry, life_s: float) -> bool:
        """Tell whether the lock can expire. What changed in a way that begins no age begins it now, when it is first asked about."""
        age = self.ages.get(path)
        if age is None or age.change != lock.change:
            self.begin_age(path, lock)
            return False
        return self.wall_s() - age.since_s > life_s

    # -- files -------------------------------------------------------------------------------------------------------------------

    def count(self, path: str) -> None:
        if path in COUNTED_FILES:
            self.changes[path] += 1

    def has_guest_elsewhere(self, path: str) -> bool:
        """Tell whether the guest of that configuration is there already, and not at that path."""
        guest = guest_of(path)
        return guest is not None and self.guests.get(guest[0], (*guest[1:], 0))[:2] != guest[1:]

    def register_guest(self, path: str) -> None:
        if guest := guest_of(path):
            self.guest_changes += 1
            self.last_guest_change += 1
            self.guests[guest[0]] = (*guest[1:], self.last_guest_change)

    def forget_guest(self, path: str) -> None:
        if guest := guest_of(path):
            self.guest_changes += 1
            self.guests.pop(guest[0], None)

    # -- reports -----------------------------------------------------------------------------------------------------------------

    def next_uid(self) -> int:
        self.log_uid += 1
        return self.log_uid

    def hear(self, entry: LogEntry) -> None:
        """Add to the log what is newer than the last entry of that node: what it says after its clock went back is lost."""
        of_that_node = [(other.time, other.uid) for other in self.log if other.node == entry.node]
        if not of_that_node or (entry.time, entry.uid) > max(of_that_node):
            self.log.appendleft(entry)

    def hear_status(self, node: str, key: str) -> None:
        """Count what a node set, from 0."""
        counts = self.status.setdefault(node, {})
        counts[key] = counts.get(key, -1) + 1

    def hear_numbers(self, key: str, line: str) -> None:
        self.rrd[key] = (line, self.wall_s())

    def numbers(self, *, fresh: bool = False) -> str:
        """The text of `.rrd`, up to 2 s old."""
        now_s = self.wall_s()
        if fresh or now_s - self.rrd_shown[1] >= RRD_SHOWN_S:
            self.rrd = {key: (line, at_s) for key, (line, at_s) in self.rrd.items() if now_s - at_s <= RRD_LIFE_S}
            self.rrd_shown = ("".join(f"{line}\n" for line, _ in self.rrd.values()), now_s)
        return self.rrd_shown[0]

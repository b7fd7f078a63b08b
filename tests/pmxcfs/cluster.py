# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cluster of pmxcfs holds, and the rules by which it lets itself be changed: no FUSE here, no sockets.

Every change names the node that makes it, since the owner of a lock is a node. A node that lost quorum keeps the copy of before.
"""

from __future__ import annotations

import copy
import errno
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LOCK_DIR = "priv/lock"
LOCK_LIFE_S = 120.0  # pmxcfs drops a lock that nobody renewed for that long, once somebody asks
MAX_FILE_BYTES = 1 << 20
MAX_LOG_ENTRIES = 800  # the ring is 128 KiB, about that many
GUEST_CONF = re.compile(r"nodes/([^/]+)/(qemu-server|lxc)/([1-9]\d*)\.conf")
# The files whose changes `.version` counts; those of other parts of PVE that no agent reads are left out.
COUNTED_FILES = (
    "corosync.conf", "corosync.conf.new", "storage.cfg", "user.cfg", "domains.cfg", "priv/shadow.cfg", "priv/tfa.cfg", "priv/token.cfg",
    "datacenter.cfg", "vzdump.cron", "vzdump.conf", "jobs.cfg", "ha/crm_commands", "ha/manager_status", "ha/resources.cfg",
    "ha/rules.cfg", "ha/groups.cfg", "ha/fence.cfg", "status.cfg", "replication.cfg", "sdn/vnets.cfg", "sdn/zones.cfg",
    "virtual-guest/cpu-models.conf", "firewall/cluster.fw", "mapping/directory.cfg", "mapping/pci.cfg", "mapping/usb.cfg",
)  # fmt: skip


@dataclass
class Entry:
    """A file or directory. `touched` is this process's monotonic time of the last change: the age of a lock counts from it."""

    mtime: int
    writer: int
    data: bytes = b""
    children: dict[str, Entry] | None = None
    touched: float = field(default_factory=time.monotonic)

    @property
    def is_dir(self) -> bool:
        return self.children is not None


@dataclass
class View:
    """What the nodes that see each other have in common."""

    root: Entry = field(default_factory=lambda: Entry(mtime=int(time.time()), writer=0, children={}))
    changes: Counter[str] = field(default_factory=Counter)
    guests: dict[int, tuple[str, str, int]] = field(default_factory=dict)  # vmid -> (node, qemu or lxc, version)
    guest_changes: int = 0
    guest_version: int = 0


@dataclass
class Node:
    """One node: its id in corosync is its place in the list, and it is quorate until told otherwise."""

    name: str
    id: int
    view: View
    quorate: bool = True
    online: bool = True
    started: int = field(default_factory=lambda: int(time.time()))
    counted_before_start: Counter[str] = field(default_factory=Counter)
    log_uid: int = 0
    tasklist: int = 1
    member_changes: int = 1
    frozen_until: float = 0.0  # writes wait that long: the membership is being formed anew
    hang_until: float = 0.0
    hang_calls: frozenset[str] = frozenset()  # empty: every call hangs


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


@dataclass(frozen=True)
class RrdLine:
    """One line of `.rrd`, key to last column; `at` is the monotonic time it arrived."""

    text: str
    at: float


def split(path: str) -> tuple[str, str]:
    """Return the directory and the last name of a path below the mount, both without a leading slash."""
    directory, _, name = path.rpartition("/")
    return directory, name


def refusal(number: int, path: str) -> OSError:
    """Return the OSError of that errno, ready to raise."""
    return OSError(number, errno.errorcode[number], path)


class Cluster:
    """All nodes and what they share.

    Calls that come through a mount go through `call()`, which counts them and lets them hang; everything else is the control
    socket's, as another node or PVE itself would do it. One lock guards all.
    """

    def __init__(self, nodes: Iterable[str], *, lock_life_s: float = LOCK_LIFE_S) -> None:
        view = View()
        self.nodes = {name: Node(name, number, view) for number, name in enumerate(nodes, start=1)}
        self.lock_life_s = lock_life_s
        self.name = "standin"
        self.log: deque[LogEntry] = deque(maxlen=MAX_LOG_ENTRIES)  # newest first
        self.rrd: list[RrdLine] = []
        self.told: dict[str, str] = {}  # dot file -> text to show instead of the generated one
        self.calls: Counter[tuple[str, str, str, bool]] = Counter()  # (node, call, path, done)
        self.dirty = False
        self.changed = threading.Condition(threading.RLock())
        for directory in ("nodes", "priv", LOCK_DIR, "ha", "firewall", "mapping", "virtual-guest"):
            self._lay(view, directory, Entry(mtime=int(time.time()), writer=1, children={}))
        for name in self.nodes:
            for directory in ("", "/qemu-server", "/lxc", "/priv"):
                self._lay(view, f"nodes/{name}{directory}", Entry(mtime=int(time.time()), writer=1, children={}))

    # -- calls through a mount ---------------------------------------------------------------------------------------------------

    @contextmanager
    def call(self, node: Node, name: str, path: str, *, writes: bool = False) -> Iterator[None]:
        """Hold the lock around one call of a node, after the hang or the lack of quorum that it meets; count how it ends.

        Raises:  EACCES for a write without quorum; EBUSY, or EPERM for utime, when quorum went while the write was under way.
        """
        done = False
        with self.changed:
            try:
                self._wait_out_the_hang(node, name)
                if writes:
                    self._wait_for_membership(node, name, path)
                yield
                done = True
            finally:
                self.calls[node.name, name, path, done] += 1

    def _wait_out_the_hang(self, node: Node, name: str) -> None:
        while (left := node.hang_until - time.monotonic()) > 0 and (not node.hang_calls or name in node.hang_calls):
            self.changed.wait(left)

    def _wait_for_membership(self, node: Node, name: str, path: str) -> None:
        was_under_way = False
        while (left := node.frozen_until - time.monotonic()) > 0:
            was_under_way = True
            self.changed.wait(left)
        if not node.quorate:
            if was_under_way:
                raise refusal(errno.EPERM if name == "utimens" else errno.EBUSY, path)
            raise refusal(errno.EACCES, path)

    # -- the tree ----------------------------------------------------------------------------------------------------------------

    def find(self, node: Node, path: str) -> Entry:
        """Return the entry at the path as the node sees it; ENOENT when there is none."""
        entry = self._look(node.view, path)
        if entry is None:
            raise refusal(errno.ENOENT, path)
        return entry

    def mkdir(self, node: Node, path: str) -> None:
        """Make a directory; the node becomes its writer, its clock the mtime. EEXIST when there is anything."""
        children = self._children_around(node.view, path)
        if split(path)[1] in children:
            raise refusal(errno.EEXIST, path)
        self._lay(node.view, path, Entry(mtime=int(time.time()), writer=node.id, children={}))
        self._record(node.view, path)

    def create(self, node: Node, path: str) -> None:
        """Make an empty file; EEXIST when there is one, or a guest of that number elsewhere."""
        self._refuse_second_guest(node.view, path)
        if split(path)[1] in self._children_around(node.view, path):
            raise refusal(errno.EEXIST, path)
        self._lay(node.view, path, Entry(mtime=int(time.time()), writer=node.id))
        self._record(node.view, path)
        self._register_guest(node.view, path)

    def write(self, node: Node, path: str, data: bytes, offset: int, *, truncate: bool = False) -> None:
        """Put the data at the offset; EFBIG past 1 MiB."""
        if offset + len(data) > MAX_FILE_BYTES:
            raise refusal(errno.EFBIG, path)
        entry = self.find(node, path)
        if entry.is_dir:
            raise refusal(errno.ENOTDIR, path)
        head = entry.data[:offset].ljust(offset, b"\0")
        tail = b"" if truncate else entry.data[offset + len(data) :]
        entry.data = head + data + tail
        entry.mtime, entry.writer, entry.touched = int(time.time()), node.id, time.monotonic()
        self._record(node.view, path)
        self._register_guest(node.view, path)

    def touch(self, node: Node, path: str, mtime: int) -> None:
        """Set the mtime. Of a lock: only forward, only by the node that holds it; 0 asks for its expiry, and is refused all the same."""
        entry = self.find(node, path)
        if entry.is_dir and split(path)[0] == LOCK_DIR:
            if mtime == 0:
                self._expire(node.view, path, entry)
            if mtime < entry.mtime or entry.writer != node.id:
                raise refusal(errno.EACCES, path)
        entry.mtime, entry.writer, entry.touched = mtime, node.id, time.monotonic()
        self._record(node.view, path)

    def remove(self, node: Node, path: str) -> None:
        """Remove a file or an empty directory. Nobody asks whose lock it is."""
        entry = self.find(node, path)
        if entry.children:
            raise refusal(errno.ENOTEMPTY, path)
        del self._children_around(node.view, path)[split(path)[1]]
        self._record(node.view, path)
        if conf := GUEST_CONF.fullmatch(path):
            self._forget_guest(node.view, int(conf[3]))

    def rename(self, node: Node, old: str, new: str) -> None:
        """Put the entry in the place of what is at the new path, in one step; not for locks nor directories with something in them."""
        view = node.view
        entry = self.find(node, old)
        old_conf, new_conf = GUEST_CONF.fullmatch(old), GUEST_CONF.fullmatch(new)
        if not entry.is_dir and new_conf and not (old_conf and old_conf[3] == new_conf[3]):
            self._refuse_second_guest(view, new)
        if entry.is_dir and split(old)[0] == LOCK_DIR:
            raise refusal(errno.EACCES, old)
        if entry.children:
            raise refusal(errno.ENOTEMPTY, old)
        around = self._children_around(view, new)
        replaced = around.get(split(new)[1])
        if replaced is not None and replaced.children:
            raise refusal(errno.ENOTEMPTY, new)
        del self._children_around(view, old)[split(old)[1]]
        entry.mtime, entry.writer, entry.touched = int(time.time()), node.id, time.monotonic()
        around[split(new)[1]] = entry
        self._record(view, old)
        self._record(view, new)
        if old_conf:
            self._forget_guest(view, int(old_conf[3]))
        self._register_guest(view, new)

    # -- what tests play ---------------------------------------------------------------------------------------------------------

    def put(self, node: Node, path: str, data: bytes) -> None:
        """Make or replace a file, with the directories above it."""
        steps = path.split("/")
        for depth in range(1, len(steps)):
            above = "/".join(steps[:depth])
            if self._look(node.view, above) is None:
                self.mkdir(node, above)
        if self._look(node.view, path) is None:
            self.create(node, path)
        self.write(node, path, data, 0, truncate=True)

    def place_guest(self, vmid: int, kind: str, node_name: str, conf: bytes | None) -> None:
        """Write a guest's configuration on that node, or hand the guest over to it as a migration does: by one rename.

        A conf of None keeps the text that is there.
        """
        node = self.nodes[node_name]
        path = f"nodes/{node_name}/{'lxc' if kind == 'lxc' else 'qemu-server'}/{vmid}.conf"
        if vmid in node.view.guests:
            at, kind_then, _ = node.view.guests[vmid]
            before = f"nodes/{at}/{'lxc' if kind_then == 'lxc' else 'qemu-server'}/{vmid}.conf"
            if before != path:
                self.rename(node, before, path)
        if conf is not None or self._look(node.view, path) is None:
            self.put(node, path, conf or b"")

    def say(self, node_name: str, msg: str, *, tag: str, user: str, pri: int, pid: int, at: int | None) -> LogEntry:
        """Add an entry to the cluster log, with the next uid of that node."""
        node = self.nodes[node_name]
        node.log_uid += 1
        entry = LogEntry(node.log_uid, int(time.time()) if at is None else at, pri, tag, pid, node_name, user, msg)
        self.log.appendleft(entry)
        return entry

    def set_quorum(self, names: Iterable[str], *, on: bool, cut_s: float) -> None:
        """Cut the nodes off from quorum, or join them again; for `cut_s` every write waits, as while corosync forms a new membership.

        A node cut off keeps a copy of its own. Joining again throws that copy away, and every lock's age starts anew.
        """
        together = [node for node in self.nodes.values() if node.quorate and node.name not in set(names)]
        for name in names:
            node = self.nodes[name]
            if on and not node.quorate:
                node.view = together[0].view if together else node.view
                together.append(node)
            elif not on and node.quorate and together:
                node.view = copy.deepcopy(node.view)
            node.quorate = on
        for node in self.nodes.values():
            node.frozen_until = time.monotonic() + cut_s
            node.member_changes += 1
        self.restart_lock_ages()
        self.changed.notify_all()

    def restart_lock_ages(self) -> None:
        """Count every lock's age from now, as each change of membership and each start of pmxcfs does."""
        for node in self.nodes.values():
            for lock in (self.find(node, LOCK_DIR).children or {}).values():
                lock.touched = time.monotonic()

    def restart(self, node: Node) -> None:
        """Forget what pmxcfs keeps in memory on that node only."""
        node.started = int(time.time())
        node.counted_before_start = Counter(node.view.changes)
        node.log_uid = 0
        node.tasklist = 1
        self.restart_lock_ages()

    def load(self, rows: Iterable[tuple[str, int, int, str | None]]) -> None:
        """Take over what `rows` of an earlier process gave, over what is there."""
        view = next(iter(self.nodes.values())).view
        for path, mtime, writer, text in rows:
            children: dict[str, Entry] | None = None
            if text is None:
                there = self._look(view, path)
                children = there.children if there and there.children else {}
            self._lay(view, path, Entry(mtime, writer, (text or "").encode("latin-1"), children))
            self._register_guest(view, path)

    def rows(self) -> Iterator[tuple[str, int, int, str | None]]:
        """Yield every entry as path, mtime, writer and text (None for a directory), each directory before what is in it."""
        quorate = [node for node in self.nodes.values() if node.quorate] or list(self.nodes.values())
        heap = [("", quorate[0].view.root)]
        while heap:
            above, directory = heap.pop()
            for name, entry in sorted((directory.children or {}).items()):
                path = f"{above}/{name}".lstrip("/")
                yield path, entry.mtime, entry.writer, None if entry.is_dir else entry.data.decode("latin-1")
                if entry.is_dir:
                    heap.append((path, entry))

    # -- inside ------------------------------------------------------------------------------------------------------------------

    def _look(self, view: View, path: str) -> Entry | None:
        entry: Entry | None = view.root
        for name in path.split("/") if path else ():
            entry = (entry.children or {}).get(name) if entry else None
        return entry

    def _children_around(self, view: View, path: str) -> dict[str, Entry]:
        above = self._look(view, split(path)[0])
        if above is None:
            raise refusal(errno.ENOENT, path)
        if above.children is None:
            raise refusal(errno.ENOTDIR, path)
        return above.children

    def _lay(self, view: View, path: str, entry: Entry) -> None:
        self._children_around(view, path)[split(path)[1]] = entry

    def _record(self, view: View, path: str) -> None:
        self.dirty = True
        if path in COUNTED_FILES:
            view.changes[path] += 1

    def _expire(self, view: View, path: str, lock: Entry) -> None:
        if time.monotonic() - lock.touched > self.lock_life_s and not lock.children:
            del self._children_around(view, path)[split(path)[1]]
            self._record(view, path)

    def _refuse_second_guest(self, view: View, path: str) -> None:
        if conf := GUEST_CONF.fullmatch(path):
            there = view.guests.get(int(conf[3]))
            if there and there[:2] != (conf[1], "lxc" if conf[2] == "lxc" else "qemu"):
                raise refusal(errno.EEXIST, path)

    def _register_guest(self, view: View, path: str) -> None:
        if conf := GUEST_CONF.fullmatch(path):
            view.guest_changes += 1
            view.guest_version += 1
            view.guests[int(conf[3])] = (conf[1], "lxc" if conf[2] == "lxc" else "qemu", view.guest_version)

    def _forget_guest(self, view: View, vmid: int) -> None:
        view.guest_changes += 1
        view.guests.pop(vmid, None)

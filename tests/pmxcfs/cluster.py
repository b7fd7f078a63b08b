# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster of pmxcfs: who sees whom, who may change files, and what a change does to those that see it. No FUSE here, no sockets.

Every change names the node that makes it, since the owner of a lock is a node.
"""

from __future__ import annotations

import copy
import errno
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tests.pmxcfs.node import LogEntry, Node
from tests.pmxcfs.tree import FIRST_FOLDERS, LOCK_DIR, Entry, Tree, guest_of, refusal

MAX_HOLDERS = 10000
LOCK_LIFE_S = 120.0  # pmxcfs drops a lock that nobody renewed for that long, once somebody asks


class Cluster:
    """All nodes and what they share.

    Calls that come through a mount go through `call()`, which counts them and lets them hang; everything else is the control
    socket's, as another node or PVE itself would do it. One lock guards all.
    """

    def __init__(self, nodes: Iterable[str], *, lock_life_s: float = LOCK_LIFE_S) -> None:
        names, tree, now = list(nodes), Tree(int(time.time())), int(time.time())
        for folder in FIRST_FOLDERS + tuple(f"nodes/{name}{below}" for name in names for below in ("", "/qemu-server", "/lxc", "/priv")):
            tree.mkdir(folder, writer=1, at=now)
        self.nodes = {name: Node(name, number, tree) for number, name in enumerate(names, start=1)}
        self.lock_life_s = lock_life_s
        self.name = "standin"
        self.told: dict[str, str] = {}  # dot file -> text to show instead of the generated one
        self.calls: Counter[tuple[str, str, str, bool]] = Counter()  # (node, call, path, done)
        self.holders: deque[tuple[str, float, str | None]] = deque(maxlen=MAX_HOLDERS)  # lock, this machine's time, whose it is since
        self.waiting = 0  # calls that have not come through a change of membership yet
        self.dirty = False
        self.changed = threading.Condition(threading.RLock())
        self._coming: tuple[float, Callable[[], None]] | None = None  # a change of membership that is being agreed on
        self._seen = {name: frozenset({name}) for name in names}
        self._regroup()
        for node in self.nodes.values():
            self.set_status(node, "tasklist")

    # -- calls through a mount ---------------------------------------------------------------------------------------------------

    @contextmanager
    def call(self, node: Node, name: str, path: str, *, writes: bool = False) -> Iterator[None]:
        """Hold the lock around one call of a node, after the hang or the lack of quorum that it meets; count how it ends.

        Raises:  EACCES for a write without quorum; when quorum went while writes were under way EPERM for one, EBUSY for the others.
        """
        done = False
        with self.changed:
            try:
                self.settle()
                self._wait_out_the_hang(node, name)
                if writes:
                    self._wait_for_membership(node, path)
                yield
                done = True
            finally:
                self.calls[node.name, name, path, done] += 1

    def _wait_out_the_hang(self, node: Node, name: str) -> None:
        while (left := node.hang_until - time.monotonic()) > 0 and (not node.hang_calls or name in node.hang_calls):
            self.changed.wait(left)

    def _wait_for_membership(self, node: Node, path: str) -> None:
        if not (node.quorate and node.there):
            raise refusal(errno.EACCES, path)
        self.waiting += 1
        while self._coming:
            self.changed.wait(max(0.0, self._coming[0] - time.monotonic()))
            self.settle()
        self.waiting -= 1
        if not node.quorate:
            number = errno.EBUSY if node.refused_one else errno.EPERM
            node.refused_one = True
            raise refusal(number, path)

    # -- changes of files --------------------------------------------------------------------------------------------------------

    def find(self, node: Node, path: str) -> Entry:
        """Return the entry at the path as the node sees it; ENOENT when there is none."""
        return node.tree.find(path)

    def mkdir(self, node: Node, path: str) -> None:
        """Make a directory; the node becomes its writer, its clock the mtime."""
        node.tree.mkdir(path, writer=node.id, at=int(node.wall_s()))
        self._tell(node, path)
        self._begin_age(node, path)

    def create(self, node: Node, path: str) -> None:
        """Make an empty file; EEXIST also when there is a guest of that number elsewhere."""
        if node.has_guest_elsewhere(path):
            raise refusal(errno.EEXIST, path)
        node.tree.create(path, writer=node.id, at=int(node.wall_s()))
        self._tell(node, path)
        self._register_guest(node, path)

    def write(self, node: Node, path: str, data: bytes, offset: int, *, truncate: bool = False) -> None:
        node.tree.write(path, data, offset, truncate=truncate, writer=node.id, at=int(node.wall_s()))
        self._tell(node, path)
        self._register_guest(node, path)

    def touch(self, node: Node, path: str, mtime: int) -> None:
        """Set the time. 0 for a lock asks for its expiry, and is refused all the same."""
        if mtime == 0 and path in node.tree.locks():
            self._drop_if_old(node, path)
            raise refusal(errno.EACCES, path)
        node.tree.touch(path, mtime, writer=node.id)
        self._tell(node, path)
        self._begin_age(node, path)

    def remove(self, node: Node, path: str) -> None:
        """Remove a file or an empty directory. Nobody asks whose lock it is."""
        node.tree.remove(path, at=int(node.wall_s()))
        self._tell(node, path)
        for one in self._sharing(node):
            one.ages.pop(path, None)
            one.forget_guest(path)

    def rename(self, node: Node, old: str, new: str) -> None:
        """Put the entry in the place of what is at the new path, in one step; a guest may be handed over, not doubled."""
        old_guest, new_guest = guest_of(old), guest_of(new)
        is_handed_over = old_guest is not None and new_guest is not None and old_guest[0] == new_guest[0]
        if not is_handed_over and not node.tree.find(old).is_dir and node.has_guest_elsewhere(new):
            raise refusal(errno.EEXIST, new)
        node.tree.rename(old, new, writer=node.id, at=int(node.wall_s()))
        self._tell(node, old)
        self._tell(node, new)
        for one in self._sharing(node):
            one.forget_guest(old)
        self._register_guest(node, new)

    def _sharing(self, node: Node) -> list[Node]:
        """Return the nodes that see what this one does."""
        return [one for one in self.nodes.values() if one is node or (one.there and node.there and one.side == node.side)]

    def _tell(self, node: Node, path: str) -> None:
        self.dirty = True
        for one in self._sharing(node):
            one.count(path)
        if path.rpartition("/")[0] == LOCK_DIR:
            self.holders.append((path, time.time(), self.holder(node, path)))

    def _register_guest(self, node: Node, path: str) -> None:
        for one in self._sharing(node):
            one.register_guest(path)

    def holder(self, node: Node, path: str) -> str | None:
        """Return whose that lock is as the node sees it, None when it is nobody's."""
        lock = node.tree.locks().get(path)
        return None if lock is None else next(one.name for one in self.nodes.values() if one.id == lock.writer)

    def _begin_age(self, node: Node, path: str) -> None:
        if lock := node.tree.locks().get(path):
            for one in self._sharing(node):
                one.begin_age(path, lock)

    def _drop_if_old(self, node: Node, path: str) -> None:
        """The lowest node there decides, by its clock and by what it knows; what is in a lock keeps it."""
        lowest = min(self._sharing(node), key=lambda one: one.id)
        lock = lowest.tree.locks()[path]
        if lowest.is_old(path, lock, self.lock_life_s) and not lock.children:
            self.remove(lowest, path)

    # -- membership --------------------------------------------------------------------------------------------------------------

    def set_quorum(self, names: Iterable[str], *, on: bool, cut_s: float) -> None:
        """Say which nodes have no quorum, each of them then alone, or that they are with the others again.

        For `cut_s` nothing is decided: what a node with quorum writes meanwhile waits.
        """
        wanted = set(names)

        def change() -> None:
            for node in self.nodes.values():
                if node.name in wanted:
                    node.side = 0 if on else node.id
                    node.quorate = on
                    node.refused_one = False

        self._change_membership(change, after_s=cut_s)

    def cut(self, names: Iterable[str], *, cut_s: float) -> None:
        """Cut nodes off, each from all others; who then has quorum is counted."""
        wanted = set(names)

        def change() -> None:
            for node in self.nodes.values():
                if node.name in wanted:
                    node.side = node.id
            self._count_votes()

        self._change_membership(change, after_s=cut_s)

    def heal(self) -> None:
        """Every node reaches every other."""

        def change() -> None:
            for node in self.nodes.values():
                node.side = 0
            self._count_votes()

        self._change_membership(change, after_s=0)

    def leave(self, node: Node) -> None:
        """The node's pmxcfs ends; what it has on its disk stays as it is."""

        def change() -> None:
            node.there = False
            node.tree = copy.deepcopy(node.tree)

        self._change_membership(change, after_s=0)

    def join(self, node: Node) -> None:
        """The node's pmxcfs starts, with what it has on its disk."""

        def change() -> None:
            node.there = True
            node.start()
            node.hear_status(node.name, "tasklist")
            self._seen[node.name] = frozenset()

        self._change_membership(change, after_s=0)

    def settle(self) -> None:
        """Carry out the change of membership whose time has come."""
        if self._coming and self._coming[0] <= time.monotonic():
            self._carry_out()

    def _change_membership(self, change: Callable[[], None], *, after_s: float) -> None:
        if self._coming:
            self._carry_out()
        self._coming = (time.monotonic() + after_s, change)
        self.settle()
        self.changed.notify_all()

    def _carry_out(self) -> None:
        assert self._coming
        (_, change), self._coming = self._coming, None
        change()
        self._regroup()
        self.changed.notify_all()

    def _count_votes(self) -> None:
        sides = Counter(node.side for node in self.nodes.values())
        for node in self.nodes.values():
            had = node.quorate
            node.quorate = 2 * sides[node.side] > len(self.nodes)
            node.refused_one = node.refused_one and not had

    def _regroup(self) -> None:
        """Give each side its own files: those of the node with the newest. Who has others loads them, who has the same goes on."""
        given: set[int] = set()
        sides: dict[int, list[Node]] = {}
        for node in self.nodes.values():
            if node.there:
                sides.setdefault(node.side, []).append(node)
        for nodes in sides.values():
            tree = max((node.tree for node in nodes), key=lambda one: (one.changes, one.mtime))
            tree = copy.deepcopy(tree) if id(tree) in given else tree
            given.add(id(tree))
            for node in nodes:
                if node.tree.stamp == tree.stamp:
                    node.tree = tree
                else:
                    node.load(tree)
            self._exchange(nodes)

    def _exchange(self, nodes: list[Node]) -> None:
        """Have nodes whose company changed tell each other what they know besides files: their logs, and each its own status."""
        names = frozenset(node.name for node in nodes)
        news = [node for node in nodes if self._seen[node.name] != names]
        for node in news:
            node.member_changes += 1
            self._seen[node.name] = names
        if not news or len(nodes) < 2:
            return
        entries = sorted({entry.place: entry for node in nodes for entry in node.log}.values(), key=lambda entry: entry.place, reverse=True)
        for node in nodes:
            node.log = type(node.log)(entries[: node.log.maxlen], maxlen=node.log.maxlen)
            for other in nodes:
                for key in other.status[other.name] if other is not node else ():
                    node.hear_status(other.name, key)

    # -- what nodes report -------------------------------------------------------------------------------------------------------

    def say(self, node: Node, msg: str, *, tag: str, user: str, pri: int, pid: int, at: int | None) -> LogEntry:
        """Add an entry to the cluster log, with the next uid of that node; at a time that is told it is added whatever was before."""
        entry = LogEntry(node.next_uid(), int(node.wall_s()) if at is None else at, pri, tag, pid, node.name, user, msg)
        for one in self._sharing(node):
            if at is None:
                one.hear(entry)
            else:
                one.log.appendleft(entry)
        return entry

    def set_status(self, node: Node, key: str) -> None:
        """The node's status of that key is set anew."""
        for one in self._sharing(node):
            one.hear_status(node.name, key)

    def set_numbers(self, node: Node, key: str, line: str) -> None:
        """The node reports a line of `.rrd`."""
        for one in self._sharing(node):
            one.hear_numbers(key, line)

    def forget_numbers(self, node: Node) -> None:
        """Empty `.rrd` for those that see the node."""
        for one in self._sharing(node):
            one.rrd = {}
            one.rrd_shown = ("", 0.0)

    # -- what tests play ---------------------------------------------------------------------------------------------------------

    def put(self, node: Node, path: str, data: bytes) -> None:
        """Make or replace a file, with the directories above it."""
        steps = path.split("/")
        for depth in range(1, len(steps)):
            above = "/".join(steps[:depth])
            if node.tree.look(above) is None:
                self.mkdir(node, above)
        if node.tree.look(path) is None:
            self.create(node, path)
        self.write(node, path, data, 0, truncate=True)

    def place_guest(self, node: Node, vmid: int, kind: str, conf: bytes | None) -> None:
        """Write a guest's configuration on that node, or hand the guest over to it as a migration does: by one rename.

        A conf of None keeps the text that is there.
        """
        path = conf_path(vmid, node.name, kind)
        if vmid in node.guests:
            at, kind_then, _ = node.guests[vmid]
            before = conf_path(vmid, at, kind_then)
            if before != path:
                self.rename(node, before, path)
        if conf is not None or node.tree.look(path) is None:
            self.put(node, path, conf or b"")

    def age_lock(self, path: str, by_s: float) -> None:
        """Make a lock older than it is, for every node."""
        for node in self.nodes.values():
            if age := node.ages.get(path):
                node.ages[path] = type(age)(age.change, age.since_s - by_s)

    def load(self, rows: Iterable[tuple[str, int, int, str | None]]) -> None:
        """Take over what `rows` of an earlier process gave, over what is there."""
        tree = next(iter(self.nodes.values())).tree
        for path, mtime, writer, text in rows:
            tree.put_back(path, Entry(mtime, writer, 0, (text or "").encode("latin-1"), {} if text is None else None))
        for node in self.nodes.values():
            node.load()

    def rows(self) -> Iterator[tuple[str, int, int, str | None]]:
        """Yield every entry of the newest files as path, mtime, writer and text (None for a directory)."""
        newest = max((node.tree for node in self.nodes.values()), key=lambda one: (one.changes, one.mtime))
        for path, entry in newest.walk():
            yield path, entry.mtime, entry.writer, None if entry.is_dir else entry.data.decode("latin-1")


def conf_path(vmid: int, node: str, kind: str) -> str:
    """Return where the configuration of a guest of that node and type is."""
    return f"nodes/{node}/{'lxc' if kind == 'lxc' else 'qemu-server'}/{vmid}.conf"


def lock_path(name: str) -> str:
    return f"{LOCK_DIR}/{name}"

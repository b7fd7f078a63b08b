# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in for /etc/pve, started and steered from a test."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.pmxcfs.ask import ask

START_WAIT_S = 120.0  # what a busy machine may take to start a process; 0.3 s on an idle one
STOP_WAIT_S = 60.0
# Calls that other nodes get to know of: each is a message to all and a transaction on every node's disk.
WRITES = frozenset({"create", "write", "truncate", "mkdir", "rmdir", "unlink", "rename", "utimens"})

Value = str | int | float | None
Rows = Mapping[str, Mapping[str, Value]]


@dataclass(frozen=True)
class Calls:
    """How often a node made a call on a path (below the mount, no leading slash; of a rename the new one), done and refused."""

    node: str
    call: str
    path: str
    done: int
    refused: int


def why_not_possible() -> str | None:
    """Return why no stand-in can run on this machine, None when it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    if subprocess.run(["/usr/bin/python3", "-c", "import fusepy"], capture_output=True).returncode != 0:
        return "Debian's python3-fusepy is missing"
    return None


class Control:
    """The commands of a stand-in that runs, wherever it does: all that is needed is the path to its socket."""

    def __init__(self, control: Path) -> None:
        self.control = control

    def ask(self, do: str, **told: object) -> Any:
        """Send one command, return its answer; raises as `tests.pmxcfs.ask.ask` does."""
        return ask(str(self.control), do, **told)

    def put(self, path: str, text: str, *, node: str | None = None) -> None:
        """Write a file as that node (the first one with quorum), with the directories above it."""
        self.ask("put", path=path, text=text, node=node)

    def remove(self, path: str, *, node: str | None = None) -> None:
        self.ask("remove", path=path, node=node)

    def read(self, path: str, *, node: str | None = None) -> str:
        """Return a file's text as that node has it, past FUSE; dot files too, freshly made."""
        return str(self.ask("read", path=path, node=node))

    def listing(self, path: str = "", *, node: str | None = None) -> list[str]:
        return list(self.ask("listing", path=path, node=node))

    def guest(self, vmid: int, node: str, kind: str = "qemu", conf: str | None = None) -> None:
        """Write a guest's configuration; hand a guest of another node over, as a migration does (conf None: with the text it has)."""
        self.ask("guest", vmid=vmid, node=node, type=kind, conf=conf)

    def remove_guest(self, vmid: int) -> None:
        self.ask("remove_guest", vmid=vmid)

    def rrd(self, nodes: Rows, guests: Rows, storages: Rows | None = None, *, release: int = 9) -> None:
        """Set the whole of `.rrd`, in the columns of PVE 9 or 8. Rows are column -> value; keys "pve1", "101", "pve1/local".

        A ctime that is left out is now; other columns left out are `U`, but for a few with a sensible value (running, no traffic).
        """
        self.ask("rrd", nodes=nodes, guests=guests, storages=storages or {}, release=release)

    def log(self, node: str, msg: str, **more: Value) -> int:
        """Add an entry to the cluster log (tag, user, pri, pid, time as wanted); return its uid, counted for each node."""
        return int(self.ask("log", node=node, msg=msg, **more))

    def show(self, file: str, text: str | None) -> None:
        """Show that text in a dot file, broken as it may be; None: what belongs there."""
        self.ask("show", file=file, text=text)

    def quorum(self, on: bool, nodes: Sequence[str] | None = None, *, cut_s: float = 0.0) -> None:
        """Take quorum from nodes (all), each then alone, or give it back, together; who has it is not counted, it is as told here.

        For `cut_s` writes hang on every node that has quorum; where it goes, one of them then ends with EPERM, others with EBUSY.
        """
        self.ask("quorum", on=on, nodes=nodes, cut_s=cut_s)

    def cut(self, node: str, *, cut_s: float = 0.0) -> None:
        """Let a node reach no other any more; quorum is where more than half of the nodes are together. `cut_s` as for `quorum`."""
        self.ask("cut", node=node, cut_s=cut_s)

    def heal(self) -> None:
        """Let every node reach every other; all get the files of the part that wrote last."""
        self.ask("heal")

    def waiting(self) -> int:
        """Return how many writes wait for a change of membership that is being agreed on (`cut_s`)."""
        return int(self.ask("waiting"))

    def online(self, node: str, on: bool) -> None:
        """Have the pmxcfs of a node without a mount be there or not, as `.members` of the others says."""
        self.ask("online", node=node, on=on)

    def clock(self, node: str, offset_s: float) -> None:
        """Set what that node's pmxcfs takes for the time, as difference to this machine's."""
        self.ask("clock", node=node, offset_s=offset_s)

    def hang(self, for_s: float, nodes: Sequence[str] | None = None, calls: Sequence[str] | None = None) -> None:
        """Let calls hang: of the nodes (all), named as FUSE names them (all). 0 ends it."""
        self.ask("hang", for_s=for_s, nodes=nodes, calls=calls)

    def tasklist(self, node: str) -> None:
        """Count the node's task list up in `.version`."""
        self.ask("tasklist", node=node)

    def status(self, node: str, key: str, value: str) -> None:
        """Set a key of the node's status: `rrd/...` is a line of `.rrd`, every other one is only counted in `.version`."""
        self.ask("status", node=node, key=key, value=value)

    def age_lock(self, name: str, by_s: float) -> None:
        """Make `priv/lock/<name>` older than it is."""
        self.ask("age_lock", name=name, by_s=by_s)

    def lock_holder(self, name: str) -> str | None:
        """Return the node that holds `priv/lock/<name>`."""
        holder = self.ask("lock_holder", name=name)
        return None if holder is None else str(holder)

    def lock_holders(self, name: str) -> list[tuple[float, str | None]]:
        """Return when `priv/lock/<name>` was taken, renewed or removed (as `time.time()`), and who held it from then on."""
        return [(at, holder) for at, holder in self.ask("lock_holders", name=name)]

    def unmount(self, node: str, *, dead: bool = False) -> None:
        """End the node's pmxcfs: leave the bare directory; or, dead, a mount where every call gives ENOTCONN."""
        self.ask("unmount", node=node, dead=dead)

    def mount(self, node: str) -> None:
        """Start it again. Files stay; counters, uids of the log and the ages that this node knows begin anew."""
        self.ask("mount", node=node)

    def calls(self) -> list[Calls]:
        """Return what was called through the mounts since the start, or since `forget_calls`."""
        return [Calls(**row) for row in self.ask("calls")]

    def writes(self, path: str = "") -> int:
        """Count the writes that were done at or below a path: messages to the whole cluster."""
        rows = [row for row in self.calls() if row.call in WRITES]
        return sum(row.done for row in rows if not path or row.path == path or row.path.startswith(f"{path}/"))

    def forget_calls(self) -> None:
        self.ask("forget_calls")


class Pmxcfs(Control):
    """A stand-in of one's own, mounted while the block runs, once for each node: `with Pmxcfs("pve1", "pve2") as pve: pve.at("pve1")`.

    Whatever happens in the block, afterwards nothing is mounted and no process is left; when the test itself is killed, the process
    notices that its standard input ended. `unmounted` names nodes that are in the cluster and have no mount.
    """

    def __init__(self, *nodes: str, lock_life_s: float = 120.0, keep: Path | None = None, unmounted: Sequence[str] = ()) -> None:
        self.nodes = nodes or ("pve1",)
        self.root = Path(tempfile.mkdtemp(prefix="pmxcfs-"))
        super().__init__(self.root / "control")
        self._options = ["--lock-life-s", str(lock_life_s), *(["--keep", str(keep)] if keep else [])]
        self._unmounted = unmounted
        self._process: subprocess.Popen[bytes] | None = None

    def at(self, node: str = "") -> Path:
        """Return where that node's (the first one's) /etc/pve is."""
        return self.root / (node or self.nodes[0])

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._clear_up()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._clear_up()

    def start(self) -> None:
        """Start the process, and return when all is mounted."""
        for node in self.nodes:
            self.at(node).mkdir(exist_ok=True)
        places = [f"{node}={self.at(node)}" for node in self.nodes] + list(self._unmounted)
        program = str(Path(__file__).with_name("__main__.py"))
        command = ["/usr/bin/python3", "-B", program, "--control", str(self.control), "--with-stdin"]
        command += [*self._options, *(word for place in places for word in ("--node", place))]
        self.control.unlink(missing_ok=True)  # of one that was killed: to be there is to listen
        log = self.root / "log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out)
        until = time.monotonic() + START_WAIT_S
        while not self.control.exists():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the stand-in for /etc/pve does not start:\n{log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the process and its mounts, as a clean stop of pve-cluster. `start` goes on with the files if `keep` was given."""
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            if process.poll() is None:
                process.terminate()
                process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            if process.stdin:
                process.stdin.close()
            for node in self.nodes:
                unmount(self.at(node))

    def _clear_up(self) -> None:
        self.stop()
        if not mounted_below(self.root):
            shutil.rmtree(self.root, ignore_errors=True)


def mounted_below(root: Path) -> list[Path]:
    """Return what is mounted at or below a directory, the innermost first."""
    with Path("/proc/self/mountinfo").open() as lines:
        places = [Path(line.split()[4]) for line in lines]
    return [place for place in reversed(places) if place == root or root in place.parents]


def unmount(mountpoint: Path) -> None:
    """Take away whatever is mounted there, answering or not, used or not."""
    for place in mounted_below(mountpoint):
        if subprocess.run(["umount", "-l", place], capture_output=True).returncode != 0:
            subprocess.run(["fusermount", "-u", "-z", place])

# SPDX-License-Identifier: GPL-3.0-or-later
"""A booted Debian: a container of systemd-nspawn with processes, mounts, network and cgroups of its own."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.roots import PROJECT

BOXES = PROJECT / ".cache/boxes"
BOOT_WAIT_S = 300.0  # 10 s on an idle machine
STOP_WAIT_S = 60.0
RUN_WAIT_S = 120.0
LATE_S = 60.0  # what the machine outside may take on top of a limit that is kept inside
POLL_S = 0.1
KILLED = {-signal.SIGKILL, 128 + signal.SIGKILL}
ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb")
# First process of the box. Whatever it mounts or starts ends with it. The Debian below stays as it is: changes go to `upper`.
BOX = """
set -eu
name=$1 root=$2 work=$3
shift 3
ip link set lo up
umount -R /sys/fs/cgroup 2>/dev/null || :
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$name"
echo 0 >"/sys/fs/cgroup/$name/cgroup.procs"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/overlay" "$work/root" || [ -e "$work/root/etc" ] ||
    cp -a --reflink=auto "$root/." "$work/root"
systemd-nspawn --quiet --register=no --keep-unit --settings=no --link-journal=no --resolv-conf=off --timezone=off --console=pipe \
    --machine="$name" --directory="$work/root" --network-namespace-path=/proc/$$/ns/net --bind=/dev/fuse --boot "$@" &
wait $!
"""
SWEEP = """
umount -R /sys/fs/cgroup 2>/dev/null
mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
[ ! -d "/sys/fs/cgroup/$1" ] || find "/sys/fs/cgroup/$1" -depth -type d -exec rmdir {} +
"""


class MachineError(Exception):
    """The machine did not boot, or a command in it did not end as it should."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str
    took_s: float


class Machine:
    """A Debian that boots on entering and is gone on leaving, whatever happened in between.

    Nothing of it outlives the process that made it, even one that is killed: only a directory below .cache/boxes and an empty cgroup
    stay then, until the next machine, or `sweep`, takes them away. It has no network but its own loopback device.

    binds:    directories of this machine, read-only at the same path inside.
    shared:   directories of this machine, writable, and where they are inside.
    network:  a network namespace that stays when it reboots; None: one of its own, gone with each boot.
    """

    def __init__(
        self,
        root: Path,
        hostname: str = "pve1",
        *,
        binds: Sequence[Path] = (),
        shared: Mapping[Path, str] | None = None,
        network: Path | None = None,
    ) -> None:
        self.hostname = hostname
        self.pid = 0  # of its init, seen from here
        self.boot_s = 0.0
        self._began_s = 0.0
        self._root = root
        self._network = network
        self._options = [f"--hostname={hostname}", *(f"--bind-ro={path}" for path in binds)]
        self._options += [f"--bind={path}:{inside}" for path, inside in (shared or {}).items()]
        self._box: subprocess.Popen[bytes] | None = None
        self._work = Path()

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.destroy()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            self.destroy()

    # -- life --------------------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Boot, and return when systemd has started what it was to start; after `stop` or `crash` from the disk that it had.

        Raises:  MachineError with the end of the console when it does not come to that.
        """
        self.begin()
        self.wait_booted()

    def begin(self) -> None:
        """Begin to boot. The thread that calls this must live as long as the machine, which ends with it."""
        sweep()
        self._began_s = time.monotonic()
        if not self._work.name:
            BOXES.mkdir(parents=True, exist_ok=True)
            self._work = BOXES / f"box-{os.getpid()}-{secrets.token_hex(4)}"
            for part in ("upper", "overlay", "root"):
                (self._work / part).mkdir(0o755, parents=True)
        # setpriv: the box dies with this process; unshare: everything in the box dies with its first process.
        network = ["unshare", "--net"] if self._network is None else ["nsenter", f"--net={self._network}", "unshare"]
        command = ["setpriv", "--pdeathsig", "KILL", *network, "--mount", "--propagation", "private", "--pid", "--fork"]
        command += ["--kill-child", "--mount-proc", "/bin/sh", "-c", BOX, "box", self.name, str(self._root), str(self._work)]
        with self.console.open("ab") as out:
            self._box = subprocess.Popen(
                [*command, *self._options], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def wait_booted(self) -> None:
        """Return when what `begin` began is up; raises as `boot` does."""
        until = self._began_s + BOOT_WAIT_S
        self.wait_for(self._find_init, until - time.monotonic(), "no init came up")
        self.wait_for(lambda: self.state() in {"running", "degraded"}, until - time.monotonic(), "it did not come up")
        self.boot_s = time.monotonic() - self._began_s

    def stop(self) -> None:
        """Shut down as systemd wants to be told, and fail when that does not work: the agent must not keep a node from stopping."""
        if self._box is None or self._box.poll() is not None or not self.pid:
            return
        os.kill(self.pid, signal.SIGRTMIN + 4)
        try:
            self._box.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            raise MachineError(f"{self.hostname} did not stop within {STOP_WAIT_S:.0f} s:\n{self._console_end()}") from None

    def wait_ended(self, limit_s: float) -> None:
        """Return when it has shut down by itself, as after `systemctl reboot`; `boot` is its next boot, from the disk that it had.

        Raises:  MachineError with the end of the console when it still runs after the limit.
        """
        assert self._box
        try:
            self._box.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise MachineError(f"{self.hostname} had not shut down after {limit_s:.0f} s:\n{self._console_end()}") from None
        self.crash()

    def crash(self) -> None:
        """End it as a power cut does: everything in it is gone at once, but for its disk."""
        if self._box is not None:
            self._box.kill()
            self._box.wait()
            self._box = None
            self.pid = 0
        if self._work.name:
            _remove_cgroups(self.name)

    def destroy(self) -> None:
        """Take away what there is of it, running or not."""
        self.crash()
        if self._work.name:
            shutil.rmtree(self._work, ignore_errors=True)

    @property
    def name(self) -> str:
        """The name of the container and of its cgroup."""
        return f"proxlb-{self._work.name}"

    @property
    def console(self) -> Path:
        """What the boot said."""
        return self._work / "console"

    def state(self) -> str:
        """Return what systemd says of the whole: starting, running, degraded, stopping; "" when it cannot be asked."""
        try:
            return self.run(["systemctl", "is-system-running"], check=False, limit_s=20).stdout.strip()
        except MachineError:
            return ""

    # -- commands ----------------------------------------------------------------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        limit_s: float = RUN_WAIT_S,
        stdin: bytes | str = b"",
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a command inside as root (a string: through sh), and return how it ended.

        Raises:  MachineError when it fails and `check` is on, or does not end within `limit_s` (it is killed then).
        """
        words = ["/bin/sh", "-ec", command] if isinstance(command, str) else list(command)
        told = [f"{key}={value}" for key, value in (env or {}).items()]
        full = [*self._enter(), "/usr/bin/env", "-i", *ENVIRONMENT, *told, "timeout", "-s", "KILL", str(limit_s), *words]
        began = time.monotonic()
        try:
            ended = subprocess.run(
                full, input=stdin.encode() if isinstance(stdin, str) else stdin, capture_output=True, timeout=limit_s + LATE_S
            )
        except subprocess.TimeoutExpired:
            raise MachineError(f"no end of: {shlex.join(words)}") from None
        done = Done(
            ended.returncode, ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace"), time.monotonic() - began
        )
        if done.status in KILLED and done.took_s >= limit_s:
            raise MachineError(f"no end within {limit_s:.0f} s of: {shlex.join(words)}\n{done.stdout}{done.stderr}")
        if check and done.status != 0:
            raise MachineError(f"status {done.status} of: {shlex.join(words)}\n{done.stdout}{done.stderr}")
        return done

    def start(self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> Background:
        """Start a program that runs on, as the transient unit `name`; its output is kept."""
        output = f"/run/{name}.output"
        self.put(output, "")
        told = [f"--setenv={key}={value}" for key, value in (env or {}).items()]
        kept = [f"--property=Standard{what}=append:{output}" for what in ("Output", "Error")]
        self.run(["systemd-run", "--quiet", f"--unit={name}", "--property=RemainAfterExit=yes", *kept, *told, "--", *command])
        return Background(self, name, output)

    def shell_hint(self) -> str:
        """Return the command that gives a person a shell inside, for a test that is being looked into."""
        return shlex.join([*self._enter(), "/bin/bash", "-l"])

    def wait_for(self, what: Callable[[], object], limit_s: float = RUN_WAIT_S, otherwise: str = "it did not happen") -> None:
        """Ask until it is so. MachineError when it is not within the limit, or the machine ended."""
        until = time.monotonic() + limit_s
        while not what():
            if self._box is not None and self._box.poll() is not None:
                raise MachineError(f"{self.hostname} ended: {otherwise}\n{self._console_end()}")
            if time.monotonic() > until:
                raise MachineError(f"{self.hostname}, after {limit_s:.0f} s: {otherwise}\n{self._console_end()}")
            time.sleep(POLL_S)

    # -- files and the journal ---------------------------------------------------------------------------------------------------

    def put(self, path: str, content: bytes | str, mode: int = 0o644) -> None:
        """Write a file inside, with the directories above it."""
        write = 'mkdir -p "${1%/*}/"; cat >"$1"; chmod "$2" "$1"'
        self.run(["/bin/sh", "-ec", write, "put", path, f"{mode:o}"], stdin=content)

    def copy_in(self, source: Path, into: str) -> None:
        """Copy a file or directory of this machine into a directory inside (made if it is missing)."""
        with subprocess.Popen(["tar", "-C", source.parent, "--exclude=__pycache__", "-c", source.name], stdout=subprocess.PIPE) as tar:
            assert tar.stdout
            packed = tar.stdout.read()
        self.run(["/bin/sh", "-ec", 'mkdir -p "$1"; tar -C "$1" --no-same-owner -x', "copy", into], stdin=packed)

    def install(self, deb: Path) -> Done:
        """Install a package as a user does, with `apt-get install ./it.deb`; there is no network, so what it needs must be there."""
        self.copy_in(deb, "/root")
        command = ["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", "install", f"/root/{deb.name}"]
        return self.run(command, env={"DEBIAN_FRONTEND": "noninteractive"})

    def get(self, path: str) -> str:
        """Return the text of a file inside."""
        return self.run(["cat", path]).stdout

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file or directory inside."""
        return self.run(["test", "-e", path], check=False).status == 0

    def outside(self, path: str) -> Path:
        """Return where a path inside is seen from here. Absolute symlinks on the way would lead out, so none may be."""
        return Path(f"/proc/{self.pid}/root") / path.lstrip("/")

    def journal(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the journal's entries that match (`journal("-u", "proxlb-agent", "PROXLB_VMID=101")`), oldest first."""
        said = self.run(["sh", "-c", 'journalctl --sync; exec journalctl -q --no-pager -o json "$@"', "journal", *arguments]).stdout
        return [json.loads(line) for line in said.splitlines()]

    def messages(self, *arguments: str) -> list[str]:
        """Return the messages alone of the journal's entries that match."""
        return [str(entry.get("MESSAGE", "")) for entry in self.journal(*arguments)]

    # -- inside ------------------------------------------------------------------------------------------------------------------

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--"]

    def _find_init(self) -> bool:
        """Find the first process of the innermost process namespace: the box has one, the container another below it."""
        assert self._box
        parents: dict[int, int] = {}
        innermost: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    status = dict(line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line)
                except (FileNotFoundError, ProcessLookupError):
                    continue
                ids = status["NSpid"].split()
                parents[int(entry.name)] = int(status["PPid"])
                if len(ids) >= 3 and ids[-1] == "1":
                    innermost[int(entry.name)] = len(ids)
        ours = [pid for pid in innermost if self._box.pid in _ancestors(pid, parents)]
        self.pid = ours[0] if ours and self._is_systemd(ours[0]) else 0
        return bool(self.pid)

    def _is_systemd(self, pid: int) -> bool:
        """Before it becomes systemd, that process is nspawn setting the container up."""
        try:
            return Path(f"/proc/{pid}/comm").read_text().strip() == "systemd"
        except FileNotFoundError:
            return False

    def _console_end(self) -> str:
        return "\n".join(self.console.read_text(errors="replace").splitlines()[-20:]) if self.console.exists() else ""


class Background:
    """A program started with `Machine.start`."""

    def __init__(self, machine: Machine, unit: str, output: str) -> None:
        self.unit = unit
        self._machine = machine
        self._output = output

    def output(self) -> str:
        """Return what it said so far, stdout and stderr."""
        return self._machine.get(self._output)

    def is_running(self) -> bool:
        return self._property("SubState") == "running"

    def status(self) -> int:
        """Return its exit status, or the number of the signal that ended it; 0 while it runs."""
        return int(self._property("ExecMainStatus"))

    def wait(self, limit_s: float = RUN_WAIT_S) -> int:
        """Wait for its end and return its exit status."""
        self._machine.wait_for(lambda: not self.is_running(), limit_s, f"{self.unit} still runs")
        return self.status()

    def kill(self, signal_name: str = "KILL") -> None:
        """Send its main process a signal."""
        self._machine.run(["systemctl", "kill", "--kill-who=main", f"--signal={signal_name}", self.unit])

    def stop(self) -> None:
        """End it, and forget how it ended."""
        self._machine.run(["systemctl", "stop", self.unit], check=False)
        self._machine.run(["systemctl", "reset-failed", self.unit], check=False)

    def _property(self, name: str) -> str:
        return self._machine.run(["systemctl", "show", "--value", f"--property={name}", self.unit]).stdout.strip()


def sweep() -> None:
    """Take away what machines left whose makers were killed."""
    for work in BOXES.glob("box-*"):
        maker = work.name.split("-")[1]
        if not Path("/proc", maker).exists():
            _remove_cgroups(f"proxlb-{work.name}")
            shutil.rmtree(work, ignore_errors=True)


def _remove_cgroups(name: str) -> None:
    """Remove a box's cgroups, which empty a moment after its last process."""
    for _ in range(50):
        swept = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", SWEEP, "sweep", name]
        if subprocess.run(swept, capture_output=True).returncode == 0:
            break
        time.sleep(POLL_S)


def _ancestors(pid: int, parents: Mapping[int, int]) -> set[int]:
    found = set()
    while pid in parents:
        pid = parents[pid]
        found.add(pid)
    return found

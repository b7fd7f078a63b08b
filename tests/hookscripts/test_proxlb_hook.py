# SPDX-License-Identifier: GPL-3.0-or-later
"""The real hookscript under dash, in a mount namespace with a /run of its own, on disks that are really full or read-only.

Needs util-linux (unshare, nsenter) and either root or user namespaces; skipped where a build allows neither.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

HOOK = Path(__file__).resolve().parents[2] / "hookscripts" / "proxlb-hook"
PHASES = ("pre-start", "post-start", "pre-stop", "post-stop")
PVE_ENVIRONMENT = {"LC_ALL": "C", "PATH": "/sbin:/bin:/usr/sbin:/usr/bin"}
HANGS_AFTER_S = 120  # a hook takes a millisecond; only a blocked one takes this long


class PrivateRun:
    """A mount namespace whose /run is a small tmpfs; it ends with the test."""

    def __init__(self) -> None:
        # Root in a namespace of its own user where we are nobody: the same mounts are allowed there.
        self._user_namespace = os.geteuid() != 0
        command = ["unshare", "--mount", "--propagation", "private"]
        if self._user_namespace:
            command += ["--user", "--map-root-user"]
        mount = "mount -t tmpfs -o mode=755,nr_inodes=2000,size=1m tmpfs /run && echo ready && exec cat"
        self._holder = subprocess.Popen(
            [*command, "sh", "-c", mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            assert self._holder.stderr is not None
            reason = self._holder.stderr.read().strip()
            self.close()
            pytest.skip(f"no mount namespace to be had here: {reason}")
        self.run = Path(f"/proc/{self._holder.pid}/root/run")
        self.inbox = self.run / "proxlb-agent" / "inbox"
        self.inbox.parent.mkdir()
        self.inbox.mkdir(mode=0o700)

    def enter(self, *command: str) -> list[str]:
        """Return the command line that runs `command` inside, whose root and folder are the same: a build lives in a chroot."""
        user = ["--user", "--preserve-credentials"] if self._user_namespace else []
        return ["nsenter", f"--target={self._holder.pid}", *user, "--mount", "--root", "--wd", "--", *command]

    def shell(self, script: str) -> None:
        """Run a shell script inside that has to succeed."""
        subprocess.run(self.enter("sh", "-euc", script), check=True)

    def start(self, *arguments: str, environment: Mapping[str, str] = {}) -> subprocess.Popen[bytes]:
        """Start the hook as PVE does: two pipes for output, none for input."""
        return subprocess.Popen(
            self.enter(str(HOOK), *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**PVE_ENVIRONMENT, **environment},
        )

    def hook(self, *arguments: str, environment: Mapping[str, str] = {}) -> None:
        """Run the hook, and hold it to what every run owes: status 0, no output, no hanging."""
        assert_harmless(self.start(*arguments, environment=environment))

    def events(self) -> list[str]:
        """Return the names in the inbox."""
        return sorted(os.listdir(self.inbox))

    def everything(self) -> list[str]:
        """Return every path below /run."""
        return sorted(str(path.relative_to(self.run)) for path in self.run.rglob("*"))

    def close(self) -> None:
        """End the namespace: its holder stops at the end of its input."""
        self._holder.communicate(timeout=HANGS_AFTER_S)


def assert_harmless(hook: subprocess.Popen[bytes]) -> None:
    try:
        output, complaints = hook.communicate(timeout=HANGS_AFTER_S)
    except subprocess.TimeoutExpired:
        hook.kill()
        hook.communicate()
        pytest.fail("the hook hangs, and the guest's start with it")
    assert (hook.returncode, output, complaints) == (0, b"", b"")


@pytest.fixture
def private_run() -> Iterator[PrivateRun]:
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("util-linux is not installed")
    made = PrivateRun()
    yield made
    made.close()


def test_the_shebang_is_dash_here() -> None:
    assert HOOK.read_text(encoding="ascii").startswith("#!/bin/sh\n")
    if Path("/etc/debian_version").exists():
        assert os.path.realpath("/bin/sh").endswith("/dash")


def test_it_is_executable_as_pve_demands() -> None:
    assert stat.S_IMODE(HOOK.stat().st_mode) & 0o555 == 0o555


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("vmid", ["100", "101", "9999", "999999999"])
def test_an_event_becomes_one_empty_private_file(private_run: PrivateRun, vmid: str, phase: str) -> None:
    private_run.hook(vmid, phase)
    assert private_run.events() == [f"{vmid}.{phase}"]
    made = (private_run.inbox / f"{vmid}.{phase}").stat()
    assert made.st_size == 0
    assert stat.S_ISREG(made.st_mode)
    assert stat.S_IMODE(made.st_mode) == 0o600


@pytest.mark.parametrize("node", ["pve1", "PVE-2", "0", "a" * 63])
def test_an_incoming_migration_names_its_origin(private_run: PrivateRun, node: str) -> None:
    private_run.hook("101", "post-start", environment={"PVE_MIGRATED_FROM": node})
    assert private_run.events() == [f"101.post-start.{node}"]


def test_an_empty_origin_is_an_ordinary_start(private_run: PrivateRun) -> None:
    private_run.hook("101", "pre-start", environment={"PVE_MIGRATED_FROM": ""})
    assert private_run.events() == ["101.pre-start"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("101",),
        ("", ""),
        ("", "pre-start"),
        ("101", ""),
        ("101", "pre-start", "more"),
        ("99", "pre-start"),
        ("0", "pre-start"),
        ("0101", "pre-start"),
        ("000000101", "pre-start"),
        ("1000000000", "pre-start"),
        ("-101", "pre-start"),
        ("+101", "pre-start"),
        ("1e5", "pre-start"),
        ("101 ", "pre-start"),
        ("101\n", "pre-start"),
        ("101\n102", "pre-start"),
        ("10*", "pre-start"),
        ("???", "pre-start"),
        ("..", "pre-start"),
        ("../101", "pre-start"),
        ("/101", "pre-start"),
        ("1/1", "pre-start"),
        ("$(id)", "pre-start"),
        ("\u0661\u0660\u0661", "pre-start"),
        ("101", "start"),
        ("101", "pre-migrate"),
        ("101", "PRE-START"),
        ("101", "pre-start "),
        ("101", "pre-start\n"),
        ("101", "../pre-start"),
        ("101", "pre-start/../x"),
        ("101", "*"),
        ("-n", "-e"),
        ("--", "pre-start"),
        ("1" * 100_000, "pre-start"),
    ],
)
def test_other_arguments_than_those_of_pve_make_no_file(private_run: PrivateRun, arguments: tuple[str, ...]) -> None:
    before = private_run.everything()
    private_run.hook(*arguments)
    assert private_run.everything() == before


@pytest.mark.parametrize(
    "node",
    [
        "..",
        "../..",
        "a/b",
        "/tmp/x",
        "a.b",
        "pve 1",
        "pve1\n",
        "\n",
        " ",
        "pve_1",
        "-",
        "-pve",
        "pve-",
        "*",
        "$(id)",
        "n\u00f6de",
        "a" * 64,
    ],
)
def test_an_origin_that_is_no_node_makes_no_file(private_run: PrivateRun, node: str) -> None:
    before = private_run.everything()
    private_run.hook("101", "pre-start", environment={"PVE_MIGRATED_FROM": node})
    assert private_run.everything() == before


@pytest.mark.parametrize(
    "environment",
    [
        {"inbox": "/run/elsewhere", "event": "/run/elsewhere/x"},
        {"TMPDIR": "/run/elsewhere", "HOME": "/run/elsewhere", "ENV": "/run/elsewhere/env", "BASH_ENV": "/run/elsewhere/env"},
        {"IFS": "0123456789-./", "PS1": "$(true >/run/elsewhere/x)", "PS4": "$(true >/run/elsewhere/x)"},
        {"PATH": "/run/elsewhere:%builtin"},
        {"LC_ALL": "tr_TR.UTF-8", "LANG": "et_EE.UTF-8"},
        {"PWD": "/run/elsewhere", "LINENO": "x", "PPID": "x"},
    ],
)
def test_the_environment_chooses_nothing_else(private_run: PrivateRun, environment: dict[str, str]) -> None:
    elsewhere = private_run.run / "elsewhere"
    elsewhere.mkdir()
    for name in ("[", "true", "env"):
        (elsewhere / name).write_text("#!/bin/sh\ntrue >/run/elsewhere/was-run\n", encoding="ascii")
        (elsewhere / name).chmod(0o755)
    entered = {**PVE_ENVIRONMENT, "PATH": environment.get("PATH", PVE_ENVIRONMENT["PATH"])}
    # nsenter is found with our own PATH; env -i then hands the hook exactly the environment in question.
    line = ["/usr/bin/env", "-i", *(f"{key}={value}" for key, value in {**entered, **environment}.items()), str(HOOK), "101", "post-stop"]
    assert_harmless(subprocess.Popen(private_run.enter(*line), stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    assert private_run.events() == ["101.post-stop"]
    assert sorted(os.listdir(elsewhere)) == ["[", "env", "true"]


def test_an_event_that_is_there_already_stays_as_it_is(private_run: PrivateRun) -> None:
    private_run.hook("101", "pre-start")
    first = (private_run.inbox / "101.pre-start").stat()
    private_run.hook("101", "pre-start")
    second = (private_run.inbox / "101.pre-start").stat()
    assert (second.st_ino, second.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)


def test_after_a_claim_the_same_event_is_made_again(private_run: PrivateRun) -> None:
    private_run.hook("101", "pre-start")
    (private_run.inbox / "101.pre-start").rename(private_run.inbox.parent / "claimed")
    private_run.hook("101", "pre-start")
    assert private_run.events() == ["101.pre-start"]


def test_two_hundred_at_once_lose_nothing(private_run: PrivateRun) -> None:
    running = [private_run.start(str(100 + number // 2), PHASES[number % 2]) for number in range(200)]
    for hook in running:
        assert_harmless(hook)
    assert private_run.events() == sorted(f"{100 + number // 2}.{PHASES[number % 2]}" for number in range(200))


def test_two_hundred_of_the_same_event_at_once_are_one(private_run: PrivateRun) -> None:
    for hook in [private_run.start("101", "pre-start") for _ in range(200)]:
        assert_harmless(hook)
    assert private_run.events() == ["101.pre-start"]


def test_without_the_inbox_nothing_happens(private_run: PrivateRun) -> None:
    private_run.inbox.rmdir()
    private_run.hook("101", "pre-start")
    assert private_run.everything() == ["proxlb-agent"]


def test_after_the_agent_was_removed_nothing_happens(private_run: PrivateRun) -> None:
    private_run.inbox.rmdir()
    private_run.inbox.parent.rmdir()
    private_run.hook("101", "pre-start")
    assert private_run.everything() == []


def test_a_file_in_place_of_the_inbox_is_left_alone(private_run: PrivateRun) -> None:
    private_run.inbox.rmdir()
    private_run.inbox.write_text("precious", encoding="ascii")
    private_run.hook("101", "pre-start")
    assert private_run.inbox.read_text(encoding="ascii") == "precious"


def test_a_link_in_place_of_the_inbox_is_not_followed(private_run: PrivateRun) -> None:
    private_run.inbox.rmdir()
    elsewhere = private_run.run / "elsewhere"
    elsewhere.mkdir()
    private_run.inbox.symlink_to("/run/elsewhere")
    private_run.hook("101", "pre-start")
    assert os.listdir(elsewhere) == []


@pytest.mark.parametrize("target", ["/run/precious", "/run/not-there", "/run/a-folder", "/run/a-fifo", "/dev/full", "101.pre-start"])
def test_a_link_in_place_of_the_event_is_not_written_through(private_run: PrivateRun, target: str) -> None:
    (private_run.run / "precious").write_text("precious", encoding="ascii")
    (private_run.run / "a-folder").mkdir()
    private_run.shell("mkfifo /run/a-fifo")
    (private_run.inbox / "101.pre-start").symlink_to(target)
    before = private_run.everything()
    private_run.hook("101", "pre-start")
    assert private_run.everything() == before
    assert (private_run.run / "precious").read_text(encoding="ascii") == "precious"


def test_a_fifo_in_place_of_the_event_does_not_block(private_run: PrivateRun) -> None:
    private_run.shell("mkfifo /run/proxlb-agent/inbox/101.pre-start")
    private_run.hook("101", "pre-start")


def test_a_folder_in_place_of_the_event_is_left_alone(private_run: PrivateRun) -> None:
    (private_run.inbox / "101.pre-start").mkdir()
    private_run.hook("101", "pre-start")
    assert os.listdir(private_run.inbox / "101.pre-start") == []


def test_a_full_disk_stops_no_guest(private_run: PrivateRun) -> None:
    private_run.shell("mount -t tmpfs -o mode=700,nr_inodes=4 tmpfs /run/proxlb-agent/inbox")
    private_run.shell("cd /run/proxlb-agent/inbox; for n in 1 2 3; do true >fill.$n; done; ! ( true >fill.4 ) 2>/dev/null")
    private_run.hook("101", "pre-start")
    assert private_run.events() == ["fill.1", "fill.2", "fill.3"]


def test_a_read_only_disk_stops_no_guest(private_run: PrivateRun) -> None:
    private_run.shell("mount -t tmpfs -o mode=700,ro tmpfs /run/proxlb-agent/inbox")
    private_run.hook("101", "pre-start")
    assert private_run.events() == []


@pytest.mark.parametrize("closing", ["0<&-", ">&-", "2>&-", ">&- 2>&-", "0<&- >&- 2>&-"])
def test_closed_descriptors_stop_no_guest(private_run: PrivateRun, closing: str) -> None:
    private_run.shell(f"{HOOK} 101 pre-start {closing}")
    assert private_run.events() == ["101.pre-start"]


def test_no_spare_descriptor_stops_no_guest(private_run: PrivateRun) -> None:
    # Dash keeps its script at descriptor 10 and the three that it was given from 11 on, whatever they are.
    private_run.shell(f"ulimit -n 14; {HOOK} 101 pre-start")
    assert private_run.events() == ["101.pre-start"]


def test_output_that_nobody_reads_stops_no_guest(private_run: PrivateRun) -> None:
    private_run.inbox.rmdir()
    private_run.shell(f"{HOOK} 101 pre-start >/dev/full 2>/dev/full")


def test_nothing_keeps_the_output_open(private_run: PrivateRun) -> None:
    # PVE waits for the end of both pipes, not for the hook: a child that inherited them would hang the guest's start.
    with private_run.start("101", "pre-start") as hook:
        assert hook.stdout is not None
        assert hook.stderr is not None
        assert (hook.stdout.read(), hook.stderr.read()) == (b"", b"")
        assert hook.wait(HANGS_AFTER_S) == 0


def test_the_kernel_sees_no_fork(private_run: PrivateRun, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    line = [strace, "-f", "-o", str(trace), "-e", "trace=process,openat,open,creat", *private_run.enter(str(HOOK), "101", "pre-start")]
    done = subprocess.run(line, capture_output=True, timeout=HANGS_AFTER_S)
    if done.returncode != 0 and b"ptrace" in done.stderr.lower():
        pytest.skip("ptrace is not allowed here")
    assert done.returncode == 0
    seen = trace.read_text(encoding="utf-8", errors="replace").split(f'execve("{HOOK}"')[1].splitlines()
    calls = {line.split()[1].split("(")[0] for line in seen[1:] if "(" in line}
    assert "openat" in calls, "the trace shows nothing of the hook"
    assert not calls & {"clone", "clone3", "fork", "vfork", "execve", "execveat"}
    made = [line for line in seen if "O_CREAT" in line]
    assert len(made) == 1
    assert "O_EXCL" in made[0]


def test_a_shell_that_must_not_fork_makes_the_event(private_run: PrivateRun) -> None:
    # The limit counts a user's processes and does not bind root: another user, and one process, the hook itself.
    if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("prlimit") is None:
        pytest.skip("needs root to be somebody else")
    free_user = 64_321
    private_run.shell(f"chown {free_user} /run/proxlb-agent/inbox")
    as_it = ["setpriv", f"--reuid={free_user}", "--regid=65534", "--clear-groups", "prlimit", "--nproc=1:1", "--"]
    forking = private_run.enter(*as_it, "sh", "-c", "( true )")
    assert subprocess.run(forking, capture_output=True).returncode != 0, "the limit does not bind here"
    script = "exec sh /dev/stdin 101 pre-start"  # the checkout may lie where that user cannot read
    with HOOK.open("rb") as source:
        hook = subprocess.Popen(private_run.enter(*as_it, "sh", "-c", script), stdin=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert_harmless(hook)
    assert private_run.events() == ["101.pre-start"]

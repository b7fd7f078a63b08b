# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian to boot: built once for each release and list of packages, never changed afterwards."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
ROOTS = PROJECT / ".cache/roots"
BUILD_LIMIT_S = 1500
RELEASES = ("bookworm", "trixie")  # Debian 12 and 13, PVE 8 and 9
# What boots, what the agent depends on and recommends, what the stand-in for /etc/pve needs, what tests look around with.
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "python3", "ca-certificates", "dash", "iproute2", "procps", "util-linux", "strace", "nftables",
    "python3-fusepy", "fuse3", "tmux",
    "python3-proxmoxer", "python3-requests", "python3-watchdog", "python3-yaml", "python3-systemd", "python3-rich", "python3-paramiko",
)  # fmt: skip
# Nothing of this has work in a container without network, and each would wake up in the middle of a test.
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
    "console-getty.service", "getty@.service", "systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service",
    "systemd-firstboot.service", "ldconfig.service",
)  # fmt: skip
BUILD = """
set -eu
release=$1 mirror=$2 built=$3 debs=$4 packages=$5 masked=$6
root=$built.memory  # dpkg syncs after each step; in memory that costs nothing
mkdir -p "$root"
mount -t tmpfs -o size=2g,mode=755 tmpfs "$root"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
debootstrap --variant=minbase --cache-dir="$debs" --include=ca-certificates "$release" "$root" "$mirror"
apt-config dump | grep -E '^Acquire::https?::' >"$root/etc/apt/apt.conf.d/00build" || :
cp /etc/resolv.conf "$root/etc/resolv.conf" || :
mount --bind "$debs" "$root/var/cache/apt/archives"
mount -t proc proc "$root/proc"
# shellcheck disable=SC2086
chroot "$root" apt-get -q -y --no-install-recommends install $packages
umount "$root/proc" "$root/var/cache/apt/archives"
rm -rf "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* "$root/etc/apt/apt.conf.d/00build" "$root/etc/resolv.conf"
rm -rf "$root"/var/lib/apt/lists/* "$root/etc/hostname"
printf '127.0.0.1 localhost\\n::1 localhost\\n' >"$root/etc/hosts"
: >"$root/etc/machine-id"
for unit in $masked; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
cp -a "$root" "$built"
umount "$root"
rmdir "$root"
"""


class BuildError(Exception):
    """No Debian could be built; says why."""


def mirror() -> str:
    """Return where apt on this machine takes Debian from."""
    asked = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    for line in subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines():
        origin, codename, uri = line.split()
        if origin == "Debian" and "-" not in codename:
            return uri
    raise BuildError("apt knows no mirror of Debian here; apt-get update?")


def root(release: str) -> Path:
    """Return the directory of a Debian of that release, built if there is none yet. Nobody may write in it.

    Raises:  BuildError with the end of what debootstrap and apt said.
    """
    if release not in RELEASES:
        raise BuildError(f"no such release here: {release}")
    recipe = "\n".join((release, *PACKAGES, *MASKED, BUILD))
    built = ROOTS / f"{release}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    ROOTS.mkdir(parents=True, exist_ok=True)
    with (ROOTS / f"{release}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            for old in ROOTS.glob(f"{release}-*"):
                subprocess.run(["rm", "-rf", "--one-file-system", old], check=True)
            _build(release, built)
    return built


def _build(release: str, built: Path) -> None:
    beside, debs, log = ROOTS / f"{release}-unfinished", ROOTS / f"debs-{release}", ROOTS / f"{release}.log"
    debs.mkdir(exist_ok=True)
    # Namespaces of its own: what debootstrap mounts or starts ends with it, however it ends.
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    command += ["--mount-proc", "/bin/sh", "-c", BUILD, "build", release, mirror(), str(beside), str(debs)]
    command += [" ".join(PACKAGES), " ".join(MASKED)]
    with log.open("wb") as out:
        try:
            ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=BUILD_LIMIT_S)
            status = f"status {ended.returncode}"
        except subprocess.TimeoutExpired:
            status = f"no end within {BUILD_LIMIT_S} s"
    if status != "status 0":
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        subprocess.run(["rm", "-rf", "--one-file-system", beside])
        raise BuildError(f"building Debian {release} came to {status}; {log} ends:\n{end}")
    os.replace(beside, built)

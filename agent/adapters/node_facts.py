# SPDX-License-Identifier: GPL-3.0-or-later
"""What this node has for guests, read from files alone: the real `FactsSource`. No process is started for it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from agent.core.cluster import NodeFacts
from agent.ports import FactsSight, TemporaryError

CPUINFO_BYTES = 8192  # the first CPU's part, with its flags; all are alike, and each costs the kernel a look
MOST_HOOKSCRIPTS = 100  # names in a file that all nodes share
QEMU_PACKAGE, PVE_PACKAGE = "pve-qemu-kvm", "pve-manager"
INSTALLED = frozenset(
    {"installed", "triggers-pending", "triggers-awaited", "half-configured", "unpacked"}
)  # the files are those of the version

# Made for one guest as it starts and gone when it stops: the bridge of a firewalled interface, and that of a VLAN on a bridge that
# does not know VLANs. Neither is one that a configuration names.
_OF_A_GUEST = re.compile(r"fwbr\d+i\d+|vmbr\d+v\d+")

# Flags that the kernel sets by its own version, settings or firmware, and that no guest sees: two nodes with the same CPU may differ in
# them while one of them has the newer kernel. Source: Linux, arch/x86/include/asm/cpufeatures.h, the Linux-defined words.
_KERNEL_MADE = {
    "acc_power", "amd_dcm", "amd_lbr_v2", "aperfmperf", "arch_perfmon", "art", "bts", "cat_l2", "cat_l3", "cdp_l2", "cdp_l3",
    "constant_tsc", "cpb", "cpuid", "cpuid_fault", "cqm_llc", "cqm_mbm_local", "cqm_mbm_total", "cqm_occup_llc", "epb",
    "extd_apicid", "hw_pstate", "ibrs_enhanced", "intel_ppin", "invpcid_single", "kaiser", "mba", "nonstop_tsc",
    "nonstop_tsc_s3", "nopl", "pebs", "per_thread_mba", "proc_feedback", "pti", "rapl", "rep_good", "retpoline", "retpoline_amd",
    "ring3mwait", "split_lock_detect", "tsc_known_freq", "tsc_reliable", "up", "user_shstk", "xtopology",
}  # fmt: skip


class ThisNode:
    """This node, looked at as often as wanted; what cannot change while the node is up is read once.

    Shape:   `root` is where the files are, for tests.
    """

    def __init__(self, root: str = "/") -> None:
        self._root = Path(root)
        self._cpu: tuple[str, str] | None = None
        self._packages: tuple[tuple[int, int], dict[str, str]] = ((0, 0), {})
        self._upgrade: tuple[str, float | None] = ("", None)

    def read(self) -> FactsSight:
        """See `agent.ports.FactsSource`."""
        try:
            if self._cpu is None:
                self._cpu = self._read_cpu()
            model, flags = self._cpu
            versions = self._versions()
            facts = NodeFacts(
                pve_version=versions.get(PVE_PACKAGE, ""),
                qemu_version=versions.get(QEMU_PACKAGE, ""),
                qemu_before=self._upgrade[0],
                qemu_since=self._upgrade[1],
                cpu_model=model,
                cpu_flags=flags,
                bridges=tuple(sorted(self._bridges())),
                hookscripts=tuple(sorted(self._hookscripts())[:MOST_HOOKSCRIPTS]),
            )
            return FactsSight(facts, self._zfs_cache_bytes(), self._memory_bytes())
        except (OSError, ValueError) as error:
            raise TemporaryError(f"what this node has cannot be read: {error}", retry_after_s=60.0) from error

    def _read_cpu(self) -> tuple[str, str]:
        with (self._root / "proc/cpuinfo").open("rb") as file:
            text = file.read(CPUINFO_BYTES).decode("utf-8", "replace")
        found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.split("\n\n")[0].splitlines())}
        flags = sorted(set(found.get("flags", "").split()) - _KERNEL_MADE)
        return " ".join(found.get("model name", "").split()), " ".join(flags)

    # packages

    def _versions(self) -> dict[str, str]:
        """The versions of the packages that count, by dpkg's own list; read again when that has changed."""
        path = self._root / "var/lib/dpkg/status"
        try:
            stat = path.stat()
        except FileNotFoundError:
            return {}
        seen = (stat.st_mtime_ns, stat.st_size)
        if self._packages[0] != seen:
            with path.open(encoding="utf-8", errors="replace") as file:  # some megabytes: a line at a time
                self._packages = (seen, dict(_installed(file)))
            self._upgrade = self._last_upgrade()
        return self._packages[1]

    def _last_upgrade(self) -> tuple[str, float | None]:
        """The QEMU before the last upgrade of it, and when that was: guests that ran already go on with the former one.

        Source: dpkg's log, `YYYY-MM-DD HH:MM:SS upgrade PACKAGE:ARCH OLD NEW` in local time.
        """
        found: tuple[str, float | None] = ("", None)
        for name in ("dpkg.log.1", "dpkg.log"):
            with suppress(FileNotFoundError), (self._root / "var/log" / name).open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    words = line.split()
                    if len(words) == 6 and words[2] == "upgrade" and words[3].partition(":")[0] == QEMU_PACKAGE:
                        found = (words[4], time.mktime(time.strptime(f"{words[0]} {words[1]}", "%Y-%m-%d %H:%M:%S")))
        return found

    # bridges

    def _bridges(self) -> Iterator[str]:
        """Linux bridges, those of SDN among them, and Open vSwitch's, which the kernel does not mark: those by PVE's configuration."""
        interfaces = self._root / "sys/class/net"
        virtual = set(self._ovs_bridges())
        for name in os.listdir(interfaces):
            if _OF_A_GUEST.fullmatch(name) is None and (name in virtual or (interfaces / name / "bridge").is_dir()):
                yield name

    def _ovs_bridges(self) -> Iterator[str]:
        """Source: interfaces(5) and openvswitch-switch's additions to it, as PVE writes them."""
        folder = self._root / "etc/network"
        paths = [folder / "interfaces"]
        with suppress(FileNotFoundError):
            paths += sorted((folder / "interfaces.d").iterdir())
        for path in paths:
            with suppress(FileNotFoundError, IsADirectoryError):
                name = ""
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                    words = line.split()
                    if words[:1] == ["iface"] and len(words) > 1:
                        name = words[1]
                    elif words[:2] == ["ovs_type", "OVSBridge"] and name:
                        yield name

    # hookscripts, memory, cache

    def _hookscripts(self) -> Iterator[str]:
        folder = self._root / "var/lib/vz/snippets"
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in os.scandir(folder):
                if entry.is_file() and os.access(entry.path, os.X_OK):
                    yield entry.name

    def _memory_bytes(self) -> int:
        for line in (self._root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
        raise ValueError("no MemTotal in /proc/meminfo")

    def _zfs_cache_bytes(self) -> int | None:
        """What the cache holds above the least it keeps; None without ZFS."""
        try:
            text = (self._root / "proc/spl/kstat/zfs/arcstats").read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        found = {
            words[0]: int(words[2]) for words in (line.split() for line in text.splitlines()) if len(words) == 3 and words[2].isdigit()
        }
        return max(0, found["size"] - found["c_min"]) if {"size", "c_min"} <= found.keys() else None


def _installed(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names and versions of the wanted packages in dpkg's list."""
    package = ""
    is_there = False
    for line in lines:
        key, _, value = line.rstrip("\n").partition(": ")
        if key == "Package":
            package, is_there = value, False
        elif key == "Status":
            is_there = value.rpartition(" ")[2] in INSTALLED
        elif key == "Version" and is_there and package in (QEMU_PACKAGE, PVE_PACKAGE):
            yield package, value

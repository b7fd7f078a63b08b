# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node has, read from files laid out as Debian, the kernel and PVE lay them out."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agent.adapters.node_facts import ThisNode
from agent.ports import TemporaryError

CPU = "processor\t: 0\nmodel name\t: Intel(R)  Xeon(R) Gold 6130 CPU @ 2.10GHz\nflags\t\t: fpu sse4_2 aes pti nopl\nbugs\t\t: spectre_v1\n"
ARC = "13 1 0x01 147 39984 4 5\nname                            type data\nsize                            4    9000\nc_min     4    2000\n"
STATUS = """Package: pve-manager
Status: install ok installed
Version: 9.1.1

Package: pve-qemu-kvm-dbg
Status: install ok installed
Version: 1

Package: pve-qemu-kvm
Status: install ok installed
Architecture: amd64
Version: 10.1.2-3
Description: Full virtualization on x86 hardware
 Version: 7

"""


class Node:
    """A node's files in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/cpuinfo", CPU + "\nprocessor\t: 1\nmodel name\t: another\nflags\t\t: none\n")
        self.write("proc/meminfo", "MemTotal:       65536 kB\nMemFree:          1 kB\n")
        self.write("var/lib/dpkg/status", STATUS)
        self.bridge("vmbr0")
        (root / "sys/class/net/eno1").mkdir(parents=True)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)
        (self.root / path).chmod(mode)

    def bridge(self, name: str) -> None:
        (self.root / "sys/class/net" / name / "bridge").mkdir(parents=True)

    def read(self) -> ThisNode:
        return ThisNode(str(self.root))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_versions_cpu_and_memory(node: Node) -> None:
    sight = node.read().read()
    facts = sight.facts
    assert (facts.pve_version, facts.qemu_version) == ("9.1.1", "10.1.2-3")
    assert (facts.cpu_model, facts.cpu_flags) == ("Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz", "aes fpu sse4_2")
    assert (sight.memory_bytes, sight.zfs_cache_bytes) == (64 << 20, None)


def test_flags_that_the_kernel_makes_are_left_out(node: Node) -> None:
    """Else a newer kernel on half the nodes would keep guests with `cpu: host` from ever leaving the older half."""
    assert "pti" not in node.read().read().facts.cpu_flags.split()


def test_an_upgrade_is_seen_without_a_restart(node: Node) -> None:
    reader = node.read()
    assert reader.read().facts.qemu_version == "10.1.2-3"
    node.write("var/lib/dpkg/status", STATUS.replace("10.1.2-3", "10.2.0-1"))
    os.utime(node.root / "var/lib/dpkg/status", ns=(1, 1))
    assert reader.read().facts.qemu_version == "10.2.0-1"


def test_what_guests_from_before_an_upgrade_run_is_known_by_dpkgs_log(node: Node) -> None:
    assert (node.read().read().facts.qemu_before, node.read().read().facts.qemu_since) == ("", None)
    node.write("var/log/dpkg.log.1", "2026-01-01 10:00:00 upgrade pve-qemu-kvm:amd64 9.2.0-7 10.0.2-4\n")
    lines = [
        "2026-02-03 10:11:12 startup archives unpack",
        "2026-02-03 10:11:13 upgrade pve-qemu-kvm:amd64 10.0.2-4 10.1.2-3",
        "2026-02-03 10:11:14 status installed pve-qemu-kvm:amd64 10.1.2-3",
        "2026-02-04 10:11:13 upgrade pve-manager:all 9.0.10 9.1.1",
    ]
    node.write("var/log/dpkg.log", "\n".join(lines) + "\n")
    facts = node.read().read().facts
    assert facts.qemu_before == "10.0.2-4"
    assert time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts.qemu_since)) == "2026-02-03 10:11:13"


@pytest.mark.parametrize("status", ["deinstall ok config-files", "purge ok not-installed", "install reinstreq half-installed"])
def test_a_package_that_is_not_there_has_no_version(node: Node, status: str) -> None:
    node.write("var/lib/dpkg/status", STATUS.replace("Status: install ok installed\nArchitecture", f"Status: {status}\nArchitecture"))
    assert node.read().read().facts.qemu_version == ""


def test_off_debian_there_are_no_versions(node: Node) -> None:
    (node.root / "var/lib/dpkg/status").unlink()
    assert node.read().read().facts.pve_version == ""


def test_bridges_of_linux_sdn_and_open_vswitch(node: Node) -> None:
    for name in ("vnet1", "vmbr0v5", "fwbr101i0"):
        node.bridge(name)
    for name in ("vmbr2", "bond0"):
        (node.root / "sys/class/net" / name).mkdir()
    (node.root / "sys/class/net/bonding_masters").write_text("bond0\n")
    text = "auto vmbr2\niface vmbr2 inet manual\n\tovs_type OVSBridge\n\tovs_ports bond0\n\niface bond0 inet manual\n\tovs_type OVSBond\n"
    node.write("etc/network/interfaces", text + "iface vmbr9 inet manual\n\tovs_type OVSBridge\n")  # vmbr9 is not up
    node.write("etc/network/interfaces.d/sdn", "iface vnet1 inet manual\n")
    assert node.read().read().facts.bridges == ("vmbr0", "vmbr2", "vnet1")


def test_bridges_that_come_and_go_with_guests_are_no_news(node: Node) -> None:
    before = node.read().read()
    node.bridge("fwbr100i0")
    node.bridge("vmbr0v12")
    assert node.read().read() == before


def test_only_executable_files_are_hookscripts(node: Node) -> None:
    node.write("var/lib/vz/snippets/proxlb-hook", "#!/bin/sh\n", 0o755)
    node.write("var/lib/vz/snippets/user-data.yaml", "", 0o644)
    (node.root / "var/lib/vz/snippets/folder").mkdir(mode=0o755)
    (node.root / "var/lib/vz/snippets/gone").symlink_to("nowhere")
    assert node.read().read().facts.hookscripts == ("proxlb-hook",)


def test_the_zfs_cache_gives_back_what_is_above_its_least(node: Node) -> None:
    node.write("proc/spl/kstat/zfs/arcstats", ARC)
    assert node.read().read().zfs_cache_bytes == 7000
    node.write("proc/spl/kstat/zfs/arcstats", ARC.replace("9000", "1000"))
    assert node.read().read().zfs_cache_bytes == 0


def test_no_process_is_started(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fork", "posix_spawn", "system"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("a process"))
    assert node.read().read().facts.bridges == ("vmbr0",)


def test_what_cannot_be_read_asks_for_patience(node: Node) -> None:
    (node.root / "proc/cpuinfo").unlink()
    with pytest.raises(TemporaryError, match="what this node has cannot be read"):
        node.read().read()


def test_this_machine_can_be_read() -> None:
    sight = ThisNode().read()
    assert sight.memory_bytes > 0
    assert sight.facts.cpu_flags == " ".join(sorted(sight.facts.cpu_flags.split()))

# SPDX-License-Identifier: GPL-3.0-or-later
"""The configurations of guests: a number once in the cluster, `.vmlist`, and the rename that hands a guest over."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from mounts import AT_ONCE_S, ATTRIBUTES_CACHED_S, GUESTS, Cluster, Node, eventually, outcome, read, reads, write

VMID = GUESTS[0]


@pytest.fixture(autouse=True)
def _no_guests_left(pve: Cluster) -> Iterator[None]:
    yield
    for node in pve.nodes:
        for place in ("qemu-server", "lxc"):
            for name in os.listdir(pve.nodes[0].mount / "nodes" / node.name / place):
                if name.startswith(str(VMID)[:-2]):
                    os.unlink(pve.nodes[0].mount / "nodes" / node.name / place / name)


def vmlist(node: Node) -> Any:
    return json.loads(read(node.mount / ".vmlist"))


def place_of(node: Node, vmid: int = VMID) -> tuple[str, str] | None:
    """Where a node says that the guest is, and of which type; None when it does not know it."""
    found = vmlist(node).get("ids", {}).get(str(vmid))
    return found and (found["node"], found["type"])


def conf(node: Node, owner: Node, place: str = "qemu-server", name: str = f"{VMID}.conf") -> Any:
    return node.mount / "nodes" / owner.name / place / name


def test_a_guest_is_where_its_configuration_is(pve: Cluster) -> None:
    first, second, third = pve.nodes[:3]
    write(conf(first, first), "memory: 512\n")
    write(conf(first, second, "lxc", f"{VMID + 1}.conf"), "memory: 512\n")
    eventually(lambda: place_of(third) == (first.name, "qemu"), "the VM", AT_ONCE_S)
    eventually(lambda: place_of(third, VMID + 1) == (second.name, "lxc"), "the container", AT_ONCE_S)
    reads([second.mount], f"lxc/{VMID + 1}.conf", "memory: 512\n")


def test_a_number_is_given_once_in_the_cluster(pve: Cluster) -> None:
    first, second = pve.nodes[:2]
    write(conf(first, first))
    assert outcome(lambda: write(conf(first, first, "lxc"))) == "EEXIST"
    assert outcome(lambda: write(conf(second, second))) == "EEXIST"
    write(second.mount / "conformance/new.conf")
    assert outcome(lambda: os.rename(second.mount / "conformance/new.conf", conf(second, second))) == "EEXIST"


def test_a_rename_hands_the_guest_over(pve: Cluster) -> None:
    first, second, third = pve.nodes[:3]
    write(conf(first, first), "memory: 512\n")
    eventually(lambda: place_of(third) == (first.name, "qemu"), "on the first node", AT_ONCE_S)
    before = vmlist(third)
    os.rename(conf(first, first), conf(first, second))
    time.sleep(ATTRIBUTES_CACHED_S)
    after = vmlist(third)
    assert place_of(third) == (second.name, "qemu")
    assert after["version"] > before["version"]
    assert after["ids"][str(VMID)]["version"] > before["ids"][str(VMID)]["version"]
    assert read(conf(third, second)) == "memory: 512\n"


def test_each_change_of_a_configuration_counts(pve: Cluster) -> None:
    first, second = pve.nodes[:2]
    write(conf(first, first))
    time.sleep(ATTRIBUTES_CACHED_S)
    before = vmlist(second)
    write(conf(first, first), "memory: 1024\n")
    time.sleep(ATTRIBUTES_CACHED_S)
    after = vmlist(second)
    assert after["version"] > before["version"]
    assert after["ids"][str(VMID)]["version"] > before["ids"][str(VMID)]["version"]
    os.unlink(conf(second, first))
    time.sleep(ATTRIBUTES_CACHED_S)
    assert vmlist(second)["version"] == after["version"] + 1
    assert place_of(second) is None


@pytest.mark.parametrize("name", [f"0{VMID}.conf", f"{VMID}.conf.tmp", f"{VMID}.txt", f"x{VMID}.conf"])
def test_other_names_are_no_guests(pve: Cluster, name: str) -> None:
    first, second = pve.nodes[:2]
    before = vmlist(second)
    try:
        write(conf(first, first, name=name))
        time.sleep(ATTRIBUTES_CACHED_S)
        assert vmlist(second) == before
    finally:
        os.unlink(conf(first, first, name=name))

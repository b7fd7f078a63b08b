# SPDX-License-Identifier: GPL-3.0-or-later
"""`.rrd`, `.vmlist` and `.members` as PVE 8 and 9 write them, and as they are when something went wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.cluster import GuestType
from agent.core.statistics import (
    GuestSample,
    Members,
    NodeSample,
    Statistics,
    VmEntry,
    parse_members,
    parse_rrd,
    parse_vmlist,
    zfs_given_back,
)

NOW = 1_767_000_000
GIB = 1 << 30

NODE_8 = f"pve2-node/pve1:86400:c:{NOW}:1.5:16:0.25:0.01:{64 * GIB}:{20 * GIB}:0:0:100:20:5:6"
NODE_9 = f"pve-node-9.0/pve1:86400:c:{NOW}:1.5:16:0.25:0.01:{64 * GIB}:{20 * GIB}:0:0:100:20:5:6:{44 * GIB}:{5 * GIB}:0.5:9:9:12.5:9"
VM_8 = f"pve2.3-vm/101:3600:web1:running:0:{NOW}:4:0.5:{8 * GIB}:{3 * GIB}:100:0:1:2:3:4"
VM_9 = f"pve-vm-9.0/101:3600:web1:running:0:{NOW}:4:0.5:{8 * GIB}:{3 * GIB}:100:0:1:2:3:4:{5 * GIB}:0.1:0:0:0:0:0"
STOPPED_8 = f"pve2.3-vm/102:0:db:stopped:0:{NOW}:2:U:{4 * GIB}:U:100:0:U:U:U:U"
STOPPED_9 = f"pve-vm-9.0/102:0:db:stopped:0:{NOW}:2:U:{4 * GIB}:U:100:0:U:U:U:U:U:U:U:U:U:U:U"

NODE_ON_8 = NodeSample("pve1", NOW, 86400.0, 16.0, 4.0, 64 * GIB, 20 * GIB)
NODE = NodeSample("pve1", NOW, 86400.0, 16.0, 4.0, 64 * GIB, 20 * GIB, 3 * GIB, 0.125)
VM_ON_9 = GuestSample(101, NOW, "web1", "running", 4.0, 2.0, 8 * GIB, 3 * GIB, 5 * GIB, 3600.0)
VM_ON_8 = GuestSample(101, NOW, "web1", "running", 4.0, 2.0, 8 * GIB, 3 * GIB, None, 3600.0)
STOPPED = GuestSample(102, NOW, "db", "stopped", 2.0, None, 4 * GIB, None, None, 0.0)


@pytest.mark.parametrize(
    ("text", "node", "guest"),
    [(f"{NODE_8}\n{VM_8}\n{STOPPED_8}\n", NODE_ON_8, VM_ON_8), (f"{NODE_9}\n{VM_9}\n{STOPPED_9}\n", NODE, VM_ON_9)],
)
def test_both_releases_are_read(text: str, node: NodeSample, guest: GuestSample) -> None:
    assert parse_rrd(text) == Statistics((node,), (guest, STOPPED))


def test_a_zfs_cache_keeps_what_it_has_at_the_least() -> None:
    assert zfs_given_back(5 * GIB, 64 * GIB) == 3 * GIB
    assert zfs_given_back(GIB, 64 * GIB) == zfs_given_back(0, 64 * GIB) == 0
    assert zfs_given_back(GIB // 32, GIB // 2) == 0
    assert zfs_given_back(None, 64 * GIB) is zfs_given_back(GIB, None) is zfs_given_back(GIB, 0) is None


@pytest.mark.parametrize(
    ("cpu", "memory", "found"),
    [("U", "U", None), ("20", "U", 0.2), ("U", "3", 0.03), ("100", "1", 1.0), ("101", "nan", None), ("-1", "x", None)],
)
def test_of_the_two_pressures_the_larger_known_one_is_the_nodes(cpu: str, memory: str, found: float | None) -> None:
    text = NODE_9.replace(":0.5:9:9:12.5:9", f":{cpu}:9:9:{memory}:9")
    assert parse_rrd(text).nodes[0].pressure_fraction == found


def test_only_who_runs_is_running() -> None:
    assert (VM_ON_9.is_running, STOPPED.is_running) == (True, False)


def test_unknown_is_not_zero() -> None:
    node = f"pve-node-9.0/pve1:U:U:{NOW}:U:16:U:U:U:U" + ":U" * 13
    assert parse_rrd(node).nodes == (NodeSample("pve1", NOW, None, 16.0, None, None, None),)


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "x", "", "1e400"])
def test_a_number_that_is_none_is_unknown(number: str) -> None:
    text = VM_9.replace(":0.5:", f":{number}:")
    assert [guest.cpu_used_cores for guest in parse_rrd(text).guests] == [None]


def test_numbers_as_perl_prints_large_ones() -> None:
    assert parse_rrd(NODE_9.replace(str(20 * GIB), "2.1474836480e+10")).nodes[0].memory_used_bytes == 20 * GIB
    assert parse_rrd(NODE_9.replace(str(20 * GIB), str(2**60 + 1))).nodes[0].memory_used_bytes == 2**60 + 1


def test_columns_that_a_later_release_adds_are_allowed() -> None:
    text = f"{NODE_9}:1:2:3\n{VM_9}:1:2\n".replace("-9.0", "-10.1")
    assert parse_rrd(text) == Statistics((NODE,), (VM_ON_9,))


def test_other_lines_are_left_out() -> None:
    storage = f"pve-storage-9.0/pve1/local:{NOW}:100:20"
    assert parse_rrd(f"{storage}\n\nnonsense\n{VM_9}\n\0").guests == (VM_ON_9,)


@pytest.mark.parametrize("length", range(0, len(VM_9), 7))
def test_a_line_that_was_cut_off_gives_no_wrong_number(length: int) -> None:
    """A memory of 42949 bytes out of 4294967296 would empty a node on paper."""
    assert parse_rrd(f"{NODE_9}\n{VM_9[:length]}") in (Statistics((NODE,)), Statistics((NODE,), (VM_ON_9,)))


@pytest.mark.parametrize(
    "line",
    [VM_9.replace("/101:", "/x:"), VM_9.replace(f":{NOW}:", ":U:"), NODE_9.replace("/pve1:", "/:"), NODE_9.replace("/pve1:", "/a/b:")],
)
def test_a_line_without_its_name_or_time_is_left_out(line: str) -> None:
    assert parse_rrd(line) == Statistics()


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_releases_the_later_sample_is_taken(order: int) -> None:
    """A guest that came from a PVE 8 node to a PVE 9 node is there twice for five minutes."""
    old = VM_8.replace(str(NOW), str(NOW - 200)).replace(":3600:", ":9999:")
    assert parse_rrd("\n".join([old, VM_9][::order])).guests == (VM_ON_9,)


def test_rows_are_sorted() -> None:
    lines = [VM_9.replace("/101:", f"/{vmid}:") for vmid in (1000, 9, 200)] + [NODE_9.replace("/pve1:", f"/{name}:") for name in "ca"]
    found = parse_rrd("\n".join(lines))
    assert ([guest.vmid for guest in found.guests], [node.name for node in found.nodes]) == ([9, 200, 1000], ["a", "c"])


@given(st.text())
def test_any_text_is_taken(text: str) -> None:
    parse_rrd(text)
    parse_rrd(f"pve-vm-9.0/{text}")
    parse_vmlist(text)
    parse_members(text)


# --- .vmlist -----------------------------------------------------------------------------------------------------------------------

VMLIST = (
    '{\n"version": 143,\n"ids": {\n"200": { "node": "pve2", "type": "lxc", "version": 18 },\n'
    '"101": { "node": "pve1", "type": "qemu", "version": 17 }}\n\n}\n'
)


def test_vmlist_says_where_guests_are() -> None:
    assert parse_vmlist(VMLIST) == (VmEntry(101, "pve1", GuestType.QEMU, 17), VmEntry(200, "pve2", GuestType.LXC, 18))


def test_a_cluster_without_guests_is_empty() -> None:
    assert parse_vmlist('{\n"version": 1\n\n}\n') == ()


@pytest.mark.parametrize("text", ["", VMLIST[:80], "[]", "{}", '{"version": 1, "ids": []}', "[" * 100_000])
def test_a_vmlist_that_was_cut_off_is_no_empty_cluster(text: str) -> None:
    assert parse_vmlist(text) is None


def test_entries_of_vmlist_that_make_no_sense_are_left_out() -> None:
    good = '"101": {"node": "pve1", "type": "qemu", "version": 1}'
    bad = (
        '"x": {"node": "pve1", "type": "qemu", "version": 1}, "102": {"node": "pve1", "type": "openvz", "version": 1}, '
        '"103": 4, "104": {"node": 3}'
    )
    assert parse_vmlist(f'{{"version": 1, "ids": {{{bad}, {good}}}}}') == (VmEntry(101, "pve1", GuestType.QEMU, 1),)


# --- .members ----------------------------------------------------------------------------------------------------------------------

MEMBERS = (
    '{\n"nodename": "pve1",\n"version": 6,\n"cluster": { "name": "c1", "version": 3, "nodes": 2, "quorate": 1 },\n"nodelist": {\n'
    '  "pve1": { "id": 1, "online": 1, "ip": "192.0.2.1"},\n  "pve2": { "id": 2, "online": 0}\n  }\n}\n'
)


def test_members_says_who_is_there() -> None:
    assert parse_members(MEMBERS) == Members("pve1", True, {"pve1": True, "pve2": False}, {"pve1": "192.0.2.1"})


def test_without_quorum_members_says_so() -> None:
    members = parse_members(MEMBERS.replace('"quorate": 1', '"quorate": 0'))
    assert members == Members("pve1", False, {"pve1": True, "pve2": False}, {"pve1": "192.0.2.1"})


def test_a_single_node_is_in_no_cluster() -> None:
    assert parse_members('{\n"nodename": "pve1",\n"version": 2\n}\n') == Members("pve1", None)


@pytest.mark.parametrize("text", ["", MEMBERS[:60], "{}", '{"nodename": 3}'])
def test_a_members_that_was_cut_off_is_none(text: str) -> None:
    assert parse_members(text) is None


def test_a_cluster_without_a_list_yet_has_no_nodes() -> None:
    assert parse_members('{"nodename": "pve1", "cluster": {"quorate": 1}}') == Members("pve1", True, {})

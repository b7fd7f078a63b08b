# SPDX-License-Identifier: GPL-3.0-or-later
"""In what PVE 8 and 9 differ, as far as the agent meets it: one table, to which the played cluster is held in each release."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.pve_server.client import PveServer, ct, vm

EARLY_8, LATE_8, NINE = "8.2.2", "8.4.14", "9.0.10"
RELEASES = (EARLY_8, LATE_8, NINE)
GUESTS = (vm(101, "pve1"), ct(102, "pve1"), vm(103, "pve2", status="stopped"), ct(104, "pve1", status="stopped"))
GROUPS = [{"group": "g", "nodes": "pve1:2,pve2"}]

RUNNING_VM, STOPPED_VM, CONTAINER = "/nodes/pve1/qemu/101/migrate", "/nodes/pve2/qemu/103/migrate", "/nodes/pve1/lxc/102/migrate"
STOPPED_CONTAINER = "/nodes/pve1/lxc/104/migrate"


def _status(method: str, path: str, **values: Any) -> Callable[[PveServer], Any]:
    return lambda pve: pve.api(method, path, values).status


def _said(method: str, path: str, **values: Any) -> Callable[[PveServer], Any]:
    return lambda pve: pve.api(method, path, values).reason


def _has(path: str, key: str) -> Callable[[PveServer], Any]:
    return lambda pve: key in pve.api("GET", path).data


def _refused(parameter: str, path: str, **values: Any) -> Callable[[PveServer], Any]:
    """Whether PVE says that it does not know the parameter."""
    return lambda pve: "schema does not allow" in pve.api("POST", path, values).errors.get(parameter, "")


def _row_has(key: str) -> Callable[[PveServer], Any]:
    return lambda pve: any(key in row for row in pve.api("GET", "/cluster/resources").data if row["id"] == "qemu/101")


class Difference(NamedTuple):
    """What is asked, and what early 8, late 8 and 9 answer; `source` says where PVE has it."""

    what: str
    ask: Callable[[PveServer], Any]
    early_8: Any
    late_8: Any
    nine: Any
    source: str

    def expected(self, release: str) -> Any:
        """What that release answers."""
        return dict(zip(RELEASES, (self.early_8, self.late_8, self.nine), strict=True))[release]


_CONNTRACK = {"target": "pve2", "online": 1, "with-conntrack-state": 1}
_ABSENT = f"Method 'GET {CONTAINER}' not implemented"
DIFFERENCES = (
    Difference(
        "a VM's connections: the parameter is unknown",
        _refused("with-conntrack-state", RUNNING_VM, **_CONNTRACK), True, True, False, "qemu-server src/PVE/API2/Qemu.pm, migrate_vm",
    ),
    Difference("a VM's connections: the request", _status("POST", RUNNING_VM, **_CONNTRACK), 400, 400, 200, "the same"),
    Difference(
        "the check of a container", _status("GET", CONTAINER), 501, 501, 200, "pve-container src/PVE/API2/LXC.pm, migrate_vm_precondition",
    ),
    Difference(
        "what is said where there is no such check",
        _said("GET", CONTAINER), _ABSENT, _ABSENT, "OK", "pve-http-server",
    ),
    Difference("HA rules", _status("GET", "/cluster/ha/rules"), 501, 501, 200, "pve-ha-manager src/PVE/API2/HA/Rules.pm"),
    Difference("HA groups", _status("GET", "/cluster/ha/groups"), 200, 200, 500, "pve-ha-manager src/PVE/API2/HA/Groups.pm"),
    Difference(
        "what is said of HA groups",
        _said("GET", "/cluster/ha/groups"), "OK", "OK", "cannot index groups: ha groups have been migrated to rules", "the same",
    ),
    Difference(
        "nodes of a running VM", _has(RUNNING_VM, "allowed_nodes"), False, True, True, "qemu-server commit 8aeaad24 of 2025-03-11",
    ),
    Difference("nodes of a stopped VM", _has(STOPPED_VM, "allowed_nodes"), True, True, True, "qemu-server src/PVE/API2/Qemu.pm"),
    Difference("mapped devices one by one", _has(RUNNING_VM, "mapped-resource-info"), False, True, True, "the same commit"),
    Difference("HA partners of a VM", _has(RUNNING_VM, "dependent-ha-resources"), False, False, True, "qemu-server src/PVE/API2/Qemu.pm"),
    Difference("whether connections can be kept", _has(RUNNING_VM, "has-dbus-vmstate"), False, False, True, "the same"),
    Difference("what the host spends for a VM", _row_has("memhost"), False, False, True, "qemu-server src/PVE/QemuServer.pm, vmstatus"),
    Difference("bulk actions", _status("GET", "/cluster/bulk-action"), 501, 501, 200, "pve-manager PVE/API2/Cluster/BulkAction.pm"),
    # what looks like a difference, and is none
    Difference(
        "a VM's storages are spelt as one word",
        _refused("target-storage", RUNNING_VM, target="pve2", online=1, **{"target-storage": "a:b"}), True, True, True, "qemu-server",
    ),
    Difference(
        "a container's with a dash",
        _refused("targetstorage", STOPPED_CONTAINER, target="pve2", targetstorage="a:b"), True, True, True, "pve-container",
    ),
)  # fmt: skip

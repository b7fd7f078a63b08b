# SPDX-License-Identifier: GPL-3.0-or-later
"""The played cluster does what the notes on PVE's sources say of the real one."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.pve_server.client import (
    GIB,
    MIGRATE_CT,
    MIGRATE_VM,
    ROOT,
    TOKEN_ID,
    TOKEN_SECRET,
    Answer,
    PveServer,
    ServerError,
    cluster,
    ct,
    vm,
)
from tests.pve_server.releases import DIFFERENCES, GROUPS, GUESTS, NINE, RELEASES

FAST = {"duration_s": 0.05}
NODES = ["pve1", "pve2", "pve3"]


@pytest.fixture(scope="module")
def server() -> Iterator[PveServer]:
    with PveServer(cluster(NODES), listen=["pve1=127.0.0.1:0", "pve2=127.0.0.1:0", "pve3=[::1]:0"]) as pve:
        yield pve
        assert pve.stderr() == "", "nothing a test provokes may end in a traceback"


@pytest.fixture
def pve(server: PveServer) -> PveServer:
    """A three-node cluster with a VM, a container and a stopped VM."""
    server.load(three_nodes())
    return server


def three_nodes(*more: dict[str, Any], **values: Any) -> dict[str, Any]:
    guests = [
        vm(101, "pve1", cpu_cores=1.0, mem_bytes=2 * GIB, memhost_bytes=3 * GIB),
        ct(102, "pve1"),
        vm(103, "pve2", status="stopped"),
        *more,
    ]
    return cluster(NODES, guests, **({"migration": FAST} | values))


def migrate(pve: PveServer, vmid: int, source: str, target: str, **values: Any) -> Answer:
    return pve.api("POST", f"/nodes/{source}/qemu/{vmid}/migrate", {"target": target, "online": 1} | values)


def resource(pve: PveServer, name: str) -> dict[str, Any]:
    """The row of /cluster/resources with this id: node/pve1, qemu/101."""
    rows = {row["id"]: row for row in pve.api("GET", "/cluster/resources").data}
    return dict(rows[name])


def cpu_s(pid: int) -> float:
    """The processor time that a process has taken: on a busy machine it says more than a clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:13]) / os.sysconf("SC_CLK_TCK")


def is_running(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- life of the process


def test_it_starts_fast_and_ends_when_its_parent_is_killed() -> None:
    program = (
        "import time; from tests.pve_server.client import *\n"
        "pve = PveServer(cluster(['pve1'])); pve.start()\n"
        "print(pve.pid, flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert cpu_s(pid) < 5
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline, "the server outlived the test"
        time.sleep(0.02)


def test_a_misspelt_state_is_refused_with_the_key() -> None:
    with (
        pytest.raises(ServerError, match=r"guest 101: unknown cpu_core; known: .*cpu_cores"),
        PveServer(cluster(["pve1"], [vm(101, "pve1", cpu_core=1)])),
    ):
        pass


def test_unknown_control_actions_and_arguments_are_named(pve: PveServer) -> None:
    with pytest.raises(ServerError, match="no action 'explode'"):
        pve.do("explode")
    with pytest.raises(ServerError, match="no guest 999"):
        pve.set_tags(999, "a")


def test_certificates_are_those_of_the_nodes(pve: PveServer) -> None:
    for endpoint in pve.endpoints:
        context = ssl.create_default_context(cafile=pve.ca_file)
        with (
            socket.create_connection((endpoint.host, endpoint.port)) as raw,
            context.wrap_socket(raw, server_hostname=endpoint.node) as tls,
        ):
            alternatives = (tls.getpeercert() or {})["subjectAltName"]
        names = [value for kind, value in alternatives if kind == "DNS"]
        assert names == ["localhost", endpoint.node, f"{endpoint.node}.example.org"]
    assert requests.get(f"{pve.url}/api2/json/version", verify=pve.ca_file, timeout=60).status_code == 401


def test_every_endpoint_is_its_own_node(pve: PveServer) -> None:
    for index, node in enumerate(NODES):
        rows = pve.api("GET", "/cluster/status", endpoint=index).data
        assert [row["name"] for row in rows if row.get("local")] == [node]


def test_an_endpoint_goes_away_with_its_connections_and_comes_back(pve: PveServer) -> None:
    session = requests.Session()
    endpoint = pve.endpoints[1]
    url = f"https://{endpoint.host}:{endpoint.port}/api2/json/version"
    headers = {"Authorization": f"PVEAPIToken={TOKEN_ID}={TOKEN_SECRET}"}
    assert session.get(url, headers=headers, verify=pve.ca_file, timeout=60).ok
    pve.endpoint(1, up=False)
    with pytest.raises(requests.ConnectionError):
        session.get(url, headers=headers, verify=pve.ca_file, timeout=60)
    assert pve.api("GET", "/version").status == 200
    pve.endpoint(1, up=True)
    assert session.get(url, headers=headers, verify=pve.ca_file, timeout=60).ok
    session.close()


# ---- reading


def test_node_load_is_what_its_guests_use(pve: PveServer) -> None:
    row = resource(pve, "node/pve1")
    assert row["cpu"] == pytest.approx(1 / 16)
    assert row["mem"] == 3 * GIB + 2 * GIB  # the VM as its host sees it, the container as it is
    assert pve.api("GET", "/nodes").data[0]["mem"] == row["mem"]
    status = pve.api("GET", "/nodes/pve1/status").data
    assert status["memory"]["used"] == row["mem"]
    assert status["cpuinfo"]["cpus"] == 16
    assert status["pveversion"].startswith("pve-manager/9.")
    pve.set_load(101, cpu_cores=2.0)
    assert resource(pve, "qemu/101")["cpu"] == pytest.approx(2 / 2)
    assert resource(pve, "node/pve1")["cpu"] == pytest.approx(2 / 16)
    pve.node_load("pve1", cpu_fraction=0.9)
    assert resource(pve, "node/pve1")["cpu"] == 0.9


def test_containers_have_their_load_in_the_resources_and_no_memhost(pve: PveServer) -> None:
    pve.set_load(102, cpu_cores=0.5, mem_bytes=GIB)
    row = resource(pve, "lxc/102")
    assert (row["cpu"], row["mem"], row["status"]) == (0.25, GIB, "running")
    assert "memhost" not in row
    assert "memhost" in resource(pve, "qemu/101")


def test_numbers_are_as_old_as_the_last_round_but_places_and_locks_are_not(pve: PveServer) -> None:
    pve.load(three_nodes(pvestatd_s=None))
    pve.set_load(101, cpu_cores=2.0)
    assert resource(pve, "qemu/101")["cpu"] == 0.5
    pve.start_guest(103)
    assert resource(pve, "qemu/103")["status"] == "stopped"
    pve.set_tags(101, "plb_ignore")
    assert resource(pve, "qemu/101")["tags"] == "plb_ignore"
    upid = migrate(pve, 101, "pve1", "pve3").data
    assert pve.wait_task(upid) == "OK"
    row = resource(pve, "qemu/101")
    assert row["node"] == "pve3"
    assert row["uptime"] >= 86400, "the new place with the numbers of the old process"
    pve.sample()
    row = resource(pve, "qemu/101")
    assert row["uptime"] < 60
    assert row["cpu"] == 0, "a new process shows no CPU in its first round"
    assert resource(pve, "qemu/103")["status"] == "running"
    pve.sample()
    assert resource(pve, "qemu/101")["cpu"] == 1.0


def test_a_dead_node_is_offline_at_once_and_its_guests_look_alive(pve: PveServer) -> None:
    pve.node_online("pve1", False)
    assert resource(pve, "node/pve1")["status"] == "offline"
    assert "cpu" not in resource(pve, "node/pve1")
    assert resource(pve, "qemu/101")["status"] == "running"
    assert pve.api("GET", "/nodes/pve1/status").status == 595
    pve.settings(dead_known_s=0)
    assert resource(pve, "qemu/101")["status"] == "unknown"
    pve.node_online("pve1", True, rebooted=True)
    assert resource(pve, "qemu/101")["status"] == "stopped"
    assert resource(pve, "node/pve1")["uptime"] < 60


def test_odd_rows_can_be_played(pve: PveServer) -> None:
    pve.row("node/pve2", {"cpu": None}, drop=["mem"])
    row = resource(pve, "node/pve2")
    assert row["cpu"] is None
    assert "mem" not in row
    pve.settings(numbers_as_strings=True)
    assert resource(pve, "qemu/101")["maxmem"] == str(4 * GIB)


def test_a_guest_can_be_hidden_from_the_token(pve: PveServer) -> None:
    pve.hide_guest(101)
    assert "qemu/101" not in {row["id"] for row in pve.api("GET", "/cluster/resources").data}
    answer = migrate(pve, 101, "pve1", "pve2")
    assert (answer.status, answer.reason) == (403, "Permission check failed (/vms/101, VM.Migrate)")


def test_storages_have_sizes_of_their_own_on_each_node(pve: PveServer) -> None:
    lvm = {
        "type": "lvmthin",
        "total_bytes": 10 * GIB,
        "used_bytes": GIB,
        "per_node": {"pve2": {"used_bytes": 9 * GIB}},
        "nodes": ["pve1", "pve2"],
    }
    pve.load(three_nodes(storages={"local-lvm": lvm}))
    rows = {row["node"]: row for row in pve.api("GET", "/cluster/resources", {"type": "storage"}).data}
    assert {node: row["disk"] for node, row in rows.items()} == {"pve1": GIB, "pve2": 9 * GIB}


def test_wrong_parameters_and_tokens_get_pves_words(pve: PveServer) -> None:
    answer = pve.api("GET", "/cluster/resources", {"type": "guests"})
    assert answer.status == 400
    assert "type" in answer.errors
    answer = migrate(pve, 101, "pve1", "pve2", online="True")
    assert answer.status == 400
    assert answer.errors == {"online": "type check ('boolean') failed - got 'True'"}
    answer = migrate(pve, 101, "pve1", "pve2", targetstorages="a")
    assert "schema does not allow additional properties" in answer.errors["targetstorages"]
    assert pve.api("GET", "/version", token=f"{TOKEN_ID}=wrong").status == 401


def test_a_separated_token_has_only_what_its_user_has_too(pve: PveServer) -> None:
    state = three_nodes()
    state["acl"] = [line for line in state["acl"] if line["user"] == TOKEN_ID]
    pve.load(state)
    assert pve.api("GET", "/access/permissions").data == {}
    assert pve.api("GET", "/cluster/ha/rules").status == 403


def test_a_thousand_guests_are_no_burden(pve: PveServer) -> None:
    pve.load(cluster([f"pve{number}" for number in range(8)], [vm(1000 + n, f"pve{n % 8}", pool=f"p{n % 5}") for n in range(3000)]))
    before_s = cpu_s(pve.pid)
    rows = pve.api("GET", "/cluster/resources").data
    assert len(rows) == 3000 + 8 + 3 * 8
    assert cpu_s(pve.pid) - before_s < 1.0


# ---- migrating a VM


def test_a_live_migration_takes_its_time_and_the_lock_outlasts_the_move(pve: PveServer) -> None:
    pve.migration(duration_s=None)
    upid = migrate(pve, 101, "pve1", "pve2").data
    assert upid.split(":")[5:8] == ["qmigrate", "101", TOKEN_ID]
    assert resource(pve, "qemu/101")["lock"] == "migrate"
    assert pve.where(101) == "pve1"
    assert resource(pve, "node/pve2")["mem"] == 3 * GIB, "its memory is on both nodes"
    assert migrate(pve, 101, "pve1", "pve3").reason == "VM is locked (migrate)"
    assert pve.api("GET", f"/nodes/pve1/tasks/{upid}/status").data["status"] == "running"
    pve.switch_migration(101)
    pve.wait_event("guest-moved", vmid=101)
    row = resource(pve, "qemu/101")
    assert (row["node"], row["lock"]) == ("pve2", "migrate")
    assert row["uptime"] < 60
    pve.finish_migration(101)
    assert pve.wait_task(upid) == "OK"
    assert pve.guest(101) | {"tags": None} == {"node": "pve2", "type": "qemu", "status": "running", "lock": None, "ha": None, "tags": None}
    assert resource(pve, "node/pve1")["mem"] == 2 * GIB
    status = pve.api("GET", f"/nodes/pve1/tasks/{upid}/status").data
    assert (status["status"], status["exitstatus"]) == ("stopped", "OK")


def test_a_live_migration_leaves_a_qmstart_on_its_target(pve: PveServer) -> None:
    pve.wait_task(migrate(pve, 101, "pve1", "pve2").data)
    lines = [(entry["node"], entry["user"], entry["msg"].split(" UPID")[0]) for entry in reversed(pve.api("GET", "/cluster/log").data)]
    qmstart = [("pve2", "root@pam", "starting task"), ("pve2", "root@pam", "end task")]
    assert lines == [("pve1", TOKEN_ID, "starting task"), *qmstart, ("pve1", TOKEN_ID, "end task")]


@pytest.mark.parametrize(
    ("target", "status", "reason"),
    [
        ("pve1", 400, "Parameter verification failed."),
        ("pve9", 500, "no such cluster node 'pve9'"),
    ],
)
def test_impossible_targets_are_refused_at_once(pve: PveServer, target: str, status: int, reason: str) -> None:
    answer = migrate(pve, 101, "pve1", target)
    assert (answer.status, answer.reason) == (status, reason)
    assert pve.tasks() == []


def test_what_pve_refuses_before_there_is_a_task(pve: PveServer) -> None:
    assert migrate(pve, 101, "pve1", "pve1").errors == {"target": "target is local node."}
    assert migrate(pve, 101, "pve1", "pve2", online=0).reason == "can't migrate running VM without --online"
    assert migrate(pve, 101, "pve2", "pve3").reason == "Configuration file 'nodes/pve2/qemu-server/101.conf' does not exist"
    assert migrate(pve, 101, "pve1", "pve2", migration_type="insecure").errors == {"migration_type": "Only root may use this option."}
    pve.lock(101, "backup")
    assert migrate(pve, 101, "pve1", "pve2").reason == "VM is locked (backup)"
    assert pve.api("GET", "/nodes/pve1/qemu/101/migrate").reason == "VM is locked (backup)"
    pve.unlock(101)
    pve.quorum(False)
    assert migrate(pve, 101, "pve1", "pve2").reason == "cluster not ready - no quorum?"
    assert pve.api("GET", "/cluster/resources").status == 200
    assert pve.tasks() == []
    assert pve.where(101) == "pve1"


def test_without_quorum_no_write_passes_not_even_one_that_is_not_played(pve: PveServer) -> None:
    pve.load(three_nodes(acl=None, privsep=[]))
    pve.quorum(False)
    answer = pve.api("POST", "/cluster/ha/resources", {"sid": "vm:101"})
    assert answer.reason == "cluster not ready - no quorum?"
    pve.quorum(True)
    assert pve.api("POST", "/cluster/ha/resources", {"sid": "vm:101"}).status == 200
    assert pve.made_up() == {"POST /cluster/ha/resources"}, "and it says that this was invented"


def test_a_stopped_vm_moves_offline(pve: PveServer) -> None:
    upid = pve.api("POST", "/nodes/pve2/qemu/103/migrate", {"target": "pve3"}).data
    assert pve.wait_task(upid) == "OK"
    assert pve.where(103) == "pve3"
    assert pve.tasks("qmstart") == []
    assert pve.guest(103)["status"] == "stopped"


def test_a_dead_source_answers_595_and_a_dead_target_fails_in_the_task(pve: PveServer) -> None:
    pve.node_online("pve2", False)
    upid = migrate(pve, 101, "pve1", "pve2").data
    assert pve.wait_task(upid) == "migration aborted"
    assert pve.where(101) == "pve1"
    assert "Can't connect to destination address" in pve.tasks(vmid=101)[0]["log"][1]
    pve.node_online("pve1", False)
    assert migrate(pve, 101, "pve1", "pve3").status == 595


def test_a_source_that_dies_leaves_the_lock_and_no_last_line(pve: PveServer) -> None:
    pve.migration(duration_s=None)
    upid = migrate(pve, 101, "pve1", "pve2").data
    pve.node_online("pve1", False)
    pve.node_online("pve1", True)
    assert pve.api("GET", f"/nodes/pve1/tasks/{upid}/status").data["exitstatus"] == "unexpected status"
    assert pve.guest(101)["lock"] == "migrate"
    assert pve.where(101) == "pve1"


@pytest.mark.parametrize(
    ("guest", "why"),
    [
        ({"local_resources": ["hostpci0", "usb1"]}, "can't migrate VM which uses local devices: hostpci0, usb1"),
        ({"local_disks": ["local-lvm:vm-101-disk-0"]}, "can't live migrate attached local disks without with-local-disks option"),
        (
            {"config": {"scsi0": "local-lvm:vm-101-disk-0,size=8G"}},
            "can't live migrate attached local disks without with-local-disks option",
        ),
        ({"config": {"ide2": "local:iso/x.iso,media=cdrom"}}, "local cdrom image"),
        (
            {"mapped_resources": {"hostpci0": {"name": "gpu", "nodes": ["pve3"]}}},
            "can't migrate to 'pve2': missing mapped devices hostpci0",
        ),
    ],
)
def test_what_fails_in_the_task_is_in_its_log(pve: PveServer, guest: dict[str, Any], why: str) -> None:
    pve.set_guest(101, **guest)
    assert pve.wait_task(migrate(pve, 101, "pve1", "pve2").data) == "migration aborted"
    assert pve.tasks("qmigrate")[0]["log"][1].endswith(why)
    assert pve.guest(101)["lock"] is None
    assert pve.where(101) == "pve1"


def test_local_disks_move_when_asked_and_only_where_their_storage_is(pve: PveServer) -> None:
    pve.load(three_nodes(storages={"fast": {"nodes": ["pve1", "pve2"]}}))
    pve.set_guest(101, config={"scsi0": "fast:vm-101-disk-0,size=8G"})
    preconditions = pve.api("GET", "/nodes/pve1/qemu/101/migrate").data
    assert preconditions["local_disks"][0] == {
        "volid": "fast:vm-101-disk-0",
        "size": 8 * GIB,
        "cdrom": 0,
        "is_unused": 0,
        "drivename": "scsi0",
    }
    assert preconditions["allowed_nodes"] == ["pve2"]
    assert preconditions["not_allowed_nodes"] == {"pve3": {"unavailable_storages": ["fast"]}}
    options = {"with-local-disks": 1}
    assert migrate(pve, 101, "pve1", "pve3", **options).reason == "storage 'fast' is not available on node 'pve3'"
    assert pve.wait_task(migrate(pve, 101, "pve1", "pve2", **options).data) == "OK"


def test_a_replicated_vm_goes_live_to_its_replica_alone(pve: PveServer) -> None:
    pve.set_guest(101, replication=["pve2"])
    assert "not a replication target" in migrate(pve, 101, "pve1", "pve3").reason
    assert pve.wait_task(migrate(pve, 101, "pve1", "pve2").data) == "OK"


def test_allowed_nodes_do_not_care_whether_a_node_lives(pve: PveServer) -> None:
    pve.node_online("pve3", False)
    assert pve.api("GET", "/nodes/pve1/qemu/101/migrate").data["allowed_nodes"] == ["pve2", "pve3"]
    assert pve.api("GET", "/nodes/pve1/lxc/102/migrate").data["allowed-nodes"] == ["pve2", "pve3"]


def test_failing_half_way_and_failing_after_the_move_are_two_things(pve: PveServer) -> None:
    pve.fail_migration(101, detail="no", early=True)
    assert pve.wait_task(migrate(pve, 101, "pve1", "pve2").data) == "migration aborted"
    pve.fail_migration(101, detail="no")
    assert pve.wait_task(migrate(pve, 101, "pve1", "pve2").data) == "migration problems"
    assert pve.guest(101)["node"] == "pve1"
    assert pve.guest(101)["lock"] is None
    pve.fail_migration(101, "migration problems", arrives=True, leave_lock=True)
    assert pve.wait_task(migrate(pve, 101, "pve1", "pve2").data) == "migration problems"
    assert pve.guest(101)["node"] == "pve2"
    assert pve.guest(101)["lock"] == "migrate"
    pve.unlock(101)
    pve.fail_migration(101, "WARNINGS: 1", arrives=True)
    assert pve.wait_task(migrate(pve, 101, "pve2", "pve1").data) == "WARNINGS: 1"
    assert pve.guest(101)["node"] == "pve1"
    assert pve.guest(101)["lock"] is None


def test_a_migration_can_be_cancelled(pve: PveServer) -> None:
    pve.migration(duration_s=None)
    upid = migrate(pve, 101, "pve1", "pve2").data
    assert pve.api("DELETE", f"/nodes/pve1/tasks/{upid}").status == 200
    assert pve.wait_task(upid) == "migration problems"
    assert any("interrupted by signal" in row["t"] for row in pve.api("GET", f"/nodes/pve1/tasks/{upid}/log").data)
    assert pve.guest(101)["lock"] is None
    assert pve.where(101) == "pve1"


def test_the_time_can_depend_on_the_memory(pve: PveServer) -> None:
    pve.migration(duration_s=0.0, bytes_per_s=30 * GIB)
    began = time.monotonic()
    pve.wait_task(migrate(pve, 101, "pve1", "pve2").data)
    assert 0.1 <= time.monotonic() - began < 30.0


# ---- containers


def test_a_container_restarts_when_it_moves(pve: PveServer) -> None:
    pve.migration(duration_s=None)
    path = "/nodes/pve1/lxc/102/migrate"
    assert pve.api("POST", path, {"target": "pve2"}).reason == "can't migrate running container without --online or --restart"
    assert "targetstorage" in pve.api("POST", path, {"target": "pve2", "restart": 1, "targetstorage": "ceph"}).errors
    upid = pve.api("POST", path, {"target": "pve2", "restart": 1, "target-storage": "ceph"}).data
    assert upid.split(":")[5] == "vzmigrate"
    assert pve.guest(102)["status"] == "stopped"
    assert pve.guest(102)["lock"] == "migrate"
    pve.finish_migration(102)
    assert pve.wait_task(upid) == "OK"
    assert pve.guest(102)["node"] == "pve2"
    assert pve.guest(102)["status"] == "running"


def test_a_container_never_moves_live(pve: PveServer) -> None:
    upid = pve.api("POST", "/nodes/pve1/lxc/102/migrate", {"target": "pve2", "online": 1}).data
    assert pve.wait_task(upid) == "migration aborted"
    assert pve.guest(102)["status"] == "running"
    assert pve.where(102) == "pve1"


def test_a_container_that_fails_to_move_runs_again_at_home_and_one_that_fails_to_start_does_not(pve: PveServer) -> None:
    restart = {"target": "pve2", "restart": 1}
    pve.fail_migration(102)
    assert pve.wait_task(pve.api("POST", "/nodes/pve1/lxc/102/migrate", restart).data) == "migration aborted"
    assert pve.guest(102)["node"] == "pve1"
    assert pve.guest(102)["status"] == "running"
    pve.fail_migration(102, starts=False)
    assert pve.wait_task(pve.api("POST", "/nodes/pve1/lxc/102/migrate", restart).data) == "migration problems"
    assert pve.guest(102)["node"] == "pve2"
    assert pve.guest(102)["status"] == "stopped"


# ---- releases


@pytest.mark.parametrize("release", RELEASES)
def test_each_release_answers_as_the_table_of_differences_says(pve: PveServer, release: str) -> None:
    ha = {"groups": GROUPS} if release != NINE else {}
    for difference in DIFFERENCES:
        pve.load(cluster({name: {"version": release} for name in NODES}, GUESTS, migration=FAST, ha=ha))
        assert difference.ask(pve) == difference.expected(release), difference.what


def test_pve_8_moves_a_vm_without_what_came_with_9(pve: PveServer) -> None:
    pve.load(three_nodes(pve="8", ha={"groups": GROUPS}))
    assert pve.api("GET", "/cluster/ha/groups").data[0]["group"] == "g"
    assert pve.api("GET", "/version").data["release"] == "8.2"
    running = pve.api("GET", "/nodes/pve1/qemu/101/migrate").data
    assert running == {"running": 1, "local_disks": [], "local_resources": [], "mapped-resources": []}, (
        "no allowed_nodes, which forbids nothing"
    )
    assert pve.api("GET", "/nodes/pve2/qemu/103/migrate").data["allowed_nodes"] == ["pve1", "pve3"]
    assert pve.wait_task(migrate(pve, 101, "pve1", "pve2").data) == "OK"


def test_in_a_mixed_cluster_each_node_speaks_its_own_release(pve: PveServer) -> None:
    state = three_nodes(ct(104, "pve2"))
    state["nodes"]["pve2"]["version"] = "8.4.14"
    pve.load(state)
    assert pve.api("GET", "/nodes/pve1/lxc/102/migrate").status == 200
    assert pve.api("GET", "/nodes/pve2/lxc/104/migrate").status == 501
    assert pve.api("GET", "/nodes/pve2/version").data["version"] == "8.4.14"
    assert pve.api("GET", "/version", endpoint=1).data["release"] == "8.4"


# ---- HA


def managed(*more: dict[str, Any], **ha: Any) -> dict[str, Any]:
    return three_nodes(vm(110, "pve1", ha="started"), *more, ha={"delay_s": 0.02} | ha)


def test_an_ha_guest_moves_later_and_by_another_task(pve: PveServer) -> None:
    pve.load(managed())
    upid = migrate(pve, 110, "pve1", "pve2").data
    assert upid.split(":")[5] == "hamigrate"
    assert pve.wait_task(upid) == "OK"
    assert pve.where(110) == "pve1", "OK means queued"
    pve.wait_event("ha-done", sid="vm:110", node="pve2")
    assert [(task["type"], task["user"]) for task in pve.tasks("hamigrate", "qmigrate")] == [
        ("hamigrate", TOKEN_ID),
        ("qmigrate", "root@pam"),
    ]
    service = pve.api("GET", "/cluster/ha/status/manager_status").data["manager_status"]["service_status"]["vm:110"]
    assert (service["state"], service["node"]) == ("started", "pve2")


def test_an_ha_container_is_shut_down_moved_and_started_by_the_ha_manager(pve: PveServer) -> None:
    pve.load(managed(ct(112, "pve1", ha="started")))
    upid = pve.api("POST", "/nodes/pve1/lxc/112/migrate", {"target": "pve2", "restart": 1}).data
    assert pve.wait_task(upid) == "OK"
    pve.wait_event("ha-done", sid="ct:112", node="pve2")
    told = [(task["type"], task["node"], task["user"]) for task in pve.tasks(vmid=112)]
    assert told == [
        ("hamigrate", "pve1", TOKEN_ID),
        ("vzshutdown", "pve1", "root@pam"),
        ("vzmigrate", "pve1", "root@pam"),
        ("vzstart", "pve2", "root@pam"),
    ]
    assert pve.guest(112)["status"] == "running"


def test_a_request_for_a_service_in_its_error_state_fails(pve: PveServer) -> None:
    pve.load(managed())
    pve.ha_service("vm:110", state="error")
    assert pve.wait_task(migrate(pve, 110, "pve1", "pve2").data) == "service 'vm:110' in error state, must be disabled and fixed first"
    assert pve.tasks("qmigrate") == []


@pytest.mark.parametrize(("resource", "end"), [({}, "pve1"), ({"failback": 0}, "pve2")], ids=["failback", "no-failback"])
def test_the_crm_brings_a_service_back_to_a_better_node(pve: PveServer, resource: dict[str, Any], end: str) -> None:
    rule = {"rule": "home", "type": "node-affinity", "nodes": "pve1:2,pve2:1", "resources": "vm:110"}
    pve.load(managed(rules=[rule], resources={"vm:110": resource}))
    migrate(pve, 110, "pve1", "pve2")
    pve.wait_event("ha-done", sid="vm:110", node="pve2")
    if end == "pve1":
        pve.wait_event("ha-done", sid="vm:110", node="pve1")
    assert pve.where(110) == end


def test_the_crm_shows_a_migration_under_way(pve: PveServer) -> None:
    pve.load(managed())
    pve.migration(duration_s=None)
    migrate(pve, 110, "pve1", "pve2")
    pve.wait_event("lock", vmid=110)
    service = pve.api("GET", "/cluster/ha/status/manager_status").data["manager_status"]["service_status"]["vm:110"]
    assert (service["state"], service["target"], service["node"]) == ("migrate", "pve2", "pve1")


def test_ha_requests_may_come_to_nothing(pve: PveServer) -> None:
    rule = {"rule": "apart", "type": "resource-affinity", "affinity": "negative", "resources": "vm:110,vm:111"}
    pve.load(managed(vm(111, "pve2", ha="started"), rules=[rule]))
    blocking = pve.api("GET", "/nodes/pve1/qemu/110/migrate").data["not_allowed_nodes"]
    assert blocking == {"pve2": {"blocking-ha-resources": [{"sid": "vm:111", "cause": "resource-affinity"}]}}
    assert pve.wait_task(migrate(pve, 110, "pve1", "pve2").data) == "OK"
    assert "negative affinity" in pve.wait_event("ha-reject", sid="vm:110")["detail"]
    pve.ha(acts=False)
    assert pve.wait_task(migrate(pve, 110, "pve1", "pve3").data) == "OK"
    assert pve.where(110) == "pve1"
    assert pve.tasks("qmigrate") == []


def test_positive_partners_come_along(pve: PveServer) -> None:
    rule = {"rule": "together", "type": "resource-affinity", "affinity": "positive", "resources": "vm:110,ct:112"}
    pve.load(managed(ct(112, "pve1", ha="started"), rules=[rule]))
    assert pve.api("GET", "/nodes/pve1/qemu/110/migrate").data["dependent-ha-resources"] == ["ct:112"]
    migrate(pve, 110, "pve1", "pve2")
    pve.wait_until(lambda: pve.where(110) == pve.where(112) == "pve2")


def test_a_move_against_a_strict_rule_is_taken_and_undone(pve: PveServer) -> None:
    rule = {"rule": "stay", "type": "node-affinity", "strict": 1, "nodes": "pve1:2", "resources": "vm:110"}
    pve.load(managed(rules=[rule]))
    assert "pve2" in pve.api("GET", "/nodes/pve1/qemu/110/migrate").data["allowed_nodes"]
    migrate(pve, 110, "pve1", "pve2")
    pve.wait_event("guest-moved", vmid=110, target="pve2")
    pve.wait_event("guest-moved", vmid=110, target="pve1")


def test_ha_maintenance_empties_a_node_of_ha_guests_and_brings_them_back(pve: PveServer) -> None:
    pve.load(managed())
    pve.ha_maintenance("pve1", True)
    assert pve.api("GET", "/cluster/ha/status/manager_status").data["manager_status"]["node_request"] == {"pve1": {"maintenance": 1}}
    pve.wait_until(lambda: pve.where(110) != "pve1")
    answer = pve.api("GET", "/cluster/ha/status/manager_status").data
    assert answer["manager_status"]["node_status"]["pve1"] == "maintenance"
    assert answer["lrm_status"]["pve1"]["mode"] == "maintenance"
    assert answer["manager_status"]["service_status"]["vm:110"]["maintenance_node"] == "pve1"
    assert resource(pve, "node/pve1")["hastate"] == "maintenance"
    rows = {row["id"]: row for row in pve.api("GET", "/cluster/ha/status/current").data}
    assert "maintenance mode" in rows["lrm:pve1"]["status"]
    assert pve.where(101) == "pve1", "what HA does not manage stays"
    pve.ha_maintenance("pve1", False)
    pve.wait_until(lambda: pve.where(110) == "pve1" and "maintenance_node" not in pve.state()["ha"]["service_status"]["vm:110"])


def test_a_cluster_that_never_used_ha_has_an_empty_manager_status(pve: PveServer) -> None:
    assert pve.api("GET", "/cluster/ha/status/manager_status").data["manager_status"] == {}
    assert pve.api("GET", "/cluster/ha/resources").data == []
    assert "hastate" not in resource(pve, "node/pve1")


def test_options_and_ha_resources_are_as_given(pve: PveServer) -> None:
    crs = {"ha": "dynamic", "ha-auto-rebalance": 1}
    pve.load(managed(resources={"vm:110": {"auto-rebalance": 0}, "vm:103": {"state": "ignored"}}) | {"options": {"crs": crs}})
    assert pve.api("GET", "/cluster/options").data["crs"] == crs
    rows = {row["sid"]: row for row in pve.api("GET", "/cluster/ha/resources").data}
    assert rows["vm:110"]["auto-rebalance"] == 0
    assert rows["vm:103"]["state"] == "ignored"
    assert "hastate" not in resource(pve, "qemu/103")
    assert pve.wait_task(pve.api("POST", "/nodes/pve2/qemu/103/migrate", {"target": "pve3"}).data) == "OK"
    assert pve.where(103) == "pve3", "an ignored resource moves like any other guest"


# ---- tasks and the log


def test_task_lists_filter_as_pve_does(pve: PveServer) -> None:
    done = migrate(pve, 101, "pve1", "pve2").data
    pve.wait_task(done)
    running = pve.task("pve1", "vzdump", user="root@pam")

    def listed(**values: Any) -> list[str]:
        return [row["upid"] for row in pve.api("GET", "/nodes/pve1/tasks", values).data]

    assert listed() == [done], "the archive has only what has ended"
    assert listed(source="active") == [running]
    assert set(listed(source="all")) == {done, running}
    assert listed(source="all", typefilter="vzdump") == [running]
    assert listed(vmid=101) == [done]
    assert listed(vmid=102) == []
    assert listed(errors=1) == []
    assert listed(statusfilter="ok") == [done]
    assert listed(userfilter="root") == []
    assert listed(since=int(time.time()) + 60) == []
    pve.end_task(running, "job errors")
    assert listed(errors=1) == [running]


def test_a_task_that_never_was_is_refused(pve: PveServer) -> None:
    upid = "UPID:pve1:0002B8A4:00C1F3D2:69527E40:qmigrate:100:root@pam:"
    assert pve.api("GET", f"/nodes/pve1/tasks/{upid}/status").errors == {"upid": "no such task"}
    assert pve.api("GET", "/nodes/pve1/tasks/UPID:x/log").errors == {"upid": "unable to parse worker upid"}
    assert pve.api("DELETE", f"/nodes/pve2/tasks/{upid}").status == 400


def test_the_clusters_task_list_has_running_and_finished_ones_of_living_nodes(pve: PveServer) -> None:
    running = pve.task("pve1", "vzdump")
    other = pve.task("pve2", "startall")
    rows = {row["upid"]: row for row in pve.api("GET", "/cluster/tasks").data}
    assert set(rows) == {running, other}
    assert "status" not in rows[running]
    assert "endtime" not in rows[running]
    pve.end_task(running)
    assert {row["upid"]: row.get("status") for row in pve.api("GET", "/cluster/tasks").data}[running] == "OK"
    pve.node_online("pve2", False)
    assert other not in {row["upid"] for row in pve.api("GET", "/cluster/tasks").data}


def test_a_token_without_audit_sees_only_its_own_tasks_and_lines(pve: PveServer) -> None:
    state = three_nodes()
    state["acl"] = [{"user": line["user"], "path": "/", "privs": ["VM.Audit", "VM.Migrate"]} for line in state["acl"]]
    pve.load(state)
    pve.task("pve1", "vzdump")
    own = migrate(pve, 101, "pve1", "pve2").data
    pve.wait_task(own)
    assert [row["upid"] for row in pve.api("GET", "/cluster/tasks").data] == [own]
    assert {entry["user"] for entry in pve.api("GET", "/cluster/log").data} == {TOKEN_ID}
    assert "cpu" not in resource(pve, "node/pve1")


def test_a_guest_can_change_in_all_it_is(pve: PveServer) -> None:
    pve.set_guest(101, maxmem_bytes=8 * GIB, config={"cpu": "host", "cores": None})
    config = pve.api("GET", "/nodes/pve1/qemu/101/config").data
    assert config["memory"] == "8192"
    assert config["cpu"] == "host"
    assert "cores" not in config
    pve.set_status(101, "paused")
    assert resource(pve, "qemu/101")["status"] == "paused"
    pve.move_guest(101, "pve3")
    assert pve.where(101) == "pve3"
    assert pve.tasks() == []


def test_starts_and_stops_of_others_are_tasks_and_those_from_inside_are_not(pve: PveServer) -> None:
    pve.start_guest(103)
    pve.stop_guest(101)
    pve.stop_guest(102, silent=True)
    assert [task["type"] for task in pve.tasks()] == ["qmstart", "qmstop"]
    assert pve.guest(102)["status"] == "stopped"
    pve.add_guest(vm(120, "pve3"))
    assert resource(pve, "qemu/120")["uptime"] < 60
    pve.remove_guest(120)
    pve.log("pve1", "successful auth for user 'root@pam'", tag="pvedaemon")
    assert pve.api("GET", "/cluster/log", {"max": 1}).data[0]["msg"].startswith("successful auth")


def test_a_tasks_end_can_be_bad_or_unlogged(pve: PveServer) -> None:
    pve.load(three_nodes(acl=None, privsep=[]))
    pve.fail_task("qmstart", "start failed: out of memory", vmid=103)
    pve.do("drop_end_lines")
    upid = pve.api("POST", "/nodes/pve2/qemu/103/status/start").data
    assert pve.wait_task(upid) == "start failed: out of memory"
    assert pve.guest(103)["status"] == "stopped"
    assert not any(entry["msg"].startswith("end task") for entry in pve.api("GET", "/cluster/log").data)


# ---- calls that go wrong


@pytest.mark.parametrize("status", [500, 595, 596, 599])
def test_a_call_can_fail_a_number_of_times(pve: PveServer, status: int) -> None:
    pve.fail_call("GET", "/cluster/resources", status, "Connection timed out", times=2, skip=1)
    assert [pve.api("GET", "/cluster/resources").status for _ in range(4)] == [200, status, status, 200]


def test_a_call_can_fail_for_one_node(pve: PveServer) -> None:
    pve.fail_call("GET", "/nodes/{node}/status", 596, "Connection timed out", times=0, node="pve2")
    assert pve.api("GET", "/nodes/pve1/status").status == 200
    assert pve.api("GET", "/nodes/pve2/status").reason == "Connection timed out"
    pve.clear_faults()
    assert pve.api("GET", "/nodes/pve2/status").status == 200


def test_a_proxys_page_instead_of_json_can_be_played(pve: PveServer) -> None:
    pve.fail_call("GET", "/version", 502, "Bad Gateway", body="<html>")
    answer = pve.api("GET", "/version")
    assert (answer.status, answer.reason, answer.data) == (502, "Bad Gateway", None)


def test_a_migration_is_carried_out_after_its_client_gave_up(pve: PveServer) -> None:
    pve.delay_call("POST", MIGRATE_VM, before_s=2.0)
    with pytest.raises(TimeoutError):
        pve.api("POST", "/nodes/pve1/qemu/101/migrate", {"target": "pve2", "online": 1}, timeout_s=1.0)
    assert pve.tasks() == []
    pve.wait_event("guest-moved", vmid=101, target="pve2")


def test_a_connection_can_break_before_and_after_the_act(pve: PveServer) -> None:
    pve.drop_call("POST", MIGRATE_CT, "before")
    pve.drop_call("POST", MIGRATE_CT, "after")
    for tasks in (0, 1):
        with pytest.raises((ConnectionError, ssl.SSLError)):
            pve.api("POST", "/nodes/pve1/lxc/102/migrate", {"target": "pve2", "restart": 1})
        assert len(pve.tasks()) == tasks


def test_requests_are_recorded_and_counted_by_schema_path(pve: PveServer) -> None:
    migrate(pve, 101, "pve1", "pve2", bwlimit=1024)
    pve.api("GET", "/nodes/pve1/status")
    pve.api("GET", "/nodes/pve2/status")
    assert pve.counters() == {f"POST {MIGRATE_VM}": 1, "GET /nodes/{node}/status": 2}
    entry = pve.requests(MIGRATE_VM, "POST")[0]
    assert entry["values"] == {"target": "pve2", "online": "1", "bwlimit": "1024"}
    assert (entry["token"], entry["status"], entry["listener"]) == (TOKEN_ID, 200, "pve1")
    assert TOKEN_SECRET not in json.dumps(pve.requests())
    pve.clear()
    assert pve.counters() == {}


def test_nothing_of_a_replaced_state_happens_in_the_new_one(pve: PveServer) -> None:
    pve.migration(duration_s=None)
    migrate(pve, 101, "pve1", "pve2")
    pve.delay_call("POST", MIGRATE_VM, before_s=0.2)
    with pytest.raises(TimeoutError):
        pve.api("POST", "/nodes/pve2/qemu/103/migrate", {"target": "pve3"}, timeout_s=0.05)
    pve.load(three_nodes())
    assert pve.events(wait_s=0.3) == []
    assert pve.guest(101)["lock"] is None
    assert pve.placement() == {101: "pve1", 102: "pve1", 103: "pve2"}


def test_events_can_be_waited_for(pve: PveServer) -> None:
    assert pve.events(wait_s=0.05) == []
    with pytest.raises(TimeoutError, match="no guest-moved"):
        pve.wait_event("guest-moved", timeout_s=0.1)
    migrate(pve, 101, "pve1", "pve2")
    assert pve.wait_event("guest-moved", vmid=101)["target"] == "pve2"

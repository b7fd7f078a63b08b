# SPDX-License-Identifier: GPL-3.0-or-later
"""What the end-to-end tests stand on: machines boot and go, /etc/pve and the API inside are as a node has them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.machine import BOXES, Machine, MachineError, sweep
from tests.e2e.node import Node
from tests.e2e.roots import PROJECT
from tests.pve_server.client import TOKEN_ID, TOKEN_SECRET

GIB = 1 << 30
ASK_API = f"""
import requests, sys
answer = requests.get("https://localhost:8006/api2/json" + sys.argv[1], verify="/etc/pve/pve-root-ca.pem", timeout=20,
                      headers={{"Authorization": "PVEAPIToken={TOKEN_ID}={TOKEN_SECRET}"}})
answer.raise_for_status()
print(answer.text)
"""


def left_of(box: str) -> list[str]:
    """Return what there still is of a box: its directory, cgroups, mounts, processes."""
    left = [str(path) for path in BOXES.glob(box)]
    left += [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if box in line]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                cgroups = (entry / "cgroup").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            left += [f"{entry.name}: {line}"] if box in line or box in cgroups else []
    for hierarchy in [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line]:
        left += [str(path) for path in Path(hierarchy).glob(f"proxlb-{box}")]
    return left


def ask_api(node: Node, path: str) -> object:
    """Return what the API says to a program inside that trusts the CA in /etc/pve."""
    return json.loads(node.machine.run(["/usr/bin/python3", "-c", ASK_API, path]).stdout)["data"]


def make_deb(folder: Path, depends: str) -> Path:
    """Build a package that has a unit and needs those."""
    control = (
        f"Package: dummy\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@invalid>\nDepends: {depends}\nDescription: dummy\n"
    )
    for name, text in {
        "DEBIAN/control": control,
        "usr/lib/systemd/system/dummy.service": "[Service]\nExecStart=/bin/sh -c 'echo dummy is here; exec sleep infinity'\n"
        "ProtectSystem=strict\nPrivateTmp=yes\nProtectHome=read-only\nNoNewPrivileges=yes\nReadWritePaths=-/etc/pve\n",
    }.items():
        (folder / "dummy" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "dummy" / name).write_text(text)
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", "dummy", "dummy_1_all.deb"], cwd=folder, check=True, capture_output=True)
    return folder / "dummy_1_all.deb"


def test_it_boots_with_nothing_failed(machine: Machine) -> None:
    assert machine.state() == "running", machine.run("systemctl --failed --no-legend", check=False).stdout
    assert machine.run("hostname").stdout == "pve1\n"
    assert machine.run("cat /proc/1/comm").stdout == "systemd\n"


def test_it_has_loopback_and_no_other_network(machine: Machine) -> None:
    links = json.loads(machine.run("ip -json link").stdout)
    assert [link["ifname"] for link in links] == ["lo"]
    assert machine.run("getent hosts localhost").stdout


def test_commands_end_as_they_end_inside(machine: Machine) -> None:
    done = machine.run("cat; echo err >&2; exit 7", stdin="in", check=False)
    assert (done.status, done.stdout, done.stderr) == (7, "in", "err\n")
    with pytest.raises(MachineError, match="status 1 of: false"):
        machine.run(["false"])
    with pytest.raises(MachineError, match="no end within 1 s"):
        machine.run("sleep 100 & sleep 100", limit_s=1, check=False)
    assert machine.run(["printenv", "A"], env={"A": "1"}).stdout == "1\n"


def test_files_go_in_and_out(machine: Machine) -> None:
    machine.put("/opt/new folder/file", "text\n", mode=0o600)
    assert machine.get("/opt/new folder/file") == "text\n"
    assert machine.run(["stat", "-c", "%a %U", "/opt/new folder/file"]).stdout == "600 root\n"
    assert not machine.exists("/opt/none")
    assert machine.outside("/opt/new folder/file").read_text() == "text\n"


def test_programs_run_on_and_can_be_killed(machine: Machine) -> None:
    background = machine.start("background", ["/bin/sh", "-c", "echo out; echo err >&2; exec sleep infinity"])
    machine.wait_for(lambda: background.output() == "out\nerr\n")
    assert background.is_running()
    background.kill("TERM")
    background.wait()
    background.stop()
    brief = machine.start("brief", ["/bin/sh", "-c", "exit 3"])
    assert brief.wait() == 3
    brief.stop()


def test_the_journal_can_be_asked_by_field(machine: Machine) -> None:
    machine.run(["logger", "--journald"], stdin="MESSAGE=moved\nPROXLB_VMID=101\n")
    machine.run(["logger", "--journald"], stdin="MESSAGE=moved, too\nPROXLB_VMID=102\n")
    assert machine.messages("PROXLB_VMID=101") == ["moved"]
    assert len(machine.journal("PROXLB_VMID=101", "PROXLB_VMID=102")) == 2


def test_it_stops_cleanly_and_leaves_nothing(root: Path) -> None:
    with Machine(root, "pve9") as machine:
        name = machine.name.removeprefix("proxlb-")
        assert left_of(name)
        began = time.monotonic()
        machine.stop()
        assert time.monotonic() - began < 50
    assert left_of(name) == []


def test_a_failing_test_leaves_nothing(root: Path) -> None:
    class ItFailedError(Exception):
        pass

    def fail() -> None:
        with Machine(root, "pve9") as machine:
            names.append(machine.name.removeprefix("proxlb-"))
            machine.run("systemd-run --quiet sleep infinity")
            raise ItFailedError

    names: list[str] = []
    with pytest.raises(ItFailedError):
        fail()
    assert left_of(names[0]) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_test_leaves_nothing(root: Path, number: signal.Signals) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tests.e2e.machine import Machine\n"
        "with Machine(Path(sys.argv[1])) as machine: print(machine.name, flush=True); time.sleep(600)"
    )
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", code, str(root)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=-1, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        name = process.stdout.readline().strip().removeprefix("proxlb-")
        assert left_of(name)
        process.send_signal(number)
        process.wait(120)
    until = time.monotonic() + 120
    while True:
        sweep()
        if not left_of(name):
            break
        assert time.monotonic() < until, left_of(name)
        time.sleep(0.2)


def test_two_machines_do_not_see_each_other(root: Path, machine: Machine) -> None:
    with Machine(root, "pve2") as other:
        other.run("mkdir /run/mine; systemd-run --quiet --unit=mine sleep infinity")
        assert not machine.exists("/run/mine")
        assert "mine.service" not in machine.run("systemctl list-units --no-legend").stdout
        assert machine.run("ls /sys/fs/cgroup/system.slice").stdout.count("mine.service") == 0


def test_etc_pve_is_that_of_a_node(node: Node) -> None:
    machine = node.machine
    assert machine.run("readlink /etc/pve/local").stdout == "nodes/pve1\n"
    assert machine.run("systemctl is-active pve-cluster").stdout == "active\n"
    members = json.loads(machine.get("/etc/pve/.members"))
    assert (members["nodename"], members["cluster"]["quorate"], sorted(members["nodelist"])) == ("pve1", 1, ["pve1", "pve2", "pve3"])
    guests = json.loads(machine.get("/etc/pve/.vmlist"))["ids"]
    assert {vmid: (row["node"], row["type"]) for vmid, row in guests.items()} == {
        "101": ("pve1", "qemu"), "102": ("pve1", "qemu"), "103": ("pve1", "lxc"), "201": ("pve2", "qemu"),
    }  # fmt: skip
    assert "tags: plb_pin_pve1" in machine.get("/etc/pve/qemu-server/102.conf")
    assert machine.run("stat -c %a /etc/pve/priv/proxlb/token").stdout == "600\n"
    machine.run("mkdir /etc/pve/priv/lock/x; rmdir /etc/pve/priv/lock/x; mkdir -p /etc/pve/proxlb; echo 1 >/etc/pve/proxlb/x")
    assert node.pmxcfs.writes("priv/lock") == 2


def test_pve_cluster_can_be_restarted_and_killed(node: Node) -> None:
    machine = node.machine
    machine.run("mkdir -p /etc/pve/proxlb; echo kept >/etc/pve/proxlb/x")
    machine.run("systemctl restart pve-cluster")
    assert machine.get("/etc/pve/proxlb/x") == "kept\n"
    machine.run("systemctl stop pve-cluster")
    assert machine.run("ls -A /etc/pve").stdout == "", "the bare directory"
    machine.run("systemctl start pve-cluster")
    machine.wait_for(lambda: "kept" in machine.run(["cat", "/etc/pve/proxlb/x"], check=False).stdout)
    time.sleep(1)  # what it keeps, it writes within half a second
    machine.run("systemctl kill --signal=KILL pve-cluster")
    machine.wait_for(lambda: "kept" in machine.run(["cat", "/etc/pve/proxlb/x"], check=False).stdout)


def test_the_api_is_on_localhost_with_the_certificate_of_etc_pve(node: Node) -> None:
    rows = ask_api(node, "/cluster/resources?type=vm")
    assert isinstance(rows, list)
    assert sorted(row["vmid"] for row in rows) == [101, 102, 103, 201]
    assert node.api.counters() == {"GET /cluster/resources": 1}, "the harness itself asks nothing that is counted"
    assert node.api.api("GET", "/version").data["version"]


def test_load_shows_in_the_api_and_in_the_statistics_file(node: Node) -> None:
    node.set_load(101, cpu_cores=1.5, mem_bytes=3 * GIB, memhost_bytes=4 * GIB)
    time.sleep(1.1)  # the kernel's cache of attributes
    lines = {line.split(":")[0]: line.split(":") for line in node.machine.get("/etc/pve/.rrd").splitlines()}
    rows = {row["id"]: row for row in ask_api(node, "/cluster/resources")}  # type: ignore[attr-defined]
    guest, host = lines["pve-vm-9.0/101"], lines["pve-node-9.0/pve1"]
    assert (float(guest[7]), int(guest[9])) == (rows["qemu/101"]["cpu"], rows["qemu/101"]["mem"]) == (0.75, 3 * GIB)
    assert int(guest[16]) == 4 * GIB
    assert (float(host[6]), int(host[9])) == (rows["node/pve1"]["cpu"], rows["node/pve1"]["mem"])


def test_a_migration_shows_in_the_log_and_in_the_guest_list(node: Node) -> None:
    upid = node.api.migrate(101, "pve3")
    assert node.api.wait_task(upid) == "OK"
    node.machine.wait_for(lambda: json.loads(node.pmxcfs.read(".vmlist"))["ids"]["101"]["node"] == "pve3")
    node.machine.wait_for(lambda: f"end task {upid} OK" in node.pmxcfs.read(".clusterlog"))
    said = [entry["msg"] for entry in json.loads(node.machine.get("/etc/pve/.clusterlog"))["data"]]
    assert f"starting task {upid}" in said
    assert node.machine.exists("/etc/pve/nodes/pve3/qemu-server/101.conf")


def test_quorum_goes_in_both(node: Node) -> None:
    node.api.quorum(False)
    node.machine.wait_for(lambda: node.machine.run("mkdir /etc/pve/x", check=False).status != 0)
    assert json.loads(node.pmxcfs.read(".members"))["cluster"]["quorate"] == 0
    node.api.quorum(True)
    node.machine.wait_for(lambda: node.machine.run("mkdir /etc/pve/y", check=False).status == 0)


def test_a_package_installs_offline_and_its_unit_sees_etc_pve(node: Node, tmp_path: Path) -> None:
    deb = make_deb(tmp_path, "python3-proxmoxer, python3-requests, python3-watchdog, python3-yaml, python3-systemd, python3-rich")
    node.machine.install(deb)
    node.machine.run("systemctl start dummy")
    node.machine.wait_for(lambda: "dummy is here" in node.machine.messages("-u", "dummy"))
    pid = node.machine.run("systemctl show --value -p MainPID dummy").stdout.strip()
    assert node.machine.run(["nsenter", "-t", pid, "-m", "mkdir", "/etc/pve/z"]).status == 0
    assert node.machine.run(["nsenter", "-t", pid, "-m", "mkdir", "/etc/z"], check=False).status != 0
    node.machine.run("systemctl restart pve-cluster")
    assert node.machine.run(["nsenter", "-t", pid, "-m", "readlink", "/etc/pve/local"]).stdout == "nodes/pve1\n"


def test_a_package_that_needs_more_is_refused(node: Node, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no-such-package"):
        node.machine.install(make_deb(tmp_path, "no-such-package"))

# SPDX-License-Identifier: GPL-3.0-or-later
"""The real side of the contracts: the adapters over a FUSE mount, an HTTPS server, and folders."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

from agent.adapters.inbox import InboxFolder, leave_request
from agent.adapters.journal import StreamSink
from agent.adapters.local_files import STATUS, NodeFiles
from agent.adapters.node_facts import ThisNode
from agent.adapters.pmxcfs import PmxcfsFiles, PmxcfsLock
from agent.adapters.pve.api import PveApi
from agent.adapters.pve.trust import ApiAccess
from agent.adapters.system_clock import SystemClock
from agent.core.cluster import GIB, HaNodeAffinity, HaResourceAffinity
from agent.ports import Clock, ClusterApi, ClusterFiles, FactsSource, JournalSink, LeaderLock, LocalFiles, LocalInbox
from tests.contracts.stages import NODES
from tests.pmxcfs.client import Pmxcfs
from tests.pve_server.client import MIGRATE_VM, TOKEN_ID, TOKEN_SECRET, PveServer, cluster, ct, vm

CACHED_S = 1.2  # the kernel answers from memory for a second
LOCK_NAME = "proxlb-agent"
MAX_SLEEP_S = 2.0


class SteppedClock:
    """The machine's clocks, of which the wall clock can be set for one node."""

    def __init__(self) -> None:
        self.offset_s = 0.0

    def boottime_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_s(self) -> float:
        return time.time() + self.offset_s


class RealStage:
    def pass_s(self, seconds: float) -> None:
        assert seconds <= MAX_SLEEP_S, "a test of the real side may not wait that long"
        time.sleep(seconds)


class RealPmxcfs(RealStage):
    def __init__(self, standin: Pmxcfs) -> None:
        self._standin = standin
        self._clocks = {node: SteppedClock() for node in NODES}
        self._cut: set[str] = set()

    def lock(self, node: str) -> LeaderLock:
        return PmxcfsLock(self._clocks[node], str(self._standin.at(node)))

    def files(self, node: str) -> ClusterFiles:
        return PmxcfsFiles(str(self._standin.at(node)))

    def cut(self, node: str) -> None:
        self._cut.add(node)
        self._standin.quorum(False, [node])
        self.pass_s(CACHED_S)

    def heal(self) -> None:
        self._standin.quorum(True, sorted(self._cut))
        self._cut.clear()
        self.pass_s(CACHED_S)

    def unmount(self, node: str) -> None:
        self._standin.unmount(node)

    def mount(self, node: str) -> None:
        self._standin.mount(node)
        self.pass_s(CACHED_S)

    def left_behind(self, node: str) -> list[str]:
        return os.listdir(self._standin.at(node))

    def age_lock(self, by_s: float) -> None:
        self._standin.age_lock(LOCK_NAME, by_s)

    def step_clock(self, node: str, by_s: float) -> None:
        self._clocks[node].offset_s += by_s

    def put_guest(self, vmid: int, node: str) -> None:
        self._standin.guest(vmid, node, "qemu", "cores: 2\n")

    def report(self) -> None:
        self._standin.rrd(
            {"pve1": {"maxcpu": 16, "cpu": 0.1, "memtotal": 64 * GIB, "memused": 6 * GIB}},
            {"100": {"maxcpu": 4, "cpu": 0.375, "maxmem": 8 * GIB, "mem": 4 * GIB, "status": "running"}},
        )

    def log(self, node: str, msg: str) -> None:
        self._standin.log(node, msg)


class RealInboxStage(RealStage):
    def __init__(self, folder: Path) -> None:
        self._folder = folder / "inbox"
        self._flag = folder / "maintenance"
        self._folder.mkdir(mode=0o700)
        self._age_ns = time.time_ns() - 10**12

    def inbox(self) -> LocalInbox:
        return InboxFolder(str(self._folder), str(self._flag))

    def leave_event(self, name: str) -> None:
        (self._folder / name).touch()
        self._number(self._folder / name)

    def leave_request(self, request_id: str, text: str) -> None:
        leave_request(request_id, text, str(self._folder))
        self._number(self._folder / f"request.{request_id}.json")

    def _number(self, path: Path) -> None:
        """Make it the youngest: the filesystem's clock ticks slower than a test."""
        self._age_ns += 10**6
        os.utime(path, ns=(self._age_ns, self._age_ns))

    def set_flag(self, text: str | None) -> None:
        if text is None:
            self._flag.unlink()
        else:
            self._flag.write_text(text)

    def set_broken(self, broken: bool) -> None:
        away = self._folder.with_name("away")
        if broken:
            self._folder.rename(away)
        else:
            away.rename(self._folder)


class RealLocalFilesStage(RealStage):
    def __init__(self, folder: Path) -> None:
        self._run, self._state = folder / "run", folder / "state"

    def files(self) -> LocalFiles:
        return NodeFiles(str(self._run), str(self._state))

    def status(self) -> str | None:
        path = self._run / STATUS
        return path.read_text() if path.exists() else None

    def set_broken(self, broken: bool) -> None:
        for folder in (self._run, self._state):
            away = folder.with_name(f"{folder.name}.away")
            if broken:
                folder.mkdir(exist_ok=True)
                folder.rename(away)
                folder.touch()  # a file where the folder should be
            else:
                folder.unlink()
                away.rename(folder)


class RealFactsStage(RealStage):
    """The files that the adapter reads, in a folder instead of below /."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Simulated CPU @ 2.10GHz\nflags\t\t: sse4_2 aes avx\n\n")
        self._write("proc/meminfo", "MemTotal:       65536 kB\n")
        self._write("var/lib/vz/snippets/proxlb-hook", "#!/bin/sh\n").chmod(0o755)
        self.upgrade_qemu("10.1.2-3")
        self.add_bridge("vmbr0")

    def _write(self, path: str, text: str) -> Path:
        file = self._root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def source(self) -> FactsSource:
        return ThisNode(str(self._root))

    def upgrade_qemu(self, version: str) -> None:
        status = "Status: install ok installed"
        text = f"Package: pve-manager\n{status}\nVersion: 9.1.1\n\nPackage: pve-qemu-kvm\n{status}\nVersion: {version}\n"
        self._write("var/lib/dpkg/status", text)

    def add_bridge(self, name: str) -> None:
        (self._root / "sys/class/net" / name / "bridge").mkdir(parents=True)

    def set_cache(self, cache_bytes: int | None) -> None:
        if cache_bytes is not None:
            self._write("proc/spl/kstat/zfs/arcstats", f"size 4 {cache_bytes + 64}\nc_min 4 64\n")


class RealClockStage(RealStage):
    def clock(self) -> Clock:
        return SystemClock()


class RealJournalStage(RealStage):
    def __init__(self) -> None:
        self._stream = io.StringIO()

    def sink(self) -> JournalSink:
        return StreamSink(self._stream)

    def texts(self) -> list[str]:
        return self._stream.getvalue().splitlines()

    def close(self) -> None:
        self._stream.close()


class RealApiStage(RealStage):
    def __init__(self, server: PveServer, certificates: Path) -> None:
        self._server = server
        server.load(
            cluster(
                {name: {"cores": 16, "memory_bytes": 64 * GIB, "overhead_cores": 0.1, "overhead_bytes": 2 * GIB} for name in NODES},
                [
                    vm(100, "pve1", maxcpu=4, maxmem_bytes=8 * GIB, cpu_cores=1.5, mem_bytes=4 * GIB),
                    vm(101, "pve1", status="stopped"),
                    ct(200, "pve2", maxcpu=2, maxmem_bytes=2 * GIB, cpu_cores=0.5, mem_bytes=GIB),
                    vm(300, "pve3", status="stopped", template=True),
                ],
                migration={"duration_s": None},
            )
        )
        access = ApiAccess(
            hosts=(f"{server.host}:{server.port}",),
            token_id=TOKEN_ID,
            token_secret=lambda: TOKEN_SECRET,
            own_node="pve1",
            pmxcfs=str(certificates),
            ca_file=str(certificates / "pve-root-ca.pem"),
            timeout_s=30.0,
        )
        self._api = PveApi(access)

    def close(self) -> None:
        self._api.close()
        self._server.endpoint(0, up=True)

    def api(self) -> ClusterApi:
        return self._api

    def requests(self) -> int:
        return sum(self._server.counters().values())

    def wall_s(self, node: str) -> float:
        return time.time()

    def finish_migration(self, vmid: int) -> None:
        upid = self._server.tasks("qmigrate", "vzmigrate", vmid=vmid)[-1]["upid"]
        self._server.finish_migration(vmid)
        self._server.wait_task(upid)

    def fail_migration(self, vmid: int) -> None:
        self._server.fail_migration(vmid)

    def lose_answer(self) -> None:
        self._server.drop_call("POST", MIGRATE_VM, "after")

    def lock_guest(self, vmid: int, lock: str | None) -> None:
        self._server.do("lock", vmid=vmid, lock=lock)

    def add_local_disk(self, vmid: int) -> None:
        self._server.do("set_guest", vmid=vmid, local_disks=["local-lvm:vm-100-disk-0"])

    def power_off(self, node: str) -> None:
        self._server.do("node_online", node=node, online=False)

    def manage(self, vmid: int, state: str) -> None:
        self._server.ha(delay_s=0.05)
        self._server.ha_guest(vmid, "started")
        self._server.ha_service(self._sid(vmid), state=state)

    def make_ha_rules(self, *rules: HaNodeAffinity | HaResourceAffinity) -> None:
        self._server.ha(rules=[self._rule(rule) for rule in rules])

    def _rule(self, rule: HaNodeAffinity | HaResourceAffinity) -> dict[str, str | int]:
        row: dict[str, str | int] = {"rule": rule.name, "resources": ",".join(self._sid(vmid) for vmid in rule.vmids)}
        if isinstance(rule, HaResourceAffinity):
            return row | {"type": "resource-affinity", "affinity": "positive" if rule.together else "negative"}
        nodes = ",".join(f"{name}:{priority}" if priority else name for name, priority in rule.nodes)
        return row | {"type": "node-affinity", "nodes": nodes, "strict": int(rule.strict)}

    def set_options(self, *, balances: bool, registered_tags: tuple[str, ...]) -> None:
        crs = {"ha": "dynamic", "ha-auto-rebalance": int(balances)}
        self._server.settings(options={"crs": crs, "registered-tags": list(registered_tags)})

    def hang_ha(self) -> None:
        self._server.ha(acts=False)

    def ha_begins(self, vmid: int) -> None:
        self._server.wait_event("lock", vmid=vmid)

    def ha_rests(self, vmid: int) -> None:
        self._server.finish_migration(vmid)
        self._server.wait_event("ha-done", sid=self._sid(vmid))

    def _sid(self, vmid: int) -> str:
        return f"{'ct' if self._server.guest(vmid)['type'] == 'lxc' else 'vm'}:{vmid}"

    def set_reachable(self, reachable: bool) -> None:
        self._server.endpoint(0, up=reachable)

    def ask_maintenance(self, node: str) -> None:
        self._server.ha_maintenance(node, True)

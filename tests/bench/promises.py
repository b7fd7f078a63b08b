# SPDX-License-Identifier: GPL-3.0-or-later
"""What design promises of a running agent, measured: latencies, requests, a leader's memory and idle cpu, and a whole plan at 16/500.

Run as root, from the project's root:  .cache/tools/bin/python -m tests.bench.promises [--idle-s 60] [--starts 10]
The agent is a real process between the mounted stand-in for /etc/pve and the played API, on one machine: the two
servers take their share of it, so times are upper bounds. It is started as the package does: with compiled code, and in the
environment of its unit. Prints a table; judges nothing. An agent at rest, a follower, too, is measured by `tests.bench.sizes`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent.core.cluster import Snapshot
from agent.sim.generator import generate
from tests.pve_server.client import GIB, vm
from tests.service.pair import DRAINED, NODE, OTHER, Pair
from tests.service.rig import HERE, ROOT, Rig

BURST, BURST_S = 1000, 60.0
FEWEST = 16  # guests of a node: with two seconds for each, none is told again within the 30 s in which that is no news
UNIT = ROOT / "packaging/proxlb-agent.service"
TICKS = os.sysconf("SC_CLK_TCK")


def specs(snapshot: Snapshot) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The snapshot as the played API takes it; the node with the most guests is this machine, and comes first."""
    counts = Counter(guest.node for guest in snapshot.guests if guest.is_running)
    by_count = sorted(snapshot.nodes, key=lambda node: -counts[node.name])
    names = {node.name: HERE if index == 0 else node.name for index, node in enumerate(by_count)}
    nodes = {
        names[node.name]: {
            "cores": int(node.cpu_cores),
            "memory_bytes": node.memory_bytes,
            "overhead_cores": max(
                0.0, (node.cpu_used_cores or 0) - sum(g.cpu_used_cores or 0 for g in snapshot.guests if g.node == node.name)
            ),
            "overhead_bytes": max(
                0, (node.memory_used_bytes or 0) - sum(g.memory_used_bytes or 0 for g in snapshot.guests if g.node == node.name)
            ),
        }
        for node in by_count
    }
    guests = [
        {
            "vmid": guest.vmid, "node": names[guest.node], "type": guest.type.value, "name": guest.name, "status": guest.status,
            "maxcpu": guest.cpu_cores, "maxmem_bytes": guest.memory_bytes, "cpu_cores": guest.cpu_used_cores or 0.0,
            "mem_bytes": guest.memory_used_bytes or 0, "tags": ";".join(guest.tags) or None,
        }
        for guest in snapshot.guests
        if not guest.template
    ]  # fmt: skip
    return nodes, guests


def as_installed(folder: Path) -> dict[str, str]:
    """The environment of an agent from the package: that of its unit, and where its compiled code is; compiles it there."""
    compiled = {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    subprocess.run(["/usr/bin/python3", "-m", "compileall", "-q", "agent"], cwd=ROOT, env=os.environ | compiled, check=True)
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    words = [word for line in lines if line.startswith("Environment=") for word in line.removeprefix("Environment=").split()]
    return compiled | dict(word.split("=", 1) for word in words)


def memory_mib(pid: int) -> tuple[float, float]:
    """Resident memory of a process, and its proportional share (shared pages divided), in MiB."""
    resident = share = 0.0
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Rss:"):
                resident = float(line.split()[1]) / 1024
            elif line.startswith("Pss:"):
                share = float(line.split()[1]) / 1024
    return resident, share


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, user and system."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def waited(rig: Rig, act: Callable[[], None], words: str) -> float:
    """Seconds from the act to a new line of the journal with these words."""
    before = rig.log.count(words)
    begun = time.monotonic()
    act()
    rig.wait(lambda: rig.log.count(words) > before, words, 120)
    return time.monotonic() - begun


def in_a_burst(rig: Rig, what: str) -> Iterator[tuple[str, str]]:
    """A thousand events of hooks in a second: what they cost."""
    assert rig.process is not None

    def counted() -> tuple[int, int, int]:
        written = rig.pmxcfs.writes() - rig.pmxcfs.writes("priv/lock")
        return written, sum(rig.pve.counters().values()), rig.log.count("\n")

    resident_mib, before, begun = memory_mib(rig.process.pid)[0], counted(), time.monotonic()
    for number in range(BURST):
        rig.hook(f"{100_000 + number}.post-start")
        time.sleep(max(0.0, begun + number / BURST - time.monotonic()))
    took_s = time.monotonic() - begun
    time.sleep(BURST_S)
    written, asked, lines = (after - earlier for earlier, after in zip(before, counted(), strict=True))
    name = f"{BURST} hook events in {took_s:.1f} s on a node that {what}, until {BURST_S:.0f} s later: "
    name += "messages of pmxcfs (three for a file that is written) less renewals, API requests, lines of the journal; resident MiB"
    yield name, f"{written}, {asked}, {lines}; {resident_mib:.1f} -> {memory_mib(rig.process.pid)[0]:.1f}"


def from_another_node(starts: int) -> Iterator[tuple[str, str]]:
    """Two real agents: a hook on the node that does not lead, and the plan of the one that leads."""
    guests = [vm(100 + number, HERE, maxcpu=1, maxmem_bytes=GIB, mem_bytes=GIB // 2, cpu_cores=0.1) for number in range(FEWEST)]
    quiet = {"spread_percent": 99, "cpu": {"threshold_percent": 99}, "memory": {"threshold_percent": 99}}
    with Pair(dict.fromkeys((HERE, OTHER, DRAINED), NODE), guests, mode="observe", balance=quiet) as rig:
        rig.release_lead()
        with rig.other_agent():
            rig.wait_for_other("took the lead: ")
            rig.start()
            rig.wait_for(f"follows {OTHER}")
            time.sleep(10)
            times = []
            for number in range(starts):
                time.sleep(2.0 + 0.37 * (number % 6))  # the relay file is written once in three seconds
                words = f"guest {100 + number % FEWEST} started on {HERE}: "
                before, begun = rig.other_log.read_text().count(words), time.monotonic()
                rig.hook(f"{100 + number % FEWEST}.post-start")
                rig.wait(lambda words=words, before=before: rig.other_log.read_text().count(words) > before, words, 120)  # type: ignore[misc]
                times.append(time.monotonic() - begun - 1.0)
    yield (
        f"event to plan, hook on a node that does not lead, two real agents, less settle_s: median / worst of {starts}, s",
        f"{statistics.median(times):.2f} / {max(times):.2f}",
    )


def rows(idle_s: float, starts: int) -> Iterator[tuple[str, str]]:
    """Measure; yields a name and a figure at a time."""
    snapshot = generate(1, 16, 500, "zipf")
    nodes, guests = specs(snapshot)
    settle_s = 1
    with Rig(nodes, guests, mode="off", triggers={"settle_s": settle_s, "settle_max_s": 5, "warmup_s": 0,
             "first_observe_s": 0, "reconcile_s": 86400}, balance={"spread_percent": 99, "cpu": {"threshold_percent": 99},
             "memory": {"threshold_percent": 99}}) as rig:  # fmt: skip
        installed = as_installed(rig.folder)
        rig.start(**installed)
        rig.wait_for("runs on")
        time.sleep(15)
        yield from in_a_burst(rig, "does not lead")
        rig.kill()
        rig.configure(mode="observe")
        rig.release_lead()
        rig.start(**installed)
        assert rig.process is not None
        pid = rig.process.pid
        rig.wait_for("took the lead: ", 120)
        here = [guest["vmid"] for guest in guests if guest["node"] == HERE and guest["status"] == "running"]
        elsewhere = max((name for name in nodes if name != HERE), key=lambda name: sum(guest["node"] == name for guest in guests))
        there = [guest["vmid"] for guest in guests if guest["node"] == elsewhere and guest["status"] == "running"]
        half = len(here) // 2
        assert min(half, len(there)) >= min(starts, FEWEST), "too few guests: what was told a moment ago is not told again"

        def by_hook(vmid: int) -> None:
            rig.hook(f"{vmid}.post-start")

        def by_log(vmid: int) -> None:
            upid = f"UPID:{HERE}:0002B8A4:00C1F3D2:{int(time.time()):08X}:qmstart:{vmid}:root@pam:"
            rig.pmxcfs.log(HERE, f"end task {upid} OK")

        seq = iter(range(1, 10_000))

        def by_inbox(vmid: int) -> None:
            number = next(seq)
            rig.report(elsewhere, {"seq": number, "at": time.time(), "kind": "guest-started", "vmid": vmid}, seq=number)

        asked = rig.pve.counters()
        decisions = 0
        for name, act, place, vmids in (
            ("hook on this node", by_hook, HERE, here[:half]),
            ("cluster log", by_log, HERE, here[half:]),
            ("inbox file of another node", by_inbox, elsewhere, there),
        ):
            times = []
            for number, vmid in enumerate(itertools.islice(itertools.cycle(vmids), starts)):
                time.sleep(0.37 * (number % 6))  # at another point of the two seconds between two looks
                times.append(waited(rig, functools.partial(act, vmid), f"guest {vmid} started on {place}: ") - settle_s)
                decisions += 1
            yield (
                f"event to plan, {name}, less settle_s: median / worst of {starts}, s",
                f"{statistics.median(times):.2f} / {max(times):.2f}",
            )
        more = sum(rig.pve.counters().values()) - sum(asked.values())
        yield f"API requests a decision (mean of {decisions})", f"{more / decisions:.2f}"
        yield (
            f"leader at 16/500 after {decisions + 1} decisions: resident / proportional memory, MiB",
            "{:.1f} / {:.1f}".format(*memory_mib(pid)),
        )
        asked = rig.pve.counters()
        before, writes = cpu_s(pid), rig.pmxcfs.writes()
        time.sleep(idle_s)
        yield f"leader, idle: cpu over {idle_s:.0f} s, % of a core", f"{100 * (cpu_s(pid) - before) / idle_s:.2f}"
        yield f"leader, idle: API requests in {idle_s:.0f} s", str(sum(rig.pve.counters().values()) - sum(asked.values()))
        yield f"leader, idle: messages of pmxcfs in {idle_s:.0f} s (6 a minute are renewals)", str(rig.pmxcfs.writes() - writes)
        yield from in_a_burst(rig, "leads")
        rig.configure(balance={})
        asked = rig.pve.counters()
        begun = time.monotonic()
        done = subprocess.run(
            ["/usr/bin/python3", "-m", "agent", "--config", str(rig.folder / "config.yaml"), "plan", "--json"],
            capture_output=True, text=True, check=True, env=os.environ | installed,
        )  # fmt: skip
        wall_s = time.monotonic() - begun
        plan = json.loads(done.stdout)
        yield (
            "plan --json at 16/500: wall, s; requests; moves",
            f"{wall_s:.2f}; {sum(rig.pve.counters().values()) - sum(asked.values())}; {len(plan['moves'])}",
        )
        for name in ("before", "after"):
            loads = plan[name]["nodes"].values()
            memory, cpu = [n["memory_fraction"] for n in loads], [n["cpu_fraction"] for n in loads]
            yield f"spread {name}: memory, cpu, points", f"{100 * (max(memory) - min(memory)):.1f}, {100 * (max(cpu) - min(cpu)):.1f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--idle-s", type=float, default=60)
    parser.add_argument("--starts", type=int, default=10)
    arguments = parser.parse_args()
    for name, figure in itertools.chain(rows(arguments.idle_s, arguments.starts), from_another_node(arguments.starts)):
        print(f"| {name} | {figure} |", flush=True)


if __name__ == "__main__":
    main()

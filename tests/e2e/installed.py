# SPDX-License-Identifier: GPL-3.0-or-later
"""A node with the agent's package on it: what its unit is, what its journal says, what was asked of PVE."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.e2e.machine import Done, Machine
from tests.e2e.node import Node

UNIT = "proxlb-agent"
CLUSTER_UNIT = "/etc/systemd/system/pve-cluster.service"
SAID_WAIT_S = 180.0  # what a busy machine may take for what an idle one does in seconds


class Agent:
    """The agent on a machine, as its unit and its journal show it."""

    machine: Machine

    # -- the journal -------------------------------------------------------------------------------------------------------------

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """What the agent said, with its fields; not what systemd says of the unit."""
        return self.machine.journal("-u", UNIT, "SYSLOG_IDENTIFIER=proxlb-agent", *matches)

    def said(self, pattern: str = "") -> list[str]:
        """The agent's lines in which the pattern is found."""
        return [line for line in (str(entry["MESSAGE"]) for entry in self.entries()) if re.search(pattern, line)]

    def wait_said(self, pattern: str, within_s: float = SAID_WAIT_S, *, times: int = 1) -> str:
        """Wait until the agent has said it so often, and return the last of these lines; fails with all that it said."""
        until = time.monotonic() + within_s
        while len(found := self.said(pattern)) < times:
            assert time.monotonic() < until, f"not said {times} times within {within_s:.0f} s: {pattern}\n" + "\n".join(self.said())
            time.sleep(0.2)
        return found[-1]

    # -- the unit ----------------------------------------------------------------------------------------------------------------

    def unit(self, action: str, *more: str, limit_s: float = 60.0) -> Done:
        """`systemctl ACTION proxlb-agent`"""
        return self.machine.run(["systemctl", action, *more, UNIT], limit_s=limit_s)

    def shows(self, *properties: str) -> dict[str, str]:
        """What systemd knows of the unit."""
        shown = self.unit("show", f"--property={','.join(properties)}").stdout
        return dict(line.split("=", 1) for line in shown.splitlines())

    @property
    def pid(self) -> int:
        """The agent's process, as the machine counts."""
        return int(self.shows("MainPID")["MainPID"])

    def rss_kib(self) -> int:
        """Resident memory of the agent's process."""
        rollup = self.machine.get(f"/proc/{self.pid}/smaps_rollup")
        return int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Rss:")))

    def cpu_s(self) -> float:
        """The processor time that the unit has taken."""
        return int(self.shows("CPUUsageNSec")["CPUUsageNSec"]) / 1e9

    def command(self, *words: str, limit_s: float = 120.0) -> Done:
        """Run `proxlb-agent WORDS`, which must exit 0."""
        return self.machine.run(["proxlb-agent", *words], limit_s=limit_s)


class Installed(Node, Agent):
    """`with Installed(root, cluster(...)) as node: node.install_agent(deb, mode="full")`."""

    def install_agent(self, deb: Path, *, reporting: Iterable[str] = (), **cluster_wide: Any) -> None:
        """Install the package on a node of a cluster that had an agent, and return when the new one leads and has looked.

        reporting:     nodes whose agents report besides; all of them unless some are named.
        cluster_wide:  /etc/pve/proxlb/config.yaml.
        """
        self.settings(**cluster_wide)
        for name in tuple(reporting) or self.names[1:]:
            self.report(name)
        self.release_lead()
        self.machine.install(deb)
        self.wait_said("took the lead: ")

    # -- events ------------------------------------------------------------------------------------------------------------------

    def task_line(self, node: str, kind: str, vmid: int) -> None:
        """Append the lines of a task that began and ended well to the cluster log."""
        upid = f"UPID:{node}:{4000 + vmid:08X}:00C1F3D2:{int(time.time()):08X}:{kind}:{vmid}:root@pam:"
        self.log(node, f"starting task {upid}")
        self.log(node, f"end task {upid} OK")

    def relay(self, node: str, seq: int, kind: str, vmid: int) -> None:
        """Report an event as the agent of another node does."""
        event = {"seq": seq, "at": time.time(), "kind": kind, "vmid": vmid, "origin": None, "request": None, "detail": "", "force": False}
        self.report(node, event, seq=seq)

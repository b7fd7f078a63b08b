# SPDX-License-Identifier: GPL-3.0-or-later
"""A played cluster from a test's side: its settings, flags and loads, and what was asked of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.mirror import Mirror
from tests.pmxcfs.client import Control
from tests.pve_server.client import MIGRATE_CT, MIGRATE_VM, TOKEN_SECRET, PveServer

LEADER = "proxlb/leader.json"


class Move(NamedTuple):
    """A migration that was asked for."""

    vmid: int
    source: str
    target: str


class Played:
    """What one node and three have in common.

    pmxcfs:  what stands in /etc/pve, steered.
    api:     the API as `tests.pve_server.client.PveServer`, steered.
    mirror:  what keeps the two in step.
    """

    names: list[str]
    pmxcfs: Control
    api: PveServer
    mirror: Mirror

    def lay_out(self) -> None:
        """Put into /etc/pve what a cluster has there before any agent: certificates, and the token that `setup` would make."""
        certificates = Path(self.api.ca_file).parent
        for file in [certificates / "pve-root-ca.pem", *sorted(certificates.glob("nodes/*/*"))]:
            self.pmxcfs.put(str(file.relative_to(certificates)), file.read_text())
        self.pmxcfs.put("priv/proxlb/token", TOKEN_SECRET + "\n")
        self.pmxcfs.put("storage.cfg", "dir: local\n\tpath /var/lib/vz\n\tcontent snippets,iso\n")
        self.pmxcfs.put("corosync.conf", f"totem {{\n  cluster_name: standin\n}}\n# {' '.join(self.names)}\n")

    def settings(self, **cluster_wide: Any) -> None:
        """Write /etc/pve/proxlb/config.yaml (JSON is YAML)."""
        self.pmxcfs.put("proxlb/config.yaml", json.dumps(cluster_wide))

    def report(self, node: str, *events: Mapping[str, Any], seq: int = 0, version: str = "0.1.0") -> None:
        """Report what the agent of another node would; without, that node is no target."""
        document = {
            "schema": "proxlb-agent/inbox/1", "node": node, "incarnation": "other", "boot_id": "boot", "seq": seq,
            "written_at": time.time(), "events": list(events), "flag": None,
            "facts": {"agent_version": version, "node": {"bridges": ["vmbr0"]}},
        }  # fmt: skip
        self.pmxcfs.put(f"proxlb/inbox/{node}.json", json.dumps(document))

    def release_lead(self, epoch: int = 6) -> None:
        """Leave /etc/pve/proxlb/leader.json as a leader that stopped cleanly does, so that the next one need not wait 90 s."""
        document = {
            "schema": "proxlb-agent/leader/1", "node": self.names[-1], "incarnation": "before", "epoch": epoch, "state": "released",
            "since": time.time(), "version": "0.1.0",
        }  # fmt: skip
        self.pmxcfs.put("proxlb/leader.json", json.dumps(document))

    def set_load(self, vmid: int, cpu_cores: float | None = None, mem_bytes: int | None = None, memhost_bytes: int | None = None) -> None:
        """Let a guest use that much from now on; API and `.rrd` say so when this returns. None: unchanged."""
        self.api.set_load(vmid, cpu_cores, mem_bytes, memhost_bytes)
        self.mirror.look(numbers=True)

    def set_node_load(self, node: str, cpu_fraction: float | None = None, mem_bytes: int | None = None) -> None:
        """Let a node report that whatever its guests use; None: what they use. In API and `.rrd`."""
        self.api.node_load(node, cpu_fraction, mem_bytes)
        self.mirror.look(numbers=True)

    def log(self, node: str, msg: str, *, user: str = "root@pam", pri: int = 6, tag: str = "pvedaemon") -> None:
        """Add a line to the cluster log, in API and `.clusterlog`."""
        self.api.log(node, msg, user=user, pri=pri, tag=tag)
        self.pmxcfs.log(node, msg, user=user, pri=pri, tag=tag)

    def flag(self, node: str, reason: str = "") -> None:
        """Put a node into maintenance by the cluster's flag file."""
        self.pmxcfs.put(f"proxlb/maintenance/{node}", reason)

    def unflag(self, node: str) -> None:
        self.pmxcfs.remove(f"proxlb/maintenance/{node}")

    def leader(self) -> Mapping[str, Any]:
        """leader.json"""
        found: Mapping[str, Any] = json.loads(self.pmxcfs.read(LEADER))
        return found

    # -- what was done -----------------------------------------------------------------------------------------------------------

    def asked_moves(self) -> list[Move]:
        """The migrations that the agent asked PVE for, in their order."""
        found = []
        for request in self.api.requests(method="POST"):
            assert request["schema"] in (MIGRATE_VM, MIGRATE_CT), request
            source, _, vmid, _ = request["path"].split("/")[-4:]
            found.append(Move(int(vmid), source, str(request["values"]["target"])))
        return found

    def moves_of(self, *vmids: int) -> list[Move]:
        """Those of these guests."""
        return [move for move in self.asked_moves() if move.vmid in vmids]

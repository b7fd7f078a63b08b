# SPDX-License-Identifier: GPL-3.0-or-later
"""Two real agents on two nodes of one stand-in for /etc/pve, of which the one that leads dies with its node."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pve_server.client import GIB, vm
from tests.service.rig import HANGS_AFTER_S, HERE, ROOT, Rig

OTHER = "pve-b"
DRAINED = "pve-c"
NODE: dict[str, Any] = {"cores": 16, "memory_bytes": 64 * GIB, "overhead_bytes": 2 * GIB}
GUESTS = (301, 302, 303, 304)
AS_OTHER = f'hostname {OTHER}; exec /usr/bin/python3 -m agent run --config "$0"'
MIGRATION_S = 20.0  # so that the leader dies in the middle of its first batch


class Pair(Rig):
    """A cluster whose second node has an agent of its own: a process that takes itself for another machine (a UTS namespace)."""

    mounts = 2

    @contextlib.contextmanager
    def other_agent(self) -> Iterator[subprocess.Popen[bytes]]:
        """The agent of the other node, running; killed at the end of the block at the latest."""
        folder = self.folder / OTHER
        (folder / "run/inbox").mkdir(parents=True, mode=0o700)
        (folder / "state").mkdir()
        mount = self.pmxcfs.at(OTHER)
        certificate = Path(self.pve.ca_file).parent / "nodes" / HERE / "pve-ssl.pem"
        self.pmxcfs.put(f"nodes/{OTHER}/pve-ssl.pem", certificate.read_text())
        document = self.settings | {
            "api": {"hosts": [f"localhost:{self.pve.port}"], "token_file": str(mount / "priv/proxlb/token")},
            "paths": {"pmxcfs": str(mount), "run": str(folder / "run"), "state": str(folder / "state")},
        }
        (folder / "config.yaml").write_text(json.dumps(document))
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PROXLB", "NOTIFY", "JOURNAL"))}
        with self.other_log.open("ab") as log:
            process = subprocess.Popen(
                ["unshare", "--uts", "sh", "-c", AS_OTHER, folder / "config.yaml"],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    @property
    def other_log(self) -> Path:
        """What the other agent says."""
        return self.folder / f"{OTHER}.log"

    def wait_for_other(self, words: str, within_s: float = HANGS_AFTER_S) -> None:
        """Wait until the other agent has said so."""
        self.wait(lambda: words in self.other_log.read_text(), f"{OTHER}: {words}\n{self.other_log.read_text()}", within_s)


@dataclass(frozen=True, slots=True)
class TakenOver:
    """What came of it.

    Units:   seconds from the node's death: until the other one leads, until all guests have left but those on their way to the dead node.
    """

    leads_s: float
    done_s: float
    posts: tuple[str, ...]
    to_the_dead: frozenset[int]
    log: str


def dead_node_taken_over() -> TakenOver:
    """The leader's node dies while it empties another one, in real time; the other agent takes over after pmxcfs' own 120 s."""
    guests = [vm(vmid, DRAINED, maxcpu=2, maxmem_bytes=4 * GIB, mem_bytes=2 * GIB, cpu_cores=0.2) for vmid in GUESTS]
    with Pair(dict.fromkeys((HERE, OTHER, DRAINED), NODE), guests, balance={"spread_percent": 0}) as rig:
        rig.pve.migration(duration_s=MIGRATION_S)
        rig.release_lead()
        with rig.other_agent() as leader:
            rig.wait_for_other("took the lead: ")
            rig.start()
            rig.wait_for(f"follows {OTHER}")
            rig.pmxcfs.put(f"proxlb/maintenance/{DRAINED}", "new memory\n")
            rig.wait(lambda: len(rig.pve.tasks("qmigrate")) == 2, "two migrations are under way")
            leader.send_signal(signal.SIGKILL)
            died_s = time.monotonic()
            rig.pmxcfs.unmount(OTHER, dead=True)
            rig.pve.node_online(OTHER, False)
        rig.wait_for("leads the cluster", 120 + HANGS_AFTER_S)
        leads_s = time.monotonic() - died_s
        to_the_dead = {int(vmid) for vmid in re.findall(rf"moving vm:(\d+) .* to {OTHER} ", rig.other_log.read_text())}
        rig.wait(lambda: all(rig.pve.where(vmid) == HERE for vmid in set(GUESTS) - to_the_dead), "all others are here")
        posts = tuple(str(request["path"]) for request in rig.pve.requests(method="POST"))
        return TakenOver(leads_s, time.monotonic() - died_s, posts, frozenset(to_the_dead), rig.log)

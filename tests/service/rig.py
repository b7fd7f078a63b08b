# SPDX-License-Identifier: GPL-3.0-or-later
"""One real agent process between a mounted stand-in for /etc/pve and the played PVE API, kept in step with each other."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.mirror import Mirror
from tests.pmxcfs.client import Pmxcfs
from tests.pve_server.client import TOKEN_SECRET, PveServer, cluster

ROOT = Path(__file__).resolve().parents[2]
HERE = os.uname().nodename.split(".")[0]
HANGS_AFTER_S = 180.0  # what a busy machine may take for what an idle one does in seconds
PVESTATD_S = 0.5  # PVE: 10; a test has no time for that
SETTINGS = {
    "triggers": {"settle_s": 1, "settle_max_s": 5, "warmup_s": 0, "first_observe_s": 0},
    "balance": {"memory": {"hold_s": 5}, "cpu": {"hold_s": 5}},
}


class Rig:
    """A cluster whose first node is this machine; `with Rig({...}, [...]) as rig: rig.start()`.

    What happens in the API shows in the files, as in PVE: see `tests.e2e.mirror`.
    """

    command = ("-m", "agent", "run")
    mounts = 1  # of so many nodes, the first ones, there is a /etc/pve

    def __init__(self, nodes: Mapping[str, Mapping[str, Any]], guests: Iterable[Mapping[str, Any]], **settings: Any) -> None:
        self._names = list(nodes)
        self.folder = Path(tempfile.mkdtemp(prefix="agent-rig-"))
        self.pve = PveServer(cluster(nodes, guests, migration={"duration_s": 1.0}), listen=(f"{HERE}=127.0.0.1:0",))
        self.pmxcfs = Pmxcfs(*self._names[: self.mounts], unmounted=self._names[self.mounts :])
        self.settings: dict[str, Any] = SETTINGS | settings
        self.process: subprocess.Popen[bytes] | None = None
        self._mirror = Mirror(self.pve, self.pmxcfs, pvestatd_s=PVESTATD_S)
        self._leave = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            stack.enter_context(self.pve)
            stack.enter_context(self.pmxcfs)
            stack.callback(self._mirror.stop)
            self._lay_out()
            stack.callback(self.kill)
            self._leave = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave.__exit__(kind, error, trace)

    @property
    def mount(self) -> Path:
        """This node's /etc/pve."""
        return self.pmxcfs.at()

    def _lay_out(self) -> None:
        (self.folder / "run/inbox").mkdir(parents=True, mode=0o700)
        (self.folder / "state").mkdir()
        certificate = Path(self.pve.ca_file).parent / "nodes" / HERE / "pve-ssl.pem"
        self.pmxcfs.put(f"nodes/{HERE}/pve-ssl.pem", certificate.read_text())
        self.pmxcfs.put("priv/proxlb/token", TOKEN_SECRET + "\n")
        for name in self._names[1:]:
            self.report(name)
        self._mirror.start({})
        self.configure()

    def configure(self, **changes: Any) -> None:
        """Write the configuration file."""
        self.settings |= changes
        document = self.settings | {
            "api": {"hosts": [f"localhost:{self.pve.port}"], "token_file": str(self.mount / "priv/proxlb/token")},
            "paths": {"pmxcfs": str(self.mount), "run": str(self.folder / "run"), "state": str(self.folder / "state")},
        }
        (self.folder / "config.yaml").write_text(json.dumps(document))

    def report(self, node: str, *events: Mapping[str, Any], seq: int = 0) -> None:
        """What the agent of another node would report."""
        document = {
            "schema": "proxlb-agent/inbox/1", "node": node, "incarnation": "other", "boot_id": "boot", "seq": seq,
            "written_at": time.time(), "events": list(events), "flag": None,
            "facts": {"agent_version": "0.1.0", "node": {"bridges": ["vmbr0"]}},
        }  # fmt: skip
        self.pmxcfs.put(f"proxlb/inbox/{node}.json", json.dumps(document))

    def release_lead(self) -> None:
        """leader.json as a leader that stopped cleanly leaves it, so that the next need not wait for 90 s."""
        document = {
            "schema": "proxlb-agent/leader/1", "node": self._names[-1], "incarnation": "before", "epoch": 6, "state": "released",
            "since": time.time(), "version": "0.1.0",
        }  # fmt: skip
        self.pmxcfs.put("proxlb/leader.json", json.dumps(document))

    # the agent

    def start(self, *before: str, **more: str) -> None:
        """Start the agent and return at once; `before` is a command that starts it, `more` is for its environment."""
        log = (self.folder / "log").open("ab")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PROXLB", "NOTIFY", "JOURNAL"))}
        self.process = subprocess.Popen(
            [*before, "/usr/bin/python3", *self.command, "--config", str(self.folder / "config.yaml")],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment | {"PYTHONDONTWRITEBYTECODE": "1"} | more,
        )  # fmt: skip
        log.close()

    def signal(self, number: signal.Signals) -> None:
        """Send the agent a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9"""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def ended(self, within_s: float = HANGS_AFTER_S) -> int:
        """The agent's exit status; fails when it does not end in time."""
        assert self.process is not None
        return self.process.wait(within_s)

    @property
    def log(self) -> str:
        """What the agent said so far."""
        return (self.folder / "log").read_text()

    def hook(self, name: str) -> None:
        """An event as the hookscript leaves it."""
        (self.folder / "run/inbox" / name).touch()

    def wait(self, true: Callable[[], object], what: str, within_s: float = HANGS_AFTER_S) -> None:
        """Wait until it is true; fails with the agent's log when that takes too long."""
        until = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < until, f"not seen within {within_s} s: {what}\n{self.log}"
            assert self.process is None or self.process.poll() is None or true(), f"the agent ended before: {what}\n{self.log}"
            time.sleep(0.05)

    def wait_for(self, words: str, within_s: float = HANGS_AFTER_S) -> None:
        """Wait until the agent has said so."""
        self.wait(lambda: words in self.log, words, within_s)

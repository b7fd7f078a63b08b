# SPDX-License-Identifier: GPL-3.0-or-later
"""A follower lives in 24 MiB, so it loads none of what only a leader, a terminal or a broken configuration needs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from agent import __version__

ROOT = Path(__file__).resolve().parents[2]
# Each with what comes with it: the client of the API 12 MiB, OpenSSL 3.4, planner and work 2.5, statistics with decimal 0.5.
NOT_FOR_FOLLOWERS = (
    "proxmoxer", "requests", "urllib3", "http", "email", "ssl", "hashlib", "paramiko", "rich", "jsonschema",
    "statistics", "decimal", "fractions", "difflib", "csv", "concurrent", "asyncio", "multiprocessing",
    "agent.sim", "agent.simulation", "agent.adapters.pve", "agent.adapters.pveum",
    "agent.daemon.leading", "agent.daemon.senses", "agent.daemon.work", "agent.daemon.follow", "agent.daemon.asking",
    "agent.core.planner", "agent.core.placement", "agent.core.rules", "agent.core.durations", "agent.core.survival", "agent.core.history",
    "agent.core.aside", "agent.core.question", "agent.core.backups", "agent.core.learned", "agent.core.smoothing", "agent.core.clusterlog",
)  # fmt: skip
LIFE = """
import sys
sys.path.insert(0, sys.argv[1])
from agent.commands import run
from agent.core.cluster import NodeFacts
from agent.core.documents import LEADER_SCHEMA, LeaderFile, LeaderState, render
from agent.core.leadership import LockAct, LockTimes
from agent.core.settings import Settings
from agent.daemon import inputs, outputs
from agent.daemon.agent import Agent
from agent.daemon.identity import Identity
from agent.daemon.inputs import LockAnswer, LockOutcome, Now
from agent.ports import FactsSight, FilesystemState, InboxSight

leader = render(LeaderFile(LEADER_SCHEMA, "pve1", "other", 7, LeaderState.LEADING, 1e9, "0.1.0"))
agent = Agent(Identity("pve2", "this", "boot"), Settings(), LockTimes(), Now(0.0, 1e9))
told, arrived = [], []
for second in range(300):
    now = Now(float(second), 1e9 + second)
    asked, _ = agent.step(now, arrived)
    told += [type(output).__name__ for output in asked]
    arrived = []
    for output in asked:
        match output:
            case outputs.DoLock():
                seen = (int(now.wall_s), leader) if output.act is LockAct.LOOK else (None, None)
                arrived.append(LockAnswer(output.act, LockOutcome.DONE, now.boot_s, FilesystemState.QUORATE, *seen))
            case outputs.ClaimInbox():
                arrived.append(inputs.InboxSeen(InboxSight((f"{100 + second}.post-start",), (), None)))
            case outputs.ReadOwnInbox():
                arrived.append(inputs.OwnInboxSeen(None))
            case outputs.ReadFacts():
                arrived.append(inputs.FactsSeen(FactsSight(NodeFacts(), None, 1 << 30)))
            case outputs.ReadSettings():
                arrived.append(inputs.SettingsSeen(Settings()))
            case outputs.WriteShared():
                arrived.append(inputs.WriteAnswer(output.what, output.serial))
            case outputs.WithdrawShutdownFlag():
                arrived.append(inputs.ShutdownFlagWithdrawn(done=True))
            case outputs.Say():
                print(output.record.text)
print(*sorted({"DoLock", "WriteShared", "WriteStatus", "ReadSettings", "WithdrawShutdownFlag"} - set(told)))
print(*sorted(name for name in sys.argv[2:] if name in sys.modules))
"""


def test_a_follower_loads_nothing_that_only_a_leader_needs() -> None:
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-B", "-c", LIFE, str(ROOT), *NOT_FOR_FOLLOWERS], capture_output=True, text=True, timeout=300
    )
    said = [
        f"proxlb-agent {__version__} runs on pve2, mode full",
        "follows pve1",
        "this node is up again: the flag of its shutdown is withdrawn",
        "",
        "",
    ]
    assert (done.stdout.splitlines(), done.stderr, done.returncode) == (said, "", 0)


def test_what_is_named_here_is_there_to_be_loaded() -> None:
    """A module that is renamed would else be loaded unseen."""
    ours = [name for name in NOT_FOR_FOLLOWERS if name.startswith("agent.")]
    places = [ROOT / name.replace(".", "/") for name in ours]
    assert [name for name, place in zip(ours, places, strict=True) if not (place.is_dir() or place.with_suffix(".py").is_file())] == []

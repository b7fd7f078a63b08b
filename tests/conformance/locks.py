# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done with folders in priv/lock: taking one, and asking pmxcfs to drop it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from mounts import AT_ONCE_S, Cluster, Node, eventually, outcome

DROPPED_S = 1.5  # asked to drop a lock, the nodes do it in the next messages


def lock(node: Node, name: str) -> Path:
    return node.mount / "priv/lock" / name


def take(pve: Cluster, holder: Node, name: str) -> None:
    """Make the lock, and return when every node has it."""
    os.mkdir(lock(holder, name))
    eventually(lambda: all(name in os.listdir(mount / "priv/lock") for mount in pve.mounts), f"{name} on all nodes", AT_ONCE_S)


def ask(node: Node, name: str) -> str:
    """Ask pmxcfs to drop the lock, if it is old enough; what the call says."""
    return outcome(lambda: os.utime(lock(node, name), (0, 0)))


def is_dropped(node: Node, name: str) -> bool:
    """Ask, and tell whether the lock is gone in the time that takes."""
    ask(node, name)
    until = time.monotonic() + DROPPED_S
    while True:
        is_over = time.monotonic() > until  # before the look: one that comes late still counts
        if name not in os.listdir(node.mount / "priv/lock"):
            return True
        if is_over:
            return False
        time.sleep(0.1)

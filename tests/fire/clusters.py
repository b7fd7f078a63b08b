# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster under fire: three nodes, of which one is to be emptied while the leader's agent is struck."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from agent.core.settings import Settings
from agent.core.settings_check import check
from agent.sim.cluster_file import read_cluster
from agent.sim.world import World
from tests.fire.blaze import Blaze, Fault, Point

NODES = ("pve1", "pve2", "pve3")
DRAINED = (301, 302, 303, 304)
FLAG_S = 20.0  # when somebody wants pve3 empty


def settings(**changes: Any) -> Settings:
    """Settings that observe nothing and let load alone."""
    document = {"triggers": {"warmup_s": 0, "first_observe_s": 0}, "balance": {"spread_percent": 0}} | changes
    found = check(document)
    assert isinstance(found, Settings), found
    return found


def leader_text(node: str, epoch: int = 1, state: str = "released", since: float = 1767225000.0) -> str:
    """leader.json as an agent writes it."""
    return json.dumps({
        "schema": "proxlb-agent/leader/1", "node": node, "incarnation": "before", "epoch": epoch, "state": state, "since": since,
        "version": "0.1.0",
    })  # fmt: skip


def world(*, leader: str | None = None) -> World:
    """Three nodes with guests; the last leader let go, so the first agent leads at once."""
    guests = [{"vmid": vmid, "node": "pve3", "cores": 2, "memory_gib": 6, "used_cores": 0.5, "used_memory_gib": 4} for vmid in DRAINED]
    guests += [
        {"vmid": 100 * number + 1, "node": f"pve{number}", "cores": 2, "memory_gib": 8, "used_cores": 1, "used_memory_gib": 6}
        for number in (1, 2)
    ]
    files = {"proxlb/leader.json": leader_text("pve2") if leader is None else leader}
    return read_cluster({"nodes": {name: {"cores": 16, "memory_gib": 64} for name in NODES}, "guests": guests, "files": files})


def drain(faults: Iterable[tuple[Point, Fault]] = (), *, stop_s: float | None = None) -> Blaze:
    """The cluster with pve3 flagged after 20 s; at `stop_s` the leader's agent, that of pve1, is stopped."""
    blaze = Blaze(world(), settings(), faults)
    blaze.at(FLAG_S, lambda: blaze.world.set_flag("pve3", "a new kernel"))
    if stop_s is not None:
        blaze.at(stop_s, lambda: blaze.world.stop_agent("pve1"))
    return blaze

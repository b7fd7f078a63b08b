# SPDX-License-Identifier: GPL-3.0-or-later
"""What keeps load balancing from acting while much is in motion anyhow; maintenance and rules go on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core import history as memory
from agent.core.cluster import HaResource, HighAvailability, Snapshot
from agent.daemon.inputs import Now
from agent.daemon.permission import Permission, permission
from tests.core.clusters import NOW, cluster, node, settings, task, vm

CALM = cluster(node("pve1"), node("pve2"), vm(101, "pve1"))


def asked(snapshot: Snapshot, *, force: bool = False) -> Permission:
    found = settings({"triggers": {"warmup_s": 0, "first_observe_s": 0}})
    history, now = memory.empty(NOW - 86400), Now(5000.0, NOW)
    return permission(found, snapshot, history, now, paused=None, warm_at_s=0.0, settled_at_s=0.0, force=force)


def recovering(*states: str) -> Snapshot:
    resources = tuple(HaResource(101 + number, state=state) for number, state in enumerate(states))
    return replace(CALM, ha=HighAvailability(resources))


@pytest.mark.parametrize(
    ("snapshot", "why"),
    [
        (CALM, ""),
        (recovering("started", "migrate", "error"), ""),
        (recovering("started", "fence"), "the HA manager recovers guest 102"),
        (recovering("recovery", "fence", "recovery"), "the HA manager recovers guest 101 and 2 more"),
        (cluster(node("pve1"), node("pve2"), task("startall", "pve2", 0)), "startall is running on pve2"),
    ],
)
def test_nobody_is_moved_for_load_while_guests_are_started_all_over_the_cluster(snapshot: Snapshot, why: str) -> None:
    found = asked(snapshot)
    assert (found.act, found.load, found.why_not) == (True, not why, why)
    assert asked(snapshot, force=True).load, "a person may want it all the same"

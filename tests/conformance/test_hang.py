# SPDX-License-Identifier: GPL-3.0-or-later
"""pmxcfs answers nobody for a while: calls wait, as long as that takes, and are carried out."""

from __future__ import annotations

import os

import pytest
from mounts import ATTRIBUTES_CACHED_S, Cluster, UnderWay, read, write

pytestmark = pytest.mark.needs("SUSPEND", "RESUME")


def test_calls_wait_without_an_error_and_are_carried_out(pve: Cluster, folder: str) -> None:
    first, *_, node = pve.nodes[:3]
    os.mkdir(first.mount / folder / "other")
    write(first.mount / folder / "other/file", "text")
    pve.suspend(node)
    calls = [UnderWay(lambda: os.mkdir(node.mount / folder / "made")), UnderWay(lambda: read(node.mount / folder / "other/file"))]
    assert not any(call.ended(ATTRIBUTES_CACHED_S) for call in calls)
    assert read(first.mount / folder / "other/file") == "text", "the other nodes read on"
    pve.resume(node)
    assert all(call.ended(pve.change_s) for call in calls)
    assert [call.outcome for call in calls] == ["", ""]
    assert sorted(os.listdir(first.mount / folder)) == ["made", "other"]

# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of storages and pressures: once, and again only when it has been otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.cluster import GIB, StorageUse
from agent.core.journal import Level
from agent.daemon.outputs import Output, Say
from agent.daemon.telling import Telling
from tests.core.clusters import cluster, node

TWO = cluster(node("pve1"), node("pve2"))


def texts(outputs: list[Output]) -> list[str]:
    return [output.record.text for output in outputs if isinstance(output, Say)]


def said(telling: Telling, *percents: float, threshold: float = 90.0) -> list[int]:
    """How much is said of a storage that is so full at each look."""
    uses = [StorageUse("local", ("pve1",), int(percent * GIB), 100 * GIB) for percent in percents]
    return [len(telling.full_storages(replace(TWO, storage_use=(use,)), threshold)) for use in uses]


@pytest.mark.parametrize(
    ("percents", "lines"),
    [
        ((50, 89.9, 90, 95, 99), [0, 0, 1, 0, 0]),
        ((95, 89.5, 92), [1, 0, 0]),  # on the edge
        ((95, 88, 92), [1, 0, 1]),
        ((89.5, 89.9), [0, 0]),
    ],
)
def test_a_full_storage_is_said_once(percents: tuple[float, ...], lines: list[int]) -> None:
    assert said(Telling(), *percents) == lines


@pytest.mark.parametrize("threshold", [0.0, 100.0])
def test_no_threshold_says_nothing(threshold: float) -> None:
    assert said(Telling(), 99, 100, threshold=threshold) == [0, 0]


def test_storages_of_one_name_are_told_apart_by_node_and_a_shared_one_is_one() -> None:
    use = (
        StorageUse("ceph", ("pve1", "pve2"), 95 * GIB, 100 * GIB),
        StorageUse("local", ("pve1",), 95 * GIB, 100 * GIB),
        StorageUse("local", ("pve2",), 96 * GIB, 100 * GIB),
    )
    (first, *rest) = Telling().full_storages(replace(TWO, storage_use=use), 90)
    assert texts([first, *rest]) == [
        "storage ceph of 2 nodes is 95 % full: 95 of 100 GiB",
        "storage local on pve1 is 95 % full: 95 of 100 GiB",
        "storage local on pve2 is 96 % full: 96 of 100 GiB",
    ]
    assert isinstance(first, Say)
    assert (first.record.level, first.record.source) == (Level.WARNING, None)


def test_a_storage_that_is_not_seen_for_a_look_is_said_again() -> None:
    telling = Telling()
    assert said(telling, 95) == [1]
    assert telling.full_storages(TWO, 90) == []
    assert said(telling, 95) == [1]


def test_unknown_pressure_is_said_when_it_changes() -> None:
    telling = Telling()
    found = [texts(telling.pressure(unknown)) for unknown in (None, "of pve1", "of pve1", "of pve2", None, None)]
    assert found == [[], ["of pve1"], [], ["of pve2"], ["the pressure of all nodes is known"], []]

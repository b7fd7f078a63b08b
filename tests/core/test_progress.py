# SPDX-License-Identifier: GPL-3.0-or-later
"""How far moves have come, in figures and in words."""

from __future__ import annotations

import pytest

from agent.core.cluster import GIB
from agent.core.documents import Timing, Way
from agent.core.migrations import MigrationState
from agent.core.progress import Progress, copied_bytes, progress_of, time_left_s
from tests.core.clusters import NOW, ct, settings, stopped, vm
from tests.core.records import record

PLAIN = settings()
TIMINGS = tuple(Timing(NOW - 100 + at, Way.LIVE, 4 * GIB, 10.0) for at in range(3))
UNDER_WAY = [record(101, MigrationState.RUNNING, ago_s=5, memory_bytes=4 * GIB)]


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (Progress(0, 1), "0 of 1 guest"),
        (Progress(2, 5, 12 * GIB, 40 * GIB), "2 of 5 guests, 12.0 of 40.0 GiB"),
        (Progress(2, 5, 12 * GIB, 40 * GIB, 170.0), "2 of 5 guests, 12.0 of 40.0 GiB, about 3 min left"),
    ],
)
def test_in_words(progress: Progress, words: str) -> None:
    assert progress.words == words


def test_who_is_left_counts_to_what_is_left() -> None:
    assert progress_of({101: 4, 102: 6, 103: 0}, [102, 999], None) == Progress(2, 3, 4, 10)


def test_only_what_is_copied_counts() -> None:
    assert copied_bytes(vm(101, "pve1", memory_used_bytes=3 * GIB, memory_host_bytes=5 * GIB)) == 5 * GIB
    assert copied_bytes(vm(101, "pve1", memory_used_bytes=None, memory_host_bytes=None)) == 0
    assert copied_bytes(stopped(vm(101, "pve1"))) == copied_bytes(ct(101, "pve1")) == 0


def test_the_time_that_is_left_is_told_only_where_migrations_of_the_cluster_tell_it() -> None:
    assert time_left_s([], UNDER_WAY, TIMINGS, PLAIN, NOW) == pytest.approx(10, abs=1)
    assert time_left_s([], UNDER_WAY, (), PLAIN, NOW) is None
    assert time_left_s([], [], TIMINGS, PLAIN, NOW) is None

# SPDX-License-Identifier: GPL-3.0-or-later
"""How long migrations take, as past ones tell."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import durations
from agent.core.cluster import GIB, MIB, GuestType, Task
from agent.core.documents import Timing, Way
from agent.core.durations import NOTICED_S, Pace, _median, foretold, remaining, timing_of
from agent.core.migrations import MigrationState
from agent.core.plan_types import Move
from agent.core.reasons import MoveReason
from tests.core.clusters import NOW, settings
from tests.core.records import record

PLAIN = settings()


def live(gib: float, took_s: float, at: float = 0.0, limit_kib_s: int | None = None) -> Timing:
    return Timing(NOW + at, Way.LIVE, int(gib * GIB), took_s, limit_kib_s)


def task(start_s: float, end_s: float | None, vmid: int = 101, kind: str = "qmigrate", status: str = "OK", node: str = "pve1") -> Task:
    ended_at = None if end_s is None else NOW + end_s
    return Task(f"UPID:{node}:{start_s}", node, kind, str(vmid), "root@pam", NOW + start_s, ended_at, None if end_s is None else status)


def move(vmid: int, source: str, target: str, gib: float = 4.0, batch: int = 1, reason: MoveReason = MoveReason.OVERLOAD) -> Move:
    return Move(vmid, GuestType.QEMU, "", source, target, reason, batch, True, int(gib * GIB), 0.5, 0.01)


@given(
    rate_mib=st.floats(20, 4000),
    fixed_s=st.floats(0.5, 12),
    sizes=st.lists(st.floats(2, 128), min_size=6, max_size=6),
    seed=st.integers(0, 1000),
)
def test_after_five_at_one_speed_the_sixth_is_foretold_within_a_quarter(
    rate_mib: float, fixed_s: float, sizes: list[float], seed: int
) -> None:
    """PVE's own times are to the second, so a migration of a few seconds cannot be foretold better than that."""
    rng = random.Random(seed)
    times = [fixed_s + gib * 1024 / rate_mib for gib in sizes]
    seen = [float(int(rng.random() + took_s)) for took_s in times[:5]]
    if max(sizes[:5]) < 1.5 * min(sizes[:5]):  # no size tells the fixed part: the sixth is as large as one of the five
        sizes = [*sizes[:5], sizes[0]]
        times[5] = times[0]
    if sizes[5] > 2 * max(sizes[:5]) or times[5] < 10:
        return  # beyond what was seen, whole seconds are too coarse a measure
    pace = Pace([live(gib, took_s, at) for at, (gib, took_s) in enumerate(zip(sizes[:5], seen, strict=True))], PLAIN)
    expected = pace.expected(Way.LIVE, sizes[5] * GIB)
    assert expected.rests_on == 5
    assert expected.seconds == pytest.approx(times[5], rel=0.25, abs=2.5)


def test_before_the_first_migration_a_line_of_one_gigabit_is_assumed_and_said_to_be() -> None:
    expected = Pace([], PLAIN).expected(Way.LIVE, 100 * MIB * 10)
    assert expected.seconds == pytest.approx(10 + durations.ASSUMED_FIXED_S)
    assert expected.rests_on == 0
    assert Pace([], PLAIN).expected(Way.RESTART, 64 * GIB).seconds == durations.ASSUMED_RESTART_S
    assert Pace([], PLAIN).expected(Way.OFFLINE, 64 * GIB).seconds == durations.ASSUMED_OFFLINE_S


def test_one_that_was_held_up_does_not_count_for_all() -> None:
    even = [live(gib, 4 + gib * 10, gib) for gib in (4, 8, 16, 32)]
    expected = Pace([*even, live(10, 4000, 50)], PLAIN).expected(Way.LIVE, 20 * GIB)
    assert expected.seconds == pytest.approx(204, rel=0.25)


def test_a_network_that_has_become_faster_is_believed_after_a_while() -> None:
    slow = [live(gib, 4 + gib * 10, gib) for gib in (4, 8, 16, 32, 5, 6, 7, 9, 12, 14, 18, 20)]
    fast = [live(gib, 4 + gib, 100 + gib) for gib in (4, 8, 16, 32, 5, 6, 7, 9, 12, 14, 18, 20)]
    assert Pace(durations.bounded([*slow, *fast]), PLAIN).expected(Way.LIVE, 20 * GIB).seconds == pytest.approx(24, rel=0.1)


def test_a_limit_holds_back_what_was_measured_without_one() -> None:
    free = [live(gib, 4 + gib, gib) for gib in (4, 8, 16, 32, 64)]
    limited = settings({"migration": {"bandwidth_limit_kib_s": 102400}})
    assert Pace(free, limited).expected(Way.LIVE, 100 * 1024 * MIB).seconds == pytest.approx(4 + 1024, rel=0.01)
    under_it = [live(gib, 4 + gib * 12, 100 + gib, 102400) for gib in (4, 8)]
    measured = Pace([*free, *under_it], limited).expected(Way.LIVE, 10 * GIB)
    assert (measured.seconds, measured.rests_on) == (pytest.approx(124), 2)
    assert Pace([*free, *under_it], PLAIN).expected(Way.LIVE, 10 * GIB).seconds == pytest.approx(14)


def test_a_limit_above_what_the_network_does_changes_nothing() -> None:
    free = [live(gib, 4 + gib * 10, gib) for gib in (4, 8, 16)]
    wide = settings({"migration": {"bandwidth_limit_kib_s": 10_000_000}})
    assert Pace(free, wide).expected(Way.LIVE, 10 * GIB).seconds == pytest.approx(104)


def test_containers_take_what_containers_took() -> None:
    took = [Timing(NOW + at, Way.RESTART, 4 * GIB, took_s) for at, took_s in enumerate((8.0, 12.0, 100.0))]
    assert Pace([*took, live(4, 500)], PLAIN).expected(Way.RESTART, 64 * GIB) == durations.Expected(12.0, 3)


def test_the_time_is_that_of_pves_own_task() -> None:
    done = record(ago_s=100.0)  # planned 100 s ago
    others = [task(-400, -300), task(-97, -60, vmid=102), task(-97, -60, node="pve3"), task(-97, None), task(-97, -70, kind="hamigrate")]
    tasks = [*others, task(-98, -91)]
    assert timing_of(replace(done, limit_kib_s=1000), tasks) == Timing(NOW - 91, Way.LIVE, 4 * GIB, 7.0, 1000)
    assert timing_of(done, others) is None
    assert timing_of(done, [task(-98, -91, status="migration aborted")]) is None
    assert timing_of(record(ago_s=100.0, type=GuestType.LXC), [task(-98, -91, kind="vzmigrate")]).way is Way.RESTART  # type: ignore[union-attr]
    assert timing_of(record(ago_s=100.0, online=False), tasks).way is Way.OFFLINE  # type: ignore[union-attr]


def test_a_clock_that_went_back_gives_no_time() -> None:
    assert timing_of(record(ago_s=100.0), [task(-90, -99)]) is None


def test_many_containers_do_not_push_out_what_is_known_of_vms() -> None:
    timings = [live(4, 10, at) for at in range(5)] + [Timing(NOW + 100 + at, Way.RESTART, 0, 5.0) for at in range(500)]
    kept = durations.bounded(timings)
    assert len(kept) <= durations.MOST_KEPT
    assert sum(one.way is Way.LIVE for one in kept) == 5


def test_a_plan_takes_as_long_as_its_slots_let_it() -> None:
    timings = [live(gib, 6 + gib * 10, gib) for gib in (4, 8)]
    each = 46 + durations.NOTICED_S
    two = foretold([move(101, "pve1", "pve2"), move(102, "pve3", "pve4")], timings, PLAIN)
    assert two.whole_s == pytest.approx(each)
    assert two.moves[101].seconds == pytest.approx(46)
    assert two.rests_on == 2
    one_node = foretold([move(101, "pve1", "pve2"), move(102, "pve1", "pve3"), move(103, "pve1", "pve4")], timings, PLAIN)
    assert one_node.whole_s == pytest.approx(3 * each)
    drain = foretold([move(101 + n, "pve1", f"pve{2 + n}", reason=MoveReason.MAINTENANCE) for n in range(4)], timings, PLAIN)
    assert drain.whole_s == pytest.approx(2 * each)
    later = foretold([move(101, "pve1", "pve2"), move(102, "pve3", "pve4", batch=2)], timings, PLAIN)
    assert later.whole_s == pytest.approx(2 * each)
    assert foretold([], timings, PLAIN).whole_s == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 s"), (3.2, "3 s"), (7.0, "5 s"), (44.0, "45 s"), (95.0, "2 min"), (1800, "30 min"), (9000, "2.5 h")]
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert durations.words(seconds) == text


@given(
    st.lists(
        st.builds(
            Timing,
            at=st.floats(0, 2e9),
            way=st.sampled_from(Way),
            memory_bytes=st.integers(0, 1 << 50),
            took_s=st.floats(0, 1e7),
            limit_kib_s=st.none() | st.integers(1, 1 << 40),
        ),
        max_size=30,
    ),
    st.floats(0, 1e15),
)
def test_whatever_is_remembered_gives_a_time(timings: list[Timing], memory_bytes: float) -> None:
    pace = Pace(timings, PLAIN)
    for way in Way:
        assert 0 <= pace.expected(way, memory_bytes).seconds < 1e12


def test_who_takes_disks_along_has_a_line_of_its_own() -> None:
    done = record(ago_s=100.0, disk_bytes=96 * GIB)
    timing = timing_of(done, [task(-98, -91)])
    assert timing == Timing(NOW - 91, Way.COPY, 100 * GIB, 7.0)
    of_memory = [live(2 + i, 6.0 + i, -100 + i) for i in range(5)]
    copies = [Timing(NOW - 100 + i, Way.COPY, (20 + 20 * i) * GIB, 100.0 + 80 * i) for i in range(5)]
    pace = Pace([*of_memory, *copies], PLAIN)
    assert (pace.of_record(record()).seconds, pace.of_record(record()).rests_on) == (pytest.approx(8.0), 5)
    assert pace.of_record(done).seconds == pytest.approx(20 + 4 * 100)
    assert Pace(of_memory, PLAIN).of_record(done).rests_on == 0
    assert Pace(of_memory, PLAIN).of_record(done).seconds > 900  # at the speed that is assumed, not at that of memory


class TestWhatIsLeft:
    KNOWN = tuple(live(4, 10, at) for at in range(5))

    def test_nothing_left_takes_no_time(self) -> None:
        assert remaining([], [], self.KNOWN, PLAIN, NOW).seconds == 0

    def test_what_is_under_way_takes_what_it_has_not_taken_yet(self) -> None:
        under_way = record(101, MigrationState.RUNNING, ago_s=7, memory_bytes=4 * GIB)
        left = remaining([], [under_way], self.KNOWN, PLAIN, NOW)
        assert (left.seconds, left.rests_on) == (pytest.approx(10 - 6 + NOTICED_S), 5)
        late = record(101, MigrationState.RUNNING, ago_s=60, memory_bytes=4 * GIB)
        assert remaining([], [late], self.KNOWN, PLAIN, NOW).seconds == NOTICED_S

    def test_the_moves_after_it_wait_for_its_slot(self) -> None:
        under_way = record(101, MigrationState.RUNNING, ago_s=7, memory_bytes=4 * GIB)
        moves = [move(101, "pve1", "pve2"), move(102, "pve1", "pve2")]
        left = remaining(moves, [under_way], self.KNOWN, PLAIN, NOW)
        assert left.seconds == pytest.approx(4 + NOTICED_S + 10 + NOTICED_S), "the one under way is counted once"

    def test_it_rests_on_nothing_where_one_of_the_kinds_was_never_measured(self) -> None:
        moves = [move(102, "pve1", "pve2"), replace(move(103, "pve1", "pve2"), type=GuestType.LXC)]
        assert remaining(moves, [], self.KNOWN, PLAIN, NOW).rests_on == 0


@pytest.mark.parametrize("values", [[3.0], [3.0, 1.0], [5.0, 1.0, 3.0], [4.0, 1.0, 3.0, 2.0], [2.0, 2.0, 1.0, 2.0, 9.0]])
def test_the_middle_is_that_of_the_library(values: list[float]) -> None:
    assert _median(values) == statistics.median(values)

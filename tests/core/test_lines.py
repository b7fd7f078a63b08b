# SPDX-License-Identifier: GPL-3.0-or-later
"""What a line says of its rows without a look at each is what a look at each says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.core.lines import Line, Mover, Row, by_memory
from agent.core.placement import NOTHING

AMOUNTS = st.sampled_from((0.0, 0.5, 1.0)) | st.floats(0.0, 64.0)
ROWS = st.lists(st.tuples(AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS, st.sampled_from((None, 1, 2))), max_size=12)
PRICES = st.sampled_from((0.0, 1.0, -1.0)) | st.floats(-2.0, 2.0)


def line_of(loads: list[tuple[float, float, float, float, int | None]]) -> Line:
    rows = [
        Row(cpu, memory, pressure, cost, Mover(i, (i,), NOTHING, origin, 0.0))
        for i, (cpu, memory, pressure, cost, origin) in enumerate(loads)
    ]
    return Line(sorted(rows, key=by_memory))


@given(ROWS, PRICES, PRICES)
def test_a_line_is_worth_what_its_best_row_is(
    loads: list[tuple[float, float, float, float, int | None]], by_cpu: float, by_memory: float
) -> None:
    line = line_of(loads)
    for one, other in ((by_cpu, by_memory), (-by_cpu, by_memory), (-by_cpu, -by_memory)):  # asked again and again, as searches do
        assert line.worth(one, other) == max((cpu * one + memory * other for cpu, memory, _, _, _ in loads), default=0.0)


@given(ROWS)
def test_a_line_knows_its_extremes_and_its_orders(loads: list[tuple[float, float, float, float, int | None]]) -> None:
    line = line_of(loads)
    cpu, memory, pressure, cost = ([load[i] for load in loads] for i in range(4))
    assert (line.least_cpu, line.most_cpu) == (min(cpu, default=0.0), max(cpu, default=0.0))
    assert (line.least_memory, line.most_memory) == (min(memory, default=0.0), max(memory, default=0.0))
    assert (line.most_pressure, line.cheapest) == (max(pressure, default=0.0), min(cost, default=0.0))
    assert list(line.memory) == sorted(memory)
    assert line.cores == sorted(cpu) == [line.cpu[place] for place in line.rising]
    assert [row.cpu for row in line.rows] == list(line.cpu)
    assert line.origins == {origin for *_, origin in loads} - {None}

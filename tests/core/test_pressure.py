# SPDX-License-Identifier: GPL-3.0-or-later
"""Pressure of nodes: when it counts, what stands for an unknown one, and what a guest takes along."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.cluster import GIB, Snapshot
from agent.core.guest_load import GuestLoad, Ledger, expected_load
from agent.core.imbalance import Weights, balance_of, imbalance, over_threshold, spread
from agent.core.json_types import Json
from agent.core.node_load import NodeLoad, counted, node_loads
from agent.core.pressure import why_pressure_unknown
from agent.core.settings import Settings
from tests.core.clusters import changed, cluster, node, settings, vm

TWO = (node("pve1"), node("pve2"))
PLAIN = Settings()
PRESSED = settings({"balance": {"pressure": {"threshold_percent": 20, "weight": 1}}})


def loads_of(snapshot: Snapshot, how: Settings = PLAIN, ledger: Ledger | None = None) -> dict[str, NodeLoad]:
    return node_loads(snapshot, ledger or Ledger(), how)


def pressed(*pressures: float | None, **other: object) -> Snapshot:
    """Nodes of equal load, with these pressures."""
    nodes = [node(f"pve{i + 1}", pressure_fraction=pressure, **other) for i, pressure in enumerate(pressures)]
    return cluster(*nodes, *(vm(101 + i, f"pve{i + 1}", 4, 4) for i in range(len(nodes))))


def test_pressure_is_nothing_unless_it_is_switched_on() -> None:
    loads = loads_of(pressed(0.9, 0.1))
    assert [(load.pressure_fraction, load.has_pressure) for load in loads.values()] == [(0.0, False)] * 2
    assert over_threshold(loads["pve1"], Weights.of(PLAIN, loads.values())) is None


@pytest.mark.parametrize("part", [{"threshold_percent": 20}, {"weight": 0.5}])
def test_a_threshold_or_a_weight_switches_it_on(part: dict[str, Json]) -> None:
    assert loads_of(pressed(0.9, 0.1), settings({"balance": {"pressure": part}}))["pve1"].has_pressure


def test_pressure_opens_the_gate() -> None:
    loads = loads_of(pressed(0.45, 0.1), PRESSED)
    weights = Weights.of(PRESSED, loads.values())
    assert [over_threshold(load, weights) for load in loads.values()] == ["pressure 45 % over 20 %", None]
    width, high, low = spread(loads.values(), weights)
    assert (round(width, 6), high, low) == (0.35, "pve1", "pve2")


def test_pressure_is_a_third_of_the_imbalance_where_all_weigh_the_same() -> None:
    loads = loads_of(pressed(0.4, 0.1), PRESSED)
    weights = Weights.of(PRESSED, loads.values())
    assert imbalance(loads.values(), weights) == pytest.approx(0.15 / 3)
    assert balance_of(loads, loads, weights).imbalance == pytest.approx(0.15 / 3)


def test_an_unknown_pressure_is_the_mean_and_neither_better_nor_worse() -> None:
    loads = loads_of(pressed(0.4, 0.1, None, 7.0), PRESSED)
    assert [load.pressure_fraction for load in loads.values()] == [0.4, 0.1, 0.25, 0.25]
    assert [load.has_pressure for load in loads.values()] == [True, True, False, False]
    weights = Weights.of(PRESSED, loads.values())
    assert over_threshold(loads["pve3"], weights) is None, "over the threshold for all that others know"
    assert spread(loads.values(), weights)[1:] == ("pve1", "pve2")


def test_without_any_known_pressure_the_measure_is_left_out_with_its_weight() -> None:
    snapshot = cluster(*TWO, vm(101, "pve1", 40, 4))
    loads = loads_of(snapshot, PRESSED)
    weights = Weights.of(PRESSED, loads.values())
    assert (weights.pressure, weights.pressure_threshold) == (0.0, None)
    assert imbalance(loads.values(), weights) == imbalance(loads_of(snapshot).values(), Weights.of(PLAIN))


def test_who_does_not_tell_its_pressure_is_named() -> None:
    assert why_pressure_unknown(pressed(0.1, None), PLAIN) is None
    assert why_pressure_unknown(pressed(0.1, 0.2), PRESSED) is None
    assert why_pressure_unknown(changed(pressed(0.1, None), "pve2", online=False), PRESSED) is None
    some = why_pressure_unknown(pressed(0.1, None, 2.0), PRESSED)
    assert some == "the pressure of pve2, pve3 is not known: compared as if at the mean of the others (PVE 9 tells it)"
    assert (why_pressure_unknown(pressed(None, None), PRESSED) or "").startswith("balance.pressure is left out")


def test_a_guest_takes_pressure_along_by_its_share_of_the_cpu_in_use() -> None:
    snapshot = cluster(node("pve1", pressure_fraction=0.4), vm(101, "pve1", 4, 6), vm(102, "pve1", 4, 1.5), system_cpu=0.5)
    load = loads_of(snapshot, PRESSED)["pve1"]
    shares = [counted(guest, expected_load(guest, Ledger()), load, PRESSED).pressure_fraction for guest in snapshot.guests]
    assert shares == [pytest.approx(0.4 * 6 / 8), pytest.approx(0.4 * 1.5 / 8)]
    assert sum(shares) < 0.4, "the rest is the node's own"


def test_no_guest_takes_along_more_pressure_than_there_is() -> None:
    load = replace(loads_of(pressed(0.4), PRESSED)["pve1"], cpu_used_cores=0.0)
    assert counted(vm(101, "pve1"), GuestLoad(3.0, GIB), load, PRESSED).pressure_fraction == pytest.approx(0.4)
    assert counted(vm(101, "pve1"), GuestLoad(0.0, GIB), load, PRESSED).pressure_fraction == 0.0

# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows about high availability as PVE writes them, and as it never would."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.adapters.pve import ha
from agent.adapters.pve.ha import OPTIONS, OPTIONS_LIFE_S, RESOURCES, RULES, UNUSED_LIFE_S, HaReader, Options
from agent.core.cluster import HaNodeAffinity, HaResource, HaResourceAffinity

NOW = 1_767_225_600.0
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["vm:100", "ct:7", "pve1:2,pve2", "node-affinity", "negative", "x"]),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "sid", "state", "group", "nodes", "resources", "type", "rule", "affinity", "errors", "disable", "failback", "crs", "ha",
                    "registered-tags", "manager_status", "service_status", "vm:100", "node", "target", "cmd", "timestamp", "disarm",
                ]
            ),
            below,
            max_size=5,
        )
    ),
    max_leaves=12,
)  # fmt: skip


def status(age_s: float = 0.0, **services: Any) -> dict[str, Any]:
    return {"manager_status": {"timestamp": NOW - age_s, "service_status": services}}


class Server:
    """Answers by path, counted."""

    def __init__(self, **answers: object) -> None:
        self.answers = {RESOURCES: [{"sid": "vm:100"}], RULES: [], OPTIONS: {}} | answers
        self.asked: list[str] = []

    def __call__(self, path: str) -> object:
        self.asked.append(path)
        return self.answers[path]


class TestResources:
    def test_a_resource_without_more_words_is_to_run_fails_back_and_may_be_balanced(self) -> None:
        assert ha.resources([{"sid": "vm:100"}], [], {}) == (HaResource(100),)

    def test_what_a_row_and_the_manager_say_comes_together(self) -> None:
        row = {"sid": "ct:101", "state": "enabled", "failback": "0", "auto-rebalance": 0}
        service = {"state": "migrate", "node": "pve1", "target": "pve2", "maintenance_node": "pve3"}
        expected = HaResource(101, "started", "migrate", "pve1", "pve2", "pve3", failback=False, auto_rebalance=False)
        assert ha.resources([row], [], {"ct:101": service}) == (expected,)

    def test_a_command_that_waits_is_a_target(self) -> None:
        [found] = ha.resources([{"sid": "vm:100"}], [], {"vm:100": {"state": "started", "cmd": ["migrate", "pve2"]}})
        assert found.target == "pve2"
        [found] = ha.resources([{"sid": "vm:100"}], [], {"vm:100": {"state": "started", "cmd": ["stop", 60]}})
        assert found.target is None

    @pytest.mark.parametrize("sid", ["vm:", "vm:1", "vm:0100", "fa:100", "100", None, 100, "vm:100 x", "vm:1000000000"])
    def test_what_is_no_guest_is_left_out(self, sid: object) -> None:
        assert ha.resources([{"sid": sid}], [], {}) == ()


class TestRules:
    ROW = {"rule": "a", "type": "node-affinity", "resources": "vm:101, ct:100;vm:101", "nodes": "pve2;pve1:5"}  # noqa: RUF012

    def test_a_node_affinity_rule(self) -> None:
        assert ha.node_affinity(self.ROW) == HaNodeAffinity("a", (100, 101), (("pve1", 5), ("pve2", 0)))
        assert ha.node_affinity(self.ROW | {"strict": "1"}) == HaNodeAffinity("a", (100, 101), (("pve1", 5), ("pve2", 0)), strict=True)
        assert ha.node_affinity(self.ROW | {"disable": 0}) is not None

    @pytest.mark.parametrize(
        "change", [{"disable": 1}, {"errors": {"resources": ["x"]}}, {"resources": ""}, {"nodes": ""}, {"nodes": "pve1:x"}, {"type": "x"}]
    )
    def test_what_does_not_hold_is_left_out(self, change: dict[str, object]) -> None:
        assert ha.node_affinity(self.ROW | change) is None

    def test_resource_affinity(self) -> None:
        row = {"rule": "a", "type": "resource-affinity", "affinity": "positive", "resources": "vm:101,ct:100"}
        assert ha.resource_affinity(row) == HaResourceAffinity("a", (100, 101), together=True)
        assert ha.resource_affinity(row | {"affinity": "negative"}) == HaResourceAffinity("a", (100, 101), together=False)
        for change in ({"affinity": "x"}, {"resources": "vm:100"}, {"disable": "1"}, {"errors": {"x": 1}}):
            assert ha.resource_affinity(row | change) is None


class TestOptions:
    @pytest.mark.parametrize(
        "crs", [{"ha": "dynamic", "ha-auto-rebalance": 1}, "ha=static,ha-auto-rebalance=1", "ha-auto-rebalance=1,ha=dynamic"]
    )
    def test_a_cluster_balances_with_both_a_mode_and_the_switch(self, crs: object) -> None:
        assert ha.options({"crs": crs}).balances

    @pytest.mark.parametrize(
        "crs", [None, "ha=static", {"ha": "basic", "ha-auto-rebalance": 1}, {"ha-auto-rebalance": 1}, "ha=static,ha-auto-rebalance=0", 7]
    )
    def test_otherwise_it_does_not(self, crs: object) -> None:
        assert not ha.options({"crs": crs}).balances

    def test_registered_tags_are_kept_as_they_are_written(self) -> None:
        assert ha.options({"registered-tags": "b;A,c"}).registered_tags == ("A", "b", "c")
        assert ha.options({}).registered_tags == ()
        assert ha.options(None) == Options(False, None)


class TestReader:
    def read(self, server: Server, clock: list[float], said: object) -> int:
        """How many requests it takes."""
        self.reader = getattr(self, "reader", None) or HaReader(server, lambda: clock[0])
        before = len(server.asked)
        self.ha = self.reader.read(said, (), 9, NOW)
        return len(server.asked) - before

    def test_where_ha_is_not_used_that_is_asked_now_and_then(self) -> None:
        server, clock = Server(**{RESOURCES: []}), [0.0]
        assert [self.read(server, clock, {}) for _ in range(3)] == [2, 0, 0]
        clock[0] = UNUSED_LIFE_S
        assert self.read(server, clock, {}) == 1
        server.answers[RESOURCES] = [{"sid": "vm:100"}]
        assert self.read(server, clock, {}) == 0
        assert self.read(server, clock, status(**{"vm:100": {"state": "started"}})) == 2
        assert self.ha.resources == (HaResource(100, state="started"),)
        clock[0] = max(OPTIONS_LIFE_S, UNUSED_LIFE_S)
        assert self.read(server, clock, status(**{"vm:100": {}})) == 3

    def test_the_managers_last_word_is_not_believed_for_ever(self) -> None:
        said = {"vm:100": {"state": "started", "node": "pve1"}}
        self.read(Server(), [0.0], status(59.0, **said))
        assert self.ha.resources == (HaResource(100, state="started", node="pve1"),)
        self.read(Server(), [0.0], status(61.0, **said))
        assert self.ha.resources == (HaResource(100),), "it has not said what it does with it"

    def test_a_disarmed_manager_is_known(self) -> None:
        said = status()
        said["manager_status"]["disarm"] = {"mode": "freeze", "state": "disarmed"}
        self.read(Server(), [0.0], said)
        assert self.ha.disarmed

    def test_pve_8_is_not_asked_for_rules(self) -> None:
        server = Server()
        HaReader(server, lambda: 0.0).read({}, (), 8, NOW)
        assert server.asked == [OPTIONS, RESOURCES]


@given(JSON, JSON, JSON, JSON)
def test_no_answer_makes_it_stumble(said: object, rows: object, rules: object, found: object) -> None:
    server = Server(**{RESOURCES: [rows], RULES: [rules], OPTIONS: found, ha.GROUPS: [rules]})
    result = HaReader(server, lambda: 0.0).read(said, (), None, NOW)
    json.dumps([resource.vmid for resource in result.resources])

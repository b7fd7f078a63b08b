# SPDX-License-Identifier: GPL-3.0-or-later
"""What tags, pools and HA rules ask for, what of it cannot be kept, and that it is read in time that does not explode."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.cluster import Guest, HaNodeAffinity, HaResource, HaResourceAffinity, HighAvailability, Maintenance, Snapshot
from agent.core.crowding import crowded
from agent.core.json_types import Json
from agent.core.rule_reading import read_rules
from agent.core.rules import Rules
from agent.core.settings import Settings
from tests.core.clusters import cluster, node, settings, stopped, vm

THREE = (node("pve1"), node("pve2"), node("pve3"))
NAMES = ("pve1", "pve2", "pve3")


def pools(**rules: Json) -> Settings:
    return settings({"pools": dict(rules)})


def tagged(vmid: int, *tags: str, at: str = "pve1", pool: str | None = None) -> Guest:
    return replace(vm(vmid, at, 4, 0.5, *tags), pool=pool)


def under_ha(snapshot: Snapshot, *rules: HaNodeAffinity | HaResourceAffinity, closed: Iterable[str] = (), **of_all: object) -> Snapshot:
    """Every guest is the HA manager's."""
    resources = tuple(
        replace(HaResource(guest.vmid, state="started", node=guest.node), **of_all)  # type: ignore[arg-type]
        for guest in snapshot.guests
    )
    nodes = tuple(rule for rule in rules if isinstance(rule, HaNodeAffinity))
    bonds = tuple(rule for rule in rules if isinstance(rule, HaResourceAffinity))
    return replace(snapshot, ha=HighAvailability(resources, nodes, bonds, tuple(closed)))


def read(snapshot: Snapshot, how: Settings | None = None) -> Rules:
    return read_rules(snapshot, how or Settings())


def conflicts_of(rules: Rules) -> list[tuple[str, tuple[int, ...], str]]:
    return [(conflict.rule, conflict.vmids, conflict.detail) for conflict in rules.conflicts]


class TestTags:
    def test_a_tag_is_known_in_any_case_and_between_any_separators(self) -> None:
        rules = read(cluster(*THREE, tagged(101, "PLB_Affinity_A,x plb_pin_PVE2"), tagged(102, "plb_affinity_a;PLB_ignore_me")))
        assert [(group.rule, group.vmids) for group in rules.affinity] == [("plb_affinity_a", (101, 102))]
        assert rules.pins == {101: frozenset({"pve2"})}
        assert rules.ignored == {102}
        assert rules.named == {101: ("PLB_Affinity_A", "plb_pin_PVE2"), 102: ("plb_affinity_a", "PLB_ignore_me")}

    def test_a_tag_that_begins_as_ours_and_is_none_is_named_with_its_guests(self) -> None:
        odd = ("plb_afinity_a", "plb_antiaffinity_a", "plb_affinity_", "PLB_pin_", "plb_anti_affinity", "plb_ignored", "plb_")
        rules = read(cluster(*THREE, tagged(101, *odd, "plbx", "prod"), tagged(102, "plb_ignored")))
        assert [(rule, vmids) for rule, vmids, _ in conflicts_of(rules)] == [
            (tag, (101, 102) if tag == "plb_ignored" else (101,)) for tag in sorted(odd)
        ]
        assert not rules.ignored
        assert not rules.contradicted, "it moves as if it had no such tag"

    def test_several_pins_are_a_choice(self) -> None:
        [pin] = read(cluster(*THREE, tagged(101, "plb_pin_pve1", "plb_pin_pve3"))).pins_of[101]
        assert (pin.words, pin.nodes) == ("plb_pin_pve1, plb_pin_pve3", {"pve1", "pve3"})

    def test_registered_tags_alone_count_and_as_they_are_written(self) -> None:
        how = settings({"rules": {"tags": "registered"}})
        snapshot = cluster(*THREE, tagged(101, "plb_pin_pve1"), tagged(102, "PLB_pin_pve1"), tagged(103, "plb_ignore"))
        rules = read(replace(snapshot, registered_tags=("plb_pin_pve1", "other")), how)
        assert rules.pins == {101: frozenset({"pve1"})}, "PVE guards that spelling alone"
        assert (rules.ignored, rules.conflicts) == (frozenset(), ())
        assert set(rules.named) == {101}

    def test_without_a_word_on_registered_tags_none_counts_and_that_is_said(self) -> None:
        rules = read(cluster(*THREE, tagged(101, "plb_pin_pve1")), settings({"rules": {"tags": "registered"}}))
        assert rules.pins == {}
        assert conflicts_of(rules) == [("rules.tags", (), "PVE does not tell which tags are registered; no tag counts as a rule")]

    def test_off_means_off_for_tags_alone(self) -> None:
        how = settings({"rules": {"tags": "off"}, "pools": {"p": {"pin": ["pve2"]}}})
        assert read(cluster(*THREE, tagged(101, "plb_pin_pve1", "plb_ignore", pool="p")), how).pins == {101: frozenset({"pve2"})}


class TestPools:
    def test_a_pool_groups_and_pins_its_guests(self) -> None:
        guests = [tagged(101, pool="p"), tagged(102, pool="p"), tagged(103, pool="q"), tagged(104)]
        rules = read(cluster(*THREE, *guests), pools(p={"rule": "anti-affinity", "pin": ["PVE1", "pve2"]}, q={"rule": "affinity"}))
        assert [(group.rule, group.vmids, group.source.value) for group in rules.anti_affinity] == [("pool p", (101, 102), "pool")]
        assert rules.affinity == ()
        assert rules.pins == dict.fromkeys((101, 102), frozenset({"pve1", "pve2"}))
        assert rules.pins_of[101][0].words == "pool p: pve1, pve2"
        assert rules.named == {101: ("pool p",), 102: ("pool p",), 103: ("pool q",)}

    @pytest.mark.parametrize("away", ["offline", "flag", "settings", "no target"])
    @pytest.mark.parametrize("strict", [True, False])
    def test_a_pin_that_is_not_strict_gives_way_while_none_of_its_nodes_is_there(self, away: str, strict: bool) -> None:
        document: dict[str, Json] = {"pools": {"p": {"pin": ["pve1"], "strict": strict}}}
        snapshot = cluster(*THREE, tagged(101, pool="p", at="pve2"))
        match away:
            case "offline":
                snapshot = replace(snapshot, nodes=(replace(snapshot.nodes[0], online=False), *snapshot.nodes[1:]))
            case "flag":
                snapshot = replace(snapshot, maintenance=(Maintenance("pve1", "x"),))
            case "settings":
                document["nodes"] = {"maintenance": ["PVE1"]}
            case _:
                snapshot = replace(snapshot, no_target=("pve1",))
        assert read(snapshot, settings(document)).pins == ({101: frozenset({"pve1"})} if strict else {})

    def test_a_node_that_does_not_exist_is_named_and_the_others_hold(self) -> None:
        snapshot = cluster(*THREE, tagged(101, pool="p"))
        rules = read(snapshot, pools(p={"pin": ["pve1", "pve9"]}))
        assert conflicts_of(rules) == [("pool p", (101,), "there is no node pve9; the pin is to the others")]
        assert rules.pins == {101: frozenset({"pve1"})}
        rules = read(snapshot, pools(p={"pin": ["pve8", "pve9"]}))
        assert conflicts_of(rules) == [("pool p", (101,), "there is no node pve8, pve9; the pin has no effect")]
        assert rules.pins == {}


class TestHighAvailability:
    ONE = cluster(*THREE, tagged(101))
    PRIORITIES = HaNodeAffinity("r", (101,), (("pve1", 1), ("pve2", 2), ("pve3", 2)))

    @pytest.mark.parametrize(
        ("strict", "failback", "closed", "allowed"),
        [
            (False, True, [], {"pve2", "pve3"}),
            (True, True, [], {"pve2", "pve3"}),
            (False, True, ["pve2"], {"pve3"}),
            (False, True, ["pve2", "pve3"], {"pve1"}),
            (False, True, ["pve1", "pve2", "pve3"], None),
            (True, True, ["pve1", "pve2", "pve3"], set()),
            (False, False, ["pve2", "pve3"], {"pve1", "pve2", "pve3"}),
            (True, False, ["pve1", "pve2", "pve3"], {"pve1", "pve2", "pve3"}),
        ],
    )
    def test_the_best_nodes_that_are_there_are_left_to_a_guest_that_fails_back(
        self, strict: bool, failback: bool, closed: list[str], allowed: set[str] | None
    ) -> None:
        snapshot = under_ha(self.ONE, replace(self.PRIORITIES, strict=strict), closed=closed, failback=failback)
        assert read(snapshot).pins == ({} if allowed is None else {101: frozenset(allowed)})

    def test_only_a_node_that_is_online_counts(self) -> None:
        snapshot = under_ha(self.ONE, self.PRIORITIES)
        dark = tuple(replace(one, online=one.name == "pve1") for one in snapshot.nodes)
        assert read(replace(snapshot, nodes=dark)).pins == {101: frozenset({"pve1"})}

    def test_a_flag_of_ours_moves_nobody_off_the_nodes_that_the_ha_manager_brings_back_to(self) -> None:
        flagged = replace(under_ha(self.ONE, self.PRIORITIES), maintenance=(Maintenance("pve2", "x"), Maintenance("pve3", "x")))
        assert read(flagged).pins == {101: frozenset({"pve2", "pve3"})}

    def test_a_rule_without_failback_that_is_not_strict_gives_way_when_its_nodes_are_gone(self) -> None:
        rule = HaNodeAffinity("r", (101,), (("pve1", 0),))
        flagged = replace(under_ha(self.ONE, rule, failback=False), maintenance=(Maintenance("pve1", "x"),))
        assert read(flagged).pins == {}

    def test_guests_that_it_does_not_manage_are_free(self) -> None:
        bond = HaResourceAffinity("b", (101, 102), together=False)
        snapshot = cluster(*THREE, tagged(101), tagged(102))
        rules = (self.PRIORITIES, bond)
        assert read(replace(snapshot, ha=HighAvailability((), rules[:1], rules[1:]))).named == {}
        ignored = read(under_ha(snapshot, *rules, requested="ignored"))
        assert (ignored.pins, ignored.anti_affinity) == ({}, ())

    def test_resource_affinity_groups(self) -> None:
        snapshot = cluster(*THREE, *[tagged(101 + i) for i in range(4)])
        bonds = HaResourceAffinity("b", (101, 102, 999), together=True), HaResourceAffinity("c", (102, 103), together=False)
        rules = read(under_ha(snapshot, *bonds))
        assert [(group.rule, group.vmids, group.source.value) for group in rules.affinity] == [("HA rule b", (101, 102), "ha")]
        assert rules.units == {101: (101, 102), 102: (101, 102)}
        assert rules.apart == {102: frozenset({103}), 103: frozenset({102})}
        assert rules.foe(102, {101, 102, 103}) == (103, rules.anti_affinity[0])


class TestContradictions:
    def test_pins_of_a_tag_and_a_pool_without_a_common_node(self) -> None:
        rules = read(cluster(*THREE, tagged(101, "plb_pin_pve1", pool="p"), tagged(102, pool="p")), pools(p={"pin": ["pve2"]}))
        said = "the rules leave the guest no node: plb_pin_pve1; pool p: pve2"
        assert conflicts_of(rules) == [("plb_pin_pve1, pool p", (101,), said)]
        assert rules.contradicted == {101}, "the rest of the pool is served"

    def test_a_pin_that_is_not_strict_gives_way_to_one_that_is_and_that_is_said(self) -> None:
        rules = read(cluster(*THREE, tagged(101, "plb_pin_pve1", pool="p")), pools(p={"pin": ["pve2"], "strict": False}))
        assert rules.pins == {101: frozenset({"pve1"})}
        assert conflicts_of(rules) == [
            ("plb_pin_pve1, pool p", (101,), "together they leave the guest no node; pool p, not strict, gives way")
        ]
        assert rules.contradicted == frozenset()

    def test_a_tag_against_an_ha_rule(self) -> None:
        snapshot = under_ha(cluster(*THREE, tagged(101, "plb_pin_pve1")), HaNodeAffinity("r", (101,), (("pve2", 1), ("pve1", 0))))
        assert [conflict.rule for conflict in read(snapshot).conflicts] == ["plb_pin_pve1, HA rule r"]

    def test_a_rule_whose_nodes_are_all_away_contradicts_nothing(self) -> None:
        rule = HaNodeAffinity("r", (101,), (("pve2", 1),), strict=True)
        rules = read(under_ha(cluster(*THREE, tagged(101, "plb_pin_pve1")), rule, closed=["pve2"]))
        assert (rules.conflicts, rules.pins) == ((), {101: frozenset()})

    def test_guests_together_and_pinned_apart(self) -> None:
        guests = [tagged(101, "plb_affinity_a", "plb_pin_pve1"), tagged(102, "plb_affinity_a", pool="p"), tagged(103, "plb_affinity_b")]
        rules = read(cluster(*THREE, *guests), pools(p={"pin": ["pve2"]}))
        assert conflicts_of(rules) == [
            ("plb_affinity_a, plb_pin_pve1, pool p", (101, 102), "the guests are pinned to different nodes"),
        ]
        assert rules.contradicted == {101, 102}

    def test_guests_together_by_one_rule_and_apart_by_another(self) -> None:
        guests = [tagged(101 + i, "plb_affinity_a", *(["plb_anti_affinity_b"] if i != 1 else []), pool="p") for i in range(3)]
        rules = read(cluster(*THREE, *guests), pools(p={"rule": "anti-affinity"}))
        assert conflicts_of(rules) == [
            ("plb_affinity_a, plb_anti_affinity_b", (101, 102, 103), "guests 101 and 103 must also be kept apart"),
        ]


class TestCrowding:
    def crowded(
        self, *guests: Guest, usable: Iterable[str] = NAMES, draining: Iterable[str] = (), how: Settings | None = None
    ) -> list[str]:
        snapshot = cluster(*THREE, *guests)
        at = {guest.vmid: guest.node for guest in snapshot.guests}
        return [conflict.detail for conflict in crowded(read(snapshot, how), at, tuple(usable), tuple(draining))]

    def test_more_guests_than_nodes(self) -> None:
        assert self.crowded(*[tagged(101 + i, "plb_anti_affinity_a") for i in range(4)]) == ["4 guests, 3 nodes"]
        assert self.crowded(*[tagged(101 + i, "plb_anti_affinity_a") for i in range(3)]) == []

    def test_a_stopped_guest_holds_the_node_it_is_on_and_no_other(self) -> None:
        running = [tagged(101 + i, "plb_anti_affinity_a") for i in range(2)]
        held = "2 guests, 1 node; pve1, pve2 are held by 103, 104, not to be moved"
        off = [stopped(tagged(103, "plb_anti_affinity_a")), stopped(tagged(104, "plb_anti_affinity_a", at="pve2"))]
        assert self.crowded(*running, *off) == [held]
        assert self.crowded(*running, *[replace(guest, node="pve1") for guest in off]) == [], "both on one node leave two"
        assert self.crowded(*running, off[0], usable=("pve2", "pve3"), draining=("pve1",)) == [], "one on a node that nobody goes to"

    def test_a_node_that_is_emptied_is_nobodys_place(self) -> None:
        guests = [tagged(101 + i, "plb_anti_affinity_a", at=name) for i, name in enumerate(NAMES)]
        assert self.crowded(*guests, usable=("pve2", "pve3"), draining=("pve1",)) == ["3 guests, 2 nodes"]
        assert self.crowded(*guests, usable=("pve2", "pve3")) == [], "who is there may stay there"

    def test_pins_that_leave_too_few_nodes(self) -> None:
        pinned = [tagged(101 + i, "plb_anti_affinity_a", "plb_pin_pve1", "plb_pin_pve2", at="pve3") for i in range(2)]
        assert self.crowded(*pinned, tagged(104, "plb_anti_affinity_a")) == []
        third = tagged(103, "plb_anti_affinity_a", pool="p")
        assert self.crowded(*pinned, third, tagged(104, "plb_anti_affinity_b"), how=pools(p={"pin": ["pve2"]})) == [
            "guests 101, 102, 103 may only be on pve1, pve2"
        ]

    def test_pins_of_those_who_must_come_along_count(self) -> None:
        guests = [
            tagged(101, "plb_anti_affinity_a", "plb_affinity_x"),
            tagged(102, "plb_affinity_x", "plb_pin_pve2"),
            tagged(103, "plb_anti_affinity_a", "plb_pin_pve2"),
        ]
        assert self.crowded(*guests) == ["guests 101, 103 may only be on pve2"]

    @given(
        st.lists(st.tuples(st.sampled_from(NAMES), st.sets(st.sampled_from(NAMES)), st.booleans()), min_size=2, max_size=5),
        st.sets(st.sampled_from(NAMES)),
    )
    def test_it_says_so_exactly_when_no_placement_keeps_the_group(
        self, drawn: list[tuple[str, set[str], bool]], draining: set[str]
    ) -> None:
        usable = set(NAMES) - draining
        guests = [tagged(101 + i, "plb_anti_affinity_a", *(f"plb_pin_{n}" for n in pins), at=at) for i, (at, pins, _) in enumerate(drawn)]
        guests = [stopped(guest) if off else guest for guest, (_, _, off) in zip(guests, drawn, strict=True)]
        held = {at for at, _, off in drawn if off}
        choices = [((usable | ({at} - draining)) - held) & (pins or set(NAMES)) for at, pins, off in drawn if not off]

        def placed(left: list[set[str]], taken: frozenset[str]) -> bool:
            return not left or any(placed(left[1:], taken | {name}) for name in left[0] - taken)

        assert (self.crowded(*guests, usable=usable, draining=draining) == []) == placed(choices, frozenset())


WORDS = st.text(max_size=8) | st.sampled_from(["a", "ä", "ẞ", "İ", "ﬁ", "数据库", "\u202e", "pve1", "PVE2", "", "_", "x y", ";"])
TAGS = st.builds(
    str.__add__, st.sampled_from(["plb_affinity_", "plb_anti_affinity_", "plb_pin_", "plb_ignore", "PLB_PIN_", "plb_", ""]), WORDS
)


@given(
    st.lists(st.tuples(st.lists(TAGS, max_size=4), st.sampled_from(["p", "q", None]), st.booleans()), max_size=8),
    st.sampled_from(["all", "registered", "off"]),
    st.lists(st.tuples(st.sets(st.integers(101, 110)), st.booleans()), max_size=3),
    st.lists(
        st.tuples(st.sets(st.integers(101, 110)), st.dictionaries(st.sampled_from([*NAMES, "pve9"]), st.integers(0, 2)), st.booleans()),
        max_size=3,
    ),
    st.booleans(),
)
def test_whatever_is_said_is_read(
    drawn: list[tuple[list[str], str | None, bool]],
    trust: str,
    bonds: list[tuple[set[int], bool]],
    homes: list[tuple[set[int], dict[str, int], bool]],
    failback: bool,
) -> None:
    guests = [tagged(101 + i, *tags, pool=pool, at=NAMES[i % 3]) for i, (tags, pool, _) in enumerate(drawn)]
    guests = [stopped(guest) if off else guest for guest, (_, _, off) in zip(guests, drawn, strict=True)]
    ha_rules = [HaResourceAffinity(f"b{i}", tuple(sorted(vmids)), together) for i, (vmids, together) in enumerate(bonds)]
    ha_homes = [HaNodeAffinity(f"n{i}", tuple(sorted(v)), tuple(sorted(n.items())), strict) for i, (v, n, strict) in enumerate(homes)]
    snapshot = replace(under_ha(cluster(*THREE, *guests), *ha_rules, *ha_homes, failback=failback), registered_tags=("plb_pin_pve1",))
    how = settings({"rules": {"tags": trust}, "pools": {"p": {"rule": "affinity", "pin": ["pve1"]}, "q": {"rule": "anti-affinity"}}})
    rules = read(snapshot, how)
    at = {guest.vmid: guest.node for guest in snapshot.guests}
    for conflict in (*rules.conflicts, *crowded(rules, at, NAMES)):
        assert set(conflict.vmids) <= at.keys()
        assert conflict.rule
        assert conflict.detail
    assert rules.contradicted <= at.keys()
    for group in rules.anti_affinity:
        for one, other in combinations(group.vmids, 2):
            assert other in rules.apart[one]
            assert rules.foe(one, {other}) is not None
            assert {one, other} <= rules.contradicted or rules.unit(one) != rules.unit(other)
    for unit in rules.units.values():
        allowed = frozenset(NAMES).intersection(*(rules.pins[vmid] for vmid in unit if vmid in rules.pins))
        assert allowed or set(unit) <= rules.contradicted or any(not rules.pins.get(vmid, {"x"}) for vmid in unit)


@pytest.mark.parametrize(
    ("groups", "members"), [(1000, 3), (1, 3000), (6, 500), (3000, 2)], ids=["many rules", "one of all", "large ones", "a long chain"]
)
def test_rules_are_read_in_time_that_grows_with_their_members(groups: int, members: int) -> None:
    """Pairs would be 4.5 million for one group of 3000 guests; a chain of groups is one unit of them all."""
    guests = []
    for i in range(3000):
        tags = [f"plb_anti_affinity_{i % groups}"] if groups * members <= 3000 else [f"plb_affinity_{i}", f"plb_affinity_{i + 1}"]
        guests.append(tagged(101 + i, *tags, f"plb_pin_pve{1 + i % 3}", at=NAMES[i % 3]))
    snapshot = cluster(*THREE, *guests)
    at = {guest.vmid: guest.node for guest in guests}
    began_s = time.process_time()
    rules = read(snapshot)
    assert len(crowded(rules, at, NAMES)) == (groups if 3 < members <= 3000 else 0)
    for vmid in at:
        rules.foe(vmid, {101, 102, 103, vmid})
    assert time.process_time() - began_s < 2.0

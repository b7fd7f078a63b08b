# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a cluster or a question looks like, there is a plan or a refusal with its reason: no exception, no wrong move, no NaN."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from agent.core import explain, planner
from agent.core.cluster import GIB, Snapshot
from agent.core.codec import CodecError, to_json
from agent.core.plan_types import Plan
from agent.core.question import Question
from agent.core.reasons import LOAD_REASONS
from agent.core.rule_reading import read_rules
from agent.core.settings import Settings
from agent.core.smoothing import Smoothing
from agent.core.snapshot_file import SnapshotFileError, from_text, to_document
from tests.core.broken import broken_cluster, broken_question
from tests.core.checker import measured
from tests.core.clusters import Draw, cluster, node, random_cluster, settings, vm, wrong_in
from tests.core.random_clusters import HOW, draws, examples

PLAIN = settings()
how = st.sampled_from(HOW)
seeds = st.integers(0, 2**32)


def good(snapshot: Snapshot, how: Settings, question: Question) -> Plan:
    """The plan, when nothing at all is wrong with it."""
    plan = planner.plan(snapshot, how, question)
    assert wrong_in(snapshot, plan, how, question) == []
    told = replace(plan, moves=tuple(replace(move, name="") for move in plan.moves), trigger="", refused=(), conflicts=())
    text = json.dumps(to_json(told))  # names, tags and triggers may be text that no file can hold; numbers must not
    assert "NaN" not in text and "Infinity" not in text
    guests = {guest.vmid: guest for guest in snapshot.guests}
    sizes = {one.name: (one.cpu_cores, one.memory_bytes) for one in snapshot.nodes if one.online}
    for move in plan.moves:
        assert all(math.isfinite(size) and size > 0 for size in sizes[move.target])
        if move.reason in LOAD_REASONS:
            assert measured(guests[move.vmid]) is not None
    assert all(refusal.reason.value for refusal in plan.refused)
    return plan


def test_a_broken_cluster_gives_a_plan_without_a_wrong_move() -> None:
    seen: Counter[str] = Counter()

    @profile(max_examples=examples(300))
    @given(seeds, how, st.booleans())
    def each(seed: int, how: Settings, force: bool) -> None:
        plan = good(broken_cluster(seed), how, Question(force=force))
        seen["moves"] += bool(plan.moves)
        seen["refused"] += bool(plan.refused)

    each()
    print(seen)
    assert seen["moves"] > 60 and seen["refused"] > 60


def test_a_broken_question_gives_a_plan_without_a_wrong_move() -> None:
    seen: Counter[str] = Counter()

    @profile(max_examples=examples(300))
    @given(seeds, how)
    def each(seed: int, how: Settings) -> None:
        snapshot = broken_cluster(seed)
        plan = good(snapshot, how, broken_question(snapshot, seed))
        seen["moves"] += bool(plan.moves)
        seen["refused"] += bool(plan.refused)

    each()
    print(seen)
    assert seen["moves"] > 60 and seen["refused"] > 60


@given(draws(30, nodes=(2, 5)))
def test_a_broken_question_about_a_sound_cluster_does_no_harm(draw: Draw) -> None:
    snapshot = random_cluster(draw)
    good(snapshot, PLAIN, broken_question(snapshot, draw.seed))


@given(seeds)
def test_a_plan_of_a_broken_cluster_is_the_same_whatever_the_order_of_its_parts(seed: int) -> None:
    snapshot = broken_cluster(seed)
    question = broken_question(snapshot, seed)
    turned = replace(snapshot, nodes=snapshot.nodes[::-1], guests=snapshot.guests[::-1])
    assert repr(planner.plan(turned, PLAIN, question)) == repr(planner.plan(snapshot, PLAIN, question))


@given(seeds)
def test_a_broken_cluster_can_be_smoothed_and_explained(seed: int) -> None:
    snapshot = broken_cluster(seed)
    smoothed = Smoothing().with_snapshot(snapshot, 1.0).with_snapshot(snapshot, 11.0)
    good(smoothed.applied(snapshot), PLAIN, Question(force=True))
    planner.conflicts_of(snapshot, PLAIN)
    for guest in snapshot.guests[:2]:
        explain.explain(snapshot, PLAIN, Question(), guest.vmid)


@given(seeds)
def test_a_broken_cluster_is_written_down_and_read_back_or_refused(seed: int) -> None:
    """Numbers without an end and text that no file can hold are refused when written, so no file has them."""
    snapshot = broken_cluster(seed)
    try:
        text = json.dumps(to_document(snapshot), allow_nan=False)
    except CodecError:
        return
    read, why_not = read_file(text)
    assert (read is None) == bool(why_not)
    if read is not None:
        assert as_bytes(planner.plan(read, PLAIN)) == as_bytes(planner.plan(snapshot, PLAIN))


def read_file(text: str) -> tuple[Snapshot | None, str]:
    """The snapshot, or why there is none, on one line."""
    try:
        return from_text(text), ""
    except SnapshotFileError as error:
        return None, str(error).splitlines()[0] if len(str(error).splitlines()) == 1 else ""


def as_bytes(plan: Plan) -> str:
    return json.dumps(to_json(replace(plan, trigger="")), sort_keys=True)


junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(("running", "pve1", "qemu"))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
SOUND = json.dumps(to_document(cluster(node("pve1"), node("pve2"), vm(101, "pve1", 40, 1, "plb_pin_pve2"))))


@given(st.sampled_from(("nodes", "guests")), st.integers(0, 30), junk)
def test_a_snapshot_file_with_one_field_spoilt_is_read_or_refused_on_one_line(part: str, which: int, value: object) -> None:
    document = json.loads(SOUND)
    fields = sorted(document[part][0])
    document[part][0][fields[which % len(fields)]] = value
    snapshot, why_not = read_file(json.dumps(document))
    assert (snapshot is None) == bool(why_not)
    if snapshot is not None:
        good(snapshot, PLAIN, Question(force=True))


def test_a_thousand_rules_are_planned_with_few_looks() -> None:
    """Each guest has rules with neighbours; what is counted are looks at a guest on a node, not time."""
    nodes = [node(f"pve{i}", 256, 64) for i in range(1, 9)]
    guests = []
    for i in range(600):
        tags = [f"plb_anti_affinity_{i // 4}", f"plb_affinity_{i // 2}" if i % 6 < 2 else f"plb_anti_affinity_x{i % 350}"]
        tags += [f"plb_pin_pve{1 + i % 8}", f"plb_pin_pve{1 + (i + 3) % 8}"] if i % 3 == 0 else []
        guests.append(vm(100 + i, f"pve{1 + (i * i) % 8}", 1, 0.05, *tags))
    snapshot = cluster(*nodes, *guests)
    rules = read_rules(snapshot, Settings())
    assert len(rules.affinity) + len(rules.anti_affinity) + len(rules.pins) >= 500
    plan = good(snapshot, PLAIN, Question(force=True))
    print(len(plan.moves), len(plan.refused), len(plan.conflicts), plan.evaluations)
    assert plan.moves
    assert plan.evaluations < len(plan.moves) * len(nodes) * len(guests) / 4


def test_a_group_of_all_guests_is_planned_like_any_other() -> None:
    everybody = [vm(100 + i, f"pve{1 + i % 3}", 1, 0.05, "plb_affinity_all") for i in range(60)]
    plan = good(cluster(node("pve1"), node("pve2"), node("pve3"), *everybody), PLAIN, Question())
    assert len({move.target for move in plan.moves}) == 1
    assert len(plan.moves) == 40
    apart = [replace(guest, tags=("plb_anti_affinity_all",)) for guest in everybody]
    plan = good(cluster(node("pve1"), node("pve2"), node("pve3"), *apart), PLAIN, Question())
    assert [conflict.rule for conflict in plan.conflicts] == ["plb_anti_affinity_all"]


def test_one_usable_node_and_a_full_cluster_refuse_and_say_why() -> None:
    alone = good(cluster(node("pve1"), vm(101, "pve1", 100, 20), drain=["pve1"]), PLAIN, Question(force=True))
    assert [(refusal.vmid, refusal.reason.value) for refusal in alone.refused] == [(101, "no-target")]
    full = [vm(100 + 10 * n + i, f"pve{n}", 12, 1) for n in (1, 2, 3) for i in range(10)]
    plan = good(cluster(node("pve1"), node("pve2"), node("pve3"), *full, drain=["pve3"]), PLAIN, Question())
    assert {move.vmid for move in plan.moves} | {refusal.vmid for refusal in plan.refused} >= set(range(130, 140))
    assert {refusal.reason.value for refusal in plan.refused} == {"no-target"}


def test_a_witness_and_an_empty_node_without_size_take_nobody() -> None:
    witness = node("pve3", 2, 1, cpu_used_cores=0.1, memory_used_bytes=GIB)
    nothing = node("pve4", 0, 0, cpu_used_cores=0.0, memory_used_bytes=0)
    crowd = [vm(101 + i, "pve1", 10, 1) for i in range(10)]
    plan = good(cluster(node("pve1"), node("pve2"), witness, nothing, *crowd), PLAIN, Question(force=True))
    assert plan.moves
    assert {move.target for move in plan.moves} == {"pve2"}

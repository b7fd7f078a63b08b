# SPDX-License-Identifier: GPL-3.0-or-later
"""Each safety check does something, and the checker of plans sees when it does not: one check at a time says yes to all."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from agent.core import conditions, node_load, order, placement, planner
from agent.core.cluster import GIB, Guest, Node, Snapshot
from agent.core.conditions import Conditions
from agent.core.guest_load import GuestLoad, InFlight, Ledger
from agent.core.node_load import NodeLoad
from agent.core.placement import NodeState, Placement
from agent.core.plan_types import Plan, Refusal, Verdict
from agent.core.question import EVERYWHERE, NO_LIMIT, Question
from agent.core.reasons import RefusalReason
from agent.core.repairs import Repairs
from agent.core.settings import ContainerPolicy, ReserveSettings, Settings
from agent.core.steps import Step
from tests.core.clusters import (
    NOW,
    Draw,
    changed,
    cluster,
    ct,
    left_undone,
    node,
    random_cluster,
    settings,
    stopped,
    task,
    vm,
    wrong_in,
)
from tests.core.random_clusters import HOW, remembered

PLAIN = settings()
TWO = (node("pve1"), node("pve2"))
THREE = (*TWO, node("pve3"))
FORCE = Question(force=True)
Off = Callable[[pytest.MonkeyPatch], None]


def never(method: str, *reasons: RefusalReason) -> Off:
    """The method, of the sketch or of the conditions, gives every reason but these."""

    def switch(patch: pytest.MonkeyPatch) -> None:
        owner = Placement if hasattr(Placement, method) else Conditions
        real = getattr(owner, method)

        def blind(*arguments: object) -> Refusal | RefusalReason | None:
            found: Refusal | RefusalReason | None = real(*arguments)
            return None if (found.reason if isinstance(found, Refusal) else found) in reasons else found

        patch.setattr(owner, method, blind)

    return switch


def guest_check(reason: RefusalReason) -> Off:
    return never("why_guest_stays", reason)


def node_check(reason: RefusalReason) -> Off:
    return never("_judged", reason)


def no_memory_limit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(node_load, "memory_limit_bytes", lambda node, settings: math.inf)


def every_load_is_fine(patch: pytest.MonkeyPatch) -> None:
    """Offline, and of long ago: PVE's last number is taken for the load of now."""
    for module in (node_load, conditions):
        patch.setattr(module, "why_not_measured", lambda node: None)
    node_check(RefusalReason.NODE_OFFLINE)(patch)


def maintenance_goes_unseen(patch: pytest.MonkeyPatch) -> None:
    node_check(RefusalReason.NODE_MAINTENANCE)(patch)
    patch.setattr(Repairs, "_drain", lambda self: None)


def no_threshold(patch: pytest.MonkeyPatch) -> None:
    real = NodeState.room
    patch.setattr(NodeState, "room", lambda self, weights: real(self, None))


def units_of_one(patch: pytest.MonkeyPatch) -> None:
    never("why_rules_forbid", RefusalReason.AFFINITY)(patch)
    patch.setattr(Placement, "unit_here", lambda self, vmid: (vmid,))


def backups_go_unseen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Conditions, "has_backup", lambda self, name: False)


def who_leaves_is_gone(patch: pytest.MonkeyPatch) -> None:
    real = NodeState.__init__

    def forgets(self: NodeState, load: NodeLoad) -> None:
        real(self, replace(load, leaving_cpu_cores=0.0, leaving_memory_bytes=0.0))

    patch.setattr(NodeState, "__init__", forgets)


def who_comes_is_not_there(patch: pytest.MonkeyPatch) -> None:
    real = node_load.node_loads

    def forgets(snapshot: Snapshot, ledger: Ledger, *others: Any) -> dict[str, NodeLoad]:
        return real(snapshot, replace(ledger, in_flight=()), *others)

    patch.setattr(placement, "node_loads", forgets)


def present_on(which: str) -> Off:
    """Whoever is under way is known to be on that one of the two nodes alone."""

    def switch(patch: pytest.MonkeyPatch) -> None:
        real = Placement.__init__

        def forgets(self: Placement, snapshot: Snapshot, settings: Settings, question: Question) -> None:
            real(self, snapshot, settings, question)
            for flight in question.ledger.in_flight:
                self.states[flight.source if which == "target" else flight.target].present.discard(flight.vmid)

        patch.setattr(Placement, "__init__", forgets)

    return switch


def all_at_once(patch: pytest.MonkeyPatch) -> None:
    def one_batch(start: Placement, steps: list[Step]) -> tuple[list[list[Step]], list[Step]]:
        return ([list(steps)] if steps else []), []

    patch.setattr(planner, "into_batches", one_batch)


def one_by_one_in_a_batch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(order._Arrivals, "_with", lambda self, step: self._sketch.burden_of_unit(step.vmids))


def nobody_is_in_the_way(patch: pytest.MonkeyPatch) -> None:
    """The order of a batch's moves ignores who is on a node until it has left."""
    real = order._Arrivals.has_room_for

    def looks_away(self: order._Arrivals, step: Step) -> bool:
        present = {name: state.present for name, state in self._sketch.states.items()}
        for state in self._sketch.states.values():
            state.present = set()
        found = real(self, step)
        for name, state in self._sketch.states.items():
            state.present = present[name]
        return found

    patch.setattr(order._Arrivals, "has_room_for", looks_away)


@dataclass(frozen=True)
class Scene:
    """A check switched off, a cluster that needs it, and the first word of what the checker must say."""

    off: Off
    says: str
    snapshot: Snapshot
    how: Settings = PLAIN
    question: Question = field(default_factory=Question)


def pinned_to(name: str, *guests: Guest | Node) -> Snapshot:
    """The guests must go to that node."""
    tagged = [replace(guest, tags=(*guest.tags, f"plb_pin_{name}")) if isinstance(guest, Guest) else guest for guest in guests]
    return cluster(*(() if any(isinstance(guest, Node) for guest in guests) else THREE), *tagged)


def homeward(snapshot: Snapshot) -> tuple[Snapshot, Settings, Question]:
    """Guest 101 wants home, to pve2."""
    return snapshot, PLAIN, Question(homes={101: "pve2"})


def flying(vmid: int, source: str, target: str, gib: float) -> Question:
    return Question(ledger=Ledger(in_flight=(InFlight(vmid, source, target, GuestLoad(1.0, gib * GIB)),)))


SMALL = node("pve2", 64)
DRAINED = cluster(*TWO, drain=["pve2"]).maintenance
TO_2, TO_3 = "plb_pin_pve2", "plb_pin_pve3"
R = RefusalReason
PLAIN_GUEST = cluster(*TWO, vm(101, "pve1"))
APART = "plb_anti_affinity_a"
SCENES = {
    "memory limit": Scene(no_memory_limit, "memory", pinned_to("pve2", node("pve1"), SMALL, vm(101, "pve1", 61))),
    "cpu limit": Scene(never("limit_broken", R.NO_CPU), "cpu", pinned_to("pve2", TWO[0], node("pve2", 64, 2), vm(101, "pve1", 4, 3))),
    "thresholds": Scene(
        no_threshold, "threshold",
        cluster(*TWO, *[vm(101 + i, "pve1", 12, 1) for i in range(10)], *[vm(201 + i, "pve2", 12, 1) for i in range(8)]), PLAIN, FORCE,
    ),
    "threshold of cpu": Scene(
        no_threshold, "threshold",
        cluster(*TWO, *[vm(101 + i, "pve1", 2, 3) for i in range(10)], *[vm(201 + i, "pve2", 2, 3) for i in range(8)]), PLAIN, FORCE,
    ),
    "pins": Scene(never("why_never", R.PINNED), "pin", cluster(*TWO, vm(101, "pve1", 4, 1, "plb_pin_pve1"), drain=["pve1"])),
    "affinity": Scene(
        units_of_one, "affinity", cluster(*TWO, *[vm(101 + i, "pve1", 20, 1, "plb_affinity_a") for i in (0, 1)]), PLAIN,
        Question(force=True, repair_rules=False),
    ),
    "anti-affinity": Scene(
        never("why_rules_forbid", R.ANTI_AFFINITY), "anti-affinity",
        cluster(*TWO, vm(101, "pve1", 4, 1, APART), vm(102, "pve2", 4, 1, APART), drain=["pve1"]),
    ),
    "ignored by tag": Scene(guest_check(R.IGNORED), "ignored", pinned_to("pve2", vm(101, "pve1", 4, 1, "plb_ignore_x"))),
    "ignored by setting": Scene(
        guest_check(R.IGNORED), "ignored", pinned_to("pve2", vm(101, "pve1")), settings({"guests": {"ignore": ["100-110"]}}),
    ),
    "HA": Scene(guest_check(R.HA_BUSY), "ha", pinned_to("pve2", vm(101, "pve1", ha="started"))),
    "template": Scene(guest_check(R.TEMPLATE), "template", *homeward(cluster(*TWO, vm(101, "pve1", template=True)))),
    "lock": Scene(guest_check(R.LOCKED), "lock", pinned_to("pve2", vm(101, "pve1", lock="snapshot"))),
    "state": Scene(guest_check(R.STATE), "state", cluster(*TWO, vm(101, "pve1", status="paused"), drain=["pve1"])),
    "running": Scene(guest_check(R.NOT_RUNNING), "running", cluster(*TWO, stopped(vm(101, "pve1")), drain=["pve1"])),
    "busy": Scene(guest_check(R.BUSY), "busy", cluster(*TWO, vm(101, "pve1"), task("qmsnapshot", "pve1", 101), drain=["pve1"])),
    "under way": Scene(guest_check(R.BUSY), "busy", pinned_to("pve2", vm(101, "pve1")), PLAIN, flying(101, "pve1", "pve3", 4)),
    "containers": Scene(guest_check(R.CONTAINER), "containers", pinned_to("pve2", ct(101, "pve1"))),
    "containers, never": Scene(
        guest_check(R.CONTAINER), "containers", cluster(*TWO, ct(101, "pve1"), drain=["pve1"]),
        settings({"guests": {"containers": "never"}}),
    ),
    "cooldown": Scene(
        guest_check(R.COOLDOWN), "cooldown", cluster(*TWO, vm(101, "pve1", 40), vm(102, "pve1", 40)), PLAIN,
        Question(cooling={101: "", 102: ""}),
    ),
    "other balancer": Scene(
        guest_check(R.OTHER_BALANCER), "other-balancer", cluster(*TWO, vm(101, "pve1", 40), vm(102, "pve1", 40)), PLAIN,
        Question(stepped_back={101: "", 102: ""}),
    ),
    "unknown load": Scene(
        guest_check(R.LOAD_UNKNOWN), "unmeasured", cluster(*TWO, *[vm(101 + i, "pve1", 30, cpu_used_cores=None) for i in (0, 1, 2)]),
        PLAIN, FORCE,
    ),
    "set aside": Scene(
        guest_check(R.SET_ASIDE), "set-aside", pinned_to("pve2", vm(101, "pve1")), PLAIN, Question(set_aside={101: "failed"}),
    ),
    "verdict on the guest": Scene(
        guest_check(R.LOCAL_DISK), "verdict", pinned_to("pve2", vm(101, "pve1")), PLAIN,
        Question(verdicts={101: Verdict(101, NOW, Refusal(101, R.LOCAL_DISK))}),
    ),
    "verdict on the node": Scene(
        never("why_never", R.NODE_REFUSED), "verdict", pinned_to("pve2", vm(101, "pve1")), PLAIN,
        Question(verdicts={101: Verdict(101, NOW, None, (("pve2", Refusal(101, R.NODE_REFUSED, "HA")),))}),
    ),
    "failed on the node": Scene(
        never("why_never", R.NODE_FAILED), "avoided", pinned_to("pve2", vm(101, "pve1")), PLAIN,
        Question(avoided={101: {"pve2": "failed"}}),
    ),
    "dead source": Scene(
        guest_check(R.NODE_OFFLINE), "offline", changed(cluster(*TWO, vm(101, "pve1"), drain=["pve1"]), "pve1", online=False),
    ),
    "source that shuts down": Scene(
        guest_check(R.NODE_SHUTS_DOWN), "shuts-down", replace(pinned_to("pve2", vm(101, "pve1")), going_down=("pve1",)),
    ),
    "ignored source": Scene(
        guest_check(R.NODE_IGNORED), "ignored-node", pinned_to("pve2", vm(101, "pve1")), settings({"nodes": {"ignore": ["pve1"]}}),
    ),
    "offline": Scene(every_load_is_fine, "offline", changed(pinned_to("pve2", vm(101, "pve1")), "pve2", online=False)),
    "maintenance": Scene(maintenance_goes_unseen, "maintenance", replace(pinned_to("pve2", vm(101, "pve1")), maintenance=DRAINED)),
    "no target": Scene(node_check(R.NODE_MAINTENANCE), "maintenance", replace(pinned_to("pve2", vm(101, "pve1")), no_target=("pve2",))),
    "ignored node": Scene(
        node_check(R.NODE_IGNORED), "ignored-node", pinned_to("pve2", vm(101, "pve1")), settings({"nodes": {"ignore": ["pve2"]}}),
    ),
    "starting": Scene(node_check(R.NODE_STARTING), "starting", changed(pinned_to("pve2", vm(101, "pve1")), "pve2", uptime_s=100.0)),
    "silent": Scene(node_check(R.NODE_SILENT), "silent", changed(pinned_to("pve2", vm(101, "pve1")), "pve2", reports=False)),
    "stale": Scene(every_load_is_fine, "stale", changed(pinned_to("pve2", vm(101, "pve1")), "pve2", sample_age_s=90.0)),
    "unknown": Scene(every_load_is_fine, "stale", changed(pinned_to("pve2", vm(101, "pve1")), "pve2", cpu_used_cores=None)),
    "witness": Scene(
        node_check(R.NO_MEMORY), "balance", cluster(*TWO, node("pve3", 2, 2), vm(101, "pve1", 20), vm(102, "pve1", 20)), PLAIN, FORCE,
    ),
    "backup on the target": Scene(
        never("why_never", R.NODE_BACKUP), "backup", *homeward(cluster(*TWO, vm(101, "pve1"), task("vzdump", "pve2"))),
    ),
    "backup on the source": Scene(
        backups_go_unseen, "backup", cluster(*TWO, vm(101, "pve1", 40), vm(102, "pve1", 40), task("vzdump", "pve1")), PLAIN, FORCE,
    ),
    "who leaves counts where it still is": Scene(
        who_leaves_is_gone, "memory", cluster(*THREE, vm(101, "pve2", 60), vm(102, "pve1", 70, 1, TO_2)), PLAIN,
        flying(101, "pve2", "pve3", 60),
    ),
    "who comes counts where it goes": Scene(
        who_comes_is_not_there, "memory", cluster(*THREE, vm(101, "pve3", 60), vm(102, "pve1", 70, 1, TO_2)), PLAIN,
        flying(101, "pve3", "pve2", 60),
    ),
    "who leaves is kept apart from who comes": Scene(
        present_on("target"), "anti-affinity", cluster(*THREE, vm(101, "pve2", 4, 1, APART), vm(102, "pve1", 4, 1, APART, TO_2)), PLAIN,
        flying(101, "pve2", "pve3", 4),
    ),
    "who comes is kept apart from who comes": Scene(
        present_on("source"), "anti-affinity", cluster(*THREE, vm(101, "pve3", 4, 1, APART), vm(102, "pve1", 4, 1, APART, TO_2)), PLAIN,
        flying(101, "pve3", "pve2", 4),
    ),
    "order": Scene(
        all_at_once, "memory", cluster(node("pve1"), SMALL, node("pve3"), vm(101, "pve2", 40, 1, TO_3), vm(102, "pve1", 40, 1, TO_2)),
    ),
    "order of who is kept apart": Scene(
        all_at_once, "anti-affinity", cluster(*THREE, vm(101, "pve2", 4, 1, APART, TO_3), vm(102, "pve1", 4, 1, APART, TO_2)),
    ),
    "who is in the way": Scene(
        nobody_is_in_the_way, "anti-affinity",
        cluster(*THREE, vm(101, "pve2", 4, 1, APART, TO_3), vm(102, "pve1", 4, 1, APART, TO_2)),
    ),
    "sum of a batch": Scene(
        one_by_one_in_a_batch, "memory",
        cluster(
            node("pve1"), SMALL, node("pve3"), vm(101, "pve2", 20, 1, TO_3),
            vm(102, "pve1", 25, 1, TO_2), vm(103, "pve1", 25, 1, TO_2),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENES)
def test_a_check_that_says_yes_to_all_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = SCENES[name]
    good = planner.plan(scene.snapshot, scene.how, scene.question)
    assert wrong_in(scene.snapshot, good, scene.how, scene.question) == []
    scene.off(monkeypatch)
    bad = planner.plan(scene.snapshot, scene.how, scene.question)
    found = wrong_in(scene.snapshot, bad, scene.how, scene.question)
    assert scene.says in {finding.split(":")[0].split(" ")[0] for finding in found}, found


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("source", "pve3", "source"),
        ("target", "pve9", "target"),
        ("vmid", 999, "unknown"),
        ("batch", 7, "batches"),
        ("gain", 0.5, "gain"),
        ("memory_bytes", 1, "load"),
        ("cpu_cores", 99.0, "load"),
    ],
)
def test_a_move_that_says_something_wrong_is_seen(field: str, value: object, says: str) -> None:
    snapshot = pinned_to("pve2", vm(101, "pve1"))
    good = planner.plan(snapshot, PLAIN)
    bad = replace(good, moves=(replace(good.moves[0], **{field: value}),))  # type: ignore[arg-type]
    assert says in {finding.split(":")[0] for finding in wrong_in(snapshot, bad, PLAIN)}


def test_a_plan_that_says_something_wrong_is_seen() -> None:
    snapshot = cluster(*TWO, vm(101, "pve1", 40), vm(102, "pve1", 40))
    good = planner.plan(snapshot, PLAIN)
    move = good.moves[0]
    for bad, says in (
        (replace(good, moves=(move, replace(move, target="pve1"))), "twice"),
        (replace(good, after=good.before), "balance"),
        (replace(good, before=good.after), "balance"),
        (replace(good, refused=(Refusal(move.vmid, R.NO_GAIN),)), "refused"),
        (replace(good, refused=(Refusal(999, R.NO_GAIN),)), "refused"),
    ):
        assert says in {finding.split(":")[0] for finding in wrong_in(snapshot, bad, PLAIN)}
    assert {finding.split(":")[0] for finding in wrong_in(snapshot, good, PLAIN, Question(moves_left=0))} == {"brakes"}
    assert {finding.split(":")[0] for finding in wrong_in(replace(snapshot, unseen=(1,)), good, PLAIN)} == {"unseen"}


# --- On random clusters --------------------------------------------------------------------------------------------------------------
#
# Faults of any planner, whatever it is made of: it is not told something (`blind_to`), or what it says is spoilt (`spoilt`).

Asked = tuple[Snapshot, Settings, Question]


def blind_to(change: Callable[[Snapshot, Settings, Question], Asked]) -> Off:
    """The planner plans for what it is told, and is not told all."""

    def switch(patch: pytest.MonkeyPatch) -> None:
        real = planner.plan
        patch.setattr(planner, "plan", lambda snapshot, how, question: real(*change(snapshot, how, question)))

    return switch


def spoilt(change: Callable[[Plan], Plan]) -> Off:
    """What the planner says is spoilt."""

    def switch(patch: pytest.MonkeyPatch) -> None:
        real = planner.plan
        patch.setattr(planner, "plan", lambda snapshot, how, question: change(real(snapshot, how, question)))

    return switch


def question_without(**fields: object) -> Off:
    return blind_to(lambda snapshot, how, question: (snapshot, how, replace(question, **fields)))  # type: ignore[arg-type]


def snapshot_without(**fields: object) -> Off:
    return blind_to(lambda snapshot, how, question: (replace(snapshot, **fields), how, question))  # type: ignore[arg-type]


def settings_without(section: str, **fields: object) -> Off:
    def change(snapshot: Snapshot, how: Settings, question: Question) -> Asked:
        return snapshot, replace(how, **{section: replace(getattr(how, section), **fields)}), question

    return blind_to(change)


def tags_without(prefix: str) -> Off:
    def change(snapshot: Snapshot, how: Settings, question: Question) -> Asked:
        guests = (replace(guest, tags=tuple(tag for tag in guest.tags if not tag.startswith(prefix))) for guest in snapshot.guests)
        return replace(snapshot, guests=tuple(guests)), how, question

    return blind_to(change)


def no_thresholds(snapshot: Snapshot, how: Settings, question: Question) -> Asked:
    balance = replace(
        how.balance, cpu=replace(how.balance.cpu, threshold_percent=0), memory=replace(how.balance.memory, threshold_percent=0)
    )
    return snapshot, replace(how, balance=balance), question


def cores_without_end(snapshot: Snapshot, how: Settings, question: Question) -> Asked:
    return replace(snapshot, nodes=tuple(replace(one, cpu_cores=one.cpu_cores * 8) for one in snapshot.nodes)), how, question


def ledger_without_loads(snapshot: Snapshot, how: Settings, question: Question) -> Asked:
    return snapshot, how, replace(question, ledger=Ledger(in_flight=question.ledger.in_flight))


def in_batches(number: Callable[[int, int], int]) -> Callable[[Plan], Plan]:
    """The moves in other batches: a function of a batch's number and how many there are."""

    def change(plan: Plan) -> Plan:
        most = max((move.batch for move in plan.moves), default=0)
        moves = [replace(move, batch=number(move.batch, most)) for move in plan.moves]
        return replace(plan, moves=tuple(sorted(moves, key=lambda move: move.batch)))

    return change


def one_lags_behind(plan: Plan) -> Plan:
    """Of guests that go from one node to another in one batch, one goes after all others."""
    steps = Counter((move.source, move.target, move.batch) for move in plan.moves if move.reason.value == "affinity" or move.gain)
    late = [move for move in plan.moves if steps[move.source, move.target, move.batch] > 1][:1]
    after_all = max((move.batch for move in plan.moves), default=0) + 1
    return replace(plan, moves=(*(move for move in plan.moves if move not in late), *(replace(move, batch=after_all) for move in late)))


def gains_of_the_first_look(patch: pytest.MonkeyPatch) -> None:
    """Each move's gain is what it would be by PVE's own numbers, before the ledger."""
    real = planner.plan

    def change(snapshot: Snapshot, how: Settings, question: Question) -> Plan:
        told = {move.vmid: move.gain for move in real(snapshot, how, replace(question, ledger=Ledger())).moves}
        plan = real(snapshot, how, question)
        return replace(plan, moves=tuple(replace(move, gain=told.get(move.vmid, move.gain)) for move in plan.moves))

    patch.setattr(planner, "plan", change)


def gives_up_too_soon(plan: Plan) -> Plan:
    """The last move is refused instead."""
    if not plan.moves:
        return plan
    lost = plan.moves[-1]
    refused = sorted([*plan.refused, Refusal(lost.vmid, R.NO_TARGET, "none")], key=lambda refusal: refusal.vmid)
    return replace(plan, moves=plan.moves[:-1], refused=tuple(refused))


@dataclass(frozen=True)
class Fault:
    """A fault, and the words of which the checker must say one.

    With `calm` settings the clusters are even ones without rules, and nothing is remembered.
    """

    off: Off
    says: frozenset[str]
    calm: Settings | None = None


def fault(off: Off, *says: str, calm: Settings | None = None) -> Fault:
    return Fault(off, frozenset(says), calm)


CHOOSY = settings({"balance": {"spread_percent": 5, "min_gain_percent": 5}})
FAULTS = {
    "no memory limit": fault(no_memory_limit, "memory"),
    "no reserve": fault(
        blind_to(lambda s, how, q: (s, replace(how, balance=replace(how.balance, node_reserve=ReserveSettings(0, 0))), q)), "memory"
    ),
    "no cpu limit": fault(blind_to(cores_without_end), "cpu"),
    "no thresholds": fault(blind_to(no_thresholds), "threshold"),
    "pins skipped": fault(tags_without("plb_pin"), "pin"),
    "affinity skipped": fault(tags_without("plb_affinity"), "affinity"),
    "anti-affinity skipped": fault(tags_without("plb_anti_affinity"), "anti-affinity"),
    "ignored guests move": fault(tags_without("plb_ignore"), "ignored"),
    "guests.ignore skipped": fault(settings_without("guests", ignore=()), "ignored"),
    "containers always move": fault(settings_without("guests", containers=ContainerPolicy.ALWAYS), "containers"),
    "ignored nodes take guests": fault(settings_without("nodes", ignore=()), "ignored-node"),
    "nodes.maintenance skipped": fault(settings_without("nodes", maintenance=()), "maintenance"),
    "drains forgotten": fault(snapshot_without(maintenance=()), "maintenance"),
    "no_target forgotten": fault(snapshot_without(no_target=()), "maintenance"),
    "backups forgotten": fault(snapshot_without(tasks=()), "backup"),
    "in flight, gone from the source": fault(who_leaves_is_gone, "memory", "cpu", "threshold"),
    "in flight, not yet on the target": fault(who_comes_is_not_there, "memory", "cpu", "threshold"),
    "in flight, forgotten altogether": fault(
        blind_to(lambda s, how, q: (s, how, replace(q, ledger=replace(q.ledger, in_flight=())))), "busy"
    ),
    "loads without the ledger": fault(blind_to(ledger_without_loads), "load"),
    "gain before the ledger": fault(gains_of_the_first_look, "gain"),
    "cooldown ignored": fault(question_without(cooling={}), "cooldown"),
    "other balancers ignored": fault(question_without(stepped_back={}), "other-balancer"),
    "set aside ignored": fault(question_without(set_aside={}), "set-aside"),
    "failures on nodes ignored": fault(question_without(avoided={}), "avoided"),
    "verdicts ignored": fault(question_without(verdicts={}), "verdict"),
    "hourly brake ignored": fault(question_without(moves_left=NO_LIMIT), "brakes"),
    "brake of a pass ignored": fault(question_without(moves_per_pass=NO_LIMIT), "brakes"),
    "scope ignored": fault(question_without(scope=EVERYWHERE), "scope"),
    "gate ignored": fault(settings_without("balance", spread_percent=0.01), "gate", calm=PLAIN),
    "least gain ignored": fault(settings_without("balance", min_gain_percent=0), "gain", calm=CHOOSY),
    "all in one batch": fault(spoilt(in_batches(lambda number, most: 1)), "memory", "cpu", "threshold", "anti-affinity"),
    "batches in the wrong order": fault(
        spoilt(in_batches(lambda number, most: most + 1 - number)), "memory", "cpu", "threshold", "anti-affinity"
    ),
    "a unit split": fault(spoilt(one_lags_behind), "affinity"),
    "refusals missing": fault(spoilt(lambda plan: replace(plan, refused=())), "unnamed"),
    "a refusal that is not true": fault(
        spoilt(lambda plan: replace(plan, refused=tuple(replace(one, reason=R.TEMPLATE) for one in plan.refused))), "refusal"
    ),
    "a refusal of a guest that could go": fault(spoilt(gives_up_too_soon), "refusal"),
}
BUDGET = 100  # random clusters, as hypothesis looks at for each property


def under_way(snapshot: Snapshot, question: Question, seed: int) -> Question:
    """The question while a quarter of the guests that run are on their way somewhere."""
    dice = random.Random(seed)
    names = [node.name for node in snapshot.nodes]
    flying = [guest for guest in snapshot.guests if guest.is_running and not guest.template and dice.random() < 0.25]
    flights = tuple(
        InFlight(one.vmid, one.node, dice.choice([name for name in names if name != one.node]), GuestLoad(1.0, float(one.memory_bytes)))
        for one in flying
    )
    return replace(question, ledger=replace(question.ledger, in_flight=flights))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_on_random_clusters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    this = FAULTS[name]
    this.off(monkeypatch)
    dice = random.Random(name)
    found: Counter[str] = Counter()
    for example in range(BUDGET):
        draw = Draw(
            seed=dice.randrange(2**32),
            nodes=dice.randrange(3, 10),
            guests=dice.randrange(20, 120),
            skew=dice.choice((0.0, 0.5, 1.0, 2.0)) if this.calm is None else 0.0,
            fill=dice.uniform(0.25, 0.85) if this.calm is None else 0.3,
            rules=dice.choice((0.2, 0.5)) if this.calm is None else 0.0,
            oddities=dice.choice((0.0, 0.1, 0.3)) if this.calm is None else 0.0,
        )
        snapshot = random_cluster(draw)
        question = remembered(snapshot, draw.seed) if this.calm is None else Question()
        if "in flight" in name and example % 2:
            question = under_way(snapshot, question, draw.seed)
        how = HOW[draw.seed % len(HOW)] if this.calm is None else this.calm
        result = planner.plan(snapshot, how, question)
        said = wrong_in(snapshot, result, how, question) + left_undone(snapshot, result, how, question)
        found.update({finding.split(":")[0].split(" ")[0] for finding in said})
        if found.keys() & this.says:
            print(f"found in example {example + 1}")
            return
    pytest.fail(f"not found in {BUDGET} clusters; found was {found}")

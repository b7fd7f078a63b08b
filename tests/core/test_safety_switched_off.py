# SPDX-License-Identifier: GPL-3.0-or-later
"""Each safety check does something, and the checker of plans sees when it does not: one check at a time says yes to all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from agent.core import conditions, load, order, placement, planner
from agent.core.cluster import GIB, Guest, Node, Snapshot
from agent.core.conditions import Conditions
from agent.core.load import GuestLoad, InFlight, Ledger, NodeLoad
from agent.core.placement import NodeState, Placement
from agent.core.plan_types import Refusal, Verdict
from agent.core.question import Question
from agent.core.reasons import RefusalReason
from agent.core.repairs import Repairs
from agent.core.settings import Settings
from agent.core.steps import Step
from tests.core.clusters import NOW, changed, cluster, ct, node, settings, stopped, task, vm, wrong_in

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

        def blind(*arguments: object) -> Refusal | None:
            refusal: Refusal | None = real(*arguments)
            return None if refusal is not None and refusal.reason in reasons else refusal

        patch.setattr(owner, method, blind)

    return switch


def guest_check(reason: RefusalReason) -> Off:
    return never("why_guest_stays", reason)


def node_check(reason: RefusalReason) -> Off:
    return never("_judged", reason)


def no_memory_limit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(load, "memory_limit_bytes", lambda node, settings: math.inf)


def every_load_is_fine(patch: pytest.MonkeyPatch) -> None:
    """Offline, and of long ago: PVE's last number is taken for the load of now."""
    for module in (load, conditions):
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
    real = load.node_loads

    def forgets(snapshot: Snapshot, ledger: Ledger, settings: Settings) -> dict[str, NodeLoad]:
        return real(snapshot, replace(ledger, in_flight=()), settings)

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
    "cpu limit": Scene(never("why_no_room", R.NO_CPU), "cpu", pinned_to("pve2", TWO[0], node("pve2", 64, 2), vm(101, "pve1", 4, 3))),
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
    "HA": Scene(guest_check(R.HA_MANAGED), "ha", pinned_to("pve2", vm(101, "pve1", ha="started"))),
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
    "dead source": Scene(
        guest_check(R.NODE_OFFLINE), "offline", changed(cluster(*TWO, vm(101, "pve1"), drain=["pve1"]), "pve1", online=False),
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

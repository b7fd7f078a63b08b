# SPDX-License-Identifier: GPL-3.0-or-later
"""What does not wait for a gate: emptying nodes, putting broken rules right, bringing guests home."""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.conditions import Purpose
from agent.core.draft import Draft
from agent.core.plan_types import Refusal
from agent.core.reasons import MoveReason, RefusalReason
from agent.core.rules import RuleSource
from agent.core.steps import purpose_of

MOST_ROUNDS = 10  # each makes room for what had none; one or two do nearly always
ROOM_TRIALS = 400  # guests of one plan that are tried for whether their leaving makes room for one that must move


class Repairs:
    """The repairs of one planner run; `hopeless` are rules that no placement can keep.

    Shape:   `may_move_on`: who has moved in this plan may go elsewhere instead, to make room.
    """

    def __init__(self, draft: Draft, hopeless: set[str], *, may_move_on: bool) -> None:
        self._draft, self._sketch, self._hopeless = draft, draft.sketch, hopeless
        self._may_move_on = may_move_on
        self._trials = 0
        self._said: set[int] = set()

    def run(self) -> None:
        """Make all steps that are due, until none makes room for another; those that find no place are refused with the reason."""
        for _ in range(MOST_ROUNDS):
            steps = self._draft.steps
            for vmid in self._said:
                self._draft.refused.pop(vmid, None)  # what was true then may not be true any more
            self._said.clear()
            self._once()
            if self._draft.steps == steps:
                break

    def _refuse(self, refusal: Refusal) -> None:
        if refusal.vmid not in self._draft.refused:
            self._said.add(refusal.vmid)
        self._draft.refuse(refusal)

    def _once(self) -> None:
        self._drain()
        if self._draft.question.repair_rules:
            self._pins()
            self._affinity()
            self._anti_affinity()
        self._return_home()

    def _place(self, unit: tuple[int, ...], targets: Iterable[str], reason: MoveReason) -> Refusal | None:
        """Take the guests to the best of the targets, making room there if need be; why not, when no target takes them."""
        draft, purpose = self._draft, purpose_of(reason)
        refusal = self._sketch.why_unit_stays(unit, purpose)
        if refusal is not None:
            return refusal
        targets = tuple(targets)
        target, why = draft.best_target(unit, targets, purpose)
        if target is None and (made := self._room_for(unit, targets, purpose)) is not None:
            (who, where), target = made
            moved = draft.step_of(who[0])
            draft.take(who, where, MoveReason.ROOM if moved is None else moved.reason)
        if target is None:
            return why
        draft.take(unit, target, reason)
        return None

    def _room_for(self, unit: tuple[int, ...], targets: Iterable[str], purpose: Purpose) -> tuple[tuple[tuple[int, ...], str], str] | None:
        """Who could leave a target for a third node so that the guests fit there; of all, whose leaving copies least."""
        sketch, draft = self._sketch, self._draft
        burden = sketch.burden_of_unit(unit)
        best: tuple[float, int, str, str] | None = None
        for target in targets:
            if sketch.why_not_allowed(unit, target, purpose) is not None:
                continue
            room = sketch.room(target, purpose)
            for vmid in sorted(sketch.states[target].present):
                who = sketch.unit_here(vmid)
                leaving = sketch.burden_of_unit(who)
                if who[0] != vmid or (best is not None and leaving.memory_bytes >= best[0]) or not burden.fits_into(room.plus(leaving)):
                    continue
                if not draft.question.force and not (draft.question.cooling.keys() | draft.question.stepped_back.keys()).isdisjoint(who):
                    continue  # who has just moved, or is moved by another balancer, is not sent on for others
                leaves_for = self._why_it_may_leave(who)
                if self._trials >= ROOM_TRIALS or leaves_for is None or sketch.why_unit_stays(who, leaves_for) is not None:
                    continue
                self._trials += 1
                where, _ = draft.best_target(who, sketch.usable, leaves_for)
                if where is None:
                    continue
                mark = sketch.mark()
                sketch.move(who, where)
                if sketch.why_not_target(unit, target, purpose) is None:
                    best = (leaving.memory_bytes, vmid, where, target)
                sketch.rollback(mark)
        if best is None:
            return None
        _, vmid, where, target = best
        return (sketch.unit_here(vmid), where), target

    def _why_it_may_leave(self, unit: tuple[int, ...]) -> Purpose | None:
        """For what the guests would leave their node to make room there: who moves in this plan, for the same as before.

        None when they would not: they have come home, or only some of them have moved.
        """
        step = self._draft.step_of(unit[0])
        if any(self._draft.step_of(vmid) != step for vmid in unit):
            return None
        if step is None:
            return Purpose.RULE
        return step.purpose if self._may_move_on and step.reason is not MoveReason.RETURN_HOME else None

    def _every_node(self) -> tuple[str, ...]:
        return tuple(sorted(self._sketch.node_of))

    def _by_size(self, vmids: Iterable[int]) -> list[int]:
        """The biggest problem first: what is hardest to place is placed while there is room."""
        return sorted(vmids, key=lambda vmid: (-self._sketch.load_of[vmid].memory_bytes, vmid))

    # maintenance

    def _drain(self) -> None:
        sketch = self._sketch
        if not sketch.draining:
            return
        here = [vmid for vmid, node in sketch.at.items() if node in sketch.draining and not sketch.guest_of[vmid].template]
        for vmid in self._by_size(here):
            if sketch.at[vmid] not in sketch.draining:
                continue  # left with its unit
            refusal = self._place(sketch.unit_here(vmid), self._every_node(), MoveReason.MAINTENANCE)
            if refusal is not None:
                self._refuse(Refusal(vmid, refusal.reason, refusal.detail))

    def _return_home(self) -> None:
        sketch, homes = self._sketch, self._draft.question.homes
        if sketch.draining or not homes:
            return
        for vmid, home in sorted(homes.items()):
            guest = sketch.guest_of.get(vmid)
            if guest is None or sketch.at[vmid] == home or self._draft.step_of(vmid) is not None:
                continue
            unit = sketch.unit_here(vmid)
            if (other := next((other for other in unit if homes.get(other) != home), None)) is not None:
                self._refuse(Refusal(vmid, RefusalReason.AFFINITY, f"guest {other}, with which it stays, does not come to {home}"))
                continue  # together is worth more than at home
            refusal = sketch.why_unit_stays(unit, Purpose.DRAIN) or sketch.why_not_target(unit, home, Purpose.LOAD)
            if refusal is None:
                self._draft.take(unit, home, MoveReason.RETURN_HOME)
            else:
                self._refuse(Refusal(vmid, refusal.reason, refusal.detail))

    # rules: a broken one of the HA manager's is its own business, and it is at it within seconds (pve-ha-manager, Manager.pm,
    # select_service_node, asked in each round for each started service); a request of ours would come in between

    def _repair(self, unit: tuple[int, ...], targets: Iterable[str], reason: MoveReason) -> None:
        refusal = self._place(unit, targets, reason)
        if refusal is not None:
            self._refuse(refusal)

    def _is_in_scope(self, vmids: tuple[int, ...]) -> bool:
        return self._draft.question.scope.covers_guests(vmids)

    def _pins(self) -> None:
        sketch = self._sketch
        for vmid, allowed in sorted(sketch.rules.pins.items()):
            if sketch.at[vmid] in allowed or not sketch.guest_of[vmid].is_running or sketch.at[vmid] in sketch.draining:
                continue
            sources = {pin.source for pin in sketch.rules.broken_pins(vmid, sketch.at[vmid])}
            if sources == {RuleSource.HA}:
                continue
            unit = sketch.unit_here(vmid)
            if len(unit) < len(sketch.rules.unit(vmid)) or not self._is_in_scope(unit):
                continue  # a split unit is gathered below, on a node that all its pins allow
            self._repair(unit, sorted(allowed), MoveReason.PIN if RuleSource.TAG in sources else MoveReason.POOL_RULE)

    def _affinity(self) -> None:
        sketch = self._sketch
        split = {unit for unit in sketch.rules.units.values() if len({sketch.at[vmid] for vmid in unit}) > 1}
        sources = self._sources_of_split(split) if split else {}
        for unit in sorted(split):
            if sources[unit] - {RuleSource.HA} and self._is_in_scope(unit):
                self._gather(unit, MoveReason.AFFINITY if RuleSource.TAG in sources[unit] else MoveReason.POOL_RULE)

    def _sources_of_split(self, split: set[tuple[int, ...]]) -> dict[tuple[int, ...], set[RuleSource]]:
        """For each of these units, whose rules are broken by it."""
        sketch = self._sketch
        found: dict[tuple[int, ...], set[RuleSource]] = {unit: set() for unit in split}
        for group in sketch.rules.affinity:
            members: dict[tuple[int, ...], set[str]] = {}
            for vmid in group.vmids:
                if (unit := sketch.rules.units.get(vmid)) in found and unit is not None:
                    members.setdefault(unit, set()).add(sketch.at[vmid])
            for unit, nodes in members.items():
                if len(nodes) > 1:
                    found[unit].add(group.source)
        return found

    def _gather(self, unit: tuple[int, ...], reason: MoveReason) -> None:
        """Bring a split unit together where the fewest guests, of these those that have not just moved, then bytes, have to move.

        Where the slots were too few to move a unit at once, part of it has arrived: the rest follows, however many they are.
        """
        sketch, draft, question = self._sketch, self._draft, self._draft.question
        arrived = question.ledger.learned.keys()  # by a migration of ours, minutes ago
        best: tuple[int, int, int, int, float, float, str] | None = None
        why: Refusal | None = None
        for name in sketch.usable:
            movers = tuple(vmid for vmid in unit if sketch.at[vmid] != name)
            refusal = self._why_not_gathered(unit, movers, name)
            if refusal is not None:
                why = why or refusal
                continue
            draft.evaluations += 1
            rank = (
                len(arrived & set(movers)),
                len(movers),
                len(question.cooling.keys() & set(movers)),  # who has just moved is followed rather than sent back
                -sum(question.homes.get(vmid) == name for vmid in movers),
                sketch.load_of_unit(movers).memory_bytes,
                draft.goal.heat[draft.goal.index[name]],
                name,
            )
            best = rank if best is None else min(best, rank)
        if best is not None:
            draft.take(tuple(vmid for vmid in unit if sketch.at[vmid] != best[-1]), best[-1], reason)
        else:
            self._refuse(why or Refusal(unit[0], RefusalReason.NO_TARGET, "there is no other node"))

    def _why_not_gathered(self, unit: tuple[int, ...], movers: tuple[int, ...], name: str) -> Refusal | None:
        sketch = self._sketch
        for vmid in movers:
            if (stays := sketch.conditions.why_guest_stays(sketch.guest_of[vmid], Purpose.RULE)) is not None:
                return stays
        refusal = sketch.why_not_target(movers, name, Purpose.RULE)
        if refusal is None and any(name not in sketch.rules.pins.get(vmid, (name,)) for vmid in unit):
            refusal = Refusal(movers[0], RefusalReason.PINNED, f"not {name}: a guest there is pinned elsewhere")
        return refusal

    def _anti_affinity(self) -> None:
        sketch = self._sketch
        for group in sketch.rules.anti_affinity:
            if group.source is RuleSource.HA or group.rule in self._hopeless or not self._is_in_scope(group.vmids):
                continue
            for name in sorted({sketch.at[vmid] for vmid in group.vmids} - sketch.draining):
                members = [vmid for vmid in group.vmids if sketch.at[vmid] == name]
                for vmid in self._who_leaves(members):
                    self._repair(sketch.unit_here(vmid), self._every_node(), _APART_REASONS[group.source])

    def _can_leave(self, unit: tuple[int, ...]) -> bool:
        """True when the guests may move and some node takes them now."""
        if self._sketch.why_unit_stays(unit, Purpose.RULE) is not None:
            return False
        return self._draft.best_target(unit, self._every_node(), Purpose.RULE)[0] is not None

    def _who_leaves(self, members: list[int]) -> list[int]:
        """All but one: who cannot leave stays, of the others the largest stays."""
        if len(members) < 2:
            return []
        sketch = self._sketch
        stuck = {v for v in members if not self._can_leave(sketch.unit_here(v))}
        stays = min(members, key=lambda v: (v not in stuck, -sketch.load_of[v].memory_bytes, v))
        leaving = [vmid for vmid in members if vmid != stays]
        return sorted(leaving, key=lambda vmid: (sketch.load_of[vmid].memory_bytes, vmid))


_APART_REASONS = {RuleSource.TAG: MoveReason.ANTI_AFFINITY, RuleSource.POOL: MoveReason.POOL_RULE}

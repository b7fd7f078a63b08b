# SPDX-License-Identifier: GPL-3.0-or-later
"""From moves to requests: written down first, and asked of PVE only when that stands and is still wanted."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from agent.core.cluster import Snapshot
from agent.core.ha_moves import partners
from agent.core.homes import homes_of
from agent.core.journal import Level, MessageId, Record
from agent.core.leadership import Leadership
from agent.core.migrations import Migration, intended
from agent.core.plan_types import Move, Plan, drained_by
from agent.core.reasons import MoveReason
from agent.core.sentences import move_words
from agent.core.settings import Settings
from agent.daemon.chronicle import Chronicle
from agent.daemon.follow import Follow
from agent.daemon.inputs import Now
from agent.daemon.orders import order_of
from agent.daemon.outputs import Output, Say, StartMigration
from agent.daemon.verdicts import Verdicts


class Acting:
    """The moves between the decision and PVE."""

    def __init__(self, chronicle: Chronicle, follow: Follow, verdicts: Verdicts) -> None:
        self._chronicle = chronicle
        self._follow = follow
        self._verdicts = verdicts
        self._intents = 0
        self._to_start: list[Migration] = []

    def intend(self, moves: Sequence[Move], plan: Plan, snapshot: Snapshot, request: str | None, epoch: int, now: Now) -> None:
        """Note the moves down as intended: a new leader must know what may be under way.

        Shape:   `request` is that of the command which asked for them, None without one.
        """
        self._to_start = []
        for move in moves:
            self._intents += 1
            is_of_ha = _is_of_ha(move.vmid, snapshot)
            record = intended(
                move,
                f"{epoch}-{self._intents}",
                epoch,
                now.wall_s,
                request,
                through_ha=is_of_ha,
                along_with=self._leads_along(move, snapshot) if is_of_ha else None,
                drains=drained_by(move, plan.moves),
            )
            self._to_start.append(record)
        self._chronicle.record(self._to_start)

    def _leads_along(self, move: Move, snapshot: Snapshot) -> str | None:
        """The intent of the request with which the HA manager moves this guest, too; None when it needs one of its own."""
        bound = partners(snapshot.ha, move.vmid)
        leads = (lead for lead in self._to_start if lead.vmid in bound and lead.target == move.target and lead.along_with is None)
        return next((lead.intent for lead in leads), None)

    def drop(self) -> None:
        """What was noted down is not begun after all."""
        self._chronicle.forget(self._to_start)
        self._to_start = []

    def start(
        self, plan: Plan, snapshot: Snapshot, wanted_empty: AbstractSet[str], event: str, lead: Leadership, settings: Settings, now: Now
    ) -> tuple[list[Output], bool]:
        """Ask PVE for what was written down just now; returns what to do, and whether some of it is no longer wanted.

        Shape:   `wanted_empty` are the nodes that somebody wants empty, in small letters; `event` is what the moves answer.
        """
        records, self._to_start = self._to_start, []
        unwanted = _unwanted(records, plan, wanted_empty)
        moves, homes = {move.vmid: move for move in plan.moves}, homes_of(self._chronicle.history)
        vmids = {record.intent: record.vmid for record in records}
        outputs: list[Output] = []
        for record in records:
            if (record.along_with or record.intent) in unwanted:  # who moves along with one stays with it
                self._chronicle.forget([record])
                continue
            needs, is_home = self._verdicts.needs(record.vmid), homes.get(record.vmid) == record.target
            order = order_of(record, snapshot, needs, settings, is_home=is_home)
            limit_kib_s = None if record.through_ha else order.bandwidth_limit_kib_s  # the HA manager drops it
            self._chronicle.record_with_next(self._follow.ask(replace(record, limit_kib_s=limit_kib_s), now))
            move, leads = moves.get(record.vmid), vmids.get(record.along_with or "")
            text = f"moving {move_words(move)}" if move is not None else f"moving guest {record.vmid}"
            text += "" if leads is None else f", along with guest {leads}, as the HA manager wants"
            outputs.append(
                Say(
                    Record(
                        Level.NOTICE,
                        MessageId.MOVE,
                        text,
                        event=event,
                        reason=record.reason.value,
                        vmid=record.vmid,
                        source=record.source,
                        target=record.target,
                        epoch=record.epoch,
                    )
                )
            )
            if record.along_with is None:
                outputs.append(StartMigration(record.intent, order, self._chronicle.leader, lead.lease_until_s))
        return outputs, bool(unwanted)


def _is_of_ha(vmid: int, snapshot: Snapshot) -> bool:
    guest = snapshot.guest(vmid)
    return guest is not None and guest.ha is not None


def _unwanted(records: Sequence[Migration], plan: Plan, wanted_empty: AbstractSet[str]) -> set[str]:
    """The intents of moves for nodes that nobody wants empty any more; for whom room is made is then seen anew."""
    has_ended = any(move.reason is MoveReason.MAINTENANCE and move.source.lower() not in wanted_empty for move in plan.moves)
    return {
        record.along_with or record.intent
        for record in records
        if (record.drains is not None and record.drains.lower() not in wanted_empty)
        or (record.reason is MoveReason.ROOM and record.drains is None and has_ended)
    }

# SPDX-License-Identifier: GPL-3.0-or-later
"""The question that commands put to the planner: with what leaders remember, and with PVE's own checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from agent import wiring
from agent.commands.flag_files import paused_by
from agent.core import aside
from agent.core import history as memory
from agent.core.balancers import Balancer, nobody_on, others_at_work, stepped_back, with_tasks
from agent.core.cluster import Guest, Snapshot
from agent.core.documents import HistoryFile, Timing
from agent.core.flags import Flag
from agent.core.homes import homes_of
from agent.core.known_loads import ledger_of
from agent.core.learned import Learned, bounded
from agent.core.plan_types import Move, Plan, Refusal, Verdict
from agent.core.planner import plan as make_plan
from agent.core.pressure import why_pressure_unknown
from agent.core.question import Question
from agent.core.quiet_hours import quiet
from agent.core.reasons import RefusalReason
from agent.core.settings import Mode, Settings
from agent.daemon.permission import pause_words
from agent.ports import TemporaryError

MOST_ROUNDS = 25  # plan, ask PVE, plan without the refused; as the leader does

AskPve = Callable[[Guest | Move, str], Verdict]


@dataclass(frozen=True, slots=True)
class Remembered:
    """What leaders remember: the cluster's history, None where there is none, and the loads that this node learned when it led; and
    the pause that holds."""

    history: HistoryFile | None = None
    learned: Learned = field(default_factory=dict)
    paused: Flag | None = None


def remembered(settings: Settings) -> Remembered:
    """What is remembered, as far as it can be read here."""
    return Remembered(wiring.read_history(settings), wiring.read_learned(settings), paused_by(settings))


def question_of(settings: Settings, snapshot: Snapshot, known: Remembered) -> Question:
    """The question about everything, with cooldowns, homes and who is set aside as leaders left them.

    The snapshot's own time counts as now, so that a snapshot from a file gives the plan of its time.
    """
    now = snapshot.taken_at
    balance = settings.balance
    records = known.history if known.history is not None else memory.empty(now)
    learned = bounded(known.learned.values(), now)
    return Question(
        ledger=ledger_of(snapshot, records, memory.open_migrations(records), now, learned),
        cooling=memory.cooling(records, snapshot, now, balance.guest_cooldown_s),
        stepped_back=stepped_back(_balancers(settings, snapshot, known.history), now),
        set_aside=aside.set_aside(records, now),
        avoided=aside.avoided(records, now),
        homes=homes_of(records) if settings.drain.return_home else {},
        moves_per_pass=balance.max_moves_per_pass,
        moves_left=memory.moves_left(records, now, balance.max_moves_per_hour),
    )


def _balancers(settings: Settings, snapshot: Snapshot, history: HistoryFile | None) -> tuple[Balancer, ...]:
    """Who balances beside the agent, by PVE's task list. Without what leaders remember, nobody can tell which migrations are theirs."""
    if history is None:
        return ()
    ours = {record.upid for record in history.migrations if record.upid is not None}
    now = snapshot.taken_at
    emptied = dict.fromkeys(nobody_on(snapshot), now)
    return others_at_work(with_tasks({}, snapshot.tasks, now), snapshot, ours, settings.api.token_id, now, emptied)[0]


def timings_in(history: HistoryFile | None) -> tuple[Timing, ...]:
    """What past migrations of the cluster took, as leaders noted it."""
    return history.timings if history is not None else ()


def asker(settings: Settings, snapshot: Snapshot) -> AskPve:
    """What asks PVE whether a guest may leave a node; a node that does not answer counts as a no."""
    api = wiring.make_api(settings)

    def ask(guest: Guest | Move, node: str) -> Verdict:
        try:
            return api.verdict(guest.vmid, guest.type, node, snapshot.taken_at)
        except TemporaryError as error:
            return Verdict(guest.vmid, snapshot.taken_at, Refusal(guest.vmid, RefusalReason.UNANSWERED, str(error)))

    return ask


def checked_plan(snapshot: Snapshot, settings: Settings, question: Question, ask: AskPve | None) -> Plan:
    """The plan after PVE was asked about each guest that is about to move, planned anew without what it refuses."""
    verdicts = dict(question.verdicts)
    for _ in range(MOST_ROUNDS):
        made = make_plan(snapshot, settings, replace(question, verdicts=verdicts))
        about_to_move = [move for move in made.moves if move.batch == 1 and move.first_pass and move.vmid not in verdicts]
        if ask is None or not about_to_move:
            return made
        verdicts |= {move.vmid: ask(move, move.source) for move in about_to_move}
    return make_plan(snapshot, settings, replace(question, verdicts=verdicts))


def why_only_words(settings: Settings, snapshot: Snapshot, known: Remembered) -> tuple[str, ...]:
    """What keeps the agent from carrying out a plan as it stands, or from seeing all that counts, a sentence each."""
    why, history = [], known.history
    if known.paused is not None:
        why.append(f"{pause_words(known.paused)}: the agent moves nobody, not for maintenance either")
    if settings.mode in (Mode.OFF, Mode.OBSERVE):
        why.append(f"mode is {settings.mode.value}: the agent carries out nothing")
    elif settings.mode is Mode.RULES:
        why.append("mode is rules: the agent does not balance load")
    elif (hours := quiet(settings.quiet_hours, snapshot.taken_at, snapshot.utc_offset_s)) is not None:
        why.append(f"{hours.words}: the agent does not balance load, unless asked by balance --force")
    if snapshot.unseen:
        shown = ", ".join(str(vmid) for vmid in snapshot.unseen[:5]) + (", ..." if len(snapshot.unseen) > 5 else "")
        why.append(f"the token does not see all guests ({shown}): the agent only observes; give it VM.Audit on /")
    if (unknown := why_pressure_unknown(snapshot, settings)) is not None:
        why.append(unknown)
    if history is not None:
        observed_s = snapshot.taken_at - history.first_seen_at
        if 0 <= observed_s < settings.triggers.first_observe_s:
            why.append(f"the cluster is new: the agent only observes for {settings.triggers.first_observe_s - observed_s:.0f} s more")
        if (alarm := memory.alarm(history, snapshot.taken_at)) is not None:
            why.append(f"load balancing has stopped: {alarm}")
    return tuple(why)

# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent balance`: shows the plan, asks, hands the request to the leader, and follows its progress."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace

from agent import wiring
from agent.commands.plan import plan_text
from agent.commands.planning import asker, checked_plan, question_of, remembered, timings_in, why_only_words
from agent.commands.progress import Teller, teller
from agent.commands.status import read_status
from agent.commands.tables import counted
from agent.commands.wrong_use import WrongUseError, own_node_or_refuse, settings_of
from agent.core.documents import Answer, HistoryFile
from agent.core.migrations import Migration, MigrationState
from agent.core.outlook import outlook
from agent.core.plan_types import Move
from agent.core.progress import Progress, progress_of, time_left_s
from agent.core.sentences import migration_words
from agent.core.settings import Mode, Settings
from agent.daemon.mailbox import request_text
from agent.ports import FilesystemState, NoQuorumError, PermanentError, TemporaryError

POLL_S = 1.0
NO_ANSWER_S = 120.0  # relayed within 5 s; the leader may be busy with another answer, but says so in its status
_SEE = "see: journalctl -u proxlb-agent, on the leader"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--force", action="store_true", help="past gates, cooldowns and quiet hours; never past a rule or a limit")


def execute(arguments: argparse.Namespace) -> int:
    """Balance."""
    settings = settings_of(arguments)
    own_node_or_refuse(settings, "balance")
    if not arguments.yes and not sys.stdin.isatty():
        raise WrongUseError("there is no terminal to ask on", "say --yes to go on without asking")
    state = wiring.make_files(settings).state()
    if state is FilesystemState.STANDALONE:
        print("this node is in no cluster: there is nothing to balance")
        return 0
    if state is FilesystemState.NO_QUORUM:
        raise NoQuorumError("this node is not in the quorate part of the cluster: nobody may move anything from here")
    snapshot = wiring.look(settings)
    known = remembered(settings)
    question = replace(question_of(settings, snapshot, known), force=arguments.force)
    plan = checked_plan(snapshot, settings, question, asker(settings, snapshot))
    view = outlook(snapshot, wiring.in_slots(settings), question, plan, timings_in(known.history))
    print(plan_text(plan, view, snapshot, settings), flush=True)
    if not plan.moves:
        return 0
    if settings.mode in (Mode.OFF, Mode.OBSERVE):
        raise PermanentError(f"mode is {settings.mode.value}: the agent carries out nothing", "the cluster's config.yaml sets the mode")
    for sentence in () if arguments.force else why_only_words(settings, snapshot, known):
        print(f"proxlb-agent: note: {sentence}", file=sys.stderr)
    read_status(settings)  # an agent must run here, as it is the one that takes the request
    if not arguments.yes and not _is_agreed():
        print("nothing was asked for")
        return 0
    request = uuid.uuid4().hex[:12]
    user = os.environ.get("SUDO_USER") or getpass.getuser()
    wiring.leave_request(settings, request, request_text(user, force=arguments.force))
    try:
        with teller("balancing") as told:
            return _follow(settings, request, plan.moves, told)
    except KeyboardInterrupt:
        print("\nproxlb-agent: not followed any longer; the leader carries the request out", file=sys.stderr)
        raise


def _is_agreed() -> bool:
    print("\nCarry this out? The leader plans anew first. [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _follow(settings: Settings, request: str, planned: Sequence[Move], told: Teller) -> int:
    """Tell what becomes of the request until nothing more follows; returns 1 when something failed.

    The leader plans anew, so what is `planned` is only about what is left to come.

    Raises:  TemporaryError when nobody answers, or nothing more is heard.
    """
    said_answer, said_states = "", dict[str, str]()
    asked_s = heard_s = time.monotonic()
    while True:
        history = wiring.read_history(settings)
        answer, records = _of_request(history, request)
        if answer is not None and answer.text != said_answer:
            said_answer, heard_s = answer.text, time.monotonic()
            told.answer(answer.text)
        for record in records:
            state = f"{record.state.value}{f', {record.text}' if record.text else ''}"
            if said_states.get(record.intent) != state:
                said_states[record.intent], heard_s = state, time.monotonic()
                told.answer(f"{migration_words(record)}: {state}")
        if answer is not None and answer.final and not any(record.is_open for record in records):
            return 1 if answer.failed or _has_failed(records) else 0
        if records:
            told.show(*_progress(settings, history, records, planned))
        silent_s = time.monotonic() - heard_s
        if answer is None and not records and time.monotonic() - asked_s >= NO_ANSWER_S:
            raise TemporaryError(f"no leader has answered for {NO_ANSWER_S:.0f} s; the request may still be carried out; {_SEE}")
        if silent_s >= settings.migration.timeout_s:
            raise TemporaryError(f"nothing was heard for {silent_s:.0f} s; what is under way goes on; {_SEE}")
        told.wait(POLL_S)


def _progress(
    settings: Settings, history: HistoryFile | None, records: Sequence[Migration], planned: Sequence[Move]
) -> tuple[Progress, str]:
    """How far the request has come, and what is left in words."""
    last = {record.vmid: record for record in records}
    sizes = {move.vmid: move.memory_bytes + move.disk_bytes for move in planned}
    sizes |= {vmid: record.memory_bytes + record.disk_bytes for vmid, record in last.items()}
    over = {vmid for vmid, record in last.items() if record.state is MigrationState.DONE}
    left = sizes.keys() - over
    to_come = [move for move in planned if move.vmid not in last]
    under_way = [record for record in records if record.is_open]
    left_s = time_left_s(to_come, under_way, timings_in(history), wiring.in_slots(settings), wiring.wall_s())
    return progress_of(sizes, left, left_s), f"{counted(len(left), 'guest')} to go" if left else ""


def _of_request(history: HistoryFile | None, request: str) -> tuple[Answer | None, tuple[Migration, ...]]:
    if history is None:
        return None, ()
    answer = next((answer for answer in history.answers if answer.request == request), None)
    return answer, tuple(record for record in history.migrations if record.request == request)


def _has_failed(records: tuple[Migration, ...]) -> bool:
    """True when a guest's last attempt did not bring it to its target."""
    last = {record.vmid: record.state for record in records}
    return any(state is not MigrationState.DONE for state in last.values())

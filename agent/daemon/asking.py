# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the API what the daemon wants to know of it. Followers ask it nothing, and never import this."""

from __future__ import annotations

from agent.core.aside import config_path, digest_of_config
from agent.core.cluster import Snapshot
from agent.core.history import is_success
from agent.daemon import inputs, outputs
from agent.daemon.outside import Ports, text_of, words_of
from agent.ports import OutsideError, RefusedError


def answer_of_api(asked: outputs.Output, ports: Ports) -> inputs.Input:
    """The answer to a question, an error of the port included; TypeError for an output that is none."""
    match asked:
        case outputs.Observe():
            return _look(asked, ports)
        case outputs.AskVerdict():
            try:
                verdict = ports.api().verdict(asked.vmid, asked.type, asked.node, ports.clock.wall_s())
                return inputs.VerdictSeen(asked.vmid, verdict)
            except OutsideError as error:
                return inputs.VerdictSeen(asked.vmid, None, words_of(error))
        case outputs.AskTask():
            return _task(asked, ports)
        case outputs.SearchMigration():
            try:
                upid = ports.api().find_migration(asked.vmid, asked.source, asked.since_wall_s)
                return inputs.SearchAnswer(asked.intent, upid)
            except OutsideError as error:
                return inputs.SearchAnswer(asked.intent, None, words_of(error))
    raise TypeError(f"nobody performs {asked!r}")


def _look(asked: outputs.Observe, ports: Ports) -> inputs.Observed:
    try:
        snapshot = ports.api().look()
    except OutsideError as error:
        return inputs.Observed(asked.epoch, None, words_of(error), getattr(error, "hint", ""))
    return inputs.Observed(asked.epoch, snapshot, digests=_digests(snapshot, asked.digests_of, ports))


def _digests(snapshot: Snapshot, vmids: tuple[int, ...], ports: Ports) -> tuple[tuple[int, str], ...]:
    """The digests of these guests' configurations, without those that cannot be read."""
    found = []
    for vmid in vmids:
        guest = snapshot.guest(vmid)
        text = None if guest is None else text_of(ports.files, config_path(guest))[0]
        if text is not None:
            found.append((vmid, digest_of_config(text)))
    return tuple(found)


def _task(asked: outputs.AskTask, ports: Ports) -> inputs.TaskAnswer:
    try:
        status = ports.api().task(asked.upid).exit_status
        return inputs.TaskAnswer(asked.intent, status, log=_log_of(asked.upid, status, ports))
    except RefusedError as error:
        return inputs.TaskAnswer(asked.intent, is_known=False, error=str(error))
    except OutsideError as error:
        return inputs.TaskAnswer(asked.intent, error=words_of(error))


def _log_of(upid: str, exit_status: str | None, ports: Ports) -> tuple[str, ...]:
    """What a failed task wrote; a log that cannot be read leaves its status to tell."""
    if exit_status is None or is_success(exit_status):
        return ()
    try:
        return ports.api().task_log(upid)
    except OutsideError:
        return ()

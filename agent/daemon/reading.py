# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what the daemon asks to know, through the ports, and changes nothing outside."""

from __future__ import annotations

from agent.core.aside import config_path, digest_of_config
from agent.core.cluster import Snapshot
from agent.core.history import is_success
from agent.daemon import inputs, outputs
from agent.daemon.flags import FLAG_FOLDER, PAUSE_PATH
from agent.daemon.outside import COROSYNC_PATH, DATACENTER_PATH, HISTORY_PATH, INBOX_FOLDER, Ports, words_of
from agent.ports import ClusterFiles, OutsideError, PermanentError, RefusedError


class Reading:
    """Turns one question into calls of ports, and their answers or errors into one input. Raises nothing that a port may raise."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def answer(self, asked: outputs.Output) -> inputs.Input | None:  # one case a question
        """The answer to a question, None for an output that is none."""
        match asked:
            case outputs.ReadSigns():
                return signs_of(self._ports.files, asked)
            case outputs.ReadHistory():
                return inputs.HistorySeen(*text_of(self._ports.files, HISTORY_PATH))
            case outputs.ReadOwnInbox():
                return inputs.OwnInboxSeen(*text_of(self._ports.files, f"{INBOX_FOLDER}/{asked.node}.json"))
            case outputs.ReadSettings():
                return self._settings(asked)
            case outputs.ReadLoads():
                try:
                    return inputs.LoadsSeen(self._ports.local.read_loads())
                except OutsideError as error:
                    return inputs.LoadsSeen(None, words_of(error))
            case outputs.ReadFacts():
                try:
                    return inputs.FactsSeen(self._ports.facts.read())
                except OutsideError as error:
                    return inputs.FactsSeen(None, words_of(error))
            case outputs.Observe():
                return self._look(asked)
            case outputs.AskVerdict():
                try:
                    verdict = self._ports.api().verdict(asked.vmid, asked.type, asked.node, self._ports.clock.wall_s())
                    return inputs.VerdictSeen(asked.vmid, verdict)
                except OutsideError as error:
                    return inputs.VerdictSeen(asked.vmid, None, words_of(error))
            case outputs.AskTask():
                return self._task(asked)
            case outputs.SearchMigration():
                try:
                    upid = self._ports.api().find_migration(asked.vmid, asked.source, asked.since_wall_s)
                    return inputs.SearchAnswer(asked.intent, upid)
                except OutsideError as error:
                    return inputs.SearchAnswer(asked.intent, None, words_of(error))
        raise TypeError(f"nobody performs {asked!r}")

    def _settings(self, asked: outputs.ReadSettings) -> inputs.SettingsSeen:
        try:
            return inputs.SettingsSeen(self._ports.settings.read(), asked=asked.asked)
        except PermanentError as error:
            return inputs.SettingsSeen(None, str(error), is_broken=True, asked=asked.asked)
        except OutsideError as error:
            return inputs.SettingsSeen(None, words_of(error), asked=asked.asked)

    def _look(self, asked: outputs.Observe) -> inputs.Observed:
        try:
            snapshot = self._ports.api().look()
        except OutsideError as error:
            return inputs.Observed(asked.epoch, None, words_of(error), getattr(error, "hint", ""))
        return inputs.Observed(asked.epoch, snapshot, digests=self._digests(snapshot, asked.digests_of))

    def _digests(self, snapshot: Snapshot, vmids: tuple[int, ...]) -> tuple[tuple[int, str], ...]:
        """The digests of these guests' configurations, without those that cannot be read."""
        found = []
        for vmid in vmids:
            guest = snapshot.guest(vmid)
            text = None if guest is None else text_of(self._ports.files, config_path(guest))[0]
            if text is not None:
                found.append((vmid, digest_of_config(text)))
        return tuple(found)

    def _task(self, asked: outputs.AskTask) -> inputs.TaskAnswer:
        try:
            status = self._ports.api().task(asked.upid).exit_status
            return inputs.TaskAnswer(asked.intent, status, log=self._log_of(asked.upid, status))
        except RefusedError as error:
            return inputs.TaskAnswer(asked.intent, is_known=False, error=str(error))
        except OutsideError as error:
            return inputs.TaskAnswer(asked.intent, error=words_of(error))

    def _log_of(self, upid: str, exit_status: str | None) -> tuple[str, ...]:
        """What a failed task wrote; a log that cannot be read leaves its status to tell."""
        if exit_status is None or is_success(exit_status):
            return ()
        try:
            return self._ports.api().task_log(upid)
        except OutsideError:
            return ()


def text_of(files: ClusterFiles, path: str) -> tuple[str | None, str]:
    """The file's text, None when there is none, and why it cannot be read."""
    try:
        return files.read(path), ""
    except OutsideError as error:
        return None, words_of(error)


def signs_of(files: ClusterFiles, asked: outputs.ReadSigns) -> inputs.SignsSeen:
    """Read what may hold news below /etc/pve; an error leaves all of it unknown."""
    try:
        inboxes = []
        for name in files.list(INBOX_FOLDER):
            if name.endswith(".json") and not name.startswith("."):
                text = files.read(f"{INBOX_FOLDER}/{name}")
                if text is not None:
                    inboxes.append((name.removesuffix(".json"), text))
        flags = []
        for name in files.list(FLAG_FOLDER):
            text = None if name.startswith(".") else files.read(f"{FLAG_FOLDER}/{name}")
            if text is not None:
                flags.append((name, text))
        return inputs.SignsSeen(
            log=files.read(".clusterlog"),
            rrd=files.read(".rrd") if asked.statistics else None,
            vmlist=files.read(".vmlist") if asked.statistics else None,
            members=files.read(".members") if asked.statistics else None,
            ha_status=files.read("ha/manager_status"),
            inboxes=tuple(inboxes),
            flags=tuple(flags),
            paused=files.read(PAUSE_PATH),
            datacenter=files.read(DATACENTER_PATH) if asked.statistics else None,
            corosync=files.read(COROSYNC_PATH) if asked.statistics else None,
        )
    except OutsideError as error:
        return inputs.SignsSeen(error=words_of(error))

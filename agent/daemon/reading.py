# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what the daemon asks to know, through the ports, and changes nothing outside."""

from __future__ import annotations

from agent.daemon import inputs, outputs
from agent.daemon.outside import (
    COROSYNC_PATH,
    DATACENTER_PATH,
    FLAG_FOLDER,
    HISTORY_PATH,
    INBOX_FOLDER,
    NODES_FOLDER,
    PAUSE_PATH,
    Ports,
    text_of,
    words_of,
)
from agent.ports import ClusterFiles, OutsideError, PermanentError


class Reading:
    """Turns one question into calls of ports, and their answers or errors into one input. Raises nothing that a port may raise."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def answer(self, asked: outputs.Output) -> inputs.Input:
        """The answer to a question; TypeError for an output that is none."""
        match asked:
            case outputs.ReadSigns():
                return signs_of(self._ports.files, asked)
            case outputs.ReadHistory():
                return inputs.HistorySeen(*text_of(self._ports.files, HISTORY_PATH))
            case outputs.ReadOwnInbox():
                return self._own_inbox(asked.node)
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
            case _:
                from agent.daemon.asking import answer_of_api  # a follower asks the API nothing

                return answer_of_api(asked, self._ports)

    def _own_inbox(self, node: str) -> inputs.OwnInboxSeen:
        try:
            nodes = len(self._ports.files.list(NODES_FOLDER))
        except OutsideError as error:
            return inputs.OwnInboxSeen(None, words_of(error))
        text, error_words = text_of(self._ports.files, f"{INBOX_FOLDER}/{node}.json")
        return inputs.OwnInboxSeen(text, error_words, nodes)

    def _settings(self, asked: outputs.ReadSettings) -> inputs.SettingsSeen:
        try:
            return inputs.SettingsSeen(self._ports.settings.read(), asked=asked.asked)
        except PermanentError as error:
            return inputs.SettingsSeen(None, f"{error} ({error.hint})" if error.hint else str(error), is_broken=True, asked=asked.asked)
        except OutsideError as error:
            return inputs.SettingsSeen(None, words_of(error), asked=asked.asked)


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

# SPDX-License-Identifier: GPL-3.0-or-later
"""The world outside as the daemon has it: the ports of one node, and where its files are below /etc/pve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.ports import (
    Clock,
    ClusterApi,
    ClusterFiles,
    FactsSource,
    HaNodes,
    JournalSink,
    LeaderLock,
    LocalFiles,
    LocalInbox,
    OutsideError,
    ServiceNotifier,
    SettingsSource,
)

LEADER_PATH = "proxlb/leader.json"
HISTORY_PATH = "proxlb/history.json"
NODES_FOLDER = "nodes"
INBOX_FOLDER = "proxlb/inbox"
FLAG_FOLDER = "proxlb/maintenance"
PAUSE_PATH = "proxlb/paused"
DATACENTER_PATH = "datacenter.cfg"
COROSYNC_PATH = "corosync.conf"


@dataclass(frozen=True, slots=True)
class Ports:
    """One node's way to everything outside; `api` is made when it is first needed, as a follower needs none."""

    clock: Clock
    lock: LeaderLock
    files: ClusterFiles
    api: Callable[[], ClusterApi]
    inbox: LocalInbox
    facts: FactsSource
    ha_nodes: HaNodes
    local: LocalFiles
    settings: SettingsSource
    journal: JournalSink
    notifier: ServiceNotifier


def words_of(error: OutsideError) -> str:
    """What the error says, and never nothing."""
    return str(error) or type(error).__name__


def text_of(files: ClusterFiles, path: str) -> tuple[str | None, str]:
    """The file's text, None when there is none, and why it cannot be read."""
    try:
        return files.read(path), ""
    except OutsideError as error:
        return None, words_of(error)

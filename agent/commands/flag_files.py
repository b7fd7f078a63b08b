# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands that set, remove and read flags below /etc/pve share."""

from __future__ import annotations

import argparse
import getpass
import os

from agent import wiring
from agent.core.flags import Flag, duration_s, read_flag
from agent.core.settings import Settings
from agent.daemon.outside import PAUSE_PATH
from agent.ports import ClusterFiles, FilesystemState, NoQuorumError, OutsideError


def duration(text: str) -> float:
    """Seconds of an option like `2h`, for argparse."""
    seconds = duration_s(text)
    if seconds is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time from 1m to 30d; write it as 2h, 90m or 1d12h")
    return seconds


def asked_by() -> str:
    """The reason of a flag for which none was given."""
    return f"asked for by {os.environ.get('SUDO_USER') or getpass.getuser()}"


def changeable_files(settings: Settings) -> ClusterFiles:
    """The cluster's files. Raises NoQuorumError where they cannot be changed."""
    files = wiring.make_files(settings)
    if files.state() is FilesystemState.NO_QUORUM:
        raise NoQuorumError("this node is not in the quorate part of the cluster: flags cannot be changed from here")
    return files


def paused_by(settings: Settings) -> Flag | None:
    """The pause that holds in the whole cluster, None when there is none or nobody can tell."""
    try:
        text = wiring.make_files(settings).read(PAUSE_PATH)
    except OutsideError:
        return None
    return None if text is None else read_flag(text)

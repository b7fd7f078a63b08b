# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong use and wrong settings: what the person at the keyboard can put right."""

from __future__ import annotations

import argparse
import re
import sys

from agent import config_files, wiring
from agent.core.settings import Settings
from agent.ports import PermanentError

MOST_PROBLEMS = 3  # of the settings, in the one line of a command that is not about them; check-config names all


class WrongUseError(Exception):
    """The command was asked for something it cannot mean, or its settings are wrong. `str()` is one line; exit status 2."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def vmid(text: str) -> int:
    """The VMID of `101`, `vm:101` or `ct:101`, for argparse."""
    match = re.fullmatch(r"(?:vm:|ct:)?([1-9][0-9]{2,8})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no VMID; proxlb-agent guests lists them")
    return int(match[1])


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings the command works with.

    Raises:  WrongUseError that names the first problems.
    """
    try:
        return config_files.load_settings(arguments.config)
    except config_files.WrongSettingsError as error:
        more = len(error.lines) - MOST_PROBLEMS
        text = "; ".join(error.lines[:MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise WrongUseError(text, error.hint) from None
    except PermanentError as error:
        raise WrongUseError(str(error), error.hint) from None


def settings_in_force(arguments: argparse.Namespace) -> Settings:
    """As `settings_of`, for a command that must work at night, too: a mistake in the cluster's file is noted, and the settings are those
    that the agent goes on with.

    Raises:  WrongUseError for a mistake in this node's file.
    """
    try:
        settings, problem = config_files.settings_in_force(arguments.config)
    except PermanentError:
        return settings_of(arguments)  # which says what is wrong
    if problem:
        print(f"proxlb-agent: note: while the settings have a mistake the last good ones count: {problem}", file=sys.stderr)
    return settings


def own_node_or_refuse(settings: Settings, what: str) -> str:
    """The name of the node this runs on.

    Raises:  WrongUseError away from a node: what the command needs is not there.
    """
    node = wiring.own_node(settings)
    if node is None:
        hint = "if this is a node, see: systemctl status pve-cluster"
        raise WrongUseError(f"{what} works on a node of the cluster only, and {settings.paths.pmxcfs} is not mounted here", hint)
    return node

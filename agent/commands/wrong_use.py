# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong use and wrong settings: what the person at the keyboard can put right."""

from __future__ import annotations

import argparse

from agent import wiring
from agent.core.settings import Settings
from agent.ports import PermanentError


class WrongUseError(Exception):
    """The command was asked for something it cannot mean, or its settings are wrong. `str()` is one line; exit status 2."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings the command works with.

    Raises:  WrongUseError that names every problem.
    """
    try:
        return wiring.load_settings(arguments.config)
    except PermanentError as error:
        raise WrongUseError(str(error), error.hint) from None


def own_node_or_refuse(settings: Settings, what: str) -> str:
    """The name of the node this runs on.

    Raises:  WrongUseError away from a node: what the command needs is not there.
    """
    node = wiring.own_node(settings)
    if node is None:
        hint = "if this is a node, see: systemctl status pve-cluster"
        raise WrongUseError(f"{what} works on a node of the cluster only, and {settings.paths.pmxcfs} is not mounted here", hint)
    return node

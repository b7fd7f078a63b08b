# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent resume`: ends a pause."""

from __future__ import annotations

import argparse

from agent.commands.flag_files import changeable_files
from agent.commands.wrong_use import own_node_or_refuse, settings_in_force
from agent.daemon.outside import PAUSE_PATH


def add_options(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def execute(arguments: argparse.Namespace) -> int:
    """Remove the flag."""
    settings = settings_in_force(arguments)
    own_node_or_refuse(settings, "resume")
    files = changeable_files(settings)
    if files.read(PAUSE_PATH) is None:
        print("there is no pause")
        return 0
    files.remove(PAUSE_PATH)
    print("the pause is over")
    return 0

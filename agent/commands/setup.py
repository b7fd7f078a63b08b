# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent setup`: makes what the agent needs to ask the API, once for a cluster."""

from __future__ import annotations

import argparse
import os

from agent import wiring
from agent.commands.wrong_use import WrongUseError, own_node_or_refuse, settings_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """It takes none of its own."""


def execute(arguments: argparse.Namespace) -> int:
    """Set up; print what was seen to."""
    settings = settings_of(arguments)
    if os.geteuid() != 0:
        raise WrongUseError("setup makes a user and a token in PVE, which root alone may", "run this as root")
    own_node_or_refuse(settings, "setup")
    steps = wiring.set_up_access(settings)
    for text, changed in steps:
        print(f"{'done' if changed else 'fine'}: {text}")
    print("the agent may ask the API now" if any(changed for _, changed in steps) else "nothing had to be changed")
    return 0

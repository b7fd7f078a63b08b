# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent run`: the agent itself."""

from __future__ import annotations

import argparse

from agent import config_files, startup
from agent.commands.wrong_use import WrongUseError
from agent.ports import PermanentError


def add_options(parser: argparse.ArgumentParser) -> None:
    """It takes none of its own."""


def execute(arguments: argparse.Namespace) -> int:
    """Run until told to stop. What is wrong in this node's settings ends it; the cluster's may mend while it runs."""
    try:
        config_files.ConfigFiles(arguments.config).node_settings()
    except PermanentError as error:
        raise WrongUseError(str(error), error.hint) from None
    return startup.run_agent(arguments.config)

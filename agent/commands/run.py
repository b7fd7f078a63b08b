# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent run`: the agent itself."""

from __future__ import annotations

import argparse

from agent import wiring


def add_options(parser: argparse.ArgumentParser) -> None:
    """It takes none of its own."""


def execute(arguments: argparse.Namespace) -> int:
    """Run until told to stop."""
    return wiring.run_agent(arguments.config)

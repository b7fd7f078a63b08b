# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent snapshot`: writes what the agent sees, to plan on it elsewhere or to report a mistake."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent import wiring
from agent.commands.tables import counted
from agent.commands.wrong_use import WrongUseError, settings_of
from agent.core.snapshot_file import to_text


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("file", metavar="FILE", help="where to; -: standard output")


def execute(arguments: argparse.Namespace) -> int:
    """Write the snapshot."""
    snapshot = wiring.look(settings_of(arguments))
    text = to_text(snapshot)
    if arguments.file == "-":
        sys.stdout.write(text)
        return 0
    try:
        Path(arguments.file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise WrongUseError(f"{arguments.file}: cannot be written: {error.strerror}") from None
    size = f"{counted(len(snapshot.nodes), 'node')} and {counted(len(snapshot.guests), 'guest')}"
    print(f"wrote {size} to {arguments.file}: names, places, tags and loads, no secrets", file=sys.stderr)
    return 0

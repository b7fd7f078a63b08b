# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent pause`: nobody is moved by the agent, in the whole cluster, until `resume` or the end of the time."""

from __future__ import annotations

import argparse

from agent import wiring
from agent.commands.flag_files import asked_by, changeable_files, duration
from agent.commands.wrong_use import own_node_or_refuse, settings_in_force
from agent.core.flags import Flag, flag_text, flag_words
from agent.daemon.outside import PAUSE_PATH


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("--for", dest="for_s", metavar="TIME", type=duration, help="as 2h, 90m or 1d12h; then it ends by itself")
    parser.add_argument("--reason", metavar="TEXT", help="what others read: why")


def execute(arguments: argparse.Namespace) -> int:
    """Set the flag; a pause that is there already is replaced."""
    settings = settings_in_force(arguments)
    own_node_or_refuse(settings, "pause")
    files = changeable_files(settings)
    until = None if arguments.for_s is None else wiring.wall_s() + arguments.for_s
    flag = Flag(arguments.reason or asked_by(), until)
    files.write(PAUSE_PATH, flag_text(flag))
    end = "" if until is not None else ", until proxlb-agent resume"
    print(f"paused ({flag_words(flag)}){end}: the agent moves nobody, not for maintenance either; what is under way goes on")
    return 0

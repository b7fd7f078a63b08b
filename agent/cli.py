# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: finds the command, runs it, and turns what went wrong into one line and an exit status."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Protocol, cast

from agent import __version__
from agent.commands.wrong_use import WrongUseError
from agent.ports import OutsideError

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

COMMANDS = {
    "run": "the agent itself, in the foreground; its unit starts this",
    "status": "who leads, what runs, what waits",
    "cluster": "the cluster and its nodes",
    "guests": "the guests: where they are, their load, their rules",
    "plan": "what the agent would do now, and why; moves nothing",
    "explain": "every node as a target for a guest, or why not",
    "place": "the best node for a guest that does not exist yet",
    "balance": "show the plan, ask, and have the leader carry it out",
    "maintenance": "empty a node and keep it empty, end that, or list",
    "pause": "move nobody in the whole cluster for a while",
    "resume": "end the pause",
    "drain": "empty this node before it shuts down; a unit of its own runs this",
    "history": "past migrations and decisions",
    "snapshot": "write what the agent sees to a file",
    "simulate": "run the real agent on a simulated cluster",
    "demo": "watch the agent at work on a simulated cluster",
    "check-config": "name everything that is wrong with the settings",
    "setup": "make what the agent needs to ask the API, once for a cluster",
}


class _Command(Protocol):
    """What a module of `agent.commands` has."""

    add_options: Callable[[argparse.ArgumentParser], None]
    execute: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; returns the exit status.

    A command's module is imported only when it is asked for, so that the agent itself stays small.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # into a pipe, too: its lines stand in order with those of stderr
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except SystemExit as end:  # argparse: --help, --version, or wrong use, told already
        return end.code if isinstance(end.code, int) else WRONG_USE
    except WrongUseError as error:
        _complain(str(error), error.hint)
        return WRONG_USE
    except OutsideError as error:
        _complain(str(error) or type(error).__name__, getattr(error, "hint", ""))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read has seen enough; Python must not stumble over it again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _run(argv: list[str]) -> int:
    chosen = _parser().parse_args(argv)
    if chosen.command is None:
        _parser().print_usage(sys.stderr)
        raise WrongUseError("name a command", "proxlb-agent --help lists them")
    if chosen.command not in COMMANDS:
        near = get_close_matches(chosen.command, COMMANDS, 1)
        said = f"did you mean {near[0]}? " if near else ""
        raise WrongUseError(f"there is no command {chosen.command}", f"{said}proxlb-agent --help lists them")
    command = cast(_Command, importlib.import_module(f"agent.commands.{chosen.command.replace('-', '_')}"))
    parser = argparse.ArgumentParser(prog=f"proxlb-agent {chosen.command}", description=COMMANDS[chosen.command], allow_abbrev=False)
    _add_config(parser, chosen.config)
    command.add_options(parser)
    return command.execute(parser.parse_args(chosen.rest))


def _parser() -> argparse.ArgumentParser:
    width = max(len(name) for name in COMMANDS)
    parser = argparse.ArgumentParser(
        prog="proxlb-agent",
        description="Event-driven load balancing and maintenance of a Proxmox VE cluster.",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
        + "\n\n`proxlb-agent COMMAND --help` tells more, proxlb-agent(8) tells all.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"proxlb-agent {__version__}")
    _add_config(parser, None)
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of those below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="what the command takes")
    return parser


def _add_config(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument("--config", metavar="FILE", default=default, help="settings, in place of both files (also: PROXLB_AGENT_CONFIG)")


def _complain(text: str, hint: str) -> None:
    line = " ".join(f"{text}; {hint}".split()) if hint else " ".join(text.split())
    print(f"proxlb-agent: {line}", file=sys.stderr)

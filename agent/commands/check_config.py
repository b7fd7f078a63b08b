# SPDX-License-Identifier: GPL-3.0-or-later
"""`proxlb-agent check-config`: names everything that is wrong with the settings."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator

from agent import config_files, wiring
from agent.commands.wrong_use import WrongUseError
from agent.core.json_types import Json
from agent.core.setting_specs import File
from agent.core.settings import PathSettings, Settings, as_document, rows
from agent.core.settings_check import check, combine
from agent.ports import OutsideError


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("files", metavar="FILE", nargs="*", help="check these instead; each may hold the settings of both files")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--show", action="store_true", help="print the settings that are in effect, and what differs from the defaults")
    shown.add_argument("--json", action="store_true", help="print the settings that are in effect as JSON")


def execute(arguments: argparse.Namespace) -> int:
    """Name the problems; print the settings if asked to."""
    if len(arguments.files) > 1 and (arguments.show or arguments.json):
        raise WrongUseError("--show and --json take one file at most")
    found: Settings | None = None
    problems: list[str] = []
    if arguments.files:
        for name in arguments.files:
            result = _checked([(File.ONE, name)], problems, missing_ok=False)
            found = result or found
    else:
        paths = _paths(arguments.config)
        kinds = [File.ONE] if len(paths) == 1 else [File.NODE, File.CLUSTER]
        found = _checked(list(zip(kinds, paths, strict=True)), problems, missing_ok=len(paths) > 1)
    for problem in problems:
        print(f"proxlb-agent: {problem}", file=sys.stderr)
    if problems or found is None:
        return 2
    if arguments.json:
        print(json.dumps(as_document(found), indent=1))
    elif arguments.show:
        print("\n".join(_lines(found)))
    else:
        missing = [] if arguments.files else [name for name in _paths(arguments.config) if not os.path.lexists(name)]
        print("no problems found" + (f" ({' and '.join(missing)} not there: defaults)" if missing else ""))
    return 0


def _paths(config: str | None) -> list[str]:
    try:
        return [str(path) for path in config_files.settings_paths(config)]
    except OutsideError:  # the node's file, which says where the cluster's is, is wrong itself: that is told below
        return [config_files.NODE_CONFIG, f"{PathSettings().pmxcfs}/{config_files.CLUSTER_CONFIG}"] if config is None else [config]


def _checked(files: list[tuple[File, str]], problems: list[str], *, missing_ok: bool) -> Settings | None:
    """The settings that the files state together, None with what is wrong added to `problems`."""
    documents: dict[File, Json] = {}
    names = dict(files)
    before = len(problems)
    for file, name in files:
        try:
            documents[file] = wiring.read_yaml(name, missing_ok=missing_ok)
        except OutsideError as error:
            hint = getattr(error, "hint", "")
            problems.append(f"{error}{f'; {hint}' if hint else ''}")
    if len(problems) > before:
        return None
    result = check(documents[File.ONE]) if File.ONE in documents else combine(documents[File.NODE], documents[File.CLUSTER])
    if isinstance(result, Settings):
        return result
    problems += [f"{names[problem.file]}: {problem.line}" for problem in result]
    return None


def _lines(settings: Settings) -> Iterator[str]:
    """Every setting with its value, and the default where it differs."""
    width = max(len(row.path) for row in rows())
    for row in rows():
        value: Json = as_document(settings)
        for key in row.path.split("."):
            value = value[key] if isinstance(value, dict) else None
        note = "" if value == row.default else f"   (default: {json.dumps(row.default)})"
        yield f"{row.path:{width}}  {json.dumps(value)}{note}"

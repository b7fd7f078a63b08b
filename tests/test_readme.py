# SPDX-License-Identifier: GPL-3.0-or-later
"""README and the long documents: their links lead somewhere, and README's short table says what the long one says."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import pytest

from agent.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README, DOCUMENTS = ROOT / "README.md", sorted((ROOT / "packaging/doc").glob("*.md"))
LINK = re.compile(r"\[[^]]+\]\(([^)#]+)[^)]*\)")
BEGIN, END = "<!-- from packaging/doc/plans.md -->\n\n", "\n\n<!-- end of it -->"
SHORT = ("nodes/guests", "plans", "planner", "moves", "cpu spread", "memory spread", "highest memory", "rules broken", "overfilled")
SHORT_SIZES = ("3/12", "16/500", "32/1000")
MEMORY_ALONE = "proxlb-agent, memory alone"


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def short(text: str) -> str:
    """Those columns and rows of the document's first table that README shows."""
    table = next(part for part in text.split("\n\n") if part.startswith("| nodes/guests | plans |"))
    head, _, *rows = (dict(zip(rows_of(table)[0], row, strict=True)) for row in rows_of(table))
    chosen = [row for row in rows if row["nodes/guests"] in SHORT_SIZES and row["planner"] != MEMORY_ALONE]
    lines = [[row[name] for name in SHORT] for row in (head, *chosen)]
    lines.insert(1, ["---"] * len(SHORT))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def test_the_short_table_says_what_the_long_one_says(accept: bool) -> None:
    wanted = short((ROOT / "packaging/doc/plans.md").read_text(encoding="utf-8"))
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    shown, end, after = rest.partition(END)
    assert begin
    assert end
    if accept:
        README.write_text(f"{before}{begin}{wanted}{end}{after}", encoding="utf-8")
        return
    assert shown == wanted, "to take it over: tests/run tests/test_readme.py --accept"


@pytest.mark.parametrize("document", [README, *DOCUMENTS], ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = [link for link in LINK.findall(document.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", [README, *DOCUMENTS], ids=lambda path: path.name)
def test_only_commands_that_exist_are_named(document: Path) -> None:
    spans = re.findall(r"`+([^`]+)`+", document.read_text(encoding="utf-8"))
    named = {word for span in spans for word in re.findall(r"(?:^|\n)proxlb-agent ([a-z][a-z-]*)", span)}
    assert named <= set(COMMANDS)
    assert document != README or named >= {"setup", "status", "plan", "maintenance"}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_who_takes_json_is_told(command: str) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"agent.commands.{command.replace('-', '_')}").add_options(parser)
    takes = "--json" in parser.format_help()
    [line] = [part for part in README.read_text(encoding="utf-8").split("\n\n") if "take `--json`" in part]
    assert takes == (f"`{command}`" in line.partition("take `--json`")[0])


def test_readme_leads_to_every_long_document() -> None:
    assert {ROOT / link for link in LINK.findall(README.read_text(encoding="utf-8"))} >= set(DOCUMENTS)

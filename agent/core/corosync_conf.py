# SPDX-License-Identifier: GPL-3.0-or-later
"""corosync.conf as far as the agent reads it."""

from __future__ import annotations


def sections(text: str) -> list[tuple[str, dict[str, str]]]:
    """The sections of corosync.conf, those within others too, each with its name and its own entries.

    Source:  corosync.conf(5).
    """
    found: list[tuple[str, dict[str, str]]] = []
    stack: list[tuple[str, dict[str, str]]] = [("", {})]
    for line in (line.strip() for line in text.splitlines()):
        key, colon, value = line.partition(":")
        if line.startswith("#"):
            continue
        if line.endswith("{"):
            stack.append((line[:-1].strip(), {}))
            found.append(stack[-1])
        elif line == "}" and len(stack) > 1:
            stack.pop()
        elif colon:
            stack[-1][1][key.strip()] = value.strip()
    return found

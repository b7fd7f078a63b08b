# SPDX-License-Identifier: GPL-3.0-or-later
"""One command to a stand-in for /etc/pve that runs: `ask.py SOCKET COMMAND [NAME=TEXT | NAME:=JSON]...`.

Imports as little as it can: tests run it where pmxcfs gives them a second, and a busy machine takes long to start a Python.
"""

from __future__ import annotations

import json
import socket
import sys

ANSWER_WAIT_S = 120.0


def ask(control: str, do: str, **told: object) -> object:
    """Return what the stand-in behind that socket answers.

    Raises:  RuntimeError with what it says when it refuses; OSError when it is not there, or is gone before it has answered.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(ANSWER_WAIT_S)
        line.connect(control)
        line.sendall(json.dumps({"do": do, **told}).encode() + b"\n")
        with line.makefile("rb") as answers:
            said = answers.readline()
    if not said.endswith(b"\n"):
        raise ConnectionResetError(f"{do}: the stand-in hung up")
    answer = json.loads(said)
    if not answer.get("ok"):
        raise RuntimeError(f"{do}: {answer['error']}")
    return answer["answer"]


def main(words: list[str]) -> int:
    """Send one command, and complain when it is refused."""
    control, do, *told = words
    values: dict[str, object] = {}
    for word in told:
        name, _, text = word.partition("=")
        values[name.removesuffix(":")] = json.loads(text) if name.endswith(":") else text
    try:
        ask(control, do, **values)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

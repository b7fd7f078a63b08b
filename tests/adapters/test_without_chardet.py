# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of the API comes without chardet's tables, and works as well."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = """
import sys
sys.path.insert(0, sys.argv[1])
{before}
from agent import wiring
from agent.core.settings import Settings
with __import__("contextlib").suppress(wiring.PermanentError):
    wiring.make_api(Settings())
import requests
answer = requests.Response()
answer.encoding, answer._content = "utf-8", '{{"data": "ä"}}'.encode()
print(sys.modules.get("chardet") is None, answer.json()["data"], answer.text)
"""


@pytest.mark.parametrize(
    ("before", "is_kept_out"),
    [
        ("", "True"),
        ("import chardet", "False"),
        ("sys.modules['charset_normalizer'] = None", "False"),
    ],
)
def test_chardet_stays_out_where_requests_can_do_without(before: str, is_kept_out: str) -> None:
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-B", "-c", IMPORTED.format(before=before), str(ROOT)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == (f'{is_kept_out} ä {{"data": "ä"}}\n', "", 0)

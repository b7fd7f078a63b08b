# SPDX-License-Identifier: GPL-3.0-or-later
"""The sum of several pytest runs, from their JUnit files: `python3 tests/tally.py FILE...`."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tally:
    passed: int
    failed: int
    complaints: tuple[str, ...]

    def is_green(self) -> bool:
        return self.passed > 0 and self.failed == 0 and not self.complaints


def tally(files: list[Path]) -> Tally:
    """Return what the runs come to.

    A test that was skipped or is expected to fail counts as neither passed nor failed, and is a complaint: it showed nothing.
    So is a run that left no result.
    """
    passed = failed = 0
    complaints = []
    for file in files:
        try:
            suites = list(ET.parse(file).iter("testsuite"))
        except (OSError, ET.ParseError) as error:
            complaints.append(f"no result of the run {file.stem}: {error}")
            continue
        for suite in suites:
            bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            failed += bad
            passed += int(suite.get("tests", 0)) - bad - int(suite.get("skipped", 0))
            for case in suite.iter("testcase"):
                complaints += [
                    f"skipped: {case.get('classname')}.{case.get('name')}: {skipped.get('message')}" for skipped in case.iter("skipped")
                ]
    return Tally(passed, failed, tuple(complaints))


def main(files: list[str]) -> int:
    result = tally([Path(file) for file in files])
    for complaint in result.complaints:
        print(complaint)
    print(f"{result.passed} passed, {result.failed} failed")
    return 0 if result.is_green() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

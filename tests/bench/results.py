# SPDX-License-Identifier: GPL-3.0-or-later
"""What was measured, as JSON lines: one run of one planner on one cluster each, so that a benchmark that broke off goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.clusters import Case

Batches = tuple[tuple[tuple[int, str], ...], ...]  # VMIDs and their targets, each inner tuple at once


@dataclass(frozen=True)
class Run:
    """One run.

    Units:   seconds and bytes; `evaluations` are placements that the planner judged. None: it does not tell, or was not measured.
    Shape:   `who` is a Rival or one of the planner's own variants; `sleeps` says whether `wall_s` holds a rival's pauses; `facts`
             are figures that only this kind of run has.
    """

    case: Case
    who: str
    batches: Batches
    plan_s: float | None = None
    evaluations: int | None = None
    wall_s: float | None = None
    cpu_s: float | None = None
    requests: int | None = None
    peak_bytes: int | None = None
    sleeps: bool = False
    said: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class Results:
    """All runs of a file, or of this process alone when there is none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._writing = threading.Lock()
        self._runs: dict[tuple[Case, str, bool], Run] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._remember(_read(json.loads(line)))

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def find(self, case: Case, who: str, *, sleeps: bool = False) -> Run | None:
        """The last run of that planner on that cluster."""
        return self._runs.get((case, who, sleeps))

    def add(self, run: Run) -> None:
        """Keep a run; it takes the place of an earlier one."""
        with self._writing:
            self._remember(run)
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(run)) + "\n")

    def forget(self, who: Iterable[str]) -> None:
        """Whatever these planners did; the file keeps it until a new run takes its place."""
        names = set(who)
        self._runs = {key: run for key, run in self._runs.items() if run.who not in names}

    def _remember(self, run: Run) -> None:
        self._runs[run.case, run.who, run.sleeps] = run


def _read(document: dict[str, Any]) -> Run:
    document["case"] = Case(**document["case"])
    document["batches"] = tuple(tuple((vmid, target) for vmid, target in batch) for batch in document["batches"])
    return Run(**document)

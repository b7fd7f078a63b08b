# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every test: the core sees nothing of the outside world, and property tests come out the same every time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.outside_world import no_outside_world

TESTS = Path(__file__).resolve().parent

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(TESTS.parent / ".cache/hypothesis"))
# Nothing here goes by how long an example takes: that is the machine's, which may be busy.
any_time = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True)
# A red run must be red again when somebody looks into it. `--hypothesis-profile=search` looks for new examples instead.
hypothesis.settings.register_profile("house", any_time, derandomize=True)
hypothesis.settings.register_profile("search", any_time, derandomize=False, max_examples=1000)
# `--hypothesis-profile=long` takes ten times as many of the same kind, which is for the night and for a new planner.
hypothesis.settings.register_profile("long", any_time, derandomize=True, max_examples=1000)
hypothesis.settings.load_profile("house")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="write what came out as the new expectation; read what you accept")


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS / "e2e"):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def accept(request: pytest.FixtureRequest) -> bool:
    """Return whether expectations are to be rewritten with what came out (`pytest --accept`)."""
    return bool(request.config.getoption("--accept"))


@pytest.fixture(autouse=True)
def _core_sees_no_outside_world(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.path.is_relative_to(TESTS / "core"):
        yield
        return
    with no_outside_world():
        yield

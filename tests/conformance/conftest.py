# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster under test, ground to work on in it, and the names of the tests that nothing could be shown with. See README."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mounts import Cluster

# Without mounts, as when all tests of the checkout are collected, there is nothing to run here.
collect_ignore_glob = [] if "CONFORMANCE_MOUNTS" in os.environ else ["*.py"]
NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def pve() -> Iterator[Cluster]:
    """The cluster of the mounts, all nodes there at the begin and, as far as commands can do it, at the end."""
    from mounts import Cluster  # only here: without mounts its folder is not in sys.path

    cluster = Cluster.of_environment(os.environ)
    cluster.wait_whole()
    cluster.lay_ground()
    yield cluster
    cluster.repair()
    cluster.clear()


@pytest.fixture(autouse=True)
def _given_what_it_needs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Skip by name what the environment has no command for; afterwards the cluster is whole again, whatever happened."""
    marker = request.node.get_closest_marker("needs")
    if marker is None:
        yield
        return
    cluster: Cluster = request.getfixturevalue("pve")
    if missing := [name for name in marker.args if name not in cluster.commands]:
        pytest.skip(f"no command for it: {', '.join(f'CONFORMANCE_{name}' for name in missing)}")
    yield
    cluster.repair()


@pytest.fixture
def name() -> str:
    """A name that nobody used before, for a folder or a lock."""
    return f"conformance-{os.getpid()}-{next(NUMBERS)}"


@pytest.fixture
def folder(pve: Cluster, name: str) -> str:
    """A new folder that every node has, as a path below each mount."""
    from mounts import AT_ONCE_S, eventually

    path = f"conformance/{name}"
    (pve.nodes[0].mount / path).mkdir()
    eventually(lambda: all((mount / path).is_dir() for mount in pve.mounts), f"{path} on all nodes", AT_ONCE_S)
    return path


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section("not shown")
    for report in skipped:
        terminalreporter.write_line(f"{report.nodeid}: {report.longrepr[2]}")

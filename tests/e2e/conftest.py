# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the end-to-end tests. `PROXLB_E2E_RELEASES="bookworm trixie"` has them run on both; without, on Debian 12."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import roots
from tests.e2e.machine import Machine, sweep
from tests.e2e.node import Node
from tests.e2e.roots import PROJECT
from tests.pve_server.client import cluster, ct, vm

RELEASES = os.environ.get("PROXLB_E2E_RELEASES", "bookworm").split()
GIB = 1 << 30
DIST = PROJECT / "dist"
SOURCES = ("agent", "hookscripts", "packaging", "debian")


@pytest.fixture(scope="session", params=RELEASES)
def root(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A Debian to boot copies of."""
    yield roots.root(request.param)
    sweep()


@pytest.fixture(scope="module")
def machine(root: Path) -> Iterator[Machine]:
    """A booted Debian, one for the module."""
    with Machine(root) as booted:
        yield booted


@pytest.fixture
def node(root: Path) -> Iterator[Node]:
    """pve1 of a cluster of three: two VMs and a container on it, one VM on pve2, nothing on pve3."""
    guests = [
        vm(101, "pve1", name="web1", cpu_cores=1.0, mem_bytes=2 * GIB),
        vm(102, "pve1", name="db1", cpu_cores=0.5, mem_bytes=3 * GIB, tags="plb_pin_pve1"),
        ct(103, "pve1", name="dns1", maxmem_bytes=GIB),
        vm(201, "pve2", name="web2", cpu_cores=0.5, mem_bytes=2 * GIB),
    ]
    with Node(root, cluster({name: {"cores": 8, "memory_bytes": 32 * GIB} for name in ("pve1", "pve2", "pve3")}, guests)) as up:
        yield up


@pytest.fixture(scope="session")
def deb() -> Path:
    """The agent's package in dist/, built anew when there is none or a source is newer."""
    sources = [path for folder in SOURCES for path in (PROJECT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    newest = max(path.stat().st_mtime for path in sources)
    if not any(built.stat().st_mtime > newest for built in DIST.glob("proxlb-agent_*.deb")):
        built = subprocess.run(["packaging/build"], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert built.returncode == 0, built.stdout[-4000:]
    (package,) = DIST.glob("proxlb-agent_*.deb")
    return package

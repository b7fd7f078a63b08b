# SPDX-License-Identifier: GPL-3.0-or-later
"""The two sides of each port. The real side's modules are imported when one is asked for, so that the simulated side needs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.contracts import sim_stages, stages
from tests.pmxcfs.client import Pmxcfs, why_not_possible

if TYPE_CHECKING:
    from tests.pve_server.client import PveServer

SIDES = ("sim", "real")
NO_FUSE = why_not_possible()
FUSE_SIDES = ("sim", pytest.param("real", marks=pytest.mark.skipif(NO_FUSE is not None, reason=str(NO_FUSE))))


@pytest.fixture(params=FUSE_SIDES)
def pmxcfs(request: pytest.FixtureRequest) -> Iterator[stages.PmxcfsStage]:
    if request.param == "sim":
        yield sim_stages.SimPmxcfs()
        return
    from tests.contracts.real_stages import RealPmxcfs

    with Pmxcfs(*stages.NODES) as standin:
        yield RealPmxcfs(standin)


@pytest.fixture(params=SIDES)
def inbox(request: pytest.FixtureRequest, tmp_path: Path) -> stages.InboxStage:
    if request.param == "sim":
        return sim_stages.SimInboxStage()
    from tests.contracts.real_stages import RealInboxStage

    return RealInboxStage(tmp_path)


@pytest.fixture(params=SIDES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> stages.LocalFilesStage:
    if request.param == "sim":
        return sim_stages.SimLocalFilesStage()
    from tests.contracts.real_stages import RealLocalFilesStage

    return RealLocalFilesStage(tmp_path)


@pytest.fixture(params=SIDES)
def node(request: pytest.FixtureRequest, tmp_path: Path) -> stages.FactsStage:
    if request.param == "sim":
        return sim_stages.SimFactsStage()
    from tests.contracts.real_stages import RealFactsStage

    return RealFactsStage(tmp_path)


@pytest.fixture(params=SIDES)
def clocks(request: pytest.FixtureRequest) -> stages.ClockStage:
    if request.param == "sim":
        return sim_stages.SimClockStage()
    from tests.contracts.real_stages import RealClockStage

    return RealClockStage()


@pytest.fixture(params=SIDES)
def journal(request: pytest.FixtureRequest) -> stages.JournalStage:
    if request.param == "sim":
        return sim_stages.SimJournalStage()
    from tests.contracts.real_stages import RealJournalStage

    return RealJournalStage()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/etc/pve as far as certificates go, on pve1."""
    root = tmp_path_factory.mktemp("certificates")
    (root / "local").symlink_to("nodes/pve1")
    return root


@pytest.fixture(scope="session")
def server(certificates: Path) -> Iterator[PveServer]:
    from tests.pve_server.client import PveServer, cluster

    with PveServer(cluster(stages.NODES), listen=["pve1=127.0.0.1:0"], certs=certificates) as running:
        yield running


@pytest.fixture(params=SIDES)
def pve(request: pytest.FixtureRequest) -> Iterator[stages.ApiStage]:
    if request.param == "sim":
        yield sim_stages.SimApiStage()
        return
    from tests.contracts.real_stages import RealApiStage

    stage = RealApiStage(request.getfixturevalue("server"), request.getfixturevalue("certificates"))
    yield stage
    stage.close()

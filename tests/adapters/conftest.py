# SPDX-License-Identifier: GPL-3.0-or-later
"""A played cluster of three nodes and adapters that ask it as on pve1; a node's inbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.adapters.inbox import InboxFolder
from agent.adapters.pve.api import PveApi
from agent.adapters.pve.trust import ApiAccess
from tests.pve_server.client import TOKEN_ID, TOKEN_SECRET, PveServer, cluster

NODES = ("pve1", "pve2", "pve3")
Make = Callable[..., PveApi]


@pytest.fixture(scope="module")
def pmxcfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/etc/pve as far as certificates go, on pve1."""
    root = tmp_path_factory.mktemp("pmxcfs")
    (root / "local").symlink_to("nodes/pve1")
    return root


@pytest.fixture(scope="module")
def server(pmxcfs: Path) -> Iterator[PveServer]:
    with PveServer(cluster(NODES), listen=[f"{name}=127.0.0.1:0" for name in NODES], certs=pmxcfs) as running:
        yield running


@pytest.fixture
def make(pmxcfs: Path) -> Iterator[Make]:
    """An adapter on pve1, with other settings if wanted."""
    made: list[PveApi] = []

    def build(*hosts: str, files: dict[str, str] | None = None, **values: Any) -> PveApi:
        wanted: dict[str, Any] = {"token_id": TOKEN_ID, "token_secret": lambda: TOKEN_SECRET, "own_node": "pve1", "pmxcfs": str(pmxcfs)}
        wanted |= {"ca_file": str(pmxcfs / "pve-root-ca.pem"), "timeout_s": 30.0}
        made.append(PveApi(ApiAccess(hosts=hosts, **(wanted | values)), read_file=None if files is None else files.get))
        return made[-1]

    yield build
    for api in made:
        api.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An inbox as tmpfiles.d makes it."""
    made = tmp_path / "inbox"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """Where the node's own maintenance flag may be."""
    return tmp_path / "maintenance"


@pytest.fixture
def inbox(folder: Path, flag: Path) -> InboxFolder:
    return InboxFolder(str(folder), str(flag))

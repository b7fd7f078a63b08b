# SPDX-License-Identifier: GPL-3.0-or-later
"""The HA manager's maintenance, against an executable that plays `ha-manager`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from agent.adapters.ha_manager import CALL_S, HaManagerCommand
from agent.core.leadership import LockTimes
from agent.ports import NoQuorumError, NotMountedError, OutsideError, PermanentError, TemporaryError

FAKE = Path(__file__).with_name("fake_ha_manager")


class Cluster:
    """A cluster's HA manager, behind the fake command."""

    def __init__(self, folder: Path) -> None:
        self._state = folder / "ha-manager.json"
        self.executable = folder / "ha-manager"
        shutil.copy(FAKE, self.executable)
        self.executable.chmod(0o755)
        self._state.write_text(json.dumps({"nodes": ["pve1", "pve2"]}))

    def set(self, **values: Any) -> None:
        self._state.write_text(json.dumps(json.loads(self._state.read_text()) | values))

    @property
    def queue(self) -> list[str]:
        queue: list[str] = json.loads(self._state.read_text()).get("queue", [])
        return queue

    def ask(self, node: str = "pve1", wanted: bool = True, timeout_s: float = 30) -> None:
        HaManagerCommand(str(self.executable), timeout_s).set_maintenance(node, wanted)

    def why_not(self, node: str = "pve1", wanted: bool = True, timeout_s: float = 30) -> OutsideError:
        with pytest.raises(OutsideError) as caught:
            self.ask(node, wanted, timeout_s)
        return caught.value


def children() -> set[str]:
    """The processes that this one has, among them those of other tests."""
    return {pid for thread in os.listdir("/proc/self/task") for pid in Path(f"/proc/self/task/{thread}/children").read_text().split()}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_the_request_and_its_end_are_queued_in_order(cluster: Cluster) -> None:
    cluster.ask("pve2")
    cluster.ask("pve2", wanted=False)
    assert cluster.queue == ["enable-node-maintenance pve2", "disable-node-maintenance pve2"]


def test_a_node_that_is_none_is_refused_for_good(cluster: Cluster) -> None:
    error = cluster.why_not("pve9")
    assert type(error) is PermanentError
    assert str(error) == "ha-manager: no such cluster node 'pve9'"
    assert cluster.queue == []


def test_one_too_old_for_it_says_what_has_it(cluster: Cluster) -> None:
    cluster.set(too_old=True)
    error = cluster.why_not()
    assert type(error) is PermanentError
    assert str(error).startswith("ha-manager: ERROR: unknown command"), "of two lines the one that says it"
    assert error.hint == "Proxmox VE 8 or later has it"


@pytest.mark.parametrize(
    ("complaint", "kind", "retry_after_s"),
    [
        ("cluster not ready - no quorum?", NoQuorumError, None),
        ("unable to open file '/etc/pve/ha/crm_commands.tmp.42' - Permission denied", NoQuorumError, None),
        ("ipcc_send_rec[1] failed: Connection refused", NotMountedError, None),
        ("unable to read '/etc/pve/ha/crm_commands' - Transport endpoint is not connected", NotMountedError, None),
        ("cfs-lock 'domain-ha' error: got lock request timeout", TemporaryError, 5),
        ("'domain-ha'-locked command timed out - aborting", TemporaryError, 5),
        ("unable to write: No space left on device", TemporaryError, 10),
    ],
)
def test_what_may_be_otherwise_later_is_tried_again(
    cluster: Cluster, complaint: str, kind: type[OutsideError], retry_after_s: float | None
) -> None:
    cluster.set(complaint=complaint)
    error = cluster.why_not()
    assert type(error) is kind
    assert str(error) == f"ha-manager: {complaint}", "perl's own warnings are left out"
    if isinstance(error, TemporaryError) and retry_after_s is not None:
        assert error.retry_after_s == retry_after_s


def test_of_a_program_that_perl_cannot_compile_the_reason_is_told(cluster: Cluster) -> None:
    cluster.set(complaint="Can't locate PVE/CLI/ha_manager.pm in @INC\nBEGIN failed--compilation aborted at /usr/sbin/ha-manager line 6.")
    assert str(cluster.why_not()) == "ha-manager: Can't locate PVE/CLI/ha_manager.pm in @INC"


def test_one_that_dies_without_a_word(cluster: Cluster) -> None:
    cluster.set(complaint="")
    error = cluster.why_not()
    assert type(error) is TemporaryError
    assert str(error) == "ha-manager: failed without a word"


def test_one_that_hangs_is_ended_at_the_deadline(cluster: Cluster) -> None:
    cluster.set(hang_s=600)
    before = children()
    error = cluster.why_not(timeout_s=0.3)
    assert type(error) is TemporaryError
    assert "did not end within" in str(error)
    assert children() <= before, "nobody is left who may still queue the line after the request was given up"
    assert cluster.queue == []


def test_the_deadline_ends_before_the_lease_may(cluster: Cluster) -> None:
    assert LockTimes().post_timeout_s > CALL_S, "a call is allowed only while the lease outlasts it"


def test_a_command_that_is_not_there(cluster: Cluster) -> None:
    cluster.executable.unlink()
    error = cluster.why_not()
    assert type(error) is PermanentError
    assert str(error).endswith("ha-manager cannot be run: No such file or directory")
    assert "pve-ha-manager" in error.hint


@pytest.mark.parametrize("content", ["", "#!/nowhere/perl\n"], ids=["empty", "its interpreter is missing"])
def test_a_command_that_cannot_be_run(cluster: Cluster, content: str) -> None:
    cluster.executable.write_text(content)
    assert type(cluster.why_not()) is PermanentError


def test_a_command_that_may_not_be_run(cluster: Cluster) -> None:
    cluster.executable.chmod(0o644)
    error = cluster.why_not()
    assert type(error) is PermanentError
    assert "Permission denied" in str(error)


@pytest.mark.parametrize("noise", ["WARN: old setting\n", "\xff\xfe\x00 no UTF-8\n", "x" * 300_000, "ERROR: not one\n"])
def test_whatever_it_says_besides_its_status_decides(cluster: Cluster, noise: str) -> None:
    cluster.set(noise=noise)
    cluster.ask()
    assert cluster.queue == ["enable-node-maintenance pve1"]


def test_a_complaint_that_is_no_utf_8_is_still_told(cluster: Cluster) -> None:
    cluster.set(noise="\xe4\xf6\xfc ", complaint="no quorum")
    error = cluster.why_not()
    assert type(error) is NoQuorumError
    assert "no quorum" in str(error)
    assert "\n" not in str(error)


def test_a_flood_of_words_is_cut(cluster: Cluster) -> None:
    cluster.set(noise="x" * 300_000)
    cluster.set(complaint="y" * 300_000)
    assert len(str(cluster.why_not())) < 400

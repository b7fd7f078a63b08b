# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration files: what a command makes of the cluster's when it has a mistake, and the copy of its last good settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent import config_files
from agent.core.journal import Record
from tests.commands.rig import Place, Run


class TestAMistakeInTheClustersFile:
    """Whoever needs the agent at night can see how it is and hold it, whatever somebody has done to the settings by day."""

    @pytest.fixture
    def where(self, place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> Place:
        found = place(1, mounted="quorate")
        monkeypatch.setattr(config_files, "NODE_CONFIG", str(found.config))
        (found.pmxcfs / "proxlb").mkdir()
        (found.pmxcfs / "proxlb/config.yaml").write_text("balance:\n\tcpu: 3\n")
        return found

    @pytest.mark.parametrize(
        ("command", "out"),
        [
            (["pause"], "paused (asked for by"),
            (["resume"], "there is no pause"),
            (["history"], "no agent has led this cluster yet"),
            (["maintenance", "enter", "pve2"], "pve2 is in maintenance now"),
            (["maintenance", "list"], "no node is in maintenance"),
        ],
    )
    def test_what_must_work_at_night_does_and_says_so(self, where: Place, run: Run, command: list[str], out: str) -> None:
        ran = run(*command)
        assert ran.status == 0
        assert ran.out.startswith(out)
        assert "note: while the settings have a mistake the last good ones count: " in ran.err
        assert f"{where.pmxcfs}/proxlb/config.yaml: line 2, column 1" in ran.err

    def test_the_rest_names_the_mistake(self, where: Place, run: Run) -> None:
        ran = run("plan")
        assert (ran.status, ran.out) == (2, "")
        assert f"{where.pmxcfs}/proxlb/config.yaml: line 2, column 1" in ran.complaint

    def test_the_agents_last_good_copy_is_what_is_in_force(self, where: Place, run: Run) -> None:
        state = where.config.parent / "state"
        state.mkdir()
        config_files.keep_last_good("nodes: {maintenance: [pve3]}\n", str(state), Quiet())
        assert run("maintenance", "list").out.splitlines()[1].split() == ["pve3", "nodes.maintenance", "in", "the", "settings", "-"]
        (where.pmxcfs / "proxlb/config.yaml").write_text("mode: ful\n")
        assert "pve3" in run("maintenance", "list").out
        config_files.keep_last_good(None, str(state), Quiet())
        assert run("maintenance", "list").out == "no node is in maintenance\n"
        assert list(state.iterdir()) == []

    def test_a_mistake_in_the_nodes_own_file_stops_them_all(self, where: Place, run: Run) -> None:
        where.config.write_text("api: 3\n")
        ran = run("pause")
        assert (ran.status, ran.out) == (2, "")
        assert f"{where.config}: api: must be a mapping of settings, not 3" in ran.complaint


class Quiet:
    """A journal that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, record: Record) -> None:
        self.said.append(record.text)


def test_a_copy_of_the_settings_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    journal = Quiet()
    config_files.keep_last_good("mode: rules\n", str(tmp_path / "none"), journal)
    [line] = journal.said
    assert line.endswith(f"cannot be kept: {tmp_path}/none/cluster-config.last-good.yaml: No such file or directory")

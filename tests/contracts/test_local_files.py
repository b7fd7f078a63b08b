# SPDX-License-Identifier: GPL-3.0-or-later
"""What every `LocalFiles` promises."""

from __future__ import annotations

import pytest

from agent.ports import TemporaryError
from tests.contracts.stages import LocalFilesStage


def test_the_status_is_replaced_as_a_whole(disk: LocalFilesStage) -> None:
    files = disk.files()
    assert disk.status() is None
    files.write_status('{"leader": "pve1", "text": "long"}')
    files.write_status("{}")
    assert disk.status() == "{}"


def test_decisions_are_kept_in_order_over_a_restart(disk: LocalFilesStage) -> None:
    assert disk.files().read_decisions() == ()
    lines = tuple(f'{{"n": {number}, "text": "ä"}}' for number in range(20))
    for line in lines:
        disk.files().append_decision(line)
    assert disk.files().read_decisions() == lines


def test_a_decision_is_one_line(disk: LocalFilesStage) -> None:
    disk.files().append_decision('{"a":\n1}')
    assert disk.files().read_decisions() == ('{"a": 1}',)


def test_a_disk_that_takes_nothing_is_said_and_overcome(disk: LocalFilesStage) -> None:
    files = disk.files()
    files.append_decision("1")
    disk.set_broken(True)
    with pytest.raises(TemporaryError):
        files.append_decision("2")
    with pytest.raises(TemporaryError):
        files.write_status("{}")
    disk.set_broken(False)
    files.append_decision("3")
    assert files.read_decisions() == ("1", "3")


def test_learned_loads_are_kept_over_a_restart(disk: LocalFilesStage) -> None:
    assert disk.files().read_loads() is None
    disk.files().write_loads('{"long": "text"}')
    disk.files().write_loads('{"ä": 1}')
    assert disk.files().read_loads() == '{"ä": 1}'


def test_learned_loads_that_cannot_be_written_are_said(disk: LocalFilesStage) -> None:
    disk.files().write_loads("{}")
    disk.set_broken(True)
    with pytest.raises(TemporaryError):
        disk.files().write_loads("{}")

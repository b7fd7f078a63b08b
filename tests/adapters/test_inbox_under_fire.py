# SPDX-License-Identifier: GPL-3.0-or-later
"""More files in the inbox than ever, and stranger ones: all that are events are told once and in order, the rest costs little."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pytest

from agent.adapters.inbox import MOST_AT_ONCE, InboxFolder
from agent.core.events import Event
from agent.daemon.mailbox import events_of_sight


def leave(folder: Path, names: list[str], ago_s: float = 10.0) -> None:
    """Files as hooks leave them, one after the other, since so long ago."""
    first_ns = time.time_ns() - int(ago_s * 1e9)
    for number, name in enumerate(names):
        os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL, 0o600))
        os.utime(folder / name, ns=(first_ns + number, first_ns + number))


def events(inbox: InboxFolder) -> tuple[list[Event], list[str]]:
    told, problems, _ = events_of_sight(inbox.claim(), "pve1", 0.0)
    return told, problems


def test_a_thousand_starts_are_told_once_and_in_order(inbox: InboxFolder, folder: Path) -> None:
    leave(folder, [f"{100 + number * 37 % 1000}.post-start" for number in range(1000)])
    told, problems = events(inbox)
    assert [event.vmid for event in told] == [100 + number * 37 % 1000 for number in range(1000)]
    assert problems == []
    assert events(inbox) == ([], [])
    assert os.listdir(folder) == []
    assert os.listdir(f"{folder}.claimed") == []


def test_of_more_than_fit_into_a_look_the_oldest_come_first_and_the_rest_with_the_next(inbox: InboxFolder, folder: Path) -> None:
    names = [f"{100 + number}.post-stop" for number in range(MOST_AT_ONCE + 700)]
    leave(folder, names)
    assert list(inbox.claim().names) == names[:MOST_AT_ONCE]
    leave(folder, ["99999.post-stop"], ago_s=1.0)
    assert list(inbox.claim().names) == [*names[MOST_AT_ONCE:], "99999.post-stop"]
    assert inbox.claim().names == ()


def test_how_long_an_event_has_waited_is_told(inbox: InboxFolder, folder: Path) -> None:
    leave(folder, ["100.post-start"], ago_s=200.0)
    leave(folder, ["101.post-start"], ago_s=-50.0)
    ages = dict(zip((sight := inbox.claim()).names, sight.ages_s, strict=True))
    assert 199 < ages["100.post-start"] < 215
    assert ages["101.post-start"] == 0.0, "the clock was set back since"


def test_of_more_than_fit_a_killed_process_loses_nothing(inbox: InboxFolder, folder: Path, tmp_path: Path) -> None:
    names = [f"{100 + number}.post-stop" for number in range(MOST_AT_ONCE + 700)]
    leave(folder, names)
    inbox.claim()
    next_one, told = InboxFolder(str(folder), str(tmp_path / "maintenance")), list[str]()
    for _ in range(3):
        told += next_one.claim().names
    assert sorted(told) == sorted(names)


def test_memory_does_not_grow_with_what_lies_there(inbox: InboxFolder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever fills the folder, the agent of a node with little memory lives through it."""
    monkeypatch.setattr("agent.adapters.inbox.MOST_AT_ONCE", 200)
    peaks = []
    for times in (1, 5):
        leave(folder, [f"{'n' * 150}.{times}.{number}" for number in range(times * 200)])
        tracemalloc.start()
        inbox.claim()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        inbox.claim()
    assert peaks[1] < 1.2 * peaks[0], peaks


STRANGE = [
    "999.post-start.", "999.post-start..pve2", "999.post-start.-pve2", "999.post-start.pve2.pve3", "099.post-start", "99.post-start",
    "9999999999.post-start", "999.post-move", "999.POST-START", "999", "post-start.999", "0x64.post-start", "1e3.post-start",
    "999.post-start~", "999 .post-start", "999.post-start\n", "999.post-start.pv\u00e92", "\u0663\u0663\u0663.post-start",
    "request.json", "request.a.json.tmp", "request..json", "request.a/../b.json".replace("/", "_"), "-rf", "*", "$(reboot)",
    "n" * 255, "1" * 255, "999.post-start." + "p" * 64, "999.post-start." + "p" * 200,
]  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_that_no_hook_makes_is_no_event_and_is_gone(inbox: InboxFolder, folder: Path, name: str) -> None:
    leave(folder, [name, "200.post-start"])
    told, problems = events(inbox)
    assert [event.vmid for event in told] == [200]
    assert all(len(problem) < 200 for problem in problems)
    assert events(inbox) == ([], [])
    assert os.listdir(folder) == []


def test_a_file_of_somebody_else_a_link_and_a_folder_among_a_thousand_change_nothing(
    inbox: InboxFolder, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("shadow")
    leave(folder, [f"{100 + number}.post-start" for number in range(1000)])
    for vmid in range(100, 200):
        os.chown(folder / f"{vmid}.post-start", 65534, 65534)
    for vmid in range(200, 300):
        (folder / f"{vmid}.post-start").unlink()
        (folder / f"{vmid}.post-start").symlink_to(tmp_path / "secret")
    for vmid in range(300, 400):
        (folder / f"{vmid}.post-start").unlink()
        (folder / f"{vmid}.post-start").mkdir()
    told, _ = events(inbox)
    assert [event.vmid for event in told] == list(range(400, 1100))
    assert sorted(os.listdir(folder)) == [f"{vmid}.post-start" for vmid in range(300, 400)]
    assert (tmp_path / "secret").read_text() == "shadow"
    assert os.stat(tmp_path / "secret").st_uid == os.geteuid()

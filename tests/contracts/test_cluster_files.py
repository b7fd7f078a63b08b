# SPDX-License-Identifier: GPL-3.0-or-later
"""What every `ClusterFiles` promises."""

from __future__ import annotations

import pytest

from agent.core.clusterlog import ClusterLogCursor, parse_cluster_log
from agent.core.statistics import parse_members, parse_rrd, parse_vmlist
from agent.ports import FilesystemState, NoQuorumError, NotMountedError, PermanentError
from tests.contracts.stages import PmxcfsStage, eventually

FLAG = "proxlb/maintenance/pve1"


def test_where_nothing_is_there_is_nothing(pmxcfs: PmxcfsStage) -> None:
    files = pmxcfs.files("pve1")
    assert files.state() is FilesystemState.QUORATE
    assert files.read("proxlb/leader.json") is None
    assert files.list("proxlb") == ()
    assert files.list("proxlb/maintenance") == ()


def test_what_is_written_is_read_on_every_node(pmxcfs: PmxcfsStage) -> None:
    mine, theirs = pmxcfs.files("pve1"), pmxcfs.files("pve2")
    mine.write("proxlb/inbox/pve1.json", "{}\n")
    mine.write("proxlb/inbox/b.json", "")
    assert theirs.read("proxlb/inbox/pve1.json") == "{}\n"
    assert theirs.read("proxlb/inbox/b.json") == ""
    assert eventually(pmxcfs, lambda: theirs.list("proxlb/inbox") == ("b.json", "pve1.json"))
    assert mine.list("proxlb") == ("inbox",)
    theirs.write("proxlb/inbox/pve1.json", "ä" * 1000)
    assert eventually(pmxcfs, lambda: mine.read("proxlb/inbox/pve1.json") == "ä" * 1000)


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 100 * 1024])
def test_a_file_of_any_size_that_is_written_is_read_whole(pmxcfs: PmxcfsStage, size: int) -> None:
    text = ("0123456789" * (size // 10 + 1))[: size - 1] + "$"
    pmxcfs.files("pve1").write("proxlb/history.json", text)
    assert pmxcfs.files("pve1").read("proxlb/history.json") == text
    assert eventually(pmxcfs, lambda: pmxcfs.files("pve2").read("proxlb/history.json") == text)


def test_the_tokens_folder_can_be_written(pmxcfs: PmxcfsStage) -> None:
    pmxcfs.files("pve1").write("priv/proxlb/token", "secret")
    assert pmxcfs.files("pve2").read("priv/proxlb/token") == "secret"


def test_a_removed_file_is_gone_and_may_be_removed_again(pmxcfs: PmxcfsStage) -> None:
    files = pmxcfs.files("pve1")
    files.write(FLAG, "new disks")
    files.remove(FLAG)
    files.remove(FLAG)
    files.remove("proxlb/nothing/there")
    assert files.read(FLAG) is None
    assert eventually(pmxcfs, lambda: pmxcfs.files("pve2").list("proxlb/maintenance") == ())


def test_a_folder_is_made_where_it_is_missing_and_is_no_file(pmxcfs: PmxcfsStage) -> None:
    mine, theirs = pmxcfs.files("pve1"), pmxcfs.files("pve2")
    mine.make_folder("proxlb/maintenance")
    assert eventually(pmxcfs, lambda: theirs.list("proxlb") == ("maintenance",))
    mine.make_folder("proxlb/maintenance")
    mine.write(FLAG, "disks")
    theirs.make_folder("proxlb/maintenance/by-mistake")
    assert eventually(pmxcfs, lambda: mine.list("proxlb/maintenance") == ("by-mistake", "pve1"))
    assert mine.read("proxlb/maintenance/by-mistake") is None
    assert theirs.read(FLAG) == "disks"


@pytest.mark.parametrize("path", ["storage.cfg", "proxlb", "proxlb2/x", "nodes/pve1/qemu-server/100.conf", "proxlb/../x", "/proxlb/x", ""])
def test_nothing_else_is_ever_changed(pmxcfs: PmxcfsStage, path: str) -> None:
    files = pmxcfs.files("pve1")
    with pytest.raises(PermanentError):
        files.write(path, "x")
    with pytest.raises(PermanentError):
        files.remove(path)
    with pytest.raises(PermanentError):
        files.make_folder(path)


def test_the_token_is_never_removed(pmxcfs: PmxcfsStage) -> None:
    with pytest.raises(PermanentError):
        pmxcfs.files("pve1").remove("priv/proxlb/token")


def test_a_file_too_large_to_be_read_in_one_piece_is_refused(pmxcfs: PmxcfsStage) -> None:
    files = pmxcfs.files("pve1")
    files.write("proxlb/history.json", "x" * (100 << 10))
    with pytest.raises(PermanentError):
        files.write("proxlb/history.json", "ä" * (51 << 10))
    assert files.read("proxlb/history.json") == "x" * (100 << 10)


def test_without_quorum_old_text_is_read_and_nothing_is_written(pmxcfs: PmxcfsStage) -> None:
    mine, theirs = pmxcfs.files("pve1"), pmxcfs.files("pve2")
    mine.write(FLAG, "old")
    pmxcfs.cut("pve1")
    assert mine.state() is FilesystemState.NO_QUORUM
    assert theirs.state() is FilesystemState.QUORATE
    theirs.write(FLAG, "new")
    assert mine.read(FLAG) == "old"
    with pytest.raises(NoQuorumError):
        mine.write(FLAG, "mine")
    with pytest.raises(NoQuorumError):
        mine.remove(FLAG)
    pmxcfs.heal()
    assert mine.state() is FilesystemState.QUORATE
    assert mine.read(FLAG) == "new"


def test_the_bare_directory_is_never_touched(pmxcfs: PmxcfsStage) -> None:
    files = pmxcfs.files("pve1")
    files.write(FLAG, "x")
    pmxcfs.unmount("pve1")
    assert files.state() is FilesystemState.NOT_MOUNTED
    for call in (
        lambda: files.read(FLAG),
        lambda: files.list("proxlb"),
        lambda: files.write(FLAG, "y"),
        lambda: files.remove(FLAG),
        lambda: files.make_folder("proxlb/maintenance"),
    ):
        with pytest.raises(NotMountedError):
            call()
    assert pmxcfs.left_behind("pve1") == []
    pmxcfs.mount("pve1")
    assert files.state() is FilesystemState.QUORATE
    assert files.read(FLAG) == "x"


def test_the_members_are_told(pmxcfs: PmxcfsStage) -> None:
    found = parse_members(pmxcfs.files("pve2").read(".members") or "")
    assert found is not None
    assert found.quorate is True
    assert dict(found.nodes) == {"pve1": True, "pve2": True, "pve3": True}
    pmxcfs.cut("pve2")
    found = parse_members(pmxcfs.files("pve2").read(".members") or "")
    assert found is not None
    assert found.quorate is False


def test_the_guests_are_listed_with_their_nodes(pmxcfs: PmxcfsStage) -> None:
    files = pmxcfs.files("pve2")
    pmxcfs.put_guest(991, "pve1")
    pmxcfs.put_guest(992, "pve3")

    def places() -> dict[int, str]:
        return {entry.vmid: entry.node for entry in parse_vmlist(files.read(".vmlist") or "") or () if entry.vmid in (991, 992)}

    assert eventually(pmxcfs, lambda: places() == {991: "pve1", 992: "pve3"})


def test_the_statistics_tell_loads(pmxcfs: PmxcfsStage) -> None:
    pmxcfs.report()
    files = pmxcfs.files("pve2")
    assert eventually(pmxcfs, lambda: bool(parse_rrd(files.read(".rrd") or "").nodes))
    found = parse_rrd(files.read(".rrd") or "")
    node = next(node for node in found.nodes if node.name == "pve1")
    guest = next(guest for guest in found.guests if guest.vmid == 100)
    assert node.cpu_used_cores == pytest.approx(1.6)
    assert node.memory_used_bytes == 6 << 30
    assert guest.cpu_used_cores == pytest.approx(1.5)
    assert (guest.status, guest.memory_used_bytes) == ("running", 4 << 30)


def test_a_new_line_of_the_cluster_log_is_seen_once(pmxcfs: PmxcfsStage) -> None:
    files = pmxcfs.files("pve2")
    pmxcfs.log("pve1", "first")
    pmxcfs.pass_s(1.2)
    cursor = ClusterLogCursor().advance(files.read(".clusterlog") or "").cursor
    pmxcfs.log("pve3", 'end task UPID:... it said "no"')
    pmxcfs.pass_s(1.2)
    advance = cursor.advance(files.read(".clusterlog") or "")
    assert [(entry.node, entry.message) for entry in advance.entries] == [("pve3", 'end task UPID:... it said "no"')]
    assert not advance.gap
    for number in range(60):
        pmxcfs.log("pve1", f"line {number}")
    pmxcfs.pass_s(1.2)
    text = files.read(".clusterlog") or ""
    assert len(parse_cluster_log(text)) == 50
    assert advance.cursor.advance(text).gap

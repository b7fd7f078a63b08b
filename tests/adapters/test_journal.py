# SPDX-License-Identifier: GPL-3.0-or-later
"""Records reach journald with their fields (a real socket at its path, in a mount namespace), or a stream, and never raise."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from agent.adapters.journal import JOURNALD_SOCKET, JournaldSink, StreamSink, journald_lines, sink
from agent.core.journal import Level, MessageId, Record

ROOT = Path(__file__).resolve().parents[2]
MOVE = Record(Level.NOTICE, MessageId.MOVE, "vm:101 moves to pve2", reason="overload", vmid=101, source="pve1", target="pve2", epoch=7)


def record(text: str = "something", level: Level = Level.INFO) -> Record:
    return Record(level, MessageId.EVENT, text)


def said(*records: Record, level: Level = Level.INFO, priorities: bool = False) -> str:
    stream = io.StringIO()
    for one in records:
        StreamSink(stream, level, priorities=priorities).say(one)
    return stream.getvalue()


# --- a stream ----------------------------------------------------------------------------------------------------------------------


def test_a_stream_gets_lines_for_people() -> None:
    assert said(MOVE, record("odd", Level.WARNING), record("bad", Level.ERROR)) == "vm:101 moves to pve2\nwarning: odd\nerror: bad\n"


def test_what_is_below_the_level_is_not_said() -> None:
    every = [record(level.name, level) for level in Level]
    assert said(*every, level=Level.WARNING).split("\n") == ["error: ERROR", "warning: WARNING", ""]
    assert said(*every, level=Level.DEBUG).count("\n") == len(Level)


def test_with_priorities_each_line_has_one() -> None:
    assert said(record("a\nb", Level.ERROR), record("", Level.INFO), priorities=True) == "<3>a\n<3>b\n<6>\n"


def test_a_stream_that_is_closed_is_borne() -> None:
    closed = io.StringIO()
    closed.close()
    StreamSink(closed).say(record())


@pytest.mark.parametrize("where", ["/dev/full", "a pipe nobody reads"])
def test_a_stream_that_cannot_be_written_to_is_borne(where: str) -> None:
    code = (
        "import sys; from agent.adapters.journal import StreamSink; from agent.core.journal import Level, MessageId, Record\n"
        "for _ in range(2): StreamSink(sys.stderr).say(Record(Level.INFO, MessageId.EVENT, 'x'))\nprint('well')"
    )
    if where == "/dev/full":
        out = os.open(where, os.O_WRONLY)
    else:
        read_end, out = os.pipe()
        os.close(read_end)
    try:
        result = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=out, cwd=ROOT, text=True)
    finally:
        os.close(out)
    assert result.stdout == "well\n"
    assert result.returncode in {0, 120}  # 120: Python itself, at its end, for what it could not flush


def test_a_stream_that_knows_few_letters_gets_all_of_the_line() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    StreamSink(stream).say(record("Gerät \ud800"))
    assert raw.getvalue() == b"Ger\\xe4t \\ud800\n"


# --- journald ----------------------------------------------------------------------------------------------------------------------


def test_the_fields_that_journald_gets() -> None:
    assert journald_lines(MOVE) == (
        b"MESSAGE=vm:101 moves to pve2",
        b"PRIORITY=5",
        b"SYSLOG_IDENTIFIER=proxlb-agent",
        b"MESSAGE_ID=2b5408276b364e35baf02ad3230e0ee2",
        b"PROXLB_REASON=overload",
        b"PROXLB_VMID=101",
        b"PROXLB_SOURCE=pve1",
        b"PROXLB_TARGET=pve2",
        b"PROXLB_EPOCH=7",
    )


JOURNALD = """
import io, socket, sys
from agent.adapters.journal import JOURNALD_SOCKET, JournaldSink, StreamSink
from agent.core.journal import Level, MessageId, Record
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
    journald.bind(JOURNALD_SOCKET)
    sink = JournaldSink(StreamSink(sys.stderr))
    sink.say(Record(Level.WARNING, MessageId.MOVE, "one\\ntwo \\ud800", vmid=101))
    sink.say(Record(Level.DEBUG, MessageId.MOVE, "not said"))
    sink.say(Record(Level.INFO, MessageId.EVENT, "next", event="guest-started"))
    for _ in range(2):
        print(journald.recv(10000).hex())
sink.say(Record(Level.INFO, MessageId.EVENT, "journald hung up"))
"""


def fields(datagram: bytes) -> dict[str, str]:
    """Read journald's own format: `NAME=value`, or a name, a length and the bytes when there is a line break in the value."""
    found: dict[str, str] = {}
    while datagram:
        line, _, datagram = datagram.partition(b"\n")
        name, is_plain, value = line.partition(b"=")
        if not is_plain:
            (length,) = struct.unpack("<Q", datagram[:8])
            value, datagram = datagram[8 : 8 + length], datagram[8 + length + 1 :]
        found[name.decode()] = value.decode()
    return found


def test_journald_hears_it_where_it_listens() -> None:
    inside = f'mount -t tmpfs tmpfs /run && mkdir -p {Path(JOURNALD_SOCKET).parent} && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", inside, sys.executable, JOURNALD]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert result.returncode == 0, result.stderr
    first, second = (fields(bytes.fromhex(line)) for line in result.stdout.split())
    assert {name: text for name, text in first.items() if name in {"MESSAGE", "PRIORITY", "PROXLB_VMID"}} == {
        "MESSAGE": "one\ntwo \\ud800",
        "PRIORITY": "4",
        "PROXLB_VMID": "101",
    }
    assert second["PROXLB_EVENT"] == "guest-started"
    assert second["SYSLOG_IDENTIFIER"] == "proxlb-agent"
    assert result.stderr == "journald hung up\n"


def test_without_journald_the_fallback_hears_it(mocker: MockerFixture) -> None:
    mocker.patch("agent.adapters.journal.os.path.exists", return_value=False)
    stream = io.StringIO()
    JournaldSink(StreamSink(stream)).say(MOVE)
    assert stream.getvalue() == "vm:101 moves to pve2\n"


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "refused"), OSError(90, "Message too long"), ValueError("embedded")])
def test_what_journald_refuses_the_fallback_hears(mocker: MockerFixture, error: Exception) -> None:
    mocker.patch("agent.adapters.journal.os.path.exists", return_value=True)
    mocker.patch("agent.adapters.journal.journal.sendv", side_effect=error)
    stream = io.StringIO()
    journald = JournaldSink(StreamSink(stream, Level.DEBUG), Level.NOTICE)
    journald.say(MOVE)
    journald.say(record("below the level"))
    assert stream.getvalue() == "vm:101 moves to pve2\n"


# --- which one ---------------------------------------------------------------------------------------------------------------------


def test_a_service_says_it_to_journald_everybody_else_to_the_stream(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    with left, right, left.makefile("w") as stream:
        found = os.fstat(left.fileno())
        connected = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        chosen = sink(connected, stream, Level.WARNING)
        assert isinstance(chosen, JournaldSink)
        assert chosen.level is Level.WARNING
        assert isinstance(sink({}, stream), StreamSink)
        with (tmp_path / "log").open("w") as redirected:
            assert isinstance(sink(connected, redirected), StreamSink)
    assert isinstance(sink({"JOURNAL_STREAM": "1:2"}, io.StringIO()), StreamSink)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd hears, at a real notification socket, and what the machine's clocks say."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.adapters.system_clock import SystemClock
from agent.adapters.systemd import SystemdNotifier, watchdog_s


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def test_each_call_is_one_message(heard: socket.socket) -> None:
    notifier = SystemdNotifier()
    notifier.ready()
    notifier.alive()
    notifier.status("follower of pve1,\nepoch 7 ü\0")
    notifier.stopping()
    assert [heard.recv(1000) for _ in range(4)] == [
        b"READY=1",
        b"WATCHDOG=1",
        b"STATUS=follower of pve1, epoch 7 \xc3\xbc ",
        b"STOPPING=1",
    ]


def test_a_reload_says_when_it_began(heard: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    SystemdNotifier().reloading()
    first, second = heard.recv(1000).decode().split("\n")
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    SystemdNotifier().ready()


@pytest.mark.parametrize("address", ["/nonexistent/notify", "not a path", "x" * 300])
def test_where_nobody_listens_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    SystemdNotifier().alive()
    SystemdNotifier().status("\ud800")


@pytest.mark.parametrize(
    ("environment", "period_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_the_watchdogs_patience(environment: dict[str, str], period_s: float | None) -> None:
    assert watchdog_s(environment, pid=42) == period_s


def test_the_watchdog_of_this_process() -> None:
    assert watchdog_s({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}) == 1.0


def uptime_s() -> float:
    """As the kernel tells it, in hundredths of a second."""
    return float(Path("/proc/uptime").read_text().split()[0])


def test_the_clocks_are_the_machines() -> None:
    clock = SystemClock()
    before_s = time.time()
    assert before_s <= clock.wall_s() <= time.time()
    before_s = uptime_s()
    assert before_s <= clock.boottime_s() < uptime_s() + 0.01

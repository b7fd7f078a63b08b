# SPDX-License-Identifier: GPL-3.0-or-later
"""Start the stand-in for /etc/pve: mounts it, says so to systemd if that asked, and runs until told to stop.

Runs as `python3 -m tests.pmxcfs` and by its path, wherever a directory `tests/pmxcfs` with these files is.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.pmxcfs.cluster import LOCK_LIFE_S, Cluster
from tests.pmxcfs.control import Control, Server
from tests.pmxcfs.mount import Mount

SAVE_EVERY_S = 0.5
ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.pmxcfs", description=__doc__)
    parser.add_argument("--node", action="append", required=True, metavar="NAME[=DIR]", help="a node, and where to mount what it sees")
    parser.add_argument("--control", required=True, type=Path, metavar="SOCKET", help="where to take commands")
    parser.add_argument("--lock-life-s", type=float, default=LOCK_LIFE_S, help="age at which a lock can expire (%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="where the files outlive this process")
    parser.add_argument("--with-stdin", action="store_true", help="end when standard input ends")
    return parser.parse_args()


def notify(state: str) -> None:
    """Tell systemd, if it started this."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.sendto(state.encode(), address.replace("@", "\0", 1))


def save(cluster: Cluster, file: Path) -> None:
    with cluster.changed:
        cluster.dirty = False
        rows = list(cluster.rows())
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(rows))
    beside.replace(file)


def end_with_stdin(control: Control) -> None:
    while os.read(sys.stdin.fileno(), 1024):  # not sys.stdin.read(): its lock, held by this thread, would abort the end of the process
        pass
    control.over.set()


def end_with_signal(control: Control) -> None:
    signal.sigwait(ENDING)  # not in a handler: that would wait for the lock of the event that the thread it interrupts may hold
    control.over.set()


def wait_for_the_end(cluster: Cluster, control: Control, keep: Path | None) -> None:
    while not control.over.wait(SAVE_EVERY_S if keep else None):
        if keep and cluster.dirty:
            save(cluster, keep)
    if keep:
        save(cluster, keep)


def main() -> int:
    asked = arguments()
    places = dict((*one.split("=", 1), "")[:2] for one in asked.node)
    cluster = Cluster(places, lock_life_s=asked.lock_life_s)
    if asked.keep and asked.keep.exists():
        cluster.load(json.loads(asked.keep.read_text()))
    mounts = {name: Mount(cluster, cluster.nodes[name], Path(place).resolve()) for name, place in places.items() if place}
    control = Control(cluster, mounts)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # in all threads: they are begun below
    threading.Thread(target=end_with_signal, args=(control,), daemon=True).start()
    if asked.with_stdin:
        threading.Thread(target=end_with_stdin, args=(control,), daemon=True).start()
    asked.control.unlink(missing_ok=True)
    try:
        for mount in mounts.values():
            mount.mount()
        with Server(str(asked.control), control) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            notify("READY=1")
            wait_for_the_end(cluster, control, asked.keep)
            notify("STOPPING=1")
            control.hang(0)
    finally:
        for mount in mounts.values():
            mount.unmount()
        asked.control.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

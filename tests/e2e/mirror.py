# SPDX-License-Identifier: GPL-3.0-or-later
"""/etc/pve and the API of one cluster, saying the same: what happens in the played API shows in the stand-in's files, as in PVE."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tests.pmxcfs.client import Control, Rows, Value
from tests.pve_server.client import PveServer, ServerError

LOOK_EVERY_S = 0.1
PVESTATD_S = 2.0  # PVE: 10; a test has no time for that
MIB = 1 << 20
PRI_INFO, PRI_ERROR = 6, 3
NODE_COLUMNS = {"uptime": "uptime", "level": "level", "maxcpu": "maxcpu", "cpu": "cpu", "maxmem": "memtotal", "mem": "memused"}
GUEST_COLUMNS = ("uptime", "name", "status", "maxcpu", "cpu", "maxmem", "mem", "maxdisk", "disk", "memhost")


class Mirror:
    """Looks at the API's events every 0.1 s and at its numbers every `pvestatd_s`, in a thread of its own.

    It uses the played server's control, not the API: no request of it is counted, and none meets a fault that a test has set up.
    What a test changes in the files alone stays, unless the API changes the same thing later.
    """

    def __init__(self, api: PveServer, pmxcfs: Control, *, release: int = 9, pvestatd_s: float = PVESTATD_S) -> None:
        self.pvestatd_s = pvestatd_s
        self.end_lines = True  # False: the cluster log has no line at the end of a task
        self._api = api
        self._pmxcfs = pmxcfs
        self._release = release
        self._configs: dict[int, dict[str, Any]] = {}
        self._shown: dict[int, tuple[str, str]] = {}  # vmid -> node, text of its configuration
        self._online: dict[str, bool] = {}
        self._quorate = True
        self._ha = ""
        self._seen = 0
        self._next_round = 0.0
        self._one_at_a_time = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._problems: list[BaseException] = []

    def start(self, configs: Mapping[int, Mapping[str, Any]]) -> None:
        """Show everything once, then go on. `configs`: what stands in guests' configurations besides what the API's rows say."""
        self._configs = {vmid: dict(config) for vmid, config in configs.items()}
        self.look(numbers=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and raise what went wrong meanwhile."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(30)
        if self._problems:
            raise self._problems[0]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let nothing pass while the block runs: the numbers and the log are frozen, as where pvestatd hangs."""
        with self._one_at_a_time:
            yield

    def look(self, *, numbers: bool = False) -> None:
        """Bring the files up to date now; with `numbers` as if every node's pvestatd had just had its round."""
        with self._one_at_a_time:
            events = self._api.events(self._seen)
            for event in events:
                self._seen = event["seq"]
                self._log(event)
            if not events and not numbers:
                return
            rows = self._api.rows()
            self._show_cluster()
            self._show_guests(rows["guests"])
            if numbers:
                self._show_numbers(rows)
                for node in self._online:
                    self._pmxcfs.tasklist(node)
                self._next_round = time.monotonic() + self.pvestatd_s

    def _run(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            try:
                self.look(numbers=time.monotonic() >= self._next_round)
            except (OSError, ServerError):
                pass  # the one or the other is being restarted by the test; the next look sees what was missed
            except Exception as error:  # noqa: BLE001  # a thread cannot fail a test; stop() does
                self._problems.append(error)
                return

    def _log(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "task-start":
            self._say(event, f"starting task {event['upid']}", PRI_INFO)
        elif event["kind"] == "task-end" and self.end_lines and event["exitstatus"] != "unexpected status":
            status = event["exitstatus"]
            good = status == "OK" or status.startswith("WARNINGS")
            self._say(event, f"end task {event['upid']} {status}", PRI_INFO if good else PRI_ERROR)

    def _say(self, event: Mapping[str, Any], text: str, pri: int) -> None:
        user = event["upid"].split(":")[7]
        self._pmxcfs.log(event["node"], text, pri=pri, user=user)
        self._pmxcfs.tasklist(event["node"])

    def _show_cluster(self) -> None:
        state = self._api.state()
        for node, row in state["nodes"].items():
            if self._online.get(node, True) != row["online"]:
                self._pmxcfs.online(node, row["online"])
            self._online[node] = row["online"]
        if state["quorate"] != self._quorate:
            self._quorate = state["quorate"]
            self._pmxcfs.quorum(self._quorate)
        ha = json.dumps(state["ha"])
        if state["ha"] and ha != self._ha and self._quorate:
            self._pmxcfs.put("ha/manager_status", ha)
            self._ha = ha

    def _show_guests(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            vmid, node = row["vmid"], row["node"]
            text = conf_text(row, self._configs.get(vmid, {}))
            before = self._shown.get(vmid)
            if before != (node, text):
                self._pmxcfs.guest(vmid, node, row["type"], None if before and before[1] == text else text)
                self._shown[vmid] = (node, text)
        for vmid in set(self._shown) - {row["vmid"] for row in rows}:
            self._pmxcfs.remove_guest(vmid)
            del self._shown[vmid]

    def _show_numbers(self, rows: Mapping[str, list[dict[str, Any]]]) -> None:
        nodes = {row["node"]: {NODE_COLUMNS[key]: row[key] for key in NODE_COLUMNS if key in row} for row in rows["nodes"]}
        online: Rows = {name: row for name, row in nodes.items() if self._online.get(name, True)}
        guests: Rows = {str(row["vmid"]): _numbers(row) for row in rows["guests"] if row["node"] in online}
        self._pmxcfs.rrd(online, guests, release=self._release)


def conf_text(row: Mapping[str, Any], more: Mapping[str, Any]) -> str:
    """Return the configuration file of a guest, from its row in /cluster/resources and what else stands there."""
    known = {"hostname" if row["type"] == "lxc" else "name": row.get("name"), "cores": row.get("maxcpu"), "tags": row.get("tags")}
    known |= {"memory": row.get("maxmem", 0) // MIB, "lock": row.get("lock"), "template": row.get("template") or None}
    return "".join(f"{key}: {value}\n" for key, value in sorted((known | dict(more)).items()) if value not in {None, ""})


def _numbers(row: Mapping[str, Any]) -> dict[str, Value]:
    return {key: row[key] for key in GUEST_COLUMNS if key in row} | {"template": int(row.get("template") or 0)}

# SPDX-License-Identifier: GPL-3.0-or-later
"""The played PVE cluster from a test's side: start it, change it, ask what happened. Standard library only.

with PveServer(cluster(["pve1", "pve2"], [vm(101, "pve1", cpu_cores=2)])) as pve:
    ...                                  # pve.host, pve.port, pve.ca_file, TOKEN_ID, TOKEN_SECRET
    assert pve.where(101) == "pve2"
"""

from __future__ import annotations

import http.client
import json
import os
import select
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".cache" / "pve-server" / "bin" / "python"  # tests/run makes it
START_S = 120.0  # what a busy machine may take to start a process; 1 s on an idle one
STOP_S = 30.0
WAIT_S = 60.0
TOKEN_ID = "proxlb@pve!agent"
TOKEN_SECRET = "00000000-0000-0000-0000-000000000001"
AGENT_PRIVS = ("Sys.Audit", "VM.Audit", "VM.Migrate", "VM.PowerMgmt", "Datastore.Audit", "Pool.Audit", "Sys.Syslog")
GIB = 1024**3

MIGRATE_VM = "/nodes/{node}/qemu/{vmid}/migrate"
MIGRATE_CT = "/nodes/{node}/lxc/{vmid}/migrate"


class ServerError(Exception):
    """The server could not start, or refused a control request."""


class Answer(NamedTuple):
    """What the API answered: `reason` carries PVE's error text, `errors` those of single parameters."""

    status: int
    reason: str
    data: Any
    errors: dict[str, str]


class Endpoint(NamedTuple):
    """One API server of the cluster."""

    node: str
    host: str
    port: int


def vm(vmid: int, node: str, **values: Any) -> dict[str, Any]:
    """A VM for `cluster`; further values are the fields of GuestSpec in state.py."""
    return {"vmid": vmid, "node": node, "type": "qemu"} | values


def ct(vmid: int, node: str, **values: Any) -> dict[str, Any]:
    """A container for `cluster`."""
    return {"vmid": vmid, "node": node, "type": "lxc"} | values


def cluster(
    nodes: Iterable[str] | Mapping[str, Mapping[str, Any]], guests: Iterable[Mapping[str, Any]] = (), **values: Any
) -> dict[str, Any]:
    """A state for `PveServer`: nodes by name (or with NodeSpec values), guests, and the fields of ClusterSpec.

    Unless `tokens` and `acl` are given, TOKEN_ID is there with the rights the agent asks its users for.
    """
    named = {name: dict(spec) for name, spec in nodes.items()} if isinstance(nodes, Mapping) else {name: {} for name in nodes}
    state: dict[str, Any] = {"nodes": named, "guests": [dict(guest) for guest in guests]}
    state["tokens"] = {TOKEN_ID: TOKEN_SECRET}
    state["acl"] = [{"user": name, "path": "/", "privs": list(AGENT_PRIVS)} for name in (TOKEN_ID, TOKEN_ID.partition("!")[0])]
    state["privsep"] = [TOKEN_ID]
    return state | values


class PveServer:
    """A server process, from `with` to the end of the block.

    listen:     one entry an endpoint, [NODE=]HOST:PORT; each answers as one node.
    certs:      a directory to make (or find) certificates in; None: one of its own.
    Ends by itself when the process that started it dies, whichever way: its standard input closes then.
    """

    def __init__(
        self,
        state: Mapping[str, Any],
        listen: Sequence[str] = ("127.0.0.1:0",),
        certs: Path | None = None,
        python: str | Path | None = None,
    ) -> None:
        self._state = dict(state)
        self._listen = listen
        self._certs = certs
        self._python = str(python or os.environ.get("PROXLB_PVE_SERVER_PYTHON") or PYTHON)
        self._process: subprocess.Popen[str] | None = None
        self._directory: Path | None = None
        self._control: http.client.HTTPConnection | None = None
        self._asking = threading.Lock()  # one question at a time on the one connection
        self._seen = 0
        self.endpoints: list[Endpoint] = []
        self.ca_file = ""

    # ---- life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:  ServerError with what the process said when it does not get there.
        """
        if not Path(self._python).exists():
            raise ServerError(f"no interpreter {self._python}: make a virtual environment there with fakepve[crypto]==0.5.0")
        self._directory = Path(tempfile.mkdtemp(prefix="pve-server-"))
        state_file = self._directory / "state.json"
        state_file.write_text(json.dumps(self._state), encoding="utf-8")
        command = [
            self._python,
            "-X",
            f"pycache_prefix={ROOT / '.cache' / 'pycache'}",
            "-m",
            "tests.pve_server",
            "--state",
            str(state_file),
        ]
        command += ["--make-certs", str(self._certs or self._directory / "pve")]
        for text in self._listen:
            command += ["--listen", text]
        with (self._directory / "stderr").open("w", encoding="utf-8") as stderr:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], START_S)
        line = self._process.stdout.readline() if readable else ""
        if not line:
            said = self.stderr()
            self.stop()
            raise ServerError(f"the server did not get ready: {said.strip() or 'it said nothing'}")
        ready = json.loads(line)
        self.ca_file = ready["ca_file"]
        self.endpoints = [Endpoint(**endpoint) for endpoint in ready["endpoints"]]
        self._control = http.client.HTTPConnection("127.0.0.1", ready["control"], timeout=2 * WAIT_S)

    def stop(self) -> None:
        """End the process; safe to call twice."""
        if self._control is not None:
            self._control.close()
            self._control = None
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None
        return self._process.pid

    def stderr(self) -> str:
        """What the server wrote there; nothing, normally."""
        path = self._directory / "stderr" if self._directory is not None else None
        return path.read_text(encoding="utf-8") if path is not None and path.exists() else ""

    # ---- where it is

    @property
    def host(self) -> str:
        """The first endpoint's address."""
        return self.endpoints[0].host

    @property
    def port(self) -> int:
        """The first endpoint's port."""
        return self.endpoints[0].port

    @property
    def url(self) -> str:
        """The first endpoint."""
        return f"https://{self.host}:{self.port}"

    def api(
        self,
        method: str,
        path: str,
        values: Mapping[str, Any] | None = None,
        token: str | None = f"{TOKEN_ID}={TOKEN_SECRET}",
        endpoint: int = 0,
        timeout_s: float = WAIT_S,
    ) -> Answer:
        """Make one call, as the agent's token unless another ID=SECRET is given."""
        target = self.endpoints[endpoint]
        context = ssl.create_default_context(cafile=self.ca_file)
        connection = http.client.HTTPSConnection(target.host, target.port, context=context, timeout=timeout_s)
        headers = {"Authorization": f"PVEAPIToken={token}"} if token else {}
        body, query = None, ""
        if values and method in ("GET", "DELETE"):
            query = "?" + urllib.parse.urlencode(values)
        elif values:
            body = urllib.parse.urlencode(values)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            connection.request(method, f"/api2/json{path}{query}", body, headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        try:
            document = json.loads(text)
        except ValueError:
            document = {}
        return Answer(response.status, response.reason, document.get("data"), document.get("errors") or {})

    # ---- what happened

    def requests(self, schema: str | None = None, method: str | None = None) -> list[dict[str, Any]]:
        """The API calls so far: time, method, path, schema (path), values, token, listener, status, made_up."""
        recorded = self._get("requests")["requests"]
        return [entry for entry in recorded if schema in (None, entry["schema"]) and method in (None, entry["method"])]

    def counters(self) -> dict[str, int]:
        """How often each call was made: "GET /cluster/resources" -> 3."""
        return dict(self._get("requests")["counters"])

    def made_up(self) -> set[str]:
        """The calls that this server does not play: their answers were invented from the schema."""
        return {f"{entry['method']} {entry['schema']}" for entry in self.requests() if entry["made_up"]}

    def state(self) -> dict[str, Any]:
        """guests (by VMID as text), tasks, nodes, quorate, ha, as they are."""
        return self._get("state")

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """nodes and guests with the numbers that pvestatd sent last; asked beside the API, so it neither counts nor fails."""
        return self._get("rows")

    def guest(self, vmid: int) -> dict[str, Any]:
        """A guest's node, status, lock, ha, tags."""
        return dict(self.state()["guests"][str(vmid)])

    def where(self, vmid: int) -> str:
        """The node a guest is on."""
        return str(self.guest(vmid)["node"])

    def placement(self) -> dict[int, str]:
        """The node of every guest."""
        return {int(vmid): guest["node"] for vmid, guest in self.state()["guests"].items()}

    def tasks(self, *types: str, vmid: int | None = None) -> list[dict[str, Any]]:
        """The tasks so far, oldest first, with `log`; of these types, of this guest."""
        tasks = self.state()["tasks"]
        return [task for task in tasks if (not types or task["type"] in types) and vmid in (None, int(task["id"] or 0))]

    def events(self, since: int = 0, wait_s: float = 0.0, **details: Any) -> list[dict[str, Any]]:
        """What happened after the event numbered `since`, if it has these details (kind, vmid, ...); waits for one if there is none."""
        query = urllib.parse.urlencode({"since": since, "wait_s": wait_s} | details)
        return list(self._get(f"events?{query}")["events"])

    def wait_event(self, kind: str, timeout_s: float = WAIT_S, since: int | None = None, **details: Any) -> dict[str, Any]:
        """Wait for an event of that kind with these details, and return it.

        Looks at events after the last one returned by this call (or after `since`).
        Raises:  TimeoutError with the events that came instead.
        """
        deadline = time.monotonic() + timeout_s
        last = self._seen if since is None else since
        while (left := deadline - time.monotonic()) > 0:
            found = self.events(last, min(left, 5.0), kind=kind, **details)
            if found:
                self._seen = max(self._seen, found[0]["seq"])
                return found[0]
        others = [event["kind"] for event in self.events(last)]
        raise TimeoutError(f"no {kind} {details} within {timeout_s} s; there were: {others}")

    def wait_task(self, upid: str, timeout_s: float = WAIT_S) -> str:
        """Wait for a task to end; its exit status."""
        return str(self.wait_event("task-end", timeout_s, since=0, upid=upid)["exitstatus"])

    def wait_until(self, true: Callable[[], object], timeout_s: float = WAIT_S) -> None:
        """Ask again and again, 20 ms apart."""
        deadline = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_s} s")
            time.sleep(0.02)

    # ---- control

    def do(self, name: str, **values: Any) -> Any:
        """Any control action; the named ones below are the same with types. See control.py."""
        return self._call("POST", "/control", {"do": name} | values)["result"]

    def load(self, state: Mapping[str, Any]) -> None:
        """Become another cluster; requests, events and faults are forgotten. Endpoints and certificates stay."""
        self.do("load", state=dict(state))
        self._seen = 0

    def clear(self) -> None:
        """Forget the requests and counters so far."""
        self.do("clear")

    def settings(self, **values: Any) -> None:
        """numbers_as_strings, cpu_blank_s, dead_known_s, pvestatd_s, options (of the datacenter)."""
        self.do("settings", **values)

    def sample(self) -> None:
        """A pvestatd round now; for states with `pvestatd_s` other than 0."""
        self.do("sample")

    def quorum(self, quorate: bool) -> None:
        """Lose or regain it: reading goes on, writes are refused."""
        self.do("quorum", quorate=quorate)

    def add_guest(self, guest: Mapping[str, Any]) -> None:
        """A guest that was not there; running ones have just started."""
        self.do("add_guest", guest=dict(guest))

    def remove_guest(self, vmid: int) -> None:
        """A guest that is gone."""
        self.do("remove_guest", vmid=vmid)

    def start_guest(self, vmid: int, user: str = "root@pam", silent: bool = False) -> None:
        """Somebody starts a guest; `silent`: with neither task nor log."""
        self.do("start_guest", vmid=vmid, user=user, silent=silent)

    def stop_guest(self, vmid: int, user: str = "root@pam", silent: bool = False) -> None:
        """Somebody stops a guest; `silent`: a shutdown from inside."""
        self.do("stop_guest", vmid=vmid, user=user, silent=silent)

    def set_load(self, vmid: int, cpu_cores: float | None = None, mem_bytes: int | None = None, memhost_bytes: int | None = None) -> None:
        """What a guest uses from now on; None: unchanged."""
        values = {"cpu_cores": cpu_cores, "mem_bytes": mem_bytes, "memhost_bytes": memhost_bytes}
        self.do("set_guest", vmid=vmid, **{key: value for key, value in values.items() if value is not None})

    def set_guest(self, vmid: int, **values: Any) -> None:
        """Any of tags, config, local_disks, local_resources, mapped_resources, replication, maxcpu, migration_s, pressure, ..."""
        self.do("set_guest", vmid=vmid, **values)

    def set_tags(self, vmid: int, tags: str) -> None:
        """The guest's tags, as they stand in its configuration."""
        self.do("set_guest", vmid=vmid, tags=tags)

    def set_status(self, vmid: int, status: str) -> None:
        """What QEMU says of a running VM: running, paused, prelaunch, io-error, suspended."""
        self.do("status", vmid=vmid, status=status)

    def lock(self, vmid: int, lock: str) -> None:
        """Lock a guest: backup, snapshot, migrate, ..."""
        self.do("lock", vmid=vmid, lock=lock)

    def unlock(self, vmid: int) -> None:
        """Unlock a guest."""
        self.do("lock", vmid=vmid, lock=None)

    def move_guest(self, vmid: int, node: str) -> None:
        """The guest is elsewhere, without a task."""
        self.do("move_guest", vmid=vmid, node=node)

    def migrate(self, vmid: int, target: str, user: str = "root@pam") -> str:
        """Somebody else's migration; its UPID."""
        return str(self.do("migrate", vmid=vmid, target=target, user=user))

    def hide_guest(self, vmid: int, user: str = TOKEN_ID, hidden: bool = True) -> None:
        """The token does not see the guest."""
        self.do("hide_guest", vmid=vmid, user=user, hidden=hidden)

    def node_online(self, node: str, online: bool, rebooted: bool = False) -> None:
        """A node dies or comes back. Its endpoint, if it has one, is another matter: `endpoint`."""
        self.do("node_online", node=node, online=online, rebooted=rebooted)

    def node_load(self, node: str, cpu_fraction: float | None = None, mem_bytes: int | None = None) -> None:
        """What a node reports whatever its guests use; None: derived from them."""
        self.do("node_load", node=node, cpu_fraction=cpu_fraction, mem_bytes=mem_bytes)

    def row(self, row: str, values: Mapping[str, Any] | None = None, drop: Sequence[str] = ()) -> None:
        """Distort a row of /cluster/resources and /nodes: pve.row("node/pve1", {"cpu": None}, drop=["mem"])."""
        self.do("row", row=row, values=dict(values or {}), drop=list(drop))

    def endpoint(self, index: int, up: bool) -> None:
        """Close an endpoint with all its connections, or open it again on the same port."""
        self.do("endpoint", index=index, up=up)

    def fail_call(self, method: str, path: str, status: int, message: str, times: int = 1, **more: Any) -> None:
        """Refuse the next calls (`times` 0: all): pve.fail_call("POST", MIGRATE_VM, 596, "Connection timed out").

        `path` is a schema path or a real one; `more`: node, skip (let that many pass first), after_s, body (an HTML page).
        """
        self.do("fault", method=method, path=path, status=status, message=message, times=times, **more)

    def delay_call(self, method: str, path: str, before_s: float = 0.0, answer_s: float = 0.0, times: int = 1, **more: Any) -> None:
        """Carry the call out `before_s` late, or answer `answer_s` late; it is carried out even if the client gave up."""
        self.do("fault", method=method, path=path, after_s=before_s, answer_after_s=answer_s, times=times, **more)

    def drop_call(self, method: str, path: str, when: str, times: int = 1, **more: Any) -> None:
        """Break the connection "before" or "after" the call is carried out."""
        self.do("fault", method=method, path=path, drop=when, times=times, **more)

    def clear_faults(self) -> None:
        """No call, task or migration fails any more."""
        self.do("clear_faults")

    def fail_task(self, kind: str, exitstatus: str, vmid: int | None = None, times: int = 1) -> None:
        """The next tasks of a kind (qmstart) end so; "WARNINGS: 1" does the work all the same."""
        self.do("task_fault", kind=kind, exitstatus=exitstatus, vmid=vmid, times=times)

    def task(self, node: str, kind: str, about: str = "", user: str = "root@pam") -> str:
        """Somebody else's task (vzdump, startall) about a guest or nothing, running until `end_task`; its UPID."""
        return str(self.do("task", node=node, kind=kind, about=about, user=user))

    def end_task(self, upid: str, status: str = "OK") -> None:
        """End a task made by `task`."""
        self.do("end_task", upid=upid, status=status)

    def log(self, node: str, message: str, **more: Any) -> None:
        """A line in the cluster log; `more`: user, pri, tag."""
        self.do("log", node=node, message=message, **more)

    def migration(self, **values: Any) -> None:
        """duration_s (None: until `finish_migration`), bytes_per_s, switch_fraction."""
        self.do("migration", **values)

    def fail_migration(self, vmid: int | None = None, exitstatus: str | None = None, **more: Any) -> None:
        """The next migration fails; `more`: detail, at_fraction, arrives, starts, leave_lock, times (see Outcome)."""
        self.do("fail_migration", vmid=vmid, exitstatus=exitstatus, **more)

    def switch_migration(self, vmid: int) -> None:
        """The guest is on its target now, still locked."""
        self.do("switch_migration", vmid=vmid)

    def finish_migration(self, vmid: int) -> None:
        """The migration under way ends now."""
        self.do("finish_migration", vmid=vmid)

    def ha(self, **values: Any) -> None:
        """delay_s, acts (False: requests are queued for ever), master, rules, groups, resources, reject (sids)."""
        self.do("ha", **values)

    def ha_guest(self, vmid: int, state: str | None) -> None:
        """Put a guest under the HA manager, or take it away."""
        self.do("ha_guest", vmid=vmid, state=state)

    def ha_service(self, sid: str, **entry: Any) -> None:
        """What service_status says: state, target, maintenance_node."""
        self.do("ha_service", sid=sid, **entry)

    def ha_node(self, node: str, state: str | None) -> None:
        """The CRM's state of a node, without a request; None: what it is by itself."""
        self.do("ha_node", node=node, state=state)

    def ha_maintenance(self, node: str, wanted: bool) -> None:
        """An admin's request for maintenance, or its end; HA guests leave or come back."""
        self.do("ha_maintenance", node=node, wanted=wanted)

    # ---- inside

    def _get(self, what: str) -> dict[str, Any]:
        return self._call("GET", f"/control/{what}", None)

    def _call(self, method: str, path: str, document: Mapping[str, Any] | None) -> dict[str, Any]:
        if self._control is None:
            raise ServerError("the server does not run")
        try:
            with self._asking:
                self._control.request(
                    method, path, json.dumps(document) if document is not None else None, {"Content-Type": "application/json"}
                )
                response = self._control.getresponse()
                answer: dict[str, Any] = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._control.close()
            raise ServerError(f"{path}: {error}; stderr: {self.stderr()}") from error
        if response.status != 200:
            raise ServerError(answer.get("error", str(answer)))
        return answer

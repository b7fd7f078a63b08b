# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's API over HTTPS with a token, through proxmoxer: the real `ClusterApi`.

What goes over the wire is recorded below proxmoxer, in the transport of its session, as proxmoxer cannot be asked
whether a request went out or what the answer was: its versions lose the status of an answer they cannot read, and 1.2.0
(Debian 12) applies no timeout. So each request has one `_Exchange`, and every judgement is made from it: whether bytes
went out decides if a POST may have been carried out, and the answer's status decides what was refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import requests
from proxmoxer import ProxmoxAPI
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.util import Timeout
from urllib3.util.ssl_ import create_urllib3_context

from agent.adapters.pve import fields
from agent.core.cluster import GuestType, Snapshot
from agent.core.plan_types import Verdict
from agent.ports import InDoubtError, MigrationOrder, OutsideError, PermanentError, RefusedError, TaskSight, TemporaryError

T = TypeVar("T")

DEFAULT_PORT = 8006
CONNECT_S = 10.0  # a node of the cluster that has not answered a SYN by then does not answer; the rest of the time is for its work
READ_TIMEOUTS = 2  # what a read may take in all: one host that hangs, and another one that is slow
REST_S = 30.0  # so long a host that failed is asked after the others
VERSION_LIFE_S = 3600.0  # PVE's version changes with an upgrade, which also breaks the connection, as a rule
MAX_PEM_BYTES = 1 << 20
OWN_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

# pveproxy passes a request on to pvedaemon or another node. When that fails it answers with the client's own codes (AnyEvent::HTTP):
# 595 says that nothing was sent on, the others do not say.
NOT_PASSED_ON = 595
PASSING_ON_FAILED = frozenset({408, 502, 503, 504, 595, 596, 597, 598, 599})
ABSENT = frozenset({404, 501})  # PVE's word for a path it does not have is 501

_NO_TASK = re.compile("no such task|unable to parse worker upid")

SETUP_HINT = "run: proxlb-agent setup"


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """How to reach PVE's API and whom to trust there.

    Shape:   `hosts` as HOST or HOST:PORT, asked in this order; `token_id` as user@realm!name; `token_secret` gives the
             secret alone, None while there is none, and is asked again when PVE refuses what it gave. `own_node` is the
             node this runs on, None off a node.
    Trust:   On a node, localhost and the node's own name are trusted by the certificate on the node's disk, exactly
             that one (`<pmxcfs>/local/pveproxy-ssl.pem` if it is there, else pve-ssl.pem), whoever issued it, whatever
             names it has and even when it has expired. All other hosts need a certificate of `ca_file` (None: of the
             system's authorities) that is valid now and has the host's name. `verify_tls` false turns both off.
    Units:   `timeout_s` is for a request to one host; a POST has no more for all hosts together, a read has twice that. A server
             that answers byte by byte can stretch it.
    """

    hosts: tuple[str, ...]
    token_id: str
    token_secret: Callable[[], str | None] = field(repr=False)
    own_node: str | None = None
    pmxcfs: str = "/etc/pve"
    ca_file: str | None = "/etc/pve/pve-root-ca.pem"
    verify_tls: bool = True
    timeout_s: float = 30.0


@dataclass(slots=True)
class _Exchange:
    """One request on the wire, as far as it got."""

    deadline_s: float = 0.0
    is_connected_anew: bool = False
    is_sent: bool = False
    status: int | None = None
    reason: str = ""
    is_html: bool = False
    body: bytes | None = None

    def before_bytes(self) -> None:
        """Called right before bytes go out; nothing goes out after the deadline."""
        if not self.is_sent and time.monotonic() >= self.deadline_s:
            raise TimeoutError("timed out before the request was sent")
        self.is_sent = True


class _Wire(HTTPAdapter):
    """The transport of a session: one host, one connection, no repetitions, no redirections, and a record of each exchange.

    With a `fingerprint` the server must show exactly that certificate, and `verify` is not used.
    """

    def __init__(self, verify: bool | str, fingerprint: str | None) -> None:
        self._verify = verify if fingerprint is None else False
        self._fingerprint = fingerprint
        self.exchange = _Exchange()
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **more: Any) -> None:
        if self._verify is False:  # without a context of ours urllib3 reads the system's authorities for each connection: 50 ms for nothing
            more["ssl_context"] = create_urllib3_context(cert_reqs=ssl.CERT_NONE)  # type: ignore[no-untyped-call]
        if self._fingerprint is not None:
            more["assert_fingerprint"] = self._fingerprint
        super().init_poolmanager(connections, maxsize, block, **more)  # type: ignore[no-untyped-call]
        self.poolmanager.pool_classes_by_scheme = {"https": _recording_pool(self)}

    def disconnect(self) -> None:
        """Close the connection; the next request makes a new one."""
        self.poolmanager.clear()

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: object = None,
        verify: object = True,
        cert: object = None,
        proxies: object = None,
    ) -> requests.Response:
        exchange = self.exchange
        left_s = max(exchange.deadline_s - time.monotonic(), 0.001)
        limits = Timeout(connect=min(left_s, CONNECT_S), read=left_s, total=left_s)
        response = super().send(request, stream=True, timeout=limits, verify=self._verify)  # type: ignore[arg-type]
        exchange.reason = _readable(response.reason)
        exchange.is_html = "html" in (response.headers.get("Content-Type") or "")
        exchange.status = response.status_code
        try:
            exchange.body = response.content
        except BaseException:
            response.close()  # a connection with half an answer in it is of no use
            raise
        return response


def _recording_pool(wire: _Wire) -> type[HTTPSConnectionPool]:
    """A connection pool whose connections tell the wire's exchange when they connect and when bytes go out."""

    class Connection(HTTPSConnection):
        def connect(self) -> None:
            wire.exchange.is_connected_anew = True
            super().connect()  # type: ignore[no-untyped-call]

        def send(self, data: Any) -> None:
            if self.sock is None:
                self.connect()
            wire.exchange.before_bytes()
            super().send(data)

    class Pool(HTTPSConnectionPool):
        ConnectionCls = Connection  # type: ignore[mutable-override]

    return Pool


@dataclass(slots=True)
class _Line:
    """An open way to one host: proxmoxer's session, what it was opened with, and what was learned over it."""

    api: Any
    wire: _Wire
    secret: str
    fingerprint: str | None
    version: str = ""
    version_until_s: float = 0.0

    def without_secret(self, text: str) -> str:
        """The text as it may stand in the journal, should a server echo what it was sent."""
        return text.replace(self.secret, "***")


class _HostError(Exception):
    """A host could not serve a request, and another one may: nothing was carried out."""

    def __init__(self, error: TemporaryError | PermanentError) -> None:
        super().__init__(str(error))
        self.error = error


class _AnsweredError(Exception):
    """PVE answered, with an error of its own."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class PveApi:
    """The cluster's API for one thread, over as few connections as possible. Opens nothing before it is asked."""

    def __init__(self, access: ApiAccess, wall_s: Callable[[], float] = time.time) -> None:
        self._access = access
        self._wall_s = wall_s
        self._lines: dict[str, _Line] = {}
        self._rests_until_s: dict[str, float] = {}
        self._last_host = ""
        self._requests_made = 0
        self._storages: dict[str, fields.Storage] | None = None
        self._nodes: tuple[str, ...] = ()

    @property
    def requests_made(self) -> int:
        """How many requests have gone out so far, whatever came of them."""
        return self._requests_made

    def close(self) -> None:
        """Close all connections; the next call opens them again."""
        for host in tuple(self._lines):
            self._hang_up(host)

    # ---- the port

    def look(self) -> Snapshot:
        """As `ClusterApi.look`: 4 requests the first time, 3 afterwards."""
        taken_at = self._wall_s()
        resources = self._rows(fields.RESOURCES)
        tasks = fields.tasks(self._rows(fields.TASKS))
        nodes = fields.nodes(resources)
        ha_status = self._get(fields.HA_STATUS, absent_is_none=True)
        maintenance, no_target = fields.ha_nodes(ha_status, nodes, taken_at)
        if not ha_status:
            no_target = fields.ha_nodes_of_resources(resources, nodes)
        self._storages = fields.storages(resources)
        self._nodes = tuple(node.name for node in nodes)
        return Snapshot(
            taken_at=taken_at,
            nodes=nodes,
            guests=fields.guests(resources),
            tasks=tasks,
            maintenance=maintenance,
            no_target=no_target,
            pve_version=self._version(),
            storage_use=fields.storage_use(resources),
        )

    def verdict(self, vmid: int, type: GuestType, node: str, wall_s: float) -> Verdict:
        """As `ClusterApi.verdict`. For a container the configuration is read, too: PVE 8 has no check, that of 9 sees no disks."""
        path = fields.migrate_path(node, type, vmid)
        try:
            if type is GuestType.QEMU:
                answer = self._call("GET", path, {})
                return _expected(lambda: fields.vm_verdict(vmid, answer, path, wall_s))
            precondition = self._container_precondition(path)
            config = self._call("GET", fields.config_path(node, type, vmid), {})
        except _AnsweredError as error:
            if error.status != 500:
                raise self._refused_read(path, error) from error
            return fields.verdict_of_refusal(vmid, error.text, wall_s)
        known = self._storages_with(fields.container_storages(config))
        others = [name for name in self._nodes if name != node]
        return _expected(lambda: fields.container_verdict(vmid, precondition, config, known, others, wall_s))

    def migrate(self, order: MigrationOrder) -> str:
        """As `ClusterApi.migrate`. A guest of the HA manager gives the UPID of a `hamigrate` task, which ends at once."""
        path = fields.migrate_path(order.source, order.type, order.vmid)
        try:
            answer = self._call("POST", path, fields.migrate_parameters(order))
        except _AnsweredError as error:
            raise RefusedError(error.text) from error
        if not isinstance(answer, str) or fields.upid_task(answer) is None:
            raise InDoubtError(f"{self._last_host} answered POST /{path} without naming a task: see the task list of {order.source}")
        return answer

    def task(self, upid: str) -> TaskSight:
        """As `ClusterApi.task`, asked of the node that the UPID names."""
        task = fields.upid_task(upid)
        if task is None:
            raise RefusedError(f"{fields.one_line(upid)!r} is not the UPID of a task")
        path = fields.task_status_path(task)
        try:
            answer = self._call("GET", path, {})
        except _AnsweredError as error:
            if error.status in (400, 404) or _NO_TASK.search(error.text):
                raise RefusedError(f"{task.node} does not know the task {upid}: {error.text}") from error
            raise self._refused_read(path, error) from error
        return _expected(lambda: fields.task_sight(upid, answer, path))

    def find_migration(self, vmid: int, source: str, since_wall_s: float) -> str | None:
        """As `ClusterApi.find_migration`; of several the last one. The time is compared with the clock of `source`, in whole seconds."""
        found = fields.tasks(self._rows(fields.node_tasks_path(source), fields.migrations_wanted(vmid, since_wall_s)))
        return fields.newest_migration(found, vmid, source, since_wall_s)

    # ---- reading

    def _rows(self, path: str, parameters: Mapping[str, fields.Parameter] | None = None) -> list[fields.Row]:
        answer = self._get(path, parameters)
        return _expected(lambda: fields.rows(answer, path))

    def _get(self, path: str, parameters: Mapping[str, fields.Parameter] | None = None, absent_is_none: bool = False) -> object:
        try:
            return self._call("GET", path, parameters or {})
        except _AnsweredError as error:
            if absent_is_none and error.status in ABSENT:
                return None
            raise self._refused_read(path, error) from error

    def _version(self) -> str:
        """PVE's version on the host that answered last, asked once a connection."""
        line = self._lines.get(self._last_host)
        if line is not None and time.monotonic() < line.version_until_s:
            return line.version
        found = fields.version(self._get(fields.VERSION))
        line = self._lines.get(self._last_host)
        if line is not None:
            line.version, line.version_until_s = found, time.monotonic() + VERSION_LIFE_S
        return found

    def _container_precondition(self, path: str) -> object:
        """PVE's own check of a container, None where it has none."""
        release = fields.major(self._version())
        if release is not None and release < 9:
            return None
        try:
            return self._call("GET", path, {})
        except _AnsweredError as error:
            if error.status in ABSENT:  # the node is an 8 in a cluster half-way to 9
                return None
            raise

    def _storages_with(self, wanted: set[str]) -> dict[str, fields.Storage]:
        """The storages as the last look saw them; asked for once more if one of `wanted` is not among them."""
        known = self._storages or {}
        if not wanted <= set(known):
            resources = self._rows(fields.RESOURCES, {"type": "storage"})
            known = self._storages = known | fields.storages(resources)
        return known

    def _refused_read(self, path: str, error: _AnsweredError) -> OutsideError:
        if error.status == 400 or error.status in ABSENT:
            hint = "this version of Proxmox VE is not one that the agent knows: update proxlb-agent, or report it"
            return PermanentError(f"{self._last_host} does not take GET /{path}: {error.text}", hint)
        return TemporaryError(f"{self._last_host} cannot answer GET /{path}: {error.text}")

    # ---- hosts

    def _call(self, method: str, path: str, parameters: Mapping[str, fields.Parameter]) -> object:
        """Ask one host after the other until one of them answers; a POST goes on only while nothing was sent.

        Raises:  _AnsweredError for PVE's own errors, else as the port says.
        """
        is_post = method == "POST"
        timeout_s = self._access.timeout_s
        end_s = time.monotonic() + (timeout_s if is_post else READ_TIMEOUTS * timeout_s)
        failed: list[TemporaryError | PermanentError] = []
        for host in self._hosts():
            now_s = time.monotonic()
            if now_s >= end_s:
                break
            try:
                answer = self._ask(host, method, path, parameters, min(now_s + timeout_s, end_s))
            except _HostError as error:
                failed.append(error.error)
                if host not in self._lines:  # it gave no answer at all; one that cannot reach another node may well answer the next request
                    self._rests_until_s[host] = time.monotonic() + REST_S
            else:
                self._rests_until_s.pop(host, None)
                return answer
        raise _sum_of(failed)

    def _hosts(self) -> list[str]:
        """The hosts in the order of the settings, those that failed lately at the end."""
        if not self._access.hosts:
            raise PermanentError("no host is set to ask for PVE's API", "set api.hosts, on a node to [localhost]")
        now_s = time.monotonic()
        return sorted(dict.fromkeys(self._access.hosts), key=lambda host: self._rests_until_s.get(host, 0.0) > now_s)

    def _ask(self, host: str, method: str, path: str, parameters: Mapping[str, fields.Parameter], deadline_s: float) -> object:
        """One request to one host, once more if the first try was spoilt by something that has since been put right.

        That is: the certificate on disk or the token was renewed, or the server had closed a kept connection under a GET.
        """
        self._last_host = host
        has_repeated = False
        while True:
            line = self._line(host)
            exchange = line.wire.exchange = _Exchange(deadline_s)
            if method == "POST":
                line.wire.disconnect()  # a kept connection may break as the request goes out, and nobody would know what became of it
            answer, error = _through_proxmoxer(line.api, method, path, parameters)
            self._requests_made += exchange.is_sent
            if exchange.status is None and error is None:
                error = ValueError("proxmoxer sent nothing")
            if exchange.status is None:
                self._hang_up(host)
            if not has_repeated and self._is_worth_repeating(host, line, exchange, method, error):
                has_repeated = True
                self._hang_up(host)
                continue
            if exchange.status is not None:
                line.wire.exchange = _Exchange()  # an answer may be of some megabytes, and the next is a while away
                return self._judged_answer(host, line, exchange, method, path, answer, error)
            raise self._judged_silence(host, line, exchange, method, path, error)

    def _is_worth_repeating(self, host: str, line: _Line, exchange: _Exchange, method: str, error: Exception | None) -> bool:
        if exchange.status is not None:
            return exchange.status == 401 and self._secret() != line.secret
        if not exchange.is_sent:
            return line.fingerprint is not None and _is_about_tls(error) and self._pin(host) != line.fingerprint
        return method == "GET" and not exchange.is_connected_anew and not _is_timeout(error)

    # ---- opening

    def _line(self, host: str) -> _Line:
        line = self._lines.get(host)
        if line is None:
            line = self._lines[host] = self._open(host)
        return line

    def _hang_up(self, host: str) -> None:
        line = self._lines.pop(host, None)
        if line is not None:
            line.wire.close()  # type: ignore[no-untyped-call]

    def _open(self, host: str) -> _Line:
        access = self._access
        user, _, name = access.token_id.rpartition("!")
        if "@" not in user or not name:
            raise PermanentError(f"{access.token_id!r} is not the id of an API token", "set api.token_id to user@realm!name")
        secret = self._secret()
        fingerprint = self._pin(host)
        wire = _Wire(self._authorities(host) if fingerprint is None else False, fingerprint)
        address, port = _split_host(host)
        api = ProxmoxAPI("localhost", port=port, user=user, token_name=name, token_value=secret, verify_ssl=False, timeout=access.timeout_s)
        session = api._store["session"]
        session.trust_env = False  # no proxy, no certificate authority and no password of somebody's environment
        session.max_redirects = 0  # PVE never redirects, and the token is for nobody else
        session.adapters.clear()
        session.mount("https://", wire)
        api._store["base_url"] = f"https://{address}:{port}/api2/json"  # proxmoxer 1.2.0 cannot read an IPv6 address
        return _Line(api, wire, secret, fingerprint)

    def _secret(self) -> str:
        no_secret = PermanentError("the API token's secret is not one: it has more than one word, or signs that no token has", SETUP_HINT)
        try:
            secret = (self._access.token_secret() or "").strip()
        except OSError as error:
            raise TemporaryError(f"cannot read the API token's secret: {_said(error)}") from error
        except UnicodeError:
            raise no_secret from None  # the exception holds the text
        if not secret:
            raise PermanentError("there is no API token yet", SETUP_HINT)
        if not re.fullmatch(r"[!-~]+", secret):  # anything else would end up, readable, in the message of an exception of requests
            raise no_secret
        return secret

    def _pin(self, host: str) -> str | None:
        """SHA-256 of the certificate that the host must show, None when it is trusted in another way."""
        access = self._access
        if not access.verify_tls or access.own_node is None:
            return None
        address = _split_host(host)[0].strip("[]").lower()
        if address not in OWN_HOSTS and address != access.own_node.lower():
            return None
        problem: Exception | None = None
        for name in ("pveproxy-ssl.pem", "pve-ssl.pem"):
            path = os.path.join(access.pmxcfs, "local", name)
            try:
                return _fingerprint(path)
            except FileNotFoundError as error:
                problem = problem or error
            except OSError as error:
                raise _HostError(TemporaryError(f"cannot read {path}: {_said(error)}")) from error
            except ValueError as error:
                raise _HostError(PermanentError(f"{path} holds no certificate", "run: pvecm updatecerts --force")) from error
        place = os.path.join(access.pmxcfs, "local")
        raise _HostError(TemporaryError(f"there is no certificate of this node in {place}: is pve-cluster running?")) from problem

    def _authorities(self, host: str) -> bool | str:
        access = self._access
        if not access.verify_tls:
            return False
        if access.ca_file is None:
            return True
        if not os.path.isfile(access.ca_file):
            hint = "copy /etc/pve/pve-root-ca.pem of a node there, or set api.ca_file to the authority that signed the nodes' certificates"
            raise _HostError(PermanentError(f"{host} cannot be trusted: there is no file {access.ca_file}", hint))
        return access.ca_file

    # ---- judging

    def _judged_answer(
        self, host: str, line: _Line, exchange: _Exchange, method: str, path: str, answer: object, error: Exception | None
    ) -> object:
        """What an answer is worth: its data, or the error it stands for."""
        status = exchange.status or 0
        is_post = method == "POST"
        what = f"{method} /{path}"
        text = line.without_secret(_text_of(exchange))
        if 200 <= status <= 299:
            if error is None and not _is_unread(answer):
                return answer
            if is_post:
                raise InDoubtError(f"{host} answered {what} with something that is not PVE's: see the task list before trying again")
            if exchange.body is None or not exchange.is_html:
                raise _HostError(TemporaryError(f"{host} answered {what} with something that cannot be read"))
            raise _HostError(PermanentError(f"{host} answered {what} with a web page", "check that api.hosts names nodes of Proxmox VE"))
        if status < 400:
            unfit = PermanentError(f"{host} answered {what} with {status}, a way to somewhere else", "set api.hosts to nodes of Proxmox VE")
            raise unfit if is_post else _HostError(unfit)
        if status == 401:
            raise PermanentError(f"{host} refuses the API token {self._access.token_id}: {text}", SETUP_HINT)
        if status == 403:
            raise PermanentError(f"{host} does not allow the API token {self._access.token_id} to {what}: {text}", SETUP_HINT)
        if status in PASSING_ON_FAILED or (status >= 500 and exchange.is_html):
            if is_post and status != NOT_PASSED_ON:
                raise InDoubtError(f"{host} passed on {what} and got no answer ({status} {text}): see the task list before trying again")
            gone = TemporaryError(f"{host} gets no answer to {what} ({status} {text}): is the node up, and pvedaemon running there?")
            raise gone if is_post else _HostError(gone)
        raise _AnsweredError(status, text)

    def _judged_silence(self, host: str, line: _Line, exchange: _Exchange, method: str, path: str, error: Exception | None) -> Exception:
        """What it means that no answer came."""
        what = f"{method} /{path}"
        if exchange.is_sent:
            how = f"within {self._access.timeout_s:g} s" if _is_timeout(error) else "before the connection broke"
            if method == "POST":
                return InDoubtError(f"{host} did not answer {what} {how}: see the task list before trying again")
            return _HostError(TemporaryError(f"{host} did not answer {what} {how}"))
        return _HostError(self._no_connection(host, line, error))

    def _no_connection(self, host: str, line: _Line, error: Exception | None) -> TemporaryError | PermanentError:
        if _has(error, socket.gaierror):
            return TemporaryError(f"cannot find the address of {host}: check api.hosts and the name service")
        if _has(error, ConnectionRefusedError):
            return TemporaryError(f"{host} refuses connections: is pveproxy running there?")
        if line.fingerprint is not None and _is_about_tls(error) and "ingerprint" in str(error):
            return PermanentError(f"{host} does not show the certificate that is on this node's disk", "run: systemctl restart pveproxy")
        if why := _why_not_trusted(error):
            hint = f"put the authority that signed it into api.ca_file (now {self._access.ca_file}), and a name it holds into api.hosts"
            return PermanentError(f"the certificate of {host} is not trusted: {why}", hint)
        if _is_timeout(error):
            return TemporaryError(f"{host} accepts no connection in time: check the network, and pveproxy there")
        causes = [cause for cause in _causes(error) if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException)]
        why = line.without_secret(_said(causes[-1] if causes else error))
        if _is_about_tls(error):
            return TemporaryError(f"{host} does not speak TLS as PVE does ({why}): check that its port is that of pveproxy")
        return TemporaryError(f"no connection to {host}: {why}")


# ---- small things


def _through_proxmoxer(api: Any, method: str, path: str, parameters: Mapping[str, fields.Parameter]) -> tuple[object, Exception | None]:
    """The answer, or whatever proxmoxer, requests, urllib3 or Python raised instead; they raise far more than they document."""
    try:
        resource = api(path)
        return (resource.post(**parameters) if method == "POST" else resource.get(**parameters)), None
    except Exception as error:  # noqa: BLE001  nothing of ours runs in there, and third-party exceptions end here
        return None, error


def _expected(read: Callable[[], T]) -> T:
    try:
        return read()
    except fields.UnexpectedAnswerError as error:
        raise TemporaryError(str(error)) from error


def _sum_of(failed: list[TemporaryError | PermanentError]) -> OutsideError:
    """One error for all hosts: permanent only if it is so for each."""
    if len(failed) == 1:
        return failed[0]
    text = "; ".join(map(str, failed))
    hints = [error.hint for error in failed if isinstance(error, PermanentError)]
    return PermanentError(text, hints[0]) if len(hints) == len(failed) else TemporaryError(text)


def _split_host(host: str) -> tuple[str, int]:
    """Address (IPv6 in brackets) and port of HOST, HOST:PORT, [IPv6], [IPv6]:PORT or a bare IPv6 address."""
    if host.count(":") > 1 and not host.startswith("["):
        return f"[{host}]", DEFAULT_PORT
    address, bracket, rest = host.rpartition("]")
    name, _, port = rest.partition(":")
    return address + bracket + name, int(port) if port.isascii() and port.isdigit() else DEFAULT_PORT


def _fingerprint(path: str) -> str:
    """SHA-256 of the first certificate in the file: the server's own, those of its issuers may follow. Raises OSError, ValueError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(handle, MAX_PEM_BYTES)
    finally:
        os.close(handle)
    match = re.search(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----", text)
    if match is None:
        raise ValueError("no certificate")
    return hashlib.sha256(base64.b64decode(match[1])).hexdigest()


def _readable(reason: object) -> str:
    """The status line's text: http.client reads it as Latin-1, PVE writes UTF-8."""
    text = reason.decode("latin-1") if isinstance(reason, bytes) else str(reason or "")
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _text_of(exchange: _Exchange) -> str:
    """PVE's own words for an error: the status line, and what is wrong with single parameters."""
    document = _document(exchange.body)
    message = document.get("message")
    said = exchange.reason or (message if isinstance(message, str) else "")
    errors = document.get("errors")
    if isinstance(errors, dict) and errors:
        said += " " + "; ".join(f"{name}: {problem}" for name, problem in sorted(errors.items()))
    return fields.one_line(said) or str(exchange.status)


def _document(body: bytes | None) -> dict[str, object]:
    try:
        document = json.loads(body or b"")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _is_unread(answer: object) -> bool:
    """True for what proxmoxer gives when the answer was no JSON."""
    return isinstance(answer, dict) and isinstance(answer.get("errors"), bytes)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and all that stand behind it, wherever requests and urllib3 keep them."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        found = waiting.pop(0)
        if isinstance(found, BaseException) and id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting += [getattr(found, "reason", None), *found.args, found.__cause__, found.__context__]


def _has(error: BaseException | None, *kinds: type[BaseException]) -> bool:
    return any(isinstance(cause, kinds) for cause in _causes(error))


def _is_about_tls(error: BaseException | None) -> bool:
    return _has(error, ssl.SSLError, requests.exceptions.SSLError)


def _why_not_trusted(error: BaseException | None) -> str:
    """What is wrong with the certificate that the server showed, "" when that is not what went wrong."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return fields.one_line(getattr(cause, "verify_message", "") or cause)
    return "it is for another name" if "doesn't match" in str(error) else ""


def _is_timeout(error: BaseException | None) -> bool:
    return _has(error, TimeoutError, requests.exceptions.Timeout)


def _said(error: BaseException | None) -> str:
    """An exception in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return fields.one_line(text or type(error).__name__)

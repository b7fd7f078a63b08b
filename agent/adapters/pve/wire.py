# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection to one of PVE's servers, through proxmoxer: what went out, what came back, and what it means that nothing did.

What goes over the wire is recorded below proxmoxer, in the transport of its session, as proxmoxer cannot be asked
whether a request went out or what the answer was: its versions lose the status of an answer they cannot read, and 1.2.0
(Debian 12) applies no timeout. So each request has one `Exchange`, and every judgement is made from it: whether bytes
went out decides if a POST may have been carried out, and the answer's status decides what was refused.
"""

from __future__ import annotations

import json
import math
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import requests
from proxmoxer import ProxmoxAPI
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.util import Timeout
from urllib3.util.ssl_ import create_urllib3_context

from agent.adapters.pve.values import Parameter, one_line

CONNECT_S = 10.0  # a node of the cluster that has not answered a SYN by then does not answer; the rest of the time is for its work


def boottime_s() -> float:
    """Seconds since the machine's boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Exchange:
    """One request on the wire, as far as it got.

    Units:   CLOCK_BOOTTIME seconds: a machine that was suspended must not send what is long out of date. `deadline_s` is when an
             answer is no longer waited for, `send_until_s` from when on nothing goes out.
    """

    deadline_s: float = 0.0
    send_until_s: float = math.inf
    is_connected_anew: bool = False
    is_sent: bool = False
    status: int | None = None
    reason: str = ""
    is_html: bool = False
    body: bytes | None = None

    def before_bytes(self) -> None:
        """Called right before bytes go out, a request's head and its body each; without its body PVE does nothing."""
        if boottime_s() >= min(self.deadline_s, self.send_until_s):
            raise TimeoutError(f"timed out before {'all of ' if self.is_sent else ''}the request was sent")
        self.is_sent = True


class Wire(HTTPAdapter):
    """The transport of a session: one host, one connection, no repetitions, no redirections, and a record of each exchange.

    With a `fingerprint` the server must show exactly that certificate, and `verify` is not used.
    """

    def __init__(self, verify: bool | str, fingerprint: str | None) -> None:
        self._verify = verify if fingerprint is None else False
        self._fingerprint = fingerprint
        self.exchange = Exchange()
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
        left_s = max(exchange.deadline_s - boottime_s(), 0.001)
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


def _recording_pool(wire: Wire) -> type[HTTPSConnectionPool]:
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
class Line:
    """An open way to one host: proxmoxer's session, what it was opened with, and what was learned over it."""

    api: Any
    wire: Wire
    secret: str
    fingerprint: str | None
    version: str = ""
    version_until_s: float = 0.0

    def without_secret(self, text: str) -> str:
        """The text as it may stand in the journal, should a server echo what it was sent."""
        return text.replace(self.secret, "***")


def open_line(base_url: str, token_id: str, secret: str, wire: Wire, fingerprint: str | None, timeout_s: float) -> Line:
    """A way to the server at `base_url` with that token, over that wire. Nothing is sent yet."""
    user, _, name = token_id.rpartition("!")
    api = ProxmoxAPI("localhost", user=user, token_name=name, token_value=secret, verify_ssl=False, timeout=timeout_s)
    session = api._store["session"]
    session.trust_env = False  # no proxy, no certificate authority and no password of somebody's environment
    session.max_redirects = 0  # PVE never redirects, and the token is for nobody else
    session.adapters.clear()
    session.mount("https://", wire)
    api._store["base_url"] = base_url  # proxmoxer 1.2.0 cannot read an IPv6 address
    return Line(api, wire, secret, fingerprint)


def through_proxmoxer(api: Any, method: str, path: str, parameters: Mapping[str, Parameter]) -> tuple[object, Exception | None]:
    """The answer, or whatever proxmoxer, requests, urllib3 or Python raised instead; they raise far more than they document."""
    try:
        resource = api(path)
        return (resource.post(**parameters) if method == "POST" else resource.get(**parameters)), None
    except Exception as error:  # noqa: BLE001  nothing of ours runs in there, and third-party exceptions end here
        return None, error


def _readable(reason: object) -> str:
    """The status line's text: http.client reads it as Latin-1, PVE writes UTF-8."""
    text = reason.decode("latin-1") if isinstance(reason, bytes) else str(reason or "")
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def text_of(exchange: Exchange) -> str:
    """PVE's own words for an error: the status line, and what is wrong with single parameters."""
    document = _document(exchange.body)
    message = document.get("message")
    said = exchange.reason or (message if isinstance(message, str) else "")
    errors = document.get("errors")
    if isinstance(errors, dict) and errors:
        said += " " + "; ".join(f"{name}: {problem}" for name, problem in sorted(errors.items()))
    return one_line(said) or str(exchange.status)


def _document(body: bytes | None) -> dict[str, object]:
    try:
        document = json.loads(body or b"")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def is_unread(answer: object) -> bool:
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


def has(error: BaseException | None, *kinds: type[BaseException]) -> bool:
    return any(isinstance(cause, kinds) for cause in _causes(error))


def is_about_tls(error: BaseException | None) -> bool:
    return has(error, ssl.SSLError, requests.exceptions.SSLError)


def why_not_trusted(error: BaseException | None) -> str:
    """What is wrong with the certificate that the server showed, "" when that is not what went wrong."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return one_line(getattr(cause, "verify_message", "") or cause)
    return "it is for another name" if "doesn't match" in str(error) else ""


def root_cause(error: BaseException | None) -> BaseException | None:
    """What the operating system or the TLS library said first, the exception itself when neither did."""
    found = [cause for cause in _causes(error) if isinstance(cause, OSError) and not isinstance(cause, requests.RequestException)]
    return found[-1] if found else error


def is_timeout(error: BaseException | None) -> bool:
    return has(error, TimeoutError, requests.exceptions.Timeout)


def said(error: BaseException | None) -> str:
    """An exception in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(text or type(error).__name__)

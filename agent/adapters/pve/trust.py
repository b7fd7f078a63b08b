# SPDX-License-Identifier: GPL-3.0-or-later
"""How PVE's API is reached and whom the agent trusts there: hosts, the token's secret, certificates."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.adapters.pve.wire import said
from agent.ports import PermanentError, TemporaryError, UnknownTokenError

DEFAULT_PORT = 8006
MAX_PEM_BYTES = 1 << 20
OWN_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
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


class HostError(Exception):
    """A host could not serve a request, and another one may: nothing was carried out."""

    def __init__(self, error: TemporaryError | PermanentError) -> None:
        super().__init__(str(error))
        self.error = error


def secret_of(access: ApiAccess) -> str:
    no_secret = UnknownTokenError("the API token's secret is not one: it has more than one word, or signs that no token has", SETUP_HINT)
    try:
        secret = (access.token_secret() or "").strip()
    except OSError as error:
        raise TemporaryError(f"cannot read the API token's secret: {said(error)}") from error
    except UnicodeError:
        raise no_secret from None  # the exception holds the text
    if not secret:
        elsewhere = "on a node run proxlb-agent setup; elsewhere set api.hosts, and PROXLB_AGENT_TOKEN to the secret of a token"
        raise PermanentError("there is no API token yet", SETUP_HINT if access.own_node is not None else elsewhere)
    if not re.fullmatch(r"[!-~]+", secret):  # anything else would end up, readable, in the message of an exception of requests
        raise no_secret
    return secret


def pin_of(access: ApiAccess, host: str) -> str | None:
    """SHA-256 of the certificate that the host must show, None when it is trusted in another way."""
    if not access.verify_tls or access.own_node is None:
        return None
    address = split_host(host)[0].strip("[]").lower()
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
            raise HostError(TemporaryError(f"cannot read {path}: {said(error)}")) from error
        except ValueError as error:
            raise HostError(PermanentError(f"{path} holds no certificate", "run: pvecm updatecerts --force")) from error
    place = os.path.join(access.pmxcfs, "local")
    raise HostError(TemporaryError(f"there is no certificate of this node in {place}: is pve-cluster running?")) from problem


def authorities_of(access: ApiAccess, host: str) -> bool | str:
    if not access.verify_tls:
        return False
    if access.ca_file is None:
        return True
    if not os.path.isfile(access.ca_file):
        hint = "copy /etc/pve/pve-root-ca.pem of a node there, or set api.ca_file to the authority that signed the nodes' certificates"
        raise HostError(PermanentError(f"{host} cannot be trusted: there is no file {access.ca_file}", hint))
    return access.ca_file


def split_host(host: str) -> tuple[str, int]:
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

# SPDX-License-Identifier: GPL-3.0-or-later
"""What an answer of PVE is worth, or that none came: the data, or the one error it stands for."""

from __future__ import annotations

import socket

from agent.adapters.pve.trust import SETUP_HINT, ApiAccess, HostError
from agent.adapters.pve.wire import Exchange, Line, has, is_about_tls, is_timeout, is_unread, root_cause, said, text_of, why_not_trusted
from agent.ports import InDoubtError, PermanentError, TemporaryError, UnknownTokenError

# pveproxy passes a request on to pvedaemon or another node. When that fails it answers with the client's own codes (AnyEvent::HTTP):
# 595 says that nothing was sent on, the others do not say.
NOT_PASSED_ON = 595
PASSING_ON_FAILED = frozenset({408, 502, 503, 504, 595, 596, 597, 598, 599})


class AnsweredError(Exception):
    """PVE answered, with an error of its own."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def judged_answer(
    access: ApiAccess, host: str, line: Line, exchange: Exchange, method: str, path: str, answer: object, error: Exception | None
) -> object:
    """What an answer is worth: its data, or the error it stands for."""
    status = exchange.status or 0
    is_post = method == "POST"
    what = f"{method} /{path}"
    text = line.without_secret(text_of(exchange))
    if 200 <= status <= 299:
        if error is None and not is_unread(answer):
            return answer
        if is_post:
            raise InDoubtError(f"{host} answered {what} with something that is not PVE's: see the task list before trying again")
        if exchange.body is None or not exchange.is_html:
            raise HostError(TemporaryError(f"{host} answered {what} with something that cannot be read"))
        raise HostError(PermanentError(f"{host} answered {what} with a web page", "check that api.hosts names nodes of Proxmox VE"))
    if status < 400:
        unfit = PermanentError(f"{host} answered {what} with {status}, a way to somewhere else", "set api.hosts to nodes of Proxmox VE")
        raise unfit if is_post else HostError(unfit)
    if status == 401:
        raise UnknownTokenError(f"{host} refuses the API token {access.token_id}: {text}", SETUP_HINT)
    if status == 403 and is_post:  # what it may do differs from guest to guest, and from storage to storage
        raise AnsweredError(status, text or "Permission check failed")
    if status == 403:
        raise PermanentError(f"{host} does not allow the API token {access.token_id} to {what}: {text}", SETUP_HINT)
    if status in PASSING_ON_FAILED or (status >= 500 and exchange.is_html):
        if is_post and status != NOT_PASSED_ON:
            raise InDoubtError(f"{host} passed on {what} and got no answer ({status} {text}): see the task list before trying again")
        gone = TemporaryError(f"{host} gets no answer to {what} ({status} {text}): is the node up, and pvedaemon running there?")
        raise gone if is_post else HostError(gone)
    raise AnsweredError(status, text)


def judged_silence(
    access: ApiAccess, host: str, line: Line, exchange: Exchange, method: str, path: str, error: Exception | None
) -> Exception:
    """What it means that no answer came."""
    what = f"{method} /{path}"
    if exchange.is_sent:
        how = f"within {access.timeout_s:g} s" if is_timeout(error) else "before the connection broke"
        if method == "POST":
            return InDoubtError(f"{host} did not answer {what} {how}: see the task list before trying again")
        return HostError(TemporaryError(f"{host} did not answer {what} {how}"))
    return HostError(_no_connection(access, host, line, error))


def _no_connection(access: ApiAccess, host: str, line: Line, error: Exception | None) -> TemporaryError | PermanentError:
    if has(error, socket.gaierror):
        return TemporaryError(f"cannot find the address of {host}: check api.hosts and the name service")
    if has(error, ConnectionRefusedError):
        return TemporaryError(f"{host} refuses connections: is pveproxy running there?")
    if line.fingerprint is not None and is_about_tls(error) and "ingerprint" in str(error):
        return PermanentError(f"{host} does not show the certificate that is on this node's disk", "run: systemctl restart pveproxy")
    if why := why_not_trusted(error):
        hint = f"put the authority that signed it into api.ca_file (now {access.ca_file}), and a name it holds into api.hosts"
        return PermanentError(f"the certificate of {host} is not trusted: {why}", hint)
    if is_timeout(error):
        return TemporaryError(f"{host} accepts no connection in time: check the network, and pveproxy there")
    why = line.without_secret(said(root_cause(error)))
    if is_about_tls(error):
        return TemporaryError(f"{host} does not speak TLS as PVE does ({why}): check that its port is that of pveproxy")
    return TemporaryError(f"no connection to {host}: {why}")

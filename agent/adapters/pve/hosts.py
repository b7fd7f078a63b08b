# SPDX-License-Identifier: GPL-3.0-or-later
"""PVE's hosts, asked one after the other until one answers; a POST goes on to the next only while nothing was sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from agent.adapters.pve.judging import judged_answer, judged_silence
from agent.adapters.pve.trust import ApiAccess, HostError, authorities_of, pin_of, secret_of, split_host
from agent.adapters.pve.values import Parameter
from agent.adapters.pve.wire import Exchange, Line, Wire, boottime_s, is_about_tls, is_timeout, open_line, through_proxmoxer
from agent.ports import OutsideError, PermanentError, TemporaryError

READ_TIMEOUTS = 2  # what a read may take in all: one host that hangs, and another one that is slow
REST_S = 30.0  # so long a host that failed is asked after the others


class Hosts:
    """The ways to all hosts of the settings, for one thread. Opens nothing before it is asked.

    Shape:   `last` is the host that was asked last, `requests_made` counts what went out, whatever came of it.
    """

    def __init__(self, access: ApiAccess) -> None:
        self._access = access
        self._lines: dict[str, Line] = {}
        self._rests_until_s: dict[str, float] = {}
        self.last = ""
        self.requests_made = 0

    def close(self) -> None:
        """Close all connections; the next call opens them again."""
        for host in tuple(self._lines):
            self._hang_up(host)

    def line(self) -> Line | None:
        """The open way to the host that was asked last, None when it is closed."""
        return self._lines.get(self.last)

    def call(self, method: str, path: str, parameters: Mapping[str, Parameter], send_until_s: float = math.inf) -> object:
        """Ask one host after the other until one of them answers; a POST goes on only while nothing was sent.

        No request goes out once CLOCK_BOOTTIME is past `send_until_s`.

        Raises:  AnsweredError for PVE's own errors, else as the port says.
        """
        is_post = method == "POST"
        timeout_s = self._access.timeout_s
        end_s = boottime_s() + (timeout_s if is_post else READ_TIMEOUTS * timeout_s)
        failed: list[TemporaryError | PermanentError] = []
        for host in self._hosts():
            now_s = boottime_s()
            if now_s >= min(end_s, send_until_s):
                break
            try:
                answer = self._ask(host, method, path, parameters, Exchange(min(now_s + timeout_s, end_s), send_until_s))
            except HostError as error:
                failed.append(error.error)
                if host not in self._lines:  # it gave no answer at all; one that cannot reach another node may well answer the next request
                    self._rests_until_s[host] = boottime_s() + REST_S
            else:
                self._rests_until_s.pop(host, None)
                return answer
        raise _sum_of(failed)

    def _hosts(self) -> list[str]:
        """The hosts in the order of the settings, those that failed lately at the end."""
        if not self._access.hosts:
            raise PermanentError("no host is set to ask for PVE's API", "set api.hosts, on a node to [localhost]")
        now_s = boottime_s()
        return sorted(dict.fromkeys(self._access.hosts), key=lambda host: self._rests_until_s.get(host, 0.0) > now_s)

    def _ask(self, host: str, method: str, path: str, parameters: Mapping[str, Parameter], limits: Exchange) -> object:
        """One request to one host, once more if the first try was spoilt by something that has since been put right.

        That is: the certificate on disk or the token was renewed, or the server had closed a kept connection under a GET.
        """
        self.last = host
        has_repeated = False
        while True:
            line = self._line(host)
            exchange = line.wire.exchange = replace(limits)
            if method == "POST":
                line.wire.disconnect()  # a kept connection may break as the request goes out, and nobody would know what became of it
            answer, error = through_proxmoxer(line.api, method, path, parameters)
            self.requests_made += exchange.is_sent
            if exchange.status is None and error is None:
                error = ValueError("proxmoxer sent nothing")
            if exchange.status is None:
                self._hang_up(host)
            if not has_repeated and self._is_worth_repeating(host, line, exchange, method, error):
                has_repeated = True
                self._hang_up(host)
                continue
            if exchange.status is not None:
                line.wire.exchange = Exchange()  # an answer may be of some megabytes, and the next is a while away
                return judged_answer(self._access, host, line, exchange, method, path, answer, error)
            raise judged_silence(self._access, host, line, exchange, method, path, error)

    def _is_worth_repeating(self, host: str, line: Line, exchange: Exchange, method: str, error: Exception | None) -> bool:
        if exchange.status is not None:
            return exchange.status == 401 and secret_of(self._access) != line.secret
        if not exchange.is_sent:
            return line.fingerprint is not None and is_about_tls(error) and pin_of(self._access, host) != line.fingerprint
        return method == "GET" and not exchange.is_connected_anew and not is_timeout(error)

    def _line(self, host: str) -> Line:
        line = self._lines.get(host)
        if line is None:
            line = self._lines[host] = self._open(host)
        return line

    def _hang_up(self, host: str) -> None:
        line = self._lines.pop(host, None)
        if line is not None:
            line.wire.close()  # type: ignore[no-untyped-call]

    def _open(self, host: str) -> Line:
        access = self._access
        user, _, name = access.token_id.rpartition("!")
        if "@" not in user or not name:
            raise PermanentError(f"{access.token_id!r} is not the id of an API token", "set api.token_id to user@realm!name")
        secret = secret_of(access)
        fingerprint = pin_of(access, host)
        wire = Wire(authorities_of(access, host) if fingerprint is None else False, fingerprint)
        address, port = split_host(host)
        return open_line(f"https://{address}:{port}/api2/json", access.token_id, secret, wire, fingerprint, access.timeout_s)


def _sum_of(failed: list[TemporaryError | PermanentError]) -> OutsideError:
    """One error for all hosts: permanent only if it is so for each."""
    if not failed:
        return TemporaryError("timed out before the request was sent")
    if len(failed) == 1:
        return failed[0]
    text = "; ".join(map(str, failed))
    hints = [error.hint for error in failed if isinstance(error, PermanentError)]
    return PermanentError(text, hints[0]) if len(hints) == len(failed) else TemporaryError(text)

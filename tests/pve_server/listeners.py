# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTPS endpoints: several of one cluster, each the API server of one node."""

from __future__ import annotations

import dataclasses
import socket
import ssl
from pathlib import Path

from aiohttp import web

from tests.pve_server.faults import FaultyApi
from tests.pve_server.state import StateError


@dataclasses.dataclass
class Listener:
    """One endpoint. `node` empty: the next node that has none. `taken`: keeps its port while nobody listens there."""

    host: str
    port: int
    node: str
    context: ssl.SSLContext | None = None
    site: web.SockSite | None = None
    taken: socket.socket | None = None


def parse_listener(text: str) -> Listener:
    """Read [NODE=]HOST:PORT, an IPv6 address in brackets."""
    node, found, address = text.rpartition("=")
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        raise StateError(f"--listen takes [NODE=]HOST:PORT, not {text!r}")
    return Listener(host.strip("[]"), int(port), node if found else "")


class Listeners:
    """All endpoints of a server."""

    def __init__(self, pve: FaultyApi, listeners: list[Listener]) -> None:
        self.pve = pve
        self.items = listeners
        names = list(pve.spec.nodes)
        for number, item in enumerate(listeners):
            item.node = item.node or names[number % len(names)]
            if item.node not in names:
                raise StateError(f"--listen: no node {item.node!r}")

    def hosts(self, node: str) -> list[str]:
        """Where a node's endpoints are."""
        return [item.host for item in self.items if item.node == node]

    async def start(self, certificates: dict[str, tuple[Path, Path]]) -> None:
        """Listen on all of them, each with its node's certificate."""
        self.pve.runner = web.AppRunner(self.pve._build_app(), access_log=None, shutdown_timeout=0.1)
        await self.pve.runner.setup()
        for item in self.items:
            item.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            item.context.load_cert_chain(*certificates[item.node])
            await self._open(item)
        self.name_nodes()

    async def _open(self, item: Listener) -> None:
        listening, item.taken = item.taken or _taken(item), None
        item.port = listening.getsockname()[1]
        item.site = web.SockSite(self.pve.runner, listening, ssl_context=item.context)
        await item.site.start()

    def name_nodes(self) -> None:
        """Tell the cluster which endpoint is which node."""
        self.pve.listener_nodes = {(item.host, item.port): item.node for item in self.items if item.node in self.pve.nodes}

    async def set_up(self, index: int, up: bool) -> None:
        """Close an endpoint with everything connected to it, or open it again on its port."""
        item = self.items[index]
        if up and item.site is None:
            await self._open(item)
        elif not up and item.site is not None:
            await item.site.stop()
            item.site, item.taken = None, _taken(item)
            for connection in list(self.pve.runner.server.connections):
                transport = getattr(connection, "transport", None)
                if transport is not None and transport.get_extra_info("sockname")[:2] == (item.host, item.port):
                    transport.abort()

    async def stop(self) -> None:
        await self.pve.end_running()
        await self.pve.runner.cleanup()
        for item in self.items:
            if item.taken is not None:
                item.taken.close()


def _taken(item: Listener) -> socket.socket:
    """Return a socket at the endpoint's address that does not listen yet: it refuses connections, and nobody else gets the port."""
    made = socket.socket(socket.AF_INET6 if ":" in item.host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before may not be over
    made.bind((item.host, item.port))
    return made

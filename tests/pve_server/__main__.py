# SPDX-License-Identifier: GPL-3.0-or-later
"""Play a Proxmox VE cluster over HTTPS.

Prints one line of JSON when it is ready, and ends when its standard input is closed (so that it never outlives
the test that started it) or at SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path

from aiohttp import web

from tests.pve_server.certs import CA_FILE, make_certs
from tests.pve_server.control import Control
from tests.pve_server.faults import FaultyApi
from tests.pve_server.listeners import Listeners, parse_listener
from tests.pve_server.state import StateError, read_state


def main() -> int:
    """Run until told to end; 2 for a state or an option that makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m tests.pve_server", description=__doc__)
    parser.add_argument("--state", metavar="FILE", required=True, help="JSON; its keys are the fields in state.py")
    parser.add_argument("--listen", metavar="[NODE=]HOST:PORT", action="append", help="an endpoint (default 127.0.0.1:0); repeat for more")
    parser.add_argument(
        "--make-certs", metavar="DIR", type=Path, help="make DIR/pve-root-ca.pem and a certificate for each node, or use those there"
    )
    parser.add_argument("--cert", type=Path, help="one certificate for all endpoints, instead")
    parser.add_argument("--key", type=Path)
    options = parser.parse_args()
    if (options.make_certs is None) == (options.cert is None or options.key is None):
        parser.error("give either --make-certs or --cert and --key")
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # connections that a test breaks are no news
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        asyncio.run(_serve(options))
    except (StateError, OSError, json.JSONDecodeError) as error:
        print(f"pve_server: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(options: argparse.Namespace) -> None:
    pve = FaultyApi(read_state(json.loads(Path(options.state).read_text(encoding="utf-8"))))
    listeners = Listeners(pve, [parse_listener(text) for text in options.listen or ["127.0.0.1:0"]])
    if options.make_certs is not None:
        make_certs(options.make_certs, {node: [pve.node_ip(node), *listeners.hosts(node)] for node in pve.spec.nodes})
        homes = {node: options.make_certs / "nodes" / node for node in pve.spec.nodes}
        certificates = {node: (home / "pve-ssl.pem", home / "pve-ssl.key") for node, home in homes.items()}
    else:
        certificates = dict.fromkeys(pve.spec.nodes, (options.cert, options.key))
    await listeners.start(certificates)
    control = web.AppRunner(Control(pve, listeners).app(), access_log=None, shutdown_timeout=0.1)
    await control.setup()
    await web.TCPSite(control, "127.0.0.1", 0).start()
    ca_file = str(options.make_certs / CA_FILE) if options.make_certs else str(options.cert)
    endpoints = [{"node": item.node, "host": item.host, "port": item.port} for item in listeners.items]
    print(json.dumps({"ready": True, "control": control.addresses[0][1], "endpoints": endpoints, "ca_file": ca_file}), flush=True)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    with contextlib.suppress(PermissionError):  # a file or /dev/null never closes
        loop.add_reader(0, lambda: ended.set() if not os.read(0, 4096) else None)
    await ended.wait()
    await listeners.stop()
    await control.cleanup()


if __name__ == "__main__":
    sys.exit(main())

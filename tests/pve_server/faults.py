# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong with a call, and the record of every call that came in."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import time
import urllib.parse
from typing import Any

from aiohttp import web
from fakepve import schema as pve_schema
from fakepve.model import PveError
from fakepve.server import FORMATS, error

from tests.pve_server.ha import HaApi

MAX_RECORDED = 20000
NOT_RECORDED = ("password", "ticket")
ENTRY = web.RequestKey("entry", dict)

# What PVE 8 does not know. A method that is missing there answers 501, a parameter 400.
NINE_ONLY_METHODS = {("GET", "/nodes/{node}/lxc/{vmid}/migrate")}
NINE_ONLY_PATHS = ("/cluster/ha/rules", "/cluster/bulk-action")
NINE_ONLY_PARAMETERS = {("POST", "/nodes/{node}/qemu/{vmid}/migrate"): ("with-conntrack-state",)}
UNKNOWN_PARAMETER = "property is not defined in schema and the schema does not allow additional properties"


@dataclasses.dataclass
class Fault:
    """What happens to matching requests, `times` times (0: for ever) after the first `skip`.

    `path` is a schema path (/nodes/{node}/qemu/{vmid}/migrate) or a real one; None: any. `after_s` delays the
    request, which is then carried out whether or not the client still waits. `drop`: the connection breaks
    "before" or "after" the request is carried out. `status`: it is refused with that status and message.
    """

    method: str | None = None
    path: str | None = None
    node: str | None = None
    status: int | None = None
    message: str = "injected failure"
    body: str | None = None
    after_s: float = 0.0
    answer_after_s: float = 0.0
    drop: str | None = None
    times: int = 1
    skip: int = 0

    def __post_init__(self) -> None:
        if self.drop not in (None, "before", "after"):
            raise ValueError(f"drop is before or after, not {self.drop!r}")


class FaultyApi(HaApi):
    """The outermost layer: records, breaks, and keeps PVE 8 from knowing what only PVE 9 knows."""

    def apply(self, spec: Any) -> None:
        self.faults: list[Fault] = []
        self.recorded: list[dict[str, Any]] = []
        self.counters: collections.Counter[str] = collections.Counter()
        super().apply(spec)

    def _build_app(self) -> web.Application:
        app: web.Application = super()._build_app()
        app.middlewares.insert(0, self._outermost)
        return app

    @web.middleware
    async def _outermost(self, request: web.Request, handler: Any) -> web.StreamResponse:
        prefix = next((prefix for prefix in FORMATS if request.path.startswith(prefix + "/")), "")
        match = pve_schema.load().match(urllib.parse.unquote(request.rel_url.raw_path)[len(prefix) :])
        template = match.template if match else request.path[len(prefix) :]
        entry = self._note(request, template, await request.read())
        request[ENTRY] = entry
        fault = self._take_fault(request.method, template, request.path[len(prefix) :], match.params.get("node") if match else None)
        if fault is None:
            response = await handler(request)
            entry["status"] = response.status
            return response
        generation = self.generation
        await asyncio.sleep(fault.after_s)
        if fault.drop == "before" or generation != self.generation:
            return self._cut(request, entry)
        if fault.status is not None:
            entry["status"] = fault.status
            if fault.body is not None:
                return web.Response(status=fault.status, reason=fault.message, text=fault.body, content_type="text/html")
            return error(fault.status, fault.message)
        response = await handler(request)
        entry["status"] = response.status
        await asyncio.sleep(fault.answer_after_s)
        return self._cut(request, entry) if fault.drop == "after" else response

    @staticmethod
    def _cut(request: web.Request, entry: dict[str, Any]) -> web.Response:
        """Break the connection; what is returned reaches nobody."""
        entry["dropped"] = True
        transport: Any = request.transport
        if transport is not None:
            transport.abort()
        return web.Response()

    def _take_fault(self, method: str, template: str, path: str, node: str | None) -> Fault | None:
        for fault in self.faults:
            if fault.method in (None, method) and fault.path in (None, template, path) and fault.node in (None, node):
                if fault.skip > 0:
                    fault.skip -= 1
                    return None
                if fault.times:
                    fault.times -= 1
                    if not fault.times:
                        self.faults.remove(fault)
                return fault
        return None

    # ---- the record

    def _note(self, request: web.Request, template: str, body: bytes) -> dict[str, Any]:
        values: dict[str, Any] = dict(request.query)
        values |= _decoded(body, request.content_type)
        authorization = request.headers.get("Authorization", "")
        entry = {
            "time": time.time(),
            "method": request.method,
            "path": urllib.parse.unquote(request.path),
            "schema": template,
            "values": {key: "***" if any(word in key for word in NOT_RECORDED) else value for key, value in values.items()},
            "token": authorization.removeprefix("PVEAPIToken=").partition("=")[0] or None,
            "listener": self.local_node(request),
            "status": None,
            "made_up": False,
        }
        self.recorded.append(entry)
        self.counters[f"{request.method} {template}"] += 1
        del self.recorded[: max(len(self.recorded) - MAX_RECORDED, 0)]
        return entry

    def _record(self, request: web.Request, body: bytes) -> None:
        """fakepve's own record stays empty: `recorded` has it all."""

    # ---- the schema of the node that answers

    async def answer(self, request: web.Request, match: Any, params: Any, user: str, call: Any = None) -> Any:
        if match is not None:
            node = match.params.get("node")
            major = self.major(node if node in self.nodes else self.local_node(request))
            if major < 9:
                self._refuse_unknown_to_8(request, match, params)
            _refuse_loose_booleans(match.methods.get(request.method), params)
            if call is None:
                request[ENTRY]["made_up"] = True  # fakepve invents an answer from the schema
            if call is None and request.method != "GET" and not match.template.startswith("/access"):
                self.need_quorum()
        return await super().answer(request, match, params, user, call)

    @staticmethod
    def _refuse_unknown_to_8(request: web.Request, match: Any, params: Any) -> None:
        call = (request.method, match.template)
        if call in NINE_ONLY_METHODS or match.template.startswith(NINE_ONLY_PATHS):
            raise _not_implemented(request)
        unknown = [name for name in NINE_ONLY_PARAMETERS.get(call, ()) if name in params]
        if unknown:
            raise _bad_parameters(dict.fromkeys(unknown, UNKNOWN_PARAMETER))


def _refuse_loose_booleans(method: dict[str, Any] | None, params: dict[str, Any]) -> None:
    """PVE takes 0 and 1 alone; fakepve takes true, yes and on as well."""
    declared = ((method or {}).get("parameters") or {}).get("properties", {})
    wrong = {
        name: f"type check ('boolean') failed - got '{value}'"
        for name, value in params.items()
        if isinstance(value, str) and declared.get(name, {}).get("type") == "boolean" and value not in ("0", "1")
    }
    if wrong:
        raise _bad_parameters(wrong)


def _not_implemented(request: web.Request) -> Exception:
    path = request.path
    for prefix in FORMATS:
        path = path.removeprefix(prefix)
    return PveError(501, f"Method '{request.method} {path}' not implemented")


def _bad_parameters(fields: dict[str, str]) -> Exception:
    return PveError(400, "Parameter verification failed.", fields)


def _decoded(body: bytes, content_type: str) -> dict[str, Any]:
    if not body:
        return {}
    try:
        if content_type == "application/json":
            document = json.loads(body)
            return document if isinstance(document, dict) else {}
        return dict(urllib.parse.parse_qsl(body.decode()))
    except ValueError:
        return {}

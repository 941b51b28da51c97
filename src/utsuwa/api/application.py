"""Request processing: authentication, routing, authorization, and rendering of replies.

This is the only module that renders errors. It uses aiohttp's low-level server, without middlewares, and a
single table instead of aiohttp's router, to minimize the work per request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from aiohttp import web

from utsuwa.api import audit, cross_site
from utsuwa.api.bodies import CLOSING
from utsuwa.api.http import Background, Created, Empty, Raw, Request, Result, Route, Sync, etag_of
from utsuwa.api.routing import Router
from utsuwa.api.services import Services
from utsuwa.api.web_login import signed_in
from utsuwa.core.entitlements import Entitlement, Entity
from utsuwa.core.errors import InvalidRequest, Unavailable, UtsuwaError
from utsuwa.db.projects import Kind
from utsuwa.httpd.protocol import HttpServer
from utsuwa.operations.events import act_as
from utsuwa.operations.operations import SHUTTING_DOWN
from utsuwa.projects.scope import effective
from utsuwa.security.authorization import Access, Caller, authorize, require, scope_of
from utsuwa.security.server_config import METRICS_AUTHENTICATION
from utsuwa.wire.envelope import async_reply, error_reply, sync_reply

log = logging.getLogger(__name__)

Identify = Callable[[asyncio.BaseTransport], Caller]
"""Returns the caller of a connection, authenticated by its transport; called for every request."""

_EMPTY = sync_reply({})
_CREATED = sync_reply(None)
_INTERNAL = "Internal error: see the daemon's log"


class Application:
    """The API as a handler of aiohttp's low-level server, shared by all listeners."""

    def __init__(
        self,
        services: Services,
        routes: Iterable[Route],
        identify: Identify,
        *,
        unprivileged_only: bool = False,
    ) -> None:
        self._services = services
        self._router = Router(routes)
        self._identify = identify
        self._unprivileged_only = unprivileged_only

    def server(self) -> HttpServer:
        """A protocol factory for a listener; `shutdown()` it at the end."""
        return HttpServer(self.handle)

    async def handle(self, raw: web.BaseRequest) -> web.StreamResponse:
        try:
            response = await self._answer(raw)
        except BaseException:
            audit.record(raw, audit.CUT_OFF)
            raise
        audit.record(raw, response.status)
        if not response.prepared:
            response.headers.update(cross_site.reply_headers(raw))
            if raw.get(CLOSING):
                response.force_close()
        return response

    async def _answer(self, raw: web.BaseRequest) -> web.StreamResponse:
        try:
            return _render(await self._run(raw))
        except UtsuwaError as error:
            return _failed(raw, error.status, error.message, error.key)
        except web.HTTPException as error:
            return _failed(raw, error.status, error.text or error.reason, InvalidRequest.key)
        except web.RequestPayloadError:
            return _failed(raw, 400, "The request body was cut off, or is not valid HTTP", InvalidRequest.key)
        except ConnectionError:
            raise
        except Exception:
            log.exception("request failed: %s %s", raw.method, raw.rel_url.raw_path)
            return _failed(raw, 500, _INTERNAL, UtsuwaError.key)

    def _check_running(self, route: Route) -> None:
        """Raise Unavailable for changes while the daemon waits for the operations that run when it stops."""
        if self._services.operations.refuses_new and not (
            route.method == "GET" or route.concerns is Entity.OPERATION or route.path.startswith("/internal/")
        ):
            raise Unavailable(SHUTTING_DOWN)

    async def _require_of_holder(self, request: Request, project: str) -> None:
        """Check that inherited objects of `default` are only changed by callers with access to `default`."""
        entity, needs = request.route.concerns, request.route.needs
        kind = _FEATURES.get(entity)
        if kind is not None and needs is not Entitlement.CAN_VIEW:
            require(request.scope, entity, needs, await effective(self._services.database, project, kind))

    def _caller(self, raw: web.BaseRequest, transport: asyncio.BaseTransport) -> Caller:
        """Return the caller by the connection, or by a header of the request if that has no trusted one."""
        caller = self._identify(transport)
        if not caller.trusted and (header := raw.headers.get("Authorization")):
            caller = self._services.certificates.store.bearer(header, caller.address)
        return caller if caller.trusted else signed_in(raw, self._services, caller)

    async def _run(self, raw: web.BaseRequest) -> Result:
        if raw.transport is None:
            raise ConnectionResetError("the client has disconnected")
        caller = self._caller(raw, raw.transport)
        audit.note(raw, caller)
        cross_site.admit(raw, caller, self._services)
        if raw.method == "OPTIONS":  # a preflight request: only the headers of the reply matter
            return Raw(web.Response())
        method, path = raw.method, raw.rel_url.raw_path
        route, params = self._router.find(method, path)
        if route.access is not Access.METRICS or self._services.server.flag(METRICS_AUTHENTICATION):
            authorize(caller, route.access)
        self._check_running(route)
        if raw.headers.get("Expect", "").lower() == "100-continue":
            await _continue(raw)
        scope = scope_of(caller, self._unprivileged_only)
        request = Request(raw, self._services, route, params, caller, scope)
        if scope.restricted and route.access.is_judged(caller):
            require(scope, route.concerns, route.needs, request.object_project)
        # Handlers of projects look them up themselves; for all others, the project must exist.
        project = None if route.concerns is Entity.PROJECT else request.object_project
        if project is not None and scope.sees(project):
            await self._services.projects.check(project)
            if scope.restricted:
                await self._require_of_holder(request, project)
        if "recursion" in raw.rel_url.raw_query_string:
            _ = request.recursion  # an invalid value is rejected everywhere, even if it is not used
        actor = act_as(request.requestor)
        try:
            return await route.handler(request)
        finally:
            actor.active = False


_FEATURES: dict[Entity, Kind] = {
    Entity.IMAGE: "images",
    Entity.NETWORK: "networks",
    Entity.PROFILE: "profiles",
    Entity.STORAGE_VOLUME: "storage.volumes",
}


async def _continue(raw: web.BaseRequest) -> None:
    """Send 100 Continue to a client that waits before sending its body."""
    await raw.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    raw.writer.output_size = 0


def _render(result: Result) -> web.StreamResponse:
    match result:
        case Sync(metadata=metadata, etag=None):
            return _json(sync_reply(metadata))
        case Sync(metadata=metadata, etag=etag):
            return _json(sync_reply(metadata), headers={"ETag": f'"{etag_of(etag)}"'})
        case Empty():
            return _json(_EMPTY)
        case Created(location=location):
            return _json(_CREATED, 201, {"Location": location})
        case Background(operation=operation):
            body = async_reply(operation.url, operation.record())
            return _json(body, 202, {"Location": operation.url})
        case Raw(response=response):
            return response


def _failed(raw: web.BaseRequest, status: int, message: str, key: str) -> web.StreamResponse:
    """Return the error envelope; if a stream has already been started, abort it."""
    if raw.writer.output_size > 0:
        log.warning("a response was cut off: %s", message, extra={"url": raw.rel_url.raw_path})
        if raw.transport is not None:
            raw.transport.close()
        raise ConnectionAbortedError(message)
    return _json(error_reply(status, message, key), status, {"X-Content-Type-Options": "nosniff"})


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")

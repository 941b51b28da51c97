"""All endpoints of a daemon: unix socket, HTTPS addresses, and the loopback address of the web page."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import partial

from aiohttp import web

from utsuwa.api import debug, metrics
from utsuwa.api.application import Application
from utsuwa.api.routes import all_routes
from utsuwa.api.services import Services
from utsuwa.core.errors import Unavailable
from utsuwa.core.paths import StatePaths
from utsuwa.daemon.https import API_ADDRESS, DEBUG_ADDRESS, METRICS_ADDRESS, HttpsListener
from utsuwa.daemon.loopback import LoopbackListener
from utsuwa.daemon.serving import UnixListener, bind_unix, judge_group, socket_group, unix_peer
from utsuwa.httpd.protocol import HttpServer
from utsuwa.operations.retries import Retries
from utsuwa.security.authorization import Caller
from utsuwa.wire.envelope import error_reply


class Endpoints:
    """Binds the unix socket at `paths`, for `group`, unless systemd passed one."""

    def __init__(self, paths: StatePaths, group: str | None, passed_socket: socket.socket | None) -> None:
        self._path = paths.socket
        self._group = group
        self._passed_socket = passed_socket
        self._unix: UnixListener | None = None
        self._https: tuple[HttpsListener, ...] = ()
        self._loopback: LoopbackListener | None = None

    @property
    def https_address(self) -> str:
        """The current `host:port` of the API; empty if it is on the unix socket only."""
        return self._https[0].address if self._https else ""

    async def refuse(self, reason: Unavailable) -> None:
        """Open the unix socket before there is an API, and have all requests fail with the reason."""
        self._unix = self._bind(HttpServer(partial(_refuse, reason)))
        await self._unix.open()

    def serve(
        self,
        services: Services,
        loopback: LoopbackListener,
        retries: Retries,
        make_context: Callable[[], ssl.SSLContext],
        *,
        unprivileged_only: bool,
    ) -> None:
        """Create what serves the API, and follow the keys of the HTTPS addresses; `open` opens it.

        `make_context` creates the context for HTTPS, in a thread.
        """
        trust = services.certificates.store

        def identify(transport: asyncio.BaseTransport) -> Caller:
            return unix_peer(transport) or trust.caller(transport)

        self._services, self._loopback, self._retries = services, loopback, retries
        self._api = Application(services, all_routes(), identify, unprivileged_only=unprivileged_only)
        only_metrics = Application(services, metrics.ROUTES, identify)
        only_debug = Application(services, debug.ROUTES, identify)
        self._https = tuple(
            HttpsListener(key, serving.handle, make_context, trust, services.warnings, retries)
            for key, serving in (
                (API_ADDRESS, self._api),
                (METRICS_ADDRESS, only_metrics),
                (DEBUG_ADDRESS, only_debug),
            )
        )
        for listener in self._https:
            services.server.on_change(listener.config_changed)
        loopback.answer_with(self._api.handle)

    async def open(self) -> None:
        """Listen, on the unix socket last, as whoever finds it expects all to be there.

        Raises HostError if it cannot be bound; what is wrong with other addresses is a warning, and retried.
        """
        assert self._loopback is not None
        services = self._services
        unix = self._unix = self._unix or self._bind(self._api.server())
        if self._passed_socket is None:
            judge = partial(judge_group, services.warnings, self._path, self._group)
            await self._retries.begin("socket group", judge)
        for listener in self._https:
            await listener.open(services.server.value(listener.key.name))
        await self._loopback.resume()
        if unix.is_open:
            unix.answer_with(self._api.handle)
        else:
            await unix.open()

    def stop_accepting(self) -> None:
        """Accept no further connection on the unix socket."""
        if self._unix is not None:
            self._unix.stop_accepting()

    async def close(self) -> None:
        """Abort the requests that are left, after some seconds; may be called more than once."""
        listeners, self._https = self._https, ()
        for listener in reversed(listeners):
            await listener.close()
        if self._loopback is not None:
            await self._loopback.close()
        unix, self._unix = self._unix, None
        if unix is not None:
            await unix.close()

    def _bind(self, server: HttpServer) -> UnixListener:
        given = self._passed_socket
        bound = given or bind_unix(self._path, socket_group(self._group))
        return UnixListener(self._path, bound, server, ours=given is None)


async def _refuse(reason: Unavailable, _: web.BaseRequest) -> web.Response:
    """Respond to all requests while the database is not available, closing the connection."""
    body = error_reply(reason.status, reason.message, reason.key)
    response = web.Response(body=body, status=reason.status, content_type="application/json")
    response.force_close()
    return response

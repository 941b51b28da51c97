"""The loopback address of the web page, for local users: open while one of its sessions or tokens is valid.

It has a random host name below `localhost`, so that no other local service is the same site, and answers
requests to that name only: a page that resolves its own name to this address (DNS rebinding) gets nothing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from contextlib import suppress
from typing import Any

from aiohttp import web

from utsuwa.core.errors import Forbidden, HostError
from utsuwa.httpd.protocol import Handle, WatchedServer
from utsuwa.security.web_sessions import WebSessions
from utsuwa.wire.envelope import error_reply

log = logging.getLogger(__name__)

_ADDRESS = "127.0.0.1"
_CONNECTIONS = 256
_IDLE = 60.0
"""Seconds for the head of a request."""


class LoopbackListener:
    """Serves the API and the page to browsers on this host."""

    def __init__(self, sessions: WebSessions) -> None:
        self._sessions = sessions
        self._handle: Handle | None = None
        self._listening: asyncio.Server | None = None
        self._web: WatchedServer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._host = ""
        self._connections = 0

    def answer_with(self, handle: Handle) -> None:
        """Set what handles requests, before the first `open`."""
        self._handle = handle

    async def open(self) -> str:
        """Listen, and return the origin: `http://NAME.localhost:PORT`. Raises HostError."""
        async with self._opening:
            host, port = self._sessions.address
            if self._listening is None:
                try:
                    host, port = await self._listen(host, port)
                except OSError as error:
                    raise HostError(f"Cannot listen on {_ADDRESS}: {error}") from error
                await self._sessions.use_address(host, port)
            return f"http://{host}:{port}"

    async def resume(self) -> None:
        """Listen again for the sessions that are left from the daemon's last run."""
        if self._sessions.local_seconds > 0:
            try:
                await self.open()
            except HostError as error:
                log.warning("the web page is not served to local users: %s", error)

    async def close(self, grace: float = 3) -> None:
        """Stop listening, and abort requests after `grace` seconds."""
        if self._ending is not None:
            await asyncio.wait([self._ending])
        await self._stop(grace)

    async def _listen(self, host: str, port: int) -> tuple[str, int]:
        """Listen at the former address, or at a new one if there is none, or another program has it."""
        bound = None
        if port:
            with suppress(OSError):
                bound = _bind(port)
        if bound is None:
            bound = _bind(0)
            host, port = f"{secrets.token_hex(8)}.localhost", bound.getsockname()[1]
        self._host = f"{host}:{port}"
        self._web = WatchedServer(self._serve, self._begun, self._ended, idle=_IDLE)
        self._listening = await asyncio.get_running_loop().create_server(self._web, sock=bound)
        self._look_later()
        log.info("serving the web page to local users on %s", self._host)
        return host, port

    def _look_later(self) -> None:
        """Look when what is valid now has expired."""
        self._timer = asyncio.get_running_loop().call_later(self._sessions.local_seconds, self._look)

    def _look(self) -> None:
        self._ending = asyncio.create_task(self._end_if_unused(), name="the page's loopback address")

    async def _end_if_unused(self) -> None:
        async with self._opening:
            if self._sessions.local_seconds > 0:
                self._look_later()
            else:
                await self._stop(0)

    async def _stop(self, grace: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._listening is not None and self._web is not None:
            self._listening.close()
            self._web.pre_shutdown()
            await self._web.shutdown(grace)
            self._listening = None

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.getall("Host", ()) != [self._host]:
            wrong = Forbidden("This address answers to the name that `utsuwa webui` prints, and to no other")
            body = error_reply(wrong.status, wrong.message, wrong.key)
            return web.Response(body=body, status=wrong.status, content_type="application/json")
        assert self._handle is not None
        return await self._handle(request)

    def _begun(self, _handler: Any, transport: asyncio.Transport) -> None:
        self._connections += 1
        if self._connections > _CONNECTIONS:
            transport.abort()

    def _ended(self, _handler: Any) -> None:
        self._connections -= 1


def _bind(port: int) -> socket.socket:
    """Return a bound socket. Raises OSError."""
    new = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        new.setblocking(False)
        new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        new.bind((_ADDRESS, port))
    except BaseException:
        new.close()
        raise
    return new

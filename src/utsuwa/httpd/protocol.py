"""aiohttp's low-level server, with a custom reply to invalid HTTP.

aiohttp itself would reply in plain text and log a traceback, so that anyone could fill the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from utsuwa.core.errors import InvalidRequest
from utsuwa.wire.envelope import error_reply

log = logging.getLogger(__name__)

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_LIMIT = 8190
"""Maximum size of the request line and of a header, in bytes."""


_IDLE = 3630.0
_LINGERING = 10.0


class HttpServer(web.Server):
    """A protocol factory for listeners; `shutdown()` it at the end."""

    def __init__(self, handle: Handle, *, idle: float = _IDLE, lingering: float = _LINGERING) -> None:
        """`idle` is the time in seconds for the head of a request, since the connection or the last reply;
        `lingering` that for the rest of a body that the handler has not read."""
        super().__init__(handle)
        self._running_loop = asyncio.get_running_loop()
        self._idle = idle
        self._lingering = lingering

    def __call__(self) -> web.RequestHandler:
        # Bodies are not decompressed: a small compressed one must not become large.
        return _Protocol(
            self,
            loop=self._running_loop,
            access_log=None,  # type: ignore[arg-type] # as documented by aiohttp
            auto_decompress=False,
            max_line_size=_LIMIT,
            max_field_size=_LIMIT,
            keepalive_timeout=self._idle,
            lingering_time=self._lingering,
        )


class WatchedServer(HttpServer):
    """A server that reports new and closed connections."""

    def __init__(
        self,
        handle: Handle,
        begun: Callable[[Any, asyncio.Transport], None],
        ended: Callable[[Any], None],
        *,
        idle: float = _IDLE,
        lingering: float = _LINGERING,
    ) -> None:
        super().__init__(handle, idle=idle, lingering=lingering)
        self._begun = begun
        self._ended = ended

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._begun(handler, transport)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._ended(handler)


class _Protocol(web.RequestHandler):
    """One connection."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages and self._current_request is not None:
            self._judge_body(self._current_request.content)

    def _judge_body(self, content: StreamReader) -> None:
        """Tell who reads a body that the rest of it is not valid, which aiohttp only notes as a request."""
        said = self._messages[-1][0]
        if not content.is_eof() and not isinstance(said, RawRequestMessage):
            content.set_exception(web.RequestPayloadError(said.message))
            content.feed_eof()  # nothing more of it is waited for

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError):  # the client has disconnected, which is not an error
            raise exc
        if not isinstance(exc, HttpProcessingError) or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        log.debug("a request is not valid HTTP: %s", type(exc).__name__)
        if isinstance(exc, LineTooLong):
            status, said = 431, f"The address or a header of the request is longer than {_LIMIT} bytes"
        else:
            status, said = 400, "The request is not valid HTTP"
        body = error_reply(status, said, InvalidRequest.key)
        response = web.Response(body=body, status=status, content_type="application/json")
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.force_close()
        return response

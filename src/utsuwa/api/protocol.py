"""aiohttp's low-level server, with an answer of ours where a request is not even HTTP.

aiohttp itself would answer in plain text and write a traceback to the log, which anyone could fill so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from utsuwa.core.errors import InvalidRequest
from utsuwa.wire.envelope import error_reply

log = logging.getLogger(__name__)

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_LIMIT = 8190
"""Bytes of the request line, and of a header."""


class HttpServer(web.Server):
    """A protocol factory for listeners; `shutdown()` it at the end."""

    def __init__(self, handle: Handle) -> None:
        super().__init__(handle)
        self._running_loop = asyncio.get_running_loop()

    def __call__(self) -> web.RequestHandler:
        # Bodies stay as they were sent: a small compressed one must not become a large one here.
        return _Protocol(
            self,
            loop=self._running_loop,
            access_log=None,  # type: ignore[arg-type] # what aiohttp itself documents for none
            auto_decompress=False,
            max_line_size=_LIMIT,
            max_field_size=_LIMIT,
        )


class _Protocol(web.RequestHandler):
    """One connection."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError):  # the client has gone, which is no error
            raise exc
        if not isinstance(exc, HttpProcessingError) or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        log.debug("a request is no HTTP: %s", type(exc).__name__)
        if isinstance(exc, LineTooLong):
            status, said = 431, f"The address or a header of the request is longer than {_LIMIT} bytes"
        else:
            status, said = 400, "The request is not valid HTTP"
        body = error_reply(status, said, InvalidRequest.key)
        response = web.Response(body=body, status=status, content_type="application/json")
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.force_close()
        return response

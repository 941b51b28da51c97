"""Bodies of requests that are files: as chunks, or, for large ones, as the socket that they arrive on."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from typing import cast

from aiohttp import web

from utsuwa.instances.files.transfer import Taken

CLOSING = "closing"
"""Set in a request whose connection cannot be used after the reply."""
_LARGE = 4 * 1024 * 1024
"""Bytes that must be left for taking over a connection, which is closed afterwards."""


class UploadBody:
    """The body of one request."""

    def __init__(self, raw: web.BaseRequest) -> None:
        self._raw = raw

    def chunks(self) -> AsyncIterator[bytes]:
        return self._raw.content.iter_any()

    def take_over(self) -> Taken | None:
        """Take the rest of a large body from the socket, past aiohttp, which does not read from it any more.

        As its parser does not know what has been read, the connection is closed after the reply.
        None over TLS, and if the client has not said how much it sends.
        """
        raw, transport = self._raw, self._raw.transport
        if transport is None or raw.content_length is None or "Transfer-Encoding" in raw.headers:
            return None
        sock = cast(socket.socket | None, transport.get_extra_info("socket"))
        if sock is None or sock.family != socket.AF_UNIX:
            return None
        if raw.content_length - raw.content.total_bytes < _LARGE:
            return None
        received = b""
        # Taking data makes aiohttp parse what it holds; it does not read from the socket before this returns.
        while data := raw.content.read_nowait(-1):
            received += data
        left = raw.content_length - raw.content.total_bytes
        raw.content.feed_eof()
        raw[CLOSING] = True
        transport.pause_reading()
        return Taken(received, os.dup(sock.fileno()), left)

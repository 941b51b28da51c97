"""Connections that a request turns into a stream of bytes (`Connection: Upgrade`)."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from aiohttp import web

from utsuwa.api.http import Request
from utsuwa.core.errors import InvalidRequest

_LIMIT = 256 * 1024
"""Number of received bytes from which on the client has to wait."""


class UpgradedStream:
    """The stream of a connection; used by one task."""

    def __init__(self, request: Request, protocol: str) -> None:
        """Raises InvalidRequest if the client does not ask for this protocol."""
        if request.raw.headers.get("Upgrade", "").lower() != protocol:
            raise InvalidRequest("Missing or invalid upgrade header")
        self._raw = request.raw
        self._reader = asyncio.StreamReader(_LIMIT)
        self.response = web.StreamResponse(status=101, headers={"Upgrade": protocol, "Connection": "Upgrade"})
        self.response.force_close()

    async def open(self) -> None:
        """Accept the request: what follows on the connection is the stream."""
        if self._raw.transport is None:
            raise ConnectionResetError("the client has gone")
        self._reader.set_transport(self._raw.transport)
        self._raw.protocol.set_parser(cast(Any, self))
        await self.response.prepare(self._raw)

    async def read(self, size: int) -> bytes:
        """Read exactly `size` bytes. Raises EOFError at the end."""
        return await self._reader.readexactly(size)

    async def write(self, data: bytes) -> None:
        await self.response.write(data)

    def close(self) -> None:
        """Have the current or next `read` raise EOFError."""
        self._reader.feed_eof()

    # Called by aiohttp, as on its own parsers.

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._reader.feed_data(data)
        return False, b""

    def feed_eof(self) -> None:
        self._reader.feed_eof()

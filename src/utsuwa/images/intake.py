"""Receiving a known number of bytes from a connection straight into the buffers of a `Behind`.

By the way of an HTTP client, each byte is copied several times, and new memory is needed for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from utsuwa.images.behind import ROOM, Behind


class Intake(asyncio.BufferedProtocol):
    """Takes the place of a transport's protocol, until `receive` ends: the transport is then paused.

    That protocol is only told if the connection ends meanwhile.
    """

    def __init__(
        self, transport: asyncio.Transport, count: int, behind: Behind, note: Callable[[int], object]
    ) -> None:
        """`note` is called with the number of bytes of each piece."""
        self._transport = transport
        self._replaced = cast(asyncio.Protocol, transport.get_protocol())
        self._left = count
        self._behind = behind
        self._note = note
        self._room: memoryview | None = None
        self._used = 0
        self._event = asyncio.Event()
        """Set if a buffer is needed, or if nothing more comes."""
        self._ended: Exception | None = None

    async def receive(self, seconds: float, least: int) -> None:
        """Receive all bytes; what was put into the buffers may not be stored yet.

        Raises TimeoutError if less than `least` bytes come within `seconds` in which there is room for them,
        ConnectionError or another OSError if the connection ends before, and what storing has raised.
        """
        self._transport.pause_reading()
        self._transport.set_protocol(self)
        try:
            while self._left:
                if self._room is None:
                    self._room = await self._behind.room()
                self._event.clear()
                if self._ended is not None:
                    raise self._ended
                self._transport.resume_reading()
                await self._wait(seconds, least)
        finally:
            if not self._transport.is_closing():
                self._transport.pause_reading()
                self._transport.set_protocol(self._replaced)

    async def _wait(self, seconds: float, least: int) -> None:
        """Wait until a buffer is needed, or nothing more comes."""
        while True:
            before = self._left
            try:
                async with asyncio.timeout(seconds):
                    await self._event.wait()
                return
            except TimeoutError:
                if before - self._left < least:
                    raise

    def get_buffer(self, sizehint: int) -> memoryview:
        assert self._room is not None
        return self._room[self._used : self._used + self._left]

    def buffer_updated(self, count: int) -> None:
        assert self._room is not None
        self._used += count
        self._left -= count
        self._note(count)
        if self._left and self._used < ROOM:
            return
        self._behind.put(self._room[: self._used])
        self._used = 0
        self._room = self._behind.spare() if self._left else None
        if self._room is None:
            self._transport.pause_reading()
            self._event.set()

    def eof_received(self) -> bool | None:
        self._end(None)
        return self._replaced.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        self._replaced.connection_lost(exc)

    def pause_writing(self) -> None:
        self._replaced.pause_writing()

    def resume_writing(self) -> None:
        self._replaced.resume_writing()

    def _end(self, error: Exception | None) -> None:
        if self._ended is None:
            self._ended = error or ConnectionError(f"the connection has ended {self._left} bytes too early")
        self._event.set()

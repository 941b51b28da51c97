"""A visitor's shell, which outlives the connections of the browser."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import aiohttp
from aiohttp import web

from utsuwa.core.errors import UtsuwaError
from utsuwa.tryit.rest import Execution, Rest, settle
from utsuwa.wire.codec import InvalidBody, decode_json

log = logging.getLogger(__name__)

ENDED = 4000
"""The close code of a terminal whose session has ended."""
REPLACED = 4001
"""That of a terminal which was opened again elsewhere."""
_REPLAYED = 256 * 1024
"""Bytes of output that a browser gets when it connects again."""
_READ_AHEAD = 128 * 1024
"""Bytes of output that are read while there is no browser: then the shell has to wait for one."""
_SHELL = ["/bin/sh", "-c", "cd; if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi"]
_PAUSE = 1.0
"""Seconds until the next shell after the end of one."""
_TYPED_AHEAD = 4096
_CLOSE_SECONDS = 5
_SIZE = (80, 24)


class Terminal:
    """One shell at a time, and at most one browser that sees it."""

    def __init__(self, rest: Rest, container: str) -> None:
        self._rest = rest
        self._container = container
        self._size = _SIZE
        self._replay = bytearray()
        self._written = 0
        """Bytes of output so far, of which the last ones are in `_replay`."""
        self._shell: Execution | None = None
        self._typed_ahead = b""
        """What was typed while there was no shell."""
        self._viewer: web.WebSocketResponse | None = None
        self._left = time.monotonic()
        """When there was a browser last."""
        self._unseen = 0
        """Bytes of output since then."""
        self._arrived = asyncio.Event()
        """Set while there is a browser."""
        self._live = False
        """Whether the browser has got all earlier output."""
        self._task: asyncio.Task[None] | None = None

    @property
    def unseen_seconds(self) -> float:
        """For how long there has been no browser, 0 while there is one."""
        return time.monotonic() - self._left if self._viewer is None else 0.0

    async def attach(self, viewer: web.WebSocketResponse) -> None:
        """Show the shell to a connected browser until that leaves, or the session ends."""
        before, self._viewer, self._live = self._viewer, viewer, False
        self._unseen = 0
        self._arrived.set()
        if before is not None:
            await _close(before, REPLACED)
        if self._task is None:
            self._task = asyncio.create_task(self._serve(), name=f"terminal of {self._container}")
        try:
            await self._show_earlier(viewer)
            async for message in viewer:
                if message.type == aiohttp.WSMsgType.BINARY:
                    await self._type(bytes(message.data))
                elif message.type == aiohttp.WSMsgType.TEXT:
                    await self._obey(str(message.data))
        finally:
            if self._viewer is viewer:
                self._viewer, self._live, self._left = None, False, time.monotonic()
                self._arrived.clear()

    async def _show_earlier(self, viewer: web.WebSocketResponse) -> None:
        shown = 0
        while self._viewer is viewer and shown < self._written:
            begin = max(0, shown - (self._written - len(self._replay)))
            data, shown = bytes(self._replay[begin:]), self._written
            await viewer.send_bytes(data)
        if self._viewer is viewer:
            self._live = True

    async def resize(self, width: int, height: int) -> None:
        self._size = (width, height)
        if self._shell is not None:
            with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                await self._shell.resize(width, height)

    async def close(self) -> None:
        """End the shell, and tell the browser that the session has ended."""
        if self._task is not None:
            await settle(self._task)
        self._replay.clear()
        if self._viewer is not None:
            await _close(self._viewer, ENDED)

    async def _obey(self, text: str) -> None:
        try:
            message = decode_json(text.encode())
        except InvalidBody:
            return
        match message:
            case {"resize": [int(width), int(height)]} if 0 < width < 1000 and 0 < height < 1000:
                await self.resize(width, height)

    async def _type(self, data: bytes) -> None:
        if self._shell is None:
            self._typed_ahead = (self._typed_ahead + data)[:_TYPED_AHEAD]
            return
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            await self._shell.terminal.send_bytes(data)

    async def _serve(self) -> None:
        """Run shells, one after the other."""
        while True:
            try:
                await self._run_shell()
            except UtsuwaError as error:
                log.info("no shell in %s: %s", self._container, error.message)
            except Exception:
                log.exception("the shell in %s failed", self._container)
            await asyncio.sleep(_PAUSE)

    async def _run_shell(self) -> None:
        width, height = self._size
        shell = await self._rest.execute(self._container, _SHELL, width=width, height=height, control=True)
        self._shell = shell
        try:
            if ahead := self._typed_ahead:
                self._typed_ahead = b""
                await self._type(ahead)
            if self._size != (width, height):
                await self.resize(*self._size)
            async for message in shell.terminal:
                if message.type == aiohttp.WSMsgType.BINARY:
                    await self._show(bytes(message.data))
                elif message.type == aiohttp.WSMsgType.TEXT:
                    break  # the end of the stream
        finally:
            self._shell = None
            await shell.close()

    async def _show(self, data: bytes) -> None:
        self._written += len(data)
        self._replay += data
        if len(self._replay) > 2 * _REPLAYED:
            del self._replay[:-_REPLAYED]
        if self._viewer is None:
            self._unseen += len(data)
            if self._unseen >= _READ_AHEAD:
                await self._arrived.wait()
        elif self._live:
            # One that does not read delays the shell, until its connection is given up.
            with contextlib.suppress(ConnectionError):
                await self._viewer.send_bytes(data)


async def _close(viewer: web.WebSocketResponse, code: int) -> None:
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await viewer.close(code=code)

"""A terminal whose command outlives its websockets: a client that has lost them connects them again.

The last output is kept, so that the client gets what it has missed. A client that acknowledges what it has
shown gets a limited amount ahead of that: a browser has no other way to slow down what it is sent.

The first message on the data websocket is a text with two offsets in the stream: of the first byte that
follows, and of its end at this moment (what comes before that is a repetition, to which a terminal must not
reply). The latest connection counts: it closes one that it replaces with the code `REPLACED`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from typing import Any

import msgspec

from utsuwa.core.errors import Unavailable
from utsuwa.host.helper.client import Attached
from utsuwa.host.processes import pipes
from utsuwa.instances.commands.exec_streams import obey, parse_control, read_terminal, until_end
from utsuwa.operations.websocket import LastingWebSocket, WebSocket
from utsuwa.wire.exec import ExecControl

HISTORY = 256 * 1024
"""Bytes of output that are kept."""
REPLACED = 4001
"""The close code of a websocket that was connected again elsewhere."""

_LAST_WORDS = 5.0
"""Seconds for a client to take the rest of the output after the end, and to close a websocket."""


class History:
    """The last bytes of a stream, found by their offsets in it."""

    def __init__(self, size: int = HISTORY) -> None:
        self._size = size
        self._kept = bytearray()
        self.end = 0

    @property
    def start(self) -> int:
        """The first offset from which a client can begin."""
        return max(self._oldest, self.end - self._size)

    @property
    def _oldest(self) -> int:
        return self.end - len(self._kept)

    def append(self, data: bytes) -> None:
        """Add output of at most `pipes.CHUNK` bytes.

        As much is kept before the start, so that a client that has begun there can still read after that.
        """
        self._kept += data
        self.end += len(data)
        del self._kept[: max(0, len(self._kept) - self._size - pipes.CHUNK)]

    def read(self, offset: int, size: int) -> bytes:
        """Return at most `size` bytes from `offset`, which is not before what was the start lately."""
        first = offset - self._oldest
        return bytes(self._kept[first : first + max(0, size)])


class _Client:
    """A connected data websocket, and how far it is."""

    def __init__(self, socket: LastingWebSocket, offset: int, window: int) -> None:
        self.socket = socket
        self.sent = self.acknowledged = offset
        self._window = window
        self.replaced = asyncio.Event()
        self.left = asyncio.Event()

    @property
    def room(self) -> int:
        """How many bytes may be sent now."""
        ahead = self.sent - self.acknowledged
        return min(pipes.CHUNK, self._window - ahead) if self._window > 0 else pipes.CHUNK


class LastingTerminal:
    """The terminal of one command, for the duration of its operation."""

    def __init__(self, linger: float) -> None:
        """`linger` is for how many seconds the command may be without a client."""
        self._linger = linger
        self._history = History()
        self._client: _Client | None = None
        self._attached: Attached | None = None
        self._news = asyncio.Event()
        """Set and replaced by each change, for which any number of tasks may wait."""
        self._came = asyncio.Event()
        self._abandoned = asyncio.Event()
        self._over = asyncio.Event()
        self._complete = False
        self._timer: asyncio.TimerHandle | None = None

    async def wait_for_client(self, timeout: float) -> None:  # noqa: ASYNC109
        """Wait for the first connection. Raises Unavailable after the timeout."""
        try:
            async with asyncio.timeout(timeout):
                await self._came.wait()
        except TimeoutError:
            raise Unavailable("The client did not connect the websocket '0' in time") from None

    async def run(self, attached: Attached) -> int:
        """Serve clients until the command has ended, or had none for too long; return its exit code."""
        assert attached.master is not None
        os.set_blocking(attached.master, False)
        self._attached = attached
        self._tell()
        reading = asyncio.create_task(self._keep_output(attached))
        try:
            code = await until_end(attached, [reading], self._abandoned)
            self._complete = True
            self._tell()
            await self._let_client_finish()
            return code
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def close(self) -> None:
        """Disconnect the client; nothing uses the pty afterwards."""
        if self._timer is not None:
            self._timer.cancel()
        self._over.set()
        self._attached = None
        if self._client is not None:
            await self._client.left.wait()

    async def serve(self, name: str, socket: LastingWebSocket, *, offset: int, window: int) -> None:
        """Serve a connected websocket until it is lost, replaced, or the command has ended."""
        if name == "control":
            await self._until_over(self._control(socket))
        else:
            await self._serve_data(socket, offset, window)

    async def _serve_data(self, socket: LastingWebSocket, offset: int, window: int) -> None:
        start = max(self._history.start, min(offset, self._history.end))
        client = _Client(socket, start, window)
        before, self._client = self._client, client
        if self._timer is not None:
            self._timer.cancel()
        try:
            if before is not None:
                before.replaced.set()
                await before.left.wait()
            self._came.set()
            self._tell()
            await self._until_over(self._send(client), self._listen(socket), client.replaced.wait())
        finally:
            client.left.set()
            if self._client is client:
                self._client = None
            if self._client is None and not self._over.is_set():
                self._timer = asyncio.get_running_loop().call_later(self._linger, self._abandoned.set)
            self._tell()
        if client.replaced.is_set():
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(_LAST_WORDS):
                    await socket.close(code=REPLACED)

    async def _until_over(self, *works: Coroutine[Any, Any, object]) -> None:
        """Run until one of `works` is done, or the terminal is closed."""
        tasks = [asyncio.create_task(work) for work in (*works, self._over.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_output(self, attached: Attached) -> None:
        """Read the pty; ahead of a connected client only as far as it can still be sent what was read."""
        while data := await read_terminal(attached):
            self._history.append(data)
            self._tell()
            await asyncio.sleep(0)  # output without a pause must not keep others from running
            while self._client is not None and self._history.end - self._client.sent > HISTORY // 2:
                await self._news.wait()

    async def _send(self, client: _Client) -> None:
        history = self._history
        with contextlib.suppress(ConnectionError):
            offsets = {"offset": client.sent, "end": history.end}
            await client.socket.send_str(msgspec.json.encode(offsets).decode())
            while True:
                news = self._news
                if data := history.read(client.sent, client.room):
                    client.sent += len(data)
                    self._tell()
                    await client.socket.send_bytes(data)
                elif self._complete and client.sent == history.end:
                    await client.socket.send_str("")
                    return
                else:
                    await news.wait()

    async def _listen(self, socket: WebSocket) -> None:
        """Forward what is typed, until the client is gone."""
        attached = await self._started()
        while (message := await socket.read()) is not None:
            assert attached.master is not None
            with contextlib.suppress(OSError):  # the command has ended
                await pipes.write(attached.master, message.encode() if isinstance(message, str) else message)

    async def _control(self, socket: WebSocket) -> None:
        attached = await self._started()
        while (message := await socket.read()) is not None:
            match parse_control(message):
                case ExecControl(command="acknowledge", args=dict() as args):
                    self._acknowledge(args.get("offset", ""))
                case other:
                    await obey(attached, other)

    def _acknowledge(self, offset: str) -> None:
        client = self._client
        if client is not None and offset.isdecimal():
            client.acknowledged = max(client.acknowledged, min(int(offset[:20]), client.sent))
            self._tell()

    async def _started(self) -> Attached:
        while self._attached is None:
            await self._news.wait()
        return self._attached

    async def _let_client_finish(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                while self._client is not None:
                    await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

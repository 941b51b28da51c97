"""The websockets of a migration: messages on the one for control, streams of bytes on that for files.

A stream consists of binary messages and ends with an empty text message, in each direction; after that the
next stream follows on the same websocket.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TypeVar

from utsuwa.core.errors import InvalidRequest, Unavailable, UtsuwaError
from utsuwa.migration.messages import Control
from utsuwa.migration.protobuf import InvalidMessage, Message
from utsuwa.operations.websocket import WebSocket

CONNECT_SECONDS = 30
HEADER_SECONDS = 120
"""Seconds within which the other server must answer a header; a refresh may have to be prepared first."""
STALL_SECONDS = 600
"""Seconds for which a transfer may stand still: rsync compares large files without sending anything."""
MAX_DOCUMENT = 16 * 2**20
"""Maximum size of a stream that is a document, in bytes."""
_MAX_REASON = 500

M = TypeVar("M", bound=Message)


class Stream:
    """The websocket for files. Raises Unavailable if the other server disconnects or stands still."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self.moved = time.monotonic()
        """When something was last sent or received."""

    async def read(self) -> bytes | None:
        """Return the next part of the stream; None at its end."""
        message = await self._socket.read()
        if message is None:
            raise _gone()
        self.moved = time.monotonic()
        return message if isinstance(message, bytes) else None

    async def send(self, data: bytes) -> None:
        try:
            await self._socket.send_bytes(data)
        except (ConnectionError, RuntimeError) as error:
            raise _gone() from error
        self.moved = time.monotonic()

    async def end(self) -> None:
        """End the stream of this direction."""
        try:
            await self._socket.send_str("")
        except (ConnectionError, RuntimeError) as error:
            raise _gone() from error

    async def document(self) -> bytes:
        """Return a complete stream. Raises InvalidRequest if it is too large."""
        data = bytearray()
        while (part := await self.read()) is not None:
            data += part
            if len(data) > MAX_DOCUMENT:
                raise InvalidRequest("The other server sent a document that is too large")
        return bytes(data)

    async def watch(self) -> None:
        """Raise Unavailable once the transfer stands still."""
        while True:
            left = self.moved + STALL_SECONDS - time.monotonic()
            if left <= 0:
                raise Unavailable(f"The other server has not sent anything for {STALL_SECONDS} seconds")
            await asyncio.sleep(left)


class ControlChannel:
    """The websocket for control."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def send(self, message: Message) -> None:
        """Raises Unavailable."""
        try:
            await self._socket.send_bytes(message.encode())
        except (ConnectionError, RuntimeError) as error:
            raise _gone() from error

    async def receive(self, kind: type[M]) -> M:
        """Raises Unavailable if the other server has disconnected, InvalidRequest for anything else."""
        message = await self._socket.read()
        if message is None:
            raise _gone()
        try:
            if isinstance(message, str):
                raise InvalidMessage("it is text")
            return await asyncio.to_thread(kind.decode, message)
        except InvalidMessage as error:
            raise InvalidRequest(f"The other server sent an invalid message: {error}") from error

    async def receive_soon(self, kind: type[M]) -> M:
        """As `receive`, within `HEADER_SECONDS`."""
        try:
            async with asyncio.timeout(HEADER_SECONDS):
                return await self.receive(kind)
        except TimeoutError:
            raise Unavailable("The other server does not answer") from None

    async def verdict(self) -> None:
        """Wait for the other server's verdict. Raises InvalidRequest if it is a failure."""
        found = await self.receive(Control)
        if not found.success:
            raise InvalidRequest(f"The other server failed: {(found.message or 'no reason')[:_MAX_REASON]}")

    async def fail(self, error: BaseException) -> None:
        """Tell the other server that this one has failed, if it is still there."""
        text = error.message if isinstance(error, UtsuwaError) else "Internal error, or cancelled"
        with contextlib.suppress(UtsuwaError, TimeoutError):
            async with asyncio.timeout(5):
                await self.send(Control(success=False, message=text))


@contextlib.asynccontextmanager
async def reporting(control: ControlChannel) -> AsyncIterator[None]:
    """Tell the other server if the block fails."""
    try:
        yield
    except BaseException as error:
        await asyncio.shield(control.fail(error))
        raise


def _gone() -> Unavailable:
    return Unavailable("The connection to the other server was lost")

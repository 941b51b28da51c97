"""The websockets of a migration: messages on the one for control, streams of bytes on that for files.

A stream consists of binary messages and ends with an empty text message, in each direction; after that the
next stream follows on the same websocket. If both sides have agreed on it, other text messages are numbers of
zero bytes, of which preallocated files such as systemd's journal mostly consist.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeVar

from utsuwa.core.errors import InvalidRequest, Unavailable, UtsuwaError
from utsuwa.core.protobuf import InvalidMessage, Message
from utsuwa.core.threads import in_thread
from utsuwa.migration.messages import Control, Header
from utsuwa.migration.racing import all_of
from utsuwa.operations.websocket import WebSocket

CONNECT_SECONDS = 30
HEADER_SECONDS = 120
"""Seconds within which the other server must answer a header; a refresh may have to be prepared first."""
STALL_SECONDS = 600
"""Seconds for which a transfer may stand still: rsync compares large files without sending anything."""
MAX_DOCUMENT = 16 * 2**20
"""Maximum size of a stream that is a document, in bytes."""
_MAX_REASON = 500
_PART = 2**20
"""Bytes of a document in one message."""
_ZEROS = bytes(2**20)
"""As many as one message may stand for."""
_LEAST_ZEROS = 4096
_COUNT = re.compile(r"[1-9][0-9]{0,6}\Z")

M = TypeVar("M", bound=Message)


class Stream:
    """A websocket for files. Raises Unavailable if the other server disconnects or stands still."""

    def __init__(self, socket: WebSocket, beside: Stream | None = None) -> None:
        """What is transferred `beside` it counts as well: meanwhile, nothing need follow on this one."""
        self._socket = socket
        self._beside = beside
        self.moved = time.monotonic()
        """When something was last sent or received."""
        self._patience = float(STALL_SECONDS)
        self._hurried = asyncio.Event()
        self.counts_zeros = False
        """Whether both sides tell numbers of zero bytes in place of them."""
        self._held = 0
        """The zero bytes that the other side has not been told of yet."""

    async def read(self) -> bytes | memoryview | None:
        """Return the next part of the stream; None at its end. Raises InvalidRequest."""
        message = await self._socket.read()
        if message is None:
            raise _gone()
        self.moved = time.monotonic()
        if isinstance(message, bytes):
            return message
        if not message or not self.counts_zeros:
            return None
        await asyncio.sleep(0)  # what a few bytes stand for must not keep everything else waiting
        return _zeros(message)

    async def send(self, data: bytes, *, more: bool = False) -> int:
        """Send a part; return the number of bytes that were sent for it, and for others that have waited.

        If `more` follows whatever the other side does, zeros may wait for that.
        """
        sent = 0
        zeros = self.counts_zeros and len(data) >= _LEAST_ZEROS and _ZEROS.startswith(data)
        try:
            if self._held and (not zeros or self._held + len(data) > len(_ZEROS)):
                sent += await self._send_held()
            if zeros:
                self._held += len(data)
            else:
                await self._socket.send_bytes(data)
                sent += len(data)
            if not more:
                sent += await self._send_held()
        except (ConnectionError, RuntimeError) as error:
            raise _gone() from error
        self.moved = time.monotonic()
        return sent

    async def end(self) -> None:
        """End the stream of this direction."""
        try:
            await self._send_held()
            await self._socket.send_str("")
        except (ConnectionError, RuntimeError) as error:
            raise _gone() from error

    async def _send_held(self) -> int:
        message, self._held = str(self._held or ""), 0
        if message:
            await self._socket.send_str(message)
        return len(message)

    async def document(self) -> bytes:
        """Return a complete stream. Raises InvalidRequest if it is too large."""
        data = bytearray()

        async def collect() -> None:
            while (part := await self.read()) is not None:
                data.extend(part)
                if len(data) > MAX_DOCUMENT:
                    raise InvalidRequest("The other server sent a document that is too large")

        await all_of(collect(), watched_by=self.watch())
        return bytes(data)

    async def send_document(self, data: bytes) -> None:
        """Send a complete stream. Raises InvalidRequest if it is too large for the other server."""
        if len(data) > MAX_DOCUMENT:
            raise InvalidRequest("What has to be described to the other server is too much for it")
        for start in range(0, len(data), _PART):
            await self.send(data[start : start + _PART])
        await self.end()

    def hurry(self, seconds: float) -> None:
        """Let the transfer stand still for at most `seconds` from now on."""
        self.moved, self._patience = time.monotonic(), seconds
        self._hurried.set()

    async def watch(self) -> None:
        """Raise Unavailable once the transfer stands still from now on."""
        self.moved = time.monotonic()
        while True:
            moved = self.moved if self._beside is None else max(self.moved, self._beside.moved)
            left = moved + self._patience - time.monotonic()
            if left <= 0:
                raise Unavailable(
                    f"The other server has neither sent nor taken anything for {self._patience:g} seconds"
                )
            self._hurried.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._hurried.wait()


def _zeros(count: str) -> memoryview:
    """Return as many zero bytes as a message says, without a copy. Raises InvalidRequest."""
    if not _COUNT.match(count) or int(count) > len(_ZEROS):
        raise InvalidRequest("The other server sent an invalid number of zeros")
    return memoryview(_ZEROS)[: int(count)]


async def _decoded(kind: type[M], message: bytes | str) -> M:
    try:
        if isinstance(message, str):
            raise InvalidMessage("it is text")
        return await in_thread(kind.decode, message)
    except InvalidMessage as error:
        raise InvalidRequest(f"The other server sent an invalid message: {error}") from error


def check_verdict(verdict: Control) -> None:
    """Raise InvalidRequest with the other server's reason if it has failed."""
    if not verdict.success:
        raise InvalidRequest(f"The other server failed: {(verdict.message or 'no reason')[:_MAX_REASON]}")


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
        return await _decoded(kind, await self._read())

    async def _read(self) -> bytes | str:
        message = await self._socket.read()
        if message is None:
            raise _gone()
        return message

    async def receive_header(self) -> Header:
        """Return the other server's header within `HEADER_SECONDS`.

        Raises as `receive`, and InvalidRequest with its reason if it has failed before.
        """
        try:
            async with asyncio.timeout(HEADER_SECONDS):
                message = await self._read()
        except TimeoutError:
            raise Unavailable("The other server does not answer") from None
        try:
            return await _decoded(Header, message)
        except InvalidRequest:
            with contextlib.suppress(InvalidMessage):
                if isinstance(message, bytes):
                    check_verdict(Control.decode(message))
            raise

    async def verdict(self) -> None:
        """Wait for the other server's verdict. Raises InvalidRequest if it is a failure."""
        check_verdict(await self.receive(Control))

    async def fail(self, error: BaseException) -> None:
        """Tell the other server that this one has failed, if it is still there."""
        text = error.message if isinstance(error, UtsuwaError) else "Internal error, or cancelled"
        with contextlib.suppress(UtsuwaError, TimeoutError):
            async with asyncio.timeout(5):
                await self.send(Control(success=False, message=text))


@dataclass
class Report:
    """Whether the other server is told of a failure."""

    wanted: bool = True


@contextlib.asynccontextmanager
async def reporting(control: ControlChannel) -> AsyncIterator[Report]:
    """Tell the other server if the block fails, unless that is not `wanted`."""
    report = Report()
    try:
        yield report
    except BaseException as error:
        if report.wanted:
            await asyncio.shield(control.fail(error))
        raise


def _gone() -> Unavailable:
    return Unavailable("The connection to the other server was lost")

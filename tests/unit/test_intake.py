"""Bytes of a connection come straight into buffers, and no more of them than were asked for."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from utsuwa.images.behind import ROOM, Behind
from utsuwa.images.intake import Intake

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]
"""asyncio's own, and that of the daemon."""
DATA = os.urandom(3 * ROOM + 1000)
TAIL = b"what follows"


class Own(asyncio.Protocol):
    """The protocol of a connection, which is replaced for a while."""

    def __init__(self) -> None:
        self.received = b""
        self.lost = asyncio.Event()
        self.came = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.came.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


class Connection:
    """A connection with its other end, and what was stored of it."""

    def __init__(self, transport: asyncio.Transport, own: Own, other: socket.socket) -> None:
        self.transport, self.own, self.other = transport, own, other
        self.stored = b""
        self.noted = 0
        self.behind = Behind(self._store)

    def _store(self, data: memoryview) -> None:
        self.stored += data

    def _note(self, count: int) -> None:
        self.noted += count

    async def receive(self, count: int) -> None:
        await Intake(self.transport, count, self.behind, self._note).receive(20, 1)
        await self.behind.finish()

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self.other.sendall, data)


@asynccontextmanager
async def connected() -> AsyncIterator[Connection]:
    ours, other = socket.socketpair()
    with other:
        transport, own = await asyncio.get_running_loop().create_connection(Own, sock=ours)
        transport.pause_reading()
        try:
            yield Connection(transport, own, other)
        finally:
            transport.close()
            await own.lost.wait()


@pytest.mark.parametrize("loop", LOOPS)
def test_the_bytes_are_stored_and_what_follows_is_not(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def run() -> None:
        async with connected() as connection:
            sending = asyncio.create_task(connection.send(DATA + TAIL))
            await connection.receive(len(DATA))
            assert connection.stored == DATA
            assert connection.noted == len(DATA)
            assert not connection.own.received
            connection.transport.resume_reading()
            await sending
            await connection.own.came.wait()
            assert TAIL.startswith(connection.own.received)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


@pytest.mark.parametrize("loop", LOOPS)
def test_the_end_of_a_connection_is_told_to_its_protocol(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def run() -> None:
        async with connected() as connection:
            receiving = asyncio.create_task(connection.receive(len(DATA) + 1))
            await connection.send(DATA)
            connection.other.close()
            with pytest.raises(ConnectionError, match="1 bytes too early"):
                await receiving
            await connection.own.lost.wait()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())

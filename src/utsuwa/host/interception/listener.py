"""The daemon's side: the socket to which monitors of containers connect. asyncio, no threads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable

from utsuwa.core.errors import HostError

log = logging.getLogger(__name__)


class Listener:
    """Hands each connection to `serve`, which is awaited with its descriptor."""

    def __init__(self, bound: socket.socket, serve: Callable[[int], Awaitable[None]]) -> None:
        """`bound` is a listening, non-blocking socket of the type SOCK_SEQPACKET, closed with this object."""
        self._socket = bound
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        asyncio.get_running_loop().add_reader(self._socket, self._accept)

    async def close(self) -> None:
        """Stop listening; what has been handed over is served on."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            connection, _ = self._socket.accept()
            task = asyncio.get_running_loop().create_task(self._hand_over(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _hand_over(self, connection: socket.socket) -> None:
        """Pass a connection on. On failure it is closed, and the monitor connects again for the next call."""
        with connection:
            try:
                await self._serve(connection.fileno())
            except HostError as error:
                log.warning("cannot serve intercepted system calls: %s", error.message)

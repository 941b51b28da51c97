"""File descriptors on the event loop: wait until one is ready, read and write without blocking.

For pipes, ptys, sockets and pidfds. One waiter per descriptor and direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator

CHUNK = 128 * 1024
PIPE_SIZE = 1024 * 1024
_SO_SNDBUFFORCE = 32


@contextlib.contextmanager
def watched(fd: int, *, writing: bool = False) -> Iterator[asyncio.Future[None]]:
    """Yield a future that is done once `fd` is readable (or writable, or at its end)."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)
        (loop.remove_writer if writing else loop.remove_reader)(fd)

    (loop.add_writer if writing else loop.add_reader)(fd, wake)
    try:
        yield ready
    finally:
        (loop.remove_writer if writing else loop.remove_reader)(fd)


async def readable(fd: int) -> None:
    with watched(fd) as ready:
        await ready


async def writable(fd: int) -> None:
    with watched(fd, writing=True) as ready:
        await ready


async def read(fd: int, size: int = CHUNK) -> bytes:
    """Return the available bytes, at least one; empty at the end."""
    while True:
        try:
            return os.read(fd, size)
        except BlockingIOError:
            await readable(fd)


async def write(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data`. Raises OSError (EPIPE, EIO) if the other end is closed."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view[:CHUNK]) :]
        except BlockingIOError:
            await writable(fd)


def pipe() -> tuple[int, int]:
    """Create a pipe, with a large buffer if the host allows it; return its read and write ends."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(PermissionError):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return reading, writing


def wide_pipe() -> tuple[int, int]:
    """Create a pair of sockets that is used as a pipe is; return its read and write ends.

    It is for large amounts: the memory of a pipe is taken and given back page by page, which takes twice the
    processor time. If the reader leaves something behind, a writer that waits gets ECONNRESET, not EPIPE.
    """
    reading, writing = socket.socketpair()
    reading.shutdown(socket.SHUT_WR)
    with contextlib.suppress(PermissionError):
        writing.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, PIPE_SIZE // 2)  # which is doubled
    return reading.detach(), writing.detach()

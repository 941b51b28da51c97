"""Files of which a stream has the content, one after the other, and nothing in between."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from utsuwa.core.errors import InvalidRequest
from utsuwa.core.tasks import finish
from utsuwa.core.threads import in_thread
from utsuwa.migration.channel import Stream
from utsuwa.migration.racing import all_of

CHUNK = 1 << 20
"""Bytes of a part that is read at once."""


def contents(paths: Iterable[Path]) -> Iterator[bytes]:
    """Yield the content of files, one after the other, in parts. Blocking."""
    part = bytearray()
    for path in paths:
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                part += data
                if len(part) >= CHUNK:
                    yield bytes(part)
                    part.clear()
    if part:
        yield bytes(part)


class Extents:
    """Parts of files, as path, place and size in bytes, that a stream is written to, one after the other."""

    def __init__(self, extents: Iterable[tuple[Path, int, int]]) -> None:
        self._left = iter(extents)
        self._path: Path | None = None
        self._descriptor = -1
        self._at = self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Blocking. Raises InvalidRequest if there are too many bytes, OSError."""
        rest = memoryview(data)
        while rest:
            if not self._size and not self._next():
                raise InvalidRequest("The other server sent a file of another size than it said")
            written = os.pwrite(self._descriptor, rest[: self._size], self._at)
            self._at, self._size, rest = self._at + written, self._size - written, rest[written:]

    def complete(self) -> None:
        """Blocking. Raises InvalidRequest if bytes are missing, OSError."""
        if self._size or self._next():
            raise InvalidRequest("The other server sent a file of another size than it said")

    def _next(self) -> bool:
        """Begin with the next part that is not empty; return whether there is one. Creates files."""
        for path, at, size in self._left:
            self._at, self._size = at, size
            if path != self._path:
                self.close()
                self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._path = path
            if size:
                return True
        return False

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


async def send(stream: Stream, parts: Iterator[bytes], count: Callable[[int], None]) -> None:
    """Send parts, none of which is empty, as one stream; `count` is called with the bytes that are sent.

    Raises Unavailable, OSError.
    """

    async def read() -> None:
        while part := await in_thread(next, parts, b""):
            await stream.send(part)
            count(len(part))
        await stream.end()

    await all_of(read(), watched_by=stream.watch())


async def receive(stream: Stream, extents: Extents, count: Callable[[int], None]) -> None:
    """Receive a stream into parts of files; `count` is called with the bytes that are received.

    Raises InvalidRequest if it has another size than these, OSError, Unavailable.
    """

    async def write() -> None:
        while (part := await stream.read()) is not None:
            count(len(part))
            await in_thread(extents.write, part)
        await finish(asyncio.to_thread(extents.complete))  # creates all empty files that are left

    try:
        await all_of(write(), watched_by=stream.watch())
    finally:
        extents.close()

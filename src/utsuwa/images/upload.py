"""Receiving of images into temporary files, which are hashed, and removed unless they are used."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

from utsuwa.core.errors import OutOfSpace, TooLarge
from utsuwa.host import syscalls
from utsuwa.host.archives.check import SplitCheck
from utsuwa.host.archives.formats import START
from utsuwa.images.behind import ROOM, Behind
from utsuwa.images.store import TEMPORARY

Part = Literal["metadata", "rootfs"]
Take = Callable[[bytes | memoryview], object]
Rest = Callable[[Behind], Awaitable[None]]
"""Puts the rest of a part into buffers by itself."""
BeginCheck = Callable[[Path, Path, bytes], SplitCheck | None]
"""Begins the check of a split image, given its complete metadata, its rootfs, and how that begins."""

MAX_UPLOAD = 64 * 2**30
"""Maximum size of an upload in bytes."""
RESERVE = 64 * 2**20
"""Free space in bytes that uploads must leave for the daemon itself."""

_WRITEBACK = 8 * 1024 * 1024
"""Bytes after which the kernel begins to write them to disk, so that less is left to sync at the end."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def ignore(data: bytes | memoryview) -> None:
    """Take data and do nothing with it."""


class Upload:
    """The files of one upload; leaving the block removes those that still exist.

    The fingerprint of an image is the SHA-256 of its metadata file followed by its rootfs file, so the
    parts are received in that order.
    """

    def __init__(
        self, directory: Path, limit: int = MAX_UPLOAD, begin_check: BeginCheck = lambda *_: None
    ) -> None:
        self._base = directory / f"{TEMPORARY}{secrets.token_hex(8)}"
        self._directory = directory
        self._limit = limit
        self._hash = hashlib.sha256()
        self._parts: dict[Part, Path] = {}
        self._also: Take = ignore
        self._begin_check = begin_check
        self._written = 0
        self.ended = False
        """Whether its files have been used or removed."""
        self.check: SplitCheck | None = None
        """The check of a split image, which has begun already."""
        self.size = 0
        """Bytes received."""

    @property
    def metadata(self) -> Path:
        return self._parts["metadata"]

    @property
    def rootfs(self) -> Path | None:
        return self._parts.get("rootfs")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The received parts, in order."""
        return tuple(self._parts)

    @property
    def fingerprint(self) -> str:
        return self._hash.hexdigest()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.discard()

    async def discard(self) -> None:
        """Remove the remaining files, and end the check."""
        if self.check is not None:
            await self.check.stop()
        await asyncio.to_thread(self._remove)
        self.ended = True

    async def expect(self, size: int | None) -> None:
        """Check the announced size (None if unknown) before receiving it.

        Raises TooLarge, OutOfSpace.
        """
        if size is not None:
            await asyncio.to_thread(self._check_room, size)

    async def receive(
        self,
        part: Part,
        chunks: AsyncIterator[bytes],
        also: Take = ignore,
        rest: Rest | None = None,
    ) -> None:
        """Store one part, which `also` gets as well, in a thread: `chunks`, and then what `rest` puts there.

        Raises TooLarge, OutOfSpace, and whatever `chunks` and `rest` raise.
        """
        self._also = also
        file = await asyncio.to_thread(self._open, part)
        behind = Behind(lambda data: self._write(file, data))
        beginning = part == "rootfs"
        try:
            # Copied into buffers that stay: new memory for every piece would cost more than the copying.
            room, used = await behind.room(), 0
            async for chunk in chunks:
                left = memoryview(chunk)
                while left:
                    count = min(len(left), ROOM - used)
                    room[used : used + count] = left[:count]
                    used, left = used + count, left[count:]
                    if beginning and used >= START:
                        beginning = False
                        self.check = self._begin_check(self.metadata, self._path(part), bytes(room[:START]))
                    if used == ROOM:
                        behind.put(room)
                        room, used = await behind.room(), 0
            behind.put(room[:used])
            if rest is not None:
                await rest(behind)
            await behind.finish()
        finally:
            await behind.abandon()
            await asyncio.to_thread(file.close)

    @property
    def directory(self) -> Path:
        """The directory of its files."""
        return self._directory

    @contextlib.contextmanager
    def writing(self, part: Part) -> Iterator[Callable[[bytes], None]]:
        """Store one part, whose pieces the block passes on. Blocking. They raise TooLarge, OutOfSpace."""
        with self._open(part) as file:
            yield lambda data: self._write(file, data)

    @contextlib.contextmanager
    def made(self, part: Part) -> Iterator[Path]:
        """Have one part be a file that the block creates. Blocking. Raises TooLarge."""
        self._parts[part] = path = self._path(part)
        yield path
        with path.open("rb", buffering=0) as file:
            while data := file.read(ROOM):
                self._hash.update(data)
                self.size += len(data)
        if self.size > self._limit:
            raise _too_large(self._limit)

    def sync(self) -> None:
        """Write what was received to disk. Blocking."""
        for path in self._parts.values():
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def _path(self, part: Part) -> Path:
        return self._base.with_name(f"{self._base.name}.{part}")

    def _open(self, part: Part) -> BinaryIO:
        path = self._path(part)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._parts[part] = path
        return os.fdopen(handle, "wb")

    def _write(self, file: BinaryIO, data: bytes | memoryview) -> None:
        self._check_room(len(data))
        try:
            file.write(data)
            file.flush()
        except OSError as error:
            if error.errno in _FULL:
                raise _no_space() from error
            raise
        self._written += len(data)
        if self._written >= _WRITEBACK:
            self._written = 0
            syscalls.start_writeback(file.fileno())
        self._hash.update(data)
        self._also(data)
        self.size += len(data)

    def _check_room(self, size: int) -> None:
        if self.size + size > self._limit:
            raise _too_large(self._limit)
        disk = os.statvfs(self._directory)
        if size + RESERVE > disk.f_bavail * disk.f_frsize:
            raise _no_space()

    def _remove(self) -> None:
        for path in self._parts.values():
            path.unlink(missing_ok=True)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The image is larger than {limit} bytes")


def _no_space() -> OutOfSpace:
    return OutOfSpace("No space left for the image: free some space in the state directory and try again")

"""Requests for single files: retrieve, push and delete, streamed."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from utsuwa.core.errors import InvalidRequest, NotFound, UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.core.tasks import finish
from utsuwa.host.files.filetree import translated
from utsuwa.host.helper.calls import BUFFER
from utsuwa.host.helper.session import FileSession
from utsuwa.host.processes import pipes
from utsuwa.instances.context import Context
from utsuwa.instances.files.access import FileAccess
from utsuwa.instances.files.sftp import SftpServer, Stream

Type = Literal["file", "directory", "symlink"]
Pushed = Type | Literal["archive"]

MAX_TARGET = 4095
"""Maximum length of a symlink's target in bytes, as in the kernel."""
_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o750


@dataclass(frozen=True)
class Attributes:
    """What a client sees of a file, and the headers of its reply contain."""

    type: Pushed
    uid: int
    gid: int
    mode: int
    size: int
    """0 if it is not known."""
    modified_ns: int


class Retrieved:
    """A file's beginning, or all of a directory or a symlink."""

    def __init__(
        self,
        attributes: Attributes,
        *,
        names: list[str] | None = None,
        data: bytes = b"",
        rest: AsyncIterator[bytes] | None = None,
    ) -> None:
        self.attributes = attributes
        self.names = names
        """Of a directory, otherwise None."""
        self.data = data
        """The beginning of a file, or a symlink's target."""
        self.rest = rest
        """What follows in a large file; it ends with the size that `attributes` has. All of an archive."""


@dataclass(frozen=True)
class Upload:
    """What to create; only new files get mode and owner. None for the default mode."""

    type: Pushed = "file"
    uid: int = 0
    gid: int = 0
    mode: int | None = None
    append: bool = False


class Body(Protocol):
    """The content of an upload."""

    def chunks(self) -> AsyncIterator[bytes]: ...

    def take_over(self) -> Taken | None:
        """Stop the iteration over the chunks, to read the rest from the socket, if that is possible."""


@dataclass(frozen=True)
class Taken:
    """The rest of a body whose socket is read directly. Always `close` it."""

    received: bytes
    """What has been read from the socket already."""
    sock: int
    """A non-blocking descriptor."""
    size: int
    """Number of bytes that are still to be read from it."""

    def close(self) -> None:
        os.close(self.sock)


class FileManager:
    """The files of instances."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.access = FileAccess(ctx)
        self._streams: set[Stream] = set()

    async def check(self, ref: InstanceRef) -> None:
        """Raise what `serve_sftp` would fail with for an instance that cannot be reached."""
        async with self.access.session(ref):
            pass

    async def serve_sftp(self, ref: InstanceRef, stream: Stream) -> None:
        """Serve a client until it leaves, or the daemon ends."""
        self._streams.add(stream)
        try:
            await SftpServer(self.access, ref, stream).serve()
        finally:
            self._streams.discard(stream)

    def disconnect(self) -> None:
        """Disconnect the clients of SFTP, when the daemon ends."""
        for stream in self._streams:
            stream.close()

    async def attributes(self, ref: InstanceRef, path: str) -> Attributes:
        """Describe a file without following a symlink. Raises NotFound, InvalidRequest for a special file."""
        async with self.access.session(ref) as session:
            with explained(path):
                entry = await session.stat(path)
                if not stat.S_ISREG(entry[0]) and _type_of(entry[0]) == "file":
                    await session.pull(path)  # raises what says which type it is
        return _attributes(entry)

    @asynccontextmanager
    async def retrieve(
        self, ref: InstanceRef, path: str, *, archive: bool = False
    ) -> AsyncIterator[Retrieved]:
        """Read a file, a directory or a symlink; what it yields is valid within the block.

        With `archive`, a directory is an archive of all that is in it.
        Raises NotFound, InvalidRequest (a special file), Forbidden, Busy, HostError.
        """
        async with self.access.session(ref) as session:
            with explained(path):
                found, data = await session.pull(path)
            attributes, handle = _attributes(found["entry"]), found["handle"]
            self._ctx.lifecycle("file-retrieved", ref, {"path": _shown(path)})
            if archive and found["names"] is not None:
                async with aclosing(_packed(session, path)) as parts:
                    yield Retrieved(replace(attributes, type="archive", size=0), rest=parts)
                return
            if found["target"] is not None:
                data = found["target"].encode(errors="surrogateescape")
            rest = None if handle is None else _rest(session, path, handle, len(data), attributes.size)
            yield Retrieved(attributes, names=found["names"], data=data, rest=rest)
            if handle is not None:
                with explained(path):
                    await session.release(handle)

    async def push(self, ref: InstanceRef, path: str, upload: Upload, body: Body) -> None:
        """Create a file, a directory or a symlink, or write to an existing file, or unpack an archive.

        A file changes only when all of its content has arrived; an existing one keeps its inode. An existing
        directory stays as it is, as does a symlink with the same target. Of an archive that is cut off or
        refused, the members before stay.
        Raises as `retrieve`, AlreadyExists, OutOfSpace.
        """
        if upload.type == "archive":
            await self._unpack(ref, path, body.chunks())
            return
        owner = (upload.uid, upload.gid)
        async with self.access.session(ref) as session:
            with _without_directory(path), explained(path):
                match upload.type:
                    case "directory":
                        await _make_directory(session, path, upload.mode, owner)
                    case "symlink":
                        await _make_symlink(session, path, await _target(body.chunks()), owner)
                    case "file":
                        await _write(session, path, upload, body)
        self._ctx.lifecycle("file-pushed", ref, {"path": _shown(path)})

    async def _unpack(self, ref: InstanceRef, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Unpack a tar archive below a directory; one part is unpacked while the next is received."""
        async with self.access.session(ref) as session:
            unpacking: asyncio.Task[None] | None = None
            first = True
            try:
                async for part, last in _pieces(chunks):
                    if unpacking is not None:
                        await unpacking
                    unpacking = asyncio.create_task(self._unpack_part(session, ref, path, part, first, last))
                    first = False
                if unpacking is not None:
                    await finish(unpacking)
            except BaseException:
                if unpacking is not None:
                    with suppress(Exception):
                        await finish(unpacking)
                session.close()  # its worker may be in the middle of a member
                raise

    async def _unpack_part(
        self, session: FileSession, ref: InstanceRef, path: str, part: memoryview, first: bool, last: bool
    ) -> None:
        with explained(path):
            unpacked = await session.unpack(path, part, first=first, last=last)
        for created in unpacked["created"]:
            self._ctx.lifecycle("file-pushed", ref, {"path": _shown(created)})
        if unpacked["failure"] is not None:
            number, reason, failed = unpacked["failure"]
            with _without_directory(failed or "/"), explained(failed or "/"):
                raise OSError(number, reason)

    async def delete(self, ref: InstanceRef, path: str) -> None:
        """Remove a file or an empty directory; a symlink is not followed."""
        async with self.access.session(ref) as session:
            with explained(path):
                await session.call("remove", path)
        self._ctx.lifecycle("file-deleted", ref, {"path": _shown(path)})


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Translate the OSErrors of a session into errors for the caller."""
    try:
        yield
    except ConnectionError:  # of the client, whose request is read within
        raise
    except OSError as error:
        raise translated(error, _shown(path)) from error


@contextmanager
def _without_directory(path: str) -> Iterator[None]:
    """What is to be created and "does not exist" lacks the directory that it is to be in."""
    try:
        yield
    except NotFound as error:
        raise NotFound(
            f"{_shown(path)} cannot be created: its directory does not exist: create that first, "
            "or use `utsuwa file push -p`"
        ) from error


def _shown(path: str) -> str:
    return path.encode(errors="surrogateescape").decode(errors="replace")


def _type_of(mode: int) -> Type:
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "file"


def _attributes(entry: tuple[int, int, int, int, int, int]) -> Attributes:
    mode, uid, gid, size, _accessed, modified = entry
    return Attributes(_type_of(mode), uid, gid, stat.S_IMODE(mode), size, modified)


async def _packed(session: FileSession, path: str) -> AsyncGenerator[bytes, None]:
    """Yield the parts of the archive of a directory."""
    first = more = True
    try:
        while more:
            with explained(path):
                data, more = await session.pack(path, first=first)
            first = False
            yield data
    finally:
        if more:
            session.close()  # its worker may be in the middle of a file


async def _rest(session: FileSession, path: str, handle: int, offset: int, size: int) -> AsyncIterator[bytes]:
    with explained(path):
        await session.share(handle)
    while offset < size:
        with explained(path):
            data = await session.read(handle, min(BUFFER, size - offset), offset)
        if not data:
            return  # it has become shorter meanwhile
        yield data
        offset += len(data)


async def _make_directory(session: FileSession, path: str, mode: int | None, owner: tuple[int, int]) -> None:
    try:
        await session.call("make_directory", path, _DIRECTORY_MODE if mode is None else mode, owner)
    except FileExistsError:
        if not stat.S_ISDIR((await session.stat(path, follow=True))[0]):
            raise


async def _make_symlink(session: FileSession, path: str, target: str, owner: tuple[int, int]) -> None:
    try:
        await session.call("make_symlink", path, target, owner)
    except FileExistsError:
        if not stat.S_ISLNK((await session.stat(path))[0]) or await session.call("target", path) != target:
            raise


async def _target(chunks: AsyncIterator[bytes]) -> str:
    target = bytearray()
    async for chunk in chunks:
        target += chunk
        if len(target) > MAX_TARGET:
            raise InvalidRequest(f"The target of a symlink is longer than {MAX_TARGET} bytes")
    if not target:
        raise InvalidRequest("No target given: send the symlink's target as the body")
    return target.decode(errors="surrogateescape")


async def _write(session: FileSession, path: str, upload: Upload, body: Body) -> None:
    parts = _parts(body.chunks())
    first, more = await anext(parts)
    handle = await session.push(
        path,
        first[:BUFFER] if more else first,
        append=upload.append,
        mode=_FILE_MODE if upload.mode is None else upload.mode,
        owner=(upload.uid, upload.gid),
        more=more,
    )
    if more:
        try:
            taken = body.take_over() if await session.share(handle) else None
            if taken is not None:
                size = await _receive_rest(session, handle, first[BUFFER:], taken)
            else:
                size = await _write_rest(session, handle, first[BUFFER:], parts)
        except BaseException:
            with suppress(OSError, UtsuwaError):  # the session itself may have ended
                await session.release(handle)
            raise
        await session.commit(handle, size)


async def _write_rest(
    session: FileSession, handle: int, first: bytearray, parts: AsyncIterator[tuple[bytearray, bool]]
) -> int:
    """Write what follows the first part; one part is written while the next is received.

    Returns the size of the whole file.
    """
    offset = BUFFER + len(first)
    writing = asyncio.create_task(session.write(handle, first, BUFFER))
    try:
        async for part, _ in parts:
            await writing
            writing = asyncio.create_task(session.write(handle, part, offset))
            offset += len(part)
    finally:
        await finish(writing)
    return offset


async def _receive_rest(session: FileSession, handle: int, first: bytearray, taken: Taken) -> int:
    """As `_write_rest`, with what follows read from the socket by the kernel."""
    try:
        offset = BUFFER
        for data in (first, taken.received):
            await session.write(handle, data, offset)
            offset += len(data)
        end = offset + taken.size
        while offset < end:
            moved = await session.receive(handle, taken.sock, end - offset, offset)
            if not moved:
                await pipes.readable(taken.sock)
            offset += moved
    finally:
        taken.close()
    return offset


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[memoryview, bool]]:
    """Join chunks to pieces that fit the buffer; yield each with whether it is the last."""
    async for part, more in _parts(chunks):
        view = memoryview(part)
        while len(view) > BUFFER:
            yield view[:BUFFER], False
            view = view[BUFFER:]
        yield view, not more


async def _parts(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytearray, bool]]:
    """Join chunks to parts that are larger than the buffer; yield each with whether more may follow.

    The last one is of any size up to that of the buffer.
    """
    part = bytearray()
    async for chunk in chunks:
        part += chunk
        if len(part) > BUFFER:
            yield part, True
            part = bytearray()
    yield part, False

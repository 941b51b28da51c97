"""An SFTP server for the files of one instance, over a connection that carries nothing else.

LXD serves the bare protocol without SSH, so that libraries for SSH servers cannot be used as they are made.
Requests are answered one after the other: clients may send many ahead.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import posixpath
import stat
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Protocol

from utsuwa.core.errors import NotFound, UtsuwaError
from utsuwa.core.refs import InstanceRef
from utsuwa.host.helper.replies import HelperGone
from utsuwa.host.helper.session import FileSession
from utsuwa.instances.files import sftp_packets as packets
from utsuwa.instances.files.access import FileAccess
from utsuwa.instances.files.sftp_packets import BadMessage, Entry, Reader, Status, Type

log = logging.getLogger(__name__)

MAX_PACKET = 256 * 1024 + 1024
"""Maximum size of a packet in bytes, as of OpenSSH."""
MAX_READ = 256 * 1024
MAX_HANDLES = 256
_NAMES = 100
"""Number of names in a reply to READDIR."""
_IDLE_SECONDS = 1.0
"""After this, a client that has no file open does not keep the instance any more."""

_VERSION = 3
_EXTENSIONS = {
    "posix-rename@openssh.com": "1",
    "statvfs@openssh.com": "2",
    "hardlink@openssh.com": "1",
    "fsync@openssh.com": "1",
    "lsetstat@openssh.com": "1",
}
_STATUS = {
    errno.ENOENT: Status.NO_SUCH_FILE,
    errno.ENOTDIR: Status.NO_SUCH_FILE,
    errno.EACCES: Status.PERMISSION_DENIED,
    errno.EPERM: Status.PERMISSION_DENIED,
    errno.EROFS: Status.PERMISSION_DENIED,
}


class Stream(Protocol):
    """The connection to the client."""

    async def read(self, size: int) -> bytes:
        """Read exactly `size` bytes. Raises EOFError at the end."""

    async def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        """Have the current or next `read` raise EOFError."""


class SftpServer:
    """Serves one client. A session is held only while files are open or requests follow each other."""

    def __init__(self, access: FileAccess, instance: InstanceRef, stream: Stream) -> None:
        self._access = access
        self._instance = instance
        self._stream = stream
        self._lease = AsyncExitStack()
        self._session: FileSession | None = None
        self._files: dict[int, int] = {}
        """The session's handles of open files, by the client's."""
        self._folders: dict[int, list[tuple[str, Entry]]] = {}
        """What READDIR has yet to return."""
        self._next = 0

    async def serve(self) -> None:
        """Answer until the client leaves or breaks the protocol."""
        try:
            with suppress(EOFError):
                while True:
                    await self._stream.write(await self._answer(await self._receive()))
        except BadMessage as error:
            log.info("an SFTP client is disconnected: %s", error)
        finally:
            await self._lease.aclose()

    async def _receive(self) -> bytes:
        """Wait for a packet; a client that is silent for a while gives its session back."""
        header = asyncio.ensure_future(self._stream.read(4))
        try:
            if self._session is not None and not self._files:
                await asyncio.wait([header], timeout=_IDLE_SECONDS)
                if not header.done():
                    await self._release()
            size = int.from_bytes(await header, "big")
        finally:
            header.cancel()
        if not 1 <= size <= MAX_PACKET:
            raise BadMessage(f"a packet of {size} bytes")
        return await self._stream.read(size)

    async def _answer(self, data: bytes) -> bytes:
        reader = Reader(data)
        kind = reader.byte()
        if kind == Type.INIT:
            pairs = [packets.string(text) for pair in _EXTENSIONS.items() for text in pair]
            return packets.packet(Type.VERSION, packets.number(_VERSION), *pairs)
        request = reader.number()
        if self._session is not None and self._session.closed:
            await self._release()
        operation = _OPERATIONS.get(kind)
        if operation is None:
            return packets.status(request, Status.UNSUPPORTED)
        try:
            return await operation(self, request, reader)
        except HelperGone:
            await self._release()
            return packets.status(request, Status.FAILURE, "The instance was stopped or changed meanwhile")
        except NotFound as error:
            return packets.status(request, Status.NO_SUCH_FILE, error.message)
        except UtsuwaError as error:
            await self._release()
            return packets.status(request, Status.FAILURE, error.message)
        except ConnectionError:
            raise
        except OSError as error:
            code = _STATUS.get(error.errno or 0, Status.FAILURE)
            return packets.status(request, code, error.strerror or "")

    async def _at(self) -> FileSession:
        if self._session is None:
            session = self._access.session(self._instance)
            self._session = await self._lease.enter_async_context(session)
        return self._session

    async def _release(self) -> None:
        """Give the session back; files that were open are gone."""
        self._session = None
        self._files.clear()
        lease, self._lease = self._lease, AsyncExitStack()
        with suppress(UtsuwaError):
            await lease.aclose()

    def _new_handle(self) -> int:
        if len(self._files) + len(self._folders) >= MAX_HANDLES:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self._next += 1
        return self._next

    def _file(self, reader: Reader) -> int:
        """Return the session's handle of an open file. Raises OSError for one that is not open."""
        try:
            return self._files[int.from_bytes(reader.string(), "big")]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    async def _open(self, request: int, reader: Reader) -> bytes:
        path, wanted, attributes = reader.path(), reader.number(), reader.attributes()
        handle, session = self._new_handle(), await self._at()
        flags = {packets.READ: os.O_RDONLY, packets.WRITE: os.O_WRONLY}.get(wanted & 3, os.O_RDWR)
        if wanted & packets.APPEND:
            flags |= os.O_APPEND
        if wanted & packets.TRUNCATE:
            flags |= os.O_TRUNC
        if not wanted & packets.CREATE:
            if wanted == packets.READ and stat.S_ISDIR((await session.stat(path, follow=True))[0]):
                self._files[handle] = await session.open_directory(path)  # as Incus' client does
            else:
                self._files[handle] = await session.open(path, flags)
        else:
            if wanted & packets.EXCLUSIVE:
                flags |= os.O_EXCL
            mode = 0o644 if attributes.mode is None else attributes.mode
            self._files[handle], _ = await session.create(path, flags, mode, attributes.owner or (0, 0))
        return _handle(request, handle)

    async def _close(self, request: int, reader: Reader) -> bytes:
        handle = int.from_bytes(reader.string(), "big")
        if self._folders.pop(handle, None) is None:
            file = self._files.pop(handle, None)
            if file is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            await (await self._at()).release(file)
        return packets.status(request, Status.OK)

    async def _read(self, request: int, reader: Reader) -> bytes:
        file, offset, size = self._file(reader), reader.long(), reader.number()
        data = await (await self._at()).read(file, min(size, MAX_READ), offset)
        if not data and size:
            return packets.status(request, Status.EOF)
        return packets.packet(Type.DATA, packets.number(request), packets.string(data))

    async def _write(self, request: int, reader: Reader) -> bytes:
        file, offset, data = self._file(reader), reader.long(), reader.string()
        await (await self._at()).write(file, data, offset)
        return packets.status(request, Status.OK)

    async def _lstat(self, request: int, reader: Reader) -> bytes:
        return _attributes(request, await (await self._at()).stat(reader.path()))

    async def _stat(self, request: int, reader: Reader) -> bytes:
        return _attributes(request, await (await self._at()).stat(reader.path(), follow=True))

    async def _fstat(self, request: int, reader: Reader) -> bytes:
        return _attributes(request, await (await self._at()).call("entry", self._file(reader)))

    async def _setstat(self, request: int, reader: Reader, *, follow: bool = True) -> bytes:
        path, wanted, session = reader.path(), reader.attributes(), await self._at()
        if wanted.size is not None:
            file = await session.open(path, os.O_WRONLY)
            try:
                await session.call("truncate", file, wanted.size)
            finally:
                await session.release(file)
        await session.call("change", path, follow, wanted.owner, wanted.mode, wanted.times)
        return packets.status(request, Status.OK)

    async def _fsetstat(self, request: int, reader: Reader) -> bytes:
        file, wanted, session = self._file(reader), reader.attributes(), await self._at()
        if wanted.size is not None:
            await session.call("truncate", file, wanted.size)
        await session.call("change_open", file, wanted.owner, wanted.mode, wanted.times)
        return packets.status(request, Status.OK)

    async def _opendir(self, request: int, reader: Reader) -> bytes:
        handle = self._new_handle()
        found = await (await self._at()).call("entries", reader.path())
        self._folders[handle] = [(name, entry) for name, entry in found]
        return _handle(request, handle)

    async def _readdir(self, request: int, reader: Reader) -> bytes:
        left = self._folders.get(int.from_bytes(reader.string(), "big"))
        if left is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if not left:
            return packets.status(request, Status.EOF)
        names = [packets.name(*found) for found in left[:_NAMES]]
        del left[:_NAMES]
        return packets.packet(Type.NAME, packets.number(request), packets.number(len(names)), *names)

    async def _remove(self, request: int, reader: Reader) -> bytes:
        await (await self._at()).call("remove", reader.path())
        return packets.status(request, Status.OK)

    async def _mkdir(self, request: int, reader: Reader) -> bytes:
        path, wanted = reader.path(), reader.attributes()
        mode = 0o755 if wanted.mode is None else wanted.mode
        await (await self._at()).call("make_directory", path, mode, wanted.owner or (0, 0))
        return packets.status(request, Status.OK)

    async def _realpath(self, request: int, reader: Reader) -> bytes:
        path = posixpath.normpath(f"/{reader.path()}").replace("//", "/")
        return packets.packet(Type.NAME, packets.number(request), packets.number(1), packets.name(path, None))

    async def _rename(self, request: int, reader: Reader, *, replace: bool = False) -> bytes:
        await (await self._at()).call("rename", reader.path(), reader.path(), replace)
        return packets.status(request, Status.OK)

    async def _readlink(self, request: int, reader: Reader) -> bytes:
        target = await (await self._at()).call("target", reader.path())
        return packets.packet(
            Type.NAME, packets.number(request), packets.number(1), packets.name(target, None)
        )

    async def _symlink(self, request: int, reader: Reader) -> bytes:
        target, path = os.fsdecode(reader.string()), reader.path()  # OpenSSH has them in this order
        await (await self._at()).call("make_symlink", path, target, (0, 0))
        return packets.status(request, Status.OK)

    async def _extended(self, request: int, reader: Reader) -> bytes:
        match os.fsdecode(reader.string()):
            case "posix-rename@openssh.com":
                return await self._rename(request, reader, replace=True)
            case "lsetstat@openssh.com":
                return await self._setstat(request, reader, follow=False)
            case "hardlink@openssh.com":
                await (await self._at()).call("link", reader.path(), reader.path())
                return packets.status(request, Status.OK)
            case "fsync@openssh.com":
                await (await self._at()).call("sync", self._file(reader))
                return packets.status(request, Status.OK)
            case "statvfs@openssh.com":
                bsize, frsize, blocks, free, avail, files, ffree, favail, flag, most = await (
                    await self._at()
                ).call("space", reader.path())
                values = (bsize, frsize, blocks, free, avail, files, ffree, favail, 0, flag, most)
                fields = [value.to_bytes(8, "big") for value in values]
                return packets.packet(Type.EXTENDED_REPLY, packets.number(request), *fields)
            case _:
                return packets.status(request, Status.UNSUPPORTED)


def _handle(request: int, handle: int) -> bytes:
    return packets.packet(Type.HANDLE, packets.number(request), packets.string(handle.to_bytes(4, "big")))


def _attributes(request: int, entry: Entry) -> bytes:
    return packets.packet(Type.ATTRS, packets.number(request), packets.attributes(entry))


_OPERATIONS: dict[int, Callable[[SftpServer, int, Reader], Awaitable[bytes]]] = {
    Type.OPEN: SftpServer._open,
    Type.CLOSE: SftpServer._close,
    Type.READ: SftpServer._read,
    Type.WRITE: SftpServer._write,
    Type.LSTAT: SftpServer._lstat,
    Type.FSTAT: SftpServer._fstat,
    Type.SETSTAT: SftpServer._setstat,
    Type.FSETSTAT: SftpServer._fsetstat,
    Type.OPENDIR: SftpServer._opendir,
    Type.READDIR: SftpServer._readdir,
    Type.REMOVE: SftpServer._remove,
    Type.MKDIR: SftpServer._mkdir,
    Type.RMDIR: SftpServer._remove,
    Type.REALPATH: SftpServer._realpath,
    Type.STAT: SftpServer._stat,
    Type.RENAME: SftpServer._rename,
    Type.READLINK: SftpServer._readlink,
    Type.SYMLINK: SftpServer._symlink,
    Type.EXTENDED: SftpServer._extended,
}

"""The daemon's side of a session with a worker of the helper (see `calls`): asyncio, no threads."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import select
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from utsuwa.core.errors import HostError
from utsuwa.core.tasks import finish
from utsuwa.host.files import splicing
from utsuwa.host.helper import protocol
from utsuwa.host.helper.calls import BUFFER
from utsuwa.host.helper.messages import Call, Pulled
from utsuwa.host.helper.replies import HelperGone, judge, receive
from utsuwa.host.processes import pipes

if TYPE_CHECKING:
    from utsuwa.host.files.confined import Entry
    from utsuwa.host.helper.messages import Packed, Unpacked

CALL_TIMEOUT = 30.0
"""Seconds for one call: a file system inside may be served by a process that does not answer."""
_COPY_RATE = 10 * 1024 * 1024
"""Bytes per second that a file system copies at least, if it is not stuck."""
_END_TIMEOUT = 5.0

Owner = tuple[int, int]
"""The user and group id of a new file."""

Send = Callable[[Sequence[int]], Awaitable[socket.socket]]
"""Sends the request of a session with these descriptors; returns the socket for its reply."""


class Session:
    """A worker that serves calls, one at a time. Always `close` it, which kills the worker."""

    def __init__(self, lifeline: socket.socket, calls: socket.socket, worker: int) -> None:
        self._lifeline = lifeline
        self._calls = calls
        self._worker = worker
        """A pidfd."""
        self._turn = asyncio.Lock()
        self._ending: asyncio.Task[None] | None = None
        self.closed = False

    async def _call(self, name: str, *args: object) -> Any:
        """Make a call; `_turn` is held. Raises OSError as the call does, HostError, HelperGone."""
        return (await self._exchange(name, *args))[0]

    async def _exchange(
        self, name: str, *args: object, fds: Sequence[int] = (), more_seconds: float = 0
    ) -> tuple[Any, list[int]]:
        """Make a call with descriptors; return its result and the descriptors that it passes."""
        if self.closed:
            raise HelperGone
        call: Call = {"call": name, "args": args}
        seconds = CALL_TIMEOUT + more_seconds
        try:
            async with asyncio.timeout(seconds):
                protocol.send(self._calls, call, fds)
                reply, passed = await receive(self._calls)
        except TimeoutError:
            self.close()
            raise HostError(f"The instance's file system did not respond within {seconds:g} s") from None
        except OSError as error:
            self.close()
            raise HelperGone from error
        except BaseException:  # the next call would get the reply to this one
            self.close()
            raise
        if "errno" in reply:
            raise OSError(reply["errno"], reply["error"])
        return reply["ok"], passed

    async def call(self, name: str, *args: object, fds: Sequence[int] = ()) -> Any:
        """Make a call that does not use the buffer of `FileCalls`, with descriptors."""
        async with self._turn:
            return (await self._exchange(name, *args, fds=fds))[0]

    @property
    def lost(self) -> bool:
        """Whether the worker has ended although the session was not closed."""
        poller = select.poll()
        poller.register(self._worker, select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._lifeline.close()
            # Not closed yet: a call may still be waiting for its reply.
            with contextlib.suppress(OSError):
                self._calls.shutdown(socket.SHUT_RDWR)

    async def end(self) -> None:
        """Close the session and wait until its worker has released everything that it had open."""
        self.close()
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_TIMEOUT):
                await pipes.readable(self._worker)
        os.close(self._worker)
        self._calls.close()


async def begin(send: Send, *fds: int) -> tuple[socket.socket, socket.socket, int]:
    """Request a session with these descriptors; return what a `Session` consists of."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    lifeline: socket.socket | None = None
    try:
        with theirs:
            lifeline = await send((theirs.fileno(), *fds))
        async with asyncio.timeout(CALL_TIMEOUT):
            answer, passed = await receive(lifeline)
        judge(answer)
    except BaseException:
        ours.close()
        if lifeline is not None:
            lifeline.close()
        raise
    return lifeline, ours, passed[0]


class FileSession(Session):
    """A session for the files below a directory. Ids are those inside the container.

    Methods raise OSError as the system calls do, HostError if the file system does not respond.
    """

    def __init__(
        self, lifeline: socket.socket, calls: socket.socket, worker: int, buffer: memoryview
    ) -> None:
        super().__init__(lifeline, calls, worker)
        self._buffer = buffer
        self.handles: set[int] = set()
        """Of the files that are open."""
        self._shared: dict[int, int] = {}
        """Descriptors of some of them, which this process reads and writes itself."""

    @classmethod
    async def begin(cls, send: Send, root: int, user_namespace: int | None) -> Self:
        memory = os.memfd_create("file-content", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, BUFFER)
            buffer = memoryview(mmap.mmap(memory, BUFFER))
            namespace = () if user_namespace is None else (user_namespace,)
            return cls(*await begin(send, root, memory, *namespace), buffer)
        finally:
            os.close(memory)

    async def pull(self, path: str) -> tuple[Pulled, bytes]:
        """Read a file's beginning, a directory or a symlink; the bytes are those of the file."""
        async with self._turn:
            found: Pulled = await self._call("pull", path)
            if found["handle"] is not None:
                self.handles.add(found["handle"])
            return found, bytes(self._buffer[: found["size"]])

    async def push(
        self, path: str, data: bytes | bytearray, *, append: bool, mode: int, owner: Owner, more: bool
    ) -> int:
        """Write a file; if `more` follows, return the handle of an upload, to be committed or released."""
        async with self._turn:
            self._buffer[: len(data)] = data
            handle: int = await self._call("push", path, append, mode, owner, len(data), more)
            if more:
                self.handles.add(handle)
            return handle

    async def commit(self, handle: int, size: int) -> None:
        """Complete an upload of `size` bytes: only now does the file have its content."""
        async with self._turn:
            self._forget(handle)
            await self._exchange("commit", handle, more_seconds=size / _COPY_RATE)

    async def unpack(self, path: str, data: memoryview, *, first: bool, last: bool) -> Unpacked:
        """Unpack the next part of a tar archive, of up to `BUFFER` bytes, below a directory."""
        async with self._turn:
            self._buffer[: len(data)] = data
            unpacked: Unpacked = await self._call("unpack", path, len(data), first, last)
            return unpacked

    async def pack(self, path: str, *, first: bool) -> tuple[bytes, bool]:
        """Return the next part of the tar archive of a directory, and whether more follows."""
        async with self._turn:
            packed: Packed = await self._call("pack", path, first)
            return bytes(self._buffer[: packed["size"]]), packed["more"]

    async def open(self, path: str, flags: int) -> int:
        """Open an existing regular file; return a handle."""
        handle: int = await self.call("open", path, flags)
        self.handles.add(handle)
        return handle

    async def open_directory(self, path: str) -> int:
        """Open a directory, of which nothing can be read; return a handle."""
        handle: int = await self.call("open_directory", path)
        self.handles.add(handle)
        return handle

    async def create(self, path: str, flags: int, mode: int, owner: Owner) -> tuple[int, bool]:
        """Open a regular file, or create it; return a handle, and whether the file was created."""
        handle, created = await self.call("create", path, flags, mode, owner)
        self.handles.add(handle)
        return handle, created

    async def release(self, handle: int) -> None:
        """Close a file."""
        async with self._turn:
            self._forget(handle)
            await self._call("close", handle)

    def _forget(self, handle: int) -> None:
        self.handles.discard(handle)
        if (fd := self._shared.pop(handle, None)) is not None:
            os.close(fd)

    async def share(self, handle: int) -> bool:
        """Have further reads and writes of a file done by threads of this process; return if that can be."""
        async with self._turn:
            _, fds = await self._exchange("share", handle)
            self._shared.update((handle, fd) for fd in fds)
            return bool(fds)

    async def receive(self, handle: int, sock: int, size: int, offset: int) -> int:
        """Move up to `size` bytes from a non-blocking socket into a shared file; see `splicing`."""
        async with self._turn:
            fd = self._opened(handle)
            if fd is None:
                raise ValueError("the file is not shared")
            return await finish(asyncio.to_thread(splicing.from_socket, sock, fd, offset, size))

    async def _end(self) -> None:
        async with self._turn:  # no thread uses them any more
            while self._shared:
                os.close(self._shared.popitem()[1])
        await super()._end()

    async def read(self, handle: int, size: int, offset: int) -> bytes:
        """Read up to `BUFFER` bytes; none at the end of the file."""
        async with self._turn:
            if (fd := self._opened(handle)) is not None:
                return await finish(asyncio.to_thread(os.pread, fd, min(size, BUFFER), offset))
            count: int = await self._call("read", handle, min(size, BUFFER), offset)
            return bytes(self._buffer[:count])

    async def write(self, handle: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        async with self._turn:
            view = memoryview(data)
            if (fd := self._opened(handle)) is not None:
                await finish(asyncio.to_thread(_write_all, fd, view, offset))
                return
            while view:
                part = view[:BUFFER]
                self._buffer[: len(part)] = part
                await self._call("write", handle, len(part), offset)
                view, offset = view[BUFFER:], offset + len(part)

    def _opened(self, handle: int) -> int | None:
        """Return the descriptor of a shared file; `_turn` is held. Raises HelperGone."""
        if self.closed:
            raise HelperGone
        return self._shared.get(handle)

    async def stat(self, path: str, *, follow: bool = False) -> Entry:
        mode, uid, gid, size, accessed, modified = await self.call("stat", path, follow)
        return mode, uid, gid, size, accessed, modified


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count

"""Forwarding of a running command's streams between pipes or a pty and the client's websockets.

Buffers are bounded: a stream is only read when the previous data has been forwarded, so that there is
backpressure. An empty text message ends a stream, in both directions; a client may close the websocket
instead. If a client's connection is lost, its command is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Self

from utsuwa.host.helper.client import Attached
from utsuwa.host.processes import pipes
from utsuwa.operations.operations import Operation
from utsuwa.operations.websocket import WebSocket
from utsuwa.wire.codec import InvalidBody, decode
from utsuwa.wire.exec import ExecControl

_QUIET = 0.1
"""Seconds without output after which a terminal is considered at its end once the command has ended."""
_MAX_SIGNAL = 64


class Sockets:
    """The websockets of one command: the streams, and the optional control channel."""

    def __init__(self, operation: Operation, streams: Mapping[str, WebSocket]) -> None:
        self.streams = streams
        self._operation = operation

    @classmethod
    async def connected(cls, operation: Operation, timeout: float) -> Self:  # noqa: ASYNC109
        """Wait for all streams. Raises Unavailable after the timeout.

        The control channel is not awaited, as simple clients do not use it.
        """
        names = [name for name in operation.secrets if name != "control"]
        found = await asyncio.gather(*(operation.websocket(name, timeout) for name in names))
        return cls(operation, dict(zip(names, found, strict=True)))

    async def control(self) -> WebSocket:
        return await self._operation.websocket("control", None)


class Conversation:
    """A running command with its pipes or pty, and its client."""

    def __init__(
        self,
        attached: Attached,
        sockets: Sockets,
        *,
        stdin: int,
        outputs: Mapping[str, int],
        owned: Sequence[int],
    ) -> None:
        self._attached = attached
        self._sockets = sockets
        self._stdin = stdin
        self._outputs = outputs
        self._owned = {*owned}
        self._terminal = not owned
        self._gone = asyncio.Event()
        """Set when the client has disconnected."""
        self._finished: set[str] = set()
        """The streams whose end has been sent to the client."""
        for fd in (stdin, *outputs.values()):
            os.set_blocking(fd, False)

    @classmethod
    def on_pipes(cls, attached: Attached, sockets: Sockets, ours: tuple[int, int, int]) -> Self:
        """`ours` are the ends of stdin, stdout and stderr, of which this object takes ownership."""
        stdin, stdout, stderr = ours
        return cls(attached, sockets, stdin=stdin, outputs={"1": stdout, "2": stderr}, owned=ours)

    @classmethod
    def on_terminal(cls, attached: Attached, sockets: Sockets) -> Self:
        """The pty's master is still owned by `attached`."""
        assert attached.master is not None
        return cls(attached, sockets, stdin=attached.master, outputs={"0": attached.master}, owned=())

    async def run(self) -> int:
        """Serve the streams until the command has ended and all output was sent; return its exit code."""
        outputs = [self._task(self._pump_out(name, fd)) for name, fd in self._outputs.items()]
        others = [self._task(self._pump_in()), self._task(self._control())]
        if not self._terminal:
            others += [self._task(self._watch(name)) for name in self._outputs]
        try:
            return await until_end(self._attached, outputs, self._gone)
        finally:
            for task in (*outputs, *others):
                task.cancel()
            await asyncio.gather(*outputs, *others, return_exceptions=True)

    def close(self) -> None:
        """Close the pipes; only after `run`, as nothing may be waiting for them."""
        for fd in self._owned:
            os.close(fd)
        self._owned.clear()

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.create_task(work)

    async def _pump_out(self, name: str, fd: int) -> None:
        """Forward output to the client until the stream's end."""
        socket = self._sockets.streams[name]
        try:
            while data := await self._read(fd):
                await socket.send_bytes(data)
            self._finished.add(name)
            await socket.send_str("")
        except ConnectionError:
            if name not in self._finished:
                self._gone.set()

    async def _read(self, fd: int) -> bytes:
        """Return the next output; empty at the end."""
        return await (read_terminal(self._attached) if self._terminal else pipes.read(fd))

    async def _pump_in(self) -> None:
        """Forward input to the command's stdin; its end closes a pipe, but not a pty."""
        socket = self._sockets.streams["0"]
        try:
            while (data := await self._next(socket)) is not None:
                await pipes.write(self._stdin, data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # the command has closed its stdin
                raise
        if self._terminal:
            await self._watch("0")
        else:
            self._close_stdin()

    async def _next(self, socket: WebSocket) -> bytes | None:
        """Return the next chunk of stdin; None at its end."""
        match await socket.read():
            case bytes() as data:
                return data
            case str() as text:
                return text.encode() or None
            case None:
                if not self._finished.issuperset(self._outputs):
                    self._check_orderly(socket)
                return None  # when all output has ended, clients close the input's connection

    async def _watch(self, name: str) -> None:
        """Detect that the client closes a stream early; its messages are ignored."""
        socket = self._sockets.streams[name]
        while not socket.closed and await socket.read() is not None:
            continue
        if name not in self._finished:
            self._gone.set()

    async def _control(self) -> None:
        socket = await self._sockets.control()
        while (message := await socket.read()) is not None:
            await obey(self._attached, parse_control(message))
        self._check_orderly(socket)

    def _check_orderly(self, socket: WebSocket) -> None:
        if not socket.left_on_purpose:
            self._gone.set()

    def _close_stdin(self) -> None:
        if self._stdin in self._owned:
            self._owned.discard(self._stdin)
            os.close(self._stdin)


async def until_end(attached: Attached, outputs: Sequence[asyncio.Task[None]], gone: asyncio.Event) -> int:
    """Wait until a command has ended and all its output is dealt with; return its exit code.

    It is killed when its client is `gone`. Raises what a stream raised, HelperGone.
    """
    leaving = asyncio.create_task(gone.wait())
    said: asyncio.Future[Any] = asyncio.gather(attached.wait(), *outputs)
    waiting: list[asyncio.Future[Any]] = [leaving, said]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        said.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    if gone.is_set():
        await attached.kill()
    elif said.done():
        said.result()  # raises if the helper or a stream failed
    return await attached.wait()


async def read_terminal(attached: Attached) -> bytes:
    """Return the next output of a command on a pty; empty at the end.

    A pty that background processes keep open would never end: a pause after the command has ended is
    treated as its end.
    """
    assert attached.master is not None
    fd = attached.master
    try:
        while True:
            try:
                return os.read(fd, pipes.CHUNK)
            except BlockingIOError:
                ended = attached.ended
            with pipes.watched(fd) as ready:
                waiting: list[asyncio.Future[Any]] = [ready]
                if not ended:
                    waiting.append(attached.end)
                done, _ = await asyncio.wait(
                    waiting, timeout=_QUIET if ended else None, return_when=asyncio.FIRST_COMPLETED
                )
            if not done:
                return b""
    except OSError as error:
        if error.errno == errno.EIO:  # all processes have closed the pty
            return b""
        raise


def parse_control(message: bytes | str) -> ExecControl | None:
    """Return a control message, or None if it is invalid."""
    try:
        return decode(message.encode() if isinstance(message, str) else message, ExecControl)
    except InvalidBody:
        return None


async def obey(attached: Attached, message: ExecControl | None) -> None:
    """Process one control message; invalid ones are ignored, as in LXD."""
    match message:
        case ExecControl(command="signal", signal=number) if 0 < number <= _MAX_SIGNAL:
            await attached.signal(number)
        case ExecControl(command="window-resize", args=dict() as size) if attached.master is not None:
            with contextlib.suppress(ValueError, KeyError):
                resize(attached.master, int(size["width"]), int(size["height"]))


def resize(terminal: int, width: int, height: int) -> None:
    """Set a pty's size; sizes out of range are ignored."""
    if 0 < width < 2**16 and 0 < height < 2**16:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

"""The daemon's side of the process that renders templates (`server`). Blocking."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from utsuwa.core.errors import HostError, InvalidImage, ProcessFailed
from utsuwa.host.processes.run import run_blocking
from utsuwa.instances.templates.plain import MAX_OUTPUT
from utsuwa.instances.templates.variables import Rendering

_MAIN = Path(__file__).with_name("__main__.py")
_MAX_REPLY = 8 * MAX_OUTPUT
"""In bytes; a character of JSON has up to six."""
_CUT_OFF = "it, or another one, takes too much time or memory"
_decode = msgspec.json.Decoder(list[tuple[bool, str]]).decode
_PATIENCE = 30.0
"""Seconds for a reply, and for the end of the process; its own limits are lower."""
_CHUNK = 1 << 20


class TemplateProcess:
    """A confined process, started when the first template needs it; it ends when it is idle."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._lock = threading.Lock()
        """Held while starting and ending the process, and while sending to it."""

    def render(self, wishes: Sequence[Rendering]) -> list[str | InvalidImage]:
        """Render templates; return the text of each, or the reason why there is none.

        Raises HostError if the process cannot be started.
        """
        request = msgspec.json.encode(wishes)
        reply = self._exchange(request)
        if not reply and self._was_killed():  # before it took the request
            reply = self._exchange(request)
        try:
            results = _decode(reply)
        except msgspec.DecodeError:
            return [InvalidImage(_CUT_OFF) for _ in wishes]
        return [InvalidImage(text[:1000]) if failed else text for failed, text in results]

    def close(self) -> None:
        """End the process, and wait for its end."""
        with self._lock:
            control, self._control = self._control, None
            if control is not None:
                with control, contextlib.suppress(OSError):
                    control.settimeout(_PATIENCE)
                    control.shutdown(socket.SHUT_WR)
                    control.recv(1)

    def _exchange(self, request: bytes) -> bytes:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._hand_over(theirs)
            return _asked(ours, request)

    def _was_killed(self) -> bool:
        """Return whether the process has ended, of which its end of the socket tells."""
        with self._lock:
            if self._control is None:
                return False
            try:
                return not self._control.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except ConnectionResetError:  # with the request unread
                return True

    def _hand_over(self, connection: socket.socket) -> None:
        with self._lock:
            if self._control is not None:
                try:
                    socket.send_fds(self._control, [b"x"], [connection.fileno()])
                    return
                except OSError:  # it was idle and has ended
                    self._control.close()
                    self._control = None
            self._control = _started(connection)


def _asked(connection: socket.socket, request: bytes) -> bytes:
    """Return the reply to a request, not all of it if the other side was ended or exceeds a limit."""
    connection.settimeout(_PATIENCE)
    reply = bytearray()
    with contextlib.suppress(OSError):
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        while len(reply) <= _MAX_REPLY and (part := connection.recv(_CHUNK)):
            reply += part
    return bytes(reply[:_MAX_REPLY])


def _started(connection: socket.socket) -> socket.socket:
    """Start the process, with a first request."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        socket.send_fds(ours, [b"x"], [connection.fileno()])
        argv = [sys.executable, "-I", str(_MAIN), str(theirs.fileno())]
        try:
            run_blocking(argv, pass_fds=(theirs.fileno(),))
        except ProcessFailed as error:
            ours.close()
            raise HostError(f"The process for templates cannot be started: {error.message}") from error
    return ours

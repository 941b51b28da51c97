"""The client side of the websocket protocol (RFC 6455) on a socket that is already upgraded."""

from __future__ import annotations

import os

from utsuwa.client.errors import BadAnswer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from utsuwa.client import lean

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
_CONTINUATION = 0
_CHUNK = 256 * 1024
_MAX_MESSAGE = 64 * 2**20
# Raised by TLS connections instead of BlockingIOError.
_WOULD_BLOCK = ("SSLWantReadError", "SSLWantWriteError")


class WebSocket:
    """A websocket, with blocking methods, and non-blocking ones for use with a selector (`fileno`).

    `receive_ready` returns what has arrived, `queue` and `flush` send without blocking. `closed` means that
    nothing more will arrive.
    """

    def __init__(self, sock: lean.Socket, ahead: bytes = b"") -> None:
        self._socket = sock
        self._buffer = bytearray(ahead)
        self._message = bytearray()
        self._kind = BINARY
        self._unsent = bytearray()
        self.closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    # Sending.

    def send(self, data: bytes, kind: int = BINARY) -> None:
        """Send one message, blocking until it is written to the socket. Raises OSError."""
        self.queue(data, kind)
        self._socket.sendall(self._unsent)
        self._unsent.clear()

    def send_text(self, text: str) -> None:
        self.send(text.encode(), TEXT)

    def queue(self, data: bytes, kind: int = BINARY) -> None:
        """Append one message, masked as required for clients, to the data to be sent."""
        size = len(data)
        if size < 126:
            head = bytes((0x80 | kind, 0x80 | size))
        elif size < 65536:
            head = bytes((0x80 | kind, 0x80 | 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((0x80 | kind, 0x80 | 127)) + size.to_bytes(8, "big")
        mask = os.urandom(4)
        self._unsent += head + mask + _masked(data, mask)

    @property
    def unsent(self) -> int:
        """Number of bytes to be sent."""
        return len(self._unsent)

    def flush(self) -> bool:
        """Send without blocking; return whether everything was sent. Raises OSError."""
        self._socket.setblocking(False)
        try:
            while self._unsent:
                with memoryview(self._unsent) as view:
                    sent = self._socket.send(view[:_CHUNK])
                del self._unsent[:sent]
        except OSError as error:
            if not _would_block(error):
                raise
        finally:
            self._socket.setblocking(True)
        return not self._unsent

    # Receiving.

    def receive(self) -> tuple[int, bytes] | None:
        """Wait for the next complete message and return its opcode and data; None after the end."""
        while not self.closed:
            message = self._parse()
            if message is not None:
                return message
            if not self.closed:
                self._read()
        return None

    def receive_ready(self, *, read: bool = True) -> list[tuple[int, bytes]]:
        """Return all complete messages after reading once from the socket, which must be readable; without
        `read`, only those that were already read."""
        if read and not self.closed:
            self._read()
            while not self.closed and self._decrypted():
                self._read()
        found = []
        while (message := self._parse()) is not None:
            found.append(message)
        return found

    def close(self) -> None:
        """Send a close frame, if still connected, and close the socket."""
        try:
            if not self.closed:
                self.send((1000).to_bytes(2, "big"), CLOSE)
        except OSError:
            pass
        self.closed = True
        self._socket.close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except OSError:
            data = b""  # a reset is treated as the end
        if not data:
            self.closed = True
        self._buffer += data

    def _decrypted(self) -> int:
        """Bytes that TLS has already decrypted, which a selector does not report."""
        pending = getattr(self._socket, "pending", None)
        return int(pending()) if pending else 0

    def _parse(self) -> tuple[int, bytes] | None:
        while (frame := self._frame()) is not None:
            final, kind, data = frame
            if kind == CLOSE:
                self.closed = True
                self._buffer.clear()
                return None
            if kind == PING:
                self.send(data, PONG)
                continue
            if kind == PONG:
                continue
            if kind != _CONTINUATION:
                self._kind = kind
            self._message += data
            if len(self._message) > _MAX_MESSAGE:
                raise BadAnswer("The server sent a message that is too large")
            if final:
                message, self._message = bytes(self._message), bytearray()
                return self._kind, message
        return None

    def _frame(self) -> tuple[bool, int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, start = buffer[1] & 0x7F, 2
        if size == 126:
            size, start = int.from_bytes(buffer[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < start or len(buffer) < start + size:
            return None
        final, kind = bool(buffer[0] & 0x80), buffer[0] & 0x0F
        data = bytes(buffer[start : start + size])
        del buffer[: start + size]
        return final, kind, data


def _would_block(error: OSError) -> bool:
    return isinstance(error, BlockingIOError) or type(error).__name__ in _WOULD_BLOCK


def _masked(data: bytes, mask: bytes) -> bytes:
    """Return `data` xor the repeated mask, computed with a single big integer for speed."""
    size = len(data)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")

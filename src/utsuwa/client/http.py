"""A minimal HTTP/1.1 client, with what the REST API needs.

Importing http.client takes twice as long as starting the interpreter.
"""

from __future__ import annotations

import os

from utsuwa.client import lean
from utsuwa.client.errors import BadAnswer, Unreachable
from utsuwa.core.errors import InvalidRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import TypeAlias

    Opener = Callable[[], lean.Socket]
    Body: TypeAlias = "bytes | Iterable[bytes] | FileBody | None"

_LINE_LIMIT = 65536
_HEADER_LIMIT = 200
_CHUNK = 256 * 1024
_FILE_STEP = 4 * 1024 * 1024


class Reply:
    """The head of a response; `read` or `stream` its body before the next request.

    `headers` are keyed by lower-case name.
    """

    def __init__(self, status: int, headers: dict[str, str], chunks: Iterator[bytes]) -> None:
        self.status = status
        self.headers = headers
        self._chunks = chunks

    def read(self) -> bytes:
        return b"".join(self._chunks)

    def stream(self) -> Iterator[bytes]:
        """Return the body in chunks of up to 256 KiB."""
        return self._chunks


class FileBody:
    """The content of an open file from its beginning, whose size is sent ahead."""

    def __init__(self, fd: int, size: int, sent: Callable[[int], None]) -> None:
        """`sent` is called with the number of bytes that have been sent."""
        self._fd = fd
        self.size = size
        self._sent = sent

    def send(self, sock: lean.Socket) -> None:
        """Send all of it, a unix socket the pages themselves. Raises InvalidRequest if it has shrunk."""
        local = isinstance(sock, lean.Socket) and sock.family == lean.AF_UNIX
        done = 0
        while done < self.size:
            if local:
                count = os.sendfile(sock.fileno(), self._fd, done, min(_FILE_STEP, self.size - done))
            else:
                data = os.pread(self._fd, min(_CHUNK, self.size - done), done)
                sock.sendall(data)
                count = len(data)
            if not count:
                raise InvalidRequest("The file has become shorter while it was read")
            done += count
            self._sent(done)


class Connection:
    """A connection that is opened on demand and kept open between requests."""

    def __init__(self, opener: Opener, host: str) -> None:
        self._opener = opener
        self._host = host
        self._socket: lean.Socket | None = None
        self._buffer = bytearray()

    def request(
        self, method: str, target: str, body: Body = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a request and read the head of the response. Raises Unreachable or BadAnswer.

        An iterable body is sent in chunks. If the server has closed an idle connection, the request is
        repeated once on a new one, unless its body is a stream.
        """
        repeatable = self._socket is not None and (body is None or isinstance(body, bytes))
        try:
            return self._exchange(method, target, body, headers or {})
        except (OSError, EOFError) as error:
            self.close()
            if not repeatable:
                raise self._broken(error) from error
        try:
            return self._exchange(method, target, body, headers or {})
        except (OSError, EOFError) as error:
            self.close()
            raise self._broken(error) from error

    def send(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> None:
        """Send a request ahead: `receive` its response later, after those to earlier requests."""
        try:
            self._send(method, target, body, headers)
        except OSError as error:
            self.close()
            raise self._broken(error) from error

    def receive(self, method: str) -> Reply:
        """Read the head of the response to the oldest request that was sent ahead."""
        try:
            return self._read_reply(method)
        except (OSError, EOFError) as error:
            self.close()
            raise self._broken(error) from error

    def take_socket(self) -> tuple[lean.Socket, bytes]:
        """Detach and return the socket and the data already read from it, for a protocol upgrade."""
        sock, rest = self._open(), bytes(self._buffer)
        self._socket, self._buffer = None, bytearray()
        return sock, rest

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._buffer = None, bytearray()

    def _broken(self, error: Exception) -> Unreachable:
        return Unreachable(f"The connection to {self._host} broke: {str(error) or 'the server closed it'}")

    def _open(self) -> lean.Socket:
        if self._socket is None:
            self._socket = self._opener()
        return self._socket

    def _exchange(self, method: str, target: str, body: Body, headers: Mapping[str, str]) -> Reply:
        if body is None or isinstance(body, bytes):
            self._send(method, target, body, headers)
            return self._read_reply(method)
        if isinstance(body, FileBody):
            sock = self._open()
            sock.sendall(self._head(method, target, {**headers, "Content-Length": str(body.size)}))
            try:
                body.send(sock)
            except (BrokenPipeError, ConnectionResetError):
                return self._read_reply(method)
            except InvalidRequest:
                self.close()
                raise
            return self._read_reply(method)
        head = self._head(method, target, {**headers, "Transfer-Encoding": "chunked"})
        sock = self._open()
        sock.sendall(head)
        try:
            for chunk in body:
                if chunk:
                    sock.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            sock.sendall(b"0\r\n\r\n")
        except BrokenPipeError:
            # A server may reject an upload before it has read it completely: its response says why.
            return self._read_reply(method)
        return self._read_reply(method)

    def _send(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> None:
        length = {} if body is None else {"Content-Length": str(len(body))}
        data = self._head(method, target, {**headers, **length}) + (body or b"")
        self._open().sendall(data)

    def _head(self, method: str, target: str, headers: Mapping[str, str]) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if any("\r" in line or "\n" in line for line in lines):
            raise BadAnswer("A request cannot contain line breaks")
        return "\r\n".join((*lines, "\r\n")).encode()

    def _read_reply(self, method: str) -> Reply:
        status = 100
        headers: dict[str, str] = {}
        while status == 100:
            parts = self._line().split(" ", 2)
            if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
                raise BadAnswer(f"{self._host} does not speak HTTP")
            status = int(parts[1])
            headers = self._headers()
        if method == "HEAD" or status in (101, 204, 304):
            return Reply(status, headers, iter(()))
        return Reply(status, headers, self._body(headers))

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        while line := self._line():
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
            if len(headers) > _HEADER_LIMIT:
                raise BadAnswer(f"{self._host} sent too many headers")
        return headers

    def _body(self, headers: Mapping[str, str]) -> Iterator[bytes]:
        try:
            yield from self._pieces(headers)
        except (OSError, EOFError) as error:
            self.close()
            raise self._broken(error) from error
        if headers.get("connection", "").lower() == "close":
            self.close()

    def _pieces(self, headers: Mapping[str, str]) -> Iterator[bytes]:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := self._number(self._line().split(";")[0], 16):
                yield from self._exactly(size)
                self._line()
            self._headers()
        elif "content-length" in headers:
            yield from self._exactly(self._number(headers["content-length"], 10))
        else:
            if self._buffer:
                yield bytes(self._buffer)
            sock = self._open()
            while data := sock.recv(_CHUNK):
                yield data
            self.close()

    def _number(self, text: str, base: int) -> int:
        try:
            return int(text, base)
        except ValueError:
            raise BadAnswer(f"{self._host} sent the invalid length {text!r}") from None

    def _line(self) -> str:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _LINE_LIMIT:
                raise BadAnswer(f"{self._host} sent a line that is too long")
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line.rstrip(b"\r").decode("latin-1")

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size > 0:
            if not self._buffer:
                self._fill()
            piece = bytes(self._buffer[:size])
            del self._buffer[:size]
            size -= len(piece)
            yield piece

    def _fill(self) -> None:
        data = self._open().recv(_CHUNK)
        if not data:
            raise EOFError
        self._buffer += data


def open_unix(path: str) -> lean.Socket:
    """Connect to a unix socket. Raises Unreachable with advice on how to fix it."""
    sock = lean.Socket(lean.AF_UNIX)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        why = {
            "PermissionError": "permission denied: become root or a member of the group utsuwa",
            "FileNotFoundError": "it does not exist: is the daemon (utsuwad) running?",
            "ConnectionRefusedError": "connection refused: start the daemon (utsuwad)",
        }
        reason = why.get(type(error).__name__, str(error))
        raise Unreachable(f"Cannot connect to the socket {path}: {reason}") from error
    return sock

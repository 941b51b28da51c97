"""HTTP and websockets of the client against servers of a few lines."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utsuwa.client import lean
from utsuwa.client.errors import ApiError, BadAnswer, Unreachable
from utsuwa.client.http import Connection, open_unix
from utsuwa.client.server import Server, path_to, quote
from utsuwa.client.websocket import BINARY, CLOSE, PING, PONG, TEXT, WebSocket

Serve = Callable[[socket.socket], None]


class Peer:
    """The server's end of connections: each runs one of the given functions, in order."""

    def __init__(self, *serves: Serve) -> None:
        self._serves = list(serves)
        self.threads: list[threading.Thread] = []

    def open(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        theirs.settimeout(10)
        thread = threading.Thread(target=self._run, args=(self._serves.pop(0), theirs))
        thread.start()
        self.threads.append(thread)
        return ours

    def _run(self, serve: Serve, sock: socket.socket) -> None:
        with sock:
            serve(sock)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


def head(sock: socket.socket) -> bytes:
    """A request's head, as it came."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        piece = sock.recv(1)
        if not piece:
            return data
        data += piece
    return data


def answering(*replies: bytes) -> Serve:
    """Answer each request with bytes as they stand, then close."""

    def serve(sock: socket.socket) -> None:
        for reply in replies:
            head(sock)
            with contextlib.suppress(BrokenPipeError):
                sock.sendall(reply)

    return serve


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    made: list[Peer] = []
    yield made
    for peer in made:
        peer.join()


@pytest.fixture
def connect(peers: list[Peer]) -> Iterator[Callable[..., Connection]]:
    opened: list[Connection] = []

    def make(*serves: Serve) -> Connection:
        peer = Peer(*serves)
        peers.append(peer)
        opened.append(Connection(peer.open, "far"))
        return opened[-1]

    yield make
    for connection in opened:
        connection.close()


def test_a_body_with_a_length(connect: Callable[..., Connection]) -> None:
    connection = connect(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello"))
    reply = connection.request("GET", "/")
    assert (reply.status, reply.headers["x-a"], reply.read()) == (200, "b", b"hello")


def test_a_body_in_chunks_and_a_second_request(connect: Callable[..., Connection]) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n"
    connection = connect(answering(chunked, b"HTTP/1.1 204 No Content\r\n\r\n"))
    assert connection.request("GET", "/").read() == b"abcdefg"
    assert connection.request("GET", "/").status == 204


def test_a_body_that_ends_with_the_connection(connect: Callable[..., Connection]) -> None:
    connection = connect(answering(b"HTTP/1.0 200 OK\r\n\r\nall of it"))
    assert connection.request("GET", "/").read() == b"all of it"


def test_a_preliminary_answer_is_passed_over(connect: Callable[..., Connection]) -> None:
    replies = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
    assert connect(answering(replies)).request("GET", "/").status == 201


def test_an_idle_connection_that_was_closed_is_opened_again(connect: Callable[..., Connection]) -> None:
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    connection = connect(answering(ok), answering(ok))
    assert connection.request("GET", "/").read() == b""
    assert connection.request("GET", "/").status == 200


def test_streamed_body_is_not_repeated(connect: Callable[..., Connection]) -> None:
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    connection = connect(answering(ok))
    connection.request("GET", "/").read()
    with pytest.raises(Unreachable, match="broke"):
        connection.request("POST", "/", iter([b"a"]))


def test_streams_are_sent_in_chunks(connect: Callable[..., Connection]) -> None:
    got: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        got.append(head(sock))
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += sock.recv(100)
        got.append(data)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    connection = connect(serve)
    assert connection.request("POST", "/x", iter([b"abc", b"", b"de"]), {"X-B": "c"}).status == 200
    assert b"POST /x HTTP/1.1\r\nHost: far\r\nX-B: c\r\nTransfer-Encoding: chunked" in got[0]
    assert got[1] == b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" + b"".join(b"H%d: x\r\n" % n for n in range(300)) + b"\r\n",
        b"x" * 400_000,
    ],
)
def test_invalid_http_is_rejected(connect: Callable[..., Connection], reply: bytes) -> None:
    connection = connect(answering(reply))
    with pytest.raises(BadAnswer):
        connection.request("GET", "/").read()
    connection.close()


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
def test_an_answer_that_is_cut_off(connect: Callable[..., Connection], reply: bytes) -> None:
    connection = connect(answering(reply))
    with pytest.raises(Unreachable, match="broke"):
        connection.request("GET", "/").read()


def test_requests_hold_no_line_breaks(connect: Callable[..., Connection]) -> None:
    connection = Connection(Peer().open, "far")
    with pytest.raises(BadAnswer, match="line breaks"):
        connection.request("GET", "/a\r\nX: y")


def test_missing_sockets_are_reported(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="is the daemon .* running"):
        open_unix(str(tmp_path / "none"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(Unreachable, match="start the daemon"):
        open_unix(str(tmp_path / "dead"))


# ---- envelopes


def envelope(status: int, record: dict[str, object]) -> bytes:
    body = json.dumps(record).encode()
    return b"HTTP/1.1 %d X\r\nETag: tag\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


@pytest.fixture
def server(peers: list[Peer]) -> Iterator[Callable[..., Server]]:
    opened: list[Server] = []

    def make(*replies: bytes) -> Server:
        peer = Peer(answering(*replies))
        peers.append(peer)
        opened.append(Server(peer.open, "far"))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_metadata_and_errors(server: Callable[..., Server]) -> None:
    good = envelope(200, {"type": "sync", "metadata": [1]})
    bad = envelope(404, {"type": "error", "error": "No such thing", "error_code": 404})
    far = server(good, bad, b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\nhi")
    assert far.get_with_etag("/1.0") == ([1], "tag")
    with pytest.raises(ApiError, match="No such thing") as caught:
        far.get("/1.0/x")
    assert caught.value.code == 404
    with pytest.raises(BadAnswer, match="JSON"):
        far.get("/1.0")


def test_failed_operations(server: Callable[..., Server]) -> None:
    record = {"id": "1", "status_code": 400, "status": "Failure", "err": "It broke"}
    far = server(envelope(200, {"type": "sync", "metadata": record}))
    with pytest.raises(ApiError, match="It broke"):
        far.wait({"id": "1"})


def test_headers_of_uploads_have_the_names_of_incus_too(peers: list[Peer]) -> None:
    heads: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        for _ in range(2):
            heads.append(head(sock))
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    peers.append(Peer(serve))
    far = Server(peers[0].open, "far")
    far.raw("POST", "/1.0/images", None, {"X-LXD-public": "true", "Content-Type": "a/b"}).read()
    far.send_ahead("POST", "/1.0/x", b"", {"X-LXD-mode": "0600"})
    far.reply_ahead("POST").read()
    far.close()
    assert b"X-LXD-public: true\r\n" in heads[0]
    assert b"X-Incus-public: true\r\n" in heads[0]
    assert heads[0].count(b"a/b") == 1
    assert b"X-Incus-mode: 0600\r\n" in heads[1]


def test_where_requests_go() -> None:
    far = Server(Peer().open, "far", project="a b")
    assert far._target("/1.0/x", {}) == "/1.0/x?project=a%20b"
    assert far._target("/1.0/x?y=1", {"all_projects": "true"}) == "/1.0/x?y=1&all-projects=true"
    assert far._target("/1.0/x?project=c", {}) == "/1.0/x?project=c"
    assert path_to("images", "aliases", "debian/12") == "/1.0/images/aliases/debian%2F12"


@given(st.text())
def test_quoting_can_be_undone(text: str) -> None:
    from urllib.parse import unquote

    encodable = text.encode("utf-8", "replace").decode()
    assert unquote(quote(encodable)) == encodable


# ---- JSON

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_json_is_that_of_the_library(value: object) -> None:
    assert lean.dumps(value) == json.dumps(value)
    assert lean.loads(f" {json.dumps(value)}\n") == value


@pytest.mark.parametrize("text", ["", " ", "{", "[1,]", "1 2", "nul", '"\n"', "{'a': 1}"])
def test_invalid_json_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        lean.loads(text)


def test_unsupported_values_are_not_encoded() -> None:
    with pytest.raises(TypeError, match="set"):
        lean.dumps({1, 2})


# ---- websockets


def pair() -> tuple[WebSocket, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(30)
    return WebSocket(ours), theirs


def frame(kind: int, data: bytes, *, final: bool = True) -> bytes:
    """As a server sends it: unmasked."""
    size = len(data)
    first = (0x80 if final else 0) | kind
    if size < 126:
        return bytes((first, size)) + data
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + data
    return bytes((first, 127)) + size.to_bytes(8, "big") + data


def unmasked(data: bytes) -> bytes:
    """The payload of one client frame."""
    size, start = data[1] & 0x7F, 2
    assert data[1] & 0x80, "clients mask what they send"
    if size == 126:
        size, start = int.from_bytes(data[2:4], "big"), 4
    elif size == 127:
        size, start = int.from_bytes(data[2:10], "big"), 10
    mask, body = data[start : start + 4], data[start + 4 : start + 4 + size]
    return bytes(byte ^ mask[i % 4] for i, byte in enumerate(body))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_messages_of_all_sizes(size: int) -> None:
    ws, theirs = pair()
    data = os.urandom(size)
    theirs.sendall(frame(BINARY, data))
    assert ws.receive() == (BINARY, data)
    ws.send(data)
    got = b""
    while len(got) < size + 6 + (0 if size < 126 else 2 if size < 65536 else 8):
        got += theirs.recv(1 << 20)
    assert unmasked(got) == data
    ws.close()
    theirs.close()


def test_fragments_pings_and_the_end() -> None:
    ws, theirs = pair()
    theirs.sendall(frame(TEXT, b"a", final=False) + frame(PING, b"p") + frame(0, b"b") + frame(CLOSE, b""))
    assert ws.receive() == (TEXT, b"ab")
    pong = theirs.recv(100)
    assert pong[0] & 0x0F == PONG
    assert unmasked(pong) == b"p"
    assert ws.receive() is None
    assert ws.closed
    ws.close()
    theirs.close()


def test_receive_ready_returns_all_complete_messages() -> None:
    ws, theirs = pair()
    theirs.sendall(frame(BINARY, b"a") + frame(BINARY, b"b") + frame(BINARY, b"half")[:3])
    assert ws.receive_ready() == [(BINARY, b"a"), (BINARY, b"b")]
    theirs.sendall(frame(BINARY, b"half")[3:])
    theirs.close()
    assert ws.receive_ready() == [(BINARY, b"half")]
    assert ws.receive_ready() == []
    assert ws.closed
    ws.close()


def test_a_full_socket_is_not_waited_for() -> None:
    ws, theirs = pair()
    ws.queue(bytes(8 << 20))
    assert not ws.flush()
    left = ws.unsent
    assert left
    theirs.recv(1 << 20)
    ws.flush()
    assert ws.unsent < left
    theirs.close()
    with pytest.raises(OSError, match=r"\S"):
        ws.flush()
    ws.close()

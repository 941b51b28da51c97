"""Bodies of requests that are not what they are announced to be end the request, and its connection."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from utsuwa.httpd.protocol import HttpServer

HEAD = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"5\r\nhello\r\n"


@pytest.mark.parametrize(
    "rest", [b"x\r\n", b"-1\r\n", b"f" * 17 + b"\r\n", b"2\r\nabc\r\n", b"5\r\nhello0\r\n\r\n", b"\r\n"]
)
@pytest.mark.parametrize("complete", [b"", CHUNK])
async def test_a_malformed_body_is_refused_at_once(complete: bytes, rest: bytes) -> None:
    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    ended: list[str] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        begun.set()
        try:
            await request.read()
        except web.RequestPayloadError:
            ended.append("refused")
            return web.Response(status=400)
        return web.Response()

    ours, other = socket.socketpair()
    other.setblocking(False)
    with other:
        server = HttpServer(handle)
        await loop.connect_accepted_socket(server, ours)
        await loop.sock_sendall(other, HEAD + complete)
        await begun.wait()
        await loop.sock_sendall(other, rest)
        received = b""
        while data := await loop.sock_recv(other, 65536):
            received += data
        await server.shutdown(0)
    assert ended == ["refused"]
    assert received.startswith(b"HTTP/1.1 400 ")

"""Questions to the daemon in a visitor's container.

Its answers are the visitor's to fake: they are bounded, and only decide what the tour shows.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import msgspec

from utsuwa.core.errors import Unavailable
from utsuwa.tryit.rest import Rest

_LIMIT = 512 * 1024
_SECONDS = 20.0
_PYTHON = ["/usr/bin/python3", "-IS", "-c"]
_ASK = r"""
import socket, sys
found = []
for path in sys.argv[2:]:
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(10)
        asked.connect(sys.argv[1])
        asked.sendall(f"GET {path} HTTP/1.0\r\nHost: utsuwa\r\n\r\n".encode())
        reply = b""
        while len(reply) < 200000 and (more := asked.recv(65536)):
            reply += more
    found.append(reply.partition(b"\r\n\r\n")[2])
sys.stdout.buffer.write(b"[" + b",".join(found) + b"]")
"""
_LISTEN = r"""
import socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect(sys.argv[1])
asked.sendall(
    b"GET /1.0/events?type=lifecycle HTTP/1.1\r\nHost: utsuwa\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
stream = asked.makefile("rb")
while stream.readline().strip():
    pass
while len(head := stream.read(2)) == 2:
    size = head[1]
    if size > 125:
        size = int.from_bytes(stream.read(2 if size == 126 else 8), "big")
    sys.stdout.buffer.write(stream.read(size) + b"\n")
    sys.stdout.buffer.flush()
"""
"""Prints what is in the frames of the websocket."""
_SOCKET = "/var/lib/utsuwa/unix.socket"
LISTEN = [*_PYTHON, _LISTEN, _SOCKET]
"""A command that prints events as lines of JSON, among others."""
_WAIT_SECONDS = 90.0
_AWAIT = r"""
import socket, sys, time
while True:
    try:
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(10)
            asked.connect(sys.argv[1])
            asked.sendall(b"GET /internal/ready?api-only=1 HTTP/1.0\r\nHost: utsuwa\r\n\r\n")
            if b" 200 " in asked.recv(100):
                break
    except OSError:
        pass
    time.sleep(0.02)
"""
"""What `utsuwad waitready` does, in a tenth of its time."""


class Inside:
    """The daemon in one container. Methods raise Unavailable if it does not answer."""

    def __init__(self, rest: Rest, container: str) -> None:
        self._rest = rest
        self._container = container

    async def ask(self, *paths: str) -> list[Any]:
        """Return the metadata at each path; None where there is nothing."""
        replies = await self.read(*paths)
        return [reply.get("metadata") if reply.get("type") == "sync" else None for reply in replies]

    async def read(self, *paths: str) -> list[dict[str, Any]]:
        """Return the JSON object at each path: a file in an instance, or the reply of the daemon."""
        output = await self._output([*_PYTHON, _ASK, _SOCKET, *paths])
        try:
            replies = msgspec.json.decode(output, type=list[dict[str, Any]])
        except msgspec.DecodeError as error:
            raise Unavailable("The daemon in the container does not answer") from error
        if len(replies) != len(paths):
            raise Unavailable("The daemon in the container does not answer")
        return replies

    async def wait_until_ready(self) -> None:
        """Wait until it answers. Raises Unavailable."""
        said = await self._output([*_PYTHON, _AWAIT, _SOCKET], _WAIT_SECONDS)
        if said.strip():
            raise Unavailable(said.decode(errors="replace").strip()[-1000:])

    async def _output(self, command: list[str], seconds: float = _SECONDS) -> bytes:
        execution = await self._rest.execute(self._container, command)
        output = bytearray()
        try:
            async with asyncio.timeout(seconds):
                async for message in execution.terminal:
                    if message.type == aiohttp.WSMsgType.BINARY:
                        output += message.data
                    if message.type == aiohttp.WSMsgType.TEXT or len(output) > _LIMIT:
                        break  # the end of the stream
        except TimeoutError as error:
            raise Unavailable(
                f"The daemon in the container does not answer within {seconds:.0f} s"
            ) from error
        finally:
            await execution.close()
        return bytes(output)

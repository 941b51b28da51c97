"""Connections of a migration: clients and other servers connect here, or this server to another one."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from aiohttp import (
    ClientSession,
    ClientTimeout,
    ClientWebSocketResponse,
    ClientWSTimeout,
    DummyCookieJar,
    TCPConnector,
    WSMsgType,
)
from yarl import URL

from utsuwa.core.errors import InvalidRequest
from utsuwa.core.proxies import Proxies
from utsuwa.images.remote.records import check_url
from utsuwa.images.remote.web import CONNECT_SECONDS, proxy_for, translated
from utsuwa.migration.channel import ControlChannel, Stream
from utsuwa.operations.operations import Operation
from utsuwa.security.remote_tls import client_context

SOCKETS = ("control", "fs")
_MAX_MESSAGE = 4 * 2**20
_OPERATION = re.compile(r"/1\.0/operations/[0-9a-fA-F-]{1,64}\Z")
_SECRET = re.compile(r"[0-9A-Za-z_-]{1,200}\Z")


@dataclass(frozen=True)
class Remote:
    """The operation of another server, to which this one connects."""

    url: URL
    secrets: Mapping[str, str]
    certificate: str

    @classmethod
    def of(cls, operation: str, secrets: Mapping[str, str] | None, certificate: str) -> Remote:
        """Check what a request says of it. Raises InvalidRequest."""
        url = check_url(operation)
        if url.scheme != "https" or not _OPERATION.match(url.path):
            raise InvalidRequest(
                f"Invalid operation {operation[:100]!r} of the other server: "
                "use https://HOST[:PORT]/1.0/operations/ID"
            )
        given = secrets or {}
        for name in SOCKETS:
            if not _SECRET.match(given.get(name, "")):
                raise InvalidRequest(f"The secret of the websocket {name!r} of the other server is missing")
        if "criu" in given:
            raise InvalidRequest("Copying the running state (live) is not supported yet: use --stateless")
        return cls(url.with_query(None).with_fragment(None), {n: given[n] for n in SOCKETS}, certificate)


class ClientSocket:
    """A websocket to another server, with the methods of those of clients."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket

    @property
    def closed(self) -> bool:
        return self._socket.closed

    @property
    def left_on_purpose(self) -> bool:
        return self._socket.close_code in (1000, 1001, 1005)

    async def read(self) -> bytes | str | None:
        message = await self._socket.receive()
        match message.type:
            case WSMsgType.BINARY:
                return bytes(message.data)
            case WSMsgType.TEXT:
                return str(message.data)
            case _:
                return None

    async def send_bytes(self, data: bytes) -> None:
        await self._socket.send_bytes(data)
        await asyncio.sleep(0)  # a sender that never waits would not learn that the other end has gone

    async def send_str(self, data: str) -> None:
        await self._socket.send_str(data)


@contextlib.asynccontextmanager
async def connected(
    operation: Operation, remote: Remote | None, proxies: Proxies
) -> AsyncIterator[tuple[ControlChannel, Stream]]:
    """Connect to the remote; without one, wait for the operation's own websockets.

    Raises Unavailable, also if nobody connects in time.
    """
    if remote is None:
        control, files = [await operation.websocket(name) for name in SOCKETS]
        yield ControlChannel(control), Stream(files)
        return
    context = await asyncio.to_thread(client_context, remote.certificate, None)
    async with (
        ClientSession(
            connector=TCPConnector(ssl=context, force_close=True),
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        ) as session,
        contextlib.AsyncExitStack() as stack,
    ):
        found = []
        for name in SOCKETS:
            url = (remote.url / "websocket").with_query(secret=remote.secrets[name])
            with translated(remote.url):
                opened = session.ws_connect(
                    url,
                    max_msg_size=_MAX_MESSAGE,
                    compress=0,
                    proxy=proxy_for(proxies, remote.url),
                    timeout=ClientWSTimeout(ws_close=5),
                )
                found.append(ClientSocket(await stack.enter_async_context(opened)))
        yield ControlChannel(found[0]), Stream(found[1])

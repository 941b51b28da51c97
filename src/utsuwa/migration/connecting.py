"""Connections of a migration: clients and other servers connect here, or this server to another one."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import (
    ClientSession,
    ClientTimeout,
    ClientWebSocketResponse,
    ClientWSTimeout,
    DummyCookieJar,
    TCPConnector,
    WSMsgType,
    WSServerHandshakeError,
)
from yarl import URL

from utsuwa.core.errors import InvalidRequest, Unavailable
from utsuwa.core.keepalive import keep_alive
from utsuwa.core.proxies import Proxies
from utsuwa.core.threads import in_thread
from utsuwa.images.remote.records import check_url
from utsuwa.images.remote.web import CONNECT_SECONDS, proxy_for, shown, translated
from utsuwa.migration.channel import ControlChannel, Stream
from utsuwa.migration.racing import all_of
from utsuwa.operations.operations import Operation
from utsuwa.operations.websocket import WebSocket
from utsuwa.security.remote_tls import client_context

SOCKETS = ("control", "fs")
LIVE_SOCKETS = (*SOCKETS, "criu")
"""Those of a move with the running state."""
_MAX_MESSAGE = 4 * 2**20
_OPERATION = re.compile(r"/1\.0/operations/[0-9a-fA-F-]{1,64}\Z")
_SECRET = re.compile(r"[0-9A-Za-z_-]{1,200}\Z")


class UnknownOperation(Unavailable):
    """The other server neither has an operation, nor a record of an undecided move by its id."""


@dataclass(frozen=True)
class Remote:
    """The operation of another server, to which this one connects."""

    url: URL
    secrets: Mapping[str, str]
    certificate: str

    @classmethod
    def of(
        cls, operation: str, secrets: Mapping[str, str] | None, certificate: str, *, live: bool = False
    ) -> Remote:
        """Check what a request says of it. Raises InvalidRequest."""
        names = LIVE_SOCKETS if live else SOCKETS
        url = check_url(operation)
        if url.scheme != "https" or not _OPERATION.match(url.path):
            raise InvalidRequest(
                f"Invalid operation {operation[:100]!r} of the other server: "
                "use https://HOST[:PORT]/1.0/operations/ID"
            )
        given = secrets or {}
        for name in names:
            if not _SECRET.match(given.get(name, "")):
                raise InvalidRequest(f"The secret of the websocket {name!r} of the other server is missing")
        return cls(url.with_query(None).with_fragment(None), {n: given[n] for n in names}, certificate)


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
    async with _sockets(operation, remote, proxies, SOCKETS) as (control, files):
        yield ControlChannel(control), Stream(files)


@contextlib.asynccontextmanager
async def connected_live(
    operation: Operation, remote: Remote | None, proxies: Proxies
) -> AsyncIterator[tuple[ControlChannel, Stream, Stream]]:
    """As `connected`, with the stream of the running state."""
    async with _sockets(operation, remote, proxies, LIVE_SOCKETS) as (control, files, state):
        stream = Stream(files)
        yield ControlChannel(control), stream, Stream(state, beside=stream)


@contextlib.asynccontextmanager
async def _sockets(
    operation: Operation, remote: Remote | None, proxies: Proxies, names: Sequence[str]
) -> AsyncIterator[list[WebSocket]]:
    if remote is None:
        yield [await operation.websocket(name) for name in names]
        return
    async with opened(remote, proxies, names) as found:
        yield found


@contextlib.asynccontextmanager
async def opened(
    remote: Remote, proxies: Proxies, names: Sequence[str], heartbeat: float | None = None
) -> AsyncIterator[list[WebSocket]]:
    """Connect websockets of a remote, all at once. Raises Unavailable, and UnknownOperation of that.

    With a `heartbeat`, in seconds, they are lost when the other server does not answer to that, even if there
    is a proxy in between; otherwise when its host does not answer.
    """
    context = await in_thread(client_context, remote.certificate, None)
    async with (
        ClientSession(
            connector=TCPConnector(ssl=context, force_close=True),
            cookie_jar=DummyCookieJar(),
            # What is read is limited until a websocket is open: then, aiohttp lifts that.
            timeout=ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=CONNECT_SECONDS),
        ) as session,
        contextlib.AsyncExitStack() as stack,
    ):
        found: dict[str, WebSocket] = {}

        async def connect(name: str) -> None:
            url = (remote.url / "websocket").with_query(secret=remote.secrets[name])
            with translated(remote.url):
                opened = session.ws_connect(
                    url,
                    max_msg_size=_MAX_MESSAGE,
                    compress=0,
                    proxy=proxy_for(proxies, remote.url),
                    timeout=ClientWSTimeout(ws_close=5),
                    heartbeat=heartbeat,
                )
                try:
                    socket = await stack.enter_async_context(opened)
                    keep_alive(socket.get_extra_info("socket"))
                    found[name] = ClientSocket(socket)
                except WSServerHandshakeError as error:  # whose text has the secret
                    kind = UnknownOperation if error.status == HTTPStatus.NOT_FOUND else Unavailable
                    raise kind(
                        f"{shown(remote.url)}: the server replied with the status {error.status}"
                    ) from error

        await all_of(*map(connect, names))
        yield [found[name] for name in names]

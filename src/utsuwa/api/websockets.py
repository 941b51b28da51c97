"""Websockets to clients, with limits, fairness and bounded memory."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import WSCloseCode, web

from utsuwa.httpd.websockets import check_websocket
from utsuwa.operations.events import Subscription

_MAX_MESSAGE = 4 * 2**20
"""Maximum size of a websocket message in bytes; those of clients are much smaller."""

_PROTOCOL = "utsuwa"
"""The subprotocol of the web page, whose browser wants one of those that it offers to be accepted."""

_CLOSE_SECONDS = 5
_ORDERLY = (WSCloseCode.OK, WSCloseCode.GOING_AWAY, 1005)
"""Close codes of a client that ends a stream intentionally; 1005 is a close frame without a code."""


class WebSocket(web.WebSocketResponse):
    """A websocket to `prepare`, send to and receive from."""

    def __init__(self, heartbeat: float | None = None) -> None:
        super().__init__(
            max_msg_size=_MAX_MESSAGE, compress=False, protocols=(_PROTOCOL,), heartbeat=heartbeat
        )

    async def read(self) -> bytes | str | None:
        """Return the next message; None once the client has closed the websocket or disconnected."""
        message = await self.receive()
        match message.type:
            case web.WSMsgType.BINARY:
                return bytes(message.data)
            case web.WSMsgType.TEXT:
                return str(message.data)
            case _:
                return None

    @property
    def left_on_purpose(self) -> bool:
        """Whether the client has closed the websocket properly, instead of losing its connection."""
        return self.close_code in _ORDERLY

    async def send_frame(self, message: bytes, opcode: web.WSMsgType, compress: int | None = None) -> None:
        """As the base class, and let the event loop run.

        A sender that never waits would not detect that its client has disconnected: uvloop's TLS transport
        reports that only in the next iteration of the loop, and drops all data written until then.
        """
        await super().send_frame(message, opcode, compress)
        await asyncio.sleep(0)

    async def send_bytes(self, data: bytes, compress: int | None = None) -> None:
        await self.send_frame(data, web.WSMsgType.BINARY, compress)

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        """As the base class, and free the memory of the connection immediately.

        The exception that the base class keeps refers to this object by its traceback: such a cycle, with
        buffers of up to a megabyte, would wait for the garbage collector.
        """
        try:
            return await super().close(code=code, message=message, drain=drain)
        finally:
            error = self.exception()
            while error is not None:
                error.__traceback__ = None
                error = error.__context__


def websocket_response(raw: web.BaseRequest, heartbeat: float | None = None) -> WebSocket:
    """Return a websocket to `prepare`. Raises InvalidRequest if the client does not support it.

    With a `heartbeat`, in seconds, it is lost when the client does not answer to that (`Kind.heartbeat`).
    """
    socket = WebSocket(heartbeat)
    check_websocket(socket, raw)
    return socket


async def send_events(events: Subscription, socket: WebSocket, raw: web.BaseRequest) -> WebSocket:
    """Accept a listener, and send it events until they end or it disconnects."""
    await socket.prepare(raw)
    sender = asyncio.create_task(_send(events, socket), name="events to a listener")
    try:
        async for _ in socket:
            pass  # ignore messages of listeners; reading detects when they disconnect
    finally:
        sender.cancel()
        await asyncio.wait([sender])
    return socket


async def _send(events: Subscription, socket: WebSocket) -> None:
    try:
        async for text in events:
            await socket.send_frame(text, web.WSMsgType.TEXT)
    except ConnectionError:  # the listener has disconnected
        return
    code = WSCloseCode.TRY_AGAIN_LATER if events.overflowed else WSCloseCode.GOING_AWAY
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await socket.close(code=code)

"""`/1.0/events`: the websocket for events."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import WSCloseCode, web

from utsuwa.api.http import Raw, Request, Result, Route
from utsuwa.api.websockets import WebSocket, websocket_response
from utsuwa.core.entitlements import Entity
from utsuwa.core.errors import InvalidRequest
from utsuwa.operations.events import EVENT_TYPES, Subscription

_CLOSE_SECONDS = 5


def _types(request: Request) -> list[str]:
    types = [t for t in request.query.get("type", "").split(",") if t]
    for wanted in types:
        if wanted not in EVENT_TYPES:
            raise InvalidRequest(
                f"{wanted[:40]!r} isn't a supported event type: use {', '.join(EVENT_TYPES)}"
            )
    return types or list(EVENT_TYPES)


async def listen(request: Request) -> Result:
    types = _types(request)
    project = None if request.all_projects else request.project
    caller = request.caller
    socket = websocket_response(request)
    subscription = request.services.events.subscribe(
        types, project, scope=request.scope, name=f"{caller.protocol}/{caller.username}"
    )
    with subscription:
        await socket.prepare(request.raw)
        sender = asyncio.create_task(_send(subscription, socket), name="events to a listener")
        try:
            async for _ in socket:
                pass  # ignore messages of listeners; reading detects when they disconnect
        finally:
            sender.cancel()
            await asyncio.wait([sender])
    return Raw(socket)


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


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/1.0/events",
        listen,
        "Listen to events",
        Raw,
        entity=Entity.PROJECT,
        lists_projects=True,
        description="A websocket. type is a comma-separated list of operation, lifecycle and logging.",
    ),
)

"""`/1.0/events`: the websocket for events."""

from __future__ import annotations

from utsuwa.api.http import Raw, Request, Result, Route
from utsuwa.api.websockets import send_events, websocket_response
from utsuwa.core.entitlements import Entity
from utsuwa.core.errors import InvalidRequest
from utsuwa.operations.events import EVENT_TYPES


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
    socket = websocket_response(request.raw)
    subscription = request.services.events.subscribe(
        types, project, scope=request.scope, name=f"{caller.protocol}/{caller.username}"
    )
    with subscription:
        await send_events(subscription, socket, request.raw)
    return Raw(socket)


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

"""The check of a request for a websocket."""

from __future__ import annotations

from aiohttp import web

from utsuwa.core.errors import InvalidRequest


def check_websocket(socket: web.WebSocketResponse, raw: web.BaseRequest) -> None:
    """Raise InvalidRequest if the client does not ask for a websocket, or not for one that is supported."""
    try:
        ready = bool(socket.can_prepare(raw))
    except ValueError:  # raised by aiohttp if a header is not valid text
        ready = False
    if not ready:
        raise InvalidRequest("This URL requires a websocket")

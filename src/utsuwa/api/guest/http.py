"""The HTTP interface of the guest API's handlers.

As with LXD, replies have no envelope: JSON or text, and errors are text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web

from utsuwa.core.errors import InvalidRequest, TooLarge
from utsuwa.core.refs import InstanceRef
from utsuwa.instances.guest.manager import GuestManager
from utsuwa.wire.codec import InvalidBody, decode, encode

T = TypeVar("T")

MAX_BODY = 4096
"""Maximum size of a body in bytes."""
_BODY_SECONDS = 10


@dataclass(frozen=True)
class GuestRequest:
    """A request of an instance."""

    raw: web.BaseRequest
    guest: GuestManager
    instance: InstanceRef
    params: Mapping[str, str]
    gone: asyncio.Event
    """Set when the instance has closed the connection."""

    async def body(self, record: type[T]) -> T:
        """Read the body as a record. Raises InvalidRequest, TooLarge."""
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                data = await self.raw.content.read(MAX_BODY + 1)
                while len(data) <= MAX_BODY and (more := await self.raw.content.read(MAX_BODY)):
                    data += more
        except TimeoutError:
            raise InvalidRequest("The request body is incomplete") from None
        if len(data) > MAX_BODY:
            raise TooLarge(f"The request body is larger than {MAX_BODY} bytes")
        try:
            return decode(data, record)
        except InvalidBody as error:
            raise InvalidRequest(str(error)) from error


GuestHandler = Callable[[GuestRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class GuestRoute:
    """One method of one path, as `api.http.Route`."""

    method: str
    path: str
    handler: GuestHandler
    summary: str
    lasting: bool = False
    """Whether its replies are streams that take long."""


def json_reply(value: Any) -> web.Response:
    return web.Response(body=encode(value) + b"\n", content_type="application/json")


def raw_reply(text: str) -> web.Response:
    """Return a value as it is. Clients that decode it learn that it is UTF-8."""
    return web.Response(
        body=text.encode(), headers={"Content-Type": "application/octet-stream; charset=utf-8"}
    )


def failure(status: int, message: str) -> web.Response:
    response = web.Response(text=f"{message}\n", status=status)
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response

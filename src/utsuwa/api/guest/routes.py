"""The table of the guest API's routes, and their handlers."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from aiohttp import web

from utsuwa.api import image_transfer
from utsuwa.api.guest.http import GuestRequest, GuestRoute, json_reply, raw_reply
from utsuwa.api.websockets import send_events, websocket_response
from utsuwa.core.errors import InvalidRequest
from utsuwa.instances.guest.manager import EVENT_TYPES
from utsuwa.operations.events import Subscription
from utsuwa.wire.guest import GuestPatch


async def list_versions(request: GuestRequest) -> web.StreamResponse:
    return json_reply(["/1.0"])


async def show(request: GuestRequest) -> web.StreamResponse:
    return json_reply(request.guest.shown(request.instance))


async def report_state(request: GuestRequest) -> web.StreamResponse:
    body = await request.body(GuestPatch)
    await request.guest.report(request.instance, body.state)
    return raw_reply("")


async def list_keys(request: GuestRequest) -> web.StreamResponse:
    return json_reply([f"/1.0/config/{key}" for key in request.guest.keys(request.instance)])


async def show_key(request: GuestRequest) -> web.StreamResponse:
    return raw_reply(request.guest.value(request.instance, request.params["key"]))


async def show_meta_data(request: GuestRequest) -> web.StreamResponse:
    return raw_reply(request.guest.meta_data(request.instance))


async def list_devices(request: GuestRequest) -> web.StreamResponse:
    return json_reply(await request.guest.devices(request.instance))


async def export_image(request: GuestRequest) -> web.StreamResponse:
    files = await request.guest.image_files(request.instance, request.params["fingerprint"])
    return await image_transfer.send(request.raw, files)


async def listen(request: GuestRequest) -> web.StreamResponse:
    types = [t for t in request.raw.query.get("type", "").split(",") if t] or list(EVENT_TYPES)
    for wanted in types:
        if wanted not in EVENT_TYPES:
            raise InvalidRequest(f"Invalid event type {wanted[:40]!r}: use {' or '.join(EVENT_TYPES)}")
    with request.guest.subscribe(request.instance, types) as events:
        if request.raw.headers.get("Upgrade", "").lower() == "websocket":
            return await send_events(events, websocket_response(request.raw), request.raw)
        return await _stream(events, request)


async def _stream(events: Subscription, request: GuestRequest) -> web.StreamResponse:
    """Send events as lines, until they or the connection end."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.force_close()
    await response.prepare(request.raw)
    tasks = [
        asyncio.create_task(_send_lines(events, response), name="events to an instance"),
        asyncio.create_task(request.gone.wait(), name="end of an instance's connection"),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return response


async def _send_lines(events: Subscription, response: web.StreamResponse) -> None:
    with contextlib.suppress(ConnectionError):
        async for text in events:
            await response.write(text + b"\n")


_ROUTES = (
    GuestRoute("GET", "/", list_versions, "List the API's versions"),
    GuestRoute("GET", "/1.0", show, "Show the API and the instance's state"),
    GuestRoute("GET", "/1.0/", show, "Show the API and the instance's state"),
    GuestRoute("PATCH", "/1.0", report_state, "Report the instance's state"),
    GuestRoute("GET", "/1.0/config", list_keys, "List the keys that the instance can read"),
    GuestRoute("GET", "/1.0/config/{key}", show_key, "Show the value of a key"),
    GuestRoute("GET", "/1.0/devices", list_devices, "List the instance's devices"),
    GuestRoute("GET", "/1.0/events", listen, "Listen to changes of config and devices", lasting=True),
    GuestRoute("GET", "/1.0/images/{fingerprint}/export", export_image, "Download an image", lasting=True),
    GuestRoute("GET", "/1.0/meta-data", show_meta_data, "Show cloud-init's meta-data"),
)
_HEADS = (replace(route, method="HEAD") for route in _ROUTES if route.method == "GET" and not route.lasting)
ROUTES = (*_ROUTES, *_HEADS)
"""HEAD is answered as GET is; the server leaves out the body."""

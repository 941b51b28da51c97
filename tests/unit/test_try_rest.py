"""The site's requests to a daemon that does not answer."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import WSCloseCode, web

from utsuwa.core.errors import Unavailable
from utsuwa.tryit import rest as rest_module
from utsuwa.tryit.rest import Rest
from utsuwa.tryit.settings import Settings

SECONDS = 30
STARTED = {
    "type": "async",
    "operation": "/1.0/operations/x",
    "metadata": {"metadata": {"fds": {"control": "c", "0": "t"}}},
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def never(_request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


@asynccontextmanager
async def rest_with(execute: Handler, websocket: Handler) -> AsyncIterator[Rest]:
    """Return requests to a daemon that answers to commands like this."""
    app = web.Application()
    app.router.add_post("/1.0/instances/box/exec", execute)
    app.router.add_get("/1.0/operations/x/websocket", websocket)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        settings = Settings(server=f"http://127.0.0.1:{runner.addresses[0][1]}")
        async with Rest(settings, ssl.create_default_context()) as rest:
            yield rest
    finally:
        await runner.cleanup()


async def test_a_command_that_is_not_started_in_time_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_module, "_START_SECONDS", 0.1)
    async with rest_with(never, never) as rest, asyncio.timeout(SECONDS):
        with pytest.raises(Unavailable, match="within"):
            await rest.execute("box", ["true"])


async def test_what_is_open_of_a_command_is_closed_when_it_is_given_up() -> None:
    waited_for = asyncio.Event()
    closed: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def execute(_request: web.Request) -> web.StreamResponse:
        return web.json_response(STARTED)

    async def websocket(request: web.Request) -> web.StreamResponse:
        if request.query["secret"] != "c":
            waited_for.set()
            return await never(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            continue
        closed.set_result(socket.close_code)
        return socket

    async with rest_with(execute, websocket) as rest, asyncio.timeout(SECONDS):
        started = asyncio.create_task(rest.execute("box", ["true"], control=True))
        await waited_for.wait()
        started.cancel()
        with pytest.raises(asyncio.CancelledError):
            await started
        assert await closed == WSCloseCode.OK

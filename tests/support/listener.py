"""The HTTPS listener with any handler behind it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

from aiohttp import web

from tests.support.open_warnings import OpenWarnings, no_retries
from utsuwa.daemon.https import API_ADDRESS, HttpsListener
from utsuwa.daemon.tls_port import Limits
from utsuwa.security.tls import ServerContext
from utsuwa.security.trust_store import TrustStore


async def hello(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="hello")


@asynccontextmanager
async def listening(
    context: ssl.SSLContext,
    handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]] = hello,
    *,
    address: str = "127.0.0.1:0",
    limits: Limits | None = None,
    trust: TrustStore | None = None,
) -> AsyncIterator[HttpsListener]:
    listener = HttpsListener(
        API_ADDRESS,
        handle,
        lambda: cast(ServerContext, context),
        trust or TrustStore(),
        OpenWarnings(),
        no_retries(),
        limits,
    )
    await listener.listen(address)
    try:
        yield listener
    finally:
        await listener.close(grace=0.5)

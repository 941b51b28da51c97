"""`/internal`: for the host's root, the daemon's own subcommands and tests; no part of the API."""

from __future__ import annotations

import gc

from utsuwa.api.http import Empty, Request, Result, Route
from utsuwa.core.errors import NotSupportedYet, Unavailable
from utsuwa.security.authorization import Access


async def ready(request: Request) -> Result:
    if not request.services.daemon.ready:
        raise Unavailable("The daemon is starting up or shutting down")
    return Empty()


async def shutdown(request: Request) -> Result:
    """Stop the containers, then the daemon; the reply comes at once, the end shows on the socket."""
    timeout = request.number("timeout", -1)
    request.services.daemon.request_shutdown(
        force=request.flag("force"), timeout=None if timeout < 0 else float(timeout)
    )
    return Empty()


async def collect_garbage(request: Request) -> Result:
    gc.collect()
    return Empty()


async def make_warning(request: Request) -> Result:
    raise NotSupportedYet("This version keeps no warnings")


ROUTES: tuple[Route, ...] = (
    Route("GET", "/internal/ready", ready, "Whether start-up has finished"),
    Route("PUT", "/internal/shutdown", shutdown, "Stop containers and daemon", access=Access.ROOT),
    Route("POST", "/internal/testing/warnings", make_warning, "Make a warning", access=Access.ROOT),
    Route("GET", "/internal/gc", collect_garbage, "Free what is no longer used", access=Access.ROOT),
)

"""Work that goes on to its end, whatever becomes of the task that waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


async def finish(work: Awaitable[T]) -> T:
    """Wait for `work` to end, and return its result.

    A caller that is cancelled meanwhile, however often, is told of it only then: what it undoes never meets
    work that still goes on.
    """
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if not running.cancelled() and (error := running.exception()) is not None:
            log.info("work whose caller was cancelled failed: %s", error)
        raise

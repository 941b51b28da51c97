"""Work that runs to completion even if the task that awaits it is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


async def finish(work: Awaitable[T], stop: Callable[[], None] | None = None) -> T:
    """Wait for `work` to finish, and return its result.

    If the caller is cancelled meanwhile, however often, CancelledError is raised only then: its undo steps
    never run concurrently with the work. `stop` is called on the first cancellation and may cut the work
    short.
    """
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        if stop is not None and not running.done():
            stop()
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if not running.cancelled() and (error := running.exception()) is not None:
            log.info("work of a cancelled caller failed: %s", error)
        raise

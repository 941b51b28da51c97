"""Changes that keep memory and database alike, though their caller goes away in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def run_whole(change: Coroutine[Any, Any, _Result]) -> _Result:
    """Run `change` to its own end; a cancelled caller is let go only then."""
    running = asyncio.ensure_future(change)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # seen: the caller that would have been told is gone
        raise

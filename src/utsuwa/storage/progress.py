"""The progress of storage work, shown in the metadata of the operation to which it belongs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from utsuwa.host.processes.stopper import Reading
from utsuwa.operations.operations import Operation, current

_INTERVAL = 0.5
"""Seconds between two looks."""
UNPACK = ("create_instance_from_image_unpack", "Unpack")
"""The stage of an image that is unpacked, and what clients show of it."""


@asynccontextmanager
async def shown(look: Callable[[], Reading | None], stage: tuple[str, str] = UNPACK) -> AsyncIterator[None]:
    """Show what `look` returns, which may block, in the metadata of the current operation, if any.

    Work that is done within the first half second shows nothing.
    """
    operation = current.get()
    if operation is None:
        yield
        return
    task = asyncio.create_task(_show(operation, look, stage), name="progress")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _show(operation: Operation, look: Callable[[], Reading | None], stage: tuple[str, str]) -> None:
    """The speed is the mean since the reader of the file has been seen first."""
    first: tuple[int, float] | None = None
    while True:
        await asyncio.sleep(_INTERVAL)
        reading = await asyncio.to_thread(look)
        if reading is None:
            first = None
            continue
        now = time.monotonic()
        began, since = first = first or (reading.done, now - _INTERVAL)
        speed = int((reading.done - began) / (now - since))
        operation.set_progress(*stage, percent=reading.percent, processed=reading.done, speed=speed)

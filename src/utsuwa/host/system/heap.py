"""How the C library keeps memory that is free."""

from __future__ import annotations

import asyncio
import ctypes
import time

_TRIM_THRESHOLD = -1
_ARENA_MAX = -8
_KEPT = 256 * 1024

TRIM_SECONDS = 15.0
"""From one trimming to the next, where there was work in between."""
_WORK = 0.1
"""Seconds of processor time that count as work."""


def keep_small() -> None:
    """One arena for all threads, and what is free at its end goes back to the system.

    By default each thread may get an arena of its own, and what many requests at once have taken stays.
    Python's own lock lets threads wait for each other anyway. Call it before there are threads.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_TRIM_THRESHOLD, _KEPT)


async def keep_trimmed() -> None:
    """Give free memory back to the system from time to time; runs until it is cancelled.

    After many clients at once the heap is free but for a few small objects, of which one at its end keeps
    glibc from giving any of it back by itself.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is None:
        return
    worked = time.process_time()
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        if time.process_time() >= worked + _WORK:
            await asyncio.to_thread(trim, 0)
            worked = time.process_time()

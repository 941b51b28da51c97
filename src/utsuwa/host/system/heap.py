"""Handling of free memory by the C library."""

from __future__ import annotations

import asyncio
import ctypes
import time

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8
_KEPT = 4 * 2**20
"""Bytes of free memory at the end of the heap that are kept for what comes next."""
_LARGE = 2**20
"""Bytes that get memory of their own, whose pages the kernel has to provide each time."""

TRIM_SECONDS = 15.0
"""Seconds between trimmings, if there was work in between."""
_WORK = 0.1
"""Seconds of CPU time that count as work."""


def keep_small() -> None:
    """Use one arena for all threads, and return most of the free memory at its end to the system.

    By default each thread may get its own arena, which keeps the memory that many concurrent requests needed.
    Because of the GIL, threads do not benefit from it. Must be called before threads are started.

    With a limit for the end of the heap, glibc does not adapt any more what it considers large: pieces of a
    body that is received, of more than 128 KiB, would get memory of their own each time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGE)


async def keep_trimmed() -> None:
    """Return free memory to the system periodically; runs until cancelled.

    After many concurrent clients, the heap is free except for a few small objects; a single one at its end
    keeps glibc from returning any of it on its own.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is None:
        return
    worked = time.process_time()
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        if time.process_time() >= worked + _WORK:
            await asyncio.to_thread(trim, 0)
            worked = time.process_time()

"""How the C library keeps memory that is free."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD = -1
_ARENA_MAX = -8
_KEPT = 256 * 1024


def keep_small() -> None:
    """One arena for all threads, and what is free at its end goes back to the system.

    By default each thread may get an arena of its own, and what many requests at once have taken stays.
    Python's own lock lets threads wait for each other anyway. Call it before there are threads.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_TRIM_THRESHOLD, _KEPT)

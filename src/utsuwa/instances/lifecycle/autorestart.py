"""Restarts of containers that end although nobody has asked for it (`boot.autorestart`)."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from utsuwa.core.config_keys import parse_bool
from utsuwa.instances.lifecycle.stop import CLEAN_STOP_LIMIT
from utsuwa.instances.model import Loaded, RuntimePaths

MAX_RESTARTS = 10
PERIOD = 60.0
"""Seconds in which an instance is restarted at most `MAX_RESTARTS` times, as in Incus."""


async def wanted(instance: Loaded, paths: RuntimePaths) -> bool:
    """Whether a container that has ended should be restarted."""
    if not parse_bool(instance.expanded.config.get("boot.autorestart", "")):
        return False
    return not await asyncio.to_thread(_was_requested, paths)


def _was_requested(paths: RuntimePaths) -> bool:
    """Whether a request has caused the end of a container.

    A request to stop counts for as long as the longest request waits, for a container may end later than
    its request has waited.
    """
    if paths.killed.exists():
        return True
    try:
        requested = paths.stop_requested.stat().st_mtime
    except FileNotFoundError:
        return False
    return 0 <= time.time() - requested <= CLEAN_STOP_LIMIT


class RestartLimit:
    """Counts the restarts of each instance, so that one which always ends at once does not load the host."""

    def __init__(self) -> None:
        self._restarts: dict[int, deque[float]] = {}

    def allows(self, row_id: int, now: float) -> bool:
        """Whether an instance may be restarted at `now` (monotonic seconds), which is counted if so."""
        restarts = self._restarts.setdefault(row_id, deque(maxlen=MAX_RESTARTS))
        if len(restarts) == MAX_RESTARTS and now - restarts[0] < PERIOD:
            return False
        restarts.append(now)
        return True

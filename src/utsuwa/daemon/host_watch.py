"""Warnings in the log when the host is about to run out of resources shared by all containers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from utsuwa.host.system import near_limits

log = logging.getLogger(__name__)

_EVERY = 30.0
_AGAIN = 24 * 3600.0
"""Seconds before a warning is repeated, as usage may fluctuate."""


class HostWatch:
    """Checks periodically, while containers run: their systems allocate resources some time after a start."""

    def __init__(self, any_running: Callable[[], bool]) -> None:
        self._any_running = any_running
        self._told: dict[str, float] = {}

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(), name="limits of the host")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            if self._any_running():
                try:
                    await self.check()
                except (OSError, ValueError) as error:
                    log.debug("cannot check the host's limits: %s", error)

    async def check(self) -> None:
        """Warn of each limit that is nearly reached, but not repeatedly."""
        now = time.monotonic()
        for name, use in (await asyncio.to_thread(near_limits.check)).items():
            if now - self._told.get(name, -_AGAIN) >= _AGAIN:
                self._told[name] = now
                log.warning(
                    "the host is near its limit %s: %s: raise it before containers fail to start or to work "
                    "(see utsuwad check)",
                    name,
                    use,
                )

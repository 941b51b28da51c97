"""Warnings when the host is about to run out of resources shared by all containers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from utsuwa.core.warning_types import HOST_NEAR_LIMITS
from utsuwa.host.system import near_limits
from utsuwa.operations.warnings import Warnings

log = logging.getLogger(__name__)

_EVERY = 30.0


class HostWatch:
    """Checks periodically, while containers run: their systems allocate resources some time after a start."""

    def __init__(self, any_running: Callable[[], bool], warnings: Warnings) -> None:
        self._any_running = any_running
        self._warnings = warnings
        self._near: frozenset[str] = frozenset()

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(), name="limits of the host")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            if self._any_running() or self._near:
                try:
                    await self.check()
                except (OSError, ValueError) as error:
                    log.debug("cannot check the host's limits: %s", error)

    async def check(self) -> None:
        """Warn when a limit is nearly reached, but not whenever the usage changes."""
        found = await asyncio.to_thread(near_limits.check)
        if self._near == found.keys():
            return
        self._near = frozenset(found)
        uses = "; ".join(f"{name}: {use}" for name, use in sorted(found.items()))
        self._warnings.judge(
            HOST_NEAR_LIMITS,
            f"the host is near these limits: {uses}: raise them before containers fail to start or to work "
            "(see utsuwad check)"
            if found
            else "",
        )

"""The owner of background tasks that belong to no request: periodic work and one-off errands."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Scheduler:
    """Tasks live until `stop()`; what fails in one is logged and ends nothing else."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` once in the background."""
        task = asyncio.get_running_loop().create_task(self._guard(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def every(self, seconds: float, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run `work` again and again, `seconds` after the end of the run before; first after `seconds`."""
        return self.spawn(name, self._repeat(seconds, name, work))

    async def stop(self) -> None:
        """Cancel all tasks and wait for them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _guard(self, name: str, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception:
            log.exception("background work failed", extra={"task": name})

    async def _repeat(self, seconds: float, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._guard(name, work())

"""Attempts at what the host was not ready for, repeated with growing pauses until they succeed.

An attempt is also repeated when a network interface that it waits for appears, or when another attempt has
succeeded: an instance may wait for a pool.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

from utsuwa.core.warning_types import LINK_EVENTS_MISSING
from utsuwa.host.network.link_events import LinkEvents
from utsuwa.operations.warnings import Warnings

log = logging.getLogger(__name__)

_WAITS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds before each attempt; the last value is repeated."""
_REST = 0.5
"""Minimum seconds between two attempts, regardless of the number of events."""

Attempt = Callable[[], Awaitable[bool]]
"""Returns whether it is settled: then it is not repeated."""


def _none() -> Collection[str]:
    return ()


@dataclass
class _Waiting:
    attempt: Attempt
    interfaces: Callable[[], Collection[str]]
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Retries:
    """All attempts of the daemon, by their names. One that hangs does not delay others."""

    def __init__(self, links: LinkEvents, warnings: Warnings) -> None:
        self._links = links
        self._warnings = warnings
        self._waiting: dict[str, _Waiting] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._waiting

    def add(self, name: str, attempt: Attempt, interfaces: Callable[[], Collection[str]] = _none) -> None:
        """Repeat `attempt` in the background; does nothing if there is one of this name.

        `interfaces` returns the names of the network interfaces that it waits for.
        """
        if name in self._waiting:
            return
        if not self._waiting:
            self._listen()
        waiting = self._waiting[name] = _Waiting(attempt, interfaces)
        waiting.task = asyncio.create_task(self._run(name, waiting), name=f"retry: {name}")

    async def begin(self, name: str, attempt: Attempt) -> None:
        """Make the first attempt, and repeat it in the background if it is not settled."""
        if not await attempt():
            self.add(name, attempt)

    def drop(self, name: str) -> None:
        """Do not repeat an attempt any more; one that is running is completed. Safe to repeat."""
        if self._waiting.pop(name, None) is not None and not self._waiting:
            self._links.leave(self._heard)

    async def stop(self) -> None:
        """Cancel all attempts, including those that are running."""
        tasks = [waiting.task for waiting in self._waiting.values() if waiting.task is not None]
        for name in list(self._waiting):
            self.drop(name)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def hurry(self) -> None:
        """Something has become available: repeat all attempts soon."""
        for waiting in self._waiting.values():
            waiting.hurry.set()

    def _listen(self) -> None:
        message = ""
        try:
            self._links.listen(self._heard)
        except OSError as error:
            message = f"network interfaces that appear are noticed late: {error}"
        self._warnings.judge(LINK_EVENTS_MISSING, message)

    def _heard(self, name: str | None) -> None:
        for waiting in self._waiting.values():
            if name is None or name in waiting.interfaces():
                waiting.hurry.set()

    async def _run(self, name: str, waiting: _Waiting) -> None:
        count = 0
        while self._waiting.get(name) is waiting:
            await self._pause(waiting, _WAITS[min(count, len(_WAITS) - 1)])
            count += 1
            if self._waiting.get(name) is waiting and await self._settled(name, waiting):
                if self._waiting.get(name) is waiting:
                    self.drop(name)
                self.hurry()
                return

    async def _pause(self, waiting: _Waiting, seconds: float) -> None:
        await asyncio.sleep(_REST)
        try:
            await asyncio.wait_for(waiting.hurry.wait(), seconds)
        except TimeoutError:
            return
        waiting.hurry.clear()

    async def _settled(self, name: str, waiting: _Waiting) -> bool:
        try:
            return await waiting.attempt()
        except Exception:
            log.exception("%s is not tried again", name)
            return True

"""Waiting for external interfaces of bridges, to attach them when they are available."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from utsuwa.host.network.link_events import LinkEvents

log = logging.getLogger(__name__)

_REST = 0.5
"""Minimum seconds between two attempts, regardless of the number of events."""


class PortsWatch:
    """Calls `join` when one of the interfaces may become a port; inactive without interfaces."""

    def __init__(self, links: LinkEvents, join: Callable[[], Awaitable[None]]) -> None:
        self._links = links
        self._join = join
        self._names: frozenset[str] = frozenset()
        self._seen = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def watch(self, names: Iterable[str]) -> None:
        """Wait for exactly these interfaces from now on."""
        self._names = frozenset(names)
        if self._names and self._task is None:
            try:
                self._links.listen(self._heard)
            except OSError as error:
                log.warning("external interfaces that appear later will not join their bridges: %s", error)
                return
            self._task = asyncio.create_task(self._run(), name="external interfaces")
        elif not self._names and self._task is not None:
            self._links.leave(self._heard)
            self._task.cancel()
            self._task = None

    def _heard(self, name: str | None) -> None:
        if name is None or name in self._names:
            self._seen.set()

    async def _run(self) -> None:
        while True:
            await self._seen.wait()
            self._seen.clear()
            try:
                await self._join()
            except Exception:
                log.exception("external interfaces do not join their bridges")
            await asyncio.sleep(_REST)

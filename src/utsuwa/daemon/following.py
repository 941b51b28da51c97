"""Periodic refresh of in-memory copies of rows that other members may change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from utsuwa.core.errors import Unavailable

log = logging.getLogger(__name__)

SECONDS = 2.0
"""Seconds between refreshes: a member may trust a certificate removed on another member for as long."""


class Following:
    """Periodically calls each of `parts`, which apply what other members have stored."""

    def __init__(self, parts: Sequence[Callable[[], Awaitable[None]]], seconds: float = SECONDS) -> None:
        self._parts = parts
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="other members")

    async def stop(self) -> None:
        """Stop, cancelling a refresh in progress."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            for follow in self._parts:
                try:
                    await follow()
                except Unavailable as error:
                    log.debug("cannot read other members' changes, retrying later: %s", error)
                except Exception:
                    log.exception("cannot apply a change of another member")
